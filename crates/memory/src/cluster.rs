//! A cluster's pages in this process: its frames, where they are mapped, which of them are in memory
//! and which were written. Where contents come from and go to is absent. Read [`Cluster`] first.
//!
//! One lock for each cluster orders everything that makes frames present or absent. That is what keeps
//! an install from overwriting newer contents: whether a page is in memory is decided by the bitmap
//! under the lock, and the bitmap is right because nobody else can add a frame (the kernel asks us
//! about every hole, and reads of the frames leave holes alone). The lock is held for system calls
//! on ordinary memory only, never while a page of a cluster is touched, so that the thread which serves
//! faults can always take it.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustix::io::Errno;
use stead_model::{
    Address, ContainerId, PAGE_SIZE, PAGES_PER_WINDOW, PageNo, PageRange, WINDOW_SIZE,
};

use crate::counters::{Counters, add};
use crate::error::{FrameError, MapError, ScanError};
use crate::faults::{ClusterKey, Fault};
use crate::residency::Bitmap;
use crate::space::{Held, Owner};
use crate::sys::{Linux, Mode, Sys, WrittenRun};

/// A mapped cluster. Dropping it takes access away: whoever held addresses in it must be gone, by way
/// of the gate.
///
/// # Panics
/// Every method that takes pages panics if one of them lies outside the cluster's windows.
pub struct Cluster<S: Sys = Linux> {
    held: Arc<Held<S>>,
    frames: S::Frames,
    key: ClusterKey,
    mode: Mode,
    pages: Mutex<Pages>,
    /// Threads that want the lock for something short: those that serve a fault, above all.
    hurried: AtomicU32,
}

/// What is known of the pages, all of it guarded by the cluster's lock.
struct Pages {
    /// The container's window that lies at each window of the frames.
    windows: Vec<u32>,
    /// For each window of the frames, the pages that are in memory. In a cluster of mode `Resident` the
    /// kernel adds pages too, which are not counted here.
    resident: Vec<Bitmap>,
    /// Pages that were written otherwise than through the mapping, or could not be made stable.
    marked: BTreeSet<u64>,
    /// A scan failed half-way: what it protected is no longer known to be written, so every page counts
    /// as written until a whole scan has protected them all. Counts such failures.
    distrusted: u64,
    runs: Vec<WrittenRun>,
}

/// Part of a range that is contiguous in addresses and frames.
#[derive(Clone, Copy)]
struct Piece {
    /// The window of the frames.
    slot: usize,
    /// The container's page number of the window's first page.
    window_page: u64,
    /// Pages within the window.
    start: u64,
    end: u64,
}

impl Piece {
    fn range(self, start: u64, end: u64) -> PageRange {
        PageRange::new(self.window_page + start, self.window_page + end)
    }

    fn offset(self, page: u64) -> u64 {
        self.slot as u64 * WINDOW_SIZE as u64 + page * PAGE_SIZE as u64
    }
}

/// What to do about a fault.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Plan {
    /// The page is in memory: [`Cluster::resume`] is all it needs.
    Resident,
    /// These pages are not in memory, the one asked for among them: get their contents and
    /// [`Cluster::install`] them.
    Absent(PageRange),
}

/// Why pages are installed, which decides what they count as.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Reason {
    /// A thread waits to read this page. All installed pages count as unwritten.
    ReadFault(PageNo),
    /// A thread waits to write this page, which counts as written; the others as unwritten.
    WriteFault(PageNo),
    /// Nobody asked yet. All count as unwritten.
    Ahead,
    /// Nobody asked yet, but all are about to be written, and count so.
    AheadWritable,
}

impl Reason {
    /// The reason that a fault gives.
    #[must_use]
    pub fn of(fault: &Fault) -> Reason {
        if fault.write { Reason::WriteFault(fault.page) } else { Reason::ReadFault(fault.page) }
    }

    fn asked(self) -> Option<u64> {
        match self {
            Reason::ReadFault(page) | Reason::WriteFault(page) => Some(page.0),
            Reason::Ahead | Reason::AheadWritable => None,
        }
    }
}

/// What an install met.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Installed {
    /// All pages were absent and are installed.
    Done,
    /// All pages were in memory and keep their contents.
    AlreadyThere,
    /// Some pages were in memory and keep their contents; the rest are installed.
    Raced,
}

/// Whether a scan begins anew.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Scan {
    /// Reports; the next scan reports the same pages again.
    Look,
    /// Reports, and protects what it reports in the same step: the next scan reports what was written
    /// after this one.
    Protect,
}

impl<S: Sys> Cluster<S> {
    pub(crate) fn map(
        held: Arc<Held<S>>,
        key: ClusterKey,
        windows: &[u32],
        mode: Mode,
    ) -> Result<Cluster<S>, MapError> {
        let frames = held.space.sys.new_frames(0).map_err(|errno| MapError::Refused {
            container: held.container,
            step: "making a memory file",
            errno,
            advice: "raise the limit of open files (ulimit -n)",
        })?;
        let cluster = Cluster {
            held,
            frames,
            key,
            mode,
            pages: Mutex::new(Pages::new()),
            hurried: AtomicU32::new(0),
        };
        cluster.add_windows(windows)?;
        add(&cluster.counters().clusters_mapped, 1);
        Ok(cluster)
    }

    /// Gives the cluster more windows of its container, behind those it has in its frames. On failure
    /// it keeps what it had.
    ///
    /// # Errors
    /// If the kernel refuses.
    ///
    /// # Panics
    /// If a window lies outside the reservation or belongs to a cluster.
    pub fn add_windows(&self, windows: &[u32]) -> Result<(), MapError> {
        let refused = |step, advice| {
            let container = self.held.container;
            move |errno| MapError::Refused { container, step, errno, advice }
        };
        let sys = self.sys();
        let mut pages = self.lock();
        let before = pages.windows.len();
        let frame_bytes = (before + windows.len()) as u64 * WINDOW_SIZE as u64;
        add(&self.counters().calls_frame, 1);
        sys.extend_frames(&self.frames, frame_bytes).map_err(refused(
            "growing a memory file",
            "look at the limit of file sizes (ulimit -f)",
        ))?;
        for window in windows {
            assert!(*window < self.held.run.count, "window outside its reservation");
            let owner = Owner {
                cluster: self.key,
                container: self.held.container,
                container_window: self.held.run.first,
            };
            let free = self.held.space.own(self.held.run.first + window, owner);
            assert!(free, "a window belongs to one cluster");
        }
        let mut done = 0;
        while done < windows.len() {
            let run = adjacent(&windows[done..]);
            let at = Address(self.held.run.base().0 + windows[done] as usize * WINDOW_SIZE);
            let byte_len = run * WINDOW_SIZE;
            let offset = (before + done) as u64 * WINDOW_SIZE as u64;
            add(&self.counters().calls_mapping, 1);
            if let Err(errno) =
                sys.map(&self.held.area, at, byte_len, &self.frames, offset, self.mode)
            {
                for window in &windows[done..] {
                    self.held.space.disown(self.held.run.first + window);
                }
                return Err(refused(
                    "mapping a cluster",
                    "look at the limits of this process (ulimit -v, vm.max_map_count)",
                )(errno));
            }
            pages.windows.extend(&windows[done..done + run]);
            pages.resident.extend((0..run).map(|_| Bitmap::new()));
            add(&self.counters().windows_mapped, run as u64);
            done += run;
        }
        Ok(())
    }

    /// Names this cluster in faults.
    #[must_use]
    pub fn key(&self) -> ClusterKey {
        self.key
    }

    /// The container that it is part of.
    #[must_use]
    pub fn container(&self) -> ContainerId {
        self.held.container
    }

    /// How its pages come.
    #[must_use]
    pub fn mode(&self) -> Mode {
        self.mode
    }

    /// Its windows, counted from the container's first, in the order in which it got them.
    #[must_use]
    pub fn windows(&self) -> Vec<u32> {
        self.lock().windows.clone()
    }

    /// What a fault on `page` needs: nothing but [`Cluster::resume`], or the absent pages around it
    /// within its naturally aligned block of `around` pages, as one run that contains it.
    ///
    /// # Panics
    /// If `around` is not a power of two up to the pages of a window.
    #[must_use]
    pub fn plan(&self, page: PageNo, around: u64) -> Plan {
        assert!(around.is_power_of_two() && around <= PAGES_PER_WINDOW, "block of a window");
        let pages = self.lock();
        let piece = pages.piece(page.0, page.0 + 1);
        let resident = &pages.resident[piece.slot];
        if resident.contains(piece.start) {
            return Plan::Resident;
        }
        let low = piece.start & !(around - 1);
        let (start, end) = resident.absent_around(piece.start, low, low + around);
        Plan::Absent(piece.range(start, end))
    }

    /// Brings pages into memory with the contents given, whole pages one after the other, and lets
    /// the threads that wait for them go on. Pages already in memory keep their contents, which may be
    /// newer. `images` must be ordinary memory, not part of a cluster.
    ///
    /// # Errors
    /// If memory is short, or the kernel refuses. Pages before the one named are installed; trying
    /// again is harmless.
    ///
    /// # Panics
    /// If `images` is not a whole number of pages, at least one.
    pub fn install(
        &self,
        first: PageNo,
        images: &[u8],
        reason: Reason,
    ) -> Result<Installed, FrameError> {
        let page_count = whole_pages(images.len());
        let range = PageRange::new(first.0, first.0 + page_count);
        self.bring(range, reason, |piece, start, end| {
            let from = (piece.window_page + start - first.0) as usize * PAGE_SIZE;
            let bytes = &images[from..from + (end - start) as usize * PAGE_SIZE];
            self.write_all(piece, start, bytes)
        })
    }

    /// As [`Cluster::install`], with pages of zeros.
    ///
    /// # Errors
    /// As for [`Cluster::install`].
    pub fn install_zero(&self, range: PageRange, reason: Reason) -> Result<Installed, FrameError> {
        self.bring(range, reason, |piece, start, end| {
            add(&self.counters().calls_frame, 1);
            let byte_len = (end - start) * PAGE_SIZE as u64;
            loop {
                match self.sys().allocate(&self.frames, piece.offset(start), byte_len) {
                    // What an interrupted call allocated stays, and is zero.
                    Err(Errno::INTR) => {}
                    other => break other.map_err(|errno| (start, errno))?,
                }
            }
            add(&self.counters().pages_zeroed, end - start);
            Ok(())
        })
    }

    /// Maps a page that is in memory, should it not be mapped, and lets the threads that wait for it
    /// go on. It counts as written from then on unless it was mapped: to count a written page as
    /// unwritten would lose it.
    ///
    /// # Errors
    /// If the kernel refuses. Trying again is harmless.
    pub fn resume(&self, page: PageNo) -> Result<Installed, FrameError> {
        let pages = self.lock();
        let piece = pages.piece(page.0, page.0 + 1);
        if self.map_run(piece, piece.start, piece.end, false)? > 0 {
            return Ok(Installed::Done);
        }
        Ok(Installed::AlreadyThere)
    }

    /// Lets the threads that wait for these pages try again.
    ///
    /// # Errors
    /// If the kernel refuses, which it has no reason to.
    pub fn wake(&self, range: PageRange) -> Result<(), FrameError> {
        let pages = self.lock();
        for piece in pages.pieces(range) {
            add(&self.counters().calls_fault, 1);
            let byte_len = (piece.end - piece.start) as usize * PAGE_SIZE;
            self.sys()
                .wake(self.address(piece, piece.start), byte_len)
                .map_err(|errno| self.refused("waking the readers", piece, piece.start, errno))?;
        }
        Ok(())
    }

    /// Makes touching this page fatal (`SIGBUS`), for contents that are damaged: a plain load cannot
    /// return an error. Threads that wait for it die of it. Once more is harmless; an install heals
    /// the page.
    ///
    /// # Errors
    /// If the page is in memory (`EXIST`), or the kernel refuses.
    pub fn poison(&self, page: PageNo) -> Result<(), FrameError> {
        let pages = self.lock();
        let piece = pages.piece(page.0, page.0 + 1);
        let refused = |errno| self.refused("poisoning", piece, piece.start, errno);
        if pages.resident[piece.slot].contains(piece.start) {
            return Err(refused(Errno::EXIST));
        }
        let at = self.address(piece, piece.start);
        add(&self.counters().calls_fault, 1);
        let mut poisoned = self.sys().poison(at);
        if poisoned == Err(Errno::EXIST) {
            // A scan has left its mark on the hole, or the page is poisoned already.
            add(&self.counters().calls_fault, 2);
            self.sys().unprotect(at, PAGE_SIZE).map_err(refused)?;
            poisoned = self.sys().poison(at);
        }
        if poisoned == Err(Errno::EXIST) {
            add(&self.counters().calls_fault, 1);
            return self.sys().wake(at, PAGE_SIZE).map_err(refused);
        }
        poisoned.map_err(refused)?;
        add(&self.counters().pages_poisoned, 1);
        Ok(())
    }

    /// Makes the pages of `range` that are in memory count as unwritten.
    ///
    /// # Errors
    /// If the kernel refuses. Pages before the one named are protected.
    pub fn protect(&self, range: PageRange) -> Result<(), FrameError> {
        let mut pages = self.lock();
        let mut clean = BTreeSet::new();
        std::mem::swap(&mut clean, &mut pages.marked);
        clean.retain(|page| !(range.start..range.end).contains(page));
        pages.marked = clean;
        for piece in pages.pieces(range) {
            let mut at = piece.start;
            // What to protect is what is in memory: protecting a sparse range marks all its holes.
            while let Some((start, end)) = pages.resident[piece.slot].next_run(at, piece.end) {
                at = end;
                add(&self.counters().calls_fault, 1);
                let byte_len = (end - start) as usize * PAGE_SIZE;
                self.sys()
                    .protect(self.address(piece, start), byte_len)
                    .map_err(|errno| self.refused("protecting", piece, start, errno))?;
            }
        }
        Ok(())
    }

    /// Takes pages out of memory, contents and all. They no longer count as written; the next touch
    /// asks for them again.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub fn punch(&self, range: PageRange) -> Result<(), FrameError> {
        let mut pages = self.lock();
        let pieces: Vec<Piece> = pages.pieces(range).collect();
        for piece in pieces {
            add(&self.counters().calls_frame, 1);
            let byte_len = (piece.end - piece.start) * PAGE_SIZE as u64;
            let offset = piece.offset(piece.start);
            retry(|| self.sys().punch(&self.frames, offset, byte_len))
                .map_err(|errno| self.refused("freeing", piece, piece.start, errno))?;
            let resident = &mut pages.resident[piece.slot];
            let before = resident.page_count();
            resident.remove(piece.start, piece.end);
            add(&self.counters().pages_punched, before - resident.page_count());
            let first = piece.window_page;
            pages.marked.retain(|p| !(first + piece.start..first + piece.end).contains(p));
        }
        Ok(())
    }

    /// Reads whole pages from the frames, without touching the mapping. Absent pages read as zeros
    /// and stay absent.
    ///
    /// # Errors
    /// If the kernel refuses.
    ///
    /// # Panics
    /// If `buf` is not a whole number of pages, at least one.
    pub fn read_frames(&self, first: PageNo, buf: &mut [u8]) -> Result<(), FrameError> {
        let range = PageRange::new(first.0, first.0 + whole_pages(buf.len()));
        // Reading needs no lock: whether it comes before or after a write of another thread is the
        // caller's to arrange. Only the windows are looked up under it.
        let pieces: Vec<Piece> = self.lock().pieces(range).collect();
        let mut rest = buf;
        for piece in pieces {
            let byte_len = (piece.end - piece.start) as usize * PAGE_SIZE;
            let (part, after) = rest.split_at_mut(byte_len);
            rest = after;
            let mut done = 0;
            while done < byte_len {
                add(&self.counters().calls_frame, 1);
                let offset = piece.offset(piece.start) + done as u64;
                let page = piece.start + (done / PAGE_SIZE) as u64;
                match self.sys().read(&self.frames, offset, &mut part[done..]) {
                    Ok(0) => return Err(self.refused("reading", piece, page, Errno::IO)),
                    Ok(byte_count) => done += byte_count,
                    Err(Errno::INTR) => {}
                    Err(errno) => return Err(self.refused("reading", piece, page, errno)),
                }
            }
        }
        Ok(())
    }

    /// Overwrites whole pages in the frames, without touching the mapping, and marks them as written:
    /// the hardware does not see such writes.
    ///
    /// # Errors
    /// If memory is short, or the kernel refuses; pages before the one named are written, and all
    /// are marked.
    ///
    /// # Panics
    /// If `images` is not a whole number of pages, at least one.
    pub fn write_frames(&self, first: PageNo, images: &[u8]) -> Result<(), FrameError> {
        let range = PageRange::new(first.0, first.0 + whole_pages(images.len()));
        let mut pages = self.lock();
        pages.marked.extend(range.start..range.end);
        let pieces: Vec<Piece> = pages.pieces(range).collect();
        for piece in pieces {
            let from = (piece.window_page + piece.start - first.0) as usize * PAGE_SIZE;
            let byte_len = (piece.end - piece.start) as usize * PAGE_SIZE;
            let written = self.write_all(piece, piece.start, &images[from..from + byte_len]);
            let end = written.map_or_else(|(page, _)| page, |()| piece.end);
            pages.resident[piece.slot].insert(piece.start, end);
            written.map_err(|(page, errno)| self.refused("writing", piece, page, errno))?;
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

    /// Whether a page is in memory. In mode [`Mode::Resident`]: whether it was brought in by a call.
    #[must_use]
    pub fn is_resident(&self, page: PageNo) -> bool {
        let pages = self.lock();
        let piece = pages.piece(page.0, page.0 + 1);
        pages.resident[piece.slot].contains(piece.start)
    }

    /// Pages in memory, as for [`Cluster::is_resident`].
    #[must_use]
    pub fn resident_page_count(&self) -> u64 {
        self.lock().resident.iter().map(Bitmap::page_count).sum()
    }

    /// The first run of absent pages within `within`, for filling ahead of any fault.
    #[must_use]
    pub fn next_absent(&self, within: PageRange) -> Option<PageRange> {
        let pages = self.lock();
        pages.pieces(within).find_map(|piece| {
            let (start, end) =
                pages.resident[piece.slot].next_absent_run(piece.start, piece.end)?;
            Some(piece.range(start, end))
        })
    }

    /// Appends the runs of pages in memory, in order of page number, as for
    /// [`Cluster::is_resident`].
    pub fn resident_ranges(&self, out: &mut Vec<PageRange>) {
        let pages = self.lock();
        for piece in pages.all_pieces() {
            pages.resident_in(piece, out);
        }
    }

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

    /// Makes the absent pages of `range` present by `fill`, then maps them. `fill` gets pages within
    /// a window; its error names the first page that is not filled.
    fn bring(
        &self,
        range: PageRange,
        reason: Reason,
        mut fill: impl FnMut(Piece, u64, u64) -> Result<(), (u64, Errno)>,
    ) -> Result<Installed, FrameError> {
        /// Takes about a millisecond.
        const PAGES_AT_ONCE: u64 = 1024;
        let mut pages = self.lock();
        let mut new_count = 0;
        let mut old_count = 0;
        let mut left = PAGES_AT_ONCE;
        // No allocation: this runs while a program waits for its page.
        let mut at = range.start;
        while at < range.end {
            let piece = pages.piece(at, range.end);
            let mut page = piece.start;
            while page < piece.end {
                let resident = &mut pages.resident[piece.slot];
                if resident.contains(page) {
                    self.map_run(piece, page, page + 1, false)?;
                    old_count += 1;
                    page += 1;
                    continue;
                }
                let end = piece.end.min(page + left);
                let end = resident.next(page, end).unwrap_or(end);
                let filled = fill(piece, page, end);
                let filled_end = filled.map_or_else(|(page, _)| page, |()| end);
                resident.insert(page, filled_end);
                // Counted before the thread that waits goes on and perhaps looks.
                let asked = reason.asked().map(|p| p.wrapping_sub(piece.window_page));
                let asked = asked.is_some_and(|p| (page..filled_end).contains(&p));
                add(&self.counters().pages_asked, u64::from(asked));
                add(&self.counters().pages_ahead, filled_end - page - u64::from(asked));
                self.map_new(piece, page, filled_end, reason)?;
                filled.map_err(|(page, errno)| self.refused("filling", piece, page, errno))?;
                new_count += end - page;
                left -= end - page;
                page = end;
                if left == 0 {
                    pages = self.lock_again(pages);
                    left = PAGES_AT_ONCE;
                }
            }
            at = piece.window_page + piece.end;
        }
        if old_count > 0 {
            add(&self.counters().raced, 1);
        }
        Ok(match (new_count, old_count) {
            (_, 0) => Installed::Done,
            (0, _) => Installed::AlreadyThere,
            _ => Installed::Raced,
        })
    }

    /// Maps pages that have just become present, each as `reason` says.
    fn map_new(
        &self,
        piece: Piece,
        start: u64,
        end: u64,
        reason: Reason,
    ) -> Result<(), FrameError> {
        let split = match reason {
            Reason::ReadFault(_) | Reason::Ahead => None,
            Reason::AheadWritable => {
                self.map_run(piece, start, end, false)?;
                return Ok(());
            }
            Reason::WriteFault(page) => {
                let page = page.0.wrapping_sub(piece.window_page);
                (start..end).contains(&page).then_some(page)
            }
        };
        match split {
            // The one that a thread waits for comes first.
            Some(page) => {
                self.map_run(piece, page, page + 1, false)?;
                self.map_run(piece, start, page, true)?;
                self.map_run(piece, page + 1, end, true)?;
            }
            None => {
                self.map_run(piece, start, end, true)?;
            }
        }
        Ok(())
    }

    /// Maps pages that are present, passing over those that are mapped, and wakes the threads that wait
    /// for any of them. Returns how many were not mapped before.
    fn map_run(
        &self,
        piece: Piece,
        start: u64,
        end: u64,
        protect: bool,
    ) -> Result<u64, FrameError> {
        // The kernel asks to try again while the address space is being changed, which ends.
        const TRIES_MAX: u32 = 10_000;
        let mut tries = 0;
        let mut mapped_count = 0;
        let mut at = start;
        while at < end {
            let address = self.address(piece, at);
            let refused = |errno| self.refused("mapping", piece, at, errno);
            add(&self.counters().calls_fault, 1);
            let progress = self.sys().map_pages(address, (end - at) as usize * PAGE_SIZE, protect);
            let page_count = (progress.byte_count / PAGE_SIZE) as u64;
            if page_count > 0 {
                at += page_count;
                mapped_count += page_count;
                continue;
            }
            match progress.stopped {
                // Mapped already: whoever waited for it goes on, and so do we, behind it.
                Some(Errno::EXIST) => {
                    add(&self.counters().calls_fault, 1);
                    self.sys().wake(address, PAGE_SIZE).map_err(refused)?;
                    at += 1;
                }
                Some(Errno::AGAIN | Errno::INTR) if tries < TRIES_MAX => {
                    tries += 1;
                    std::thread::yield_now();
                }
                stopped => return Err(refused(stopped.unwrap_or(Errno::IO))),
            }
        }
        Ok(mapped_count)
    }

    /// Writes frames from `page` on. The error names the first page that is not whole; it is absent.
    fn write_all(&self, piece: Piece, page: u64, bytes: &[u8]) -> Result<(), (u64, Errno)> {
        let mut done = 0;
        while done < bytes.len() {
            add(&self.counters().calls_frame, 1);
            let offset = piece.offset(page) + done as u64;
            let errno = match self.sys().write(&self.frames, offset, &bytes[done..]) {
                Ok(0) => Errno::NOSPC,
                Ok(byte_count) => {
                    done += byte_count;
                    continue;
                }
                Err(Errno::INTR) => continue,
                Err(errno) => errno,
            };
            return Err((page + (done / PAGE_SIZE) as u64, errno));
        }
        Ok(())
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

    fn address(&self, piece: Piece, page: u64) -> Address {
        PageNo(piece.window_page + page).address(self.held.run.base())
    }

    fn refused(&self, step: &'static str, piece: Piece, page: u64, errno: Errno) -> FrameError {
        let container = self.held.container;
        let page = PageNo(piece.window_page + page);
        match errno {
            Errno::NOMEM | Errno::NOSPC => FrameError::NoMemory { container, page },
            _ => FrameError::Refused { container, page, step, errno },
        }
    }

    fn lock(&self) -> MutexGuard<'_, Pages> {
        self.hurried.fetch_add(1, Ordering::Relaxed);
        // A panic under the lock is an assertion about arguments, made before anything changes.
        let pages = self.pages.lock().unwrap_or_else(PoisonError::into_inner);
        self.hurried.fetch_sub(1, Ordering::Relaxed);
        pages
    }

    /// Gives the lock to those who are in a hurry and takes it again, in the middle of something long.
    /// A lock that is free goes to whoever comes first, which would be this thread again and again.
    fn lock_again<'a>(&'a self, held: MutexGuard<'a, Pages>) -> MutexGuard<'a, Pages> {
        const YIELDS_MAX: u32 = 1000;
        drop(held);
        let mut yields = 0;
        while yields < YIELDS_MAX && self.hurried.load(Ordering::Relaxed) > 0 {
            std::thread::yield_now();
            yields += 1;
        }
        self.pages.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn sys(&self) -> &S {
        &self.held.space.sys
    }

    fn counters(&self) -> &Counters {
        &self.held.space.counters
    }
}

impl<S: Sys> Drop for Cluster<S> {
    fn drop(&mut self) {
        let windows = std::mem::take(&mut self.lock().windows);
        for window in &windows {
            self.held.space.disown(self.held.run.first + window);
        }
        let mut done = 0;
        while done < windows.len() {
            let run = adjacent(&windows[done..]);
            let at = Address(self.held.run.base().0 + windows[done] as usize * WINDOW_SIZE);
            add(&self.counters().calls_mapping, 1);
            self.sys().unmap(&self.held.area, at, run * WINDOW_SIZE);
            done += run;
        }
    }
}

impl<S: Sys> std::fmt::Debug for Cluster<S> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Cluster")
            .field("container", &self.held.container)
            .field("key", &self.key)
            .field("mode", &self.mode)
            .finish_non_exhaustive()
    }
}

impl Pages {
    fn new() -> Pages {
        const RUNS_PER_SCAN: usize = 512;
        Pages {
            windows: Vec::new(),
            resident: Vec::new(),
            marked: BTreeSet::new(),
            distrusted: 0,
            runs: vec![WrittenRun::default(); RUNS_PER_SCAN],
        }
    }

    /// The part of `start..end` that lies in the window of its first page.
    fn piece(&self, start: u64, end: u64) -> Piece {
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

    fn pieces(&self, range: PageRange) -> impl Iterator<Item = Piece> {
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
    fn all_pieces(&self) -> Vec<Piece> {
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

    fn resident_in(&self, piece: Piece, out: &mut Vec<PageRange>) {
        let mut at = piece.start;
        while let Some((start, end)) = self.resident[piece.slot].next_run(at, piece.end) {
            out.push(piece.range(start, end));
            at = end;
        }
    }
}

/// How many windows at the start lie one after the other.
fn adjacent(windows: &[u32]) -> usize {
    let breaks = windows.windows(2).position(|pair| pair[0].checked_add(1) != Some(pair[1]));
    breaks.map_or(windows.len(), |at| at + 1)
}

fn whole_pages(byte_len: usize) -> u64 {
    assert!(byte_len > 0 && byte_len.is_multiple_of(PAGE_SIZE), "whole pages");
    (byte_len / PAGE_SIZE) as u64
}

fn retry(mut call: impl FnMut() -> Result<(), Errno>) -> Result<(), Errno> {
    loop {
        match call() {
            Err(Errno::INTR) => {}
            other => return other,
        }
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
