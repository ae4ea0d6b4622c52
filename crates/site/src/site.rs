//! A store that is open in this process: its threads, its containers, its stabilisations. Read
//! [`Site::open`] first.

use std::collections::{BTreeSet, HashMap};
use std::convert::Infallible;
use std::fmt;
use std::hash::{BuildHasher, Hasher};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use stead_heap::{Arena, Damaged, Report, Root, Tx};
use stead_memory::{Gate, LogUse, MapError, Mode, Reason, Reservation, ReserveError, Space};
use stead_model::windows::{WindowAllocator, WindowRun};
use stead_model::{
    Address, ContainerId, ContainerName, PAGE_SIZE, PageId, PageNo, PageRange, SYSTEM_NAME,
    WINDOW_COUNT, WINDOW_SIZE,
};
use stead_store::{CreateOptions, OpenReport, ReadError, Store, Stored, Verified, VerifyProgress};

use crate::container::{Changes, Opened, Place};
use crate::directory::{Directory, Entry};
use crate::driver::{Shared, background, faults, spare};
use crate::error::{ContainerError, OpenError, OpenErrorKind, RemoveError, StabiliseError};
use crate::join::Typed;
use crate::options::{ContainerOptions, OpenOptions};
use crate::planted::{self, Bug};
use crate::quota::give_quota;
use crate::snapshot::{clear_unfinished, keep_numbers};
use crate::stat::{ContainerStat, Counters, SiteStat, WrittenPages};
use crate::step::rounds::Stable;

/// How long addresses may take to become free.
const UNMAP_PATIENCE: Duration = Duration::from_millis(200);

/// How long an asked-for stabilisation lets its gates be closed before it gives up on open sections.
pub const GATE_DEFAULT: Duration = Duration::from_secs(60);

/// A store, open in this process. Dropping it stabilises, and closes the store.
pub struct Site {
    pub(crate) shared: Arc<Shared>,
    /// Absent only if it could not be opened again after going back.
    pub(crate) system: Option<Typed<Directory<'static>>>,
    pub(crate) windows: Mutex<WindowAllocator>,
    threads: Vec<JoinHandle<()>>,
    report: OpenReport,
    /// Whether what is not stable is to be forgotten at the end.
    abandoned: AtomicBool,
}

impl fmt::Debug for Site {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Site").field("dir", &self.shared.dir).finish_non_exhaustive()
    }
}

impl Site {
    /// Opens the store in a directory, or makes one where the directory is missing or empty.
    ///
    /// # Errors
    /// If the directory holds something else or cannot be used, if another process has the store
    /// open, if it is damaged, or if this system lacks what is needed.
    pub fn open(dir: &Path, options: &OpenOptions) -> Result<Site, OpenError> {
        let space = Arc::new(Space::open_allowed(options.allowed)?);
        let (store, report) = open_store(dir, options, &space)?;
        Site::start(dir, (store, report), None, space, options)
    }

    /// Opens the store in a directory for reading, as the last stabilisation or a snapshot left it, whether or not
    /// another process has it open. Nothing is ever written to it.
    ///
    /// # Errors
    /// As [`Site::open`], apart from being held by another process; if there is no such snapshot.
    pub fn open_read_only(
        dir: &Path,
        snapshot: Option<&str>,
        options: &OpenOptions,
    ) -> Result<Site, OpenError> {
        let space = Arc::new(Space::open_allowed(options.allowed)?);
        let (store, report) = Store::open_read_only(dir)?;
        if let Some(name) = snapshot {
            store
                .view_snapshot(name)
                .map_err(|why| OpenError::Snapshot { dir: dir.to_owned(), why: Box::new(why) })?;
        }
        let snapshot = snapshot.map(str::to_owned);
        let site = Site::start(dir, (store, report), snapshot, space, options);
        let site = site.map_err(|error| match Store::held_here(dir) {
            // Its containers have one place in a process.
            Some(held) if error.kind() == OpenErrorKind::AddressesTaken => {
                stead_store::OpenError::Held(held).into()
            }
            _ => error,
        })?;
        // What its memory comes to hold apart from the store is nothing to keep.
        site.abandon();
        Ok(site)
    }

    fn start(
        dir: &Path,
        (store, report): (Store, OpenReport),
        snapshot: Option<String>,
        space: Arc<Space>,
        options: &OpenOptions,
    ) -> Result<Site, OpenError> {
        let base_window = store.header().base_window;
        if let Some(bytes) = options.map_bytes_max {
            store.set_map_bytes_max(bytes);
        }
        let dir = dir.to_owned();
        let shared = Arc::new(Shared::new(dir.clone(), store, snapshot, space, options.clone()));
        let mut threads = Threads { shared: Arc::clone(&shared), handles: Vec::new() };
        threads.start("stead-faults", faults::serve)?;
        let in_directory = |why: ContainerError| {
            let snapshot = shared.snapshot().map(str::to_owned);
            OpenError::Directory { dir: dir.clone(), snapshot, why: Box::new(why) }
        };
        let system = open_system(&shared, base_window).map_err(in_directory)?;
        let windows = match taken_windows(&system, base_window) {
            Ok(windows) => windows,
            Err(entry) => {
                return Err(OpenError::Overlap { dir, id: entry.id(), base: entry.base() });
            }
        };
        if !shared.store.is_read_only() {
            let cleaned = clear_unfinished(&shared.store, &system);
            cleaned
                .map_err(|why| OpenError::Unfinished { dir: dir.clone(), why: Box::new(why) })?;
            keep_numbers(&shared.store, &system);
        }
        threads.start("stead-rounds", background::run)?;
        let threads = std::mem::take(&mut threads.handles);
        let windows = Mutex::new(windows);
        let system = Some(system);
        Ok(Site { shared, system, windows, threads, report, abandoned: AtomicBool::new(false) })
    }

    pub(crate) fn system(&self) -> Result<&Typed<Directory<'static>>, ContainerError> {
        self.system.as_ref().ok_or(ContainerError::NoDirectory)
    }

    /// What the directory says of all containers.
    pub(crate) fn entries(&self) -> Result<Vec<(String, Entry)>, ContainerError> {
        self.system()?
            .read(|directory, _| {
                directory.iter().map(|(name, entry)| (name.to_owned(), entry)).collect()
            })
            .map_err(|_| ContainerError::InSection)
    }

    /// The store's directory.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.shared.dir
    }

    /// What recovery found when the store was opened.
    #[must_use]
    pub fn report(&self) -> &OpenReport {
        &self.report
    }

    /// Opens a container whose root is an `R`; makes it, with a root from `init`, if there is none of
    /// this name. A container that is open already is shared.
    ///
    /// # Errors
    /// If the name is none, addresses are taken or used up, the container is damaged, or its root is of
    /// another type. A container that was to be made is not there then.
    pub fn container<R: Root, E: From<ContainerError>>(
        &self,
        name: &str,
        options: &ContainerOptions,
        init: impl for<'s> FnOnce(&'s Tx<'s>) -> Result<R::At<'s>, E>,
    ) -> Result<Typed<R>, E> {
        let (opened, is_new) = self.opened(name, Some(options))?;
        let unfinished = is_new.then(|| Unfinished { site: self, name, id: opened.id() });
        let typed = Typed::new(opened, init)?;
        std::mem::forget(unfinished);
        Ok(typed)
    }

    /// Opens a container of whatever type, for those who only look.
    ///
    /// # Errors
    /// If there is none of this name, and as [`Site::container`].
    pub fn existing(&self, name: &str) -> Result<Arc<Opened>, ContainerError> {
        Ok(self.opened(name, None)?.0)
    }

    /// Gives up a container of a store that is open for reading, so that a branch of it may have its addresses.
    /// Without effect where it may hold changes.
    pub fn close(&self, container: Arc<Opened>) {
        if self.is_read_only() {
            self.shared.opened().remove(&container.id());
        }
    }

    /// Names of all containers, in order.
    #[must_use]
    pub fn names(&self) -> Vec<String> {
        let entries = self.entries().unwrap_or_default();
        let mut names: Vec<String> = entries.into_iter().map(|(name, _)| name).collect();
        names.sort_unstable();
        names
    }

    pub(crate) fn shared(&self) -> &Shared {
        &self.shared
    }

    /// Names and addresses of all containers, the system container's among them.
    pub(crate) fn places(&self) -> HashMap<ContainerId, (String, Address)> {
        let entries = self.entries().unwrap_or_default().into_iter();
        let mut places: HashMap<_, _> =
            entries.map(|(name, entry)| (entry.id(), (name, entry.base()))).collect();
        // Where its spare is damaged, it is what is to be mended.
        for id in [ContainerId::SYSTEM, ContainerId::SPARE] {
            places.insert(id, (SYSTEM_NAME.to_owned(), self.system_run().base()));
        }
        places
    }

    /// Opens a container that is there, and whose root is an `R`.
    ///
    /// # Errors
    /// If there is none of this name, if it has no root yet, and as [`Site::container`].
    pub fn existing_typed<R: Root>(&self, name: &str) -> Result<Typed<R>, ContainerError> {
        Typed::existing(self.opened(name, None)?.0)
    }

    /// Whether it was opened by [`Site::open_read_only`].
    #[must_use]
    pub fn is_read_only(&self) -> bool {
        self.shared.store.is_read_only()
    }

    /// The containers of which the store has pages, the system container included (its spare is not), whether the
    /// directory names them or not: for checks.
    #[must_use]
    pub fn stored_containers(&self) -> Vec<ContainerId> {
        let mut containers = self.shared.view().containers();
        containers.retain(|&id| id != ContainerId::SPARE);
        containers
    }

    /// Makes everything durable that sections have done before this call. `gate` is how long open
    /// sections may hold it up.
    ///
    /// # Errors
    /// If called inside a section, if sections stay open, or if the disk fails or is full: nothing is
    /// lost then, and a later call takes up what this one did not write.
    pub fn stabilise(&self, gate: Duration) -> Result<Stable, StabiliseError> {
        if stead_memory::in_section() {
            return Err(StabiliseError::InSection);
        }
        if self.is_forked() {
            return Err(StabiliseError::Forked);
        }
        if self.is_read_only() {
            return Err(StabiliseError::ReadOnly);
        }
        self.shared.rounds.stabilise(&self.shared, gate)
    }

    /// Removes a container: its name, its pages, its addresses. Stable on return, together with everything that
    /// sections have done before. It need not be readable.
    ///
    /// # Errors
    /// If there is none of this name, if it is in use in this process, or if this cannot be made stable
    /// now: then a later stabilisation does it.
    pub fn remove(&self, name: &str, gate: Duration) -> Result<Stable, RemoveError> {
        self.remove_if(name, gate, |_| true)
    }

    /// As [`Site::remove`], if `condition` holds; otherwise there is none of this name.
    fn remove_if(
        &self,
        name: &str,
        gate: Duration,
        condition: impl Fn(ContainerId) -> bool,
    ) -> Result<Stable, RemoveError> {
        if stead_memory::in_section() {
            return Err(ContainerError::InSection.into());
        }
        let not_stable = |source| RemoveError::NotStable { name: name.to_owned(), source };
        if self.is_forked() {
            return Err(not_stable(StabiliseError::Forked));
        }
        if self.is_read_only() {
            return Err(not_stable(StabiliseError::ReadOnly));
        }
        let name = ContainerName::existing(name).map_err(ContainerError::from)?.as_str();
        let mut windows = self.windows.lock().unwrap_or_else(PoisonError::into_inner);
        let removed = self.shared.rounds.stabilise_edit(&self.shared, gate, |batch| {
            let system = self.system()?;
            let found = system
                .read(|directory, _| directory.get(name))
                .map_err(|_| ContainerError::InSection)?;
            let missing = || ContainerError::Missing { name: name.to_owned() };
            let entry = found.filter(|entry| condition(entry.id())).ok_or_else(missing)?;
            self.give_up(entry, name)?;
            system
                .exclusive(|directory, tx| Ok::<_, Infallible>(directory.remove(tx, name)))
                .map_err(|_| ContainerError::InSection)?
                .unwrap_or_else(|never| match never {});
            let is_shared = self.entries()?.iter().any(|(_, other)| other.base() == entry.base());
            if let Some(run) = entry.run().filter(|_| !is_shared) {
                windows.release(run);
            }
            batch.drop_container(entry.id());
            Ok::<_, RemoveError>(())
        })?;
        removed.map_err(not_stable)
    }

    /// Unmaps a container, if nobody but the site holds it.
    fn give_up(&self, entry: Entry, name: &str) -> Result<(), RemoveError> {
        let mut opened = self.shared.opened();
        // New holders come through this map, which is locked, and rounds hold containers only while
        // they have the lock that the caller has.
        if opened.get(&entry.id()).is_some_and(|container| Arc::strong_count(container) > 1) {
            return Err(RemoveError::Open { name: name.to_owned() });
        }
        let given_up = opened.remove(&entry.id());
        drop(opened);
        drop(given_up);
        Ok(())
    }

    /// Has the site forget, when it is dropped, what is not stable by now, instead of stabilising it (B15).
    /// No stabilisation follows this, in the background neither.
    pub fn abandon(&self) {
        self.abandoned.store(true, Ordering::Release);
        self.shared.rounds.end();
    }

    /// Checks every pointer of a container (A3) while no other section runs in it.
    ///
    /// # Errors
    /// If this thread has a section open.
    pub fn verify_container(&self, container: &Opened) -> Result<Report, ContainerError> {
        let _entry = container
            .gate
            .enter_exclusive(None)
            .map_err(|source| ContainerError::Gate { name: container.name().to_owned(), source })?;
        Ok(container.arena.verify())
    }

    /// Checks every page of the system container likewise.
    ///
    /// # Errors
    /// If this thread has a section open.
    pub fn verify_system(&self) -> Result<Report, ContainerError> {
        self.verify_container(self.system()?.opened())
    }

    /// Reads the whole store, and accounts for every block (B9, B12).
    ///
    /// # Errors
    /// If the disk cannot be read. Damage is no error: it is what this looks for.
    pub fn verify_store(
        &self,
        progress: &mut dyn FnMut(VerifyProgress),
    ) -> Result<Verified, ReadError> {
        self.shared.store.verify(progress)
    }

    /// The damaged pages that were touched since the store was opened.
    #[must_use]
    pub fn damage_met(&self) -> Vec<Damaged> {
        self.shared.met.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// What there is, and what happened.
    #[must_use]
    pub fn stat(&self) -> SiteStat {
        let shared = &self.shared;
        let entries = self.entries().unwrap_or_default();
        let mut entries: Vec<(String, Option<Entry>)> =
            entries.into_iter().map(|(name, entry)| (name, Some(entry))).collect();
        entries.push((SYSTEM_NAME.to_owned(), None));
        let mut containers: Vec<ContainerStat> =
            entries.into_iter().map(|(name, entry)| self.container_stat(name, entry)).collect();
        containers.sort_by_key(|c| c.id);
        SiteStat {
            dir: shared.dir.clone(),
            store: shared.store.stat(),
            medium: shared.store.medium(),
            containers,
            counters: self.counters(),
            failure: shared.rounds.failure(),
            written_pages: self.written_pages(),
        }
    }

    fn written_pages(&self) -> WrittenPages {
        let shared = &self.shared;
        if shared.space.log_use() != LogUse::Scan {
            return WrittenPages::FaultLog;
        }
        let refusal = shared.space.log_allowed().err().or_else(|| shared.rounds.log_refusal());
        refusal.map_or(WrittenPages::Scan, WrittenPages::NoFaultLog)
    }

    /// What happened since the store was opened here.
    #[must_use]
    pub fn counters(&self) -> Counters {
        let shared = &self.shared;
        let rounds = shared.rounds.counts();
        let get = |n: &std::sync::atomic::AtomicU64| n.load(Ordering::Relaxed);
        Counters {
            memory: shared.space.counters(),
            clusters_touched: shared.table.touched_count(),
            rounds: get(&rounds.rounds),
            rounds_held: get(&rounds.defeats),
            rounds_failed: get(&rounds.failures),
            pages_stabilised: get(&rounds.pages),
            bytes_written: get(&rounds.bytes_written),
            flushes: get(&rounds.flushes),
            scan_us_last: get(&rounds.scan_us_last),
            pause_us_last: get(&rounds.pause_us_last),
            pause_us_max: get(&rounds.pause_us_max),
        }
    }

    /// Whether system calls that meet a page which is not in memory fail with EFAULT here.
    #[must_use]
    pub fn user_mode_only(&self) -> bool {
        self.shared.space.user_mode_only()
    }

    fn container_stat(&self, name: String, entry: Option<Entry>) -> ContainerStat {
        let id = entry.map_or(ContainerId::SYSTEM, |e| e.id());
        let stored = self.shared.view().stored_count(id);
        let opened = self.shared.opened().get(&id).cloned();
        let resident = opened
            .as_ref()
            .map(|o| o.place.clusters().iter().map(|c| c.resident_page_count()).sum::<u64>());
        let windows = entry.map_or(1, |e| e.windows());
        ContainerStat {
            id,
            name,
            base: entry.map_or_else(|| self.system_run().base(), |e| e.base()),
            address_bytes: u64::from(windows) * stead_model::WINDOW_SIZE as u64,
            created_unix_s: entry
                .map_or(self.shared.store.header().created, |e| e.created_unix_s()),
            stored_bytes: stored * PAGE_SIZE as u64,
            quota_bytes: self.shared.store.container_quota(id),
            resident_bytes: resident.map(|pages| pages * PAGE_SIZE as u64),
        }
    }

    fn opened(
        &self,
        name: &str,
        make: Option<&ContainerOptions>,
    ) -> Result<(Arc<Opened>, bool), ContainerError> {
        let name = ContainerName::existing(name)?.as_str();
        if stead_memory::in_section() {
            return Err(ContainerError::InSection);
        }
        // One container is opened at a time: held also so that a name is made once.
        let mut windows = self.windows.lock().unwrap_or_else(PoisonError::into_inner);
        let entry = self
            .system()?
            .read(|directory, _| directory.get(name))
            .map_err(|_| ContainerError::InSection)?;
        let (opened, is_new) = match (entry, make) {
            (Some(entry), _) => {
                if let Some(opened) = self.shared.opened().get(&entry.id()) {
                    return Ok((Arc::clone(opened), false));
                }
                let run = entry.run().expect("checked when the store was opened");
                self.make_way(name, run)?;
                let reservation = reserve_patiently(&self.shared, entry.id(), run, name)?;
                let opened =
                    open_place(&self.shared, reservation, name, entry.id(), Mode::Faulted)?;
                (opened, false)
            }
            (None, Some(options)) if !self.is_read_only() => {
                let name = ContainerName::new(name)?.as_str();
                (self.make(name, options, &mut windows)?, true)
            }
            (None, _) => return Err(ContainerError::Missing { name: name.to_owned() }),
        };
        self.shared.opened().insert(opened.id(), Arc::clone(&opened));
        if self.shared.space.user_mode_only() {
            self.shared.wake_background();
        }
        Ok((opened, is_new))
    }

    /// Makes a container, at addresses that nothing else occupies in this process, and enters it in the directory when all
    /// that can fail has been done.
    fn make(
        &self,
        name: &str,
        options: &ContainerOptions,
        windows: &mut WindowAllocator,
    ) -> Result<Arc<Opened>, ContainerError> {
        let mut free = windows.clone();
        let placeholder = ContainerId::MAX;
        let mut refused = None;
        let usable = |run| {
            let reserved = self.shared.space.reserve(placeholder, run);
            if let Err(error) = &reserved
                && error.is_out_of_addresses()
            {
                refused.get_or_insert_with(|| error.to_string());
            }
            reserved.is_ok()
        };
        let run = free.allocate(options.windows, usable).map_err(|taken| match refused {
            Some(why) => out_of_addresses(&self.shared, name, options.windows, &why),
            None => taken.into(),
        })?;
        let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs());
        let id = self.next_id(name)?;
        let reservation = reserve(&self.shared, id, run, name)?;
        // Before there is such a container, so that there is none without it.
        give_quota(&self.shared.store, id, options.quota).map_err(|why| ContainerError::Quota {
            name: name.to_owned(),
            source: Box::new(why),
        })?;
        let opened = open_place(&self.shared, reservation, name, id, Mode::Faulted)?;
        self.system()?
            .exclusive(|directory, tx| directory.add(tx, name, id, run, now))
            .map_err(|_| ContainerError::InSection)?
            .map_err(ContainerError::Directory)?;
        *windows = free;
        Ok(opened)
    }

    /// The number that a new container of this name gets.
    pub(crate) fn next_id(&self, name: &str) -> Result<ContainerId, ContainerError> {
        let next = self.system()?.read(|directory, _| directory.next_id());
        let next = next.map_err(|_| ContainerError::InSection)?;
        next.ok_or_else(|| ContainerError::OutOfNumbers { name: name.to_owned() })
    }

    /// Unmaps the container that has the same addresses, if there is one and nobody but the site holds it.
    fn make_way(&self, name: &str, run: WindowRun) -> Result<(), ContainerError> {
        let other = || self.shared.opened().values().find(|o| o.base() == run.base()).cloned();
        let Some(found) = other() else { return Ok(()) };
        let (id, other) = (found.id(), found.name().to_owned());
        drop(found);
        // Its changes are stable when it goes; meanwhile nobody else can come to hold it.
        let gone = self.shared.rounds.stabilise_and(&self.shared, GATE_DEFAULT, || {
            let mut opened = self.shared.opened();
            let idle = opened.get(&id).is_none_or(|found| Arc::strong_count(found) == 1);
            if idle { Ok(opened.remove(&id)) } else { Err(()) }
        });
        match gone {
            Ok(Ok(unmapped)) => {
                drop(unmapped);
                Ok(())
            }
            Ok(Err(())) => Err(ContainerError::SharesAddresses { name: name.to_owned(), other }),
            Err(source) => {
                let (name, source) = (name.to_owned(), Box::new(source));
                Err(ContainerError::Unmap { name, other, source })
            }
        }
    }

    /// The system container's window.
    pub(crate) fn system_run(&self) -> WindowRun {
        WindowRun { first: self.shared.store.header().base_window, count: 1 }
    }

    pub(crate) fn is_forked(&self) -> bool {
        std::process::id() != self.shared.process
    }
}

/// A container that was made just now and has no root yet. Dropped, by an error or a panic of whoever makes the root,
/// it is taken out again.
struct Unfinished<'a> {
    site: &'a Site,
    name: &'a str,
    id: ContainerId,
}

impl Drop for Unfinished<'_> {
    fn drop(&mut self) {
        // Another thread may have found it, and made a root.
        let is_unfinished = |id| {
            let opened = self.site.shared.opened();
            id == self.id && opened.get(&id).is_some_and(|found| found.root_type().is_none())
        };
        // Whoever holds it will make a root; where the disk refuses, a later stabilisation removes it.
        let _ = self.site.remove_if(self.name, GATE_DEFAULT, is_unfinished);
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        if self.is_forked() {
            // The threads, the lock and the mappings are the parent's.
            std::mem::forget(std::mem::take(&mut self.threads));
            return;
        }
        if self.abandoned.load(Ordering::Acquire) {
            stop(&self.shared, std::mem::take(&mut self.threads));
            self.shared.opened().clear();
            return;
        }
        let stabilised = if stead_memory::in_section() {
            // The section is another store's: nobody can be in one of this store, whose containers
            // are all given up. But a thread in a section may not close gates; another may.
            let site = &*self;
            thread::scope(|scope| {
                let asked = scope.spawn(|| site.stabilise(GATE_DEFAULT)).join();
                asked.unwrap_or(Err(StabiliseError::InSection))
            })
        } else {
            self.stabilise(GATE_DEFAULT)
        };
        stop(&self.shared, std::mem::take(&mut self.threads));
        match stabilised {
            // The next opening replays the log otherwise, to the same state.
            Ok(_) => drop(self.shared.store.checkpoint()),
            // A program that never asks for a stabilisation has no other way to learn of it.
            Err(error) => say_lost(&self.shared.dir, "closed without its last changes", &error),
        }
        self.shared.opened().clear();
    }
}

/// Tells on standard error what no caller can be told.
pub(crate) fn say_lost(dir: &Path, what: &str, why: &StabiliseError) {
    eprintln!("stead: store {}: {what}: {why}", dir.display());
}

/// The threads of a site that is being opened; stopped again if opening fails.
struct Threads {
    shared: Arc<Shared>,
    handles: Vec<JoinHandle<()>>,
}

impl Threads {
    fn start(&mut self, name: &str, run: fn(&Shared)) -> Result<(), OpenError> {
        let shared = Arc::clone(&self.shared);
        let handle = thread::Builder::new()
            .name(name.to_owned())
            .spawn(move || {
                // Without this thread the program would wait for its pages for ever, or never be
                // stable again, and not know. Its panic has been printed.
                let work = std::panic::AssertUnwindSafe(|| run(&shared));
                if std::panic::catch_unwind(work).is_err() {
                    std::process::abort();
                }
            })
            .map_err(OpenError::Thread)?;
        self.handles.push(handle);
        Ok(())
    }
}

impl Drop for Threads {
    fn drop(&mut self) {
        if !self.handles.is_empty() {
            stop(&self.shared, std::mem::take(&mut self.handles));
        }
    }
}

/// Stops the threads, the last started first: the rounds may still touch pages, which the fault loop serves.
fn stop(shared: &Shared, mut threads: Vec<JoinHandle<()>>) {
    while let Some(thread) = threads.pop() {
        if threads.is_empty() {
            shared.faults_stopping.store(true, Ordering::Release);
        }
        shared.stopping.store(true, Ordering::Release);
        shared.wake_background();
        shared.space.wake_poll();
        // A thread that panicked has ended the process.
        let _ = thread.join();
    }
}

fn open_store(
    dir: &Path,
    options: &OpenOptions,
    space: &Space,
) -> Result<(Store, OpenReport), OpenError> {
    if options.create && Store::is_vacant(dir) {
        let base_window = free_window(space);
        let (quota, space_percent) = (options.quota, options.space_percent);
        let make = CreateOptions { base_window, quota, space_percent, ..CreateOptions::default() };
        match Store::create(dir, &make) {
            Ok(store) => return Ok((store, OpenReport::default())),
            // Another process was quicker.
            Err(stead_store::CreateError::Exists { .. }) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(Store::open(dir)?)
}

/// A random window that nothing occupies in this process: where the addresses of a new store begin. Random,
/// so that two stores made by different processes fit into a third one.
fn free_window(space: &Space) -> Option<u32> {
    let random = std::hash::RandomState::new().build_hasher().finish();
    let start = (random % u64::from(WINDOW_COUNT)) as u32;
    let mut windows = (start..WINDOW_COUNT).chain(0..start);
    windows.find(|&first| space.reserve(ContainerId::SYSTEM, WindowRun { first, count: 1 }).is_ok())
}

/// The windows that containers have. Branches have those of their origins. `Err`: who has some that are another's.
pub(crate) fn taken_windows(
    system: &Typed<Directory<'static>>,
    base_window: u32,
) -> Result<WindowAllocator, Entry> {
    let mut windows = WindowAllocator::new(base_window);
    windows.take(WindowRun { first: base_window, count: 1 });
    let entries = system
        .read(|directory, _| directory.iter().map(|(_, entry)| entry).collect::<Vec<Entry>>())
        .expect("a site reads its directory outside of sections");
    let mut runs = BTreeSet::new();
    for entry in entries {
        let taken = entry.run().is_some_and(|run| !runs.insert(run) || windows.take(run));
        if !taken {
            return Err(entry);
        }
    }
    Ok(windows)
}

/// Opens the system container, all of it in memory: whoever serves faults must not meet one. Nobody walks it before all
/// that it says has been looked at: its pages may have the checksums they were written with, and be written wrong.
pub(crate) fn open_system(
    shared: &Arc<Shared>,
    base_window: u32,
) -> Result<Typed<Directory<'static>>, ContainerError> {
    let id = ContainerId::SYSTEM;
    let run = WindowRun { first: base_window, count: 1 };
    let reservation = reserve(shared, id, run, SYSTEM_NAME)?;
    let opened = open_place(shared, reservation, SYSTEM_NAME, id, Mode::Resident)?;
    let found = opened.arena.verify().first_bad;
    if let Some(found) = found.filter(|_| !planted::is(Bug::DirectoryBelieved)) {
        return Err(ContainerError::Unsound { found: Box::new(found) });
    }
    if !shared.store.is_read_only() {
        opened.place.may_change();
    }
    shared.opened().insert(id, Arc::clone(&opened));
    let system = Typed::new(opened, |tx| Ok::<_, ContainerError>(Directory::new(tx)))?;
    let checked = system.read(|directory: &Directory<'_>, _| directory.check());
    checked
        .map_err(|_| ContainerError::InSection)?
        .map_err(|(name, what)| ContainerError::Entry { name, what })?;
    Ok(system)
}

fn reserve(
    shared: &Shared,
    id: ContainerId,
    run: WindowRun,
    name: &str,
) -> Result<Reservation, ContainerError> {
    shared.space.reserve(id, run).map_err(|source| {
        if source.is_out_of_addresses() {
            return out_of_addresses(shared, name, run.count, &source);
        }
        ContainerError::Reserve { name: name.to_owned(), source }
    })
}

fn out_of_addresses(
    shared: &Shared,
    name: &str,
    windows: u32,
    why: &dyn fmt::Display,
) -> ContainerError {
    ContainerError::AddressSpace {
        name: name.to_owned(),
        // Not the system container.
        open: shared.opened().len().saturating_sub(1),
        address_bytes: u64::from(windows) * WINDOW_SIZE as u64,
        why: why.to_string(),
    }
}

/// As [`reserve`], for addresses that a container may just have been unmapped from: the fault loop holds a cluster of it
/// until it is done with the last fault there.
fn reserve_patiently(
    shared: &Shared,
    id: ContainerId,
    run: WindowRun,
    name: &str,
) -> Result<Reservation, ContainerError> {
    let end = Instant::now() + UNMAP_PATIENCE;
    loop {
        match reserve(shared, id, run, name) {
            Err(ContainerError::Reserve { source: ReserveError::Occupied { .. }, .. })
                if Instant::now() < end =>
            {
                thread::sleep(Duration::from_millis(1));
            }
            other => return other,
        }
    }
}

/// Reads a container's directory, maps its clusters, and opens or lays out its heap.
fn open_place(
    shared: &Arc<Shared>,
    reservation: Reservation,
    name: &str,
    id: ContainerId,
    mode: Mode,
) -> Result<Arc<Opened>, ContainerError> {
    let name_owned = || name.to_owned();
    let read = |source| ContainerError::Read { name: name_owned(), source };
    let mut page = [0; PAGE_SIZE];
    let first = PageId { container: id, page: PageNo(0) };
    let found = spare::read_run(&shared.view(), first, &mut page).map_err(read)?;
    let is_new = found.stored == Stored::Never;
    let mut windows_of = std::collections::BTreeMap::<u16, Vec<u32>>::new();
    let mut pages_to_open = Vec::new();
    if is_new {
        windows_of.insert(0, vec![0]);
    } else {
        let directory = stead_heap::directory(&page)
            .map_err(|source| ContainerError::Header { name: name_owned(), source })?;
        let here = (id, reservation.base(), reservation.windows());
        let found = (directory.container, directory.base, directory.window_count);
        if here != found {
            return Err(ContainerError::Mismatch { name: name_owned(), here, found });
        }
        pages_to_open = directory.pages_to_open();
        let limit = reservation.windows() as usize;
        for (window, cluster) in directory.clusters.iter().enumerate().take(limit) {
            if let Some(cluster) = cluster {
                windows_of.entry(*cluster).or_default().push(window as u32);
            }
        }
    }
    let windows = reservation.windows();
    let map = |source: MapError| {
        if source.is_out_of_addresses() {
            return out_of_addresses(shared, name, windows, &source);
        }
        ContainerError::Map { name: name_owned(), source }
    };
    let place = Arc::new(Place::new(shared, reservation, name, mode).map_err(map)?);
    for (cluster, windows) in &windows_of {
        place.map(*cluster, windows).map_err(map)?;
    }
    if mode == Mode::Resident {
        fill(shared, &place, id, name)?;
    } else {
        // What opening touches comes in here, where damage is an error and not the end of the process.
        for page in pages_to_open {
            place.bring(PageRange::new(page, page + 1)).map_err(Box::new)?;
        }
    }
    let gate = Gate::new(id);
    let arena = if is_new {
        Opened::format(&gate, &place)?
    } else {
        Arena::open(Arc::clone(&place) as _)
            .map_err(|source| ContainerError::Arena { name: name_owned(), source })?
    };
    Ok(Arc::new(Opened {
        gate,
        arena,
        place,
        changes: Changes::default(),
        filled: AtomicBool::new(false),
        read_only: shared.store.is_read_only(),
        // What is all in memory cannot fail later.
        root_checked: AtomicBool::new(mode == Mode::Resident),
    }))
}

/// Brings every stored page of a container into memory.
fn fill(shared: &Shared, place: &Place, id: ContainerId, name: &str) -> Result<(), ContainerError> {
    let read = |source| ContainerError::Read { name: name.to_owned(), source };
    let mut images = vec![0; 64 * PAGE_SIZE];
    for run in spare::stored_pages(&shared.view(), id).map_err(read)? {
        let mut at = run.start;
        while at < run.end {
            let first = PageId { container: id, page: PageNo(at) };
            let pages = (run.end - at).min(64) as usize;
            let into = &mut images[..pages * PAGE_SIZE];
            let found = spare::read_run(&shared.view(), first, into).map_err(read)?;
            if found.stored == Stored::Image
                && let Some(cluster) = place.cluster_of(first.page)
            {
                cluster
                    .install(first.page, &into[..found.pages * PAGE_SIZE], Reason::Ahead)
                    .map_err(|source| ContainerError::Fill { name: name.to_owned(), source })?;
            }
            at += found.pages as u64;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_earlier_versions_still_open() {
        if let Some(missing) = stead_memory::Support::probe().missing() {
            println!("NOT RUN: {missing}");
            return;
        }
        let temp = tempfile::tempdir().unwrap();
        let site = Site::open(&temp.path().join("store"), &OpenOptions::new()).unwrap();
        let options = ContainerOptions::default();
        let name = "#7 \u{202e}a ";
        let open = |name| {
            site.container::<Directory<'static>, ContainerError>(name, &options, |tx| {
                Ok(Directory::new(tx))
            })
        };
        assert!(matches!(open(name), Err(ContainerError::Name(_))));
        let run = WindowRun { first: (site.system_run().first + 9) % (WINDOW_COUNT - 9), count: 1 };
        let entered = site.system().unwrap().exclusive(|directory, tx| {
            let id = directory.next_id().unwrap();
            directory.add(tx, name, id, run, 0)
        });
        entered.unwrap().unwrap();
        assert!(site.windows.lock().unwrap().take(run));
        let opened = open(name).unwrap();
        assert_eq!(opened.read(|root, _| root.iter().count()).unwrap(), 0);
        assert_eq!(site.existing(name).unwrap().name(), name);
        site.set_quotas(&crate::Quotas::new().container(name, Some(1 << 20))).unwrap();
        assert_eq!(site.container_quota(opened.opened().id()), Some(1 << 20));
        drop(opened);
        assert_eq!(site.names(), [name]);
        site.remove(name, GATE_DEFAULT).unwrap();
    }
}
