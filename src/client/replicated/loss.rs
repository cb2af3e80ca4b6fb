//! Nodes that were lost in the middle of something, or have gone astray: reported, detached, and forgotten by the session.

use super::leg::Leg;
use super::session::Session;
use crate::base::NodeId;
use crate::client::fault::Fault;

impl Session {
    /// The nodes whose servers were lost before anything was committed: a node that is alive has only lost this
    /// connection, and the transaction with it; one that cannot be reached is detached, and the others go on.
    /// True: the transaction can go on.
    pub(super) async fn drop_lost(&mut self) -> Result<bool, Fault> {
        let lost = self.legs_where(|leg| leg.account.lost.is_some());
        let mut goes_on = true;
        for place in lost.into_iter().rev() {
            let Some(leg) = self.legs.get_mut(place) else { continue };
            let why = leg.account.lost.clone().unwrap_or_default();
            let is_main = place == 0;
            leg.close();
            if leg.borrower.answers().await {
                leg.account.lost = Some(why);
                goes_on = false;
                continue;
            }
            let node = leg.node;
            let generation = self.plane.board.view().generation;
            self.report(node, generation, format!("its connection was lost and it does not answer: {why}")).await;
            goes_on &= !is_main && !self.worker.live_nodes().contains(&node);
            self.legs.remove(place);
        }
        Ok(goes_on)
    }

    /// Servers that were lost while something was carried out that commits by itself: whether they have done it nobody
    /// knows. Only one that has said why it ends has not. The main node stays where no other one is left.
    pub(super) async fn detach_lost(&mut self) {
        let unknown = |leg: &&Leg| leg.account.lost.is_some() && leg.account.error.is_none();
        let nodes: Vec<(NodeId, String)> = self
            .legs
            .iter()
            .filter(unknown)
            .map(|leg| (leg.node, leg.account.lost.clone().unwrap_or_default()))
            .collect();
        for (node, why) in nodes {
            self.detach_diverged(node, format!("it was lost while it carried out what cannot be undone: {why}")).await;
        }
    }

    /// Nothing is answered to the client before the node is out.
    async fn report(&self, node: NodeId, generation: u64, why: String) {
        let Some(divergences) = self.plane.divergences.load_full() else { return };
        if let Err(kept) = divergences.report(node, generation, why).await {
            tracing::error!(event = "node.not_detached", %node, why = %kept);
        }
    }

    /// Detaches a node whose data may differ, and forgets it here.
    pub(super) async fn detach_diverged(&mut self, node: NodeId, why: String) {
        tracing::error!(event = "node.diverged", %node, %why);
        let generation = self.plane.board.view().generation;
        self.report(node, generation, why).await;
        self.legs.retain_mut(|leg| {
            if leg.node == node {
                leg.close();
            }
            leg.node != node
        });
    }

    /// These nodes did something that could not be followed to its end: nobody knows what they have done.
    pub(super) async fn detach_unfollowed(&mut self, places: &[usize], fault: &Fault) {
        let nodes: Vec<NodeId> = places.iter().filter_map(|place| self.legs.get(*place)).map(|leg| leg.node).collect();
        for node in nodes {
            self.detach_diverged(node, format!("what it carried out could not be followed: {fault}")).await;
        }
    }

    /// Connections that have ended are not used any more.
    pub(super) fn close_lost(&mut self) {
        self.legs.iter_mut().filter(|leg| leg.account.lost.is_some()).for_each(Leg::close);
    }
}
