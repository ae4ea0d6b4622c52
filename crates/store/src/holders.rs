//! Who has a block that is damaged: the live state, some snapshots, or nobody whose state would be lost with it. That
//! decides what is to be done about it. Nothing is read here but the maps on the way. Read [`Store::holders`] first.

use std::collections::BTreeSet;
use std::sync::Arc;

use stead_model::ContainerId;

use crate::error::Damage;
use crate::format::{BLOCK, Place};
use crate::store::Store;
use crate::tree::Tree;
use crate::view::View;

/// The states that a damaged block belongs to.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Holders {
    /// The containers that have it as the last stabilisation left them: one, and branches of it.
    pub live: Vec<ContainerId>,
    /// The snapshots that have it, in the order in which they were taken.
    pub snapshots: Vec<InSnapshot>,
}

/// A container in a snapshot.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct InSnapshot {
    /// The snapshot.
    pub snapshot: String,
    /// The container that has the block in it.
    pub container: ContainerId,
}

impl Holders {
    /// Whether only snapshots have it.
    #[must_use]
    pub fn only_snapshots(&self) -> bool {
        self.live.is_empty() && !self.snapshots.is_empty()
    }

    /// Names of the snapshots, each once.
    #[must_use]
    pub fn snapshot_names(&self) -> Vec<String> {
        let mut names: Vec<String> = self.snapshots.iter().map(|s| s.snapshot.clone()).collect();
        names.dedup();
        names
    }
}

impl Store {
    /// Who has what is damaged. None has what is no image and no part of a map: a superblock, a root, a header.
    #[must_use]
    pub fn holders(&self, damage: &Damage) -> Holders {
        let (container, page) = match (damage.page, &damage.map_of) {
            (Some(id), _) => (id.container, (id.page.0, true)),
            (None, Some((container, pages))) => (*container, (pages.start, false)),
            (None, None) => return Holders::default(),
        };
        let place = Place(damage.offset / BLOCK as u64);
        let mut views = vec![self.view()];
        views
            .extend(self.snapshots().iter().filter_map(|info| self.view_snapshot(&info.name).ok()));
        // Versions of a map, and branches of it, share blocks.
        let family = {
            let state = self.state();
            let tree = views.iter().find_map(|view| view.trees(&state).get(&container));
            tree.map_or(container, |tree| tree.family())
        };
        let mut holders = Holders::default();
        for view in &views {
            for of in self.family_in(view, family, container) {
                if !self.leads_over(view, of, page, place) {
                    continue;
                }
                match view.snapshot() {
                    None => holders.live.push(of),
                    Some(info) => {
                        let snapshot = info.name.clone();
                        holders.snapshots.push(InSnapshot { snapshot, container: of });
                    }
                }
            }
        }
        holders
    }

    /// The containers of a state that may have a block of this family, and the one that is named: of that there may be
    /// nothing but what has been stored since the last root.
    fn family_in(
        &self,
        view: &View<'_>,
        family: ContainerId,
        named: ContainerId,
    ) -> BTreeSet<ContainerId> {
        let state = self.state();
        let trees = view.trees(&state).iter().filter(|(_, tree)| tree.family() == family);
        trees.map(|(&container, _)| container).chain([named]).collect()
    }

    /// Whether the block at `place` is the page of this state, or a part of the map on the way to it.
    fn leads_over(
        &self,
        view: &View<'_>,
        container: ContainerId,
        (page, is_page): (u64, bool),
        place: Place,
    ) -> bool {
        let (tree, changes, _) = view.map_of(container);
        let tree: Option<Arc<Tree>> = tree.filter(|_| !changes.iter().any(|c| c.dropped));
        let newer = changes.iter().rev().find_map(|changes| changes.pages.get(&page));
        if let Some(at) = newer.filter(|_| is_page) {
            // What the map has of it is hidden.
            return at.place == place;
        }
        tree.is_some_and(|tree| tree.leads_over(page, place, &self.disk))
    }
}
