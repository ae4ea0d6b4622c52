//! Stores that lie: images with wrong fields and right checksums, so that what stands behind the checksums meets them
//! too. Whatever is in them, opening, reading, checking and going on must end, with an answer or an error.
//! Backups likewise. Read [`Forger`] first.

use std::path::Path;
use std::sync::Arc;

use stead_model::{ContainerId, PAGE_SIZE, PageId, PageNo};

use super::damage::Subject;
use super::{CrashMedium, SplitMix};
use crate::backup::{self, Restore};
use crate::cold::extent_checksum;
use crate::format::{
    BLOCK, Chunk, ChunkKind, Entry, Located, NodeId, Place, ROOTS, Root, SUPERBLOCKS, Sealer,
    Superblock, TABLE_CONTAINER_BYTES, get_u32, get_u64, put,
};
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

/// One store's image, and where its checksums stand.
pub struct Forger {
    bytes: Vec<u8>,
    store_id: u128,
    /// Children come before their parents.
    links: Vec<Link>,
    /// The places of the record chain's headers, in its order, each with that of its twin.
    chain: Vec<(Place, Place)>,
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
}

impl Forger {
    /// The image of the subject of this seed.
    ///
    /// # Errors
    /// If it cannot be made.
    pub fn new(seed: u64) -> Result<Self, String> {
        let bytes = Subject::new(seed)?.image().to_vec();
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
        let mut serials = Vec::new();
        for place in 16..(bytes.len() / BLOCK) as u64 {
            match Chunk::decode(block(place), store_id) {
                Some((chunk, _)) if chunk.kind == ChunkKind::Cold => forger.cold.push(Place(place)),
                Some((chunk, _)) => {
                    let twin = Place(place + chunk.blocks() - 1);
                    serials.push((chunk.serial, (Place(place), twin)));
                }
                None => {}
            }
        }
        serials.sort_unstable();
        forger.chain = serials.into_iter().map(|(_, place)| place).collect();
        forger.bytes.clone_from(&bytes);
        for (slot, place) in ROOTS.into_iter().enumerate() {
            let root = Root::decode(block(place), store_id, slot).ok_or("no root")?;
            let Some(extent) = root.table.first() else { continue };
            for row in 0..root.containers as usize {
                let at = row * TABLE_CONTAINER_BYTES;
                let (parent, bytes) = (extent.place, block(extent.place.0));
                let container = ContainerId(get_u32(bytes, at));
                let level = get_u32(bytes, at + 4) as u8 - 1;
                let child = Place(get_u64(bytes, at + 8));
                let node = NodeId { container, level, index: 0 };
                forger.node(node, child);
                forger.links.push(Link { entry: Entry::Node(node), parent, at: at + 8 });
            }
        }
        Ok(forger)
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
                self.node(below, child);
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
            for &(header, _) in self.chain.iter().filter(|_| random.below(2) == 0) {
                bytes[header.0 as usize * BLOCK] ^= 1;
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
            7 | 8 => self.chain[random.below(self.chain.len() as u64) as usize].0,
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
        let mut previous: Option<u64> = None;
        for &(place, twin) in &self.chain {
            let block = &mut bytes[range(place)];
            if let Some(previous) = previous {
                put(block, 64, &previous.to_le_bytes());
            }
            previous = Some(Chunk::seal(block));
            let header = block.to_vec();
            Chunk::encode_twin(&header, &mut bytes[range(twin)]);
        }
        for &place in &self.cold {
            Chunk::seal(&mut bytes[range(place)]);
        }
        for (slot, root) in ROOTS.into_iter().enumerate() {
            let start = range(Place(root)).start;
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

/// Opens an image and does everything with it that can be done. Only ends, or panics.
#[must_use]
pub fn try_everything(bytes: &[u8]) -> Outcome {
    let medium = CrashMedium::with_bytes(0, bytes);
    let Ok((store, _)) = Store::open_on(Arc::new(medium.clone())) else { return Outcome::Refused };
    read(&store.view());
    for snapshot in store.snapshots() {
        if let Ok(view) = store.view_snapshot(&snapshot.name) {
            read(&view);
        }
    }
    // What is wrong is told or not; what counts is that it ends.
    let _ = store.verify(&mut |_| {});
    let mut batch = store.batch();
    for container in 0..3 {
        let id = PageId { container: ContainerId(container), page: PageNo(1) };
        batch.push(id, |page| page.fill(7));
    }
    for _ in 0..2 {
        let _ = store.commit(&mut batch);
        let _ = store.checkpoint();
        let _ = store.maintain();
    }
    for snapshot in store.snapshots() {
        let _ = store.drop_snapshot(&snapshot.name);
    }
    drop(store);
    let _ = Store::open_on(Arc::new(medium));
    Outcome::Opened
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
