//! Looking at everything: every image, node and table block read from the disk and checked, every block of
//! the file accounted for (catalogue B9, B12). It repairs nothing. Read [`Store::verify`] first.

use std::collections::HashMap;
use std::collections::hash_map::Entry as Slotted;
use std::ops::ControlFlow;

use stead_model::{ContainerId, PageId, PageNo};

use crate::aligned::AlignedBuf;
use crate::error::{Damage, ReadError};
use crate::format::{BLOCK, Entry, HEADER_BLOCKS, Located, NodeId, Place};
use crate::header::Seen;
use crate::layer::Layer;
use crate::scrub::FromDisk;
use crate::space::Layout;
use crate::store::Store;
use crate::tree::{Block, Origins, Tree, Visitor};
use crate::versions::Versions;

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
    /// Images and parts of maps that nothing but snapshots refers to.
    pub pinned: u64,
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

/// Blocks read at once.
const READ_BLOCKS: usize = 256;

impl Store {
    /// Reads and checks everything that [`Store::scrub`] does, and accounts for every block, past any cache, while the store
    /// is in use; upkeep waits meanwhile.
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
        let (versions, active, space) = {
            let state = self.state();
            let versions = Versions::new(state.trees.clone(), state.snapshots.clone());
            (versions, state.active.clone(), state.space.clone())
        };
        let snapshots = &versions.snapshots;
        let mut found = Found::new(space.segments(), self.layout());
        for extent in &keeper.cold.table {
            for i in 0..u64::from(extent.blocks) {
                found.in_table(extent.place.plus(i));
            }
        }
        let with_hidden = !snapshots.list.is_empty();
        for tree in versions.live.values() {
            self.visit_tree(&mut found, tree, Some((&active, with_hidden)), images);
        }
        for tree in snapshots.list.iter().flat_map(|snapshot| snapshot.trees.values()) {
            self.visit_tree(&mut found, tree, None, images);
        }
        if found.damages.is_empty() && found.pinned != snapshots.pinned {
            let (found_there, counted) = (found.pinned, snapshots.pinned);
            let what = format!("snapshots alone hold {found_there} blocks, {counted} are counted");
            found.miscounted.push(what);
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
        if images {
            self.check_images(&mut found, progress)?;
            let mut seen = Seen::default();
            seen.nodes.extend(found.nodes());
            for image in &found.images {
                seen.image(image.at);
            }
            let _ = self
                .check_older_map(&mut seen, &mut found.damages, &mut |_| ControlFlow::Continue(()));
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
                images: found.live_images,
                map,
                pinned: found.pinned,
                other: used.saturating_sub(found.live_images + map + found.pinned),
            },
            damages: found.damages,
            miscounted: found.miscounted,
        })
    }

    /// Counts what a tree refers to and no tree before; of the live ones with the layer over them, and whether images
    /// that it hides are checked too.
    fn visit_tree(
        &self,
        found: &mut Found,
        tree: &Tree,
        live: Option<(&Layer, bool)>,
        from_disk: bool,
    ) {
        let container = tree.container();
        let says = tree.pages();
        let mut visit = Visit { tree, live, found };
        let pages = if from_disk {
            // A copy of its own: what is in memory is not believed, and not kept.
            tree.unloaded().visit(&FromDisk(&self.disk), &mut visit)
        } else {
            tree.visit(&self.disk, &mut visit)
        };
        if pages != says && found.damages.is_empty() {
            let what =
                format!("a map of container {container} has {pages} pages, its root says {says}");
            found.miscounted.push(what);
        }
    }

    fn check_images(
        &self,
        found: &mut Found,
        progress: &mut dyn FnMut(VerifyProgress),
    ) -> Result<(), ReadError> {
        let mut images = std::mem::take(&mut found.images);
        images.sort_unstable_by_key(|image| image.at.place);
        let total = images.len() as u64;
        let most = READ_BLOCKS.min(images.len());
        let mut bytes = AlignedBuf::zeroed(most * BLOCK);
        let mut done = 0;
        while done < images.len() {
            progress(VerifyProgress { done: done as u64, total });
            // Those that lie side by side are read at once.
            let first = images[done].at.place;
            let run = images[done..]
                .iter()
                .take(most)
                .enumerate()
                .take_while(|(i, image)| image.at.place == first.plus(*i as u64))
                .count();
            let into = &mut bytes.as_mut_slice()[..run * BLOCK];
            let read = self.disk.read_from_disk(first.offset(), into);
            for (i, Image { id, origins, at }) in images[done..done + run].iter().enumerate() {
                let block = &mut bytes.as_mut_slice()[i * BLOCK..(i + 1) * BLOCK];
                if read.is_err() {
                    // One of them cannot be read: find out which.
                    if let Err(error) = self.disk.read_from_disk(at.place.offset(), block) {
                        found.unreadable(Some(*id), error);
                        continue;
                    }
                }
                if let Err(error) = self.disk.check(Entry::Image(*id), origins, *at, block) {
                    found.unreadable(Some(*id), error);
                }
            }
            done += run;
        }
        progress(VerifyProgress { done: total, total });
        found.images = images;
        Ok(())
    }
}

/// What is known of a block that something refers to.
#[derive(Clone, Copy)]
struct Known {
    /// As what. Only versions of one map may refer to the same block, and only as the same thing.
    family: ContainerId,
    block: Option<Block>,
    /// Pages below, if it is a node and they have all been seen.
    pages: Option<u64>,
    /// Whether it is an image of the live state that no layer hides.
    is_live_image: bool,
}

/// What the maps refer to.
struct Found {
    layout: Layout,
    tree: Vec<u32>,
    layer: Vec<u32>,
    /// Images to be checked, each once.
    images: Vec<Image>,
    /// Images of the live state, not those that a layer hides.
    live_images: u64,
    map: u64,
    pinned: u64,
    blocks: HashMap<Place, Known>,
    damages: Vec<Damage>,
    miscounted: Vec<String>,
}

struct Image {
    id: PageId,
    origins: Origins,
    at: Located,
}

impl Found {
    fn new(segments: usize, layout: Layout) -> Self {
        Found {
            layout,
            tree: vec![0; segments],
            layer: vec![0; segments],
            images: Vec::new(),
            live_images: 0,
            map: 0,
            pinned: 0,
            blocks: HashMap::new(),
            damages: Vec::new(),
            miscounted: Vec::new(),
        }
    }

    /// Notes that something refers to a block; its segment, if nothing has before.
    fn refer(
        &mut self,
        place: Place,
        family: ContainerId,
        block: Option<Block>,
    ) -> (&mut Known, Option<usize>) {
        let segment = self.layout.segment(place).map(|segment| segment as usize);
        let segment = segment.filter(|&segment| segment < self.tree.len());
        if segment.is_none() {
            self.damages
                .push(Damage::new(place.offset(), "the map refers to a block beyond the file"));
        }
        match self.blocks.entry(place) {
            Slotted::Vacant(entry) => {
                let known = Known { family, block, pages: None, is_live_image: false };
                (entry.insert(known), segment)
            }
            Slotted::Occupied(entry) => {
                let known = entry.into_mut();
                if block.is_none() || known.block != block || known.family != family {
                    self.miscounted.push(format!("block {} is referred to twice", place.0));
                }
                (known, None)
            }
        }
    }

    /// The nodes that something refers to.
    fn nodes(&self) -> impl Iterator<Item = Place> {
        let nodes =
            self.blocks.iter().filter(|(_, known)| matches!(known.block, Some(Block::Node(_))));
        nodes.map(|(&place, _)| place)
    }

    fn in_table(&mut self, place: Place) {
        self.map += 1;
        if let (_, Some(segment)) = self.refer(place, ContainerId(0), None) {
            self.tree[segment] += 1;
        }
    }

    fn in_layer(&mut self, id: PageId, at: Located) {
        self.images.push(Image { id, origins: Origins::default(), at });
        self.live_images += 1;
        if let (_, Some(segment)) = self.refer(at.place, id.container, None) {
            self.layer[segment] += 1;
        }
    }

    fn unreadable(&mut self, page: Option<PageId>, error: ReadError) {
        self.damages.push(Damage::of(page, error));
    }
}

struct Visit<'a> {
    tree: &'a Tree,
    /// The layer over a live tree, and whether images that it hides are checked; `None` for a snapshot's.
    live: Option<(&'a Layer, bool)>,
    found: &'a mut Found,
}

impl Visitor for Visit<'_> {
    fn page(&mut self, page: u64, at: Located) {
        let id = PageId { container: self.tree.container(), page: PageNo(page) };
        let shown = self.live.is_some_and(|(active, _)| active.find(id).is_none());
        let checked = self.live.is_none_or(|(_, with_hidden)| shown || with_hidden);
        let (known, segment) =
            self.found.refer(at.place, self.tree.family(), Some(Block::Page(page)));
        let newly_shown = shown && !known.is_live_image;
        known.is_live_image |= shown;
        self.found.live_images += u64::from(newly_shown);
        if let Some(segment) = segment {
            self.found.tree[segment] += 1;
            self.found.pinned += u64::from(self.live.is_none());
        }
        if checked && (segment.is_some() || newly_shown && !self.live.is_some_and(|(_, all)| all)) {
            self.found.images.push(Image { id, origins: self.tree.origins().clone(), at });
        }
    }

    fn node(&mut self, id: NodeId, at: Place) -> Option<u64> {
        let block = Some(Block::Node(NodeId { container: self.tree.family(), ..id }));
        let (known, segment) = self.found.refer(at, self.tree.family(), block);
        // A live map is looked at as a whole: which of its images count depends on its own layer.
        let pages = known.pages.filter(|_| self.live.is_none());
        if let Some(segment) = segment {
            self.found.tree[segment] += 1;
            match self.live {
                Some(_) => self.found.map += 1,
                None => self.found.pinned += 1,
            }
        }
        pages
    }

    fn seen(&mut self, _: NodeId, at: Place, pages: u64) {
        if let Some(known) = self.found.blocks.get_mut(&at) {
            known.pages = Some(pages);
        }
    }

    fn lost(&mut self, damage: Damage) {
        let hides =
            |(active, _): (&Layer, bool)| damage.page.is_some_and(|id| active.find(id).is_some());
        if !self.live.is_some_and(hides) {
            self.found.damages.push(damage);
        }
    }

    fn unreadable(&mut self, _: NodeId, error: ReadError) {
        self.found.unreadable(None, error);
    }
}
