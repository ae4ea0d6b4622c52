//! What one stabilisation will store, gathered page by page in memory that O_DIRECT can take, so that an
//! image is copied once between the program's page and the disk. It knows no file. Read [`Batch`] first.

use std::collections::{BTreeSet, HashMap};
use std::convert::Infallible;
use std::fmt;
use std::sync::Arc;

use stead_model::{ContainerId, PAGE_SIZE, PageId, PageNo};

use crate::aligned::AlignedBuf;
use crate::format::Sealer;
use crate::medium::SharedPart;

/// Bytes of pieces that an emptied batch keeps.
const BYTES_KEPT: usize = 64 << 20;

/// Page images, zero pages and dropped containers that are to become stable together.
///
/// Made by `Store::batch`, filled at any pace from one thread, handed to `Store::commit`, and used again: its
/// buffers stay (up to 64 MiB).
pub struct Batch {
    sealer: Sealer,
    association: u32,
    /// Pages in one piece of the buffer, as many as a chunk of the log has: pieces are added as needed and never moved.
    piece_pages: usize,
    /// Shared with whoever writes those that have been given.
    pieces: Vec<Arc<AlignedBuf>>,
    /// So many pieces, the first ones, have been given to be written ahead: they are changed no more.
    given: usize,
    /// What each place in the pieces holds; `None` is a hole.
    slots: Vec<Option<Image>>,
    holes: Vec<usize>,
    /// The place of each page's newest image.
    index: HashMap<PageId, usize>,
    /// Pages that are all zero, none of them in the index.
    zeros: BTreeSet<PageId>,
    dropped: BTreeSet<ContainerId>,
}

#[derive(Clone, Copy)]
pub(crate) struct Image {
    pub(crate) id: PageId,
    pub(crate) checksum: u64,
}

impl Batch {
    pub(crate) fn new(sealer: Sealer, piece_pages: usize) -> Self {
        Batch {
            sealer,
            association: 0,
            piece_pages,
            pieces: Vec::new(),
            given: 0,
            slots: Vec::new(),
            holes: Vec::new(),
            index: HashMap::new(),
            zeros: BTreeSet::new(),
            dropped: BTreeSet::new(),
        }
    }

    /// Adds a page's image, replacing what the batch held of that page. `fill` must write all 4096 bytes:
    /// what it is given holds anything. An image that turns out to be all zero is kept as a zero page.
    ///
    /// # Panics
    /// If the page's number or its container's is beyond what the format has room for.
    pub fn push(&mut self, id: PageId, fill: impl FnOnce(&mut [u8])) {
        let filled = self.try_push(id, |bytes| {
            fill(bytes);
            Ok::<(), Infallible>(())
        });
        match filled {
            Ok(()) => {}
            Err(never) => match never {},
        }
    }

    /// As [`Batch::push`], with a `fill` that may fail.
    ///
    /// # Errors
    /// What `fill` said; the batch then holds nothing of that page, or what a stream has taken of it already.
    ///
    /// # Panics
    /// As [`Batch::push`].
    pub fn try_push<E>(
        &mut self,
        id: PageId,
        fill: impl FnOnce(&mut [u8]) -> Result<(), E>,
    ) -> Result<(), E> {
        check(id);
        let (slot, given) = match self.index.get(&id) {
            Some(&slot) if !self.is_given(slot) => (slot, None),
            Some(&given) => (self.take_slot(), Some(given)),
            None => (self.take_slot(), None),
        };
        let filled = fill(self.page_mut(slot));
        match filled {
            Ok(()) => self.settle_slot(id, slot),
            Err(_) => {
                if given.is_none() {
                    self.index.remove(&id);
                    self.zeros.remove(&id);
                }
                self.leave_slot(slot);
            }
        }
        filled
    }

    /// Adds the images of `count` neighbouring pages in as few calls of `fill` as possible: it gets the number of
    /// the first page that it must fill and the bytes of that page and those behind it, whole pages all.
    ///
    /// # Errors
    /// What `fill` said; the pages of that call are then not in the batch, those of earlier calls are.
    ///
    /// # Panics
    /// As [`Batch::push`].
    pub fn try_push_run<E>(
        &mut self,
        first: PageId,
        count: u64,
        mut fill: impl FnMut(PageNo, &mut [u8]) -> Result<(), E>,
    ) -> Result<(), E> {
        let container = first.container;
        let end = first.page.0 + count;
        let mut page = first.page.0;
        while page < end {
            let id = PageId { container, page: PageNo(page) };
            if page + 1 == end {
                return self.try_push(id, |bytes| fill(id.page, bytes));
            }
            let start = self.slots.len();
            let room = self.piece_pages - start % self.piece_pages;
            let stretch = (page..end)
                .take(room)
                .take_while(|&p| !self.contains(PageId { container, page: PageNo(p) }))
                .count();
            if stretch < 2 {
                self.try_push(id, |bytes| fill(id.page, bytes))?;
                page += 1;
                continue;
            }
            check(PageId { container, page: PageNo(page + stretch as u64 - 1) });
            self.add_pieces(start + stretch);
            fill(id.page, self.pages_mut(start, stretch))?;
            self.slots.resize(start + stretch, None);
            for i in 0..stretch {
                let id = PageId { container, page: PageNo(page + i as u64) };
                self.settle_slot(id, start + i);
            }
            page += stretch as u64;
        }
        Ok(())
    }

    /// Adds a page that is all zero, or was freed: its stored image is forgotten.
    ///
    /// # Panics
    /// As [`Batch::push`].
    pub fn zero(&mut self, id: PageId) {
        check(id);
        self.zeros.insert(id);
        if let Some(slot) = self.index.remove(&id) {
            self.leave_slot(slot);
        }
    }

    /// Forgets all stored pages of a container, and those of it that this batch holds. Pages of it pushed
    /// later belong to its new life.
    ///
    /// # Panics
    /// If its number is beyond what the format has room for.
    pub fn drop_container(&mut self, container: ContainerId) {
        assert!(container <= ContainerId::MAX, "container {container} cannot be stored");
        self.dropped.insert(container);
        let mut gone: Vec<PageId> =
            self.index.keys().copied().filter(|id| id.container == container).collect();
        // So that the same calls always make the same batch.
        gone.sort_unstable();
        for id in gone {
            if let Some(slot) = self.index.remove(&id) {
                self.leave_slot(slot);
            }
        }
        self.zeros.retain(|id| id.container != container);
    }

    /// Has the batch belong to an association: those who are stabilised together (catalogue B7). It stands in the log
    /// beside what the batch held; 0, as in a new batch, if there is only one.
    pub fn set_association(&mut self, association: u32) {
        self.association = association;
    }

    /// The association that the batch belongs to.
    #[must_use]
    pub fn association(&self) -> u32 {
        self.association
    }

    /// Images, zero pages and dropped containers in it.
    pub(crate) fn entries_most(&self) -> usize {
        self.index.len() + self.zeros.len() + self.dropped.len()
    }

    /// Whether it holds pages of this container.
    pub(crate) fn holds_any_of(&self, container: ContainerId) -> bool {
        self.index.keys().chain(&self.zeros).any(|id| id.container == container)
    }

    /// Whether the batch holds this page, as an image or as zero.
    #[must_use]
    pub fn contains(&self, id: PageId) -> bool {
        self.index.contains_key(&id) || self.zeros.contains(&id)
    }

    /// Whether committing the batch would change nothing.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.index.is_empty() && self.zeros.is_empty() && self.dropped.is_empty()
    }

    /// Images in the batch; zero pages are not counted.
    #[must_use]
    pub fn pages(&self) -> usize {
        self.slots.len() - self.holes.len()
    }

    /// Forgets everything but keeps the memory, up to 64 MiB.
    pub fn clear(&mut self) {
        self.pieces.truncate(BYTES_KEPT / (self.piece_pages * PAGE_SIZE));
        self.given = 0;
        self.slots.clear();
        self.holes.clear();
        self.index.clear();
        self.zeros.clear();
        self.dropped.clear();
    }

    /// Closes the holes, and tells which image lies in which place; of those that have been given nothing.
    pub(crate) fn settle(&mut self) -> Vec<Image> {
        while let Some(hole) = self.holes.pop() {
            self.close(hole);
        }
        let first = self.given_images();
        self.slots[first..].iter().map(|slot| slot.expect("no holes are left")).collect()
    }

    /// Moves the last image into a hole, unless that is behind it.
    fn close(&mut self, hole: usize) {
        while let Some(None) = self.slots.last() {
            self.slots.pop();
        }
        if hole >= self.slots.len() {
            return;
        }
        let last = self.slots.len() - 1;
        let image = self.slots.pop().flatten().expect("the last slot is no hole");
        self.copy_page(last, hole);
        self.slots[hole] = Some(image);
        self.index.insert(image.id, hole);
    }

    /// Whether there may be one to give.
    pub(crate) fn has_full_piece(&self) -> bool {
        // What comes behind a container that is dropped must not be written before it.
        self.slots.len() >= (self.given + 1) * self.piece_pages && self.dropped.is_empty()
    }

    /// Gives the next full piece away to be written ahead, and what lies in it. What the batch takes of these pages from
    /// now on comes behind that.
    pub(crate) fn give(&mut self) -> Option<Given> {
        if !self.has_full_piece() {
            return None;
        }
        let end = (self.given + 1) * self.piece_pages;
        while let Some(at) = self.holes.iter().position(|&hole| hole < end) {
            if self.slots[end..].iter().all(Option::is_none) {
                return None;
            }
            let hole = self.holes.swap_remove(at);
            self.close(hole);
            self.holes.retain(|&hole| hole < self.slots.len());
        }
        let first = self.given_images();
        let images = self.slots[first..end].iter().map(|slot| slot.expect("no holes are left"));
        let images = images.collect();
        let bytes = Arc::clone(&self.pieces[self.given]);
        self.given += 1;
        Some(Given { images, bytes })
    }

    /// The piece that was given last has not been.
    pub(crate) fn take_last_back(&mut self) {
        self.given -= 1;
    }

    /// What has been given counts as little as if it had not been; nobody may hold it any more.
    pub(crate) fn take_back(&mut self) {
        for slot in 0..self.given_images() {
            let image = self.slots[slot].expect("what has been given is full");
            if self.index.get(&image.id) != Some(&slot) {
                self.slots[slot] = None;
                self.holes.push(slot);
            }
        }
        self.given = 0;
    }

    /// How many images have been given.
    pub(crate) fn given_images(&self) -> usize {
        self.given * self.piece_pages
    }

    /// The pages of which an image has been given.
    pub(crate) fn given_pages(&self) -> impl Iterator<Item = PageId> {
        self.slots[..self.given_images()].iter().flatten().map(|image| image.id)
    }

    fn is_given(&self, slot: usize) -> bool {
        slot < self.given_images()
    }

    pub(crate) fn dropped(&self) -> impl Iterator<Item = ContainerId> {
        self.dropped.iter().copied()
    }

    /// The zero pages, in order.
    pub(crate) fn zeros(&self) -> &BTreeSet<PageId> {
        &self.zeros
    }

    /// The bytes of `count` images from place `first` on, in as few parts as they lie in.
    pub(crate) fn parts(&self, first: usize, count: usize) -> impl Iterator<Item = SharedPart> {
        let end = first + count;
        let mut at = first;
        std::iter::from_fn(move || {
            (at < end).then(|| {
                let start = at % self.piece_pages;
                let pages = (self.piece_pages - start).min(end - at);
                let piece = Arc::clone(&self.pieces[at / self.piece_pages]);
                at += pages;
                SharedPart::new(piece, start * PAGE_SIZE..(start + pages) * PAGE_SIZE)
            })
        })
    }

    fn take_slot(&mut self) -> usize {
        if let Some(hole) = self.holes.pop() {
            return hole;
        }
        let slot = self.slots.len();
        self.add_pieces(slot + 1);
        self.slots.push(None);
        slot
    }

    fn add_pieces(&mut self, slots: usize) {
        while self.pieces.len() * self.piece_pages < slots {
            self.pieces.push(Arc::new(AlignedBuf::zeroed(self.piece_pages * PAGE_SIZE)));
        }
    }

    fn leave_slot(&mut self, slot: usize) {
        if self.is_given(slot) {
            return;
        }
        self.slots[slot] = None;
        self.holes.push(slot);
    }

    /// The slot has been filled for this page: enter it, or leave it if it is all zero.
    fn settle_slot(&mut self, id: PageId, slot: usize) {
        let bytes = self.page(slot);
        if is_zero(bytes) {
            self.leave_slot(slot);
            self.index.remove(&id);
            self.zeros.insert(id);
            return;
        }
        // Sealed here, while the image is in the processor's cache.
        let checksum = self.sealer.page(id, bytes);
        self.slots[slot] = Some(Image { id, checksum });
        self.index.insert(id, slot);
        self.zeros.remove(&id);
    }

    fn page(&self, slot: usize) -> &[u8] {
        let at = slot % self.piece_pages * PAGE_SIZE;
        &self.pieces[slot / self.piece_pages].as_slice()[at..at + PAGE_SIZE]
    }

    fn page_mut(&mut self, slot: usize) -> &mut [u8] {
        self.pages_mut(slot, 1)
    }

    /// Pages of one piece.
    fn pages_mut(&mut self, slot: usize, count: usize) -> &mut [u8] {
        let at = slot % self.piece_pages * PAGE_SIZE;
        let piece = Arc::get_mut(&mut self.pieces[slot / self.piece_pages]);
        let piece = piece.expect("what has been given is not changed");
        &mut piece.as_mut_slice()[at..at + count * PAGE_SIZE]
    }

    fn copy_page(&mut self, from: usize, to: usize) {
        let mut page = [0; PAGE_SIZE];
        page.copy_from_slice(self.page(from));
        self.page_mut(to).copy_from_slice(&page);
    }
}

/// Images that are to be written ahead of the others.
pub(crate) struct Given {
    pub(crate) images: Vec<Image>,
    /// One after the other.
    pub(crate) bytes: Arc<AlignedBuf>,
}

impl fmt::Debug for Batch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Batch")
            .field("pages", &self.pages())
            .field("held", &self.index.len())
            .field("dropped", &self.dropped)
            .finish_non_exhaustive()
    }
}

fn check(id: PageId) {
    assert!(id.container <= ContainerId::MAX && id.page.0 < PageNo::LIMIT, "{id} cannot be stored");
}

pub(crate) fn is_zero(bytes: &[u8]) -> bool {
    bytes.chunks_exact(16).all(|chunk| chunk == [0; 16])
}

#[cfg(test)]
mod tests {
    use super::*;

    const PIECE_PAGES: usize = 248;

    fn id(container: u32, page: u64) -> PageId {
        PageId { container: ContainerId(container), page: PageNo(page) }
    }

    /// What a batch holds, found the way a commit finds it.
    fn contents(batch: &mut Batch) -> Vec<(PageId, u8)> {
        let images = batch.settle();
        let mut bytes = Vec::new();
        for part in batch.parts(0, images.len()) {
            bytes.extend_from_slice(part.bytes());
        }
        let mut found: Vec<(PageId, u8)> = batch.zeros().iter().map(|&id| (id, 0)).collect();
        for (image, page) in images.iter().zip(bytes.chunks(PAGE_SIZE)) {
            assert!(page.iter().all(|&b| b == page[0]));
            assert_eq!(image.checksum, batch.sealer.page(image.id, page));
            found.push((image.id, page[0]));
        }
        assert_eq!(images.len(), batch.pages());
        found.sort_unstable();
        found
    }

    #[test]
    fn later_pushes_replace_earlier_ones() {
        let mut batch = Batch::new(Sealer::new(1), PIECE_PAGES);
        assert!(batch.is_empty());
        for value in [1, 2] {
            batch.push(id(1, 5), |p| p.fill(value));
            batch.push(id(1, 6), |p| p.fill(3));
        }
        batch.push(id(1, 7), |p| p.fill(0));
        batch.push(id(2, 7), |p| p.fill(9));
        batch.zero(id(1, 6));
        assert!(batch.contains(id(1, 7)) && !batch.contains(id(1, 8)));
        assert_eq!(batch.pages(), 2);
        let want = vec![(id(1, 5), 2), (id(1, 6), 0), (id(1, 7), 0), (id(2, 7), 9)];
        assert_eq!(contents(&mut batch), want);
        batch.push(id(1, 6), |p| p.fill(4));
        batch.drop_container(ContainerId(2));
        batch.push(id(2, 1), |p| p.fill(8));
        let want = vec![(id(1, 5), 2), (id(1, 6), 4), (id(1, 7), 0), (id(2, 1), 8)];
        assert_eq!(contents(&mut batch), want);
        assert_eq!(batch.dropped().collect::<Vec<_>>(), [ContainerId(2)]);
        batch.clear();
        assert!(batch.is_empty());
        assert_eq!(contents(&mut batch), []);
    }

    #[test]
    fn a_failed_fill_leaves_nothing_behind() {
        let mut batch = Batch::new(Sealer::new(1), PIECE_PAGES);
        batch.push(id(1, 1), |p| p.fill(1));
        batch.push(id(1, 2), |p| p.fill(2));
        assert_eq!(batch.try_push(id(1, 1), |_| Err("gone")), Err("gone"));
        assert_eq!(batch.try_push(id(1, 9), |_| Err("gone")), Err("gone"));
        let fail = batch.try_push_run(id(1, 20), 5, |_, _| Err("gone"));
        assert_eq!(fail, Err("gone"));
        assert_eq!(contents(&mut batch), [(id(1, 2), 2)]);
    }

    #[test]
    fn runs_are_filled_in_few_calls() {
        let mut batch = Batch::new(Sealer::new(1), PIECE_PAGES);
        batch.push(id(1, 300), |p| p.fill(77));
        let mut calls = 0;
        batch
            .try_push_run(id(1, 0), 1000, |first, bytes| {
                calls += 1;
                for (i, page) in bytes.chunks_mut(PAGE_SIZE).enumerate() {
                    page.fill(((first.0 + i as u64) % 5) as u8);
                }
                Ok::<(), ()>(())
            })
            .unwrap();
        assert!(calls <= 7, "{calls} calls");
        let want: Vec<_> = (0..1000).map(|p| (id(1, p), (p % 5) as u8)).collect();
        assert_eq!(contents(&mut batch), want);
    }

    #[test]
    fn random_use_agrees_with_a_map() {
        let mut rng = fastrand::Rng::new();
        let mut batch = Batch::new(Sealer::new(1), PIECE_PAGES);
        let mut want = std::collections::BTreeMap::new();
        for _ in 0..3000 {
            let at = id(rng.u32(0..2), rng.u64(0..600));
            match rng.u32(0..100) {
                0..70 => {
                    let value = rng.u8(0..4);
                    batch.push(at, |p| p.fill(value));
                    want.insert(at, value);
                }
                70..90 => {
                    batch.zero(at);
                    want.insert(at, 0);
                }
                90..99 => {
                    let count = rng.u64(1..20);
                    let value = rng.u8(0..4);
                    let filled = batch.try_push_run(at, count, |_, bytes| {
                        bytes.fill(value);
                        Ok::<(), ()>(())
                    });
                    filled.unwrap();
                    for i in 0..count {
                        want.insert(id(at.container.0, at.page.0 + i), value);
                    }
                }
                _ => {
                    batch.drop_container(at.container);
                    want.retain(|id, _| id.container != at.container);
                }
            }
            if rng.u32(0..50) == 0 {
                let want: Vec<_> = want.iter().map(|(&id, &value)| (id, value)).collect();
                assert_eq!(contents(&mut batch), want);
            }
        }
    }
}
