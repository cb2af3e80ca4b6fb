//! The door through which the data plane tells that a node's data are not those of the others any more.

use crate::base::NodeId;
use std::future::Future;
use std::pin::Pin;

/// Takes a node out of service at once. Implemented by the keeper, plugged in by `app`.
pub trait Divergences: Send + Sync {
    /// The node answered otherwise than the others, or was lost where its outcome is not known. `generation` is that of the
    /// view under which this was seen; the reason is for people. The answer comes when the node is out, durably and for
    /// everybody: its generation; an error says why it was left, as the last node always is. Nothing may be answered to the
    /// client before. May be awaited on any runtime; once called it goes on without the one who waits.
    fn report(
        &self,
        node: NodeId,
        generation: u64,
        reason: String,
    ) -> Pin<Box<dyn Future<Output = Result<u64, String>> + Send>>;
}
