//! Which pages of a cluster were written since they were last protected (catalogue B5). Copying them is
//! absent. Read [`Cluster::scan_dirty`] first.
//!
//! A page's protection alone says whether it was written; the fault log only says at which pages to look, but
//! for those that only a write can have named, behind closed gates. What it named is forgotten *before* the look: a
//! page that is written after the look has met its protection again, and is named again.

use std::sync::MutexGuard;
use std::time::{Duration, Instant};

use rustix::io::Errno;
use stead_model::{Address, PAGE_SIZE, PAGES_PER_WINDOW, PageNo, PageRange};

use super::pages::{Pages, Piece};
use super::{Cluster, Scan};
use crate::counters::add;
use crate::error::ScanError;
use crate::named::join as join_runs;
use crate::residency::PAGES_PER_BLOCK;
use crate::space::{LogUse, Reading};
use crate::sys::{Mode, Sys, WrittenRun};

/// Blocks that each scan by the log looks at although nothing named them: writes by other processes
/// (a debugger's) leave no fault in this one, and must not stay unnoticed for ever.
const SWEEP_PAGES: u64 = 4 * PAGES_PER_BLOCK;

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
        let reading = self.held.space.read_log();
        let pages = self.lock();
        let pieces: Vec<Piece> = pages.pieces(within).collect();
        let by_log = self.may_go_by(reading, &pages);
        let mut pages = self.scan_pieces(pages, &pieces, by_log, scan, out, None)?;
        if scan == Scan::Protect {
            // Blocks of which a part was looked at stay named.
            for piece in &pieces {
                pages.unsure[piece.slot].insert(piece.start, piece.end);
            }
        }
        Ok(())
    }

    /// As [`Cluster::scan_dirty`] for the whole cluster.
    ///
    /// # Errors
    /// As for [`Cluster::scan_dirty`].
    pub fn scan_all(&self, scan: Scan, out: &mut Vec<PageRange>) -> Result<(), ScanError> {
        self.scan_read(self.held.space.read_log(), scan, out)
    }

    /// As [`Cluster::scan_all`], by a reading of the log that other clusters' scans use too. Reports what was
    /// written before the reading was taken.
    ///
    /// # Errors
    /// As for [`Cluster::scan_dirty`].
    pub fn scan_read(
        &self,
        reading: Reading,
        scan: Scan,
        out: &mut Vec<PageRange>,
    ) -> Result<(), ScanError> {
        self.scan_whole(reading, scan, out, None)
    }

    /// As [`Cluster::scan_read`] with [`Scan::Protect`], while nobody can write to the cluster (the gates are closed): what
    /// the log alone tells to be written is not protected yet, and appended to `unprotected` too. It must be given to
    /// [`Cluster::protect_found`] before anybody can write again, or later writes would be lost.
    ///
    /// A page may be reported that was not written: it was read after the kernel had taken it out of the mapping.
    ///
    /// # Errors
    /// As for [`Cluster::scan_dirty`].
    pub fn scan_still(
        &self,
        reading: Reading,
        out: &mut Vec<PageRange>,
        unprotected: &mut Vec<PageRange>,
    ) -> Result<(), ScanError> {
        let trusted = (reading.log_use == LogUse::Log).then_some(unprotected);
        self.scan_whole(reading, Scan::Protect, out, trusted)
    }

    /// Protects what [`Cluster::scan_still`] has left unprotected. If the kernel refuses, the next scan reports every page in
    /// memory.
    pub fn protect_found(&self, unprotected: &[PageRange]) {
        #[cfg(feature = "planted")]
        if crate::planted::is(crate::planted::Bug::FoundUnprotected) {
            return;
        }
        let mut pages = self.lock();
        for range in unprotected {
            let piece = pages.piece(range.start, range.end);
            add(&self.counters().calls_fault, 1);
            let byte_len = range.page_count() as usize * PAGE_SIZE;
            if self.sys().protect(self.address(piece, piece.start), byte_len).is_err() {
                pages.distrusted += 1;
            }
        }
    }

    fn scan_whole(
        &self,
        reading: Reading,
        scan: Scan,
        out: &mut Vec<PageRange>,
        trusted: Option<&mut Vec<PageRange>>,
    ) -> Result<(), ScanError> {
        let pages = self.lock();
        let pieces = pages.all_pieces();
        let distrusted = pages.distrusted;
        let by_log = self.may_go_by(reading, &pages);
        if by_log && reading.log_use == LogUse::Checked {
            self.check_log(&pages, &pieces);
        }
        let before = out.len();
        let mut pages = self.scan_pieces(pages, &pieces, by_log, scan, out, trusted)?;
        if by_log {
            if scan == Scan::Protect {
                self.sweep(&mut pages, before, out)?;
            }
        } else if scan == Scan::Protect && pages.distrusted == distrusted {
            pages.distrusted = 0;
            pages.scanned_epoch = pages.scanned_epoch.max(reading.epoch);
        }
        Ok(())
    }

    /// Whether looking where the log says finds everything. Where the kernel adds pages by itself, a mere
    /// reader may make one writable, and nobody waits for a reader's fault to be logged.
    fn may_go_by(&self, reading: Reading, pages: &Pages) -> bool {
        reading.log_use != LogUse::Scan
            && self.mode == Mode::Faulted
            && pages.distrusted == 0
            && pages.scanned_epoch >= reading.epoch
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
        by_log: bool,
        scan: Scan,
        out: &mut Vec<PageRange>,
        mut trusted: Option<&mut Vec<PageRange>>,
    ) -> Result<MutexGuard<'a, Pages>, ScanError> {
        /// Takes about a tenth of a millisecond.
        const LOOKS_AT_ONCE: u32 = 64;
        /// To look at so many pages that nothing named costs less than another call.
        const NEAR_PAGES: u64 = 128;
        let counters = self.counters();
        add(&counters.scans, 1);
        add(&counters.scans_by_log, u64::from(by_log));
        let before = out.len();
        let mut named = Vec::new();
        for piece in pieces {
            named.clear();
            match &mut trusted {
                Some(trusted) if by_log => {
                    let found = self.trust_log(&mut pages, *piece, &mut named);
                    out.extend_from_slice(&found);
                    trusted.extend(found);
                }
                _ => {
                    self.named(*piece).runs(piece.start, piece.end, forget_first(scan), &mut named)
                }
            }
            if by_log {
                named.dedup_by(|next, run| {
                    let near = next.0 <= run.1 + NEAR_PAGES;
                    run.1 = if near { next.1 } else { run.1 };
                    near
                });
            } else {
                named.clear();
                named.push((piece.start, piece.end));
            }
            let mut looks = 0;
            for &(start, end) in &named {
                let mut rest = Piece { start, end, ..*piece };
                while rest.start < rest.end {
                    match self.scan_some(&mut pages, rest, scan, out) {
                        Ok(end) => rest.start = end,
                        Err(errno) => return Err(self.distrust(&mut pages, before, out, errno)),
                    }
                    looks += 1;
                    if rest.start < rest.end || looks % LOOKS_AT_ONCE == 0 {
                        pages = self.lock_again(pages);
                    }
                }
            }
            #[cfg(feature = "planted")]
            if scan == Scan::Protect && !forget_first(scan) {
                self.held.space.read_log();
                self.named(*piece).runs(piece.start, piece.end, true, &mut named);
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

    /// Takes what is named of a piece: the runs that are written for sure, if they are few; what has to be looked at is
    /// appended to `named`, in order.
    fn trust_log(
        &self,
        pages: &mut Pages,
        piece: Piece,
        named: &mut Vec<(u64, u64)>,
    ) -> Vec<PageRange> {
        /// Behind more, scanning what lies between them is cheaper than protecting each.
        const TRUSTED_MOST: usize = 512;
        let (resident, unsure) = (&pages.resident[piece.slot], &mut pages.unsure[piece.slot]);
        let mut found: Vec<PageRange> = Vec::new();
        self.named(piece).pages(piece.start, piece.end, true, |page| {
            if !resident.contains(page) {
                return;
            }
            if unsure.contains(page) {
                // It is looked at now, and from now on named by its writers alone.
                unsure.remove(page, page + 1);
                named.push((page, page + 1));
                return;
            }
            let page = piece.window_page + page;
            match found.last_mut() {
                Some(run) if run.end == page => run.end += 1,
                _ => found.push(PageRange::new(page, page + 1)),
            }
        });
        if found.len() > TRUSTED_MOST {
            let runs = found.drain(..);
            named.extend(runs.map(|r| (r.start - piece.window_page, r.end - piece.window_page)));
        }
        self.named(piece).blocks(piece.start, piece.end, true, named);
        join_runs(named, 0);
        found
    }

    /// What a scan has protected and not reported is no longer known to be written.
    fn distrust(
        &self,
        pages: &mut Pages,
        before: usize,
        out: &mut Vec<PageRange>,
        errno: Errno,
    ) -> ScanError {
        pages.distrusted += 1;
        out.truncate(before);
        ScanError { container: self.held.container, errno }
    }

    /// Looks at a few pages that nothing named, others each time. What is met there is reported, and the log
    /// not trusted for what lay before.
    fn sweep(
        &self,
        pages: &mut Pages,
        before: usize,
        out: &mut Vec<PageRange>,
    ) -> Result<(), ScanError> {
        let mut slot = (pages.sweep_at / PAGES_PER_WINDOW) as usize % pages.windows.len();
        let mut start = pages.sweep_at % PAGES_PER_WINDOW;
        let Some((from, to)) = pages.resident[slot].next_populated(start, PAGES_PER_WINDOW) else {
            slot += 1;
            pages.sweep_at = slot as u64 * PAGES_PER_WINDOW;
            return Ok(());
        };
        start = from;
        let end = to.min(start + SWEEP_PAGES);
        pages.sweep_at = slot as u64 * PAGES_PER_WINDOW + end;
        let window_page = u64::from(pages.windows[slot]) * PAGES_PER_WINDOW;
        let piece = Piece { slot, window_page, start, end };
        let known = out.len();
        if let Err(errno) = self.scan_some(pages, piece, Scan::Protect, out) {
            return Err(self.distrust(pages, before, out, errno));
        }
        if out.len() == known {
            return Ok(());
        }
        // Written since the reading, perhaps: then the log knows by now.
        self.held.space.read_log();
        let mut named = Vec::new();
        self.named(piece).runs(start, end, false, &mut named);
        let is_named = |page: u64| named.iter().any(|(from, to)| (*from..*to).contains(&page));
        // What this scan has found and not protected yet.
        let (earlier, swept) = out[before..].split_at(known - before);
        let is_known = |page: u64| earlier.iter().any(|run| (run.start..run.end).contains(&page));
        let strays = swept.iter().flat_map(|run| run.pages());
        let stray_count =
            strays.filter(|page| !is_named(page.0 - window_page) && !is_known(page.0)).count();
        if stray_count > 0 {
            add(&self.counters().pages_strayed, stray_count as u64);
            self.held.space.distrust_log();
        }
        let found = out[known..].iter().map(|run| run.page_count()).sum();
        add(&self.counters().pages_found_written, found);
        join(out, before);
        Ok(())
    }

    /// Scans everything, and finds no page outside of what is named.
    fn check_log(&self, pages: &Pages, pieces: &[Piece]) {
        const PATIENCE: Duration = Duration::from_secs(5);
        let mut runs = vec![WrittenRun::default(); 512];
        for piece in pieces {
            let mut named = Vec::new();
            self.named(*piece).runs(piece.start, piece.end, false, &mut named);
            let resident = &pages.resident[piece.slot];
            let mut written = Vec::new();
            let mut from = piece.start;
            while let Some((start, end)) = resident.next_populated(from, piece.end) {
                from = end;
                let scanned =
                    self.scan_stretch(*piece, (start, end), Scan::Look, &mut runs, |s, e| {
                        written.extend((s..e).filter(|page| resident.contains(*page)));
                    });
                if scanned.is_err() {
                    return;
                }
            }
            let began = Instant::now();
            loop {
                let is_named = |page: &u64| named.iter().any(|(s, e)| (*s..*e).contains(page));
                written.retain(|page| !is_named(page));
                if written.is_empty() {
                    break;
                }
                // Written since the reading: logged before long, if not yet.
                if self.held.space.read_log().epoch > pages.scanned_epoch {
                    return;
                }
                named.clear();
                self.named(*piece).runs(piece.start, piece.end, false, &mut named);
                assert!(
                    began.elapsed() < PATIENCE,
                    "the fault log left out pages {written:?} of window {} of container {}",
                    PageNo(piece.window_page).window(),
                    self.held.container
                );
            }
        }
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
        /// Small enough that a look at few pages prepares for few.
        const ROOM_MIN: usize = 32;
        let page_count = (end - start) as usize;
        let room = runs.len().min((page_count / 8).max(ROOM_MIN.min(page_count)));
        let runs = &mut runs[..room];
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

/// Whether what is named is forgotten before the look.
fn forget_first(scan: Scan) -> bool {
    #[cfg(feature = "planted")]
    if crate::planted::is(crate::planted::Bug::NamesForgottenLate) {
        return false;
    }
    scan == Scan::Protect
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
