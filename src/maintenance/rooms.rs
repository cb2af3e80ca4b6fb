//! How much room there is where nodes' data are, for whoever looks at the cluster: of this machine it is looked at; elsewhere the
//! node is asked, beside whoever looks, and what it said last is told.

use crate::base::NodeId;
use crate::cluster::NodeSpec;
use crate::node::{Order, Remote, free_bytes, is_this_machine};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tokio_util::sync::CancellationToken;

/// A node elsewhere is not asked more often, and only when somebody looks.
const ASK: Duration = Duration::from_secs(30);
/// What it said longer ago is not told any more.
const STALE: Duration = Duration::from_secs(600);

/// What nodes elsewhere have said; clones share it.
#[derive(Clone, Debug, Default)]
pub(super) struct Rooms(Arc<Mutex<BTreeMap<NodeId, Said>>>);

#[derive(Clone, Debug)]
struct Said {
    /// Of whom: another way or another directory is another node.
    spec: Arc<NodeSpec>,
    asked: Instant,
    /// What it said, and when.
    heard: Option<(u64, Instant)>,
}

impl Rooms {
    /// Bytes that are free; `None`: not known, or not yet. Names that would have to be resolved are not of this machine. Where
    /// there is no runtime nobody is asked.
    pub fn of(&self, spec: &Arc<NodeSpec>) -> Option<u64> {
        if spec.maintain.remote_command.is_some() {
            return self.elsewhere(spec, Instant::now());
        }
        let numeric = spec.host.0.parse::<std::net::IpAddr>().is_ok();
        let here = spec.host.is_local() || spec.host.0 == "localhost" || (numeric && is_this_machine(&spec.host.0));
        free_bytes(spec.data_directory.as_ref().filter(|_| here)?)
    }

    fn elsewhere(&self, spec: &Arc<NodeSpec>, now: Instant) -> Option<u64> {
        let mut all = self.lock();
        let said = all.get(&spec.id).filter(|said| is_same(&said.spec, spec)).cloned();
        if said.as_ref().is_none_or(|said| now.duration_since(said.asked) >= ASK)
            && let Ok(runtime) = tokio::runtime::Handle::try_current()
        {
            let heard = said.as_ref().and_then(|said| said.heard);
            all.insert(spec.id, Said { spec: spec.clone(), asked: now, heard });
            runtime.spawn(self.clone().ask(spec.clone()));
        }
        said?.heard.filter(|(_, at)| now.duration_since(*at) < STALE).map(|(bytes, _)| bytes)
    }

    /// One question, which has a bound.
    async fn ask(self, spec: Arc<NodeSpec>) {
        let Some(remote) = Remote::of(&spec, Order::of(0, None)) else { return };
        match remote.disk(false, &CancellationToken::new()).await {
            Ok(room) => {
                let mut all = self.lock();
                if let Some(said) = all.get_mut(&spec.id).filter(|said| is_same(&said.spec, &spec)) {
                    said.heard = room.free_bytes.map(|bytes| (bytes, Instant::now()));
                }
            }
            Err(error) => tracing::debug!(event = "node.room_unknown", node = spec.id.0, %error),
        }
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<NodeId, Said>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The same directory by the same way.
fn is_same(one: &NodeSpec, other: &NodeSpec) -> bool {
    one.data_directory == other.data_directory && one.maintain.remote_command == other.maintain.remote_command
}
