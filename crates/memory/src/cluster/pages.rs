//! What a cluster knows of its pages, all of it guarded by the cluster's lock, and how a range of pages
//! falls into parts that adjoin in addresses and frames. System calls are absent. Read [`Pages`] first.

use std::collections::BTreeSet;

use stead_model::{PAGE_SIZE, PAGES_PER_WINDOW, PageNo, PageRange, WINDOW_SIZE};

use crate::residency::Bitmap;
use crate::sys::WrittenRun;

/// The state of a cluster's pages.
pub(super) struct Pages {
    /// The container's window that lies at each window of the frames.
    pub(super) windows: Vec<u32>,
    /// For each window of the frames, the pages that are in memory. In a cluster of mode `Resident` the
    /// kernel adds pages too, which are not counted here.
    pub(super) resident: Vec<Bitmap>,
    /// For each window of the frames, pages that the log may name although they were not written: they were installed
    /// unwritten, for somebody who read them perhaps, or protected without the log being asked.
    pub(super) unsure: Vec<Bitmap>,
    /// Pages that were written otherwise than through the mapping, or could not be made stable.
    pub(super) marked: BTreeSet<u64>,
    /// A scan failed half-way: what it protected is no longer known to be written, so every page counts
    /// as written until a whole scan has protected them all. Counts such failures.
    pub(super) distrusted: u64,
    pub(super) runs: Vec<WrittenRun>,
    /// The log may be gone by for what was written since a whole scan of this epoch.
    pub(super) scanned_epoch: u64,
    /// Where the sweep goes on.
    pub(super) sweep_at: u64,
}

/// Part of a range that is contiguous in addresses and frames.
#[derive(Clone, Copy)]
pub(super) struct Piece {
    /// The window of the frames.
    pub(super) slot: usize,
    /// The container's page number of the window's first page.
    pub(super) window_page: u64,
    /// Pages within the window.
    pub(super) start: u64,
    pub(super) end: u64,
}

impl Piece {
    pub(super) fn range(self, start: u64, end: u64) -> PageRange {
        PageRange::new(self.window_page + start, self.window_page + end)
    }

    pub(super) fn offset(self, page: u64) -> u64 {
        self.slot as u64 * WINDOW_SIZE as u64 + page * PAGE_SIZE as u64
    }
}

impl Pages {
    pub(super) fn new() -> Pages {
        const RUNS_PER_SCAN: usize = 512;
        Pages {
            windows: Vec::new(),
            resident: Vec::new(),
            unsure: Vec::new(),
            marked: BTreeSet::new(),
            distrusted: 0,
            runs: vec![WrittenRun::default(); RUNS_PER_SCAN],
            scanned_epoch: 0,
            sweep_at: 0,
        }
    }

    /// The part of `start..end` that lies in the window of its first page.
    pub(super) fn piece(&self, start: u64, end: u64) -> Piece {
        let window = PageNo(start).window();
        let slot = self.windows.iter().position(|w| *w == window);
        let slot = slot.unwrap_or_else(|| panic!("page {start} outside the cluster"));
        let window_page = u64::from(window) * PAGES_PER_WINDOW;
        Piece {
            slot,
            window_page,
            start: start - window_page,
            end: end.min(window_page + PAGES_PER_WINDOW) - window_page,
        }
    }

    pub(super) fn pieces(&self, range: PageRange) -> impl Iterator<Item = Piece> {
        let mut at = range.start;
        std::iter::from_fn(move || {
            if at >= range.end {
                return None;
            }
            let piece = self.piece(at, range.end);
            at = piece.window_page + piece.end;
            Some(piece)
        })
    }

    /// The whole cluster, in order of page number.
    pub(super) fn all_pieces(&self) -> Vec<Piece> {
        let whole = |slot: usize, window: &u32| Piece {
            slot,
            window_page: u64::from(*window) * PAGES_PER_WINDOW,
            start: 0,
            end: PAGES_PER_WINDOW,
        };
        let mut pieces: Vec<Piece> =
            self.windows.iter().enumerate().map(|(slot, window)| whole(slot, window)).collect();
        pieces.sort_unstable_by_key(|piece| piece.window_page);
        pieces
    }

    pub(super) fn resident_in(&self, piece: Piece, out: &mut Vec<PageRange>) {
        let mut at = piece.start;
        while let Some((start, end)) = self.resident[piece.slot].next_run(at, piece.end) {
            out.push(piece.range(start, end));
            at = end;
        }
    }
}
