//! The site's own thread beside the fault loop: stabilises by time and amount, keeps the store in
//! order, and fills containers ahead where the system serves no faults of system calls. Read [`run`]
//! first.

use std::sync::atomic::Ordering;
use std::time::Duration;

use stead_memory::Reason;
use stead_model::{PAGE_SIZE, PageId, PageNo};
use stead_store::Stored;

use super::Shared;
use crate::container::Opened;

/// Pages read in one piece when filling ahead.
const FILL_PAGES: u64 = 64;

/// Runs until the site is closed.
pub(crate) fn run(shared: &Shared) {
    let mut fill_bytes_left = shared.options.fill_bytes_max;
    while !shared.stopping.load(Ordering::Acquire) {
        shared.rounds.tick(shared);
        shared.rounds.tend_search(shared);
        let mut more = maintain(shared);
        if shared.space.user_mode_only() {
            more |= fill(shared, &mut fill_bytes_left);
        }
        let time = if more { Duration::ZERO } else { shared.rounds.sleep_from(shared.now()) };
        shared.sleep(time);
    }
}

/// One bounded step of the store's own work. Whether there is more. A failure shows again in the next
/// stabilisation, which is where the program learns of it.
fn maintain(shared: &Shared) -> bool {
    shared.store.wants_maintenance() && shared.store.maintain().is_ok_and(|done| done.more)
}

/// Brings pages of one container into memory before they are touched. Whether there is more to do.
fn fill(shared: &Shared, bytes_left: &mut u64) -> bool {
    let Some(container) =
        shared.containers().into_iter().find(|c| !c.filled.load(Ordering::Relaxed))
    else {
        return false;
    };
    if let Ok(runs) = shared.view().stored_pages(container.id()) {
        let mut images = vec![0; FILL_PAGES as usize * PAGE_SIZE];
        for run in runs {
            let mut at = run.start;
            while at < run.end && *bytes_left > 0 && !shared.stopping.load(Ordering::Acquire) {
                let page_count = (run.end - at).min(FILL_PAGES);
                let into = &mut images[..page_count as usize * PAGE_SIZE];
                at += fill_run(shared, &container, at, into);
                *bytes_left = bytes_left.saturating_sub(page_count * PAGE_SIZE as u64);
            }
        }
    }
    container.filled.store(true, Ordering::Relaxed);
    true
}

/// Installs the pages from `at` on that can be read in one piece. How many pages that were.
fn fill_run(shared: &Shared, container: &Opened, at: u64, into: &mut [u8]) -> u64 {
    let first = PageId { container: container.id(), page: PageNo(at) };
    match shared.view().read_run(first, into) {
        Ok(run) => {
            if run.stored == Stored::Image
                && let Some(cluster) = container.place.cluster_of(first.page)
            {
                // What cannot be filled ahead is brought in by its first touch.
                let _ = cluster.install(first.page, &into[..run.pages * PAGE_SIZE], Reason::Ahead);
            }
            run.pages as u64
        }
        // Damage is reported to whoever touches the page.
        Err(_) => 1,
    }
}
