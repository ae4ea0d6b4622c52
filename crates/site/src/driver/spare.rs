//! The system container is stored twice: each stabilisation stores its pages as pages of [`ContainerId::SPARE`] as
//! well, so that a damaged block of the one, or of its map, costs no store its directory of containers (B12). The
//! spare is never mapped and has no name. Nothing is compared: what has its checksum is right. Read [`read_run`] first,
//! then [`mend`].

use std::convert::Infallible;

use stead_model::{ContainerId, PAGE_SIZE, PageId, PageNo, PageRange};
use stead_store::{Batch, ReadError, Run, Stored, View};

use super::Shared;
use super::rounds::copy_range;
use crate::container::Place;
use crate::join::copy_mapped;
use crate::planted::{self, Bug};

/// Pages read in one piece.
const PIECE_PAGES: usize = 64;

/// Whether this is the container that is stored twice.
fn has_one(container: ContainerId) -> bool {
    container == ContainerId::SYSTEM && !planted::is(Bug::NoSpare)
}

fn spare_of(id: PageId) -> PageId {
    PageId { container: ContainerId::SPARE, ..id }
}

/// As [`View::read_run`]; where that fails for a container that is stored twice, its first page from wherever it can be
/// read.
pub(crate) fn read_run(view: &View<'_>, first: PageId, into: &mut [u8]) -> Result<Run, ReadError> {
    let read = view.read_run(first, into);
    if read.is_ok() || !has_one(first.container) {
        return read;
    }
    let page = &mut into[..PAGE_SIZE];
    view.read_run(first, page).or_else(|error| match view.read_run(spare_of(first), page) {
        Ok(run) if run.stored == Stored::Image => Ok(run),
        // Stores of earlier versions have no spare.
        _ => Err(error),
    })
}

/// As [`View::stored_pages`]; for a container that is stored twice those of the spare, where part of its own map is lost:
/// that then says of too many pages that they may be stored, or nothing.
pub(crate) fn stored_pages(
    view: &View<'_>,
    container: ContainerId,
) -> Result<Vec<PageRange>, ReadError> {
    let own = view.stored_pages(container);
    if !has_one(container) {
        return own;
    }
    let count = |pages: &[PageRange]| pages.iter().map(|range| range.page_count()).sum::<u64>();
    match (own, view.stored_pages(ContainerId::SPARE)) {
        (Ok(own), Ok(spare)) if spare.is_empty() || count(&own) <= count(&spare) => Ok(own),
        (_, Ok(spare)) if !spare.is_empty() => Ok(spare),
        (own, _) => own,
    }
}

/// As [`Batch::zero`]; for a page of a container that is stored twice, twice.
pub(crate) fn zero(batch: &mut Batch, page: PageId) {
    batch.zero(page);
    if has_one(page.container) {
        batch.zero(spare_of(page));
    }
}

/// Adds pages as memory has them; those of a container that is stored twice, twice.
pub(crate) fn push_run(batch: &mut Batch, place: &Place, first: PageId, count: u64) {
    let spare = has_one(first.container).then(|| spare_of(first));
    for first in [Some(first), spare].into_iter().flatten() {
        let copied = batch.try_push_run(first, count, |page, into| {
            copy_mapped(place, page, into);
            Ok::<(), Infallible>(())
        });
        match copied {
            Ok(()) => {}
            Err(never) => match never {},
        }
    }
}

/// Has a batch store the system container and its spare anew if a page of either cannot be read, or if there is no spare
/// yet. The caller is between two rounds, so that the store has of both the same.
pub(crate) fn mend(shared: &Shared, batch: &mut Batch) {
    let system = shared.opened().get(&ContainerId::SYSTEM).cloned();
    let Some(system) = system.filter(|system| has_one(system.id())) else { return };
    if is_sound(&shared.store.view()) {
        return;
    }
    // With whatever of their maps is lost.
    batch.drop_container(ContainerId::SYSTEM);
    batch.drop_container(ContainerId::SPARE);
    let mut resident = Vec::new();
    for cluster in system.place.clusters() {
        cluster.resident_ranges(&mut resident);
    }
    for range in resident {
        copy_range(batch, &system, range, &mut None);
    }
}

/// Whether the system container and its spare have the same pages, all of which can be read.
fn is_sound(view: &View<'_>) -> bool {
    let pages = |container| view.stored_pages(container).ok();
    let Some(own) = pages(ContainerId::SYSTEM) else { return false };
    if pages(ContainerId::SPARE).is_none_or(|spare| spare != own) {
        return false;
    }
    let mut images = vec![0; PIECE_PAGES * PAGE_SIZE];
    for container in [ContainerId::SYSTEM, ContainerId::SPARE] {
        for range in &own {
            let mut at = range.start;
            while at < range.end {
                let first = PageId { container, page: PageNo(at) };
                let pages = (range.end - at).min(PIECE_PAGES as u64) as usize;
                let Ok(run) = view.read_run(first, &mut images[..pages * PAGE_SIZE]) else {
                    return false;
                };
                at += run.pages as u64;
            }
        }
    }
    true
}
