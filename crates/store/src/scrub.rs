//! Looking for damage at leisure (catalogue B12): everything that the store refers to is read from the disk itself and
//! checked, at the pace of its caller, while the store is in use. Unlike `verify` it accounts for nothing, holds up
//! nothing, and remembers two bytes for each block. It repairs nothing. Read [`Store::scrub`] first.

use std::ops::ControlFlow;
use std::sync::Arc;

use stead_model::{ContainerId, PageId, PageNo};

use crate::aligned::AlignedBuf;
use crate::disk::Disk;
use crate::error::{Damage, ReadError};
use crate::format::{BLOCK, Entry, HEADER_BLOCKS, Located, NodeId, Place};
use crate::header::Seen;
use crate::planted::{self, Bug};
use crate::read::Found;
use crate::store::Store;
use crate::tree::{MapMemory, Nodes, Origins, Tree, Visitor};
use crate::view::View;

/// Images gathered before they are read, in the order of their places. Bounds what is remembered.
const GATHERED: usize = 16 * 1024;

/// Blocks read at once, between two looks at the caller's pace.
const READ_BLOCKS: usize = 64;

/// How often a map is looked at anew when it changed while a part of it could not be read.
const ATTEMPTS: u32 = 5;

/// How far a scrub has come.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ScrubProgress {
    /// Bytes read so far.
    pub done_bytes: u64,
    /// About how many there will be: those in use when it began.
    pub total_bytes: u64,
    /// Damages found so far.
    pub damages: usize,
}

/// What a scrub found.
#[derive(Clone, Debug, Default)]
pub struct Scrubbed {
    /// Bytes read.
    pub read_bytes: u64,
    /// Images of pages among them.
    pub images: u64,
    /// Everything that is not as it was written.
    pub damages: Vec<Damage>,
    /// Whether it came to its end; else it was stopped.
    pub complete: bool,
}

impl Store {
    /// Reads everything that the store refers to, past any cache, and checks it: superblocks, roots, their tables, the
    /// record chain as far as a recovery reads them, the maps and the images of the live state, of all snapshots, and of
    /// the older root. What several of these share is read once. `pace` is called after each read of at most 256 KiB; it
    /// may take its time, and may stop the scrub. Nothing waits for it: pages that are replaced meanwhile are looked
    /// up anew. [`Store::holders`] tells to which states a damage belongs.
    ///
    /// Not read is what none of these refers to: free room, what has been replaced, and the headers before maps and
    /// images, by which cleaning finds what lies behind them; damage there costs room at the most.
    pub fn scrub(&self, pace: &mut dyn FnMut(ScrubProgress) -> ControlFlow<()>) -> Scrubbed {
        let mut scrub = Scrub {
            store: self,
            total_bytes: self.stat().live_bytes,
            found: Scrubbed::default(),
            seen: Seen::default(),
            gathered: Vec::new(),
            pace,
        };
        let ended = scrub.all();
        let mut found = scrub.found;
        found.complete = ended.is_continue();
        let key = |damage: &Damage| (damage.offset, damage.page, damage.map_of);
        found.damages.sort_by_key(key);
        // Versions share blocks.
        found.damages.dedup_by_key(|damage| key(damage));
        found
    }
}

struct Scrub<'a> {
    store: &'a Store,
    total_bytes: u64,
    found: Scrubbed,
    seen: Seen,
    gathered: Vec<Image>,
    pace: &'a mut dyn FnMut(ScrubProgress) -> ControlFlow<()>,
}

/// An image that is to be read.
pub(crate) struct Image {
    pub(crate) id: PageId,
    pub(crate) found: Found,
}

impl Scrub<'_> {
    fn all(&mut self) -> ControlFlow<()> {
        self.header()?;
        let mut views = vec![self.store.view()];
        for snapshot in self.store.snapshots() {
            // One that has been dropped meanwhile needs no looking at.
            views.extend(self.store.view_snapshot(&snapshot.name));
        }
        for view in views {
            for container in view.containers() {
                self.container(&view, container)?;
            }
        }
        self.older_root()
    }

    fn pace(&mut self, blocks: usize) -> ControlFlow<()> {
        self.found.read_bytes += (blocks * BLOCK) as u64;
        (self.pace)(ScrubProgress {
            done_bytes: self.found.read_bytes,
            total_bytes: self.total_bytes.max(self.found.read_bytes),
            damages: self.found.damages.len(),
        })
    }

    /// Superblocks, roots, tables, the record chain: under the keeper's lock, so that none of it moves.
    fn header(&mut self) -> ControlFlow<()> {
        let keeper = self.store.keeper();
        if let Err(error) = self.store.check_header(&mut self.found.damages) {
            self.unreadable(None, error);
        }
        drop(keeper);
        self.pace(HEADER_BLOCKS as usize)
    }

    /// What only the older root's map refers to.
    fn older_root(&mut self) -> ControlFlow<()> {
        let mut seen = std::mem::take(&mut self.seen);
        let mut damages = self.found.damages.clone();
        let store = self.store;
        let ended = store.check_older_map(&mut seen, &mut damages, &mut |blocks| self.pace(blocks));
        self.found.damages = damages;
        ended
    }

    fn container(&mut self, view: &View<'_>, container: ContainerId) -> ControlFlow<()> {
        for attempt in 0.. {
            let (tree, changes, version) = view.map_of(container);
            let dropped = changes.iter().any(|changes| changes.dropped);
            let mut damages = Vec::new();
            if let Some(tree) = tree.filter(|_| !dropped) {
                // A copy of its own: what is in memory is not believed, and not kept.
                let fresh = tree.unloaded();
                let nodes = FromDisk(&self.store.disk);
                let mut visit = Visit {
                    scrub: self,
                    view,
                    tree: &tree,
                    damages,
                    ended: ControlFlow::Continue(()),
                };
                fresh.visit(&nodes, &mut visit);
                visit.ended?;
                damages = visit.damages;
            }
            let replaced = self.store.state().version != version;
            if !damages.is_empty() && replaced && attempt < ATTEMPTS {
                // It may have been written over because it is no longer in force.
                for image in self.gathered.drain(..) {
                    self.seen.forget_image(image.found.at);
                }
                continue;
            }
            self.found.damages.extend(damages);
            for changes in changes {
                for (&page, &at) in changes.pages.iter().filter(|(_, at)| !at.is_never()) {
                    let id = PageId { container, page: PageNo(page) };
                    self.image(view, id, Found { at, origins: Origins::default() })?;
                }
            }
            break;
        }
        self.read_gathered(view)
    }

    fn image(&mut self, view: &View<'_>, id: PageId, found: Found) -> ControlFlow<()> {
        // Versions share blocks.
        if !self.seen.image(found.at) {
            return ControlFlow::Continue(());
        }
        self.gathered.push(Image { id, found });
        if self.gathered.len() < GATHERED {
            return ControlFlow::Continue(());
        }
        self.read_gathered(view)
    }

    /// Reads the images gathered, those that lie side by side at once.
    fn read_gathered(&mut self, view: &View<'_>) -> ControlFlow<()> {
        let mut images = std::mem::take(&mut self.gathered);
        images.sort_unstable_by_key(|image| image.found.at.place);
        let mut bytes = AlignedBuf::zeroed(images.len().clamp(1, READ_BLOCKS) * BLOCK);
        let mut rest = &images[..];
        let mut ended = ControlFlow::Continue(());
        while let [first, ..] = rest
            && ended.is_continue()
        {
            let place = first.found.at.place;
            let alike = rest.iter().take(READ_BLOCKS).enumerate();
            let run = alike.take_while(|(i, image)| image.found.at.place == place.plus(*i as u64));
            let (run, others) = rest.split_at(run.count());
            rest = others;
            let into = &mut bytes.as_mut_slice()[..run.len() * BLOCK];
            let read = self.store.disk.read_from_disk(place.offset(), into);
            for (image, block) in run.iter().zip(into.chunks_mut(BLOCK)) {
                let Image { id, found: Found { at, origins } } = image;
                let check =
                    |block: &[u8]| self.store.disk.check(Entry::Image(*id), origins, *at, block);
                let sound = read.is_ok() && check(block).is_ok();
                if !sound
                    && !planted::is(Bug::ScrubLooksAway)
                    && let Err(error) = self.look_again(view, image, block)
                {
                    self.unreadable(Some(*id), error);
                }
            }
            self.found.images += run.len() as u64;
            ended = self.pace(run.len());
        }
        images.clear();
        self.gathered = images;
        ended
    }

    /// Whether an image that was not found whole is damaged, or has been moved or replaced meanwhile.
    fn look_again(
        &self,
        view: &View<'_>,
        image: &Image,
        block: &mut [u8],
    ) -> Result<(), ReadError> {
        let entry = Entry::Image(image.id);
        let disk = &self.store.disk;
        let mut found = image.found.clone();
        loop {
            let Found { at, origins } = &found;
            let read = disk.read_from_disk(at.place.offset(), block);
            let Err(error) = read.and_then(|()| disk.check(entry, origins, *at, block)) else {
                return Ok(());
            };
            let now = view.locate(image.id)?;
            if now == found {
                return Err(error);
            }
            if now.at.is_never() {
                return Ok(());
            }
            found = now;
        }
    }

    fn unreadable(&mut self, page: Option<PageId>, error: ReadError) {
        self.found.damages.push(Damage::of(page, error));
    }
}

/// Nodes as the disk has them.
pub(crate) struct FromDisk<'a>(pub(crate) &'a Disk);

impl Nodes for FromDisk<'_> {
    fn memory(&self) -> &MapMemory {
        self.0.memory()
    }

    fn load(&self, id: NodeId, origins: &Origins, at: Located) -> Result<Vec<u8>, ReadError> {
        let mut block = AlignedBuf::zeroed(BLOCK);
        self.0.read_from_disk(at.place.offset(), block.as_mut_slice())?;
        self.0.check(Entry::Node(id), origins, at, block.as_slice())?;
        Ok(block.as_slice().to_vec())
    }
}

struct Visit<'s, 'a, 'v> {
    scrub: &'s mut Scrub<'a>,
    view: &'s View<'v>,
    tree: &'s Arc<Tree>,
    damages: Vec<Damage>,
    ended: ControlFlow<()>,
}

impl Visitor for Visit<'_, '_, '_> {
    fn page(&mut self, page: u64, at: Located) {
        if self.ended.is_continue() {
            let id = PageId { container: self.tree.container(), page: PageNo(page) };
            let found = Found { at, origins: self.tree.origins().clone() };
            self.ended = self.scrub.image(self.view, id, found);
        }
    }

    fn node(&mut self, _: NodeId, at: Place) -> Option<u64> {
        if self.ended.is_break() || !self.scrub.seen.nodes.insert(at) {
            return Some(0);
        }
        self.ended = self.scrub.pace(1);
        None
    }

    fn lost(&mut self, damage: Damage) {
        // It may have been stored anew since the last root.
        if damage.page.is_none_or(|id| self.view.locate(id).is_err()) {
            self.damages.push(damage);
        }
    }

    fn unreadable(&mut self, _: NodeId, error: ReadError) {
        let damage = Damage::of(None, error);
        self.scrub.seen.nodes.remove(&Place(damage.offset / BLOCK as u64));
        self.damages.push(damage);
    }
}
