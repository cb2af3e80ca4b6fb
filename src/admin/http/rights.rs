//! Who may do what: all local users look, operators change.

use crate::admin::Command;
use nix::unistd::{User, geteuid, getuid};

/// What a peer may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Right {
    /// Status and jobs.
    Look,
    /// Everything.
    Change,
}

impl Right {
    pub(super) fn allows(self, command: &Command) -> bool {
        match command {
            Command::Status | Command::Jobs | Command::Job { .. } => true,
            Command::Planned { dry_run: true, .. } => true,
            Command::Recover { .. }
            | Command::Attach { .. }
            | Command::Detach { .. }
            | Command::Planned { dry_run: false, .. }
            | Command::Failover { .. }
            | Command::BackedUp
            | Command::Pause { .. }
            | Command::Resume { .. }
            | Command::Reconnect { .. }
            | Command::Kill { .. }
            | Command::Disable { .. }
            | Command::Enable { .. }
            | Command::Reload
            | Command::Stop { .. }
            | Command::CancelJob { .. } => self == Right::Change,
        }
    }
}

/// The user ids of those who may change things.
#[derive(Debug)]
pub(super) struct Rights(Vec<u32>);

impl Rights {
    /// Root, the daemon's own user, and `users`: numbers or names. An unknown name gives nobody any right.
    pub(super) fn new(users: &[String]) -> Rights {
        let mut ids = vec![0, getuid().as_raw(), geteuid().as_raw()];
        for user in users {
            match resolve(user) {
                Some(id) => ids.push(id),
                None => tracing::warn!(user, "this admin user is unknown to the system; ignored"),
            }
        }
        Rights(ids)
    }

    pub(super) fn of(&self, uid: u32) -> Right {
        if self.0.contains(&uid) { Right::Change } else { Right::Look }
    }
}

/// A name comes first: systems allow names of digits only.
fn resolve(user: &str) -> Option<u32> {
    let named = User::from_name(user).ok().flatten().map(|found| found.uid.as_raw());
    named.or_else(|| user.parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::base::NodeId;

    #[test]
    fn only_operators_change_things() {
        for command in [Command::Status, Command::Jobs, Command::Job { id: 1 }] {
            assert!(Right::Look.allows(&command));
        }
        let node = NodeId(1);
        let changes = [
            Command::Attach { node, accept_data: false },
            Command::Detach { node },
            Command::Recover { node, overwrite: false, accept_loss: false },
            Command::Reload,
            Command::CancelJob { id: 1 },
        ];
        for command in changes {
            assert!(!Right::Look.allows(&command) && Right::Change.allows(&command), "{command:?}");
        }
    }

    #[test]
    fn users_are_named_or_numbered() {
        let rights = Rights::new(&["54321".into(), "root".into(), "no-such-user".into()]);
        assert_eq!(rights.of(0), Right::Change);
        assert_eq!(rights.of(54321), Right::Change);
        assert_eq!(rights.of(54322), Right::Look);
        assert_eq!(resolve("root"), Some(0));
        assert_eq!(resolve("no-such-user"), None);
    }
}
