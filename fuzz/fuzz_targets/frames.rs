//! Any bytes as frames, their bodies by every decoder, their tags as a server's replies.
#![no_main]

use libfuzzer_sys::fuzz_target;
use pgmend::wire::{backend, frame, frontend, replies};

fuzz_target!(|data: &[u8]| {
    let mut replies = replies::Replies::new();
    let mut rest = data;
    while let Ok(Some(message)) = frame::split(rest) {
        let _ = (backend::parse_auth(message.body), backend::parse_error(message.body));
        let _ = (backend::parse_parameter_status(message.body), backend::parse_key_data(message.body));
        let _ = (frontend::parse_names(message.body), frontend::bind(message.body));
        let _ = (frontend::describe_or_close(message.body), frontend::query_text(message.body));
        let _ = (frontend::parse_password(message.body), frontend::parse_sasl_initial(message.body));
        let _ = replies.push(replies::Expect::Query);
        let _ = replies.on_backend(message.tag, message.body.first().copied());
        rest = message.rest;
    }
});
