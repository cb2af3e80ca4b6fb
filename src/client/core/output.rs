//! The batch on its way: passed as it stands, or copied from the first change on; and the frames that pgmend writes.

use super::Statement;
use crate::client::buffer::lend_out;
use crate::wire::backend;
use crate::wire::replies::Fake;

/// Copies the unchanged part of a batch when the first change comes.
pub struct Output<'a> {
    input: &'a [u8],
    out: &'a mut Vec<u8>,
    /// Something was changed: what is to be sent stands in `out`.
    pub rewritten: bool,
}

impl<'a> Output<'a> {
    /// Nothing changed yet.
    pub fn new(input: &'a [u8], out: &'a mut Vec<u8>) -> Output<'a> {
        Output { input, out, rewritten: false }
    }

    /// These bytes of the input are sent as they are.
    pub fn pass(&mut self, from: usize, to: usize) {
        if self.rewritten {
            self.out.extend_from_slice(self.input.get(from..to).unwrap_or_default());
        }
    }

    /// Here comes a change; everything before `from` was passed.
    pub fn rewrite(&mut self, from: usize) -> &mut Vec<u8> {
        if !self.rewritten {
            self.rewritten = true;
            lend_out(self.out);
            self.out.extend_from_slice(self.input.get(..from).unwrap_or_default());
        }
        self.out
    }
}

/// A frame's tag and length; `length` counts itself.
pub fn write_header(out: &mut Vec<u8>, tag: u8, length: usize) {
    out.push(tag);
    // A length beyond 2^31 was refused when the frame's header was read.
    out.extend_from_slice(&u32::try_from(length).unwrap_or(u32::MAX).to_be_bytes());
}

/// A frame whose body is these parts.
pub fn write_frame(out: &mut Vec<u8>, tag: u8, parts: &[&[u8]]) {
    write_header(out, tag, 4 + parts.iter().map(|p| p.len()).sum::<usize>());
    parts.iter().for_each(|p| out.extend_from_slice(p));
}

/// The Parse of a statement under its name on servers.
pub fn write_parse(statement: &Statement, out: &mut Vec<u8>) {
    write_frame(out, b'P', &[statement.server_name.as_bytes(), b"\0", &statement.query_and_types]);
}

/// A reply of pgmend's own.
pub fn write_fake(fake: Fake, out: &mut Vec<u8>) {
    match fake {
        Fake::ParseComplete => backend::parse_complete(out),
        Fake::CloseComplete => backend::close_complete(out),
    }
}
