//! Damage as its user meets it (B12): named by container, page, address and what is on the page; found ahead of a
//! touch by bringing pages into memory. Read [`bring`] first, then [`name`].

use stead_heap::{Damaged, PageGuide, PageKind, PageUse};
use stead_memory::Reason;
use stead_model::{Address, ContainerId, PAGE_SIZE, PageId, PageNo, PageRange};
use stead_store::{ReadError, Stored};

use super::Shared;
use crate::container::Place;
use crate::scrub::SnapshotNames;

/// Pages read in one piece.
const PIECE_PAGES: u64 = 64;

/// Longer ranges are looked up in the map first, so that addresses with nothing behind them cost nothing.
const LONG_PAGES: u64 = 4096;

/// Brings the pages of a range into memory that are not there, so that touching them cannot fail. Pages that
/// were never stored, or are free, are left to their first touch, which cannot fail either.
pub(crate) fn bring(shared: &Shared, place: &Place, range: PageRange) -> Result<(), Damaged> {
    let damaged = |page, error: &ReadError| {
        Err(name(shared, place.container, &place.name, place.reservation.base(), page, error))
    };
    let mut runs = vec![range];
    if range.page_count() > LONG_PAGES {
        runs = match shared.view().stored_pages(place.container) {
            Ok(runs) => runs,
            Err(error) => return damaged(PageNo(range.start), &error),
        };
    }
    let mut images = vec![0; range.page_count().min(PIECE_PAGES) as usize * PAGE_SIZE];
    for run in runs {
        let (mut at, end) = (run.start.max(range.start), run.end.min(range.end));
        while at < end {
            let first = PageId { container: place.container, page: PageNo(at) };
            let Some(cluster) = place.cluster_of(first.page) else {
                // Addresses that no cluster has yet: nothing is stored there.
                at = Place::window_bounds(first.page).end;
                continue;
            };
            if cluster.is_resident(first.page) {
                at += 1;
                continue;
            }
            let in_window = end.min(Place::window_bounds(first.page).end);
            let most = (in_window - at).min(PIECE_PAGES) as usize;
            let into = &mut images[..most * PAGE_SIZE];
            let found = match shared.view().read_run(first, into) {
                Ok(found) => found,
                Err(_) if was_free(shared, first) => {
                    at += 1;
                    continue;
                }
                Err(error) => return damaged(first.page, &error),
            };
            if found.stored == Stored::Image {
                // Where memory is short, the bytes are sound all the same, and their touch says what is short.
                let _ =
                    cluster.install(first.page, &into[..found.pages * PAGE_SIZE], Reason::Ahead);
            }
            at += found.pages as u64;
        }
    }
    Ok(())
}

/// Says what `error` means for a page of a container.
pub(crate) fn name(
    shared: &Shared,
    container: ContainerId,
    name: &str,
    base: Address,
    page: PageNo,
    error: &ReadError,
) -> Damaged {
    Damaged {
        container: name.to_owned(),
        page,
        address: page.address(base),
        holds: use_of(shared, container, page),
        why: why(shared, error),
    }
}

fn why(shared: &Shared, error: &ReadError) -> String {
    let ReadError::Damaged(damage) = error else { return error.to_string() };
    let how = damage.how();
    let Some(shown) = shared.snapshot() else { return how };
    let holders = shared.store.holders(damage);
    let names = holders.snapshot_names();
    if !holders.only_snapshots() {
        return format!("{how}, in snapshot {shown:?} and in the live state");
    }
    let names = SnapshotNames(&names);
    format!(
        "{how}, in {names}; the live state does not have it: drop what is damaged to be rid of it"
    )
}

/// Whether a page that is not in memory was free when the store was last stable: then its bytes mean nothing, and
/// whoever takes it now may have zeros.
pub(crate) fn was_free(shared: &Shared, id: PageId) -> bool {
    let mut source = |page: PageNo, into: &mut [u8; PAGE_SIZE]| {
        shared.view().read_page(PageId { page, ..id }, into).is_ok()
    };
    PageGuide::default().use_of(id.page, &mut source).kind == PageKind::Free
}

/// What is on a page, as memory has it where it is in memory, else as the store has it. Touches neither the page
/// nor any other.
fn use_of(shared: &Shared, container: ContainerId, page: PageNo) -> PageUse {
    let mut source = source(shared, container);
    PageGuide::read(&mut source).use_of(page, &mut source)
}

/// The pages of a container, as memory has them where they are in memory, else as the store has them.
pub(crate) fn source(
    shared: &Shared,
    container: ContainerId,
) -> impl FnMut(PageNo, &mut [u8; PAGE_SIZE]) -> bool {
    move |page, into| {
        if let Some(cluster) = shared.table.cluster_at(container, page)
            && cluster.is_resident(page)
        {
            return cluster.read_frames(page, into).is_ok();
        }
        shared.view().read_page(PageId { container, page }, into).is_ok()
    }
}
