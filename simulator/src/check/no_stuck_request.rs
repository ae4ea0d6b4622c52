//! Nobody waits for ever: a wait ends within ten seconds of the last disturbance, which is two
//! hundred times the time after which a message is sent again.

use std::collections::BTreeMap;

use stead_coherence::PageKey;

use super::Checker;
use crate::cluster::{Cluster, Done, Wait};

const WAIT_MAX_US: u64 = 10_000_000;

/// The checker.
#[derive(Default)]
pub(super) struct NoStuckRequest {
    since: BTreeMap<(usize, usize), (u64, PageKey)>,
}

impl Checker for NoStuckRequest {
    fn after_step(&mut self, cluster: &Cluster, done: &Done) -> Result<(), String> {
        for wait in &done.waits {
            match wait {
                Wait::Begins { site, thread, page, .. } => {
                    self.since.insert((*site, *thread), (cluster.now, *page));
                }
                Wait::Ends { site, thread, .. } => {
                    self.since.remove(&(*site, *thread));
                }
            }
        }
        for ((site, thread), (since, page)) in &self.since {
            let since = (*since).max(cluster.disturbed_at);
            if cluster.now > since + WAIT_MAX_US {
                return Err(format!(
                    "thread {thread} at site {site} has been waiting for {page:?} since {since} us"
                ));
            }
        }
        Ok(())
    }

    fn before_crash(&mut self, _: &Cluster, dying: usize) {
        self.since.retain(|(site, _), _| *site != dying);
    }

    fn at_rest(&mut self, _: &Cluster) -> Result<(), String> {
        match self.since.iter().next() {
            Some(((site, thread), (_, page))) => {
                Err(format!("at rest thread {thread} at site {site} waits for {page:?}"))
            }
            None => Ok(()),
        }
    }
}
