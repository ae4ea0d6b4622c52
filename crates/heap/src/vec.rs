//! A growing array that owns its elements. Read [`Vec`] first.
//!
//! Undo: whoever lent the vector for change noted its 24 bytes. Elements behind the length are garbage,
//! so appending notes nothing; what exposes or moves elements notes them; growing moves them to fresh
//! memory and leaves the old buffer as it was until the section commits.

use std::fmt;
use std::marker::PhantomData;
use std::mem::{ManuallyDrop, needs_drop};
use std::ops::Deref;
use std::ptr::{self, with_exposed_provenance_mut};
use std::slice;

use stead_model::PAGE_SIZE;

use crate::alloc::Request;
use crate::error::AllocError;
use crate::hash::{StableHash, StableHasher};
use crate::journal;
use crate::layout::{GRAIN, array_bytes, kind};
use crate::planted::{self, Bug};
use crate::section::{Brand, Cluster, Owns, Tx};
use crate::types::{Describer, Persist, Shape, TypeDescription, TypeRef, combine_ids, name_id};

/// Elements one after the other, in memory that grows. An empty vector without memory keeps the address
/// of the header of the cluster where it will allocate.
///
/// Reads like a slice. Whatever changes it takes the section's `tx`, which is why there is no
/// `IndexMut`: see [`Vec::get_mut`] and [`Vec::as_mut_slice`].
#[repr(C)]
pub struct Vec<'s, T> {
    /// Address of the elements, or of a window's header.
    address: usize,
    len: usize,
    /// Elements that there is room for.
    capacity: usize,
    owns: Owns<T>,
    brand: Brand<'s>,
}

/// Bytes of elements up to which [`Vec::clear`] notes them and keeps the memory.
const CLEAR_NOTES_MAX: usize = 64 * 1024;

impl<T> Vec<'_, T> {
    /// Elements that it has room for without growing.
    #[inline]
    #[must_use]
    pub fn capacity(&self) -> usize {
        self.capacity
    }

    #[inline(always)]
    fn start(&self) -> *mut T {
        if self.capacity == 0 {
            return ptr::NonNull::dangling().as_ptr();
        }
        with_exposed_provenance_mut(self.address)
    }
}

impl<'s, T: Persist<'s>> Vec<'s, T> {
    const CHECKED: () = {
        let () = T::CHECK;
        assert!(size_of::<T>() > 0, "a Vec of values without size has no meaning here");
        assert!(align_of::<T>() <= GRAIN);
        assert!(
            !T::TAGGED || (size_of::<T>().is_power_of_two() && size_of::<T>() <= PAGE_SIZE),
            "the elements hold an enum with pointers: pad them to a power of two, so that none lies on two pages"
        );
    };

    /// An empty vector, which will allocate in the default cluster.
    #[inline]
    #[must_use]
    pub fn new(tx: &Tx<'s>) -> Self {
        Self::empty_at(tx.base())
    }

    /// An empty vector, which will allocate in this cluster.
    #[must_use]
    pub fn new_in(cluster: Cluster<'s>) -> Self {
        Self::empty_at(cluster.base())
    }

    #[inline]
    fn empty_at(header: usize) -> Self {
        const { Self::CHECKED }
        Vec { address: header, len: 0, capacity: 0, owns: PhantomData, brand: PhantomData }
    }

    /// An empty vector with room for `capacity` elements.
    ///
    /// # Errors
    /// If memory cannot be had.
    pub fn with_capacity(tx: &Tx<'s>, capacity: usize) -> Result<Self, AllocError> {
        let mut v = Self::new(tx);
        v.reserve(tx, capacity)?;
        Ok(v)
    }

    /// Makes room for `additional` elements more.
    ///
    /// # Errors
    /// If memory cannot be had.
    #[inline]
    pub fn reserve(&mut self, tx: &Tx<'s>, additional: usize) -> Result<(), AllocError> {
        if self.capacity - self.len < additional { self.grow(tx, additional) } else { Ok(()) }
    }

    #[cold]
    #[inline(never)]
    fn grow(&mut self, tx: &Tx<'s>, additional: usize) -> Result<(), AllocError> {
        const { Self::CHECKED }
        let too_large = AllocError::TooLarge { bytes: usize::MAX };
        let least = self.len.checked_add(additional).ok_or(too_large.clone())?;
        let wanted = least.max(self.capacity.saturating_mul(2));
        let bytes = wanted.checked_mul(size_of::<T>()).filter(|b| *b < isize::MAX as usize / 2);
        let bytes = array_bytes(bytes.ok_or(too_large)?.max(GRAIN * 2));
        let request =
            Request { ty: TypeRef::of::<T>(), kind: kind::ARRAY, capacity_log2: 0, bytes };
        let to = tx.allocate(tx.cluster_of(self.address), &request)?.cast::<T>();
        // SAFETY: len elements are live in the old buffer and fit into the new one, which is ours alone.
        unsafe { ptr::copy_nonoverlapping(self.start(), to.as_ptr(), self.len) };
        if self.capacity > 0 {
            tx.free_later(self.address);
        }
        self.address = to.as_ptr().expose_provenance();
        self.capacity = bytes / size_of::<T>();
        Ok(())
    }

    /// Appends an element.
    ///
    /// # Errors
    /// If memory cannot be had; `value` is dropped.
    #[inline]
    pub fn push(&mut self, tx: &Tx<'s>, value: T) -> Result<(), AllocError> {
        if self.len == self.capacity {
            self.grow(tx, 1)?;
        }
        // SAFETY: len < capacity, and what is behind len is garbage.
        unsafe { self.start().add(self.len).write(value) };
        self.len += 1;
        Ok(())
    }

    /// Takes the last element off.
    pub fn pop(&mut self, tx: &Tx<'s>) -> Option<T> {
        let last = self.len.checked_sub(1)?;
        // SAFETY: last < len, so it is a live element.
        let at = unsafe { self.start().add(last) };
        if !planted::on(Bug::PoppedNotNoted) {
            tx.note(at);
        }
        self.len = last;
        // SAFETY: the element is live and now behind the length, so it is moved once.
        Some(unsafe { at.read() })
    }

    /// Inserts an element at `index` and moves those behind it.
    ///
    /// # Errors
    /// If memory cannot be had; `value` is dropped.
    ///
    /// # Panics
    /// If `index` is greater than the length.
    pub fn insert(&mut self, tx: &Tx<'s>, index: usize, value: T) -> Result<(), AllocError> {
        assert!(index <= self.len, "insertion index {index} is behind the length {}", self.len);
        self.reserve(tx, 1)?;
        // SAFETY: index <= len.
        let at = unsafe { self.start().add(index) };
        tx.note_many(at, self.len - index);
        // SAFETY: there is room for one element behind len; the gap is filled at once.
        unsafe {
            ptr::copy(at, at.add(1), self.len - index);
            at.write(value);
        }
        self.len += 1;
        Ok(())
    }

    /// Takes out the element at `index` and moves those behind it.
    ///
    /// # Panics
    /// If there is none.
    pub fn remove(&mut self, tx: &Tx<'s>, index: usize) -> T {
        assert!(index < self.len, "index {index} is not below the length {}", self.len);
        // SAFETY: index < len.
        let at = unsafe { self.start().add(index) };
        tx.note_many(at, self.len - index);
        self.len -= 1;
        // SAFETY: the element is live and moved out once; the ones behind it close the gap.
        unsafe {
            let value = at.read();
            ptr::copy(at.add(1), at, self.len - index);
            value
        }
    }

    /// Takes out the element at `index` and puts the last one in its place.
    ///
    /// # Panics
    /// If there is none.
    pub fn swap_remove(&mut self, tx: &Tx<'s>, index: usize) -> T {
        assert!(index < self.len, "index {index} is not below the length {}", self.len);
        let last = self.len - 1;
        // SAFETY: both are live elements.
        let (at, end) = unsafe { (self.start().add(index), self.start().add(last)) };
        tx.note(at);
        tx.note(end);
        self.len = last;
        // SAFETY: the element is moved out once; the last one, now behind the length, takes its place.
        unsafe {
            let value = at.read();
            ptr::copy(end, at, 1);
            value
        }
    }

    /// Drops the elements from `len` on.
    pub fn truncate(&mut self, tx: &Tx<'s>, len: usize) {
        if len >= self.len {
            return;
        }
        let count = self.len - len;
        // SAFETY: len < self.len.
        let from = unsafe { self.start().add(len) };
        tx.note_many(from, count);
        self.len = len;
        // SAFETY: these were live and are now behind the length, so they are dropped once.
        unsafe { ptr::slice_from_raw_parts_mut(from, count).drop_in_place() };
    }

    /// Drops all elements. Large memory is given back, smaller is kept.
    pub fn clear(&mut self, tx: &Tx<'s>) {
        if self.len * size_of::<T>() <= CLEAR_NOTES_MAX {
            self.truncate(tx, 0);
        } else {
            // The old elements stay as they are until the section commits, so they need no note.
            let header = crate::layout::window_base(self.address);
            *self = Self::empty_at(header);
        }
    }

    /// One element, to be changed.
    #[inline]
    pub fn get_mut(&mut self, tx: &Tx<'s>, index: usize) -> Option<&mut T> {
        if index >= self.len {
            return None;
        }
        // SAFETY: index < len, so it is a live element; the vector is borrowed for change.
        let element = unsafe { &mut *self.start().add(index) };
        tx.note(element);
        Some(element)
    }

    /// The last element, to be changed.
    #[inline]
    pub fn last_mut(&mut self, tx: &Tx<'s>) -> Option<&mut T> {
        self.get_mut(tx, self.len.wrapping_sub(1))
    }

    /// All elements, to be changed; their bytes are copied for undoing first.
    pub fn as_mut_slice(&mut self, tx: &Tx<'s>) -> &mut [T] {
        let start = self.start();
        tx.note_many(start, self.len);
        // SAFETY: len live elements; the vector is borrowed for change.
        unsafe { slice::from_raw_parts_mut(start, self.len) }
    }

    /// Appends what the iterator gives.
    ///
    /// # Errors
    /// If memory cannot be had; the elements appended so far stay.
    pub fn extend(
        &mut self,
        tx: &Tx<'s>,
        values: impl IntoIterator<Item = T>,
    ) -> Result<(), AllocError> {
        let values = values.into_iter();
        self.reserve(tx, values.size_hint().0)?;
        for value in values {
            self.push(tx, value)?;
        }
        Ok(())
    }

    /// Appends copies of the elements of a slice.
    ///
    /// # Errors
    /// If memory cannot be had.
    pub fn extend_from_slice(&mut self, tx: &Tx<'s>, values: &[T]) -> Result<(), AllocError>
    where
        T: Copy,
    {
        self.reserve(tx, values.len())?;
        // SAFETY: there is room behind len for that many; a slice that lives is not behind our len.
        unsafe {
            ptr::copy_nonoverlapping(values.as_ptr(), self.start().add(self.len), values.len());
        }
        self.len += values.len();
        Ok(())
    }

    /// Drops the elements for which `keep` does not hold; the others stay in order.
    pub fn retain(&mut self, tx: &Tx<'s>, mut keep: impl FnMut(&T) -> bool) {
        /// Closes the gap also when `keep` or a drop panics.
        struct Gap<'v, 's, T> {
            v: &'v mut Vec<'s, T>,
            read: usize,
            write: usize,
            len: usize,
        }
        impl<T> Drop for Gap<'_, '_, T> {
            fn drop(&mut self) {
                let rest = self.len - self.read;
                // SAFETY: elements read..len are live and not yet looked at; the places from write on
                // are vacant.
                unsafe {
                    let start = self.v.start();
                    ptr::copy(start.add(self.read), start.add(self.write), rest);
                }
                self.v.len = self.write + rest;
            }
        }
        let len = self.len;
        tx.note_many(self.start(), len);
        self.len = 0;
        let mut gap = Gap { v: self, read: 0, write: 0, len };
        while gap.read < len {
            // SAFETY: read < len, and elements from `read` on are live.
            let at = unsafe { gap.v.start().add(gap.read) };
            // SAFETY: as above; nothing else refers to it.
            let stays = keep(unsafe { &*at });
            gap.read += 1;
            if stays {
                // SAFETY: write <= read - 1, a vacant or the same place.
                unsafe { ptr::copy(at, gap.v.start().add(gap.write), 1) };
                gap.write += 1;
            } else {
                // SAFETY: live, and counted as gone, so it is dropped once.
                unsafe { at.drop_in_place() };
            }
        }
    }

    /// Moves the elements into an iterator and frees the memory when the section commits.
    #[must_use]
    pub fn into_elements(self, tx: &Tx<'s>) -> IntoElements<'s, T> {
        let this = ManuallyDrop::new(self);
        if this.capacity > 0 {
            tx.free_later(this.address);
        }
        IntoElements { at: this.start(), left: this.len, owns: PhantomData, brand: PhantomData }
    }
}

/// The elements of a vector that was taken apart.
#[derive(Debug)]
pub struct IntoElements<'s, T> {
    at: *mut T,
    left: usize,
    owns: PhantomData<T>,
    brand: Brand<'s>,
}

impl<T> Iterator for IntoElements<'_, T> {
    type Item = T;

    fn next(&mut self) -> Option<T> {
        self.left = self.left.checked_sub(1)?;
        let at = self.at;
        // SAFETY: at is one of the elements not yet given out; memory freed in this section stays as it
        // is until the section ends, which 's does not outlive.
        unsafe {
            self.at = at.add(1);
            Some(at.read())
        }
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        (self.left, Some(self.left))
    }
}

impl<T> ExactSizeIterator for IntoElements<'_, T> {}

impl<T> Drop for IntoElements<'_, T> {
    fn drop(&mut self) {
        self.for_each(drop);
    }
}

impl<T> Deref for Vec<'_, T> {
    type Target = [T];

    #[inline(always)]
    fn deref(&self) -> &[T] {
        // SAFETY: len live elements from start; for capacity 0, no elements at a dangling address.
        unsafe { slice::from_raw_parts(self.start(), self.len) }
    }
}

impl<T> Drop for Vec<'_, T> {
    fn drop(&mut self) {
        if needs_drop::<T>() {
            // SAFETY: len live elements, which this vector owned and will not use again.
            unsafe { ptr::slice_from_raw_parts_mut(self.start(), self.len).drop_in_place() };
        }
        if self.capacity > 0 {
            journal::free_later(self.address);
        }
    }
}

impl<'a, T> IntoIterator for &'a Vec<'_, T> {
    type Item = &'a T;
    type IntoIter = slice::Iter<'a, T>;

    fn into_iter(self) -> slice::Iter<'a, T> {
        self.iter()
    }
}

impl<T: fmt::Debug> fmt::Debug for Vec<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        (**self).fmt(f)
    }
}

impl<T: PartialEq> PartialEq for Vec<'_, T> {
    fn eq(&self, other: &Self) -> bool {
        **self == **other
    }
}

impl<T: Eq> Eq for Vec<'_, T> {}

impl<T: PartialEq> PartialEq<[T]> for Vec<'_, T> {
    fn eq(&self, other: &[T]) -> bool {
        **self == *other
    }
}

impl<T: StableHash> StableHash for Vec<'_, T> {
    fn stable_hash(&self, hasher: &mut StableHasher) {
        (**self).stable_hash(hasher);
    }
}

impl<T> std::borrow::Borrow<[T]> for Vec<'_, T> {
    fn borrow(&self) -> &[T] {
        self
    }
}

impl<T> AsRef<[T]> for Vec<'_, T> {
    fn as_ref(&self) -> &[T] {
        self
    }
}

// SAFETY: a vector gives access to its elements as a slice of them would. Not Send: its Drop belongs to
// the thread of the section.
unsafe impl<T: Sync> Sync for Vec<'_, T> {}

// SAFETY: repr(C): three words, of which the first is an address in a container branded 's.
unsafe impl<'s, T: Persist<'s>> Persist<'s> for Vec<'s, T> {
    const ID: u64 = combine_ids(name_id("Vec"), T::ID);
    const POINTERS: bool = true;
    const TAGGED: bool = false;
    fn name() -> String {
        format!("Vec<{}>", T::name())
    }
    fn describe(d: &mut Describer) -> TypeDescription {
        let element = d.refer::<T>();
        d.shaped::<Self>(Shape::Vec(element))
    }
}
