//! A state of the store as something to read: the live one, which moves on with stabilisations, or a snapshot's,
//! which stands still. The reading of pages is in `read`. Read [`View`] first.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use stead_model::{ContainerId, PAGE_SIZE, PageId, PageRange};

use crate::error::{Damage, ReadError};
use crate::format::{Located, NodeId, Place};
use crate::layer::Changes;
use crate::read::{Run, Stored};
use crate::store::{State, Store};
use crate::tree::{Block, Nodes, Tree, Visitor, only};
use crate::versions::{SnapshotInfo, Trees};

/// One state of a store, for reading (catalogue B11).
#[derive(Clone, Debug)]
pub struct View<'a> {
    pub(crate) store: &'a Store,
    /// `None`: the live state.
    snapshot: Option<Arc<SnapshotInfo>>,
}

impl Store {
    /// The live state: what the last stabilisation left. It shows each new one as soon as that is acknowledged.
    #[must_use]
    pub fn view(&self) -> View<'_> {
        View { store: self, snapshot: None }
    }

    /// [`View::read_page`] of the live state.
    ///
    /// # Errors
    /// As for [`View::read_page`].
    pub fn read_page(&self, id: PageId, into: &mut [u8; PAGE_SIZE]) -> Result<Stored, ReadError> {
        self.view().read_page(id, into)
    }

    /// [`View::read_run`] of the live state.
    ///
    /// # Errors
    /// As for [`View::read_run`].
    ///
    /// # Panics
    /// As [`View::read_run`].
    pub fn read_run(&self, first: PageId, into: &mut [u8]) -> Result<Run, ReadError> {
        self.view().read_run(first, into)
    }

    /// [`View::read_pages`] of the live state.
    ///
    /// # Panics
    /// As [`View::read_pages`].
    pub fn read_pages(&self, ids: &[PageId], into: &mut [u8]) -> Vec<Result<Stored, ReadError>> {
        self.view().read_pages(ids, into)
    }

    /// [`View::containers`] of the live state.
    #[must_use]
    pub fn containers(&self) -> Vec<ContainerId> {
        self.view().containers()
    }

    /// [`View::stored_pages`] of the live state.
    ///
    /// # Errors
    /// As for [`View::stored_pages`].
    pub fn stored_pages(&self, container: ContainerId) -> Result<Vec<PageRange>, ReadError> {
        self.view().stored_pages(container)
    }
}

impl<'a> View<'a> {
    pub(crate) fn of_snapshot(store: &'a Store, info: &Arc<SnapshotInfo>) -> Self {
        View { store, snapshot: Some(Arc::clone(info)) }
    }

    /// The snapshot whose state this is; `None` if it is the live state.
    #[must_use]
    pub fn snapshot(&self) -> Option<&SnapshotInfo> {
        self.snapshot.as_deref()
    }

    pub(crate) fn is_live(&self) -> bool {
        self.snapshot.is_none()
    }

    /// The maps of this state, without what the layers hold of the live one.
    pub(crate) fn trees<'s>(&self, state: &'s State) -> &'s Trees {
        match &self.snapshot {
            None => &state.trees,
            Some(info) => {
                let snapshot = state.snapshots.numbered(info.number);
                &snapshot.expect("a snapshot is not dropped while there is a view of it").trees
            }
        }
    }

    /// What the layers know of a container, the older one first.
    fn changes(&self, state: &State, container: ContainerId) -> Vec<Changes> {
        let layers = state.frozen.as_deref().into_iter().chain([&state.active]);
        let layers = layers.filter(|_| self.is_live());
        layers.filter_map(|layer| layer.changes(container).cloned()).collect()
    }

    /// A container's map, what the layers have over it, and the version of the maps.
    pub(crate) fn map_of(&self, container: ContainerId) -> (Option<Arc<Tree>>, Vec<Changes>, u64) {
        let state = self.store.state();
        let tree = self.trees(&state).get(&container).cloned();
        (tree, self.changes(&state, container), state.version)
    }

    /// The containers of which something may be stored, in order.
    #[must_use]
    pub fn containers(&self) -> Vec<ContainerId> {
        let state = self.store.state();
        let mut stored: BTreeMap<ContainerId, bool> =
            self.trees(&state).keys().map(|&container| (container, true)).collect();
        let layers = state.frozen.as_deref().into_iter().chain([&state.active]);
        for layer in layers.filter(|_| self.is_live()) {
            for (container, changes) in layer.containers() {
                let below = !changes.dropped && stored.contains_key(&container);
                let here = changes.pages.values().any(|at| !at.is_never());
                stored.insert(container, below || here);
            }
        }
        stored.into_iter().filter(|&(_, some)| some).map(|(container, _)| container).collect()
    }

    /// How many pages of a container have images; what a damaged part of its map told is not counted once that is given
    /// up. Costs by what has been stored since the last root.
    #[must_use]
    pub fn stored_count(&self, container: ContainerId) -> u64 {
        self.store.held(self, container)
    }

    /// The pages of a container that have images, in order. Those of which nobody knows because a part of the map is lost are
    /// among them, so that reading them tells: as many as that part could have told of, up to all that a container can have.
    ///
    /// # Errors
    /// If the container's map is damaged or cannot be read.
    pub fn stored_pages(&self, container: ContainerId) -> Result<Vec<PageRange>, ReadError> {
        loop {
            let (tree, changes, version) = self.map_of(container);
            let mut pages = Pages::default();
            if let Some(tree) = tree
                && !changes.iter().any(|changes| changes.dropped)
            {
                tree.visit(&self.store.disk, &mut pages);
            }
            match pages.unreadable {
                Some(_) if self.store.state().version != version => continue,
                Some(error) => return Err(error),
                None => {}
            }
            let mut over: BTreeMap<u64, bool> = BTreeMap::new();
            for changes in changes {
                if changes.dropped {
                    // The map below was not looked at.
                    over.clear();
                }
                over.extend(changes.pages.iter().map(|(&page, at)| (page, !at.is_never())));
            }
            return Ok(overlaid(pages.stored, &over));
        }
    }

    /// The pages of a container that may be others here than in `base`, in order: stored anew, or zero now. It costs
    /// by what differs. A page that the store has only moved is not among them.
    ///
    /// # Errors
    /// If one of the container's two maps is damaged or cannot be read.
    ///
    /// # Panics
    /// If `base` is a view of another store.
    pub fn changed_pages(
        &self,
        base: &View<'_>,
        container: ContainerId,
    ) -> Result<Vec<PageRange>, ReadError> {
        assert!(std::ptr::eq(self.store, base.store), "both are views of one store");
        self.store.forget_idle();
        loop {
            let (trees, changes, version) = {
                let state = self.store.state();
                let tree = |view: &View<'_>| {
                    let tree = view.trees(&state).get(&container).cloned();
                    tree.unwrap_or_else(|| Arc::new(Tree::empty(container)))
                };
                let trees = [tree(self), tree(base)];
                let mut changes = Vec::new();
                if self.is_live() != base.is_live() {
                    changes = self.changes(&state, container);
                    changes.extend(base.changes(&state, container));
                }
                (trees, changes, state.version)
            };
            match differing(&trees, &changes, &self.store.disk) {
                Err(_) if self.store.state().version != version => {}
                changed => return changed.map(ranges),
            }
        }
    }
}

/// The pages in which two maps differ, or that a layer over one of them names.
fn differing(
    [one, other]: &[Arc<Tree>; 2],
    changes: &[Changes],
    nodes: &dyn Nodes,
) -> Result<BTreeSet<u64>, ReadError> {
    let mut pages: BTreeSet<u64> =
        changes.iter().flat_map(|changes| changes.pages.keys().copied()).collect();
    for (tree, base) in [(one, other), (other, one)] {
        let base = (!changes.iter().any(|changes| changes.dropped)).then_some(&**base);
        if let Some(error) = only(tree, base.into_iter(), nodes, &mut |block, _| {
            if let Block::Page(page) = block {
                pages.insert(page);
            }
        })? {
            return Err(error);
        }
    }
    Ok(pages)
}

/// Pages that are stored in a map, and those that are or are not over it.
fn overlaid(stored: Vec<PageRange>, over: &BTreeMap<u64, bool>) -> Vec<PageRange> {
    let mut all = Vec::new();
    let mut over = over.iter().peekable();
    for range in stored {
        let mut at = range.start;
        while let Some((&page, &is_stored)) = over.next_if(|&(&page, _)| page < range.end) {
            match (is_stored, page < range.start) {
                (true, true) => append(&mut all, PageRange::new(page, page + 1)),
                (false, false) => {
                    append(&mut all, PageRange::new(at, page));
                    at = page + 1;
                }
                _ => {}
            }
        }
        append(&mut all, PageRange::new(at, range.end));
    }
    for (&page, _) in over.filter(|&(_, &is_stored)| is_stored) {
        append(&mut all, PageRange::new(page, page + 1));
    }
    all
}

#[derive(Default)]
struct Pages {
    stored: Vec<PageRange>,
    unreadable: Option<ReadError>,
}

impl Visitor for Pages {
    fn page(&mut self, page: u64, _: Located) {
        append(&mut self.stored, PageRange::new(page, page + 1));
    }

    fn node(&mut self, _: NodeId, _: Place) -> Option<u64> {
        None
    }

    fn unreadable(&mut self, _: NodeId, error: ReadError) {
        self.unreadable = Some(error);
    }

    /// Pages that are lost are among those that are stored: reading them is what tells.
    fn lost(&mut self, damage: Damage) {
        match (damage.page, damage.map_of) {
            (Some(id), _) => append(&mut self.stored, PageRange::new(id.page.0, id.page.0 + 1)),
            (None, Some((_, pages))) => append(&mut self.stored, pages),
            (None, None) => self.unreadable = Some(damage.into()),
        }
    }
}

fn ranges(pages: impl IntoIterator<Item = u64>) -> Vec<PageRange> {
    let mut ranges: Vec<PageRange> = Vec::new();
    pages.into_iter().for_each(|page| append(&mut ranges, PageRange::new(page, page + 1)));
    ranges
}

/// Adds a range behind all others, if it is one.
fn append(ranges: &mut Vec<PageRange>, range: PageRange) {
    match ranges.last_mut() {
        _ if range.start >= range.end => {}
        Some(last) if last.end == range.start => last.end = range.end,
        _ => ranges.push(range),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_lies_over_a_map_hides_it_page_by_page() {
        let mut chance = crate::sim::SplitMix(3);
        for _ in 0..2000 {
            let mut page = 0;
            let mut stored = Vec::new();
            for _ in 0..chance.below(4) {
                let start = page + chance.below(5);
                page = start + 1 + chance.below(6);
                append(&mut stored, PageRange::new(start, page));
            }
            let over: BTreeMap<u64, bool> =
                (0..chance.below(12)).map(|_| (chance.below(30), chance.below(2) == 0)).collect();
            let mut want: BTreeSet<u64> = stored.iter().flat_map(|r| r.start..r.end).collect();
            for (&page, &is_stored) in &over {
                if is_stored {
                    want.insert(page)
                } else {
                    want.remove(&page)
                };
            }
            assert_eq!(overlaid(stored, &over), ranges(want));
        }
    }
}
