//! Whoever waits for a lock, or to store to a page, is overtaken a bounded number of times (I6, I17).
//! Locks go round in the order in which requests reach the holder, so each other thread can be
//! ahead once, and once more while the request travels; a lost message costs further rounds.

use std::collections::BTreeMap;

use stead_coherence::PageKey;

use super::Checker;
use crate::cluster::{Cluster, Done, Wait};

/// The checker.
#[derive(Default)]
pub(super) struct FairLocks {
    /// Who waits for which page, and how often another thread got it since.
    overtaken: BTreeMap<(usize, usize), (PageKey, usize)>,
}

impl Checker for FairLocks {
    fn after_step(&mut self, cluster: &Cluster, done: &Done) -> Result<(), String> {
        for wait in &done.waits {
            match wait {
                Wait::Begins { site, thread, page, write: true } => {
                    self.overtaken.insert((*site, *thread), (*page, 0));
                }
                Wait::Begins { .. } => {}
                Wait::Ends { site, thread, page, write } => {
                    self.overtaken.remove(&(*site, *thread));
                    if *write {
                        self.count(cluster, *page)?;
                    }
                }
            }
        }
        Ok(())
    }

    fn before_crash(&mut self, _: &Cluster, dying: usize) {
        // Waiting anew after a view change is not being overtaken.
        self.overtaken.retain(|(site, _), _| *site != dying);
        for (_, count) in self.overtaken.values_mut() {
            *count = 0;
        }
    }
}

impl FairLocks {
    fn count(&mut self, cluster: &Cluster, page: PageKey) -> Result<(), String> {
        let threads: usize = cluster.nodes.iter().map(|n| n.threads.len()).sum();
        let slow = cluster.nodes.iter().any(|n| n.slow);
        let calm = cluster.weather.lost_per_mille == 0 && cluster.disturbed_at == 0 && !slow;
        // While a request travels to a slow site, or a lost one is sent again, the others go round
        // as often as latency lets them.
        let overtaken_max = if calm { 4 * threads } else { 1000 * threads };
        for ((site, thread), (wanted, count)) in &mut self.overtaken {
            if *wanted == page {
                *count += 1;
                if *count > overtaken_max {
                    return Err(format!(
                        "thread {thread} at site {site} was overtaken {count} times at {page:?}"
                    ));
                }
            }
        }
        Ok(())
    }
}
