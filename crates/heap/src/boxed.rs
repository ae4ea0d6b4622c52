//! A value owned by the one that holds the box. Read [`Box`] first.

use std::fmt;
use std::marker::PhantomData;
use std::mem::ManuallyDrop;
use std::num::NonZero;
use std::ops::Deref;
use std::ptr::with_exposed_provenance_mut;

use crate::error::AllocError;
use crate::journal;
use crate::section::{Brand, Cluster, Owns, Tx};
use crate::types::{Describer, Niche, Persist, Shape, TypeDescription, combine_ids, name_id};

/// Owns one value in the container: dropping the box drops the value and frees its memory when the
/// section commits. Eight bytes, also as an `Option`.
#[repr(transparent)]
pub struct Box<'s, T>(NonZero<usize>, Owns<T>, Brand<'s>);

impl<'s, T: Persist<'s>> Box<'s, T> {
    /// Moves `value` into the container, in the default cluster.
    ///
    /// # Errors
    /// If memory cannot be had; `value` is dropped.
    #[inline]
    pub fn new(tx: &Tx<'s>, value: T) -> Result<Self, AllocError> {
        Self::place(tx, 0, value)
    }

    /// Moves `value` into the cluster named.
    ///
    /// # Errors
    /// If memory cannot be had; `value` is dropped.
    pub fn new_in(tx: &Tx<'s>, cluster: Cluster<'s>, value: T) -> Result<Self, AllocError> {
        Self::place(tx, cluster.number(), value)
    }

    #[inline]
    fn place(tx: &Tx<'s>, cluster: u16, value: T) -> Result<Self, AllocError> {
        let to = tx.allocate_object::<T>(cluster)?;
        // SAFETY: room for a T, aligned, ours alone.
        unsafe { to.write(value) };
        // A pointer from the allocator is not null.
        let address = NonZero::new(to.as_ptr().expose_provenance()).expect("not null");
        Ok(Box(address, PhantomData, PhantomData))
    }

    /// The value, to be changed.
    #[inline]
    pub fn get_mut(&mut self, tx: &Tx<'s>) -> &mut T {
        let value = self.target();
        tx.note(value);
        // SAFETY: a box owns a live value, and is borrowed for change.
        unsafe { &mut *value }
    }

    /// Moves the value out and frees its memory when the section commits.
    pub fn into_inner(self, tx: &Tx<'s>) -> T {
        let this = ManuallyDrop::new(self);
        // SAFETY: a box owns a live value; `this` is not used again, so the value is moved once.
        let value = unsafe { this.target().read() };
        tx.free_later(this.0.get());
        value
    }
}

impl<T> Box<'_, T> {
    #[inline(always)]
    fn target(&self) -> *mut T {
        with_exposed_provenance_mut(self.0.get())
    }
}

impl<T> Deref for Box<'_, T> {
    type Target = T;

    #[inline(always)]
    fn deref(&self) -> &T {
        // SAFETY: a box owns a live value.
        unsafe { &*self.target() }
    }
}

impl<T> Drop for Box<'_, T> {
    fn drop(&mut self) {
        // SAFETY: a box owns a live value, and this box is not used again.
        unsafe { self.target().drop_in_place() };
        journal::free_later(self.0.get());
    }
}

impl<T: fmt::Debug> fmt::Debug for Box<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        (**self).fmt(f)
    }
}

impl<T: PartialEq> PartialEq for Box<'_, T> {
    fn eq(&self, other: &Self) -> bool {
        **self == **other
    }
}

impl<T: Eq> Eq for Box<'_, T> {}

// SAFETY: a box gives access to its value as a reference to it would. Not Send: its Drop belongs to the
// thread of the section.
unsafe impl<T: Sync> Sync for Box<'_, T> {}

// SAFETY: eight bytes, the address of an object branded 's.
unsafe impl<'s, T: Persist<'s>> Persist<'s> for Box<'s, T> {
    const ID: u64 = combine_ids(name_id("Box"), T::ID);
    const POINTERS: bool = true;
    const TAGGED: bool = false;
    fn name() -> String {
        format!("Box<{}>", T::name())
    }
    fn describe(d: &mut Describer) -> TypeDescription {
        let target = d.refer::<T>();
        d.shaped::<Self>(Shape::Box(target))
    }
}

// SAFETY: transparent around NonZero.
unsafe impl<T> Niche for Box<'_, T> {}
