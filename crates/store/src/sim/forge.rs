//! Stores that lie: images with wrong fields and right checksums, so that what stands behind the checksums meets them
//! too. Whatever is in them, opening, reading, checking and going on must end, with an answer or an error.
//! Backups likewise. Read [`Forger`] first.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use stead_model::{ContainerId, PAGE_SIZE, PageId, PageNo};

use super::damage::Subject;
use super::groups::commit_as_group;
use super::{CrashMedium, SplitMix};
use crate::backup::{self, Restore};
use crate::batch::Batch;
use crate::cold::extent_checksum;
use crate::format::{
    BLOCK, Chunk, ChunkKind, Entry, Located, NodeId, Place, ROOTS, Root, SUPERBLOCKS, Sealer,
    Superblock, TABLE_CONTAINER_BYTES, get_u32, get_u64, put,
};
use crate::recover::{Hold, open_giving_up};
use crate::store::Store;
use crate::view::View;

/// Pages of a forged store that are read at the most: a forger may name as many as it likes.
const PAGES_READ: usize = 4000;

/// A block whose checksum stands in another one, 16 bytes in which place comes first and checksum second.
struct Link {
    entry: Entry,
    parent: Place,
    /// Where in the parent.
    at: usize,
}

/// A chunk of the record chain.
#[derive(Clone, Copy)]
struct InChain {
    serial: u64,
    /// Where its header lies, and that header's twin.
    header: Place,
    twin: Place,
    /// The header's checksum, before anything is forged, and the one before it that it names.
    checksum: u64,
    previous: u64,
}

/// One store's image, and where its checksums stand.
pub struct Forger {
    bytes: Vec<u8>,
    store_id: u128,
    /// Children come before their parents.
    links: Vec<Link>,
    /// The record chain, in its order.
    chain: Vec<InChain>,
    /// The places of headers beside it.
    cold: Vec<Place>,
}

impl std::fmt::Debug for Forger {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Forger").field("links", &self.links.len()).finish_non_exhaustive()
    }
}

/// What became of a forged image, or backup.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Outcome {
    /// It does not open, or is not restored.
    Refused,
    /// It opens, or is.
    Opened,
    /// It opens at an earlier state, as for a salvage.
    Salvaged,
}

impl Forger {
    /// How many kinds of stores there are to be forged.
    pub const KINDS: u64 = 3;

    /// The image of the subject of this seed: by itself; with settings, a branch and more snapshots; or with groups of
    /// stabilisations.
    ///
    /// # Errors
    /// If it cannot be made.
    pub fn new(seed: u64) -> Result<Self, String> {
        let bytes = Subject::new(seed)?.image().to_vec();
        let bytes = match seed % Forger::KINDS {
            0 => bytes,
            1 => with_settings(&bytes)?,
            _ => with_groups(&bytes)?,
        };
        let block = |place: u64| &bytes[place as usize * BLOCK..][..BLOCK];
        let store_id = Superblock::decode(block(SUPERBLOCKS[0]))
            .map_err(|error| format!("{error:?}"))?
            .store_id;
        let mut forger = Forger {
            store_id,
            links: Vec::new(),
            chain: Vec::new(),
            cold: Vec::new(),
            bytes: Vec::new(),
        };
        for place in 16..(bytes.len() / BLOCK) as u64 {
            match Chunk::decode(block(place), store_id) {
                Some((chunk, _)) if chunk.kind == ChunkKind::Cold => forger.cold.push(Place(place)),
                Some((chunk, checksum)) => forger.chain.push(InChain {
                    serial: chunk.serial,
                    header: Place(place),
                    twin: Place(place + chunk.blocks() - 1),
                    checksum,
                    previous: chunk.previous,
                }),
                None => {}
            }
        }
        forger.chain.sort_unstable_by_key(|chunk| (chunk.serial, chunk.header));
        forger.bytes.clone_from(&bytes);
        let mut tables = Vec::new();
        for (slot, place) in ROOTS.into_iter().enumerate() {
            let root = Root::decode(block(place), store_id, slot).ok_or("no root")?;
            let blocks = root.table.iter().flat_map(|extent| {
                (0..u64::from(extent.blocks)).map(|block| extent.place.plus(block))
            });
            tables.extend(blocks);
            let Some(extent) = root.table.first() else { continue };
            for row in 0..root.containers as usize {
                let at = row * TABLE_CONTAINER_BYTES;
                let (parent, bytes) = (extent.place, block(extent.place.0));
                let container = ContainerId(get_u32(bytes, at));
                let level = get_u32(bytes, at + 4) as u8 - 1;
                let child = Place(get_u64(bytes, at + 8));
                forger.map(NodeId { container, level, index: 0 }, child, parent, at + 8);
            }
        }
        // What snapshots have stands somewhere behind that.
        let (store, _) = Store::open_on(Arc::new(CrashMedium::with_bytes(0, &bytes)))
            .map_err(|error| error.to_string())?;
        let snapshots = store.state().snapshots.list.clone();
        for tree in snapshots.iter().flat_map(|snapshot| snapshot.trees.values()) {
            let level = tree.levels() - 1;
            let node = NodeId { container: tree.container(), level, index: 0 };
            let Located { place, checksum } = tree.root();
            let root = [place.0.to_le_bytes(), checksum.to_le_bytes()].concat();
            for &parent in &tables {
                let found = block(parent.0).windows(root.len()).position(|bytes| bytes == root);
                if let Some(at) = found {
                    forger.map(node, place, parent, at);
                }
            }
        }
        Ok(forger)
    }

    /// Takes note of a map whose root is named there. What several share belongs to the first of them.
    fn map(&mut self, root: NodeId, place: Place, parent: Place, at: usize) {
        if self.links.iter().any(|link| link.parent == parent && link.at == at) {
            return;
        }
        if !self.links.iter().any(|link| link.parent == place) {
            self.node(root, place);
        }
        self.links.push(Link { entry: Entry::Node(root), parent, at });
    }

    fn block(&self, place: Place) -> &[u8] {
        &self.bytes[place.0 as usize * BLOCK..][..BLOCK]
    }

    fn node(&mut self, id: NodeId, place: Place) {
        for slot in 0..BLOCK / 16 {
            let child = Place(get_u64(self.block(place), slot * 16));
            if child.is_none() {
                continue;
            }
            let entry = if id.level == 0 {
                let page = PageNo(u64::from(id.index) << 8 | slot as u64);
                Entry::Image(PageId { container: id.container, page })
            } else {
                let index = id.index << 8 | slot as u32;
                let below = NodeId { level: id.level - 1, index, ..id };
                if !self.links.iter().any(|link| link.parent == child) {
                    self.node(below, child);
                }
                Entry::Node(below)
            };
            self.links.push(Link { entry, parent: place, at: slot * 16 });
        }
    }

    /// A forged image, the same for the same seed.
    #[must_use]
    pub fn forge(&self, seed: u64) -> Vec<u8> {
        let mut random = SplitMix(seed);
        let mut bytes = self.bytes.clone();
        for _ in 0..1 + random.below(4) {
            self.change(&mut bytes, &mut random);
        }
        self.seal(&mut bytes);
        // Now and then headers are found by their twins only.
        if random.below(3) == 0 {
            for chunk in self.chain.iter().filter(|_| random.below(2) == 0) {
                bytes[chunk.header.0 as usize * BLOCK] ^= 1;
            }
        }
        bytes
    }

    fn change(&self, bytes: &mut [u8], random: &mut SplitMix) {
        let any = |places: &[Place], random: &mut SplitMix| {
            places[random.below(places.len() as u64) as usize]
        };
        let tables = || -> Vec<Place> {
            let roots = (0..2).filter_map(|slot| {
                Root::decode(self.block(Place(ROOTS[slot])), self.store_id, slot)
            });
            roots.flat_map(|root| root.table).map(|extent| extent.place).collect()
        };
        let place = match random.below(10) {
            0 => Place(SUPERBLOCKS[0]),
            1..3 => Place(ROOTS[random.below(2) as usize]),
            3..5 => any(&tables(), random),
            5..7 => self.links[random.below(self.links.len() as u64) as usize].parent,
            7 | 8 => self.chain[random.below(self.chain.len() as u64) as usize].header,
            _ => any(&self.cold, random),
        };
        let blocks = (bytes.len() / BLOCK) as u64;
        let number = number(random, blocks);
        let block = &mut bytes[place.0 as usize * BLOCK..][..BLOCK];
        // Most fields stand in the first bytes.
        let most = if random.below(3) > 0 { 256 } else { BLOCK as u64 };
        let at = random.below(most) as usize;
        match random.below(4) {
            0 => block[at] ^= 1 << random.below(8),
            1 => put(block, at / 4 * 4, &(number as u32).to_le_bytes()),
            _ => put(block, at / 8 * 8, &number.to_le_bytes()),
        }
    }

    /// Makes all checksums right again, those of blocks that the image names anew included.
    fn seal(&self, bytes: &mut [u8]) {
        let blocks = (bytes.len() / BLOCK) as u64;
        let range = |place: Place| place.0 as usize * BLOCK..(place.0 as usize + 1) * BLOCK;
        let sealer = Sealer::new(self.store_id);
        for link in &self.links {
            let parent = range(link.parent).start + link.at;
            // What is named there now, as that for which it is named.
            let child = Place(get_u64(bytes, parent));
            if child.0 < blocks && !child.is_none() {
                let checksum = sealer.block(link.entry, &bytes[range(child)]);
                put(bytes, parent + 8, &checksum.to_le_bytes());
            }
        }
        // What each checksum of a header has become.
        let mut sealed: BTreeMap<u64, u64> = BTreeMap::new();
        for chunk in &self.chain {
            let block = &mut bytes[range(chunk.header)];
            if let Some(now) = sealed.get(&chunk.previous)
                && get_u64(block, 64) == chunk.previous
            {
                put(block, 64, &now.to_le_bytes());
            }
            sealed.insert(chunk.checksum, Chunk::seal(block));
            let header = block.to_vec();
            Chunk::encode_twin(&header, &mut bytes[range(chunk.twin)]);
        }
        for &place in &self.cold {
            Chunk::seal(&mut bytes[range(place)]);
        }
        for (slot, root) in ROOTS.into_iter().enumerate() {
            let start = range(Place(root)).start;
            if let Some(now) = sealed.get(&get_u64(bytes, start + 80)) {
                put(bytes, start + 80, &now.to_le_bytes());
            }
            let extents = get_u32(bytes, start + 12).min(8) as usize;
            let mut index = 0;
            let fixed = if get_u32(bytes, start + 8) < 5 { 128 } else { 224 };
            for extent in (0..extents).map(|i| start + fixed + i * 24) {
                let (first, count) = (get_u64(bytes, extent), get_u32(bytes, extent + 8).min(64));
                let places = (0..u64::from(count)).map(|i| Place(first.saturating_add(i)));
                let places: Vec<Place> = places.filter(|place| place.0 < blocks).collect();
                let sums = places.iter().map(|&place| {
                    index += 1;
                    sealer.block(Entry::Table(index - 1), &bytes[range(place)])
                });
                let checksum = extent_checksum(sums.collect::<Vec<_>>().into_iter());
                put(bytes, extent + 16, &checksum.to_le_bytes());
            }
            Root::put_seal(&mut bytes[range(Place(root))], slot);
        }
        // Segments may be large, and then so is what is written ahead in them: that is not what is looked for.
        let segment_blocks = get_u32(bytes, range(Place(SUPERBLOCKS[0])).start + 36).min(256);
        put(bytes, range(Place(SUPERBLOCKS[0])).start + 36, &segment_blocks.to_le_bytes());
        for place in SUPERBLOCKS {
            // Both say the same.
            let first = range(Place(SUPERBLOCKS[0]));
            bytes.copy_within(first, range(Place(place)).start);
            Superblock::seal(&mut bytes[range(Place(place))]);
        }
    }
}

/// A forged backup, the same for the same seed: fields changed, pieces left out, repeated or moved, and the checksums
/// right again.
///
/// # Panics
/// If `stream` is no backup.
#[must_use]
pub fn forge_backup(stream: &[u8], seed: u64) -> Vec<u8> {
    let mut random = SplitMix(seed);
    let mut bytes = stream.to_vec();
    for _ in 0..1 + random.below(3) {
        let frames = backup::frames(&bytes);
        let Some(most) = (frames.len() as u64).checked_sub(1) else { break };
        // What is first, in any stream, says most.
        let which = if random.below(4) == 0 { 0 } else { random.below(most + 1) as usize };
        let frame = frames[which].clone();
        match random.below(8) {
            0 => drop(bytes.drain(frame)),
            1 => {
                let piece = bytes[frame].to_vec();
                let to = frames[random.below(most + 1) as usize].start;
                drop(bytes.splice(to..to, piece));
            }
            _ => {
                let frame = &mut bytes[frame];
                let number = number(&mut random, 1 << 10);
                // Kind, length, and the fields before names and images.
                let at = random.below(frame.len().min(160) as u64) as usize;
                match random.below(4) {
                    0 => frame[at] ^= 1 << random.below(8),
                    1 => put_what_fits(frame, at / 4 * 4, &(number as u32).to_le_bytes()),
                    _ => put_what_fits(frame, at / 8 * 8, &number.to_le_bytes()),
                }
                // Segments may be large, and then so is the file: that is not what is looked for.
                if which == 0 && frame.len() > 32 {
                    let segment_blocks = get_u32(frame, 28).min(1024);
                    put(frame, 28, &segment_blocks.to_le_bytes());
                }
            }
        }
    }
    backup::seal(&mut bytes, random.below(4) > 0);
    bytes
}

/// Restores a backup to `to`, where nothing is: what comes of it is a store that is sound, or nothing.
///
/// # Panics
/// If it is something else.
#[must_use]
pub fn try_restore(to: &Path, stream: &[u8]) -> Outcome {
    let mut restore = Restore::begin(to).expect("there is nothing yet");
    let restored = restore.apply(&mut &stream[..], &mut |_| {});
    let Ok(restored) = restored.and_then(|()| restore.finish(&mut |_| {})) else {
        assert!(!to.exists(), "nothing is left of a restoration that was refused");
        return Outcome::Refused;
    };
    let (store, _) = Store::open(to).expect("what has been restored opens");
    let verified = store.verify(&mut |_| {}).expect("it is read");
    assert!(verified.is_clean(), "{verified:?}");
    assert!(verified.blocks.images <= restored.images, "{verified:?} of {restored:?}");
    drop(store);
    std::fs::remove_dir_all(to).expect("it is ours");
    Outcome::Opened
}

/// A piece ends where it likes.
fn put_what_fits(piece: &mut [u8], at: usize, bytes: &[u8]) {
    let fits = bytes.len().min(piece.len() - at);
    put(piece, at, &bytes[..fits]);
}

/// A number that something may stumble over; `usual` is the order of those that stand there.
fn number(random: &mut SplitMix, usual: u64) -> u64 {
    match random.below(12) {
        0 => 0,
        1 => u64::MAX,
        2 => u64::MAX / 2,
        3 => 1 << random.below(64),
        4 => u64::from(u32::MAX),
        5 => random.below(16),
        6 => usual,
        7 => usual - 1,
        8 => random.next_u64(),
        _ => random.below(usual),
    }
}

/// The store of an image, gone on with.
fn go_on(
    bytes: &[u8],
    with: impl FnOnce(&Store) -> Result<(), Box<dyn std::error::Error>>,
) -> Result<Vec<u8>, String> {
    let medium = CrashMedium::with_bytes(0, bytes);
    let (store, _) = Store::open_on(Arc::new(medium.clone())).map_err(|error| error.to_string())?;
    with(&store).map_err(|error| error.to_string())?;
    drop(store);
    Ok(medium.bytes())
}

/// Some pages of some containers.
fn push_some(batch: &mut Batch, random: &mut SplitMix) {
    for _ in 0..1 + random.below(6) {
        let container = ContainerId(random.below(4) as u32);
        let far = if random.below(4) == 0 { 3000 } else { 0 };
        let id = PageId { container, page: PageNo(far + random.below(9)) };
        match random.below(5) {
            0 => batch.zero(id),
            _ => batch.push(id, |page| page.fill(random.below(256) as u8)),
        }
    }
}

/// With quotas, a branch, and snapshots before and behind them.
fn with_settings(bytes: &[u8]) -> Result<Vec<u8>, String> {
    go_on(bytes, |store| {
        let (mut random, mut batch) = (SplitMix(1), store.batch());
        let origin = store.snapshots().first().ok_or("it has a snapshot")?.name.clone();
        store.set_quota(Some(1 << 40))?;
        store.set_space_percent(Some(300))?;
        store.set_container_quota(ContainerId(1), Some(1 << 30))?;
        store.branch(&origin, ContainerId(1), ContainerId(7))?;
        for name in ["second", "third"] {
            push_some(&mut batch, &mut random);
            store.commit(&mut batch)?;
            store.take_snapshot(name)?;
        }
        push_some(&mut batch, &mut random);
        store.commit(&mut batch)?;
        Ok(())
    })
}

/// With stabilisations behind the roots that shared flushes.
fn with_groups(bytes: &[u8]) -> Result<Vec<u8>, String> {
    go_on(bytes, |store| {
        let mut random = SplitMix(2);
        for _ in 0..3 {
            let mut batches = [store.batch(), store.batch(), store.batch()];
            for (association, batch) in (1..).zip(&mut batches) {
                batch.set_association(association);
                push_some(batch, &mut random);
            }
            let [a, b, c] = &mut batches;
            for committed in commit_as_group(store, &mut [a, b, c]) {
                committed?;
            }
        }
        Ok(())
    })
}

/// One thing that is done with a store, by chance. What is wrong is told or not; what counts is that it ends.
fn step(store: &Store, batch: &mut Batch, random: &mut SplitMix) {
    let some_snapshot = |random: &mut SplitMix| {
        let snapshots = store.snapshots();
        let some = snapshots.get(random.below(4) as usize);
        some.map_or_else(|| format!("new {}", random.below(9)), |known| known.name.clone())
    };
    match random.below(14) {
        0..4 => {
            push_some(batch, random);
            let _ = store.commit(batch);
        }
        4 => {
            batch.drop_container(ContainerId(random.below(9) as u32));
            let _ = store.commit(batch);
        }
        5 => drop(store.checkpoint()),
        6 | 7 => drop((0..10).find(|_| !store.maintain().is_ok_and(|done| done.more))),
        8 => drop(store.take_snapshot(&some_snapshot(random))),
        9 => drop(store.drop_snapshot(&some_snapshot(random))),
        10 => drop(store.go_back(&some_snapshot(random))),
        11 => {
            let (origin, new) = (random.below(9) as u32, random.below(12) as u32);
            let from = some_snapshot(random);
            let _ = store.branch(&from, ContainerId(origin), ContainerId(new));
        }
        12 => {
            let container = ContainerId(random.below(9) as u32);
            let quota = (random.below(3) > 0).then(|| random.next_u64() >> random.below(64));
            drop(store.set_container_quota(container, quota));
            drop(store.set_quota(quota));
            drop(store.set_space_percent(quota.map(|quota| quota as u32)));
        }
        _ => drop(store.verify(&mut |_| {})),
    }
}

/// Opens an image, reads it, and does with it what this seed says, as nobody does who looks first. Only ends, or panics.
#[must_use]
pub fn try_everything(bytes: &[u8], seed: u64) -> Outcome {
    let medium = CrashMedium::with_bytes(0, bytes);
    let (store, outcome) = match Store::open_on(Arc::new(medium.clone())) {
        Ok((store, _)) => (store, Outcome::Opened),
        // As a salvage goes on with it.
        Err(_) => {
            let path = Path::new("log");
            match open_giving_up(Arc::new(medium.clone()), path, Hold::Alone) {
                Ok((store, _)) if store.move_chain().is_ok() => (store, Outcome::Salvaged),
                _ => return Outcome::Refused,
            }
        }
    };
    read(&store.view());
    for snapshot in store.snapshots() {
        if let Ok(view) = store.view_snapshot(&snapshot.name) {
            read(&view);
        }
    }
    // What is wrong is told or not; what counts is that it ends.
    let _ = store.verify(&mut |_| {});
    let (mut batch, mut random) = (store.batch(), SplitMix(!seed));
    for _ in 0..4 + random.below(10) {
        step(&store, &mut batch, &mut random);
    }
    for snapshot in store.snapshots() {
        let _ = store.drop_snapshot(&snapshot.name);
    }
    drop(store);
    let _ = Store::open_on(Arc::new(medium));
    outcome
}

fn read(view: &View<'_>) {
    let mut page = [0; PAGE_SIZE];
    for container in view.containers() {
        let Ok(ranges) = view.stored_pages(container) else { continue };
        for page_no in ranges.iter().flat_map(|range| range.pages()).take(PAGES_READ) {
            let _ = view.read_page(PageId { container, page: page_no }, &mut page);
        }
    }
}

/// Hands a random block, sealed, to each decoder.
pub fn decode(seed: u64) {
    let mut random = SplitMix(seed);
    let mut block = [0; BLOCK];
    let dense = random.below(2) == 0;
    for at in (0..BLOCK).step_by(8) {
        if dense || random.below(20) == 0 {
            put(&mut block, at, &random.next_u64().to_le_bytes());
        }
    }
    put(&mut block, 0, b"STEADLOG");
    put(&mut block, 8, &(1 + random.below(2) as u32).to_le_bytes());
    Superblock::seal(&mut block);
    let _ = Superblock::decode(&block);
    put(&mut block, 0, b"STEADRUT");
    put(&mut block, 8, &(random.below(8) as u32).to_le_bytes());
    put(&mut block, 12, &(random.below(200) as u32).to_le_bytes());
    Root::put_seal(&mut block, 1);
    let store_id = u128::from_le_bytes(*block[16..].first_chunk().expect("a block is longer"));
    let _ = Root::decode(&block, store_id, 1);
    put(&mut block, 0, b"STEADCHK");
    put(&mut block, 58, &(random.below(300) as u16).to_le_bytes());
    Chunk::seal(&mut block);
    let store_id = u128::from_le_bytes(*block[8..].first_chunk().expect("a block is longer"));
    let mut twin = [0; BLOCK];
    Chunk::encode_twin(&block, &mut twin);
    let _ = Chunk::decode_twin(&twin, store_id);
    if let Some((chunk, _)) = Chunk::decode(&block, store_id) {
        let entries: Vec<(Entry, Located)> = chunk.located(Place(random.next_u64() >> 1)).collect();
        assert_eq!(entries.len(), chunk.entries.len());
    }
}
