//! What a thread must remember of its open section in order to undo it: old bytes, allocations, frees
//! to come, locks held. One journal for each thread, volatile, never flushed. It knows no types and no
//! allocator. Read [`Journal`] first.
//!
//! Rules: bytes are noted before they are lent for change; the oldest note of a byte wins, as notes
//! are restored newest first; bytes outside the container (values on the stack) are never noted;
//! memory that this section allocated needs no note, as undoing frees it.

use std::cell::{Cell, UnsafeCell};
use std::ptr::{self, NonNull, null_mut, with_exposed_provenance_mut};
use std::sync::atomic::{AtomicU64, Ordering};

use crate::planted::{self, Bug};

/// What this thread has open, outermost mutating section first.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Open {
    /// No section.
    Nothing,
    /// Reading sections only.
    Read,
    /// A mutating section, perhaps with reading ones inside.
    Write,
    /// An exclusive section.
    Exclusive,
}

/// How a lock is held.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Mode {
    Read,
    Write,
}

/// A lock that a section of this thread holds until its end.
pub(crate) struct Hold {
    /// Address of the lock in the container; 0 once released.
    pub(crate) lock: usize,
    /// Its state; none for a lock that is not in the container but in a value on the stack.
    pub(crate) word: *const AtomicU64,
    /// The section that holds it.
    pub(crate) section: u64,
    pub(crate) mode: Mode,
    /// Guards that live: a number of reading ones, or -1 for a writing one.
    pub(crate) guards: i32,
}

const FILTER_SIZE: usize = 1024;

/// Words of notes from which on a section looks whether it noted a place before. A shorter one does
/// not: where addresses come from memory, the look-up keeps the processor from running ahead, and costs
/// more than the notes that it saves.
const FILTER_FROM: usize = 1 << 20;

/// One thread's memory of its open sections. All cells are touched by this thread alone, and no code of
/// a program runs while one of them is borrowed.
pub(crate) struct Journal {
    open: Cell<Open>,
    /// Whether the mutating section left anything to do at its end.
    touched: Cell<bool>,
    readers: Cell<u32>,
    /// Number of the section opened last.
    serial: Cell<u64>,
    /// Of the outermost section; 0 until it asks for a lock.
    age: Cell<u32>,
    /// Container of the mutating section: first address, bytes.
    base: Cell<usize>,
    span: Cell<usize>,
    /// Memory that this section allocated last in whole pages.
    fresh_start: Cell<usize>,
    fresh_bytes: Cell<usize>,
    /// Old bytes, each note followed by its trailer; see `push_note`.
    notes: UnsafeCell<Vec<u64>>,
    /// In so many sections more the room for many notes is kept.
    large_lately: Cell<u32>,
    /// The note taken last.
    last_start: Cell<usize>,
    last_bytes: Cell<usize>,
    /// Addresses and lengths noted lately, in a section with many notes; empty before.
    filter: UnsafeCell<Vec<(usize, usize)>>,
    allocations: UnsafeCell<Vec<usize>>,
    frees: UnsafeCell<Vec<usize>>,
    pub(crate) holds: UnsafeCell<Vec<Hold>>,
    /// The lock that a section of this thread could not wait for.
    pub(crate) busy: Cell<*const AtomicU64>,
    /// The allocator's cache for the arena of the mutating section.
    pub(crate) cache: Cell<*mut crate::alloc::ThreadCache>,
    /// Given back when the thread ends.
    pub(crate) caches: UnsafeCell<crate::alloc::ThreadCaches>,
    random: Cell<u64>,
}

thread_local! {
    static CURRENT: Cell<*mut Journal> = const { Cell::new(null_mut()) };
    static OWNED: Owner = const { Owner(Cell::new(null_mut())) };
}

/// Frees the journal when its thread ends.
struct Owner(Cell<*mut Journal>);

impl Drop for Owner {
    fn drop(&mut self) {
        let p = self.0.get();
        if !p.is_null() {
            CURRENT.set(null_mut());
            // SAFETY: made by Box::into_raw in `create`, given to this owner alone; CURRENT no longer
            // names it, and no section is open, as sections are closures that have ended.
            drop(unsafe { Box::from_raw(p) });
        }
    }
}

impl Journal {
    /// This thread's journal. The pointer is valid until the thread ends.
    #[inline(always)]
    pub(crate) fn current() -> NonNull<Journal> {
        match NonNull::new(CURRENT.get()) {
            Some(journal) => journal,
            None => Self::create(),
        }
    }

    #[cold]
    #[inline(never)]
    fn create() -> NonNull<Journal> {
        use std::hash::{BuildHasher, RandomState};
        let journal = Box::into_raw(Box::new(Journal {
            open: Cell::new(Open::Nothing),
            touched: Cell::new(false),
            readers: Cell::new(0),
            serial: Cell::new(0),
            age: Cell::new(0),
            base: Cell::new(0),
            span: Cell::new(0),
            fresh_start: Cell::new(0),
            fresh_bytes: Cell::new(0),
            notes: UnsafeCell::new(Vec::with_capacity(1024)),
            large_lately: Cell::new(0),
            last_start: Cell::new(0),
            last_bytes: Cell::new(0),
            filter: UnsafeCell::default(),
            allocations: UnsafeCell::new(Vec::with_capacity(64)),
            frees: UnsafeCell::new(Vec::with_capacity(64)),
            holds: UnsafeCell::new(Vec::with_capacity(16)),
            busy: Cell::new(ptr::null()),
            cache: Cell::new(null_mut()),
            caches: UnsafeCell::default(),
            random: Cell::new(RandomState::new().hash_one(0u64) | 1),
        }));
        CURRENT.set(journal);
        // In a thread that is ending the owner may be gone: then this journal is left behind.
        let _ = OWNED.try_with(|owner| owner.0.set(journal));
        NonNull::new(journal).expect("a box has an address")
    }

    /// What this thread has open.
    #[inline(always)]
    pub(crate) fn open(&self) -> Open {
        match self.open.get() {
            Open::Nothing if self.readers.get() > 0 => Open::Read,
            open => open,
        }
    }

    /// Opens the one mutating section that a thread may have.
    ///
    /// # Panics
    /// If any section is open: the caller did not look.
    #[inline(always)]
    pub(crate) fn begin_mutating(&self, open: Open, base: usize, span: usize, age: u32) -> u64 {
        if self.open() != Open::Nothing {
            already_open(self.open());
        }
        debug_assert!(self.cache.get().is_null(), "a section left its allocator to the next");
        self.open.set(open);
        self.base.set(base);
        self.span.set(span);
        self.age.set(age);
        self.next_serial()
    }

    #[inline(always)]
    pub(crate) fn begin_reading(&self) -> u64 {
        if self.readers.get() == 0 && self.open.get() == Open::Nothing {
            self.age.set(0);
        }
        self.readers.set(self.readers.get() + 1);
        self.next_serial()
    }

    /// Ends a reading section and releases the locks that it took.
    #[inline(always)]
    pub(crate) fn end_reading(&self, section: u64) {
        self.readers.set(self.readers.get() - 1);
        // SAFETY: only this thread comes here, and nothing is done with the reference but this.
        if unsafe { !(*self.holds.get()).is_empty() } {
            crate::lock::release_all(self, section);
            if self.open.get() == Open::Nothing {
                self.busy.set(ptr::null());
            }
        }
    }

    #[inline(always)]
    fn next_serial(&self) -> u64 {
        let serial = self.serial.get().wrapping_add(1);
        self.serial.set(serial);
        serial
    }

    /// Whether the mutating section has anything to commit or undo.
    #[inline(always)]
    pub(crate) fn touched(&self) -> bool {
        self.touched.get()
    }

    #[inline(always)]
    pub(crate) fn touch(&self) {
        self.touched.set(true);
    }

    /// Ends a mutating section that has nothing left to do.
    #[inline(always)]
    pub(crate) fn end_mutating(&self) {
        self.open.set(Open::Nothing);
    }

    /// The age of this thread's outermost section: older ones have smaller numbers, cyclically.
    #[inline]
    pub(crate) fn age(&self) -> u32 {
        if self.age.get() == 0 {
            self.age.set(next_age());
        }
        self.age.get()
    }

    pub(crate) fn age_so_far(&self) -> u32 {
        self.age.get()
    }

    #[inline(always)]
    fn in_container(&self, address: usize) -> bool {
        address.wrapping_sub(self.base.get()) < self.span.get()
    }

    /// Notes `bytes` bytes at `at` before they are lent for change.
    ///
    /// # Safety
    /// A mutating section of this thread is open, and the bytes can be read.
    #[inline(always)]
    pub(crate) unsafe fn note(&self, at: *const u8, bytes: usize) {
        let address = at.addr();
        if !self.in_container(address) {
            return;
        }
        if address == self.last_start.get() && bytes <= self.last_bytes.get() {
            return;
        }
        self.last_start.set(address);
        self.last_bytes.set(bytes);
        // SAFETY: only this thread comes here, and nothing is done with the reference but this.
        if unsafe { (*self.notes.get()).len() } > FILTER_FROM && self.noted_lately(address, bytes) {
            return;
        }
        // SAFETY: as the caller vouches.
        unsafe { self.push_note(at, bytes) }
    }

    #[inline(never)]
    fn noted_lately(&self, address: usize, bytes: usize) -> bool {
        // SAFETY: only this thread comes here, and nothing below calls out.
        let filter = unsafe { &mut *self.filter.get() };
        filter.resize(FILTER_SIZE, (0, 0));
        let seen = &mut filter[(address >> 3) % FILTER_SIZE];
        if seen.0 == address && bytes <= seen.1 {
            return true;
        }
        *seen = (address, bytes);
        false
    }

    /// Notes one control byte of a hash table.
    ///
    /// # Safety
    /// As for [`Journal::note`], and `at` lies in the container.
    #[inline(always)]
    pub(crate) unsafe fn note_byte(&self, at: *const u8) {
        if at.addr().wrapping_sub(self.fresh_start.get()) < self.fresh_bytes.get()
            || planted::on(Bug::ControlByteNotNoted)
        {
            return;
        }
        // SAFETY: as the caller vouches.
        unsafe { self.push_note(at, 1) }
    }

    /// Appends the bytes, padded to eight, and a trailer: address and, in the upper 16 bits, length. A
    /// length of 0 there says that the word before it has the length.
    #[inline(always)]
    unsafe fn push_note(&self, at: *const u8, bytes: usize) {
        // A value without bytes has nothing to undo, and its length would read as that of a long note.
        if bytes == 0 {
            return;
        }
        self.touched.set(true);
        // SAFETY: only this thread comes here, and nothing below calls out.
        let notes = unsafe { &mut *self.notes.get() };
        let words = bytes.div_ceil(8);
        if notes.capacity() - notes.len() < words + 2 {
            grow(notes, words + 2);
        }
        // SAFETY: there is room for words + 2 after len; the source can be read, and is not part of
        // this buffer, as the buffer is on the ordinary heap.
        unsafe {
            let to = notes.as_mut_ptr().add(notes.len());
            ptr::copy_nonoverlapping(at, to.cast::<u8>(), bytes);
            let mut end = words;
            let mut short = bytes as u64;
            if bytes > 0xffff {
                to.add(end).write(bytes as u64);
                end += 1;
                short = 0;
            }
            to.add(end).write(at.expose_provenance() as u64 | short << 48);
            notes.set_len(notes.len() + end + 1);
        }
    }

    /// Puts all noted bytes back, the newest note first.
    ///
    /// # Safety
    /// The noted places are still mapped and nobody else reads or writes them.
    pub(crate) unsafe fn restore(&self) {
        // SAFETY: only this thread comes here, and nothing below calls out.
        let notes = unsafe { &mut *self.notes.get() };
        while let Some(trailer) = notes.pop() {
            let mut bytes = (trailer >> 48) as usize;
            if bytes == 0 {
                bytes = notes.pop().expect("a long note has its length") as usize;
            }
            let start = notes.len() - bytes.div_ceil(8);
            let to = with_exposed_provenance_mut::<u8>((trailer & 0xffff_ffff_ffff) as usize);
            // SAFETY: start..len holds the bytes; the target was readable when noted, is mapped and
            // ours alone by the caller's word; the buffer is not in the container.
            unsafe { ptr::copy_nonoverlapping(notes.as_ptr().add(start).cast::<u8>(), to, bytes) };
            notes.truncate(start);
        }
    }

    /// Forgets notes and lists. Locks must have been released.
    pub(crate) fn reset(&self) {
        // SAFETY: only this thread comes here, and nothing below calls out. The vectors hold plain
        // numbers.
        unsafe {
            let notes = &mut *self.notes.get();
            if notes.len() > NOTES_KEPT_MAX {
                self.large_lately.set(LARGE_LATELY);
            }
            notes.clear();
            if notes.capacity() > NOTES_KEPT_MAX {
                let left = self.large_lately.get();
                self.large_lately.set(left.saturating_sub(1));
                notes.shrink_to(if left > 0 { NOTES_KEPT_LARGE } else { NOTES_KEPT_MAX });
            }
            for list in [&mut *self.allocations.get(), &mut *self.frees.get()] {
                list.clear();
                if list.capacity() > LIST_KEPT_MAX {
                    list.shrink_to(LIST_KEPT_MAX);
                }
            }
            (*self.filter.get()).clear();
        }
        self.fresh_bytes.set(0);
        self.last_start.set(0);
        self.last_bytes.set(0);
        self.touched.set(false);
        self.cache.set(null_mut());
        self.busy.set(ptr::null());
    }

    /// Remembers an allocation of the open section.
    #[inline(always)]
    pub(crate) fn allocated(&self, address: usize) {
        self.touched.set(true);
        // SAFETY: only this thread comes here; push does not call out.
        unsafe { (*self.allocations.get()).push(address) };
    }

    /// Remembers the latest allocation of whole pages: its bytes need no notes.
    pub(crate) fn allocated_run(&self, address: usize, bytes: usize) {
        self.fresh_start.set(address);
        self.fresh_bytes.set(bytes);
    }

    /// Frees what the section gave up, as it commits.
    pub(crate) fn free_due(&self, shared: &crate::alloc::Shared) {
        // SAFETY: only this thread comes here, and freeing does not come back to the journal.
        let frees = unsafe { &*self.frees.get() };
        if !frees.is_empty() {
            shared.free_all(frees);
        }
    }

    /// Frees what the section allocated, as it is undone.
    pub(crate) fn free_allocations(&self, shared: &crate::alloc::Shared) {
        // SAFETY: only this thread comes here, and freeing does not come back to the journal.
        let allocations = unsafe { &*self.allocations.get() };
        if !allocations.is_empty() {
            shared.free_all(allocations);
        }
    }

    /// A number that maps may use as their seed.
    pub(crate) fn random(&self) -> u64 {
        let mut x = self.random.get();
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        self.random.set(x);
        x.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }
}

/// Words of the note buffer that a thread keeps from section to section.
const NOTES_KEPT_MAX: usize = 1 << 20;

/// The same of a thread that has lately needed more: memory that is new each time costs more than the notes.
const NOTES_KEPT_LARGE: usize = 1 << 24;

/// Sections for which a large one counts as lately.
const LARGE_LATELY: u32 = 64;

/// Addresses of allocations, and of frees, that a thread keeps room for.
const LIST_KEPT_MAX: usize = 1 << 16;

#[cold]
#[inline(never)]
fn grow(notes: &mut Vec<u64>, words: usize) {
    notes.reserve(words.max(notes.len()));
}

#[cold]
#[inline(never)]
fn already_open(open: Open) -> ! {
    panic!("a mutating section was entered while this thread has another open: {open:?}");
}

/// Frees memory of the container when the open section commits: what `Drop` of trees comes to, for
/// there is nothing that could be passed to it.
#[inline]
pub(crate) fn free_later(address: usize) {
    let journal = CURRENT.get();
    if journal.is_null() {
        debug_assert!(false, "a tree was dropped outside any section");
        return;
    }
    // SAFETY: CURRENT names this thread's journal while it exists.
    let journal = unsafe { &*journal };
    if !matches!(journal.open.get(), Open::Write | Open::Exclusive)
        || !journal.in_container(address)
    {
        debug_assert!(false, "a tree was dropped outside its section");
        return;
    }
    journal.touched.set(true);
    // SAFETY: only this thread comes here; push does not call out.
    unsafe { (*journal.frees.get()).push(address) };
}

/// What this thread has open.
#[must_use]
pub fn section_open() -> Open {
    let journal = CURRENT.get();
    if journal.is_null() {
        return Open::Nothing;
    }
    // SAFETY: CURRENT names this thread's journal while it exists.
    unsafe { (*journal).open() }
}

/// Deaths of sections so far: see [`note_death`].
static DEATHS: AtomicU64 = AtomicU64::new(0);

/// A section gave way to an older one. What is left of the blocks of ages is given up: sections that begin
/// from now on are younger than the one that died, so that it is soon the oldest, and gets its locks.
#[cold]
pub(crate) fn note_death() {
    DEATHS.fetch_add(1, Ordering::Relaxed);
}

/// Ages are given to threads in blocks, so that sections with locks share no counter while none of them dies.
/// They stay a total order, and a section that keeps its age becomes the oldest in time.
fn next_age() -> u32 {
    const BLOCK: u64 = 64;
    static NEXT: AtomicU64 = AtomicU64::new(0);
    thread_local! { static MINE: Cell<(u64, u64)> = const { Cell::new((0, 0)) } }
    let (mut age, deaths_seen) = MINE.get();
    let deaths = DEATHS.load(Ordering::Relaxed);
    if age.is_multiple_of(BLOCK) || deaths != deaths_seen {
        age = NEXT.fetch_add(BLOCK, Ordering::Relaxed);
    }
    // 0 says "none yet", so ages count from 1 in each block, and one number of a block stays unused.
    age += 1;
    MINE.set((if age % BLOCK == BLOCK - 1 { 0 } else { age }, deaths));
    age as u32
}
