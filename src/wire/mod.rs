//! PostgreSQL protocol 3.0 and 3.2 without IO: frames, messages, startup, which reply is owed.
