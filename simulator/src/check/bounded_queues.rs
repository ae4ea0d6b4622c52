//! Queues are bounded: at a page waits at most one request of each site (and, for locks, each thread
//! of the holder's own and each section undone while it waited), and a site has no more unfinished
//! pages than threads, pages and locks can cause.

use super::Checker;
use crate::cluster::{Cluster, Done};

/// The checker; it remembers nothing.
#[derive(Default)]
pub(super) struct BoundedQueues;

impl Checker for BoundedQueues {
    fn after_step(&mut self, cluster: &Cluster, done: &Done) -> Result<(), String> {
        let node = &cluster.nodes[done.site];
        let Some(site) = &node.site else { return Ok(()) };
        for page in &done.pages {
            let waiting = site.waiting(*page).count();
            let most = cluster.nodes.len() + node.threads.len() + node.locks_unwanted;
            if waiting > most {
                return Err(format!("{waiting} requests wait for {page:?} at one site"));
            }
        }
        let all = cluster.around.pages.len() + cluster.around.locks.len();
        if site.busy_count() > all {
            return Err(format!("{} pages are unfinished, of {all}", site.busy_count()));
        }
        Ok(())
    }
}
