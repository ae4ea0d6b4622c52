//! A store of which this process only reads: while another one owns it and goes on, or when nobody does. Its
//! containers have reading sections and no others. Read [`open_read_only`] first.

use std::fmt;
use std::ops::ControlFlow;
use std::panic::{RefUnwindSafe, UnwindSafe};
use std::path::Path;
use std::sync::Arc;

use stead_heap::{Read, Root};
use stead_model::Address;
use stead_site::{
    ContainerError, OpenError, OpenOptions, ScrubOptions, ScrubProgress, Scrubbed, SectionError,
    Site, SiteStat, SnapshotInfo, Typed,
};

/// A store that is open in this process for reading: one state of it, which stands still. Cheap to clone. Closed when
/// the last clone and the last [`ReadContainer`] of it are dropped; until then the process that owns the store keeps
/// what is read here, so that its file may grow.
#[derive(Clone, Debug)]
pub struct ReadStore {
    site: Arc<Site>,
}

// Nothing is ever half changed.
impl UnwindSafe for ReadStore {}
impl RefUnwindSafe for ReadStore {}

/// Opens the store in a directory for reading, as its last stabilisation left it. Another process may have it open and
/// go on changing it: nothing of that is seen here. Needs no right to write, and holds up nobody.
///
/// # Errors
/// If there is no store, if it is damaged, if its addresses are taken in this process, or if this system lacks what is
/// needed.
pub fn open_read_only(dir: impl AsRef<Path>) -> Result<ReadStore, OpenError> {
    let site = Site::open_read_only(dir.as_ref(), None, &OpenOptions::default())?;
    Ok(ReadStore { site: Arc::new(site) })
}

/// Opens a snapshot of the store in a directory for reading (B11), as [`open_read_only`] opens its last state: the same
/// names, addresses and pointers as when it was taken. Dropping the snapshot meanwhile disturbs nobody here.
///
/// # Errors
/// As [`open_read_only`]; if there is no such snapshot.
pub fn open_snapshot(dir: impl AsRef<Path>, name: &str) -> Result<ReadStore, OpenError> {
    let site = Site::open_read_only(dir.as_ref(), Some(name), &OpenOptions::default())?;
    Ok(ReadStore { site: Arc::new(site) })
}

impl ReadStore {
    /// Opens a container that is there, and whose root is an `R`: at the same address as everywhere.
    ///
    /// # Errors
    /// If there is none of this name, if its addresses are occupied in this process, if it is damaged, or if its root is
    /// of another type.
    pub fn container<R: Root>(&self, name: &str) -> Result<ReadContainer<R>, ContainerError> {
        let inner = self.site.existing_typed::<R>(name)?;
        Ok(ReadContainer { inner, site: Arc::clone(&self.site) })
    }

    /// Names of all containers, in order.
    #[must_use]
    pub fn names(&self) -> Vec<String> {
        self.site.names()
    }

    /// The snapshot that this is; `None` if it is the last state.
    #[must_use]
    pub fn snapshot(&self) -> Option<SnapshotInfo> {
        self.site.shown_snapshot()
    }

    /// The snapshots that there were when it was opened, in the order in which they were taken.
    #[must_use]
    pub fn snapshots(&self) -> Vec<SnapshotInfo> {
        self.site.snapshots()
    }

    /// What there is. Costs by the number of stored pages.
    #[must_use]
    pub fn stat(&self) -> SiteStat {
        self.site.stat()
    }

    /// Reads everything that the store refers to, all snapshots among it, from the disk itself and checks it (B12), while
    /// the store is in use; nothing waits for it. It repairs nothing. `progress` is told after each 256 KiB at the
    /// most, and stops it with `Break`.
    ///
    /// ```no_run
    /// # use stead::*; use std::ops::ControlFlow;
    /// # fn weekly(store: &ReadStore) {
    /// let gently = ScrubOptions::new().bytes_per_second(20 << 20);
    /// for damage in store.scrub(&gently, |_| ControlFlow::Continue(())).damages {
    ///     eprintln!("{damage}");
    /// }
    /// # }
    /// ```
    pub fn scrub(
        &self,
        options: &ScrubOptions,
        mut progress: impl FnMut(ScrubProgress) -> ControlFlow<()>,
    ) -> Scrubbed {
        self.site.scrub(options, &mut progress)
    }

    /// The site behind it, for tools.
    #[doc(hidden)]
    #[must_use]
    pub fn site(&self) -> &Arc<Site> {
        &self.site
    }
}

/// A container whose root is an `R`, for reading. Cheap to clone, and to share between threads.
pub struct ReadContainer<R> {
    inner: Typed<R>,
    site: Arc<Site>,
}

impl<R> UnwindSafe for ReadContainer<R> {}
impl<R> RefUnwindSafe for ReadContainer<R> {}

impl<R> Clone for ReadContainer<R> {
    fn clone(&self) -> Self {
        ReadContainer { inner: self.inner.clone(), site: Arc::clone(&self.site) }
    }
}

impl<R> fmt::Debug for ReadContainer<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ReadContainer")
            .field("name", &self.name())
            .field("address", &self.address())
            .finish_non_exhaustive()
    }
}

impl<R> ReadContainer<R> {
    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        self.inner.opened().name()
    }

    /// Its first address (D1): the same as in the process that owns the store.
    #[must_use]
    pub fn address(&self) -> Address {
        self.inner.opened().base()
    }
}

impl<R: Root> ReadContainer<R> {
    /// A reading section: shared references to everything.
    ///
    /// ```compile_fail
    /// # use stead::*;
    /// # #[derive(Persist)] #[repr(C)] struct Run { runs: u64 }
    /// # fn change(container: &ReadContainer<Run>) {
    /// container.write(|root, tx| -> Result<_> { Ok(()) }); // there are no sections that change things
    /// # }
    /// ```
    ///
    /// # Errors
    /// If this thread is in an exclusive section, or in eight reading ones.
    #[inline]
    pub fn read<T>(
        &self,
        f: impl for<'s> FnOnce(&'s R::At<'s>, &'s Read<'s>) -> T,
    ) -> Result<T, SectionError> {
        self.inner.read(f)
    }
}
