//! Whoever waits for a lock, or to store to a page, is overtaken a bounded number of times (I6, I17).
//! Locks go round in the order in which requests reach the holder: from then on each other thread can be
//! ahead once, and at a page a few times, as those at its owner store again within its hold. While the
//! request travels the others go round as often as time lets them, and so they do when a message was lost.

use std::collections::BTreeMap;

use stead_coherence::{Micros, PageKey};

use super::Checker;
use crate::cluster::{Cluster, Done, Wait};

/// The checker.
#[derive(Default)]
pub(super) struct FairLocks {
    /// Who waits for which page.
    waiting: BTreeMap<(usize, usize), Waiting>,
}

struct Waiting {
    page: PageKey,
    since: Micros,
    /// How often another thread got it since the request ought to have reached its holder.
    overtaken: usize,
}

/// Messages that a request and the word of its being passed on take, in calm weather, and more.
const ON_THE_WAY: u64 = 6;

impl Checker for FairLocks {
    fn after_step(&mut self, cluster: &Cluster, done: &Done) -> Result<(), String> {
        for wait in &done.waits {
            match wait {
                Wait::Begins { site, thread, page, write: true } => {
                    let waiting = Waiting { page: *page, since: cluster.now, overtaken: 0 };
                    self.waiting.insert((*site, *thread), waiting);
                }
                Wait::Begins { .. } => {}
                Wait::Ends { site, thread, page, write } => {
                    self.waiting.remove(&(*site, *thread));
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
        self.waiting.retain(|(site, _), _| *site != dying);
        for waiting in self.waiting.values_mut() {
            waiting.overtaken = 0;
        }
    }
}

impl FairLocks {
    fn count(&mut self, cluster: &Cluster, page: PageKey) -> Result<(), String> {
        let threads: usize = cluster.nodes.iter().map(|n| n.threads.len()).sum();
        let slow = cluster.nodes.iter().any(|n| n.slow);
        let calm = cluster.weather.lost_per_mille == 0 && cluster.disturbed_at == 0 && !slow;
        let (on_the_way, overtaken_max) = if calm {
            (ON_THE_WAY * cluster.weather.latency_us.1, 4 * threads)
        } else {
            (0, 1000 * threads)
        };
        for ((site, thread), waiting) in &mut self.waiting {
            if waiting.page == page && cluster.now > waiting.since + on_the_way {
                waiting.overtaken += 1;
                if waiting.overtaken > overtaken_max {
                    return Err(format!(
                        "thread {thread} at site {site} was overtaken {} times at {page:?}",
                        waiting.overtaken
                    ));
                }
            }
        }
        Ok(())
    }
}
