//! Locks in shared objects, under the names of std. What they protect is changed by sections that run
//! side by side; how they are granted is in `lock.rs`. Read [`Mutex`] first.

use std::cell::UnsafeCell;
use std::fmt;
use std::marker::PhantomData;
use std::mem::offset_of;
use std::ops::{Deref, DerefMut};
use std::ptr::NonNull;

use crate::error::LockError;
use crate::journal::{Journal, Mode};
use crate::lock;
use crate::section::{Brand, TakeReadLocks, Tx};
use crate::types::{Describer, Persist, Shape, TypeDescription, combine_ids, name_id};

/// A value that one section at a time reads and changes.
///
/// A section holds the lock from [`Mutex::lock`] to its own end, even after the guard is dropped or
/// forgotten: what it changed is not seen by others until it is whole. The same section may lock again
/// once the guard is dropped. The lock is volatile; it is free when the container is opened.
#[repr(C)]
pub struct Mutex<'s, T> {
    /// Zeros, never written. The lock's state is in the shadow of these bytes.
    identity: u64,
    value: UnsafeCell<T>,
    brand: Brand<'s>,
}

/// A value that one section at a time changes, or any number read.
///
/// Held to the section's end like [`Mutex`]; also reading sections can take it for reading. A section
/// that reads it may go on to write it if no other section reads it too; if one does, that is
/// [`LockError::Deadlock`].
#[repr(C)]
pub struct RwLock<'s, T> {
    /// As of a [`Mutex`].
    identity: u64,
    value: UnsafeCell<T>,
    brand: Brand<'s>,
}

/// Lends what a [`Mutex`] or [`RwLock`] protects, for change.
#[must_use = "the value is lent by the guard; the lock itself is held to the section's end"]
pub struct WriteGuard<'a, 's, T> {
    value: NonNull<T>,
    journal: NonNull<Journal>,
    hold: u32,
    noted: bool,
    borrow: PhantomData<(&'a mut T, Brand<'s>)>,
}

/// Lends what a [`Mutex`] protects.
pub type MutexGuard<'a, 's, T> = WriteGuard<'a, 's, T>;

/// Lends what a [`RwLock`] protects, for reading.
#[must_use = "the value is lent by the guard; the lock itself is held to the section's end"]
pub struct ReadGuard<'a, 's, T> {
    value: NonNull<T>,
    journal: NonNull<Journal>,
    hold: u32,
    borrow: PhantomData<(&'a T, Brand<'s>)>,
}

fn write_guard<'a, 's, T>(
    tx: &Tx<'s>,
    identity: &'a u64,
    value: &'a UnsafeCell<T>,
) -> Result<WriteGuard<'a, 's, T>, LockError> {
    let locker = tx.locker();
    let hold = lock::acquire(&locker, identity, Mode::Write)?;
    let value = NonNull::new(value.get()).expect("a reference is not null");
    Ok(WriteGuard { value, journal: locker.journal, hold, noted: false, borrow: PhantomData })
}

impl<'s, T> Mutex<'s, T> {
    /// A lock that protects `value`.
    #[inline]
    pub const fn new(value: T) -> Self {
        Mutex { identity: 0, value: UnsafeCell::new(value), brand: PhantomData }
    }

    /// Waits for the lock and takes it until the section's end.
    ///
    /// # Errors
    /// [`LockError::AlreadyLent`] while a guard of it lives in this thread; [`LockError::Deadlock`] if
    /// waiting could last for ever.
    #[inline]
    pub fn lock<'a>(&'a self, tx: &Tx<'s>) -> Result<MutexGuard<'a, 's, T>, LockError> {
        write_guard(tx, &self.identity, &self.value)
    }

    /// What it protects, of a lock that is held for change itself.
    #[inline]
    pub fn get_mut(&mut self) -> &mut T {
        self.value.get_mut()
    }

    /// What it protected, of a lock that is not in the container.
    #[inline]
    pub fn into_inner(self) -> T {
        self.value.into_inner()
    }
}

impl<'s, T> RwLock<'s, T> {
    /// A lock that protects `value`.
    #[inline]
    pub const fn new(value: T) -> Self {
        RwLock { identity: 0, value: UnsafeCell::new(value), brand: PhantomData }
    }

    /// Waits for the lock and takes it for reading until the section's end.
    ///
    /// # Errors
    /// [`LockError::AlreadyLent`] while a writing guard of it lives in this thread, or a section around
    /// this one holds it for writing; [`LockError::Deadlock`] if waiting could last for ever.
    #[inline]
    pub fn read<'a, K: TakeReadLocks<'s>>(
        &'a self,
        token: &K,
    ) -> Result<ReadGuard<'a, 's, T>, LockError> {
        let locker = token.locker();
        let hold = lock::acquire(&locker, &self.identity, Mode::Read)?;
        let value = NonNull::new(self.value.get()).expect("a reference is not null");
        Ok(ReadGuard { value, journal: locker.journal, hold, borrow: PhantomData })
    }

    /// Waits for the lock and takes it for writing until the section's end.
    ///
    /// # Errors
    /// [`LockError::AlreadyLent`] while a guard of it lives in this thread; [`LockError::Deadlock`] if
    /// waiting could last for ever.
    #[inline]
    pub fn write<'a>(&'a self, tx: &Tx<'s>) -> Result<WriteGuard<'a, 's, T>, LockError> {
        write_guard(tx, &self.identity, &self.value)
    }

    /// What it protects, of a lock that is held for change itself.
    #[inline]
    pub fn get_mut(&mut self) -> &mut T {
        self.value.get_mut()
    }

    /// What it protected, of a lock that is not in the container.
    #[inline]
    pub fn into_inner(self) -> T {
        self.value.into_inner()
    }
}

impl<T> Deref for WriteGuard<'_, '_, T> {
    type Target = T;

    #[inline(always)]
    fn deref(&self) -> &T {
        // SAFETY: this is the one guard that lives of a lock held for writing; the lock, borrowed for
        // 'a, stays where it is.
        unsafe { self.value.as_ref() }
    }
}

impl<T> DerefMut for WriteGuard<'_, '_, T> {
    #[inline(always)]
    fn deref_mut(&mut self) -> &mut T {
        if !self.noted {
            self.noted = true;
            // SAFETY: guards live inside a mutating section of this thread, whose journal this is; the
            // value can be read.
            unsafe { self.journal.as_ref().note(self.value.as_ptr().cast(), size_of::<T>()) };
        }
        // SAFETY: as in `deref`; `&mut self` makes it the only borrow of the guard.
        unsafe { self.value.as_mut() }
    }
}

impl<T> Deref for ReadGuard<'_, '_, T> {
    type Target = T;

    #[inline(always)]
    fn deref(&self) -> &T {
        // SAFETY: the lock is held, for reading or by this very section for writing with no writing
        // guard alive; the lock, borrowed for 'a, stays where it is.
        unsafe { self.value.as_ref() }
    }
}

impl<T> Drop for WriteGuard<'_, '_, T> {
    #[inline]
    fn drop(&mut self) {
        // SAFETY: the journal is this thread's, and lives until the thread ends.
        lock::guard_dropped(unsafe { self.journal.as_ref() }, self.hold);
    }
}

impl<T> Drop for ReadGuard<'_, '_, T> {
    #[inline]
    fn drop(&mut self) {
        // SAFETY: the journal is this thread's, and lives until the thread ends.
        lock::guard_dropped(unsafe { self.journal.as_ref() }, self.hold);
    }
}

impl<T: fmt::Debug> fmt::Debug for WriteGuard<'_, '_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        (**self).fmt(f)
    }
}

impl<T: fmt::Debug> fmt::Debug for ReadGuard<'_, '_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        (**self).fmt(f)
    }
}

macro_rules! lock_impls {
    ($lock:ident) => {
        impl<T> fmt::Debug for $lock<'_, T> {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(concat!(stringify!($lock), "(..)"))
            }
        }

        // SAFETY: guards are made with a token, which stays on its thread; between sections values of
        // persistent types may go from thread to thread (condition of Persist). A reference got from a
        // guard may be shared with scoped threads if T allows.
        unsafe impl<T: Sync> Sync for $lock<'_, T> {}

        // SAFETY: repr(C): eight zero bytes, then T at its alignment.
        unsafe impl<'s, T: Persist<'s>> Persist<'s> for $lock<'s, T> {
            const ID: u64 = combine_ids(name_id(stringify!($lock)), T::ID);
            const POINTERS: bool = T::POINTERS;
            const TAGGED: bool = T::TAGGED;
            const CHECK: () = T::CHECK;
            fn name() -> String {
                format!(concat!(stringify!($lock), "<{}>"), T::name())
            }
            fn describe(d: &mut Describer) -> TypeDescription {
                let value = d.refer::<T>();
                let offset = offset_of!(Self, value) as u64;
                d.shaped::<Self>(Shape::Lock { value, offset })
            }
        }
    };
}
lock_impls!(Mutex);
lock_impls!(RwLock);
