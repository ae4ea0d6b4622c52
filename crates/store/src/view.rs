//! A state of the store as something to read: the live one, which moves on with stabilisations. The reading
//! itself is in `read`. Read [`View`] first.

use std::collections::{BTreeMap, BTreeSet};

use stead_model::{ContainerId, PAGE_SIZE, PageId, PageRange};

use crate::error::ReadError;
use crate::format::{Located, NodeId, Place};
use crate::read::{Run, Stored};
use crate::store::Store;
use crate::tree::Visitor;

/// One state of a store, for reading (catalogue B11).
#[derive(Clone, Debug)]
pub struct View<'a> {
    pub(crate) store: &'a Store,
}

impl Store {
    /// The live state: what the last stabilisation left. It shows each new one as soon as that is acknowledged.
    #[must_use]
    pub fn view(&self) -> View<'_> {
        View { store: self }
    }

    /// [`View::read_page`] of the live state.
    ///
    /// # Errors
    /// As for [`View::read_page`].
    pub fn read_page(&self, id: PageId, into: &mut [u8; PAGE_SIZE]) -> Result<Stored, ReadError> {
        self.view().read_page(id, into)
    }

    /// [`View::read_run`] of the live state.
    ///
    /// # Errors
    /// As for [`View::read_run`].
    ///
    /// # Panics
    /// As [`View::read_run`].
    pub fn read_run(&self, first: PageId, into: &mut [u8]) -> Result<Run, ReadError> {
        self.view().read_run(first, into)
    }

    /// [`View::read_pages`] of the live state.
    ///
    /// # Panics
    /// As [`View::read_pages`].
    pub fn read_pages(&self, ids: &[PageId], into: &mut [u8]) -> Vec<Result<Stored, ReadError>> {
        self.view().read_pages(ids, into)
    }

    /// [`View::containers`] of the live state.
    #[must_use]
    pub fn containers(&self) -> Vec<ContainerId> {
        self.view().containers()
    }

    /// [`View::stored_pages`] of the live state.
    ///
    /// # Errors
    /// As for [`View::stored_pages`].
    pub fn stored_pages(&self, container: ContainerId) -> Result<Vec<PageRange>, ReadError> {
        self.view().stored_pages(container)
    }
}

impl View<'_> {
    /// The containers of which something may be stored, in order.
    #[must_use]
    pub fn containers(&self) -> Vec<ContainerId> {
        let state = self.store.state();
        let mut stored: BTreeMap<ContainerId, bool> =
            state.trees.keys().map(|&container| (container, true)).collect();
        for layer in state.frozen.as_deref().into_iter().chain([&state.active]) {
            for (container, changes) in layer.containers() {
                let below = !changes.dropped && stored.contains_key(&container);
                let here = changes.pages.values().any(|at| !at.is_never());
                stored.insert(container, below || here);
            }
        }
        stored.into_iter().filter(|&(_, some)| some).map(|(container, _)| container).collect()
    }

    /// The pages of a container that have images, in order.
    ///
    /// # Errors
    /// If the container's map is damaged or cannot be read.
    pub fn stored_pages(&self, container: ContainerId) -> Result<Vec<PageRange>, ReadError> {
        loop {
            let (tree, layers, version) = {
                let state = self.store.state();
                let layers: Vec<_> = state
                    .frozen
                    .as_deref()
                    .into_iter()
                    .chain([&state.active])
                    .filter_map(|layer| layer.changes(container).cloned())
                    .collect();
                (state.trees.get(&container).cloned(), layers, state.version)
            };
            let mut pages = Pages::default();
            if let Some(tree) = tree
                && !layers.iter().any(|changes| changes.dropped)
            {
                tree.visit(&self.store.disk, &mut pages);
            }
            match pages.unreadable {
                Some(_) if self.store.state().version != version => continue,
                Some(error) => return Err(error),
                None => {}
            }
            let mut stored: BTreeSet<u64> = pages.stored.into_iter().collect();
            for changes in layers {
                if changes.dropped {
                    stored.clear();
                }
                for (page, at) in changes.pages {
                    if at.is_never() {
                        stored.remove(&page);
                    } else {
                        stored.insert(page);
                    }
                }
            }
            return Ok(ranges(stored));
        }
    }
}

#[derive(Default)]
struct Pages {
    stored: Vec<u64>,
    unreadable: Option<ReadError>,
}

impl Visitor for Pages {
    fn page(&mut self, page: u64, _: Located) {
        self.stored.push(page);
    }

    fn node(&mut self, _: NodeId, _: Place) {}

    fn unreadable(&mut self, _: NodeId, error: ReadError) {
        self.unreadable = Some(error);
    }
}

fn ranges(pages: impl IntoIterator<Item = u64>) -> Vec<PageRange> {
    let mut ranges: Vec<PageRange> = Vec::new();
    for page in pages {
        match ranges.last_mut() {
            Some(last) if last.end == page => last.end += 1,
            _ => ranges.push(PageRange::new(page, page + 1)),
        }
    }
    ranges
}
