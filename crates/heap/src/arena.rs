//! One open container: made, opened, given a root, and entered by sections. The caller keeps the gate:
//! who may be inside, and when, is decided elsewhere. Read [`Arena`] first.

use std::fmt;
use std::ptr::{NonNull, with_exposed_provenance, with_exposed_provenance_mut};
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use stead_model::{Address, ContainerId, PAGE_SIZE, PageNo, PageRange, WINDOW_SIZE};
use thiserror::Error;

use crate::alloc::{self, Shared};
use crate::directory::{Directory, DirectoryError, directory};
use crate::error::{AllocError, Damaged, OtherType};
use crate::ground::Ground;
use crate::journal::{Journal, Open};
use crate::layout::{
    FIRST_PAGE, MAGIC, WINDOW_PAGES, descriptor, header, kind, page_in_window, window_base,
};
use crate::lock::{self, BusyLock};
use crate::planted::{self, Bug};
use crate::registry::Registry;
use crate::section::{Exclusive, Read, Tx, Write};
use crate::types::{Root, TypeDescription, TypeRef};

/// The volatile side of an open container. Losing it loses hints only: what is free is found again.
pub struct Arena {
    pub(crate) shared: Arc<Shared>,
}

/// Why a container could not be made.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum FormatError {
    /// The ground is not what a container can stand on.
    #[error("cannot make a container of {window_count} windows at {base}: {reason}")]
    Ground {
        /// Where it was to be.
        base: Address,
        /// How large.
        window_count: u32,
        /// What is wrong.
        reason: &'static str,
    },
}

/// Why a container could not be opened.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum OpenArenaError {
    /// Its first page says no.
    #[error(transparent)]
    Directory(#[from] DirectoryError),
    /// It is open already.
    #[error(
        "the container at {base} is open already: two allocators would give out the same memory"
    )]
    InUse {
        /// Where it is.
        base: Address,
    },
    /// It is mapped elsewhere than its pointers say.
    #[error("the container belongs at {belongs} but is mapped at {mapped}")]
    Elsewhere {
        /// The address that its pointers count on.
        belongs: Address,
        /// Where it is.
        mapped: Address,
    },
    /// It has more windows than are mapped.
    #[error("the container has {has} windows but {mapped} are mapped")]
    WindowCount {
        /// As its first page says.
        has: u32,
        /// As the ground says.
        mapped: u32,
    },
    /// A window's first page is damaged.
    #[error("window {window} of the container is damaged: {field} is {value:#x}")]
    Window {
        /// Which window.
        window: u32,
        /// Which field of its first page.
        field: &'static str,
        /// What it holds.
        value: u64,
    },
    /// The type descriptions cannot be read.
    #[error("the container's type descriptions are damaged ({bytes} bytes at {address})")]
    Types {
        /// Where they are.
        address: Address,
        /// How many bytes.
        bytes: u64,
    },
}

/// Why the root is not of a type.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum RootError {
    /// There is none yet.
    #[error("the container has no root yet")]
    NoRoot,
    /// It is of another type, or one that it mentions is another. Both are shown.
    #[error("{0}")]
    OtherType(Box<OtherType>),
    /// The program's type has another name than the root's.
    #[error("the container's root is of type\n{stored}\nbut this program expects\n{program}")]
    OtherRoot {
        /// What is in the container.
        stored: String,
        /// What the program asks for.
        program: String,
    },
}

/// Why there is still no root.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum InitRootError<E> {
    /// There is one already.
    #[error("the container has a root already")]
    HasRoot,
    /// There is no memory for it, or its type clashes with one in the container.
    #[error(transparent)]
    Alloc(AllocError),
    /// What the closure said.
    #[error("{0}")]
    Closure(E),
}

/// One call of a program that opens a section, over all its attempts: keeps the section's age, so that it
/// becomes the oldest in time and gets its locks.
#[derive(Debug, Default)]
pub struct Attempt {
    age: u32,
}

impl Attempt {
    /// The first attempt.
    #[must_use]
    pub const fn new() -> Self {
        Attempt { age: 0 }
    }
}

/// How a mutating section ended.
#[derive(Debug)]
pub enum Ended<T, E> {
    /// It happened.
    Committed(T),
    /// It did not happen, as the closure returned this error.
    Undone(E),
    /// It did not happen: it returned this error after a lock said [`LockError::Deadlock`]. Leave the
    /// gate, [`Arena::wait_lock_free`], and try again with the same [`Attempt`].
    ///
    /// [`LockError::Deadlock`]: crate::LockError::Deadlock
    Deadlock(E, BusyLock),
}

impl fmt::Debug for Arena {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Arena").field("container", &self.id()).field("base", &self.base()).finish()
    }
}

impl Arena {
    /// Makes an empty container on this ground: one cluster with an empty segment, no root (A4).
    ///
    /// # Errors
    /// If the ground's base or size are not those of a container.
    pub fn format(ground: Arc<dyn Ground>, id: ContainerId) -> Result<Arena, FormatError> {
        let (base, window_count) = (ground.base(), ground.window_count());
        let refuse =
            |reason| Err(FormatError::Ground { base: Address(base), window_count, reason });
        if !base.is_multiple_of(WINDOW_SIZE) || base == 0 {
            return refuse("the base is not a multiple of 64 GiB");
        }
        if window_count == 0 || window_count > stead_model::WINDOW_COUNT {
            return refuse("it has no windows, or more than the address range");
        }
        if id > ContainerId::MAX {
            return refuse("the container's number is too large");
        }
        if !alloc::claim(&*ground) {
            return refuse("another arena of this process stands on it");
        }
        Ok(Arena { shared: Shared::format(ground, id) })
    }

    /// Opens the container on this ground, whose assigned windows are mapped. Reads the first page of
    /// each window and the type descriptions, nothing else (A7, B10).
    ///
    /// # Errors
    /// If there is no container here, or a damaged one.
    pub fn open(ground: Arc<dyn Ground>) -> Result<Arena, OpenArenaError> {
        if !alloc::claim(&*ground) {
            return Err(OpenArenaError::InUse { base: Address(ground.base()) });
        }
        let opened = Self::open_claimed(&ground);
        if opened.is_err() {
            alloc::unclaim(&*ground);
        }
        opened
    }

    fn open_claimed(ground: &Arc<dyn Ground>) -> Result<Arena, OpenArenaError> {
        let base = ground.base();
        let page = with_exposed_provenance::<[u8; PAGE_SIZE]>(base);
        // SAFETY: window 0 is mapped, and nobody writes it while the container is being opened.
        let found: Directory = directory(unsafe { &*page })?;
        if found.base.0 != base {
            return Err(OpenArenaError::Elsewhere { belongs: found.base, mapped: Address(base) });
        }
        if found.window_count != ground.window_count() {
            let mapped = ground.window_count();
            return Err(OpenArenaError::WindowCount { has: found.window_count, mapped });
        }
        let mut segment_ends = vec![FIRST_PAGE; found.window_count as usize];
        for (w, cluster) in found.clusters.iter().enumerate() {
            let Some(cluster) = cluster else { continue };
            // SAFETY: assigned windows are mapped.
            let h = unsafe { header(base + w * WINDOW_SIZE) };
            let window = w as u32;
            let damaged = |field, value| Err(OpenArenaError::Window { window, field, value });
            if h.magic != MAGIC {
                return damaged("its first word", h.magic);
            }
            if h.window != window {
                return damaged("its number", u64::from(h.window));
            }
            if h.cluster != *cluster {
                return damaged("its cluster", u64::from(h.cluster));
            }
            let pages = h.segment_pages.load(Relaxed);
            if pages > u64::from(WINDOW_PAGES - FIRST_PAGE) {
                return damaged("its segment's length in pages", pages);
            }
            segment_ends[w] = FIRST_PAGE + pages as u32;
        }
        let registry = Self::read_types(&found, &segment_ends)?;
        let shared =
            Shared::open(ground.clone(), found.container, &found.clusters, &segment_ends, registry);
        shared.root.store(found.root.map_or(0, |r| r.0), Relaxed);
        Ok(Arena { shared })
    }

    fn read_types(found: &Directory, segment_ends: &[u32]) -> Result<Registry, OpenArenaError> {
        // SAFETY: window 0 is mapped.
        let h = unsafe { header(found.base.0) };
        let address = h.types_address.load(Relaxed);
        let bytes = h.types_bytes.load(Relaxed);
        if address == 0 && bytes == 0 && h.type_count.load(Relaxed) == 0 {
            return Ok(Registry::default());
        }
        let damaged = OpenArenaError::Types { address: Address(address as usize), bytes };
        let at = address as usize;
        let window = at.wrapping_sub(found.base.0) / WINDOW_SIZE;
        if found.clusters.get(window) != Some(&Some(0)) || !at.is_multiple_of(PAGE_SIZE) {
            return Err(damaged);
        }
        let (page, end) = (page_in_window(at), segment_ends[window]);
        if page < FIRST_PAGE || page >= end {
            return Err(damaged);
        }
        // SAFETY: a page of a window that is assigned, and so mapped.
        let d = unsafe { descriptor(window_base(at), page) };
        let run_pages = d.run_pages.load(Relaxed);
        let is_table = d.kind.load(Relaxed) == kind::TYPES && d.run_start.load(Relaxed) == page;
        let fits = u64::from(run_pages) * PAGE_SIZE as u64 >= bytes;
        if !is_table || !fits || run_pages > end - page {
            return Err(damaged);
        }
        // SAFETY: these bytes lie in the segment of a mapped window; nobody writes while the
        // container is being opened.
        let table = unsafe {
            std::slice::from_raw_parts(with_exposed_provenance::<u8>(at), bytes as usize)
        };
        Registry::parse(table, h.type_count.load(Relaxed)).ok_or(damaged)
    }

    /// The container's number.
    #[must_use]
    pub fn id(&self) -> ContainerId {
        self.shared.container
    }

    /// Address of its first byte.
    #[must_use]
    pub fn base(&self) -> Address {
        Address(self.shared.base)
    }

    /// Windows that it may use.
    #[must_use]
    pub fn window_count(&self) -> u32 {
        (self.shared.span / WINDOW_SIZE) as u32
    }

    /// What the container says its root is; `None` while it has none.
    #[must_use]
    pub fn root_type(&self) -> Option<TypeDescription> {
        if self.shared.root.load(Relaxed) == 0 {
            return None;
        }
        // SAFETY: window 0 is mapped while the arena is open.
        let number = unsafe { header(self.shared.base) }.root_type.load(Relaxed);
        let registry = self.shared.registry.lock().unwrap_or_else(|e| e.into_inner());
        registry.get(number).cloned()
    }

    /// Brings the root into memory, so that the first touch of it cannot fail.
    ///
    /// # Errors
    /// If a page of it is damaged.
    pub fn check_root_page(&self) -> Result<(), Damaged> {
        let bytes = self.root_type().map_or(0, |ty| ty.size as usize);
        match self.shared.root.load(Relaxed) {
            0 => Ok(()),
            root => self.shared.ground.check(root, bytes.max(1)),
        }
    }

    /// Compares `R` and all types reachable from it with what the container says its root is.
    ///
    /// # Errors
    /// If there is no root, or it is of another type: both declarations are shown.
    pub fn check_root<R: Root>(&self) -> Result<(), RootError> {
        let stored = self.root_type().ok_or(RootError::NoRoot)?;
        let ty = TypeRef::of::<R::At<'static>>();
        let mut registry = self.shared.registry.lock().unwrap_or_else(|e| e.into_inner());
        if stored.id != ty.id {
            let program = (ty.describe)(&mut crate::types::Describer::default());
            return Err(RootError::OtherRoot {
                stored: stored.to_string(),
                program: program.to_string(),
            });
        }
        registry.compare(ty).map_err(|e| RootError::OtherType(Box::new(e)))?;
        Ok(())
    }

    /// Gives the container its root, in a mutating section of its own.
    ///
    /// # Errors
    /// If it has one, if memory cannot be had, or what `f` says; then the container is as it was.
    ///
    /// # Safety
    /// As for [`Arena::write`], but for the root, which need not exist.
    pub unsafe fn init_root<R: Root, E>(
        &self,
        f: impl for<'s> FnOnce(&'s Tx<'s>) -> Result<R::At<'s>, E>,
    ) -> Result<(), InitRootError<E>> {
        if self.shared.root.load(Relaxed) != 0 {
            return Err(InitRootError::HasRoot);
        }
        let section = OpenSection::begin(&self.shared, Open::Write, 0);
        // SAFETY: the section is open until `section` ends, below.
        let tx = unsafe { Tx::new(section.journal, &self.shared, section.number) };
        // SAFETY: extends the borrow to the brand that `f` is given; `tx` lives until the end of this
        // function, and `f` can keep nothing that has the brand.
        let tx = unsafe { NonNull::from(&tx).as_ref() };
        let made = f(tx).map_err(InitRootError::Closure).and_then(|value| {
            let number = self
                .shared
                .type_number(TypeRef::of::<R::At<'_>>())
                .map_err(InitRootError::Alloc)?;
            let pointer = tx.alloc(value).map_err(InitRootError::Alloc)?;
            Ok((pointer.address(), number))
        });
        match made {
            Ok((address, number)) => {
                // SAFETY: window 0 is mapped while the arena is open.
                let h = unsafe { header(self.shared.base) };
                h.root_type.store(number, Relaxed);
                h.root.store(address.0 as u64, Relaxed);
                self.shared.root.store(address.0, Relaxed);
                section.commit();
                Ok(())
            }
            Err(e) => {
                section.undo();
                Err(e)
            }
        }
    }

    #[inline(always)]
    fn root_address(&self) -> usize {
        let root = self.shared.root.load(Relaxed);
        debug_assert_ne!(root, 0, "a section was entered in a container without root");
        root
    }

    /// Runs `f` in a mutating section beside others, once. It is committed if `f` returns `Ok`, undone if
    /// it returns `Err` or panics; the panic goes on.
    ///
    /// # Panics
    /// If this thread has a section open.
    ///
    /// # Safety
    /// [`Arena::check_root`] for `R` or [`Arena::init_root`] succeeded. The container's windows stay
    /// mapped, and no exclusive section is open in it nor its mapping changed, until this returns.
    #[inline]
    pub unsafe fn write<R: Root, T, E>(
        &self,
        attempt: &mut Attempt,
        mut f: impl for<'s> FnMut(&'s R::At<'s>, &'s Write<'s>) -> Result<T, E>,
    ) -> Ended<T, E> {
        let section = OpenSection::begin(&self.shared, Open::Write, attempt.age);
        // SAFETY: the section is open until `section` ends, below.
        let tx = unsafe { Write::new(Tx::new(section.journal, &self.shared, section.number)) };
        let root = with_exposed_provenance(self.root_address());
        // SAFETY: the root is a live value of this type (conditions of this function), shared between
        // sections that run side by side. Both references get the brand's lifetime; `f` can keep
        // nothing that has it, and what they name outlives the call of `f`.
        let result = f(unsafe { &*root }, unsafe { NonNull::from(&tx).as_ref() });
        section.end(attempt, result)
    }

    /// Runs `f` in a section that is alone in the container, once. Ends as [`Arena::write`] does.
    ///
    /// # Panics
    /// If this thread has a section open.
    ///
    /// # Safety
    /// As for [`Arena::write`], and no other section is open in the container until this returns.
    #[inline]
    pub unsafe fn exclusive<R: Root, T, E>(
        &self,
        attempt: &mut Attempt,
        mut f: impl for<'s> FnMut(&'s mut R::At<'s>, &'s mut Exclusive<'s>) -> Result<T, E>,
    ) -> Ended<T, E> {
        let section = OpenSection::begin(&self.shared, Open::Exclusive, attempt.age);
        // SAFETY: the section is open until `section` ends, below, and is alone.
        let mut tx =
            unsafe { Exclusive::new(Tx::new(section.journal, &self.shared, section.number)) };
        let root = with_exposed_provenance_mut(self.root_address());
        let result = call_exclusive::<R, T, E>(root, &mut tx, &mut f);
        section.end(attempt, result)
    }

    /// Runs `f` in a reading section. It may be inside another section of this thread.
    ///
    /// # Safety
    /// As for [`Arena::write`].
    #[inline]
    pub unsafe fn read<R: Root, T>(
        &self,
        f: impl for<'s> FnOnce(&'s R::At<'s>, &'s Read<'s>) -> T,
    ) -> T {
        let section = OpenReading::begin();
        // SAFETY: the section is open until `section` is dropped, at the end.
        let token = unsafe { Read::new(section.journal, &self.shared, section.number) };
        let root = with_exposed_provenance(self.root_address());
        // SAFETY: as in `write`.
        f(unsafe { &*root }, unsafe { NonNull::from(&token).as_ref() })
    }

    /// Waits until a lock is free or may have been; to be called with no section open and outside the
    /// gate. At most about 10 ms.
    pub fn wait_lock_free(&self, lock: BusyLock) {
        lock::wait_free(&self.shared, lock);
    }

    /// Reports the pages freed since the last call that are still free: their bytes need not be kept.
    pub fn take_freed_pages(&self, f: &mut dyn FnMut(PageRange)) {
        self.shared.take_freed_pages(f);
    }

    /// Whether nothing is kept on this page. While mutating sections are open that may change.
    #[must_use]
    pub fn page_is_free(&self, page: PageNo) -> bool {
        self.shared.page_is_free(page.0)
    }
}

/// Notes the root's own bytes and lends it.
#[inline(always)]
fn call_exclusive<R: Root, T, E>(
    root: *mut R::At<'_>,
    tx: &mut Exclusive<'_>,
    f: &mut impl for<'s> FnMut(&'s mut R::At<'s>, &'s mut Exclusive<'s>) -> Result<T, E>,
) -> Result<T, E> {
    tx.note(root);
    let (root, tx) = (root.cast(), &raw mut *tx);
    // SAFETY: the root is a live value of this type and this section is alone in the container, so the
    // reference is the only one; the token lives in the caller's frame. Both get the brand's lifetime,
    // with which `f` can keep nothing.
    f(unsafe { &mut *root }, unsafe { &mut *tx.cast() })
}

/// A mutating section that is open; undone when dropped, as by a panic.
struct OpenSection<'a> {
    journal: NonNull<Journal>,
    shared: &'a Arc<Shared>,
    number: u64,
}

impl<'a> OpenSection<'a> {
    #[inline(always)]
    fn begin(shared: &'a Arc<Shared>, open: Open, age: u32) -> Self {
        let journal = Journal::current();
        // SAFETY: the journal lives as long as this thread.
        let number =
            unsafe { journal.as_ref() }.begin_mutating(open, shared.base, shared.span, age);
        OpenSection { journal, shared, number }
    }

    #[inline(always)]
    fn journal(&self) -> &Journal {
        // SAFETY: the journal lives as long as this thread, and sections do not change threads.
        unsafe { self.journal.as_ref() }
    }

    #[inline(always)]
    fn end<T, E>(self, attempt: &mut Attempt, result: Result<T, E>) -> Ended<T, E> {
        match result {
            Ok(value) => {
                self.commit();
                Ended::Committed(value)
            }
            Err(e) => {
                let busy = self.journal().busy.get();
                attempt.age = self.journal().age_so_far();
                self.undo();
                if busy.is_null() {
                    Ended::Undone(e)
                } else {
                    Ended::Deadlock(e, BusyLock::new(busy))
                }
            }
        }
    }

    #[inline(always)]
    fn commit(self) {
        if self.journal().touched() {
            self.commit_changes();
        }
        self.journal().end_mutating();
        std::mem::forget(self);
    }

    #[inline(never)]
    fn commit_changes(&self) {
        let journal = self.journal();
        journal.free_due(self.shared);
        journal.reset();
        lock::release_all(journal, self.number);
    }

    fn undo(self) {
        drop(self);
    }
}

impl Drop for OpenSection<'_> {
    #[cold]
    fn drop(&mut self) {
        let journal = self.journal();
        // SAFETY: what was noted is this section's to change: its locks are still held, or it is alone.
        // The closure has ended, so nothing of it refers to these bytes.
        unsafe { journal.restore() };
        if !planted::on(Bug::AllocationsNotUndone) {
            journal.free_allocations(self.shared);
        }
        journal.reset();
        lock::release_all(journal, self.number);
        journal.end_mutating();
    }
}

/// A reading section that is open.
struct OpenReading {
    journal: NonNull<Journal>,
    number: u64,
}

impl OpenReading {
    #[inline(always)]
    fn begin() -> Self {
        let journal = Journal::current();
        // SAFETY: the journal lives as long as this thread.
        let number = unsafe { journal.as_ref() }.begin_reading();
        OpenReading { journal, number }
    }
}

impl Drop for OpenReading {
    #[inline(always)]
    fn drop(&mut self) {
        // SAFETY: the journal lives as long as this thread, and sections do not change threads.
        let journal = unsafe { self.journal.as_ref() };
        journal.end_reading(self.number);
    }
}
