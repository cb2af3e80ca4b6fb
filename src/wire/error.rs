//! What can be wrong with bytes from a peer.

/// A peer broke the protocol. The texts name no content, so they may be logged and sent.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum WireError {
    /// A length that is below the least or above the greatest that the protocol allows.
    #[error("invalid message length {0}")]
    Length(u32),
    /// A message that ends before its fields do, or has bytes left over.
    #[error("invalid message format: {0}")]
    Format(&'static str),
    /// Text that is not UTF-8 where it must be shown or compared.
    #[error("invalid text in message: {0}")]
    Text(&'static str),
    /// A startup packet of a protocol that is not spoken here.
    #[error("unsupported frontend protocol {major}.{minor}: server supports 3.0 to 3.2")]
    Protocol {
        /// Major version asked for.
        major: u16,
        /// Minor version asked for.
        minor: u16,
    },
    /// A startup packet without a user.
    #[error("no PostgreSQL user name specified in startup packet")]
    NoUser,
    /// A message of this type may not come now.
    #[error("unexpected message type 0x{0:02X}")]
    Unexpected(u8),
    /// The client has more requests open than are kept.
    #[error("too many requests without a reply, the limit is {0}")]
    TooManyRequests(usize),
}
