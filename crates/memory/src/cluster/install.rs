//! Bringing pages of a cluster into memory and mapping them, for a fault or ahead of any; and making
//! damaged ones fatal to touch. Deciding what they contain is absent. Read [`Cluster::install`] first.

use rustix::io::Errno;
use stead_model::{PAGE_SIZE, PAGES_PER_WINDOW, PageNo, PageRange};

use super::pages::Piece;
use super::{Cluster, Installed, Plan, Reason, whole_pages};
use crate::counters::add;
use crate::error::FrameError;
use crate::sys::Sys;

impl<S: Sys> Cluster<S> {
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
                if reason != Reason::AheadWritable {
                    pages.unsure[piece.slot].insert(page, filled_end);
                }
                // Counted before the thread that waits goes on and perhaps looks.
                let asked = reason.asked().map(|p| p.wrapping_sub(piece.window_page));
                let asked = asked.is_some_and(|p| (page..filled_end).contains(&p));
                add(&self.counters().pages_asked, u64::from(asked));
                add(&self.counters().pages_ahead, filled_end - page - u64::from(asked));
                if let Err(error) = self.map_new(piece, page, filled_end, reason) {
                    // Not mapped counts as written.
                    self.name(piece, page, filled_end);
                    return Err(error);
                }
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
        if !protect {
            // Before the first write, which no fault announces.
            self.name(piece, start, end);
        }
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
}
