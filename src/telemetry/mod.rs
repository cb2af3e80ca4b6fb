//! Logs: tracing to standard error, by outcome, never SQL text or secrets.
