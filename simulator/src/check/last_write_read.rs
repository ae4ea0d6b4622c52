//! Every load reads what the latest store wrote (I12). Steps are taken one after another and each
//! stored value is unique, so the order of the steps is the one order that sequential consistency
//! asks for. What a dead machine had, or one that went back, may be what it was in the stable state;
//! from then on everyone reads that.

use std::collections::BTreeMap;

use stead_coherence::PageKey;

use super::Checker;
use crate::cluster::{Cluster, Done};
use crate::program::WORDS;

/// The checker.
#[derive(Default)]
pub(super) struct LastWriteRead {
    latest: BTreeMap<PageKey, [u64; WORDS]>,
    /// Words that died with a machine, until someone sees what they are now.
    open: BTreeMap<PageKey, [bool; WORDS]>,
}

impl Checker for LastWriteRead {
    fn after_step(&mut self, _: &Cluster, done: &Done) -> Result<(), String> {
        if done.rounds.went_back {
            for page in self.latest.keys() {
                self.open.insert(*page, [true; WORDS]);
            }
        }
        // Given to a dead machine, perhaps, before anyone knew.
        self.open.extend(done.lost.iter().map(|page| (*page, [true; WORDS])));
        for (place, value) in &done.stores {
            self.latest.entry(place.page).or_default()[place.word] = *value;
            self.open.entry(place.page).or_default()[place.word] = false;
        }
        for (place, value) in &done.loads {
            let latest = &mut self.latest.entry(place.page).or_default()[place.word];
            let open = &mut self.open.entry(place.page).or_default()[place.word];
            if *value == *latest {
                continue;
            }
            if !*open {
                return Err(format!(
                    "site {} read {value} from {place:?}, where {latest} was stored last",
                    done.site
                ));
            }
            *open = false;
            *latest = *value;
        }
        Ok(())
    }

    fn before_crash(&mut self, cluster: &Cluster, site: usize) {
        let Some(dying) = cluster.nodes[site].site.as_ref() else { return };
        for page in dying.pages() {
            let owned_elsewhere = cluster
                .nodes
                .iter()
                .enumerate()
                .any(|(i, n)| i != site && n.site.as_ref().is_some_and(|s| s.page(page).owner));
            if !owned_elsewhere {
                // It owned the page, or gave it to someone who has not got it yet, or was about to
                // get it from someone who then restores it.
                self.open.insert(page, [true; WORDS]);
            }
        }
    }
}
