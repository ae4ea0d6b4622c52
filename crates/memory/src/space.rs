//! The memory that one process has of one store: addresses reserved for its containers, and the one
//! place where its page faults arrive. Frames are the clusters' business. Read [`Space`] first.

use std::io;
use std::sync::atomic::{AtomicU8, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use rustix::io::Errno;
use stead_model::windows::WindowRun;
use stead_model::{
    ADDRESS_START, Address, ContainerId, PAGE_SIZE, PageNo, WINDOW_COUNT, WINDOW_SIZE,
};

use crate::cluster::Cluster;
use crate::counters::{CounterValues, Counters, add};
use crate::error::{MapError, ReserveError};
use crate::faults::{ClusterKey, Fault, FaultBatch, FaultKind};
use crate::named::Named;
use crate::support::{Allowed, Unsupported};
use crate::sys::{Linux, LogRead, Mode, RawFault, Sys};

/// One for each process and store. Clones are handles of the same space.
pub struct Space<S: Sys = Linux> {
    pub(crate) inner: Arc<Inner<S>>,
}

pub(crate) struct Inner<S: Sys> {
    pub(crate) sys: S,
    pub(crate) counters: Counters,
    /// For each window of the address range, which cluster is mapped there: an [`Owner`], packed, so
    /// that the fault path needs no lock.
    owners: Box<[AtomicU64]>,
    next_key: AtomicU32,
    /// For each window that was ever mapped, where written pages may be.
    named: Box<[OnceLock<Named>]>,
    /// Counts the times at which the log could not be trusted for what lay before.
    epoch: AtomicU64,
    /// One reading of the log at a time: whoever has read knows that all earlier readings are entered.
    reading: Mutex<()>,
    log_use: AtomicU8,
}

/// How written pages are found.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum LogUse {
    /// By scanning all that is in memory.
    Scan,
    /// By looking where the fault log says.
    Log,
    /// As `Log`; and everything is scanned as well, and the process ended if the log left out a page. For
    /// tests.
    Checked,
}

/// A reading of the fault log: scans that go by it find everything that was written before it was
/// taken.
#[derive(Clone, Copy, Debug)]
pub struct Reading {
    pub(crate) epoch: u64,
    pub(crate) log_use: LogUse,
}

impl Space<Linux> {
    /// Opens what page faults and dirty bits need.
    ///
    /// # Errors
    /// Names the first needed thing that kernel, user or container refuse, and what to do about it.
    pub fn open() -> Result<Space, Unsupported> {
        Space::open_allowed(Allowed::ALL)
    }

    /// As [`Space::open`], as if only what `allowed` says were allowed.
    ///
    /// # Errors
    /// As for [`Space::open`].
    pub fn open_allowed(allowed: Allowed) -> Result<Space, Unsupported> {
        #[cfg(feature = "planted")]
        let (allowed, forced) = crate::planted::log_use(allowed);
        let sys = Linux::open(allowed)?;
        // Registering takes microseconds while this process has one thread, and about 10 ms once it
        // has more: the kernel then waits until all of them have been scheduled. Gates need it later.
        crate::gate::barrier_works();
        let space = Space::on(sys);
        #[cfg(feature = "planted")]
        if let Err(refusal) = forced.map_or(Ok(()), |log_use| space.log_as(log_use)) {
            eprintln!("NOT RUN: {refusal}");
        }
        Ok(space)
    }

    /// Whether a fault log could be started, as far as can be seen without starting one.
    ///
    /// # Errors
    /// Says why not.
    pub fn log_allowed(&self) -> Result<(), Unsupported> {
        self.inner.sys.log_allowed()
    }

    /// Whether the kernel lets this user serve faults of its own code only. A system call that
    /// touches a page which is not in memory then fails with `EFAULT`: fill containers ahead.
    #[must_use]
    pub fn user_mode_only(&self) -> bool {
        self.inner.sys.user_mode_only()
    }
}

impl<S: Sys> Space<S> {
    /// A space on a system that is open already.
    pub fn on(sys: S) -> Space<S> {
        let owners = (0..WINDOW_COUNT).map(|_| AtomicU64::new(0)).collect();
        let counters = Counters::default();
        let named = (0..WINDOW_COUNT).map(|_| OnceLock::new()).collect();
        Space {
            inner: Arc::new(Inner {
                sys,
                counters,
                owners,
                next_key: AtomicU32::new(1),
                named,
                epoch: AtomicU64::new(0),
                reading: Mutex::new(()),
                log_use: AtomicU8::new(LogUse::Scan as u8),
            }),
        }
    }

    /// The system below, for what a test has to do to it.
    #[must_use]
    pub fn sys(&self) -> &S {
        &self.inner.sys
    }

    /// Reserves the addresses of a container: nothing else in this process can be mapped there, and
    /// touching them is a segmentation fault, in a forked child too.
    ///
    /// # Errors
    /// If something else is mapped there, which is named.
    pub fn reserve(
        &self,
        container: ContainerId,
        run: WindowRun,
    ) -> Result<Reservation<S>, ReserveError> {
        let (base, byte_len) = (run.base(), run.byte_len());
        let end = Address(base.0 + byte_len);
        add(&self.inner.counters.calls_mapping, 1);
        match self.inner.sys.reserve(base, byte_len) {
            Ok(area) => {
                let space = Arc::clone(&self.inner);
                Ok(Reservation { held: Arc::new(Held { area, container, run, space }) })
            }
            Err(Errno::EXIST) => Err(ReserveError::Occupied {
                container,
                base,
                end,
                by: self.inner.sys.occupant(base, byte_len),
            }),
            Err(errno) => Err(ReserveError::Refused { container, base, end, errno }),
        }
    }

    /// Maps a new cluster, with no page in memory, over these windows of the reservation (0 is its
    /// first). Costs the same however large it is (catalogue A7).
    ///
    /// # Errors
    /// If the kernel refuses.
    ///
    /// # Panics
    /// If `windows` is empty, names a window outside the reservation, or one that a cluster has.
    pub fn map_cluster(
        &self,
        reservation: &Reservation<S>,
        windows: &[u32],
        mode: Mode,
    ) -> Result<Cluster<S>, MapError> {
        assert!(!windows.is_empty(), "a cluster owns at least one window");
        let key = ClusterKey(self.inner.next_key.fetch_add(1, Ordering::Relaxed));
        Cluster::map(Arc::clone(&reservation.held), key, windows, mode)
    }

    /// Waits for page faults, for at most `timeout` (`None`: for ever), and fills the batch with
    /// those that came. Allocates nothing, takes no lock, prints nothing: the stopped threads may
    /// hold any lock of the program.
    ///
    /// # Errors
    /// If the kernel refuses, which it has no reason to.
    pub fn poll(&self, batch: &mut FaultBatch, timeout: Option<Duration>) -> io::Result<()> {
        let FaultBatch { scratch, raw, faults, woken } = batch;
        raw.clear();
        faults.clear();
        *woken = false;
        *woken = self.inner.sys.wait(scratch, raw, timeout)?;
        // As many as were found fit: both have the same room.
        faults.extend(raw.iter().filter_map(|raw| self.inner.fault(raw)));
        Ok(())
    }

    /// Makes the poll under way, or else the next one, return. For any thread.
    pub fn wake_poll(&self) {
        self.inner.sys.ring();
    }

    /// Finds written pages by the kernel's log of page faults from now on, so that it costs by what was
    /// written, not by what is in memory. Each first write to a protected page, and every other page fault of
    /// the process, then costs a third more. Takes some milliseconds, in which the program runs on.
    ///
    /// # Errors
    /// Says why there is no log; written pages are found by scanning, as before.
    pub fn start_log(&self) -> Result<(), Unsupported> {
        self.log_as(LogUse::Log)
    }

    /// As [`Space::start_log`], with the log checked by scans. For tests.
    ///
    /// # Errors
    /// As for [`Space::start_log`].
    pub fn check_log(&self) -> Result<(), Unsupported> {
        self.log_as(LogUse::Checked)
    }

    /// Finds written pages by scanning again.
    pub fn stop_log(&self) {
        let inner = &self.inner;
        let _turn = inner.reading.lock().unwrap_or_else(PoisonError::into_inner);
        inner.log_use.store(LogUse::Scan as u8, Ordering::SeqCst);
        inner.sys.stop_log();
    }

    fn log_as(&self, log_use: LogUse) -> Result<(), Unsupported> {
        let inner = &self.inner;
        inner.sys.start_log()?;
        let _turn = inner.reading.lock().unwrap_or_else(PoisonError::into_inner);
        // What was written before it began is not in it.
        inner.epoch.fetch_add(1, Ordering::SeqCst);
        inner.log_use.store(log_use as u8, Ordering::SeqCst);
        Ok(())
    }

    /// How written pages are found.
    #[must_use]
    pub fn log_use(&self) -> LogUse {
        self.inner.log_use()
    }

    /// Reads the fault log, for all scans of a round together.
    #[must_use]
    pub fn read_log(&self) -> Reading {
        self.inner.read_log()
    }

    /// What this space has done so far.
    #[must_use]
    pub fn counters(&self) -> CounterValues {
        self.inner.counters.values()
    }
}

impl<S: Sys> Clone for Space<S> {
    fn clone(&self) -> Self {
        Space { inner: Arc::clone(&self.inner) }
    }
}

impl<S: Sys> std::fmt::Debug for Space<S> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Space").field("counters", &self.counters()).finish_non_exhaustive()
    }
}

impl<S: Sys> Inner<S> {
    fn fault(&self, raw: &RawFault) -> Option<Fault> {
        let window = raw.address.checked_sub(ADDRESS_START)? / WINDOW_SIZE;
        // A cluster that was unmapped meanwhile has no owner: its waiters have been sent on.
        let owner = Owner::unpack(self.owners.get(window)?.load(Ordering::Acquire))?;
        let kind = match (raw.protected, raw.minor) {
            (true, _) => FaultKind::Protected,
            (false, true) => FaultKind::Minor,
            (false, false) => FaultKind::Missing,
        };
        add(
            match kind {
                FaultKind::Missing => &self.counters.faults_missing,
                FaultKind::Minor => &self.counters.faults_minor,
                FaultKind::Protected => &self.counters.faults_protected,
            },
            1,
        );
        let base = Address(ADDRESS_START + owner.container_window as usize * WINDOW_SIZE);
        Some(Fault {
            container: owner.container,
            cluster: owner.cluster,
            page: Address(raw.address).page_from(base),
            write: raw.write,
            kind,
        })
    }

    fn log_use(&self) -> LogUse {
        let all = [LogUse::Scan, LogUse::Log, LogUse::Checked];
        all[usize::from(self.log_use.load(Ordering::SeqCst))]
    }

    pub(crate) fn read_log(&self) -> Reading {
        let _turn = self.reading.lock().unwrap_or_else(PoisonError::into_inner);
        let log_use = self.log_use();
        if log_use != LogUse::Scan {
            add(&self.counters.log_readings, 1);
            let mut fault_count = 0;
            let read = self.sys.read_log(&mut |address| {
                let Some(offset) = address.checked_sub(ADDRESS_START) else { return };
                // Faults of the whole process come by; most are somewhere else.
                if let Some(named) = self.named.get(offset / WINDOW_SIZE).and_then(OnceLock::get) {
                    named.add((offset % WINDOW_SIZE / PAGE_SIZE) as u64);
                    fault_count += 1;
                }
            });
            add(&self.counters.log_faults, fault_count);
            if read != LogRead::Whole {
                add(&self.counters.log_holed, 1);
                self.distrust_log();
            }
        }
        Reading { epoch: self.epoch.load(Ordering::SeqCst), log_use }
    }

    /// Every cluster is scanned whole once more.
    pub(crate) fn distrust_log(&self) {
        self.epoch.fetch_add(1, Ordering::SeqCst);
    }

    /// Where written pages of a window may be.
    pub(crate) fn named(&self, window: u32) -> &Named {
        self.named[window as usize].get_or_init(Named::new)
    }

    /// Says whose window this is; `false` if it has an owner.
    pub(crate) fn own(&self, window: u32, owner: Owner) -> bool {
        self.owners[window as usize]
            .compare_exchange(0, owner.pack(), Ordering::Release, Ordering::Relaxed)
            .is_ok()
    }

    pub(crate) fn disown(&self, window: u32) {
        self.owners[window as usize].store(0, Ordering::Release);
    }
}

/// Whose window it is: 32 bits for the cluster, 22 for the container, 10 for the container's first
/// window.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Owner {
    pub(crate) cluster: ClusterKey,
    pub(crate) container: ContainerId,
    pub(crate) container_window: u32,
}

const _: () = assert!(WINDOW_COUNT <= 1 << 10 && ContainerId::MAX.0 < 1 << 22);

impl Owner {
    fn pack(self) -> u64 {
        assert!(self.container <= ContainerId::MAX && self.cluster.0 != 0);
        u64::from(self.cluster.0) << 32
            | u64::from(self.container.0) << 10
            | u64::from(self.container_window)
    }

    fn unpack(packed: u64) -> Option<Owner> {
        (packed != 0).then_some(Owner {
            cluster: ClusterKey((packed >> 32) as u32),
            container: ContainerId((packed >> 10) as u32 & ContainerId::MAX.0),
            container_window: packed as u32 & 0x3ff,
        })
    }
}

/// The addresses of a container in this process. They stay reserved as long as this handle, or a
/// cluster mapped into it, lives (catalogue D1).
pub struct Reservation<S: Sys = Linux> {
    pub(crate) held: Arc<Held<S>>,
}

pub(crate) struct Held<S: Sys> {
    // Before `space`, whose descriptor watches it.
    pub(crate) area: S::Area,
    pub(crate) container: ContainerId,
    pub(crate) run: WindowRun,
    pub(crate) space: Arc<Inner<S>>,
}

impl<S: Sys> Reservation<S> {
    /// The container's first address.
    #[must_use]
    pub fn base(&self) -> Address {
        self.held.run.base()
    }

    /// Windows reserved.
    #[must_use]
    pub fn windows(&self) -> u32 {
        self.held.run.count
    }

    /// Whose addresses they are.
    #[must_use]
    pub fn container(&self) -> ContainerId {
        self.held.container
    }

    /// The page that an address of this reservation lies in.
    #[must_use]
    pub fn page_of(&self, address: Address) -> Option<PageNo> {
        let offset = address.0.checked_sub(self.base().0)?;
        (offset < self.held.run.byte_len()).then(|| address.page_from(self.base()))
    }
}

impl<S: Sys> std::fmt::Debug for Reservation<S> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Reservation")
            .field("container", &self.held.container)
            .field("run", &self.held.run)
            .finish()
    }
}
