//! A cluster's pages in this process: its frames, where they are mapped, which of them are in memory
//! and which were written. Where contents come from and go to is absent. Read [`Cluster`] first.
//!
//! One lock for each cluster orders everything that makes frames present or absent. That is what keeps
//! an install from overwriting newer contents: whether a page is in memory is decided by the bitmap
//! under the lock, and the bitmap is right because nobody else can add a frame (the kernel asks us
//! about every hole, and reads of the frames leave holes alone). The lock is held for system calls
//! on ordinary memory only, never while a page of a cluster is touched, so that the thread which serves
//! faults can always take it.

mod install;
mod pages;
mod scan;

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustix::io::Errno;
use stead_model::{Address, ContainerId, PAGE_SIZE, PageNo, PageRange, WINDOW_SIZE};

use crate::counters::{Counters, add};
use crate::error::{FrameError, MapError};
use crate::faults::{ClusterKey, Fault};
use crate::named::Named;
use crate::residency::Bitmap;
use crate::space::{Held, Owner};
use crate::sys::{Linux, Mode, Sys};
use pages::{Pages, Piece};

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
            for window in &windows[done..done + run] {
                // Nobody can have faulted here yet; made now, as serving a fault allocates nothing.
                self.held.space.named(self.held.run.first + window);
            }
            pages.windows.extend(&windows[done..done + run]);
            pages.resident.extend((0..run).map(|_| Bitmap::new()));
            pages.unsure.extend((0..run).map(|_| Bitmap::new()));
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
        let pieces: Vec<Piece> = pages.pieces(range).collect();
        for piece in pieces {
            pages.unsure[piece.slot].insert(piece.start, piece.end);
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
            self.name(piece, piece.start, end);
            pages.resident[piece.slot].insert(piece.start, end);
            written.map_err(|(page, errno)| self.refused("writing", piece, page, errno))?;
        }
        Ok(())
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

    /// Has the next scan look at these pages: they become writable, or known, without a fault.
    fn name(&self, piece: Piece, start: u64, end: u64) {
        self.named(piece).add_range(start, end);
    }

    fn named(&self, piece: Piece) -> &Named {
        let window = PageNo(piece.window_page).window();
        self.held.space.named(self.held.run.first + window)
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
