//! A container as a program sees it: its sections. Read [`Container`] first.

use std::fmt;
use std::ops::Range;
use std::panic::{RefUnwindSafe, UnwindSafe};
use std::sync::Arc;

use stead_heap::{Exclusive, Read, Root, Write};
use stead_model::Address;
use stead_site::{CheckError, QuotaError, Quotas, SectionError, Site, Typed};

use crate::error::Error;

/// A container whose root is an `R`, at the same address for life. Cheap to clone, and to share
/// between threads; the store stays open while one is held.
///
/// Sections must be short: while a stabilisation waits for an open one to end, no other thread can begin to
/// write. They must also end: nothing is stable before they do.
///
/// After a `fork` the child has no containers: touching one ends it with SIGSEGV. Open the store in the child,
/// after the parent has closed it, or start a program of its own.
pub struct Container<R> {
    inner: Typed<R>,
    site: Arc<Site>,
}

// A panic inside a section undoes it, and none can come in between outside of one.
impl<R> UnwindSafe for Container<R> {}
impl<R> RefUnwindSafe for Container<R> {}

impl<R> Clone for Container<R> {
    fn clone(&self) -> Self {
        Container { inner: self.inner.clone(), site: Arc::clone(&self.site) }
    }
}

impl<R> fmt::Debug for Container<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Container")
            .field("name", &self.name())
            .field("address", &self.address())
            .finish_non_exhaustive()
    }
}

impl<R> Container<R> {
    pub(crate) fn new(inner: Typed<R>, site: Arc<Site>) -> Self {
        Container { inner, site }
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        self.inner.opened().name()
    }

    /// Its first address (D1).
    #[must_use]
    pub fn address(&self) -> Address {
        self.inner.opened().base()
    }
}

impl<R> Container<R> {
    /// How many bytes it may hold; `None` if nobody has said.
    #[must_use]
    pub fn quota(&self) -> Option<u64> {
        self.site.container_quota(self.inner.opened().id())
    }

    /// Lays down how many bytes the container may hold, for as long as it lives; `None`: as many as its addresses and the
    /// store allow. Counted are whole pages: those that hold something, and those that describe them.
    ///
    /// An allocation that would need more pages than that fails with [`AllocError`](crate::AllocError), and so usually
    /// its section, which is undone. What is allocated counts there, written or not. A stabilisation makes sure: if
    /// there would be more stable pages than that, and more than there are, it fails as a whole, for all containers, and
    /// says so; memory keeps all changes. Then free something, raise the quota, or [`Store::abandon`](crate::Store::abandon).
    /// A container that holds more already keeps that. Durable on return.
    ///
    /// # Errors
    /// If called inside a section, or the disk refuses.
    pub fn set_quota(&self, quota: Option<u64>) -> Result<(), QuotaError> {
        self.site.set_quotas(&Quotas::new().container(self.name(), quota))
    }

    /// Brings the pages of a range of addresses into memory, and says so if one of them is damaged on the disk
    /// (B12). A plain load cannot return an error: that of a damaged page ends the process with SIGBUS, after a
    /// message on standard error; so does a store, even if it is the first of many that would overwrite the
    /// whole page. What has been checked can be loaded and stored. Inside a section its token checks
    /// the place of an object or of elements: see [`Tx::check`](crate::Tx::check) and
    /// [`Read::check`](crate::Read::check).
    ///
    /// A system call that meets a damaged page which has not been checked fails with `EFAULT`, or with `EHWPOISON`
    /// where it pins pages; [`Store::damage_met`](crate::Store::damage_met) tells which page it was.
    ///
    /// ```no_run
    /// # use stead::*;
    /// # fn look<R>(container: &Container<R>, at: Address) -> Result<()> {
    /// if let Err(CheckError::Damaged(damaged)) = container.check(at..Address(at.0 + (1 << 20))) {
    ///     eprintln!("{} at {} is lost: {}", damaged.holds, damaged.address, damaged.why);
    /// }
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// Names the first damaged page: container, page, address, and what is on it. Also if the addresses are not this
    /// container's, or this thread is in an exclusive section.
    pub fn check(&self, addresses: Range<Address>) -> Result<(), CheckError> {
        self.inner.opened().check(addresses)
    }
}

impl<R: Root> Container<R> {
    /// A reading section: shared references to everything, changing nothing. Never held up by a
    /// stabilisation. May be opened inside other sections, except exclusive ones.
    ///
    /// # Errors
    /// If this thread is in an exclusive section, or in eight reading ones; or if the root is damaged on the disk.
    #[inline]
    pub fn read<T>(
        &self,
        f: impl for<'s> FnOnce(&'s R::At<'s>, &'s Read<'s>) -> T,
    ) -> Result<T, SectionError> {
        self.inner.read(f)
    }

    /// A section that changes things through locks, counters and `tx`, side by side with other
    /// threads. It happens whole or not at all: `Err` or a panic undoes it. When it
    /// met a deadlock with another section and returned the error of the lock, it is undone and called
    /// again, 256 times at most.
    ///
    /// # Errors
    /// The closure's own; or [`SectionError`] if this thread has a section open, or the root is damaged on the disk.
    #[inline]
    #[track_caller]
    pub fn write<T, E: From<Error>>(
        &self,
        f: impl for<'s> FnMut(&'s R::At<'s>, &'s Write<'s>) -> Result<T, E>,
    ) -> Result<T, E> {
        self.inner.write(f).map_err(Error::from)?
    }

    /// A section that is alone in its container, and borrows `&mut` the root. It happens whole or
    /// not at all: `Err` or a panic undoes it.
    ///
    /// # Errors
    /// The closure's own; or [`SectionError`] if this thread has a section open, or the root is damaged on the disk.
    #[track_caller]
    pub fn exclusive<T, E: From<Error>>(
        &self,
        f: impl for<'s> FnMut(&'s mut R::At<'s>, &'s mut Exclusive<'s>) -> Result<T, E>,
    ) -> Result<T, E> {
        self.inner.exclusive(f).map_err(Error::from)?
    }

    /// Waits until `f` returns a value. `f` runs in a section like that of [`Container::write`]; when
    /// it returns `Ok(None)` the section is undone, and `f` is called again after another
    /// section has changed this container. No section is open while it waits. What happens outside of
    /// this container, and counters changed by a section that is undone, wake nobody.
    ///
    /// ```no_run
    /// # use stead::*;
    /// # #[derive(Persist)] #[repr(C)] struct Queue<'s> { jobs: Mutex<'s, Vec<'s, u64>> }
    /// # fn take(queue: &Container<Queue<'static>>) -> Result<u64> {
    /// let job = queue.write_when(|root, tx| -> Result<_> { Ok(root.jobs.lock(tx)?.pop(tx)) })?;
    /// # Ok(job)
    /// # }
    /// ```
    ///
    /// # Errors
    /// As [`Container::write`].
    #[track_caller]
    pub fn write_when<T, E: From<Error>>(
        &self,
        f: impl for<'s> FnMut(&'s R::At<'s>, &'s Write<'s>) -> Result<Option<T>, E>,
    ) -> Result<T, E> {
        self.inner.write_when(f).map_err(Error::from)?
    }
}
