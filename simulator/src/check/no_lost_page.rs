//! At rest every page is somewhere: one site owns it and has its contents, or it is in the store.
//! While machines live no contents go back to the store.

use super::Checker;
use crate::cluster::{Cluster, Done};

/// The checker; it remembers nothing.
#[derive(Default)]
pub(super) struct NoLostPage;

impl Checker for NoLostPage {
    fn after_step(&mut self, _: &Cluster, _: &Done) -> Result<(), String> {
        Ok(())
    }

    fn at_rest(&mut self, cluster: &Cluster) -> Result<(), String> {
        for page in cluster.around.pages.iter().chain(&cluster.around.locks) {
            let sites = cluster.nodes.iter().filter_map(|n| n.site.as_ref());
            let owners: Vec<_> = sites.filter(|s| s.page(*page).owner).map(|s| s.id()).collect();
            if owners.len() != 1 {
                return Err(format!("at rest page {page:?} is owned by {owners:?}"));
            }
        }
        Ok(())
    }
}
