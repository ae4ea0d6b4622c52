//! A walk over the bytes of a store that trusts no count and shares no code with recovery but the decoding of single
//! blocks: what each root leads to, and where every block of the file is. Read [`audit`] first.
//!
//! The promises it holds a store to: each root that can be read is a complete starting point; what either needs lies
//! in no segment that may be written; free + pending + live + the rest is the whole file (catalogue B9).

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet, HashSet};

use stead_model::{ContainerId, PageId, PageNo};

use super::CrashMedium;
use super::blocks::Blocks;
use crate::cold::extent_checksum;
use crate::format::{
    BLOCK, Chunk, ChunkKind, Entry, EntryId, HEADER_BLOCKS, Located, LogPosition, NodeId, Place,
    ROOTS, Root, Sealer, TABLE_CONTAINER_BYTES, TABLE_SEGMENT_BYTES, get_u32, get_u64,
};
use crate::space::Layout;
use crate::store::Store;

/// All that is on a disk.
struct Disk {
    blocks: Blocks,
    len: u64,
    /// What has been found to be whole, so that it is not looked at again from the other root.
    whole: RefCell<HashSet<(EntryId, Place, u64)>>,
}

impl Disk {
    fn block(&self, place: Place) -> Option<&[u8; BLOCK]> {
        let end = place.0.checked_add(1)?.checked_mul(BLOCK as u64)?;
        (end <= self.len).then(|| self.blocks.block(place.0))
    }
}

/// What one root leads to.
struct Walk<'a> {
    disk: &'a Disk,
    store_id: u128,
    layout: Layout,
    /// Every block that is needed, and what it is.
    needed: BTreeMap<Place, Entry>,
    /// Of these, what the stored map needs.
    in_map: BTreeSet<Place>,
    pages: BTreeMap<PageId, Located>,
    /// Blocks of each segment that the maps of all versions and their table take.
    mapped: Vec<u32>,
    /// Nodes of the live maps, and blocks of the table.
    nodes: u64,
    /// Blocks that only the maps of snapshots have.
    pinned: u64,
    position: LogPosition,
}

/// A map as the table has it, and the containers as whose its blocks may be sealed as well.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Map {
    container: ContainerId,
    levels: u32,
    root: Located,
    pages: u64,
    origins: Vec<u32>,
}

/// Holds an open store, on which nothing has been written since it was opened, against the bytes on its disk.
///
/// # Errors
/// What does not agree, in words.
pub(super) fn audit(store: &Store, medium: &CrashMedium) -> Result<(), String> {
    let (blocks, len) = medium.seen();
    let disk = Disk { blocks, len, whole: RefCell::default() };
    let store_id = store.header.store_id;
    let layout = store.layout();
    let mut roots: Vec<Root> = (0..2)
        .filter_map(|slot| Root::decode(disk.block(Place(ROOTS[slot]))?, store_id, slot))
        .collect();
    roots.sort_by_key(|root| std::cmp::Reverse(root.generation));
    // A newer root than the store has gone by could not be read when it was opened; it is the first thing to
    // be overwritten.
    let generation = store.state().generation;
    roots.retain(|root| root.generation <= generation);
    let newest = roots.first().ok_or("no root can be read")?;
    let walk = Walk::new(&disk, store_id, layout, newest)
        .map_err(|what| format!("from root {}: {what}", newest.generation))?;
    let state = store.state();
    if walk.position != state.position {
        return Err(format!(
            "the chain leads to {:?}, the store is at {:?}",
            walk.position, state.position
        ));
    }
    let segments = state.space.segments();
    let (mut free, mut pending, mut used) = (0, 0, 0);
    let mut needed_segments: BTreeSet<u32> = BTreeSet::new();
    for root in &roots {
        let other;
        let walk = if root.generation == newest.generation {
            &walk
        } else {
            other = Walk::new(&disk, store_id, layout, root)
                .map_err(|what| format!("from root {}: {what}", root.generation))?;
            &other
        };
        for (&place, entry) in &walk.needed {
            let segment = layout.segment(place).filter(|&s| (s as usize) < segments);
            let segment = segment.ok_or_else(|| format!("{entry:?} lies at {place:?}, outside"))?;
            if state.space.is_free(segment) {
                return Err(format!(
                    "{entry:?}, which root {} needs, lies in free segment {segment}",
                    root.generation
                ));
            }
            if root.generation == newest.generation {
                needed_segments.insert(segment);
            }
        }
    }
    for segment in 0..segments as u32 {
        if state.space.is_free(segment) {
            free += layout.segment_blocks;
        } else if state.space.is_pending(segment) {
            pending += layout.segment_blocks;
            if needed_segments.contains(&segment) {
                return Err(format!("segment {segment} is to become free and is needed"));
            }
        } else {
            used += layout.segment_blocks;
            if !needed_segments.contains(&segment) && !state.space.is_being_written(segment) {
                return Err(format!("segment {segment} is in use, and nothing in it is needed"));
            }
        }
    }
    if (HEADER_BLOCKS + free + pending + used) * BLOCK as u64 != disk.len {
        return Err(format!(
            "{free} free, {pending} pending, {used} used blocks and {} bytes",
            disk.len
        ));
    }
    // What lies in the map and what lies in records since, each block once.
    let counted: u64 = state.space.live_blocks();
    let mut live: u64 = walk.mapped.iter().map(|&blocks| u64::from(blocks)).sum();
    let mut layer = vec![0u32; segments];
    for (id, at) in &walk.pages {
        // What a branch has taken over is there as its origin's.
        if !matches!(walk.needed.get(&at.place), Some(Entry::Image(found)) if found.page == id.page)
        {
            return Err(format!("{id} at {at:?} is not counted"));
        }
    }
    for at in walk.pages.values().filter(|at| !walk.in_map.contains(&at.place)) {
        layer[layout.segment(at.place).expect("checked above") as usize] += 1;
        live += 1;
    }
    if state.space.layer_counts() != layer || state.space.tree_counts() != walk.padded(segments) {
        return Err(format!(
            "counted in segments: {:?} and {:?}, found: {:?} and {layer:?}",
            state.space.tree_counts(),
            state.space.layer_counts(),
            walk.mapped
        ));
    }
    if counted != live {
        return Err(format!("{counted} blocks are counted as live, {live} are"));
    }
    drop(state);
    let verified = store.verify_map().map_err(|error| error.to_string())?;
    let b = verified.blocks;
    let images = walk.pages.values().map(|at| at.place).collect::<BTreeSet<_>>().len() as u64;
    let (nodes, pinned) = (walk.nodes, walk.pinned);
    if (b.whole, b.free, b.pending, b.images, b.map, b.pinned)
        != (disk.len / BLOCK as u64, free, pending, images, nodes, pinned)
    {
        return Err(format!(
            "verification finds {b:?}, the walk {free} free, {pending} pending, {images} images, {nodes} of the map, \
             {pinned} of snapshots"
        ));
    }
    if newest.pinned != pinned {
        return Err(format!(
            "snapshots alone have {pinned} blocks, the root says {}",
            newest.pinned
        ));
    }
    Ok(())
}

/// What each block is that a root leads to.
pub(super) fn needed(store: &Store, medium: &CrashMedium) -> Result<Vec<(Place, Entry)>, String> {
    let (blocks, len) = medium.seen();
    let disk = Disk { blocks, len, whole: RefCell::default() };
    let store_id = store.header.store_id;
    let mut needed = Vec::new();
    for (slot, &place) in ROOTS.iter().enumerate() {
        let block = disk.block(Place(place)).ok_or("there is no root")?;
        let root = Root::decode(block, store_id, slot).ok_or("a root cannot be read")?;
        needed.extend(Walk::new(&disk, store_id, store.layout(), &root)?.needed);
    }
    Ok(needed)
}

impl<'a> Walk<'a> {
    fn new(disk: &'a Disk, store_id: u128, layout: Layout, root: &Root) -> Result<Self, String> {
        let mut walk = Walk {
            disk,
            store_id,
            layout,
            needed: BTreeMap::new(),
            in_map: BTreeSet::new(),
            pages: BTreeMap::new(),
            mapped: Vec::new(),
            nodes: 0,
            pinned: 0,
            position: root.position,
        };
        walk.map(root)?;
        walk.in_map = walk.needed.keys().copied().collect();
        walk.chain()?;
        Ok(walk)
    }

    fn block(&self, place: Place) -> Result<&'a [u8; BLOCK], String> {
        self.disk.block(place).ok_or_else(|| format!("{place:?} lies beyond the file"))
    }

    /// The block, if it is sealed as `entry`, or as the same of one of `origins`.
    fn sealed(
        &self,
        entry: Entry,
        origins: &[u32],
        at: Located,
    ) -> Result<&'a [u8; BLOCK], String> {
        let block = self.block(at.place)?;
        let key = (entry.id(), at.place, at.checksum);
        if self.disk.whole.borrow().contains(&key) {
            return Ok(block);
        }
        let as_origin = |&origin: &u32| entry.of_container(ContainerId(origin));
        let mut entries = std::iter::once(entry).chain(origins.iter().map(as_origin));
        if !entries.any(|entry| Sealer::new(self.store_id).block(entry, block) == at.checksum) {
            return Err(format!("{entry:?} at {:?} is not as it was written", at.place));
        }
        self.disk.whole.borrow_mut().insert(key);
        Ok(block)
    }

    fn need(&mut self, place: Place, entry: Entry) -> Result<(), String> {
        match self.needed.insert(place, entry) {
            Some(other) => Err(format!("{place:?} is both {other:?} and {entry:?}")),
            None => Ok(()),
        }
    }

    /// Needs a block of some version's map; whether no version before had it.
    fn map_block(&mut self, place: Place, entry: Entry, live: bool) -> Result<bool, String> {
        if let Some(&other) = self.needed.get(&place) {
            // Branches have blocks of their origins, under the names of their own.
            let same = match (other, entry) {
                (Entry::Image(one), Entry::Image(other)) => one.page == other.page,
                (Entry::Node(one), Entry::Node(other)) => {
                    (one.level, one.index) == (other.level, other.index)
                }
                _ => false,
            };
            return match same {
                true => Ok(false),
                false => Err(format!("{place:?} is both {other:?} and {entry:?}")),
            };
        }
        let segment = self.layout.segment(place).ok_or("a part of the map lies in the header")?;
        let segment = segment as usize;
        if self.mapped.len() <= segment {
            self.mapped.resize(segment + 1, 0);
        }
        self.mapped[segment] += 1;
        self.pinned += u64::from(!live);
        self.needed.insert(place, entry);
        Ok(true)
    }

    fn padded(&self, segments: usize) -> Vec<u32> {
        let mut mapped = self.mapped.clone();
        mapped.resize(segments, 0);
        mapped
    }

    fn map(&mut self, root: &Root) -> Result<(), String> {
        let mut table = Vec::new();
        let mut index = 0;
        for extent in &root.table {
            let mut checksums = Vec::new();
            for i in 0..u64::from(extent.blocks) {
                let place = extent.place.plus(i);
                let block = self.block(place)?;
                checksums.push(Sealer::new(self.store_id).block(Entry::Table(index), block));
                if !self.map_block(place, Entry::Table(index), true)? {
                    return Err(format!("{place:?} is in the table twice"));
                }
                self.nodes += 1;
                table.extend_from_slice(block);
                index += 1;
            }
            if extent_checksum(checksums.into_iter()) != extent.checksum {
                return Err(format!("{extent:?} of the table is not as it was written"));
            }
        }
        let (containers, segments) = (root.containers as usize, root.segments as usize);
        let (trees, rest) = table.split_at(containers * TABLE_CONTAINER_BYTES);
        let (counts, versions) = rest.split_at(segments * TABLE_SEGMENT_BYTES);
        let mut live: Vec<Map> = trees
            .chunks(TABLE_CONTAINER_BYTES)
            .map(|row| Map {
                container: ContainerId(get_u32(row, 0)),
                levels: get_u32(row, 4),
                root: Located { place: Place(get_u64(row, 8)), checksum: get_u64(row, 16) },
                pages: get_u64(row, 24),
                origins: Vec::new(),
            })
            .collect();
        let snapshots = match &versions[..root.versions as usize] {
            [] => Vec::new(),
            bytes => snapshots(bytes, &mut live),
        };
        for map in &live {
            let found = self.node(map, map.top(), map.root, true)?;
            if found != map.pages {
                let (container, says) = (map.container, map.pages);
                return Err(format!(
                    "container {container} has {found} pages, the table says {says}"
                ));
            }
        }
        for map in snapshots.iter().flatten() {
            self.node(map, map.top(), map.root, false)?;
        }
        // What the table itself says of each segment must be so: the next opening believes it.
        let says: Vec<u32> =
            counts.chunks(TABLE_SEGMENT_BYTES).take(segments).map(|row| get_u32(row, 0)).collect();
        for (segment, (says, found)) in says.iter().zip(self.padded(segments)).enumerate() {
            if says & !(1 << 31) != found {
                return Err(format!(
                    "the table says {says:#x} of segment {segment}, which has {found} blocks"
                ));
            }
        }
        if self.mapped.len() > segments {
            return Err("the map lies in segments that its table does not have".into());
        }
        Ok(())
    }

    /// Goes through a node and what lies below; how many pages that is. Of snapshots only what was not met before.
    fn node(&mut self, map: &Map, id: NodeId, at: Located, live: bool) -> Result<u64, String> {
        let block = self.sealed(Entry::Node(id), &map.origins, at)?;
        let new = self.map_block(at.place, Entry::Node(id), live)?;
        if !new && !live {
            return Ok(0);
        }
        self.nodes += u64::from(new && live);
        let mut pages = 0;
        for slot in 0..BLOCK / 16 {
            let below = Located {
                place: Place(get_u64(block, slot * 16)),
                checksum: get_u64(block, slot * 16 + 8),
            };
            if below.place.is_none() {
                continue;
            }
            if id.level > 0 {
                let index = id.index << 8 | slot as u32;
                let id = NodeId { level: id.level - 1, index, ..id };
                pages += self.node(map, id, below, live)?;
                continue;
            }
            let page = PageNo(u64::from(id.index) << 8 | slot as u64);
            let page = PageId { container: id.container, page };
            self.sealed(Entry::Image(page), &map.origins, below)?;
            self.map_block(below.place, Entry::Image(page), live)?;
            if live {
                self.pages.insert(page, below);
            }
            pages += 1;
        }
        Ok(pages)
    }

    /// Follows the records up to the first that was not finished.
    fn chain(&mut self) -> Result<(), String> {
        let mut at = self.position;
        let mut open: Vec<(Place, Chunk)> = Vec::new();
        let mut records = Vec::new();
        // The last stabilisation of which a later chunk tells that it was flushed.
        let mut flushed = 0;
        while let Some((chunk, checksum)) = self.next(&at, open.len()) {
            let place = at.place;
            (at.place, at.next_segment) =
                self.layout.behind(place, chunk.blocks(), chunk.next_segment);
            at.serial += 1;
            at.chain = checksum;
            at.time = chunk.time;
            let before_its_group = chunk.sequence - 1 - u64::from(chunk.group);
            let is_commit = chunk.kind == ChunkKind::Commit;
            flushed = flushed.max(if is_commit { chunk.sequence } else { before_its_group });
            let ends = chunk.last || is_commit;
            open.push((place, chunk));
            if ends {
                at.sequence += 1;
                records.push((std::mem::take(&mut open), at));
            }
        }
        for (record, behind) in records {
            if behind.sequence > flushed && !self.is_whole(&record) {
                break;
            }
            for (place, chunk) in record {
                for (entry, located) in chunk.located(place) {
                    self.enter(entry, located)?;
                }
            }
            self.position = behind;
        }
        Ok(())
    }

    /// The next chunk, by its header or by the twin of it.
    fn next(&self, at: &LogPosition, ordinal: usize) -> Option<(Chunk, u64)> {
        let header = Chunk::decode(self.disk.block(at.place)?, self.store_id);
        let fitting = header.filter(|(chunk, _)| self.fits(at, ordinal, chunk));
        fitting.or_else(|| {
            (1..self.layout.room(at.place)).find_map(|behind| {
                let block = self.disk.block(at.place.plus(behind))?;
                let (chunk, checksum) = Chunk::decode_twin(block, self.store_id)?;
                let its = chunk.payload_blocks() as u64 + 1 == behind;
                (its && self.fits(at, ordinal, &chunk)).then_some((chunk, checksum))
            })
        })
    }

    fn fits(&self, at: &LogPosition, ordinal: usize, chunk: &Chunk) -> bool {
        chunk.kind != ChunkKind::Cold
            && chunk.epoch == at.epoch
            && chunk.serial == at.serial
            && chunk.previous == at.chain
            && chunk.sequence == at.sequence + 1
            && chunk.ordinal as usize == ordinal
            // Else the file was made longer for it, and neither has been flushed.
            && self.disk.block(chunk.next_segment).is_some()
    }

    fn is_whole(&self, record: &[(Place, Chunk)]) -> bool {
        record.iter().all(|(place, chunk)| {
            let mut images = chunk.located(*place).filter(|(entry, _)| entry.has_payload());
            images.all(|(entry, at)| self.sealed(entry, &[], at).is_ok())
        })
    }

    fn enter(&mut self, entry: Entry, at: Located) -> Result<(), String> {
        match entry {
            Entry::Image(id) => {
                self.sealed(entry, &[], at)?;
                self.forget(id);
                self.need(at.place, entry)?;
                self.pages.insert(id, at);
            }
            Entry::Zero(id) => self.forget(id),
            Entry::Drop(container) => {
                let gone: Vec<PageId> =
                    self.pages.keys().filter(|id| id.container == container).copied().collect();
                gone.into_iter().for_each(|id| self.forget(id));
            }
            Entry::Node(_) | Entry::Table(_) => {
                return Err(format!("a record at {:?} has {entry:?}", at.place));
            }
        }
        Ok(())
    }

    /// A page's image is no longer needed, unless the stored map still has it.
    fn forget(&mut self, id: PageId) {
        if let Some(at) = self.pages.remove(&id)
            && !self.in_map.contains(&at.place)
        {
            self.needed.remove(&at.place);
        }
    }
}

impl Map {
    fn top(&self) -> NodeId {
        NodeId { container: self.container, level: self.levels as u8 - 1, index: 0 }
    }
}

/// The third part of the table: the maps of each snapshot; and the origins of live branches, which are filled in.
fn snapshots(bytes: &[u8], live: &mut [Map]) -> Vec<Vec<Map>> {
    let mut at = 0;
    let mut take_u32 = || {
        at += 4;
        get_u32(bytes, at - 4)
    };
    let (count, branches) = (take_u32(), take_u32());
    let [_, _] = [take_u32(), take_u32()];
    for _ in 0..branches {
        let (container, origins) = (ContainerId(take_u32()), take_u32());
        let origins: Vec<u32> = (0..origins).map(|_| take_u32()).collect();
        for map in live.iter_mut().filter(|map| map.container == container) {
            map.origins.clone_from(&origins);
        }
    }
    let mut maps: BTreeMap<ContainerId, Map> = BTreeMap::new();
    let mut all = Vec::new();
    for _ in 0..count {
        // Number, parent, time and stabilisation say nothing of blocks.
        for _ in 0..8 {
            take_u32();
        }
        let (name, gone, changed) = (take_u32(), take_u32(), take_u32());
        for _ in 0..name.div_ceil(4) {
            take_u32();
        }
        for _ in 0..gone {
            maps.remove(&ContainerId(take_u32()));
        }
        for _ in 0..changed {
            let (container, levels) = (ContainerId(take_u32()), take_u32());
            let mut take_u64 = || u64::from(take_u32()) | u64::from(take_u32()) << 32;
            let root = Located { place: Place(take_u64()), checksum: take_u64() };
            let pages = take_u64();
            let origins = (0..take_u32()).map(|_| take_u32()).collect();
            maps.insert(container, Map { container, levels, root, pages, origins });
        }
        all.push(maps.values().cloned().collect());
    }
    all
}
