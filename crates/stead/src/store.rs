//! A store as a program sees it: open it, take containers from it, make them stable. Read [`open`]
//! first.

use std::ops::ControlFlow;
use std::panic::{RefUnwindSafe, UnwindSafe};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use stead_heap::{Root, Tx};
use stead_site::site::GATE_DEFAULT;
use stead_site::{
    ContainerOptions, Counters, Damaged, OpenError, OpenOptions, QuotaError, Quotas, RemoveError,
    ScrubOptions, ScrubProgress, Scrubbed, Site, SiteStat, SnapshotError, SnapshotInfo,
    StabiliseError,
};

use crate::container::Container;
use crate::error::{Error, Result};

pub use stead_site::Stable;

/// How a store is opened.
pub type Options = OpenOptions;

/// A store that is open in this process. Cheap to clone. When the last clone and the last
/// [`Container`] of it are dropped, it is stabilised and closed; what goes wrong then, or in a stabilisation of
/// the background, is said on standard error. [`Store::close`] and [`Store::stabilise`] return it.
#[derive(Clone, Debug)]
pub struct Store {
    site: Arc<Site>,
}

// Whatever a panic interrupts in a section is undone.
impl UnwindSafe for Store {}
impl RefUnwindSafe for Store {}

/// Opens the store in a directory; makes one where the directory is missing (not its parents) or empty.
///
/// Addresses of a store are chosen at random when it is made. Two stores of different programs may have chosen
/// the same ones; then they cannot be open in one process at a time, and the message says so.
///
/// # Errors
/// If the directory holds something else or cannot be used, if another process has the store open
/// (the message names it), if it is damaged, or if this system lacks what is needed (`stead doctor` says
/// more).
pub fn open(dir: impl AsRef<Path>) -> Result<Store, OpenError> {
    Store::open_with(dir, &Options::default())
}

impl Store {
    /// Opens a store as [`open`] does, with other than the usual options.
    ///
    /// # Errors
    /// As [`open`].
    pub fn open_with(dir: impl AsRef<Path>, options: &Options) -> Result<Store, OpenError> {
        Ok(Store { site: Arc::new(Site::open(dir.as_ref(), options)?) })
    }

    /// Opens a container whose root is an `R`. If there is none of this name it is made, and `init`
    /// makes its root. Every container has addresses of its own for life (D1).
    ///
    /// # Errors
    /// If its addresses are occupied in this process or there are none left, if it is damaged, or if its root is of
    /// another type: then the message shows both types. If the name of a new one is empty, longer than 255 bytes,
    /// holds characters that cannot be seen, begins or ends with white space, begins with `#` or is `(system)`. What
    /// was to be made is not there then, nor after an error or a panic of `init`.
    pub fn container<R: Root>(
        &self,
        name: &str,
        init: impl for<'s> FnOnce(&'s Tx<'s>) -> Result<R::At<'s>>,
    ) -> Result<Container<R>> {
        self.container_with(name, &ContainerOptions::default(), init)
    }

    /// Opens a container as [`Store::container`] does, with other than the usual options if it is made.
    ///
    /// # Errors
    /// As [`Store::container`].
    pub fn container_with<R: Root>(
        &self,
        name: &str,
        options: &ContainerOptions,
        init: impl for<'s> FnOnce(&'s Tx<'s>) -> Result<R::At<'s>>,
    ) -> Result<Container<R>> {
        let typed = self.site.container::<R, Error>(name, options, init)?;
        Ok(Container::new(typed, Arc::clone(&self.site)))
    }

    /// Makes everything durable that sections have done before this call; on return it is. Programs keep
    /// running meanwhile. Callers that come while one is under way share the next.
    ///
    /// # Errors
    /// If called inside a section, if a section stays open for a minute, or if the disk fails or is
    /// full. Memory is as it was then, nothing is lost, and a later call takes up what this one
    /// did not write.
    pub fn stabilise(&self) -> Result<Stable, StabiliseError> {
        self.site.stabilise(GATE_DEFAULT)
    }

    /// Like [`Store::stabilise`], but gives up when open sections hold it up for longer than `gate`, and
    /// says which.
    ///
    /// # Errors
    /// As [`Store::stabilise`].
    pub fn stabilise_within(&self, gate: Duration) -> Result<Stable, StabiliseError> {
        self.site.stabilise(gate)
    }

    /// Stabilises, and gives up this handle. Dropping the last handle does the same, but can only print what
    /// went wrong; this returns it. Other handles and containers keep the store open.
    ///
    /// # Errors
    /// As [`Store::stabilise`].
    pub fn close(self) -> Result<Stable, StabiliseError> {
        self.stabilise()
    }

    /// Closes the store without stabilising: everything since the last stabilisation, a background one included, is
    /// forgotten, and opening the store again goes on from there (B15). Programs that want to go back to
    /// states of their own choice open with [`Options::interval`] `None`.
    ///
    /// # Errors
    /// The store itself, still open and as it was, while there are other handles of it or containers: what is
    /// forgotten must not be in use.
    pub fn abandon(self) -> Result<(), Store> {
        match Arc::try_unwrap(self.site) {
            Ok(site) => {
                site.abandon();
                Ok(())
            }
            Err(site) => Err(Store { site }),
        }
    }

    /// Runs `f` once everything that sections have done before this call is stable: for output that must
    /// not be taken back.
    ///
    /// # Errors
    /// As [`Store::stabilise`]; `f` is not run then.
    pub fn after_stable<T>(&self, f: impl FnOnce(Stable) -> T) -> Result<T, StabiliseError> {
        self.stabilise().map(f)
    }

    /// Removes a container for good: its name, its data, its addresses. Nobody in this process may hold it; it need not
    /// be readable, so that a damaged one can be removed as well. Stable on return, together with everything
    /// that sections have done before.
    ///
    /// # Errors
    /// If there is none of this name, if it is in use in this process, or if this cannot be made stable
    /// now: then a later stabilisation does it.
    pub fn remove(&self, name: &str) -> Result<Stable, RemoveError> {
        self.site.remove(name, GATE_DEFAULT)
    }

    /// Names the state of the whole store (B11): everything that sections have done before this call, in all
    /// containers. It copies nothing, and keeps what it names from being used again until it is dropped.
    ///
    /// # Errors
    /// If the name is taken, or none that a container could have; as [`Store::stabilise`].
    pub fn snapshot(&self, name: &str) -> Result<SnapshotInfo, SnapshotError> {
        self.site.snapshot(name, GATE_DEFAULT)
    }

    /// The snapshots, in the order in which they were taken.
    #[must_use]
    pub fn snapshots(&self) -> std::vec::Vec<SnapshotInfo> {
        self.site.snapshots()
    }

    /// Lets go of a snapshot: what only it holds becomes free. Whoever has it open goes on reading it.
    ///
    /// # Errors
    /// If there is none of this name, or the disk refuses.
    pub fn drop_snapshot(&self, name: &str) -> Result<(), SnapshotError> {
        self.site.drop_snapshot(name)
    }

    /// Takes the whole store back to a snapshot (B15): what has been done since is gone, unless another snapshot has it.
    /// The snapshot stays, and so do later ones. Durable on return.
    ///
    /// # Errors
    /// While a container, or another handle of this store, is open in this process; if there is no such snapshot; if
    /// the disk refuses. The store is then as it was.
    pub fn go_back(&mut self, name: &str) -> Result<SnapshotInfo, SnapshotError> {
        match Arc::get_mut(&mut self.site) {
            Some(site) => site.go_back(name, GATE_DEFAULT),
            None => {
                let what = "there are other handles of it, or containers".to_owned();
                Err(SnapshotError::InUse { what })
            }
        }
    }

    /// Makes a container of what a snapshot has of another (B11), in no time whatever its size, under a new name. It has the
    /// addresses and pointers of its origin, so that the two cannot be open in one process at a time. `container` is the
    /// origin's name, or `#` and its number (as `stead ls` shows it), also of one that has been removed since.
    ///
    /// # Errors
    /// If there is no such snapshot or container, if the new name is taken, if another container has come to lie at the
    /// origin's addresses, or if this cannot be made stable now.
    pub fn branch(&self, snapshot: &str, container: &str, name: &str) -> Result<(), SnapshotError> {
        self.site.branch(snapshot, container, name, GATE_DEFAULT)
    }

    /// Lays down how many bytes of the disk the store may take, for good; `None`: as many as there are. At its quota a store
    /// is like one on a full disk: stabilisations that need more room fail with the reason and take nothing back, and
    /// removing containers or dropping snapshots makes room. A store that takes more already becomes smaller as it
    /// can. Durable on return.
    ///
    /// # Errors
    /// If it is less than a store needs (about 32 MiB), or the disk refuses.
    pub fn set_quota(&self, quota: Option<u64>) -> Result<(), QuotaError> {
        self.set_quotas(&Quotas::new().store(quota))
    }

    /// Lays down how large the store's file may become, in hundredths of what is live in it, for good; `None`: 200. With more,
    /// cleaning has less to write while pages are overwritten at random; with less, the file is smaller. Small stores may
    /// have some segments of 4 MiB more; a quota that is less counts. Durable on return.
    ///
    /// # Errors
    /// If it is less than 150 or more than 10,000, or the disk refuses.
    pub fn set_space_percent(&self, percent: Option<u32>) -> Result<(), QuotaError> {
        self.set_quotas(&Quotas::new().space_percent(percent))
    }

    /// As [`Container::set_quota`], for a container that need not be open, nor readable.
    ///
    /// # Errors
    /// If there is none of this name; as [`Container::set_quota`].
    pub fn set_container_quota(&self, name: &str, quota: Option<u64>) -> Result<(), QuotaError> {
        self.set_quotas(&Quotas::new().container(name, quota))
    }

    /// Lays down several quotas at once: all of them, or none. Durable on return.
    ///
    /// # Errors
    /// As [`set_quota`](Self::set_quota), [`set_space_percent`](Self::set_space_percent) and
    /// [`set_container_quota`](Self::set_container_quota).
    pub fn set_quotas(&self, quotas: &Quotas) -> Result<(), QuotaError> {
        self.site.set_quotas(quotas)
    }

    /// Names of all containers, in order.
    #[must_use]
    pub fn names(&self) -> Vec<String> {
        self.site.names()
    }

    /// The damaged pages that were touched since the store was opened here, be it by a system call, which then
    /// failed with `EFAULT`, or by a load of which a handler of the program's own kept it alive (B12).
    #[must_use]
    pub fn damage_met(&self) -> Vec<Damaged> {
        self.site.damage_met()
    }

    /// What happened since the store was opened here: a few loads.
    #[must_use]
    pub fn counters(&self) -> Counters {
        self.site.counters()
    }

    /// What there is, and what happened. Costs by the number of stored pages.
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
    /// # fn weekly(store: &Store) {
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
