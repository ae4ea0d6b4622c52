//! Looking at everything: every image, node and table block read from the disk and checked, every block of
//! the file accounted for (catalogue B9, B12). It repairs nothing. Read [`Store::verify`] first.

use std::collections::HashSet;
use std::time::Duration;

use stead_model::{ContainerId, PageId, PageNo};

use crate::aligned::AlignedBuf;
use crate::error::{Damage, ReadError};
use crate::format::{
    BLOCK, Entry, HEADER_BLOCKS, Located, NodeId, Place, ROOTS, Root, SUPERBLOCKS, Superblock,
};
use crate::layer::Layer;
use crate::space::Layout;
use crate::store::Store;
use crate::tree::Visitor;

/// How far a verification has come.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct VerifyProgress {
    /// Blocks looked at.
    pub done: u64,
    /// Blocks to look at in all.
    pub total: u64,
}

/// Where all blocks of the file are: the parts add up to the whole.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Accounting {
    /// Blocks of the file.
    pub whole: u64,
    /// Before the first segment: superblock, roots.
    pub header: u64,
    /// In segments that may be written.
    pub free: u64,
    /// In segments that wait for the next roots.
    pub pending: u64,
    /// Images that the map refers to.
    pub images: u64,
    /// The map itself, and its table.
    pub map: u64,
    /// In used segments, but neither image nor map: chunk headers, what has been replaced, room not yet
    /// written.
    pub other: u64,
}

/// What a verification found.
#[derive(Clone, Debug, Default)]
pub struct Verified {
    /// Where all blocks are.
    pub blocks: Accounting,
    /// Everything that is not as it was written.
    pub damages: Vec<Damage>,
    /// Blocks that are counted wrongly, in words; there are none unless the store itself has a bug, or the
    /// map is damaged.
    pub miscounted: Vec<String>,
}

impl Verified {
    /// Whether nothing is wrong.
    #[must_use]
    pub fn is_clean(&self) -> bool {
        self.damages.is_empty() && self.miscounted.is_empty()
    }
}

/// How often a reader looks at a root that its owner may be writing.
const ROOT_ATTEMPTS: u32 = 20;

/// Blocks read at once.
const READ_BLOCKS: usize = 256;

impl Store {
    /// Reads and checks everything, past any cache, while the store is in use; upkeep waits meanwhile.
    /// `progress` is told now and then.
    ///
    /// # Errors
    /// If the disk refuses to be read. What is damaged is no error but part of the answer.
    pub fn verify(&self, progress: &mut dyn FnMut(VerifyProgress)) -> Result<Verified, ReadError> {
        self.look_at_all(true, progress)
    }

    /// As [`Store::verify`], without reading the images.
    ///
    /// # Errors
    /// As for [`Store::verify`].
    pub fn verify_map(&self) -> Result<Verified, ReadError> {
        self.look_at_all(false, &mut |_| {})
    }

    fn look_at_all(
        &self,
        images: bool,
        progress: &mut dyn FnMut(VerifyProgress),
    ) -> Result<Verified, ReadError> {
        // With upkeep held back no segment becomes free, so nothing that is found now is written over.
        let keeper = self.keeper();
        let (trees, active, space) = {
            let state = self.state();
            (state.trees.clone(), state.active.clone(), state.space.clone())
        };
        let mut found = Found::new(space.segments(), self.layout());
        for extent in &keeper.cold.table {
            for i in 0..u64::from(extent.blocks) {
                found.in_map(extent.place.plus(i));
            }
        }
        for (&container, tree) in &trees {
            let mut visit = Visit { container, found: &mut found, active: &active, pages: 0 };
            tree.visit(&self.disk, &mut visit);
            let pages = visit.pages;
            if pages != tree.pages() && found.damages.is_empty() {
                let says = tree.pages();
                let what = format!(
                    "the map of container {container} has {pages} pages, its root says {says}"
                );
                found.miscounted.push(what);
            }
        }
        for (container, changes) in active.containers() {
            for (&page, &at) in changes.pages.iter().filter(|(_, at)| !at.is_never()) {
                found.in_layer(PageId { container, page: PageNo(page) }, at);
            }
        }
        if found.damages.is_empty() {
            let counted = [
                ("map", space.tree_counts(), &found.tree),
                ("layers", space.layer_counts(), &found.layer),
            ];
            for (what, counted, found_there) in counted {
                for (segment, (counted, found_there)) in counted.iter().zip(found_there).enumerate()
                {
                    if counted != found_there {
                        let what = format!(
                            "the {what} has {found_there} blocks in segment {segment}, {counted} are counted"
                        );
                        found.miscounted.push(what);
                    }
                }
            }
        }
        for segment in space.contradictions() {
            found.miscounted.push(format!("segment {segment} is free and in use"));
        }
        self.check_header(&mut found.damages)?;
        let image_count = found.images.len() as u64;
        if images {
            self.check_images(&mut found, progress)?;
        }
        let (free, pending, used) = space.blocks_by_state();
        let whole = HEADER_BLOCKS + free + pending + used;
        let map = found.map;
        Ok(Verified {
            blocks: Accounting {
                whole,
                header: HEADER_BLOCKS,
                free,
                pending,
                images: image_count,
                map,
                other: used.saturating_sub(image_count + map),
            },
            damages: found.damages,
            miscounted: found.miscounted,
        })
    }

    fn check_header(&self, damages: &mut Vec<Damage>) -> Result<(), ReadError> {
        let mut block = vec![0; BLOCK];
        for at in SUPERBLOCKS {
            self.disk.read_from_disk(Place(at).offset(), &mut block)?;
            if Superblock::decode(&block).is_err() {
                let what = "a superblock does not have the checksum it was written with";
                damages.push(Damage::new(Place(at).offset(), what));
            }
        }
        for (slot, at) in ROOTS.into_iter().enumerate() {
            let mut is_whole = || {
                self.disk.read_from_disk(Place(at).offset(), &mut block)?;
                Ok::<bool, ReadError>(Root::decode(&block, self.header.store_id, slot).is_some())
            };
            let mut found = is_whole()?;
            for _ in 0..ROOT_ATTEMPTS {
                if found || !self.is_read_only() {
                    break;
                }
                // Its owner may be writing it at this very moment.
                std::thread::sleep(Duration::from_millis(1));
                found = is_whole()?;
            }
            if !found {
                let what = "a root does not have the checksum it was written with";
                damages.push(Damage::new(Place(at).offset(), what));
            }
        }
        Ok(())
    }

    fn check_images(
        &self,
        found: &mut Found,
        progress: &mut dyn FnMut(VerifyProgress),
    ) -> Result<(), ReadError> {
        let mut images = std::mem::take(&mut found.images);
        images.sort_unstable_by_key(|(_, at)| at.place);
        let total = images.len() as u64;
        let mut bytes = AlignedBuf::zeroed(READ_BLOCKS * BLOCK);
        let mut done = 0;
        while done < images.len() {
            progress(VerifyProgress { done: done as u64, total });
            // Those that lie side by side are read at once.
            let first = images[done].1.place;
            let run = images[done..]
                .iter()
                .take(READ_BLOCKS)
                .enumerate()
                .take_while(|(i, (_, at))| at.place == first.plus(*i as u64))
                .count();
            let into = &mut bytes.as_mut_slice()[..run * BLOCK];
            let read = self.disk.read_from_disk(first.offset(), into);
            for (i, &(id, at)) in images[done..done + run].iter().enumerate() {
                let block = &mut bytes.as_mut_slice()[i * BLOCK..(i + 1) * BLOCK];
                if read.is_err() {
                    // One of them cannot be read: find out which.
                    if let Err(error) = self.disk.read_from_disk(at.place.offset(), block) {
                        found.unreadable(Some(id), at.place, error);
                        continue;
                    }
                }
                if let Err(error) = self.disk.check(Entry::Image(id), at, block) {
                    found.unreadable(Some(id), at.place, error);
                }
            }
            done += run;
        }
        progress(VerifyProgress { done: total, total });
        Ok(())
    }
}

/// What the map refers to.
struct Found {
    layout: Layout,
    tree: Vec<u32>,
    layer: Vec<u32>,
    /// Images that count, not those that a layer hides.
    images: Vec<(PageId, Located)>,
    map: u64,
    places: HashSet<Place>,
    damages: Vec<Damage>,
    miscounted: Vec<String>,
}

impl Found {
    fn new(segments: usize, layout: Layout) -> Self {
        Found {
            layout,
            tree: vec![0; segments],
            layer: vec![0; segments],
            images: Vec::new(),
            map: 0,
            places: HashSet::new(),
            damages: Vec::new(),
            miscounted: Vec::new(),
        }
    }

    fn refer(&mut self, place: Place) -> Option<usize> {
        let segment = self.layout.segment(place).map(|segment| segment as usize);
        let segment = segment.filter(|&segment| segment < self.tree.len());
        if segment.is_none() {
            self.damages
                .push(Damage::new(place.offset(), "the map refers to a block beyond the file"));
        } else if !self.places.insert(place) {
            self.miscounted.push(format!("block {} is referred to twice", place.0));
        }
        segment
    }

    fn in_map(&mut self, place: Place) {
        self.map += 1;
        if let Some(segment) = self.refer(place) {
            self.tree[segment] += 1;
        }
    }

    fn in_layer(&mut self, id: PageId, at: Located) {
        self.images.push((id, at));
        if let Some(segment) = self.refer(at.place) {
            self.layer[segment] += 1;
        }
    }

    fn unreadable(&mut self, page: Option<PageId>, place: Place, error: ReadError) {
        self.damages.push(match error {
            ReadError::Damaged(damage) => damage,
            ReadError::Io { source, .. } => {
                Damage { page, offset: place.offset(), what: format!("cannot be read: {source}") }
            }
        });
    }
}

struct Visit<'a> {
    container: ContainerId,
    found: &'a mut Found,
    active: &'a Layer,
    pages: u64,
}

impl Visitor for Visit<'_> {
    fn page(&mut self, page: u64, at: Located) {
        self.pages += 1;
        let id = PageId { container: self.container, page: PageNo(page) };
        if let Some(segment) = self.found.refer(at.place) {
            self.found.tree[segment] += 1;
        }
        if self.active.find(id).is_none() {
            self.found.images.push((id, at));
        }
    }

    fn node(&mut self, _: NodeId, at: Place) {
        self.found.in_map(at);
    }

    fn unreadable(&mut self, _: NodeId, error: ReadError) {
        let place = match &error {
            ReadError::Damaged(damage) => damage.offset,
            ReadError::Io { offset, .. } => *offset,
        };
        self.found.unreadable(None, Place(place / BLOCK as u64), error);
    }
}
