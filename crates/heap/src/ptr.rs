//! Plain pointers into the container: eight bytes that are an address, one load to follow (A5). Who may
//! change a target is said elsewhere: slots, locks, counters. Read [`Ptr`] first.

use std::fmt;
use std::marker::PhantomData;
use std::num::NonZero;
use std::ops::Deref;
use std::ptr::{NonNull, with_exposed_provenance};

use stead_model::Address;

use crate::section::Brand;
use crate::types::{Describer, Niche, Persist, Shape, TypeDescription, combine_ids, name_id};

/// A shared reference to an object of the same container. `Copy`; any number may point at one object;
/// the object is not changed but through what it holds of [`Slot`](crate::Slot),
/// [`Mutex`](crate::Mutex), [`RwLock`](crate::RwLock) and [`Counter`](crate::Counter).
///
/// It is kept as an address and not as a reference, so that relocation is a matter of arithmetic.
#[repr(transparent)]
pub struct Ptr<'s, T>(NonZero<usize>, PhantomData<*const T>, Brand<'s>);

impl<'s, T> Ptr<'s, T> {
    /// # Safety
    /// `target` names a live, initialised object of the container that `'s` belongs to, which was
    /// allocated by `alloc` and not boxed.
    #[inline(always)]
    pub(crate) unsafe fn new(target: NonNull<T>) -> Self {
        let address = target.as_ptr().expose_provenance();
        // SAFETY: a NonNull is not 0.
        Ptr(unsafe { NonZero::new_unchecked(address) }, PhantomData, PhantomData)
    }

    /// The target, for as long as the section lasts.
    #[inline(always)]
    #[must_use]
    pub fn get(self) -> &'s T {
        // SAFETY: a pointer names a live object of a container that is mapped at its address while a
        // section 's is open; objects are not freed while one is (conditions of `Tx::free`); and
        // nobody has a `&mut` to what a pointer names.
        unsafe { &*with_exposed_provenance(self.0.get()) }
    }

    /// Where the target is.
    #[must_use]
    pub fn address(self) -> Address {
        Address(self.0.get())
    }

    /// Whether both point at the same object.
    #[must_use]
    pub fn same(a: Self, b: Self) -> bool {
        a.0 == b.0
    }

    pub(crate) fn as_mut_ptr(self) -> *mut T {
        std::ptr::with_exposed_provenance_mut(self.0.get())
    }
}

impl<T> Clone for Ptr<'_, T> {
    #[inline(always)]
    fn clone(&self) -> Self {
        *self
    }
}

impl<T> Copy for Ptr<'_, T> {}

impl<T> Deref for Ptr<'_, T> {
    type Target = T;

    #[inline(always)]
    fn deref(&self) -> &T {
        // SAFETY: as in `get`; the pointer itself does not outlive the section.
        unsafe { &*with_exposed_provenance(self.0.get()) }
    }
}

impl<T: fmt::Debug> fmt::Debug for Ptr<'_, T> {
    /// The address alone: targets may form cycles.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Ptr({:#x})", self.0)
    }
}

// SAFETY: a pointer gives shared access alone, which T allows from several threads.
unsafe impl<T: Sync> Send for Ptr<'_, T> {}
// SAFETY: as above.
unsafe impl<T: Sync> Sync for Ptr<'_, T> {}

// SAFETY: eight bytes, the address of an object branded 's.
unsafe impl<'s, T: Persist<'s>> Persist<'s> for Ptr<'s, T> {
    const ID: u64 = combine_ids(name_id("Ptr"), T::ID);
    const POINTERS: bool = true;
    const TAGGED: bool = false;
    fn name() -> String {
        format!("Ptr<{}>", T::name())
    }
    fn describe(d: &mut Describer) -> TypeDescription {
        let target = d.refer::<T>();
        d.shaped::<Self>(Shape::Ptr(target))
    }
}

// SAFETY: transparent around NonZero.
unsafe impl<T> Niche for Ptr<'_, T> {}
