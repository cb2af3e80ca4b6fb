//! Which reply is owed: the queue of requests that wait for a server.
