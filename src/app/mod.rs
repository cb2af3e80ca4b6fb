//! The composition root: threads, signals, reload, drain.
