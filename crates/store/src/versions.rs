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
    /// What it is called: 1 to [`SNAPSHOT_NAME_BYTES`] bytes without control characters.
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

/// A state that stands still.
#[derive(Clone, Debug)]
pub(crate) struct Snapshot {
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
}

impl Snapshots {
    pub(crate) fn named(&self, name: &str) -> Option<&Snapshot> {
        self.list.iter().find(|snapshot| snapshot.info.name == name)
    }

    pub(crate) fn numbered(&self, number: u64) -> Option<&Snapshot> {
        self.list.iter().find(|snapshot| snapshot.info.number == number)
    }
}

/// All versions, as they are or as a checkpoint is about to make them.
#[derive(Clone, Debug, Default)]
pub(crate) struct Versions {
    pub(crate) live: Trees,
    pub(crate) snapshots: Snapshots,
    /// Containers that are branches in some version.
    branches: BTreeSet<ContainerId>,
}

impl Versions {
    pub(crate) fn new(live: Trees, snapshots: Snapshots) -> Self {
        let mut versions = Versions { live, snapshots, branches: BTreeSet::new() };
        let branches = versions.all().flat_map(BTreeMap::values);
        let branches = branches.filter(|tree| !tree.origins().ids().is_empty());
        versions.branches = branches.map(|tree| tree.container()).collect();
        versions
    }

    /// Makes a container out of the tree of another one.
    pub(crate) fn add_branch(&mut self, tree: Tree) {
        self.branches.insert(tree.container());
        self.live.insert(tree.container(), Arc::new(tree));
    }

    /// The trees of a family but for the live one of `except`: each of them once.
    pub(crate) fn others(&self, family: ContainerId, except: Option<ContainerId>) -> Others {
        let mut others = Others::default();
        for tree in self.family_of(&self.live, family) {
            if Some(tree.container()) != except {
                others.live.push(Arc::clone(tree));
            }
        }
        for snapshot in &self.snapshots.list {
            for tree in self.family_of(&snapshot.trees, family) {
                // Neighbours in time are often the same.
                if !others.snapshots.iter().rev().any(|known| known.is_same(tree)) {
                    others.snapshots.push(Arc::clone(tree));
                }
            }
        }
        others
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
        for tree in branches {
            put_u32(&mut bytes, tree.container().0 as usize);
            put_origins(&mut bytes, tree);
        }
        let nothing = Trees::new();
        let mut before = &nothing;
        for Snapshot { info, trees } in &self.snapshots.list {
            let changed: Vec<&Arc<Tree>> = trees
                .values()
                .filter(|tree| !before.get(&tree.container()).is_some_and(|old| old.is_same(tree)))
                .collect();
            let gone: Vec<ContainerId> =
                before.keys().copied().filter(|container| !trees.contains_key(container)).collect();
            bytes.extend_from_slice(&info.number.to_le_bytes());
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
        let mut snapshots = Snapshots { list: Vec::new(), pinned };
        if bytes.is_empty() {
            return Some(Versions::new(live, snapshots));
        }
        let mut from = Cursor(bytes);
        let (count, branches) = (from.u32()?, from.u32()?);
        for _ in 0..branches {
            let container = ContainerId(from.u32()?);
            let origins = from.origins()?;
            let tree = live.get_mut(&container)?;
            let (levels, root, pages) = (tree.levels(), tree.root(), tree.pages());
            *tree = Arc::new(Tree::stored(container, origins, levels, root, pages)?);
        }
        let mut trees = Trees::new();
        for _ in 0..count {
            let (number, time, sequence) = (from.u64()?, from.u64()?, from.u64()?);
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
            snapshots.list.push(Snapshot::new(name, number, time, sequence, trees.clone()));
        }
        Some(Versions::new(live, snapshots))
    }
}

impl Snapshot {
    pub(crate) fn new(name: String, number: u64, time: u64, sequence: u64, trees: Trees) -> Self {
        let containers = trees.len();
        let pages = trees.values().map(|tree| tree.pages()).sum();
        let info = SnapshotInfo { name, number, time, sequence, containers, pages };
        Snapshot { info: Arc::new(info), trees: Arc::new(trees) }
    }
}

/// Whether a snapshot may be called so.
pub(crate) fn is_name(name: &str) -> bool {
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
