//! Reading pages, each checked against its checksum. Reading takes no lock while the disk is at work: if what it
//! finds has been moved or written over meanwhile, it looks again. Read [`View::read_page`] first.

use stead_model::{PAGE_SIZE, PageId, PageNo};

use crate::disk::BlockRead;
use crate::error::ReadError;
use crate::format::{Entry, Located};
use crate::medium::ReadRequest;
use crate::tree::Origins;
use crate::view::View;

/// Whether a page has an image.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Stored {
    /// It has.
    Image,
    /// It has none: the page is all zero.
    Never,
}

/// Neighbouring pages that are alike.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Run {
    /// Whether they have images.
    pub stored: Stored,
    /// How many, at least one.
    pub pages: usize,
}

/// Where a page lies, and as whose it may be sealed.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(crate) struct Found {
    pub(crate) at: Located,
    pub(crate) origins: Origins,
}

impl View<'_> {
    /// Reads a page as it is in this state; zeros if it was never stored.
    ///
    /// # Errors
    /// If the image, or the map on the way to it, is damaged or cannot be read.
    pub fn read_page(&self, id: PageId, into: &mut [u8; PAGE_SIZE]) -> Result<Stored, ReadError> {
        let mut found = self.locate(id)?;
        loop {
            let Found { at, origins } = &found;
            if at.is_never() {
                into.fill(0);
                return Ok(Stored::Never);
            }
            let read = self.store.disk.read_block(Entry::Image(id), origins, *at, into);
            let Err(error) = read else { return Ok(Stored::Image) };
            let now = self.locate(id)?;
            if now == found {
                return Err(error);
            }
            found = now;
        }
    }

    /// Reads neighbouring pages from `first` on, as many as are alike and fit into `into`: either images, wherever they
    /// lie in the file, those that lie side by side with one read and all of them at the same time where the disk
    /// can; or pages that were never stored, for which `into` is left as it was. Pages behind the run are for
    /// the next call.
    ///
    /// # Errors
    /// As for [`View::read_page`], for the first page; a page behind it that has something wrong ends the run.
    ///
    /// # Panics
    /// If `into` is not one or more whole pages.
    pub fn read_run(&self, first: PageId, into: &mut [u8]) -> Result<Run, ReadError> {
        assert!(
            !into.is_empty() && into.len().is_multiple_of(PAGE_SIZE),
            "a run is read into whole pages"
        );
        let id_of = |i: usize| PageId { page: PageNo(first.page.0 + i as u64), ..first };
        let most = (into.len() / PAGE_SIZE).min((PageNo::LIMIT - first.page.0) as usize);
        let mut found: Vec<Found> = vec![self.locate(first)?];
        let never = found[0].at.is_never();
        while found.len() < most {
            match self.locate(id_of(found.len())) {
                Ok(next) if next.at.is_never() == never => found.push(next),
                _ => break,
            }
        }
        if never {
            return Ok(Run { stored: Stored::Never, pages: found.len() });
        }
        let side_by_side = |a: &Found, b: &Found| a.at.place.plus(1) == b.at.place;
        let mut rest = &mut *into;
        let mut reads = Vec::new();
        for piece in found.chunk_by(side_by_side) {
            let (these, others) = rest.split_at_mut(piece.len() * PAGE_SIZE);
            reads.push(ReadRequest::new(piece[0].at.place.offset(), these));
            rest = others;
        }
        self.store.disk.read_many(&mut reads);
        let pages = reads.iter().flat_map(|read| {
            let outcome = &read.outcome;
            read.into.chunks(PAGE_SIZE).map(move |page| (page, outcome))
        });
        let good = found
            .iter()
            .zip(pages)
            .enumerate()
            .take_while(|(i, (Found { at, origins }, (page, outcome)))| {
                let entry = Entry::Image(id_of(*i));
                outcome.is_ok() && self.store.disk.check(entry, origins, *at, page).is_ok()
            })
            .count();
        if good > 0 {
            return Ok(Run { stored: Stored::Image, pages: good });
        }
        let page = into.first_chunk_mut().expect("there is a page at the least");
        let stored = self.read_page(first, page)?;
        Ok(Run { stored, pages: 1 })
    }

    /// Reads pages that may lie anywhere in the file, at the same time where the disk can: each as
    /// [`View::read_page`] would, into the page of `into` that stands at its place in `ids`.
    ///
    /// # Panics
    /// If `into` has not one page for each of `ids`.
    pub fn read_pages(&self, ids: &[PageId], into: &mut [u8]) -> Vec<Result<Stored, ReadError>> {
        assert_eq!(into.len(), ids.len() * PAGE_SIZE, "each page is read into a page");
        let mut stored = Vec::with_capacity(ids.len());
        let mut reads = Vec::with_capacity(ids.len());
        for (&id, page) in ids.iter().zip(into.chunks_mut(PAGE_SIZE)) {
            match self.locate(id) {
                Ok(Found { at, .. }) if at.is_never() => {
                    page.fill(0);
                    stored.push(Ok(Stored::Never));
                }
                Ok(Found { at, origins }) => {
                    stored.push(Ok(Stored::Image));
                    let entry = Entry::Image(id);
                    reads.push(BlockRead { entry, origins, at, into: page, outcome: Ok(()) });
                }
                Err(error) => stored.push(Err(error)),
            }
        }
        self.store.disk.read_blocks(&mut reads);
        let images = stored.iter_mut().filter(|stored| matches!(stored, Ok(Stored::Image)));
        for (stored, read) in images.zip(reads) {
            let Entry::Image(id) = read.entry else { unreachable!("only images are read here") };
            if read.outcome.is_err() {
                // It may have been moved meanwhile: that is looked into page by page.
                let page = read.into.first_chunk_mut().expect("a page was read into");
                *stored = self.read_page(id, page);
            }
        }
        stored
    }

    /// Where a page lies now.
    pub(crate) fn locate(&self, id: PageId) -> Result<Found, ReadError> {
        self.store.forget_idle();
        loop {
            let (tree, version) = {
                let state = self.store.state();
                if self.is_live()
                    && let Some(at) = state.find_in_layers(id)
                {
                    // What has been stored since the last root is sealed as this container's.
                    return Ok(Found { at, origins: Origins::default() });
                }
                (self.trees(&state).get(&id.container).cloned(), state.version)
            };
            let Some(tree) = tree else { return Ok(Found::default()) };
            match tree.find(id.page.0, &self.store.disk) {
                // A map that is no longer in force may have been written over meanwhile.
                Err(_) if self.store.state().version != version => {}
                found => return found.map(|at| Found { at, origins: tree.origins().clone() }),
            }
        }
    }
}
