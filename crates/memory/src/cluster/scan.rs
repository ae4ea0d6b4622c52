//! Which pages of a cluster were written since they were last protected (catalogue B5). Copying them is
//! absent. Read [`Cluster::scan_dirty`] first.

use std::sync::MutexGuard;

use rustix::io::Errno;
use stead_model::{Address, PAGE_SIZE, PAGES_PER_WINDOW, PageRange};

use super::pages::{Pages, Piece};
use super::{Cluster, Scan};
use crate::counters::add;
use crate::error::ScanError;
use crate::sys::{Mode, Sys, WrittenRun};

impl<S: Sys> Cluster<S> {
    /// Appends the runs of pages written since they were last protected, sorted and disjoint: by any
    /// thread through the mapping, or by [`Cluster::write_frames`] and [`Cluster::mark_dirty`]. Threads
    /// may write meanwhile: a write that [`Scan::Protect`] does not report is reported by the next scan
    /// (catalogue B5).
    ///
    /// # Errors
    /// If the kernel refuses. `out` is as it was, and the next scan reports every page in memory.
    pub fn scan_dirty(
        &self,
        within: PageRange,
        scan: Scan,
        out: &mut Vec<PageRange>,
    ) -> Result<(), ScanError> {
        let pages = self.lock();
        let pieces: Vec<Piece> = pages.pieces(within).collect();
        self.scan_pieces(pages, &pieces, scan, out).map(drop)
    }

    /// As [`Cluster::scan_dirty`] for the whole cluster.
    ///
    /// # Errors
    /// As for [`Cluster::scan_dirty`].
    pub fn scan_all(&self, scan: Scan, out: &mut Vec<PageRange>) -> Result<(), ScanError> {
        let pages = self.lock();
        let pieces = pages.all_pieces();
        let distrusted = pages.distrusted;
        let mut pages = self.scan_pieces(pages, &pieces, scan, out)?;
        if scan == Scan::Protect && pages.distrusted == distrusted {
            pages.distrusted = 0;
        }
        Ok(())
    }

    /// Makes the next scan report these pages although no thread writes them: they could not be made
    /// stable, or were written behind the hardware's back.
    pub fn mark_dirty(&self, range: PageRange) {
        let mut pages = self.lock();
        // Asserts that the pages are the cluster's.
        pages.pieces(range).for_each(drop);
        pages.marked.extend(range.start..range.end);
    }

    /// Scans pieces one after the other, and gives the lock away now and then.
    fn scan_pieces<'a>(
        &'a self,
        mut pages: MutexGuard<'a, Pages>,
        pieces: &[Piece],
        scan: Scan,
        out: &mut Vec<PageRange>,
    ) -> Result<MutexGuard<'a, Pages>, ScanError> {
        let counters = self.counters();
        add(&counters.scans, 1);
        let before = out.len();
        for piece in pieces {
            let mut rest = *piece;
            while rest.start < rest.end {
                match self.scan_some(&mut pages, rest, scan, out) {
                    Ok(end) => rest.start = end,
                    Err(errno) => {
                        pages.distrusted += 1;
                        out.truncate(before);
                        return Err(ScanError { container: self.held.container, errno });
                    }
                }
                if rest.start < rest.end {
                    pages = self.lock_again(pages);
                }
            }
            // What others mark meanwhile stays marked, or is reported here: either will do.
            let first = piece.window_page + piece.start;
            let end = piece.window_page + piece.end;
            out.extend(pages.marked.range(first..end).map(|p| PageRange::new(*p, p + 1)));
            if scan == Scan::Protect && !pages.marked.is_empty() {
                pages.marked.retain(|p| !(first..end).contains(p));
            }
        }
        join(out, before);
        add(&counters.pages_found_written, out[before..].iter().map(|r| r.page_count()).sum());
        Ok(pages)
    }

    /// Appends what the system says is in memory, in either mode.
    fn present_in(&self, piece: Piece, out: &mut Vec<PageRange>) -> Result<(), Errno> {
        let mut at = piece.offset(piece.start);
        let end = piece.offset(piece.end);
        let page_of =
            |offset: u64| piece.window_page + (offset - piece.offset(0)) / PAGE_SIZE as u64;
        while let Some((from, to)) = self.sys().next_present(&self.frames, at, end)? {
            out.push(PageRange::new(page_of(from), page_of(to)));
            at = to;
        }
        Ok(())
    }

    /// Scans what is in memory of one piece, from its start up to the page returned.
    fn scan_some(
        &self,
        pages: &mut Pages,
        piece: Piece,
        scan: Scan,
        out: &mut Vec<PageRange>,
    ) -> Result<u64, Errno> {
        /// Takes about a tenth of a millisecond.
        const PAGES_AT_ONCE: u64 = 1 << 16;
        let Pages { resident, runs, distrusted, .. } = pages;
        let resident = &resident[piece.slot];
        if *distrusted > 0 {
            self.present_in(piece, out)?;
        }
        let mut from = piece.start;
        match self.mode {
            Mode::Faulted => {
                // A distrusted piece was reported whole, and so is scanned whole.
                let mut left = if *distrusted > 0 { PAGES_PER_WINDOW } else { PAGES_AT_ONCE };
                while let Some((start, end)) = resident.next_populated(from, piece.end) {
                    let end = end.min(start + left);
                    self.scan_stretch(piece, (start, end), scan, runs, |start, end| {
                        // Holes are reported too.
                        let mut at = start;
                        while let Some((start, end)) = resident.next_run(at, end) {
                            out.push(piece.range(start, end));
                            at = end;
                        }
                    })?;
                    from = end;
                    left -= end - start;
                    if left == 0 {
                        return Ok(from);
                    }
                }
            }
            // The kernel adds pages by itself, so it alone knows which there are.
            Mode::Resident => {
                let mut present = Vec::new();
                self.present_in(piece, &mut present)?;
                for range in present {
                    let stretch = (range.start - piece.window_page, range.end - piece.window_page);
                    self.scan_stretch(piece, stretch, scan, runs, |start, end| {
                        out.push(piece.range(start, end));
                    })?;
                }
            }
        }
        Ok(piece.end)
    }

    /// Scans pages of a piece and reports the runs found, as pages within the window.
    fn scan_stretch(
        &self,
        piece: Piece,
        (start, end): (u64, u64),
        scan: Scan,
        runs: &mut [WrittenRun],
        mut found: impl FnMut(u64, u64),
    ) -> Result<(), Errno> {
        let window = self.address(piece, 0).0;
        let page_of = |address: usize| ((address - window) / PAGE_SIZE) as u64;
        let mut at = self.address(piece, start).0;
        let end = self.address(piece, end).0;
        while at < end {
            add(&self.counters().calls_scan, 1);
            let protect = scan == Scan::Protect;
            let scanned = self.sys().scan(Address(at), end - at, protect, runs)?;
            let reported = &runs[..scanned.run_count];
            for run in reported {
                found(page_of(run.start), page_of(run.end));
            }
            // The kernel may name an earlier page than the last one it reported, and may stop before
            // the vector is full: go on behind whichever is further.
            let last = reported.last().map_or(at, |run| run.end);
            let next = scanned.walk_end.max(last);
            if next <= at {
                return Err(Errno::IO);
            }
            at = next;
        }
        Ok(())
    }
}

/// Sorts the ranges from `from` on and joins those that touch or overlap.
fn join(ranges: &mut Vec<PageRange>, from: usize) {
    if ranges[from..].is_sorted_by(|a, b| a.end < b.start) {
        return;
    }
    ranges[from..].sort_unstable();
    let mut kept = from;
    for i in from + 1..ranges.len() {
        if ranges[i].start <= ranges[kept].end {
            ranges[kept].end = ranges[kept].end.max(ranges[i].end);
        } else {
            kept += 1;
            ranges[kept] = ranges[i];
        }
    }
    ranges.truncate((kept + 1).max(from).min(ranges.len()));
}
