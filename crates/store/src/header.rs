//! Checking what a store has beside maps and images: superblocks, roots and their tables, the headers of the record
//! chain, and the map of the older root. Nothing of it holds what could be lost alone: there are two of each, or it is
//! written anew. Read [`Store::check_header`] first.

use std::collections::{HashMap, HashSet};
use std::ops::ControlFlow;
use std::sync::atomic::Ordering;
use std::time::Duration;

use stead_model::{PageId, PageNo};

use crate::aligned::AlignedBuf;
use crate::cold::extent_checksum;
use crate::error::{Damage, ReadError};
use crate::format::{
    BLOCK, Chunk, Entry, Extent, Located, NodeId, Place, RECORD_FIXED_BLOCKS, ROOTS, Root,
    SUPERBLOCKS, Superblock,
};
use crate::planted::{self, Bug};
use crate::read::Found;
use crate::recover::load_table;
use crate::scrub::{FromDisk, Image};
use crate::store::Store;
use crate::tree::{Tree, Visitor};

/// How often a reader looks at a root that its owner may be writing.
const ROOT_ATTEMPTS: u32 = 20;

/// What is true of every block that only the older root refers to.
const ONLY_OLDER: &str = "; only the older root refers to it, for the case that the newer one is lost, and the next checkpoints let go of it";

impl Store {
    /// Superblocks, roots, the roots' tables, and the headers that a recovery from the older root would read. Nothing of
    /// it may move meanwhile: the caller has the keeper's lock.
    ///
    /// # Errors
    /// If the disk refuses to be read.
    pub(crate) fn check_header(&self, damages: &mut Vec<Damage>) -> Result<(), ReadError> {
        let mut block = vec![0; BLOCK];
        for at in SUPERBLOCKS {
            self.disk.read_from_disk(Place(at).offset(), &mut block)?;
            if Superblock::decode(&block).is_err() {
                let what = "a superblock does not have the checksum it was written with; there are two, and the store \
                            opens by the other one";
                damages.push(Damage::new(Place(at).offset(), what));
            }
        }
        let epoch = self.state().position.epoch;
        let mut roots: Vec<Root> = Vec::new();
        for (slot, place) in ROOTS.into_iter().enumerate() {
            let Some(root) = self.root_in(slot)? else {
                let what = "a root does not have the checksum it was written with; there are two, the other one leads \
                            to the same state, and the next checkpoints write this one anew";
                damages.push(Damage::new(Place(place).offset(), what));
                continue;
            };
            for (i, extent) in root.table.iter().enumerate() {
                let before =
                    root.table[..i].iter().fold(0u32, |n, extent| n.wrapping_add(extent.blocks));
                self.check_extent(extent, before, damages);
            }
            if root.position.epoch == epoch {
                roots.push(root);
            }
        }
        roots.sort_by_key(|root| root.generation);
        if let [oldest, .., newest] | [oldest @ newest] = &roots[..] {
            self.check_chain(oldest, newest.position.serial, damages);
        }
        Ok(())
    }

    /// A root as the disk has it.
    fn root_in(&self, slot: usize) -> Result<Option<Root>, ReadError> {
        let mut block = vec![0; BLOCK];
        for attempt in 0..ROOT_ATTEMPTS {
            if attempt > 0 {
                // Its owner may be writing it at this very moment.
                std::thread::sleep(Duration::from_millis(1));
            }
            self.disk.read_from_disk(Place(ROOTS[slot]).offset(), &mut block)?;
            let root = Root::decode(&block, self.header.store_id, slot);
            if root.is_some() || !self.is_read_only() {
                return Ok(root);
            }
        }
        Ok(None)
    }

    fn check_extent(&self, extent: &Extent, before: u32, damages: &mut Vec<Damage>) {
        // Block by block: how many there are is what the disk says.
        let mut block = vec![0; BLOCK];
        let sealer = self.disk.sealer();
        let offset = extent.place.offset();
        let mut sums = Vec::new();
        for index in 0..extent.blocks {
            let place = Place(extent.place.0.saturating_add(u64::from(index)));
            if let Err(error) = self.disk.read_from_disk(place.offset(), &mut block) {
                damages.push(Damage::of(None, error));
                return;
            }
            sums.push(sealer.block(Entry::Table(before.wrapping_add(index)), &block));
        }
        let sums = sums.into_iter();
        if extent_checksum(sums) != extent.checksum {
            let what = "a part of a root's table does not have the checksum it was written with; there are two roots, \
                        the other one leads to the same state, and the next checkpoints write this one anew";
            damages.push(Damage::new(offset, what));
        }
    }

    /// The headers, and their twins, that a recovery from this root would read; one from the newest root begins with that
    /// serial.
    fn check_chain(&self, root: &Root, newest: u64, damages: &mut Vec<Damage>) {
        let end = self.state().position.serial;
        let mut place = root.position.place;
        // Found by one of the two, and not yet by a later chunk to have been flushed, with its stabilisation.
        let mut halves: Vec<(u64, Damage)> = Vec::new();
        for serial in root.position.serial..end {
            // Where a root that was not opened says it lies, and what its chunks name, has not been looked at.
            let is_inside = self.state().space.has(place);
            let found = is_inside.then(|| self.header_and_twin(place, serial));
            let (header, twin) = match found.unwrap_or(Ok((None, None))) {
                Ok(found) => found,
                Err(error) => {
                    damages.push(Damage::of(None, error));
                    break;
                }
            };
            let Some(chunk) = header.as_ref().or(twin.as_ref()) else {
                let what = if serial < newest {
                    "a header of the record chain does not have the checksum it was written with; only the older root \
                     needs it, for the case that the newer one is lost, and the next checkpoints let go of it"
                } else {
                    "a header of the record chain does not have the checksum it was written with; after a crash the store \
                     could not be opened: the next checkpoints, as when it is closed, make it unneeded"
                };
                damages.push(Damage::new(place.offset(), what));
                break;
            };
            let flushed = halves.extract_if(.., |(sequence, _)| *sequence <= chunk.proves());
            damages.extend(flushed.map(|(_, damage)| damage));
            if header.is_none() {
                let what = "a header of the record chain does not have the checksum it was written with; its copy at the end \
                            of the chunk is used instead, and the next checkpoints let go of it";
                halves.push((chunk.sequence, Damage::new(place.offset(), what)));
            } else if chunk.twin && twin.is_none() {
                let what = "the copy of a header of the record chain does not have the checksum it was written with; the \
                            header itself is whole, and the next checkpoints let go of it";
                let at = place.plus(chunk.blocks() - 1);
                halves.push((chunk.sequence, Damage::new(at.offset(), what)));
            }
            (place, _) = self.layout().behind(place, chunk.blocks(), chunk.next_segment);
        }
        // The last stabilisations, if it was not this process that made them, may never have been flushed: what is not
        // there has not been lost.
        if !self.is_read_only() && !self.needs_epoch.load(Ordering::SeqCst) {
            damages.extend(halves.into_iter().map(|(_, damage)| damage));
        }
    }

    /// Chunk `serial` of the record chain, which begins at `place`, by its header and by the twin of that.
    fn header_and_twin(
        &self,
        place: Place,
        serial: u64,
    ) -> Result<(Option<Chunk>, Option<Chunk>), ReadError> {
        let mut block = vec![0; BLOCK];
        let id = self.header.store_id;
        let is_it = |(chunk, _): (Chunk, u64)| (chunk.serial == serial).then_some(chunk);
        self.disk.read_from_disk(place.offset(), &mut block)?;
        let header = Chunk::decode(&block, id).and_then(is_it);
        let room = self.layout().record_blocks().min(self.layout().room(place));
        let blocks = match &header {
            Some(chunk) => chunk.blocks()..=chunk.blocks(),
            None => RECORD_FIXED_BLOCKS..=room,
        };
        for blocks in blocks {
            self.disk.read_from_disk(place.plus(blocks - 1).offset(), &mut block)?;
            if let Some(twin) = Chunk::by_twin(&block, id, blocks).and_then(is_it) {
                return Ok((header, Some(twin)));
            }
        }
        Ok((header, None))
    }

    /// Reads what the older root's map refers to and has not been seen, and checks it, `pace` being told how many blocks
    /// were read. Whether it is still the older root is looked at behind that: if not, all of it counts no more.
    pub(crate) fn check_older_map(
        &self,
        seen: &mut Seen,
        damages: &mut Vec<Damage>,
        pace: &mut dyn FnMut(usize) -> ControlFlow<()>,
    ) -> ControlFlow<()> {
        let known: HashSet<u64> = damages.iter().map(|damage| damage.offset).collect();
        let older = self.older_root().filter(|_| !planted::is(Bug::OlderRootUnread));
        let Some((slot, root)) = older else { return ControlFlow::Continue(()) };
        let segments = self.state().space.segments();
        // What is wrong with its table has been found.
        let Ok((versions, ..)) = load_table(&self.disk, self.layout(), &root, segments) else {
            return ControlFlow::Continue(());
        };
        let mut found = Vec::new();
        let mut images = Vec::new();
        for tree in versions.trees() {
            let mut visit =
                Visit { tree, seen, images: &mut images, damages: &mut found, nodes: 0 };
            tree.visit(&FromDisk(&self.disk), &mut visit);
            let nodes = visit.nodes;
            if nodes > 0 {
                pace(nodes)?;
            }
        }
        images.sort_unstable_by_key(|image: &Image| image.found.at.place);
        let mut buffer = AlignedBuf::zeroed(BLOCK);
        for Image { id, found: Found { at, origins } } in images {
            let block = buffer.as_mut_slice();
            let read = self.disk.read_from_disk(at.place.offset(), block);
            let checked =
                read.and_then(|()| self.disk.check(Entry::Image(id), &origins, at, block));
            if let Err(error) = checked {
                found.push(Damage::of(None, error));
            }
            pace(1)?;
        }
        // What newer states have as well has been found there.
        found.retain(|damage| !known.contains(&damage.offset));
        if !found.is_empty() && self.root_in(slot).is_ok_and(|now| now.as_ref() == Some(&root)) {
            let told =
                |damage: Damage| Damage::new(damage.offset, format!("{}{ONLY_OLDER}", damage.what));
            damages.extend(found.into_iter().map(told));
        }
        ControlFlow::Continue(())
    }

    /// The root that is not in force, if it could be: the other one is.
    fn older_root(&self) -> Option<(usize, Root)> {
        let (generation, epoch) = {
            let state = self.state();
            (state.generation, state.position.epoch)
        };
        let roots: Vec<(usize, Root)> = (0..ROOTS.len())
            .filter_map(|slot| Some((slot, self.root_in(slot).ok().flatten()?)))
            .collect();
        // Where its owner has gone on, a reader does not know what the roots there need.
        if !roots.iter().any(|(_, root)| root.generation == generation) {
            return None;
        }
        let is_older = |root: &Root| root.generation < generation && root.position.epoch == epoch;
        roots.into_iter().find(|(_, root)| is_older(root))
    }
}

/// Blocks that have been looked at: nodes with all below them, and images with a part of their checksums, since a block may
/// be used anew while a store is looked at. Two bytes for each block in use, rounded up to 16 MiB of the file.
#[derive(Debug, Default)]
pub(crate) struct Seen {
    pub(crate) nodes: HashSet<Place>,
    images: HashMap<u64, Box<[u16; SEEN_BLOCKS]>>,
}

const SEEN_BLOCKS: usize = 4096;

impl Seen {
    /// Notes an image; whether it was not seen before.
    pub(crate) fn image(&mut self, at: Located) -> bool {
        let mark = (at.checksum >> 48) as u16 | 1;
        let chunk = self.images.entry(at.place.0 / SEEN_BLOCKS as u64);
        let chunk = chunk.or_insert_with(|| Box::new([0; SEEN_BLOCKS]));
        std::mem::replace(&mut chunk[at.place.0 as usize % SEEN_BLOCKS], mark) != mark
    }

    /// As if the image had not been seen.
    pub(crate) fn forget_image(&mut self, at: Located) {
        if let Some(chunk) = self.images.get_mut(&(at.place.0 / SEEN_BLOCKS as u64)) {
            chunk[at.place.0 as usize % SEEN_BLOCKS] = 0;
        }
    }
}

struct Visit<'a> {
    tree: &'a Tree,
    seen: &'a mut Seen,
    images: &'a mut Vec<Image>,
    damages: &'a mut Vec<Damage>,
    nodes: usize,
}

impl Visitor for Visit<'_> {
    fn page(&mut self, page: u64, at: Located) {
        if self.seen.image(at) {
            let id = PageId { container: self.tree.container(), page: PageNo(page) };
            self.images
                .push(Image { id, found: Found { at, origins: self.tree.origins().clone() } });
        }
    }

    fn node(&mut self, _: NodeId, at: Place) -> Option<u64> {
        if !self.seen.nodes.insert(at) {
            return Some(0);
        }
        self.nodes += 1;
        None
    }

    /// Found long ago, and told of by those who have it still.
    fn lost(&mut self, _: Damage) {}

    fn unreadable(&mut self, _: NodeId, error: ReadError) {
        self.damages.push(Damage::of(None, error));
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use stead_model::ContainerId;

    use super::*;
    use crate::directory::CreateOptions;
    use crate::sim::CrashMedium;

    #[test]
    fn where_roots_say_that_their_chains_lie_is_looked_at() {
        let medium = CrashMedium::new(1);
        let options = CreateOptions { segment_blocks: Some(16), ..CreateOptions::default() };
        let store = Store::create_on(Arc::new(medium.clone()), &options).unwrap();
        let mut batch = store.batch();
        let id = PageId { container: ContainerId(1), page: PageNo(1) };
        for value in 1..4 {
            batch.push(id, |page| page.fill(value));
            store.commit(&mut batch).unwrap();
            store.checkpoint().unwrap();
        }
        let store_id = store.header.store_id;
        drop(store);
        let image = medium.bytes();
        let block = |slot: usize| ROOTS[slot] as usize * BLOCK..(ROOTS[slot] as usize + 1) * BLOCK;
        let roots = [0, 1].map(|slot| Root::decode(&image[block(slot)], store_id, slot).unwrap());
        let older = usize::from(roots[0].generation > roots[1].generation);
        // Of one that is not opened, when it is verified.
        for place in [0, 3, 15, 16, u64::MAX - 1, u64::MAX] {
            let mut root = roots[older].clone();
            root.position.place = Place(place);
            root.position.serial -= 1;
            let mut image = image.clone();
            image[block(older)].copy_from_slice(&root.encode(store_id, older));
            let medium = CrashMedium::with_bytes(0, &image);
            let (store, _) = Store::open_on(Arc::new(medium)).unwrap();
            let verified = store.verify(&mut |_| {}).unwrap();
            assert!(verified.damages[0].what.contains("the record chain"), "{verified:?}");
        }
        // Of the one that is opened it is looked at: the next segment must be one.
        let start = roots[1 - older].position.next_segment;
        for (next, opens) in [(start, true), (start.plus(15), false), (Place(u64::MAX), false)] {
            let mut image = image.clone();
            for slot in [0, 1] {
                let mut root = roots[1 - older].clone();
                root.generation -= slot as u64;
                root.position.next_segment = next;
                image[block(slot)].copy_from_slice(&root.encode(store_id, slot));
            }
            let opened = Store::open_on(Arc::new(CrashMedium::with_bytes(0, &image)));
            assert_eq!(opened.is_ok(), opens, "{next:?}");
        }
    }
}
