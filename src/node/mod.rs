//! What can be done to a PostgreSQL server from outside: start, stop, base backup, rewind, run a script.
