//! Where heap and memory meet: the mappings of a container are the ground its heap stands on, and its
//! sections run behind its gate. The only unsafe code of the site; nothing is decided here. Read
//! [`Typed::write`] first.

use std::marker::PhantomData;
use std::sync::Arc;

use stead_heap::{
    Arena, Attempt, Damaged, Ended, Exclusive, Ground, GroundError, InitRootError, Read, Root, Tx,
    Write,
};
use stead_memory::{Gate, Reason, close_writers};
use stead_model::{Address, PAGE_SIZE, PageNo, PageRange, WINDOW_SIZE};

use crate::container::{Opened, Place};
use crate::error::{ContainerError, SectionError};

/// Fresh memory that is brought in ahead of its first touch, at most at a time.
const ASK_BYTES_MAX: usize = 4 << 20;

/// How often a section that met a deadlock is tried again before its error is the caller's.
const ATTEMPTS_MAX: u32 = 256;

// SAFETY: base and window_count are those of the reservation, which nothing else of this process can
// occupy while `Place` holds it, and the heap keeps the `Place` alive. Every window that the
// container's directory assigns is mapped readable and writable by `Place::map` before the arena is
// opened, and by `assign` before it returns. The shadow is a private zeroed mapping of the same size that
// lives as long as the `Place`.
unsafe impl Ground for Place {
    fn base(&self) -> usize {
        self.reservation.base().0
    }

    fn window_count(&self) -> u32 {
        self.reservation.windows()
    }

    fn shadow_base(&self) -> usize {
        self.shadow.base().0
    }

    fn ask(&self, addr: usize, len: usize) {
        let first = Address(addr).page_from(self.reservation.base());
        // Not all of a vast array at once: memory that is reserved but never touched costs nothing then.
        let len = len.min(ASK_BYTES_MAX);
        let range = PageRange::new(first.0, first.0 + len.div_ceil(PAGE_SIZE) as u64);
        if let Some(cluster) = self.cluster_of(first) {
            // A hint: where it fails, the first touch is a fault like any other and says why.
            let _ = cluster.install_zero(range, Reason::AheadWritable);
        }
    }

    fn check(&self, address: usize, bytes: usize) -> Result<(), Damaged> {
        let base = self.reservation.base();
        let end = base.0 + self.reservation.windows() as usize * WINDOW_SIZE;
        if bytes == 0 || address < base.0 || address >= end {
            // A place of the program's own: nothing of it lies on a disk.
            return Ok(());
        }
        let first = Address(address).page_from(base).0;
        let last = (address.saturating_add(bytes).min(end) - 1 - base.0) / PAGE_SIZE;
        self.bring(PageRange::new(first, last as u64 + 1))
    }

    fn filled(&self) -> Vec<PageRange> {
        self.filled_pages()
    }

    fn allow(&self, used: &dyn Fn() -> u64, more: u64) -> Result<(), GroundError> {
        self.allow_pages(used, more)
    }

    fn assign(&self, first_window: u32, count: u32, cluster: u16) -> Result<(), GroundError> {
        Place::assign(self, first_window, count, cluster)
    }
}

/// Copies whole pages from where they are mapped, which takes a third of the time of reading them through their
/// file, page by page. While programs run, a copy may hold half of what is just being written: such a page is
/// dirty again, and copied again under closed gates.
pub(crate) fn copy_mapped(place: &Place, first: PageNo, into: &mut [u8]) {
    const WORD: usize = size_of::<u64>();
    let address = first.address(place.reservation.base()).0;
    assert!(place.cluster_of(first).is_some(), "a dirty page is a page of a cluster");
    assert!(into.len().is_multiple_of(PAGE_SIZE));
    for (i, word) in into.chunks_exact_mut(WORD).enumerate() {
        let from = std::ptr::with_exposed_provenance::<u64>(address + i * WORD);
        // SAFETY: the pages were found dirty, so they lie in windows that are mapped while `place` lives, and
        // words of whole pages are aligned. Any bytes are a valid number. Programs may be writing them:
        // a volatile read takes what memory holds at that moment and assumes nothing of it, like the
        // kernel's own read of the same frames; what was written after the page was protected is found
        // by the next scan, and this copy is replaced.
        let value = unsafe { from.read_volatile() };
        word.copy_from_slice(&value.to_ne_bytes());
    }
}

/// An open container whose root was found, or made, to be an `R`.
pub struct Typed<R> {
    opened: Arc<Opened>,
    root: PhantomData<fn() -> R>,
}

impl<R> Clone for Typed<R> {
    fn clone(&self) -> Self {
        Typed { opened: Arc::clone(&self.opened), root: PhantomData }
    }
}

impl<R> std::fmt::Debug for Typed<R> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Typed").field("name", &self.opened.name()).finish_non_exhaustive()
    }
}

impl<R> Typed<R> {
    /// The container, without its type.
    #[must_use]
    pub fn opened(&self) -> &Arc<Opened> {
        &self.opened
    }
}

impl<R: Root> Typed<R> {
    /// Checks that the root is an `R`. It must be there.
    pub(crate) fn existing(opened: Arc<Opened>) -> Result<Self, ContainerError> {
        if opened.arena.root_type().is_none() {
            return Err(ContainerError::NoRoot { name: opened.name().to_owned() });
        }
        opened.arena.check_root::<R>().map_err(|e| opened.root_error(e))?;
        Ok(Typed { opened, root: PhantomData })
    }

    /// Checks that the root is an `R`, and makes it with `init` where there is none.
    pub(crate) fn new<E: From<ContainerError>>(
        opened: Arc<Opened>,
        init: impl for<'s> FnOnce(&'s Tx<'s>) -> Result<R::At<'s>, E>,
    ) -> Result<Self, E> {
        opened.ensure_root::<R, E>(init)?;
        Ok(Typed { opened, root: PhantomData })
    }

    /// A reading section. Nothing it borrows outlives it.
    ///
    /// # Errors
    /// If this thread is in an exclusive section, or in too many reading ones.
    #[inline]
    pub fn read<T>(
        &self,
        f: impl for<'s> FnOnce(&'s R::At<'s>, &'s Read<'s>) -> T,
    ) -> Result<T, SectionError> {
        let _entry = self.opened.gate.enter_read()?;
        self.opened.check_root()?;
        // SAFETY: the gate is entered for reading until `_entry` is dropped after the call, also
        // when it unwinds; the root was found to be an `R` when this `Typed` was made.
        Ok(unsafe { self.opened.arena.read::<R, T>(f) })
    }

    /// A section that changes things through `Tx`, side by side with others: whole or not at all.
    /// On `Err` or a panic everything it changed is as before. `f` is called again when it
    /// was chosen to end a deadlock.
    ///
    /// # Errors
    /// The outer error if this thread has a section open, the inner one is the closure's own.
    #[inline]
    #[track_caller]
    pub fn write<T, E>(
        &self,
        mut f: impl for<'s> FnMut(&'s R::At<'s>, &'s Write<'s>) -> Result<T, E>,
    ) -> Result<Result<T, E>, SectionError> {
        let Opened { gate, arena, changes, .. } = &*self.opened;
        self.opened.check_writable()?;
        let mut attempt = Attempt::new();
        for tried in 1.. {
            let entry = gate.enter_write()?;
            self.opened.check_root()?;
            // SAFETY: the gate is entered for writing until `entry` is dropped, also when the call
            // unwinds; the root was found to be an `R` when this `Typed` was made.
            let ended = unsafe { arena.write::<R, T, E>(&mut attempt, &mut f) };
            drop(entry);
            match ended {
                Ended::Committed(value) => {
                    changes.notify();
                    return Ok(Ok(value));
                }
                Ended::Undone(error) => return Ok(Err(error)),
                Ended::Deadlock(error, _) if tried == ATTEMPTS_MAX => return Ok(Err(error)),
                Ended::Deadlock(_, lock) => arena.wait_lock_free(lock),
            }
        }
        unreachable!("the loop ends by returning")
    }

    /// A section that is alone in its container: no other reads or writes there meanwhile.
    ///
    /// # Errors
    /// The outer error if this thread has a section open, the inner one is the closure's own.
    #[track_caller]
    pub fn exclusive<T, E>(
        &self,
        f: impl for<'s> FnMut(&'s mut R::At<'s>, &'s mut Exclusive<'s>) -> Result<T, E>,
    ) -> Result<Result<T, E>, SectionError> {
        let Opened { gate, arena, changes, .. } = &*self.opened;
        self.opened.check_writable()?;
        let entry = gate.enter_exclusive(None)?;
        self.opened.check_root()?;
        // SAFETY: the gate is held exclusively until `entry` is dropped, also when the call unwinds;
        // the root was found to be an `R` when this `Typed` was made.
        let ended = unsafe { arena.exclusive::<R, T, E>(&mut Attempt::new(), f) };
        drop(entry);
        match ended {
            Ended::Committed(value) => {
                changes.notify();
                Ok(Ok(value))
            }
            // Alone in the container, a section cannot meet a deadlock; its error is its own.
            Ended::Undone(error) | Ended::Deadlock(error, _) => Ok(Err(error)),
        }
    }

    /// Waits, with no section open, until `f` returns a value, and is called again after each change
    /// of the container that another section made. `f` runs in a section like that of
    /// [`Typed::write`], which is undone when it returns `None`.
    ///
    /// # Errors
    /// As [`Typed::write`].
    #[track_caller]
    pub fn write_when<T, E>(
        &self,
        mut f: impl for<'s> FnMut(&'s R::At<'s>, &'s Write<'s>) -> Result<Option<T>, E>,
    ) -> Result<Result<T, E>, SectionError> {
        let mut try_once = || {
            self.write(|root, tx| match f(root, tx) {
                Ok(Some(value)) => Ok(value),
                Ok(None) => Err(None),
                Err(error) => Err(Some(error)),
            })
        };
        match try_once()? {
            Ok(value) => return Ok(Ok(value)),
            Err(Some(error)) => return Ok(Err(error)),
            Err(None) => {}
        }
        let waiting = self.opened.changes.announce();
        // Sections that were open when the waiter was announced may not notice it: wait them out,
        // so that every later one does.
        match close_writers(&[&self.opened.gate], None) {
            Ok(closed) => drop(closed),
            Err(_) => return Err(SectionError::Nested),
        }
        loop {
            let seen = waiting.count();
            match try_once()? {
                Ok(value) => return Ok(Ok(value)),
                Err(Some(error)) => return Ok(Err(error)),
                Err(None) => waiting.wait(seen),
            }
        }
    }
}

impl Opened {
    /// Checks that the root is an `R`, and makes it with `init` where there is none.
    fn ensure_root<R: Root, E: From<ContainerError>>(
        &self,
        init: impl for<'s> FnOnce(&'s Tx<'s>) -> Result<R::At<'s>, E>,
    ) -> Result<(), E> {
        let held = |source| ContainerError::Gate { name: self.name().to_owned(), source };
        let _entry = self.gate.enter_exclusive(None).map_err(held)?;
        if self.arena.root_type().is_some() {
            return self.arena.check_root::<R>().map_err(|e| self.root_error(e).into());
        }
        // SAFETY: the gate is held exclusively until `_entry` is dropped, also when the call unwinds.
        unsafe { self.arena.init_root::<R, E>(init) }.map_err(|e| match e {
            InitRootError::Closure(error) => error,
            InitRootError::Alloc(source) => {
                ContainerError::Init { name: self.name().to_owned(), source }.into()
            }
            InitRootError::HasRoot => unreachable!("looked for under the same gate"),
        })
    }

    /// Lays out the heap of a new container, alone in it: a stabilisation sees none of it or all.
    pub(crate) fn format(gate: &Gate, place: &Arc<Place>) -> Result<Arena, ContainerError> {
        let name = || place.name.to_string();
        let _entry = gate
            .enter_exclusive(None)
            .map_err(|source| ContainerError::Gate { name: name(), source })?;
        Arena::format(Arc::clone(place) as _, place.container)
            .map_err(|source| ContainerError::Format { name: name(), source })
    }
}
