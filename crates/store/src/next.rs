//! The versions of the map as the next root will have them: what a checkpoint changes, and what each change lets go
//! of. A block is counted once however many versions share it, and let go of when none is left that has it. Read
//! [`Next`] first.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use stead_model::ContainerId;

use crate::checkpoint::count;
use crate::cold::Cold;
use crate::error::{CommitError, Damage, ReadError};
use crate::format::{Entry, Located, LogPosition, NodeId, Place};
use crate::layer::Layer;
use crate::planted::{self, Bug};
use crate::space::Layout;
use crate::store::Store;
use crate::tree::{
    GivenUp, Holder, Moves, Others, Released, Relocation, Tree, Visitor, count_lacking,
};
use crate::versions::{Asking, SnapshotInfo, Trees, Versions};

/// The versions while a checkpoint changes them.
pub(crate) struct Next<'a> {
    store: &'a Store,
    pub(crate) versions: Versions,
    /// How many blocks of each segment the versions refer to.
    pub(crate) tree_counts: Vec<u32>,
    /// Whether damage kept from knowing what was let go of: see [`Next::recount`].
    pub(crate) uncertain: bool,
}

impl<'a> Next<'a> {
    pub(crate) fn of(store: &'a Store) -> Self {
        let tree_counts = store.state().space.tree_counts();
        Next { store, versions: store.versions(), tree_counts, uncertain: false }
    }

    pub(crate) fn count(&mut self, place: Place, change: i64) {
        self.uncertain |= !count(self.store.layout(), &mut self.tree_counts, place, change);
    }

    fn let_go(&mut self, places: impl IntoIterator<Item = Place>) -> u64 {
        let mut gone = 0;
        for place in places {
            self.count(place, -1);
            gone += 1;
        }
        gone
    }

    /// Has blocks that cleaning has copied lie elsewhere, in all versions alike.
    pub(crate) fn relocate(&mut self, moves: &Moves, cold: &mut Cold) -> Result<(), CommitError> {
        if moves.is_empty() {
            return Ok(());
        }
        let store = self.store;
        let mut relocation = Relocation::default();
        let mut known: HashMap<(ContainerId, u8, Place), Arc<Tree>> = HashMap::new();
        let mut sink = |id: NodeId, block: &[u8]| cold.append(store, Entry::Node(id), block);
        let mut relocated = |trees: &Trees| -> Result<Trees, CommitError> {
            let mut moved = trees.clone();
            for (container, tree) in &mut moved {
                let key = (*container, tree.levels(), tree.root().place);
                if let Some(known) = known.get(&key) {
                    tree.clone_from(known);
                    continue;
                }
                if let Some(new) = tree.relocate(moves, &mut relocation, &store.disk, &mut sink)? {
                    *tree = Arc::new(new);
                }
                known.insert(key, Arc::clone(tree));
            }
            Ok(moved)
        };
        self.versions.live = relocated(&self.versions.live)?;
        if !planted::is(Bug::MovedInLiveOnly) {
            for snapshot in &mut self.versions.snapshots.list {
                snapshot.trees = Arc::new(relocated(&snapshot.trees)?);
            }
        }
        self.let_go(relocation.released);
        relocation.taken.into_iter().for_each(|place| self.count(place, 1));
        Ok(())
    }

    /// Brings the live version up to date with what has been stored since the last root.
    pub(crate) fn apply(&mut self, layer: &Layer, cold: &mut Cold) -> Result<(), CommitError> {
        let store = self.store;
        let mut lost = Moves::default();
        for (container, changes) in layer.containers() {
            let old = self.versions.live.get(&container).cloned();
            let kept = old.as_deref().filter(|_| !changes.dropped).cloned();
            let mut tree = kept.unwrap_or_else(|| Tree::empty(container));
            let updates: Vec<_> = changes.pages.iter().map(|(&page, &at)| (page, at)).collect();
            let mut released = Vec::new();
            let mut given_up = tree.update(&updates, &store.disk, &mut released)?;
            tree.store(&mut |id, block| {
                let at = cold.append(store, Entry::Node(id), block)?;
                self.count(at.place, 1);
                Ok::<_, CommitError>(at)
            })?;
            for (_, at) in updates.iter().filter(|(_, at)| !at.is_never()) {
                self.count(at.place, 1);
            }
            if let Some(old) = old {
                let others = self.versions.others(old.family(), &Asking::Live(container));
                if changes.dropped {
                    self.let_go_of_tree(&old, &others)?;
                } else {
                    self.let_go_of(&released, &others, &mut given_up)?;
                }
            }
            given_up.into_iter().for_each(|node| lost.give_up(tree.family(), node));
            if tree.is_empty() {
                self.versions.live.remove(&container);
            } else {
                self.versions.live.insert(container, Arc::new(tree));
            }
        }
        // Other versions that have a node which was given up, or which would have to be asked again and again whether
        // they hold what is stored anew.
        self.uncertain |= !lost.is_empty();
        self.relocate(&lost, cold)
    }

    /// A live map no longer refers to these blocks.
    fn let_go_of(
        &mut self,
        released: &[Released],
        others: &Others,
        damaged: &mut Vec<GivenUp>,
    ) -> Result<(), CommitError> {
        if others.is_empty() || planted::is(Bug::SharedBlockFreed) {
            self.let_go(released.iter().map(|released| released.place));
            return Ok(());
        }
        let holders = others.holders(released, &self.store.disk, damaged)?;
        for (released, holder) in released.iter().zip(holders) {
            match holder {
                Holder::Nobody => self.count(released.place, -1),
                Holder::Snapshots => self.versions.snapshots.pinned += 1,
                Holder::Live => {}
            }
        }
        Ok(())
    }

    /// A live map is gone as a whole.
    fn let_go_of_tree(&mut self, tree: &Tree, others: &Others) -> Result<(), CommitError> {
        let (gone, passed_over) = others.lacking(tree, &self.store.disk)?;
        let gone = self.let_go(gone);
        self.uncertain |= passed_over;
        if !others.snapshots.is_empty() {
            let unneeded = count_lacking(tree, &others.live, &self.store.disk)?;
            // More than what is gone, unless a damaged part of the map was passed over.
            self.versions.snapshots.pinned += unneeded.saturating_sub(gone);
        }
        Ok(())
    }

    /// Counts anew what all versions refer to, after damage kept from knowing what was let go of, so that nothing
    /// stays counted that nobody can reach. Whether maps have lost entries; `None`, and nothing is changed, while a
    /// part of some map is still damaged and may refer to anything.
    pub(crate) fn recount(&mut self) -> Option<bool> {
        if planted::is(Bug::LostNotRecounted) {
            return Some(false);
        }
        let mut recount = Recount {
            layout: self.store.layout(),
            counts: Vec::new(),
            seen: HashSet::new(),
            lost: false,
            unreadable: false,
        };
        for tree in self.versions.live.values() {
            tree.visit(&self.store.disk, &mut recount);
        }
        let live = recount.seen.len();
        for tree in self.versions.snapshots.list.iter().flat_map(|s| s.trees.values()) {
            tree.visit(&self.store.disk, &mut recount);
        }
        if recount.unreadable {
            return None;
        }
        self.versions.snapshots.pinned = (recount.seen.len() - live) as u64;
        recount.counts.resize(recount.counts.len().max(self.tree_counts.len()), 0);
        self.tree_counts = recount.counts;
        Some(recount.lost)
    }

    /// The snapshot holds what the live version now holds.
    pub(crate) fn take(&mut self, name: &str, number: u64, position: &LogPosition) {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let time = u64::try_from(now.as_nanos()).unwrap_or(u64::MAX);
        let live = self.versions.live.clone();
        let info = SnapshotInfo::of(name.into(), number, time, position.sequence, &live);
        self.versions.snapshots.add(info, live);
    }

    pub(crate) fn drop_snapshot(&mut self, number: u64) -> Result<(), CommitError> {
        let Some(dropped) = self.versions.snapshots.remove(number) else { return Ok(()) };
        let mut going = Families::of(&dropped.trees);
        while let Some((family, tree)) = going.take_one() {
            let mut others = self.versions.others(family, &Asking::Dropped(&dropped));
            // A branch may share with its origin in this very snapshot.
            others.snapshots.extend_from_slice(going.members(family));
            let (gone, passed_over) = others.lacking(&tree, &self.store.disk)?;
            self.uncertain |= passed_over;
            if planted::is(Bug::DroppedButKept) {
                continue;
            }
            let gone = self.let_go(gone);
            let pinned = &mut self.versions.snapshots.pinned;
            *pinned = pinned.saturating_sub(gone);
        }
        Ok(())
    }

    pub(crate) fn go_back(&mut self, number: u64) -> Result<(), CommitError> {
        let Some(snapshot) = self.versions.snapshots.numbered(number) else { return Ok(()) };
        let target = Trees::clone(&snapshot.trees);
        let mut coming = target.clone();
        let mut going = std::mem::take(&mut self.versions.live);
        // What is the same in both neither comes nor goes.
        coming.retain(|container, tree| {
            let same = going.get(container).is_some_and(|old| old.is_same(tree));
            !same || going.remove(container).is_none()
        });
        let mut held = Families::of(&target);
        for tree in coming.values() {
            held.remove(tree);
        }
        going.values().for_each(|tree| held.add(tree));
        for tree in coming.values() {
            let new = count_lacking(tree, held.members(tree.family()), &self.store.disk)?;
            let pinned = &mut self.versions.snapshots.pinned;
            *pinned = pinned.saturating_sub(new);
            held.add(tree);
        }
        for tree in going.values() {
            held.remove(tree);
            let mut others = self.versions.others(tree.family(), &Asking::Live(tree.container()));
            others.live.extend_from_slice(held.members(tree.family()));
            self.let_go_of_tree(tree, &others)?;
        }
        self.versions.live = target;
        self.versions.snapshots.go_back(number);
        Ok(())
    }

    pub(crate) fn branch(
        &mut self,
        number: u64,
        origin: ContainerId,
        new: ContainerId,
    ) -> Result<(), CommitError> {
        let snapshot = self.versions.snapshots.numbered(number);
        let Some(tree) = snapshot.and_then(|snapshot| snapshot.trees.get(&origin)).cloned() else {
            return Ok(());
        };
        let live: Vec<Arc<Tree>> = self.versions.live_family(tree.family()).cloned().collect();
        let unpinned = count_lacking(&tree, &live, &self.store.disk)?;
        let pinned = &mut self.versions.snapshots.pinned;
        *pinned = pinned.saturating_sub(unpinned);
        self.versions.add_branch(tree.branch(new));
        Ok(())
    }
}

/// Blocks of all versions, each counted once.
struct Recount {
    layout: Layout,
    counts: Vec<u32>,
    seen: HashSet<Place>,
    lost: bool,
    unreadable: bool,
}

impl Recount {
    fn is_new(&mut self, at: Place) -> bool {
        let is_new = self.seen.insert(at);
        if is_new {
            count(self.layout, &mut self.counts, at, 1);
        }
        is_new
    }
}

impl Visitor for Recount {
    fn page(&mut self, _: u64, at: Located) {
        self.is_new(at.place);
    }

    fn node(&mut self, _: NodeId, at: Place) -> Option<u64> {
        (!self.is_new(at)).then_some(0)
    }

    fn unreadable(&mut self, _: NodeId, _: ReadError) {
        self.unreadable = true;
    }

    fn lost(&mut self, _: Damage) {
        self.lost = true;
    }
}

/// Trees by family.
struct Families(BTreeMap<ContainerId, Vec<Arc<Tree>>>);

impl Families {
    fn of(trees: &Trees) -> Self {
        let mut families = Families(BTreeMap::new());
        trees.values().for_each(|tree| families.add(tree));
        families
    }

    fn add(&mut self, tree: &Arc<Tree>) {
        self.0.entry(tree.family()).or_default().push(Arc::clone(tree));
    }

    fn remove(&mut self, tree: &Arc<Tree>) {
        if let Some(members) = self.0.get_mut(&tree.family()) {
            members.retain(|member| !Arc::ptr_eq(member, tree));
        }
    }

    fn members(&self, family: ContainerId) -> &[Arc<Tree>] {
        self.0.get(&family).map_or(&[], Vec::as_slice)
    }

    fn take_one(&mut self) -> Option<(ContainerId, Arc<Tree>)> {
        loop {
            let mut entry = self.0.first_entry()?;
            match entry.get_mut().pop() {
                Some(tree) => return Some((*entry.key(), tree)),
                None => drop(entry.remove()),
            }
        }
    }
}
