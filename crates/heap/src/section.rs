//! What a program holds while its section is open: tokens that let it allocate, change and read. They
//! are made by the arena alone. Read [`Tx`] first.
//!
//! Every token and every persistent type carries the same invariant lifetime `'s`, which only the
//! closure of a section supplies. So nothing persistent leaves its section, and a token of one section
//! opens nothing of another.

use std::marker::PhantomData;
use std::ops::Deref;
use std::ptr::NonNull;
use std::sync::Arc;

use stead_model::PAGE_SIZE;

use crate::alloc::{Request, Shared, ThreadCache};
use crate::error::{AllocError, Damaged};
use crate::journal::{self, Journal};
use crate::layout::{SMALL_MAX, header, window_base};
use crate::planted::{self, Bug};
use crate::ptr::Ptr;
use crate::types::Persist;

/// Invariant in `'s`.
pub(crate) type Brand<'s> = PhantomData<fn(&'s ()) -> &'s ()>;

/// Owns values of type `T`, which are dropped by the thread of the section: never `Send`, and `Sync`
/// only where that is said.
pub(crate) type Owns<T> = PhantomData<(T, *const ())>;

/// What every mutating section can do: allocate, take locks, change what was lent to it. It does not
/// open [`Slot`](crate::Slot)s, as it may be had while the content of one is borrowed for change.
pub struct Tx<'s> {
    journal: NonNull<Journal>,
    /// The arena outlives the section.
    shared: NonNull<Arc<Shared>>,
    section: u64,
    brand: Brand<'s>,
    /// Neither `Send` nor `Sync`: the journal is this thread's.
    here: PhantomData<*const ()>,
}

/// The token of a section that runs side by side with others: [`Tx`], and reads slots.
#[repr(transparent)]
pub struct Write<'s>(Tx<'s>);

/// The token of a section that is alone in its container: [`Tx`], and changes slots. There is one of
/// them in a section, so who borrows it for change is the only one who sees the content of any slot.
#[repr(transparent)]
pub struct Exclusive<'s>(Tx<'s>);

/// The token of a reading section: reads slots and takes reading locks.
pub struct Read<'s> {
    journal: NonNull<Journal>,
    shared: NonNull<Arc<Shared>>,
    section: u64,
    brand: Brand<'s>,
    here: PhantomData<*const ()>,
}

impl<'s> Deref for Write<'s> {
    type Target = Tx<'s>;

    #[inline(always)]
    fn deref(&self) -> &Tx<'s> {
        &self.0
    }
}

impl<'s> Deref for Exclusive<'s> {
    type Target = Tx<'s>;

    #[inline(always)]
    fn deref(&self) -> &Tx<'s> {
        &self.0
    }
}

macro_rules! debug {
    ($($t:ident)*) => { $(
        impl std::fmt::Debug for $t<'_> {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str(concat!(stringify!($t), "(section)"))
            }
        }
    )* };
}
debug! { Tx Write Exclusive Read }

mod sealed {
    /// Only the tokens of this file.
    pub trait Sealed {}
    impl Sealed for super::Tx<'_> {}
    impl Sealed for super::Write<'_> {}
    impl Sealed for super::Exclusive<'_> {}
    impl Sealed for super::Read<'_> {}
}

/// A token under which slots may be read: of any section, but not a bare [`Tx`].
#[diagnostic::on_unimplemented(
    message = "a slot cannot be read with `{Self}`",
    note = "use the token that the section gave: &Read, &Write or &Exclusive; a bare &Tx may be in use while another slot is borrowed for change"
)]
pub trait ReadSlots<'s>: sealed::Sealed {}
impl<'s> ReadSlots<'s> for Write<'s> {}
impl<'s> ReadSlots<'s> for Exclusive<'s> {}
impl<'s> ReadSlots<'s> for Read<'s> {}

/// A token under which locks may be taken for reading: of any section.
pub trait TakeReadLocks<'s>: sealed::Sealed {
    #[doc(hidden)]
    fn locker(&self) -> Locker<'s>;
}

impl<'s> TakeReadLocks<'s> for Tx<'s> {
    #[inline(always)]
    fn locker(&self) -> Locker<'s> {
        Locker {
            journal: self.journal,
            shared: self.shared,
            section: self.section,
            brand: PhantomData,
        }
    }
}

impl<'s> TakeReadLocks<'s> for Write<'s> {
    #[inline(always)]
    fn locker(&self) -> Locker<'s> {
        self.0.locker()
    }
}

impl<'s> TakeReadLocks<'s> for Exclusive<'s> {
    #[inline(always)]
    fn locker(&self) -> Locker<'s> {
        self.0.locker()
    }
}

impl<'s> TakeReadLocks<'s> for Read<'s> {
    #[inline(always)]
    fn locker(&self) -> Locker<'s> {
        Locker {
            journal: self.journal,
            shared: self.shared,
            section: self.section,
            brand: PhantomData,
        }
    }
}

/// What locks need of a section.
#[derive(Clone, Copy, Debug)]
pub struct Locker<'s> {
    pub(crate) journal: NonNull<Journal>,
    pub(crate) shared: NonNull<Arc<Shared>>,
    pub(crate) section: u64,
    brand: Brand<'s>,
}

impl<'s> Locker<'s> {
    #[inline(always)]
    pub(crate) fn journal(&self) -> &Journal {
        // SAFETY: the journal outlives the section, and 's is not longer than that.
        unsafe { self.journal.as_ref() }
    }

    #[inline(always)]
    pub(crate) fn shared(&self) -> &Shared {
        // SAFETY: the arena outlives the section, and 's is not longer than that.
        unsafe { self.shared.as_ref() }
    }
}

/// A cluster of the container that the section is in: where allocations can be told to go (A2, A4).
#[derive(Clone, Copy, Debug)]
pub struct Cluster<'s> {
    number: u16,
    /// Its first window.
    base: usize,
    brand: Brand<'s>,
}

impl<'s> Cluster<'s> {
    /// Its number in the container; 0 is the default cluster. Numbers may be stored.
    #[must_use]
    pub fn number(self) -> u16 {
        self.number
    }

    pub(crate) fn base(self) -> usize {
        self.base
    }
}

impl<'s> Tx<'s> {
    /// # Safety
    /// A mutating section of this thread is open in `shared`, and `'s` ends before it does.
    #[inline(always)]
    pub(crate) unsafe fn new(
        journal: NonNull<Journal>,
        shared: &Arc<Shared>,
        section: u64,
    ) -> Self {
        Tx {
            journal,
            shared: NonNull::from(shared),
            section,
            brand: PhantomData,
            here: PhantomData,
        }
    }

    /// Moves `value` into the container, in the default cluster, and gives the pointer to it. It stays
    /// there when nothing points at it any more, until garbage is collected (A10) or
    /// [`Tx::free`] is called; what is owned goes into a [`Box`](crate::Box) instead.
    ///
    /// # Errors
    /// If memory cannot be had; `value` is dropped.
    #[inline]
    pub fn alloc<T: Persist<'s>>(&self, value: T) -> Result<Ptr<'s, T>, AllocError> {
        self.place(0, value)
    }

    /// Moves `value` into the cluster named (A4).
    ///
    /// # Errors
    /// If memory cannot be had; `value` is dropped.
    pub fn alloc_in<T: Persist<'s>>(
        &self,
        cluster: Cluster<'s>,
        value: T,
    ) -> Result<Ptr<'s, T>, AllocError> {
        self.place(cluster.number, value)
    }

    /// Moves `value` into the cluster that `near` lies in, or the default one if `near` is not in
    /// this container (A4).
    ///
    /// # Errors
    /// If memory cannot be had; `value` is dropped.
    pub fn alloc_near<T: Persist<'s>, U>(
        &self,
        near: &U,
        value: T,
    ) -> Result<Ptr<'s, T>, AllocError> {
        let address = std::ptr::from_ref(near).addr();
        let cluster = if self.shared().contains(address) { self.cluster_of(address) } else { 0 };
        self.place(cluster, value)
    }

    /// Makes a new cluster. Stays if the section is undone: it is then an empty one.
    ///
    /// # Errors
    /// If the container has no window left for it.
    pub fn new_cluster(&self) -> Result<Cluster<'s>, AllocError> {
        let number = self.shared().new_cluster()?;
        Ok(self.cluster(number).expect("just made"))
    }

    /// The cluster with this number, if there is one.
    #[must_use]
    pub fn cluster(&self, number: u16) -> Option<Cluster<'s>> {
        let base = self.shared().cluster_base(number)?;
        Some(Cluster { number, base, brand: PhantomData })
    }

    /// The cluster that allocations go to when nothing else is said.
    #[must_use]
    pub fn default_cluster(&self) -> Cluster<'s> {
        Cluster { number: 0, base: self.shared().base, brand: PhantomData }
    }

    /// Drops the target of `pointer` and frees its memory when this section commits.
    ///
    /// # Safety
    /// From now on nobody uses `pointer` or a copy of it: none is left in the container, and the target
    /// is not borrowed. It was not freed before.
    pub unsafe fn free<T: Persist<'s>>(&self, pointer: Ptr<'s, T>) {
        let target = pointer.as_mut_ptr();
        // SAFETY: the target is live and unused by the caller's word.
        unsafe { target.drop_in_place() };
        journal::free_later(target.addr());
    }

    /// Brings an object, or elements of a vector, into memory before they are touched, and says so if they are
    /// damaged on the disk (B12): a plain load of a damaged page ends the process. What has been
    /// checked can be loaded and stored to the end of the section; what it points at is to be checked on its own.
    /// Borrowing a place (`&root.list[10..20]`, `&*pointer`) touches only what leads to it.
    ///
    /// # Errors
    /// Names the first damaged page: container, page, address, and the type of what is on it.
    pub fn check<T: ?Sized>(&self, place: &T) -> Result<(), Damaged> {
        self.shared().check(place)
    }

    #[inline(always)]
    fn place<T: Persist<'s>>(&self, cluster: u16, value: T) -> Result<Ptr<'s, T>, AllocError> {
        let to = self.allocate_object::<T>(cluster)?;
        // SAFETY: room for a T, aligned, ours alone.
        unsafe { to.write(value) };
        // SAFETY: `to` names a live object of this container.
        Ok(unsafe { Ptr::new(to) })
    }

    #[inline(always)]
    pub(crate) fn allocate_object<T: Persist<'s>>(
        &self,
        cluster: u16,
    ) -> Result<NonNull<T>, AllocError> {
        const {
            let () = T::CHECK;
            assert!(
                !T::TAGGED || size_of::<T>() <= PAGE_SIZE,
                "an object that holds an enum with pointers may not be larger than a page: put it into a Vec or Box"
            );
        }
        Ok(self.allocate(cluster, &Request::object::<T>())?.cast())
    }

    /// Allocates; the section frees it again if it is undone.
    #[inline(always)]
    pub(crate) fn allocate(&self, cluster: u16, r: &Request) -> Result<NonNull<u8>, AllocError> {
        let journal = self.journal();
        if r.bytes > SMALL_MAX {
            let address = self.shared().allocate_run(cluster, r)?;
            journal.allocated(address);
            journal.allocated_run(address, r.bytes);
            let p = std::ptr::with_exposed_provenance_mut::<u8>(address);
            return Ok(NonNull::new(p).expect("pages are not at address 0"));
        }
        let mut cache = journal.cache.get();
        if cache.is_null() {
            // SAFETY: the arena outlives the section; only this thread touches the list of caches.
            cache =
                unsafe { ThreadCache::for_arena(&mut *journal.caches.get(), self.shared.as_ref()) };
            journal.cache.set(cache);
            // Also where the allocation fails: the cache is of this arena, and must not outlive the section.
            journal.touch();
        }
        // SAFETY: this thread's cache for this arena; nobody else refers to it now.
        let p = unsafe { &mut *cache }.allocate(self.shared(), cluster, r)?;
        journal.allocated(p.as_ptr().addr());
        Ok(p)
    }

    /// Frees memory when the section commits.
    #[inline]
    pub(crate) fn free_later(&self, address: usize) {
        if planted::on(Bug::FreesNotDeferred) {
            self.shared().free_all(&[address]);
            return;
        }
        journal::free_later(address);
    }

    /// The cluster of an address of this container.
    #[inline]
    pub(crate) fn cluster_of(&self, address: usize) -> u16 {
        // SAFETY: addresses of objects and headers lie in assigned windows, which are mapped.
        unsafe { header(window_base(address)) }.cluster
    }

    #[inline(always)]
    pub(crate) fn base(&self) -> usize {
        self.shared().base
    }

    #[inline(always)]
    pub(crate) fn journal(&self) -> &Journal {
        // SAFETY: the journal outlives the section, and 's is not longer than that.
        unsafe { self.journal.as_ref() }
    }

    #[inline(always)]
    pub(crate) fn shared(&self) -> &Shared {
        // SAFETY: the arena outlives the section, and 's is not longer than that.
        unsafe { self.shared.as_ref() }
    }

    /// Notes a value before it is lent for change.
    #[inline(always)]
    pub(crate) fn note<T>(&self, value: *const T) {
        // SAFETY: a token exists, so a mutating section of this thread is open; callers pass places
        // that they hold by reference.
        unsafe { self.journal().note(value.cast(), size_of::<T>()) }
    }

    /// Notes `count` values that lie one after the other.
    #[inline]
    pub(crate) fn note_many<T>(&self, first: *const T, count: usize) {
        if count > 0 {
            // SAFETY: as in `note`.
            unsafe { self.journal().note(first.cast(), count * size_of::<T>()) }
        }
    }

    /// Notes a control byte of a table of this container.
    #[inline(always)]
    pub(crate) fn note_byte(&self, at: *const u8) {
        // SAFETY: as in `note`.
        unsafe { self.journal().note_byte(at) }
    }
}

impl<'s> Write<'s> {
    /// # Safety
    /// As for [`Tx::new`].
    #[inline(always)]
    pub(crate) unsafe fn new(tx: Tx<'s>) -> Self {
        Write(tx)
    }
}

impl<'s> Exclusive<'s> {
    /// # Safety
    /// As for [`Tx::new`], and no other section is open in the container until `'s` ends.
    #[inline(always)]
    pub(crate) unsafe fn new(tx: Tx<'s>) -> Self {
        Exclusive(tx)
    }
}

impl<'s> Read<'s> {
    /// # Safety
    /// A reading section of this thread is open in `shared`, and `'s` ends before it does.
    #[inline(always)]
    pub(crate) unsafe fn new(
        journal: NonNull<Journal>,
        shared: &Arc<Shared>,
        section: u64,
    ) -> Self {
        Read {
            journal,
            shared: NonNull::from(shared),
            section,
            brand: PhantomData,
            here: PhantomData,
        }
    }

    /// As [`Tx::check`].
    ///
    /// # Errors
    /// Names the first damaged page.
    pub fn check<T: ?Sized>(&self, place: &T) -> Result<(), Damaged> {
        // SAFETY: the arena outlives the section, and 's is not longer than that.
        unsafe { self.shared.as_ref() }.check(place)
    }
}
