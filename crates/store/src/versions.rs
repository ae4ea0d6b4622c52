//! The versions of the map that a store keeps, the live one and those of snapshots, and the bytes by which the
//! table names them. Read [`Versions`] first.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use stead_model::ContainerId;

use crate::format::{Located, Place, get_u32, get_u64};
use crate::tree::{Origins, Others, Tree};

/// The map of one version: that of each container of which something is stored.
pub(crate) type Trees = BTreeMap<ContainerId, Arc<Tree>>;

/// Bytes of the longest name of a snapshot.
pub const SNAPSHOT_NAME_BYTES: usize = 255;

/// Most containers behind each other of which one was branched from the next: a block may be sealed as any of theirs.
pub(crate) const ORIGINS_MOST: usize = 32;

/// What is known of a snapshot without looking into it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SnapshotInfo {
    /// What it is called: 1 to [`SNAPSHOT_NAME_BYTES`] bytes without control characters; see
    /// [`stead_model::check_new_name`].
    pub name: String,
    /// Grows from snapshot to snapshot and is never used again.
    pub number: u64,
    /// When it was taken, in nanoseconds since 1970.
    pub time: u64,
    /// The last stabilisation that is in it.
    pub sequence: u64,
    /// Containers of which it holds something.
    pub containers: usize,
    /// Pages stored in it, those that it shares with other states included.
    pub pages: u64,
}

/// Where a version comes from that comes from several, of which the one before them has been dropped.
const UNKNOWN: u64 = u64::MAX;

/// A state that stands still.
#[derive(Clone, Debug)]
pub(crate) struct Snapshot {
    /// The snapshot that the live state had last been the same as when this one was taken; 0 if there was none.
    parent: u64,
    /// Shared with all views of it.
    pub(crate) info: Arc<SnapshotInfo>,
    pub(crate) trees: Arc<Trees>,
}

/// The snapshots of a store, in the order in which they were taken.
#[derive(Clone, Debug, Default)]
pub(crate) struct Snapshots {
    pub(crate) list: Vec<Snapshot>,
    /// Blocks that nothing but snapshots refers to.
    pub(crate) pinned: u64,
    /// The snapshot that the live state was last the same as: the last one taken, or gone back to; 0 if there is none.
    base: u64,
}

impl Snapshots {
    pub(crate) fn add(&mut self, info: SnapshotInfo, trees: Trees) {
        let parent = std::mem::replace(&mut self.base, info.number);
        self.list.push(Snapshot { parent, info: Arc::new(info), trees: Arc::new(trees) });
    }

    /// Takes out a snapshot; what came from it now comes from where it came from.
    pub(crate) fn remove(&mut self, number: u64) -> Option<Removed> {
        let at = self.list.iter().position(|snapshot| snapshot.info.number == number)?;
        let Snapshot { parent, trees, .. } = self.list.remove(at);
        let children = self.list.iter().filter(|snapshot| snapshot.parent == number);
        let children: Vec<u64> = children.map(|snapshot| snapshot.info.number).collect();
        let is_parent_of_live = self.base == number;
        let alone = children.len() + usize::from(is_parent_of_live) <= 1;
        let new_parent = if alone { parent } else { UNKNOWN };
        for snapshot in self.list.iter_mut().filter(|snapshot| snapshot.parent == number) {
            snapshot.parent = new_parent;
        }
        if is_parent_of_live {
            self.base = new_parent;
        }
        Some(Removed { parent, children, is_parent_of_live, trees })
    }

    /// The live state is now the same as this snapshot.
    pub(crate) fn go_back(&mut self, number: u64) {
        self.base = number;
    }

    pub(crate) fn named(&self, name: &str) -> Option<&Snapshot> {
        self.list.iter().find(|snapshot| snapshot.info.name == name)
    }

    pub(crate) fn numbered(&self, number: u64) -> Option<&Snapshot> {
        self.list.iter().find(|snapshot| snapshot.info.number == number)
    }
}

/// A snapshot that is no longer one.
pub(crate) struct Removed {
    parent: u64,
    children: Vec<u64>,
    is_parent_of_live: bool,
    pub(crate) trees: Arc<Trees>,
}

/// Whose blocks it is about.
pub(crate) enum Asking<'a> {
    /// The live map of a container.
    Live(ContainerId),
    /// The map of a snapshot, while it is being dropped.
    Dropped(&'a Removed),
}

/// All versions, as they are or as a checkpoint is about to make them.
#[derive(Clone, Debug, Default)]
pub(crate) struct Versions {
    pub(crate) live: Trees,
    pub(crate) snapshots: Snapshots,
    /// Containers that are branches in some version.
    branches: BTreeSet<ContainerId>,
    /// Families in which there are branches.
    branched: BTreeSet<ContainerId>,
}

impl Versions {
    pub(crate) fn new(live: Trees, snapshots: Snapshots) -> Self {
        let mut versions = Versions { live, snapshots, ..Versions::default() };
        let trees = versions.all().flat_map(BTreeMap::values);
        let trees = trees.filter(|tree| !tree.origins().ids().is_empty());
        let (branches, branched) = trees.map(|tree| (tree.container(), tree.family())).unzip();
        (versions.branches, versions.branched) = (branches, branched);
        versions
    }

    /// Makes a container out of the tree of another one.
    pub(crate) fn add_branch(&mut self, tree: Tree) {
        self.branches.insert(tree.container());
        self.branched.insert(tree.family());
        self.live.insert(tree.container(), Arc::new(tree));
    }

    /// The other trees that have to be asked whether they hold a block of one.
    ///
    /// What two versions have in common, all have through which the later one came from the earlier one: live state
    /// and snapshots form a tree in which each comes from the one that it was last the same as. So its neighbours
    /// there are enough, unless branches or a missing part of that tree make it hard to tell who they are.
    pub(crate) fn others(&self, family: ContainerId, asking: &Asking<'_>) -> Others {
        let Snapshots { list, base, .. } = &self.snapshots;
        let dropped = match asking {
            Asking::Live(_) => None,
            Asking::Dropped(dropped) => Some(dropped.parent),
        };
        let mut parents = list.iter().map(|snapshot| snapshot.parent).chain(dropped).chain([*base]);
        let known = parents.all(|parent| parent != UNKNOWN);
        let all = self.branched.contains(&family) || !known;
        let (live, except) = match asking {
            Asking::Live(container) => (all, Some(*container)),
            Asking::Dropped(dropped) => (all || dropped.is_parent_of_live, None),
        };
        let mut others = Others::default();
        if live {
            let members = self.live_family(family);
            others.live =
                members.filter(|tree| Some(tree.container()) != except).cloned().collect();
        }
        for snapshot in list {
            let number = snapshot.info.number;
            let near = match asking {
                Asking::Live(_) => number == *base,
                Asking::Dropped(dropped) => {
                    number == dropped.parent || dropped.children.contains(&number)
                }
            };
            if !all && !near {
                continue;
            }
            for tree in self.family_of(&snapshot.trees, family) {
                // Neighbours in time are often the same.
                if !others.snapshots.iter().rev().any(|known| known.is_same(tree)) {
                    others.snapshots.push(Arc::clone(tree));
                }
            }
        }
        others
    }

    pub(crate) fn live_family(&self, family: ContainerId) -> impl Iterator<Item = &Arc<Tree>> {
        self.family_of(&self.live, family)
    }

    /// The trees that may hold a block that is sealed as the container's, each once.
    pub(crate) fn sealed_as(&self, container: ContainerId) -> Vec<Arc<Tree>> {
        let mut found: Vec<Arc<Tree>> = Vec::new();
        for trees in self.all() {
            let branches = self.branches.iter().filter_map(|branch| trees.get(branch));
            let sealing = branches.filter(|tree| tree.origins().ids().contains(&container));
            for tree in trees.get(&container).into_iter().chain(sealing) {
                if !found.iter().rev().any(|known| known.is_same(tree)) {
                    found.push(Arc::clone(tree));
                }
            }
        }
        found
    }

    /// Every map of every version.
    pub(crate) fn trees(&self) -> impl Iterator<Item = &Arc<Tree>> {
        self.all().flat_map(BTreeMap::values)
    }

    fn all(&self) -> impl Iterator<Item = &Trees> {
        let snapshots = self.snapshots.list.iter().map(|snapshot| &*snapshot.trees);
        std::iter::once(&self.live).chain(snapshots)
    }

    fn family_of<'a>(
        &'a self,
        trees: &'a Trees,
        family: ContainerId,
    ) -> impl Iterator<Item = &'a Arc<Tree>> {
        let branches = self.branches.iter().copied().filter(move |&branch| branch != family);
        let members = std::iter::once(family).chain(branches);
        members.filter_map(|id| trees.get(&id)).filter(move |tree| tree.family() == family)
    }

    /// The part of the table that tells of snapshots and branches; empty if there are none. Of each snapshot it has
    /// what differs from the one before.
    pub(crate) fn encode(&self) -> Vec<u8> {
        let branches: Vec<&Arc<Tree>> =
            self.live.values().filter(|tree| !tree.origins().ids().is_empty()).collect();
        let mut bytes = Vec::new();
        if branches.is_empty() && self.snapshots.list.is_empty() {
            return bytes;
        }
        put_u32(&mut bytes, self.snapshots.list.len());
        put_u32(&mut bytes, branches.len());
        bytes.extend_from_slice(&self.snapshots.base.to_le_bytes());
        for tree in branches {
            put_u32(&mut bytes, tree.container().0 as usize);
            put_origins(&mut bytes, tree);
        }
        let nothing = Trees::new();
        let mut before = &nothing;
        for Snapshot { parent, info, trees } in &self.snapshots.list {
            let changed: Vec<&Arc<Tree>> = trees
                .values()
                .filter(|tree| !before.get(&tree.container()).is_some_and(|old| old.is_same(tree)))
                .collect();
            let gone: Vec<ContainerId> =
                before.keys().copied().filter(|container| !trees.contains_key(container)).collect();
            bytes.extend_from_slice(&info.number.to_le_bytes());
            bytes.extend_from_slice(&parent.to_le_bytes());
            bytes.extend_from_slice(&info.time.to_le_bytes());
            bytes.extend_from_slice(&info.sequence.to_le_bytes());
            put_u32(&mut bytes, info.name.len());
            put_u32(&mut bytes, gone.len());
            put_u32(&mut bytes, changed.len());
            bytes.extend_from_slice(info.name.as_bytes());
            bytes.resize(bytes.len().next_multiple_of(4), 0);
            for container in gone {
                put_u32(&mut bytes, container.0 as usize);
            }
            for tree in changed {
                put_u32(&mut bytes, tree.container().0 as usize);
                put_u32(&mut bytes, usize::from(tree.levels()));
                bytes.extend_from_slice(&tree.root().place.0.to_le_bytes());
                bytes.extend_from_slice(&tree.root().checksum.to_le_bytes());
                bytes.extend_from_slice(&tree.pages().to_le_bytes());
                put_origins(&mut bytes, tree);
            }
            before = trees;
        }
        bytes
    }

    /// The versions that the table names; `live` is what its first part says, and `None` the answer to what cannot be.
    pub(crate) fn decode(mut live: Trees, pinned: u64, bytes: &[u8]) -> Option<Self> {
        let mut snapshots = Snapshots { list: Vec::new(), pinned, base: 0 };
        if bytes.is_empty() {
            return Some(Versions::new(live, snapshots));
        }
        let mut from = Cursor(bytes);
        let (count, branches) = (from.u32()?, from.u32()?);
        snapshots.base = from.u64()?;
        for _ in 0..branches {
            let container = ContainerId(from.u32()?);
            let origins = from.origins()?;
            let tree = live.get_mut(&container)?;
            let (levels, root, pages) = (tree.levels(), tree.root(), tree.pages());
            *tree = Arc::new(Tree::stored(container, origins, levels, root, pages)?);
        }
        let mut trees = Trees::new();
        for _ in 0..count {
            let (number, parent) = (from.u64()?, from.u64()?);
            let (time, sequence) = (from.u64()?, from.u64()?);
            let (name_bytes, gone, changed) = (from.u32()?, from.u32()?, from.u32()?);
            let name = from.take(name_bytes as usize)?;
            from.take(name.len().next_multiple_of(4) - name.len())?;
            let name = String::from_utf8(name.to_vec()).ok().filter(|name| is_name(name))?;
            for _ in 0..gone {
                trees.remove(&ContainerId(from.u32()?))?;
            }
            for _ in 0..changed {
                let container = ContainerId(from.u32()?);
                let levels = u8::try_from(from.u32()?).ok()?;
                let root = Located { place: Place(from.u64()?), checksum: from.u64()? };
                let pages = from.u64()?;
                let tree = Tree::stored(container, from.origins()?, levels, root, pages)
                    .filter(|_| container <= ContainerId::MAX)?;
                // What is the same is had once in memory.
                let tree = match live.get(&container) {
                    Some(live) if live.is_same(&tree) => Arc::clone(live),
                    _ => Arc::new(tree),
                };
                trees.insert(container, tree);
            }
            let last = snapshots.list.last().map(|last: &Snapshot| last.info.number);
            if last.is_some_and(|last| last >= number) || snapshots.named(&name).is_some() {
                return None;
            }
            let info = SnapshotInfo::of(name, number, time, sequence, &trees);
            let (info, trees) = (Arc::new(info), Arc::new(trees.clone()));
            snapshots.list.push(Snapshot { parent, info, trees });
        }
        Some(Versions::new(live, snapshots))
    }
}

impl SnapshotInfo {
    pub(crate) fn of(name: String, number: u64, time: u64, sequence: u64, trees: &Trees) -> Self {
        let pages = trees.values().map(|tree| tree.pages()).sum();
        SnapshotInfo { name, number, time, sequence, containers: trees.len(), pages }
    }
}

/// Whether a snapshot may have been called so. No new one may have all of these names.
fn is_name(name: &str) -> bool {
    (1..=SNAPSHOT_NAME_BYTES).contains(&name.len()) && !name.chars().any(char::is_control)
}

fn put_u32(bytes: &mut Vec<u8>, number: usize) {
    let number = u32::try_from(number).expect("fewer than 2^32");
    bytes.extend_from_slice(&number.to_le_bytes());
}

fn put_origins(bytes: &mut Vec<u8>, tree: &Tree) {
    put_u32(bytes, tree.origins().ids().len());
    for origin in tree.origins().ids() {
        put_u32(bytes, origin.0 as usize);
    }
}

struct Cursor<'a>(&'a [u8]);

impl<'a> Cursor<'a> {
    fn take(&mut self, bytes: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(bytes)?;
        self.0 = rest;
        Some(taken)
    }

    fn u32(&mut self) -> Option<u32> {
        self.take(4).map(|bytes| get_u32(bytes, 0))
    }

    fn u64(&mut self) -> Option<u64> {
        self.take(8).map(|bytes| get_u64(bytes, 0))
    }

    fn origins(&mut self) -> Option<Origins> {
        let count = self.u32()? as usize;
        if count > ORIGINS_MOST {
            return None;
        }
        let ids: Option<Vec<ContainerId>> = (0..count)
            .map(|_| self.u32().map(ContainerId).filter(|&origin| origin <= ContainerId::MAX))
            .collect();
        ids.map(Origins::from)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sim::SplitMix;

    fn tree(container: u32, origins: &[u32], place: u64) -> Arc<Tree> {
        let origins: Vec<ContainerId> = origins.iter().copied().map(ContainerId).collect();
        let root = Located { place: Place(place), checksum: !place };
        let tree = Tree::stored(ContainerId(container), origins.into(), 2, root, place * 3);
        Arc::new(tree.expect("a tree that can be"))
    }

    fn trees(all: &[&Arc<Tree>]) -> Trees {
        all.iter().map(|tree| (tree.container(), Arc::clone(tree))).collect()
    }

    fn add(snapshots: &mut Snapshots, name: &str, number: u64, trees: Trees) {
        let info = SnapshotInfo::of(name.into(), number, number * 10, number * 100, &trees);
        snapshots.add(info, trees);
    }

    fn versions() -> Versions {
        let (one, two, branch) = (tree(1, &[], 20), tree(2, &[], 21), tree(9, &[2, 1], 22));
        let mut snapshots = Snapshots { pinned: 5, ..Snapshots::default() };
        add(&mut snapshots, "a", 3, trees(&[&one, &two]));
        add(&mut snapshots, "bé", 4, trees(&[&one, &branch]));
        add(&mut snapshots, "all of them", 9, trees(&[&one, &two, &branch]));
        Versions::new(trees(&[&tree(1, &[], 30), &branch]), snapshots)
    }

    /// What the first part of the table says of the live state: origins are not among it.
    fn bare(live: &Trees) -> Trees {
        let bare = |stored: &Arc<Tree>| tree(stored.container().0, &[], stored.root().place.0);
        live.iter().map(|(&container, stored)| (container, bare(stored))).collect()
    }

    #[test]
    fn what_the_table_tells_is_read() {
        let versions = versions();
        let bytes = versions.encode();
        let read = Versions::decode(bare(&versions.live), 5, &bytes).expect("as it was written");
        assert_eq!(read.encode(), bytes);
        let infos = |versions: &Versions| -> Vec<SnapshotInfo> {
            versions.snapshots.list.iter().map(|s| SnapshotInfo::clone(&s.info)).collect()
        };
        assert_eq!(infos(&read), infos(&versions));
        assert_eq!((read.snapshots.base, read.snapshots.pinned), (9, 5));
        let branch = &read.live[&ContainerId(9)];
        assert_eq!(branch.family(), ContainerId(1));
        let last = &read.snapshots.list[2].trees[&ContainerId(9)];
        assert!(Arc::ptr_eq(branch, last), "what is the same is had once");
        assert_eq!(Versions::decode(Trees::new(), 0, &[]).map(|v| v.encode()), Some(Vec::new()));
        assert!(Versions::default().encode().is_empty());
    }

    #[test]
    fn what_cannot_be_is_refused_and_never_trips() {
        let versions = versions();
        let bytes = versions.encode();
        let live = bare(&versions.live);
        for end in 0..bytes.len() {
            let cut = Versions::decode(live.clone(), 0, &bytes[..end]);
            assert!(cut.is_none() || end == 0, "cut off at {end}");
        }
        let mut random = SplitMix(1);
        for _ in 0..20_000 {
            let mut changed = bytes.clone();
            for _ in 0..1 + random.below(3) {
                let at = random.below(bytes.len() as u64) as usize;
                changed[at] = match random.below(3) {
                    0 => 0xff,
                    1 => 0,
                    _ => random.next_u64() as u8,
                };
            }
            if let Some(read) = Versions::decode(live.clone(), 0, &changed) {
                assert!(read.snapshots.list.len() <= bytes.len());
            }
        }
    }

    #[test]
    fn who_is_asked() {
        let mut snapshots = Snapshots::default();
        for number in 1..=4 {
            add(&mut snapshots, &number.to_string(), number, trees(&[&tree(1, &[], 100 + number)]));
        }
        let asked = |versions: &Versions, asking: &Asking<'_>| -> (usize, Vec<u64>) {
            let others = versions.others(ContainerId(1), asking);
            let places = others.snapshots.iter().map(|tree| tree.root().place.0 - 100);
            (others.live.len(), places.collect())
        };
        let of =
            |snapshots: &Snapshots| Versions::new(trees(&[&tree(1, &[], 200)]), snapshots.clone());
        let live = Asking::Live(ContainerId(1));
        assert_eq!(asked(&of(&snapshots), &live), (0, vec![4]));
        // One in the middle has its neighbours.
        let gone = snapshots.remove(2).unwrap();
        assert_eq!(asked(&of(&snapshots), &Asking::Dropped(&gone)), (0, vec![1, 3]));
        // The last one's child is the live state, which then comes from the one before.
        let gone = snapshots.remove(4).unwrap();
        assert_eq!(asked(&of(&snapshots), &Asking::Dropped(&gone)), (1, vec![3]));
        assert_eq!(asked(&of(&snapshots), &live), (0, vec![3]));
        // A fork: 3 and the live state both come from 1. Without it nobody knows who is near.
        snapshots.go_back(1);
        assert_eq!(asked(&of(&snapshots), &live), (0, vec![1]));
        add(&mut snapshots, "5", 5, trees(&[&tree(1, &[], 105)]));
        let gone = snapshots.remove(1).unwrap();
        assert_eq!(asked(&of(&snapshots), &Asking::Dropped(&gone)), (1, vec![3, 5]));
        assert_eq!(asked(&of(&snapshots), &live), (0, vec![3, 5]));
        // The last that does not know still has to ask the others.
        let gone = snapshots.remove(3).unwrap();
        assert_eq!(asked(&of(&snapshots), &Asking::Dropped(&gone)), (1, vec![5]));
        assert_eq!(asked(&of(&snapshots), &live), (0, vec![5]));
    }
}
