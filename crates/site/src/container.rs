//! An open container: its mappings, its gate, its heap. How its sections run lies in `join`; what
//! enters its pages in `driver`. Read [`Opened`] first.

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError, RwLock, Weak};

use stead_heap::{Arena, Damaged, GroundError, RootError, TypeDescription};
use stead_memory::{
    Cluster, ClusterKey, Gate, MapError, Mode, Reservation, Shadow, Space, last_words,
};
use stead_model::{
    Address, ContainerId, PAGE_SIZE, PAGES_PER_WINDOW, PageId, PageNo, PageRange, WINDOW_SIZE,
};

use crate::driver::{Shared, damage};
use crate::error::{CheckError, ContainerError, SectionError};

/// The clusters whose faults this site serves.
#[derive(Debug, Default)]
pub(crate) struct ClusterTable {
    by_key: RwLock<HashMap<ClusterKey, Arc<Served>>>,
    touched: std::sync::atomic::AtomicU64,
}

/// A cluster as the fault loop sees it.
#[derive(Debug)]
pub(crate) struct Served {
    pub(crate) cluster: Arc<Cluster>,
    pub(crate) container: ContainerId,
    pub(crate) name: Arc<str>,
    pub(crate) base: Address,
    was_touched: AtomicBool,
}

impl Served {
    pub(crate) fn page_id(&self, page: PageNo) -> PageId {
        PageId { container: self.container, page }
    }
}

impl ClusterTable {
    pub(crate) fn get(&self, key: ClusterKey) -> Option<Arc<Served>> {
        self.by_key.read().unwrap_or_else(PoisonError::into_inner).get(&key).cloned()
    }

    fn add(&self, served: Served) {
        let mut table = self.by_key.write().unwrap_or_else(PoisonError::into_inner);
        table.insert(served.cluster.key(), Arc::new(served));
    }

    fn remove(&self, key: ClusterKey) {
        self.by_key.write().unwrap_or_else(PoisonError::into_inner).remove(&key);
    }

    /// The cluster in which a page of a container lies.
    pub(crate) fn cluster_at(&self, container: ContainerId, page: PageNo) -> Option<Arc<Cluster>> {
        let table = self.by_key.read().unwrap_or_else(PoisonError::into_inner);
        let mut clusters = table.values().filter(|served| served.container == container);
        let served = clusters.find(|served| served.cluster.windows().contains(&page.window()))?;
        Some(Arc::clone(&served.cluster))
    }

    /// Counts the first fault in a cluster: the second of the three levels of A7.
    pub(crate) fn count_touch(&self, served: &Served) {
        if !served.was_touched.load(Ordering::Relaxed)
            && !served.was_touched.swap(true, Ordering::Relaxed)
        {
            self.touched.fetch_add(1, Ordering::Relaxed);
        }
    }

    pub(crate) fn touched_count(&self) -> u64 {
        self.touched.load(Ordering::Relaxed)
    }
}

/// Where a container lies: its reservation, and the clusters mapped over it.
#[derive(Debug)]
pub(crate) struct Place {
    pub(crate) container: ContainerId,
    pub(crate) name: Arc<str>,
    pub(crate) shadow: Shadow,
    mode: Mode,
    /// Bytes that it may hold; `u64::MAX` if nobody has said.
    quota: AtomicU64,
    /// Sections may have changed it since it was opened.
    changes: AtomicBool,
    /// Not an owner: the site owns its open containers.
    site: Weak<Shared>,
    space: Arc<Space>,
    table: Arc<ClusterTable>,
    clusters: RwLock<Clusters>,
    /// Last, so that it is given up after all that lies in it.
    pub(crate) reservation: Reservation,
}

#[derive(Debug, Default)]
struct Clusters {
    by_number: BTreeMap<u16, Arc<Cluster>>,
    by_window: Vec<Option<Arc<Cluster>>>,
}

impl Place {
    pub(crate) fn new(
        site: &Arc<Shared>,
        reservation: Reservation,
        name: &str,
        mode: Mode,
    ) -> Result<Place, MapError> {
        let shadow = Shadow::new(&reservation)?;
        let windows = reservation.windows() as usize;
        Ok(Place {
            container: reservation.container(),
            name: name.into(),
            shadow,
            mode,
            quota: AtomicU64::new(
                site.store.container_quota(reservation.container()).unwrap_or(u64::MAX),
            ),
            changes: AtomicBool::new(false),
            site: Arc::downgrade(site),
            space: Arc::clone(&site.space),
            table: Arc::clone(&site.table),
            clusters: RwLock::new(Clusters {
                by_number: BTreeMap::new(),
                by_window: vec![None; windows],
            }),
            reservation,
        })
    }

    /// Maps windows of the container as part of a cluster, which is made if it is new.
    pub(crate) fn map(&self, number: u16, windows: &[u32]) -> Result<(), MapError> {
        let mut clusters = self.clusters.write().unwrap_or_else(PoisonError::into_inner);
        let cluster = match clusters.by_number.get(&number) {
            Some(cluster) => {
                cluster.add_windows(windows)?;
                Arc::clone(cluster)
            }
            None => {
                let cluster =
                    Arc::new(self.space.map_cluster(&self.reservation, windows, self.mode)?);
                self.table.add(Served {
                    cluster: Arc::clone(&cluster),
                    container: self.container,
                    name: Arc::clone(&self.name),
                    base: self.reservation.base(),
                    was_touched: AtomicBool::new(false),
                });
                clusters.by_number.insert(number, Arc::clone(&cluster));
                cluster
            }
        };
        for &window in windows {
            clusters.by_window[window as usize] = Some(Arc::clone(&cluster));
        }
        Ok(())
    }

    /// Maps windows for the heap, in its words.
    pub(crate) fn assign(&self, first: u32, count: u32, number: u16) -> Result<(), GroundError> {
        let windows: Vec<u32> = (first..first + count).collect();
        self.map(number, &windows).map_err(|e| GroundError::Refused(e.to_string()))
    }

    pub(crate) fn set_quota(&self, quota: Option<u64>) {
        self.quota.store(quota.unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    /// Whether the heap may have so many pages more than those that it uses, in its words.
    pub(crate) fn allow_pages(&self, used: &dyn Fn() -> u64, more: u64) -> Result<(), GroundError> {
        let quota_bytes = self.quota.load(Ordering::Relaxed);
        if quota_bytes == u64::MAX {
            return Ok(());
        }
        let used = used();
        if used + more <= quota_bytes / PAGE_SIZE as u64 {
            return Ok(());
        }
        let container = self.name.to_string();
        Err(GroundError::Quota { container, quota_bytes, used_bytes: used * PAGE_SIZE as u64 })
    }

    /// The pages that memory has, or the store: all others are zero.
    pub(crate) fn filled_pages(&self) -> Vec<PageRange> {
        let all = || {
            let pages = u64::from(self.reservation.windows()) * PAGES_PER_WINDOW;
            vec![PageRange::new(0, pages)]
        };
        // Where no fault is served, a page may have come to be without a word of it.
        if self.mode == Mode::Resident && self.changes.load(Ordering::Relaxed) {
            return all();
        }
        let Some(site) = self.site.upgrade() else { return all() };
        let Ok(mut filled) = site.view().stored_pages(self.container) else { return all() };
        for cluster in self.clusters() {
            cluster.resident_ranges(&mut filled);
        }
        filled.sort_unstable_by_key(|run| run.start);
        filled.dedup_by(|next, run| {
            let joins = next.start <= run.end;
            run.end = if joins { run.end.max(next.end) } else { run.end };
            joins
        });
        filled
    }

    /// Said before the first section of a container in mode [`Mode::Resident`] that may change something.
    pub(crate) fn may_change(&self) {
        self.changes.store(true, Ordering::Relaxed);
    }

    /// Brings pages into memory that are not there.
    pub(crate) fn bring(&self, range: PageRange) -> Result<(), Damaged> {
        match self.site.upgrade() {
            Some(site) => damage::bring(&site, self, range),
            // The site is being closed, and nobody is in a section.
            None => Ok(()),
        }
    }

    pub(crate) fn cluster_of(&self, page: PageNo) -> Option<Arc<Cluster>> {
        let clusters = self.clusters.read().unwrap_or_else(PoisonError::into_inner);
        clusters.by_window.get(page.window() as usize)?.clone()
    }

    pub(crate) fn clusters(&self) -> Vec<Arc<Cluster>> {
        let clusters = self.clusters.read().unwrap_or_else(PoisonError::into_inner);
        clusters.by_number.values().cloned().collect()
    }

    /// Which cluster each of its windows belongs to, by number of cluster.
    pub(crate) fn windows_of(&self) -> BTreeMap<u16, Vec<u32>> {
        let clusters = self.clusters.read().unwrap_or_else(PoisonError::into_inner);
        clusters.by_number.iter().map(|(number, c)| (*number, c.windows())).collect()
    }

    /// The pages of the window that holds `page`.
    pub(crate) fn window_bounds(page: PageNo) -> PageRange {
        let start = page.0 - page.0 % PAGES_PER_WINDOW;
        PageRange::new(start, start + PAGES_PER_WINDOW)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        for cluster in self.clusters() {
            self.table.remove(cluster.key());
        }
        let byte_len = self.reservation.windows() as usize * WINDOW_SIZE;
        last_words::forget(self.reservation.base(), byte_len);
    }
}

/// A container that is open in this process.
#[derive(Debug)]
pub struct Opened {
    pub(crate) gate: Gate,
    pub(crate) arena: Arena,
    pub(crate) place: Arc<Place>,
    pub(crate) changes: Changes,
    /// Whether it was filled ahead, where that is needed.
    pub(crate) filled: AtomicBool,
    /// Whether its sections may only read.
    pub(crate) read_only: bool,
    /// Whether the root has been brought into memory, so that sections may begin.
    pub(crate) root_checked: AtomicBool,
}

impl Opened {
    /// Its number.
    #[must_use]
    pub fn id(&self) -> ContainerId {
        self.place.container
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.place.name
    }

    /// Its first address, the same for as long as it lives (D1).
    #[must_use]
    pub fn base(&self) -> Address {
        self.place.reservation.base()
    }

    /// Its clusters by number, with the windows of each (A2).
    #[must_use]
    pub fn clusters(&self) -> Vec<(u16, Vec<u32>)> {
        self.place.windows_of().into_iter().collect()
    }

    /// What type its root has; `None` while it has no root.
    #[must_use]
    pub fn root_type(&self) -> Option<TypeDescription> {
        self.arena.root_type()
    }

    #[inline]
    pub(crate) fn check_writable(&self) -> Result<(), SectionError> {
        if self.read_only { Err(SectionError::ReadOnly) } else { Ok(()) }
    }

    /// Brings the pages of these addresses into memory, so that touching them cannot fail (B12).
    ///
    /// # Errors
    /// Names the first page that is damaged.
    pub fn check(&self, addresses: std::ops::Range<Address>) -> Result<(), CheckError> {
        let base = self.base();
        let end = base.0 + self.place.reservation.windows() as usize * WINDOW_SIZE;
        if addresses.start < base || addresses.end.0 > end {
            let name = self.name().to_owned();
            return Err(CheckError::Outside { name, asked: addresses, is: base..Address(end) });
        }
        if addresses.is_empty() {
            return Ok(());
        }
        // Nothing is taken out of memory, and no state given up, while a section is open.
        let _entry = self.gate.enter_read().map_err(SectionError::from)?;
        let first = addresses.start.page_from(base).0;
        let end = (addresses.end.0 - base.0).div_ceil(PAGE_SIZE) as u64;
        Ok(self.place.bring(PageRange::new(first, end))?)
    }

    /// Brings all of it into memory, for those who are about to walk through it.
    ///
    /// # Errors
    /// As [`Opened::check`].
    pub fn check_all(&self) -> Result<(), CheckError> {
        let byte_len = self.place.reservation.windows() as usize * WINDOW_SIZE;
        self.check(self.base()..Address(self.base().0 + byte_len))
    }

    /// Brings the root into memory before the first section. Called with a section open.
    #[inline]
    pub(crate) fn check_root(&self) -> Result<(), SectionError> {
        if self.root_checked.load(Ordering::Acquire) { Ok(()) } else { self.bring_root() }
    }

    #[cold]
    fn bring_root(&self) -> Result<(), SectionError> {
        self.arena.check_root_page().map_err(|damaged| SectionError::Damaged(Box::new(damaged)))?;
        self.root_checked.store(true, Ordering::Release);
        Ok(())
    }

    pub(crate) fn root_error(&self, source: RootError) -> ContainerError {
        let name = self.name().to_owned();
        match source {
            RootError::OtherType(both) => ContainerError::OtherType { name, source: both },
            source => ContainerError::Root { name, source },
        }
    }
}

/// Lets a program wait for somebody's change with no section open.
#[derive(Debug, Default)]
pub(crate) struct Changes {
    waiters: AtomicU32,
    count: Mutex<u64>,
    changed: Condvar,
}

impl Changes {
    /// Said after each section that changed something: a load of a line that nobody writes unless a
    /// program waits.
    #[inline]
    pub(crate) fn notify(&self) {
        if self.waiters.load(Ordering::Relaxed) != 0 {
            self.wake();
        }
    }

    #[cold]
    fn wake(&self) {
        *self.count.lock().unwrap_or_else(PoisonError::into_inner) += 1;
        self.changed.notify_all();
    }

    /// Announces a waiter until what it returns is dropped.
    pub(crate) fn announce(&self) -> Waiting<'_> {
        self.waiters.fetch_add(1, Ordering::SeqCst);
        Waiting { changes: self }
    }
}

/// A program that waits for a change.
pub(crate) struct Waiting<'c> {
    changes: &'c Changes,
}

impl Waiting<'_> {
    /// How many changes there were; to be asked before looking at the data.
    pub(crate) fn count(&self) -> u64 {
        *self.changes.count.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until there were more than `seen`.
    pub(crate) fn wait(&self, seen: u64) {
        let count = self.changes.count.lock().unwrap_or_else(PoisonError::into_inner);
        drop(self.changes.changed.wait_while(count, |now| *now == seen));
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.changes.waiters.fetch_sub(1, Ordering::SeqCst);
    }
}
