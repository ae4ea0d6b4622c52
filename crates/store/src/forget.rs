//! How much memory the maps may take: nodes that have been read are kept for the next time, and forgotten when there are
//! too many; they can be read again. Read [`Store::set_map_bytes_max`] first.

use std::collections::HashMap;
use std::sync::Arc;

use stead_model::ContainerId;

use crate::format::Place;
use crate::planted::{self, Bug};
use crate::store::Store;
use crate::tree::{Forgetting, Nodes as _, Tree};
use crate::versions::Trees;

impl Store {
    /// How many bytes of memory the maps from pages to places may take (64 MiB if nobody says otherwise, which is enough
    /// for 16 GiB of pages that lie close together), for this opening. With less than the pages in use need, looking for
    /// a page reads a part of the map first. One operation may go beyond that by what it changes or compares.
    pub fn set_map_bytes_max(&self, bytes: u64) {
        self.disk.memory().set_most(bytes);
        self.forget_idle();
    }

    /// Bytes of memory that the maps take.
    pub(crate) fn map_bytes(&self) -> u64 {
        self.disk.memory().bytes()
    }

    /// Forgets nodes if there are too many. Costs nothing to ask. Not with the state locked.
    pub(crate) fn forget_idle(&self) {
        if self.disk.memory().is_over() && !planted::is(Bug::MapKept) {
            self.forget_now();
        }
    }

    fn forget_now(&self) {
        let memory = self.disk.memory();
        let (mut live, mut snapshots, version) = {
            let state = self.state();
            (state.trees.clone(), state.snapshots.clone(), state.version)
        };
        let mut forgetting = Forgetting::of(memory);
        let mut known: HashMap<(ContainerId, Place), Arc<Tree>> = HashMap::new();
        let mut forget = |trees: &mut Trees| {
            for (&container, tree) in trees {
                let forgotten = known.entry((container, tree.root().place));
                *tree = Arc::clone(
                    forgotten.or_insert_with(|| Arc::new(tree.without_idle(&mut forgetting))),
                );
            }
        };
        forget(&mut live);
        for snapshot in &mut snapshots.list {
            let mut trees = Trees::clone(&snapshot.trees);
            forget(&mut trees);
            snapshot.trees = Arc::new(trees);
        }
        drop((forgetting, known));
        {
            let mut state = self.state_mut();
            // Maps that have come into force meanwhile are the next time's.
            if state.version == version {
                std::mem::swap(&mut state.trees, &mut live);
                std::mem::swap(&mut state.snapshots, &mut snapshots);
            }
        }
        drop((live, snapshots));
        memory.has_forgotten();
    }
}
