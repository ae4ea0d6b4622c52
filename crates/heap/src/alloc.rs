//! The allocator: pages that hold slots of one type and size, and runs of whole pages, described page by
//! page in the window's descriptor table. What is free is found again from the descriptors, lazily, so
//! opening costs nothing (catalogue A1, A4, B10). It knows no sections: what to free, and when, it is
//! told. No code of a program runs under its lock. Read [`Shared`] first, then [`Tx`](crate::Tx).

mod threads;
mod window;

use std::collections::HashMap;
use std::ptr::with_exposed_provenance_mut;
use std::sync::atomic::{
    AtomicU8, AtomicU64, AtomicUsize,
    Ordering::{Acquire, Relaxed, Release},
};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use stead_model::{ContainerId, PAGE_SIZE, PAGES_PER_WINDOW, PageRange, WINDOW_SIZE};

use crate::asan;
use crate::error::{AllocError, Damaged};
use crate::ground::{Ground, GroundError};
use crate::layout::{
    DESCRIPTOR_SIZE, Descriptor, FIRST_PAGE, FORMAT_VERSION, GRAIN, Header, MAGIC, SMALL_MAX,
    UNASSIGNED, WINDOW_PAGES, descriptor, descriptor_address, header, kind, page_in_window,
    window_base,
};
use crate::registry::{Fresh, Registry};
use crate::types::{Persist, TypeRef};

use window::WindowPages;

pub(crate) use threads::{ThreadCache, ThreadCaches};

/// What is asked for: known when compiling, but for the number of bytes.
#[derive(Clone, Copy)]
pub(crate) struct Request {
    pub(crate) ty: TypeRef,
    pub(crate) kind: u8,
    /// Of a hash table, else 0.
    pub(crate) capacity_log2: u8,
    /// Already a size class, or whole pages.
    pub(crate) bytes: usize,
}

impl Request {
    /// Room for one object.
    pub(crate) fn object<'s, T: Persist<'s>>() -> Request {
        const { assert!(align_of::<T>() <= GRAIN && size_of::<T>() > 0) }
        let bytes = size_of::<T>();
        let bytes = if bytes > SMALL_MAX {
            bytes.next_multiple_of(PAGE_SIZE)
        } else {
            bytes.next_multiple_of(GRAIN)
        };
        Request { ty: TypeRef::of::<T>(), kind: kind::OBJECTS, capacity_log2: 0, bytes }
    }
}

/// Pages that hold slots of the same sort are interchangeable.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
struct PageSort {
    cluster: u16,
    type_number: u32,
    kind: u8,
    capacity_log2: u8,
    slot_size: u16,
}

/// What is known about a page since the arena was opened: one byte, in the shadow of its descriptor.
mod state {
    /// Nothing: it was not looked at yet.
    pub(super) const UNKNOWN: u8 = 0;
    /// A thread allocates from it.
    pub(super) const CURRENT: u8 = 1;
    /// It is listed as having free slots.
    pub(super) const PARTIAL: u8 = 2;
    /// It had no free slot when it was looked at.
    pub(super) const FULL: u8 = 3;
    /// It is listed as free.
    pub(super) const FREE: u8 = 4;
    /// It is part of a run that holds one allocation.
    pub(super) const RUN: u8 = 5;
}

/// The volatile side of an open container, shared by its threads.
pub(crate) struct Shared {
    pub(crate) ground: Arc<dyn Ground>,
    pub(crate) container: ContainerId,
    pub(crate) base: usize,
    /// Bytes of address space.
    pub(crate) span: usize,
    /// Add this to an address to get its shadow's.
    pub(crate) shadow_offset: usize,
    /// Tells arenas of one process apart.
    serial: u64,
    /// Address of the root object, or 0.
    pub(crate) root: AtomicUsize,
    pub(crate) registry: Mutex<Registry>,
    /// Locked after the registry, never before it.
    pages: Mutex<Pages>,
}

/// What is free.
struct Pages {
    windows: Vec<Option<WindowPages>>,
    /// The windows of each cluster.
    clusters: Vec<Vec<u32>>,
    /// Pages with free slots; an entry is right only if the page's state still says so.
    partial: HashMap<PageSort, Vec<u64>>,
    /// Freed since the site asked last: first page of the container, pages.
    freed: Vec<(u64, u32)>,
}

impl Pages {
    /// Pages that hold something, or that nobody has looked at yet.
    fn in_use(&self) -> u64 {
        self.windows.iter().flatten().map(WindowPages::in_use).sum()
    }
}

/// Descriptors looked at in one step when looking for free slots.
const SWEEP_STEP: u32 = 64;

/// Fresh pages that the ground is told about at least.
const ASK_STEP: u32 = 64;

fn locked<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // A panic under these locks is a failed assertion of ours; the data is then no worse than it was
    // at the assertion.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Shared {
    fn with(
        ground: Arc<dyn Ground>,
        container: ContainerId,
        registry: Registry,
        pages: Pages,
    ) -> Arc<Shared> {
        static SERIAL: AtomicU64 = AtomicU64::new(1);
        let base = ground.base();
        let span = ground.window_count() as usize * WINDOW_SIZE;
        Arc::new(Shared {
            container,
            base,
            span,
            shadow_offset: ground.shadow_base().wrapping_sub(base),
            serial: SERIAL.fetch_add(1, Relaxed),
            root: AtomicUsize::new(0),
            registry: Mutex::new(registry),
            pages: Mutex::new(pages),
            ground,
        })
    }

    /// Makes an empty container: one cluster, whose segment is empty.
    pub(crate) fn format(ground: Arc<dyn Ground>, container: ContainerId) -> Arc<Shared> {
        let (base, window_count) = (ground.base(), ground.window_count());
        ground.ask(base, PAGE_SIZE);
        // SAFETY: window 0 is mapped and writable, and nobody else uses it: Ground's conditions.
        unsafe { write_header(base, container, base, window_count, 0, 0, 0) };
        // SAFETY: just written.
        let first = unsafe { header(base) };
        first.clusters[0].store(1, Relaxed);
        first.cluster_count.store(1, Relaxed);
        let windows = (0..window_count).map(|w| (w == 0).then(|| WindowPages::new(0, FIRST_PAGE)));
        let pages = Pages {
            windows: windows.collect(),
            clusters: vec![vec![0]],
            partial: HashMap::new(),
            freed: Vec::new(),
        };
        Self::with(ground, container, Registry::default(), pages)
    }

    /// Opens a container whose windows are mapped. `clusters` is the directory's; `segment_end` of each
    /// window was checked by the caller.
    pub(crate) fn open(
        ground: Arc<dyn Ground>,
        container: ContainerId,
        clusters: &[Option<u16>],
        segment_ends: &[u32],
        registry: Registry,
    ) -> Arc<Shared> {
        let count = clusters.iter().flatten().map(|c| usize::from(*c) + 1).max().unwrap_or(0);
        let mut windows_of = vec![Vec::new(); count];
        let mut windows = Vec::new();
        for (w, cluster) in clusters.iter().enumerate() {
            windows.push(cluster.map(|c| {
                windows_of[usize::from(c)].push(w as u32);
                WindowPages::new(c, segment_ends[w])
            }));
        }
        let pages =
            Pages { windows, clusters: windows_of, partial: HashMap::new(), freed: Vec::new() };
        Self::with(ground, container, registry, pages)
    }

    #[inline(always)]
    pub(crate) fn contains(&self, address: usize) -> bool {
        address.wrapping_sub(self.base) < self.span
    }

    /// Brings a place of this container into memory.
    pub(crate) fn check<T: ?Sized>(&self, place: &T) -> Result<(), Damaged> {
        let address = std::ptr::from_ref(place).addr();
        self.ground.check(address, size_of_val(place))
    }

    fn pages(&self) -> MutexGuard<'_, Pages> {
        locked(&self.pages)
    }

    /// The number of a type, which is described in the container first if it is not yet.
    pub(crate) fn type_number(&self, ty: TypeRef) -> Result<u32, AllocError> {
        let mut registry = locked(&self.registry);
        if let Some(number) = registry.checked(ty) {
            return Ok(number);
        }
        let fresh = registry.compare(ty).map_err(|e| AllocError::OtherType(Box::new(e)))?;
        if !fresh.is_empty() {
            self.append_types(&mut registry, fresh)?;
        }
        if registry.checked(ty).is_none() {
            // Two types of this program with one name and one layout: the second is now found too.
            registry.compare(ty).map_err(|e| AllocError::OtherType(Box::new(e)))?;
        }
        Ok(registry.checked(ty).expect("compared and adopted"))
    }

    /// Appends descriptions to the type table. Not undone with the section: a description does no harm.
    fn append_types(&self, registry: &mut Registry, fresh: Vec<Fresh>) -> Result<(), AllocError> {
        // SAFETY: window 0 is always mapped.
        let header = unsafe { header(self.base) };
        let mut records = Vec::new();
        for f in &fresh {
            records.extend(Registry::record(&f.description));
        }
        let old_address = header.types_address.load(Relaxed) as usize;
        let old_bytes = header.types_bytes.load(Relaxed) as usize;
        let bytes = old_bytes + records.len();
        let mut address = old_address;
        let room = if old_address == 0 {
            0
        } else {
            // SAFETY: the table is a run of this container.
            let d = unsafe { descriptor(window_base(old_address), page_in_window(old_address)) };
            d.run_pages.load(Relaxed) as usize * PAGE_SIZE
        };
        let mut pages = self.pages();
        if bytes > room {
            let run = (2 * bytes).next_multiple_of(PAGE_SIZE);
            address = self.take_run(&mut pages, 0, run)?;
            self.describe_run(address, run, kind::TYPES, 0, 0, run);
            let to = with_exposed_provenance_mut::<u8>(address);
            let from = with_exposed_provenance_mut::<u8>(old_address);
            // SAFETY: the run is ours and large enough; the old table holds old_bytes; the two runs
            // are disjoint.
            unsafe { std::ptr::copy_nonoverlapping(from, to, old_bytes) };
        }
        let to = with_exposed_provenance_mut::<u8>(address + old_bytes);
        // SAFETY: the run has room for `bytes`; records are on the ordinary heap. Readers of the table
        // go by the header's count, under the registry's lock, which the caller holds.
        unsafe { std::ptr::copy_nonoverlapping(records.as_ptr(), to, records.len()) };
        header.types_address.store(address as u64, Relaxed);
        header.types_bytes.store(bytes as u64, Relaxed);
        header.type_count.store(registry.len() + fresh.len() as u32, Relaxed);
        if address != old_address && old_address != 0 {
            self.free_pages(&mut pages, old_address);
        }
        for f in fresh {
            registry.adopt(f);
        }
        Ok(())
    }

    // ------------------------------------------------------------------------------ whole pages

    /// Allocates a run of whole pages.
    #[cold]
    #[inline(never)]
    pub(crate) fn allocate_run(&self, cluster: u16, r: &Request) -> Result<usize, AllocError> {
        let number = self.type_number(r.ty)?;
        let mut pages = self.pages();
        let address = self.take_run(&mut pages, cluster, r.bytes)?;
        self.describe_run(address, r.bytes, r.kind, number, r.capacity_log2, r.bytes);
        Ok(address)
    }

    fn describe_run(
        &self,
        address: usize,
        bytes: usize,
        kind: u8,
        type_number: u32,
        capacity_log2: u8,
        used: usize,
    ) {
        let (base, start) = (window_base(address), page_in_window(address));
        let run_pages = (bytes / PAGE_SIZE) as u32;
        for page in start..start + run_pages {
            // SAFETY: pages of a run that `take_run` gave out lie in an assigned window.
            let d = unsafe { descriptor(base, page) };
            d.type_number.store(type_number, Relaxed);
            d.capacity_log2.store(capacity_log2, Relaxed);
            d.slot_size.store(0, Relaxed);
            d.slot_count.store(0, Relaxed);
            d.run_start.store(start, Relaxed);
            d.run_pages.store(run_pages, Relaxed);
            d.run_bytes.store(used as u64, Relaxed);
            d.kind.store(kind, Relaxed);
        }
        self.set_state(base, start, state::RUN);
        asan::unpoison(address, bytes);
    }

    /// Takes pages out of the free runs, or appends them to a segment.
    fn take_run(&self, pages: &mut Pages, cluster: u16, bytes: usize) -> Result<usize, AllocError> {
        let count = match u32::try_from(bytes / PAGE_SIZE) {
            Ok(n) if n <= WINDOW_PAGES - FIRST_PAGE => n,
            _ => return Err(AllocError::TooLarge { bytes }),
        };
        self.check_quota(pages, cluster, count)?;
        let windows = pages.clusters[usize::from(cluster)].clone();
        for &w in &windows {
            let window =
                pages.windows[w as usize].as_mut().expect("a cluster's window is assigned");
            if let Some((start, length)) = window.run_for(count) {
                window.remove_run(start, length);
                if length > count {
                    window.add_run(start + count, length - count);
                }
                let address = self.window(w) + start as usize * PAGE_SIZE;
                if count >= ASK_STEP / 4 {
                    self.ground.ask(address, bytes);
                }
                return Ok(address);
            }
        }
        for &w in &windows {
            let window =
                pages.windows[w as usize].as_mut().expect("a cluster's window is assigned");
            if window.end + count <= WINDOW_PAGES {
                return Ok(self.append(w, window, count));
            }
        }
        let w = self.assign_window(pages, Some(cluster))?;
        let window = pages.windows[w as usize].as_mut().expect("just assigned");
        Ok(self.append(w, window, count))
    }

    /// Whether so many pages more may be in use.
    fn check_quota(&self, pages: &mut Pages, cluster: u16, more: u32) -> Result<(), AllocError> {
        let allow = |pages: &Pages| self.ground.allow(&|| pages.in_use(), u64::from(more));
        if allow(pages).is_ok() {
            return Ok(());
        }
        // What is free in what has not been looked at since the container was opened counts as used so far.
        for cluster in 0..pages.clusters.len() as u16 {
            while self.sweep(pages, cluster) {}
        }
        allow(pages).map_err(|source| AllocError::Full { cluster, source })
    }

    /// Appends pages to the segment of a window that has room for them.
    fn append(&self, w: u32, window: &mut WindowPages, count: u32) -> usize {
        let base = self.window(w);
        let start = window.end;
        window.end += count;
        if window.end > window.asked_end {
            let from = window.asked_end.max(start);
            let to = window.end.max(from + ASK_STEP).min(WINDOW_PAGES);
            self.ground.ask(base + from as usize * PAGE_SIZE, (to - from) as usize * PAGE_SIZE);
            let page_of = |p: u32| descriptor_address(base, p) & !(PAGE_SIZE - 1);
            let (first, last) = (page_of(from), page_of(to - 1));
            // The page that `from` shares with pages before it was asked for with them.
            let whole = from.is_multiple_of((PAGE_SIZE / DESCRIPTOR_SIZE) as u32);
            let first = if whole || from == FIRST_PAGE { first } else { first + PAGE_SIZE };
            if first <= last {
                self.ground.ask(first, last + PAGE_SIZE - first);
            }
            window.asked_end = to;
        }
        self.store_segment(w, window);
        base + start as usize * PAGE_SIZE
    }

    fn store_segment(&self, w: u32, window: &WindowPages) {
        // SAFETY: an assigned window is mapped.
        let header = unsafe { header(self.window(w)) };
        header.segment_pages.store(u64::from(window.end - FIRST_PAGE), Relaxed);
    }

    /// Takes an unused window for a cluster, or for a new one.
    fn assign_window(&self, pages: &mut Pages, cluster: Option<u16>) -> Result<u32, AllocError> {
        let number = cluster.unwrap_or(pages.clusters.len() as u16);
        let full = |source| AllocError::Full { cluster: number, source };
        let window_count = pages.windows.len() as u32;
        let Some(w) = pages.windows.iter().position(Option::is_none) else {
            return Err(full(GroundError::NoWindow { window_count }));
        };
        let w = w as u32;
        self.check_quota(pages, number, 1)?;
        self.ground.assign(w, 1, number).map_err(full)?;
        let first = match cluster {
            Some(c) => pages.clusters[usize::from(c)][0],
            None => {
                pages.clusters.push(Vec::new());
                w
            }
        };
        let base = self.window(w);
        self.ground.ask(base, PAGE_SIZE);
        // SAFETY: the ground has just mapped this window, and nothing refers to it yet.
        unsafe {
            write_header(base, self.container, self.base, window_count, w, number, first);
            let zero = header(self.base);
            zero.clusters[w as usize].store(number + 1, Relaxed);
            zero.cluster_count.store(pages.clusters.len() as u32, Relaxed);
        }
        pages.windows[w as usize] = Some(WindowPages::new(number, FIRST_PAGE));
        pages.clusters[usize::from(number)].push(w);
        Ok(w)
    }

    /// Makes a cluster; returns its number.
    pub(crate) fn new_cluster(&self) -> Result<u16, AllocError> {
        let mut pages = self.pages();
        let w = self.assign_window(&mut pages, None)?;
        Ok(pages.windows[w as usize].as_ref().expect("just assigned").cluster)
    }

    /// The first window of a cluster, if there is such a cluster.
    pub(crate) fn cluster_base(&self, cluster: u16) -> Option<usize> {
        let pages = self.pages();
        Some(self.window(*pages.clusters.get(usize::from(cluster))?.first()?))
    }

    fn free_pages(&self, pages: &mut Pages, address: usize) {
        let (base, start) = (window_base(address), page_in_window(address));
        let w = ((base - self.base) / WINDOW_SIZE) as u32;
        // SAFETY: allocated pages lie in assigned windows.
        let count = unsafe { descriptor(base, start) }.run_pages.load(Relaxed);
        for page in start..start + count {
            // SAFETY: as above.
            let d = unsafe { descriptor(base, page) };
            d.kind.store(kind::FREE, Relaxed);
            d.run_pages.store(0, Relaxed);
            self.set_state(base, page, state::FREE);
        }
        asan::poison(address, count as usize * PAGE_SIZE);
        pages.freed.push((u64::from(w) * PAGES_PER_WINDOW + u64::from(start), count));
        let window = pages.windows[w as usize].as_mut().expect("allocated pages are in a window");
        window.add_run(start, count);
        if let Some((&last, &length)) = window.runs.last_key_value()
            && last + length == window.end
        {
            window.remove_run(last, length);
            window.end = last;
            window.unknown_below = window.unknown_below.min(last);
            self.store_segment(w, window);
        }
    }

    // ------------------------------------------------------------------------------ slots

    /// Gives the thread a page of this sort to allocate from.
    #[cold]
    #[inline(never)]
    fn page_with_room(&self, cluster: u16, r: &Request) -> Result<usize, AllocError> {
        let sort = PageSort {
            cluster,
            type_number: self.type_number(r.ty)?,
            kind: r.kind,
            capacity_log2: r.capacity_log2,
            slot_size: r.bytes as u16,
        };
        let mut pages = self.pages();
        if let Some(address) = self.listed_page(&mut pages, &sort) {
            return Ok(address);
        }
        if self.sweep(&mut pages, cluster)
            && let Some(address) = self.listed_page(&mut pages, &sort)
        {
            return Ok(address);
        }
        let address = self.take_run(&mut pages, cluster, PAGE_SIZE)?;
        let (base, page) = (window_base(address), page_in_window(address));
        // SAFETY: `take_run` gives pages of assigned windows.
        let d = unsafe { descriptor(base, page) };
        for live in &d.live {
            live.store(0, Relaxed);
        }
        d.type_number.store(sort.type_number, Relaxed);
        d.capacity_log2.store(sort.capacity_log2, Relaxed);
        d.slot_size.store(u32::from(sort.slot_size), Relaxed);
        d.slot_count.store((PAGE_SIZE / r.bytes) as u32, Relaxed);
        d.run_start.store(page, Relaxed);
        d.run_pages.store(1, Relaxed);
        d.run_bytes.store(0, Relaxed);
        d.kind.store(sort.kind, Relaxed);
        self.set_state(base, page, state::CURRENT);
        Ok(address)
    }

    /// A page of this sort that is listed as having room.
    fn listed_page(&self, pages: &mut Pages, sort: &PageSort) -> Option<usize> {
        let list = pages.partial.get_mut(sort)?;
        while let Some(number) = list.pop() {
            let address = self.base + number as usize * PAGE_SIZE;
            let (base, page) = (window_base(address), page_in_window(address));
            if self.state(base, page).load(Relaxed) != state::PARTIAL {
                continue;
            }
            // SAFETY: listed pages lie in assigned windows.
            let d = unsafe { descriptor(base, page) };
            if self.sort_of(sort.cluster, d) == Some(*sort) {
                self.set_state(base, page, state::CURRENT);
                return Some(address);
            }
        }
        None
    }

    fn sort_of(&self, cluster: u16, d: &Descriptor) -> Option<PageSort> {
        let slot_size = u16::try_from(d.slot_size.load(Relaxed)).ok()?;
        (slot_size > 0).then_some(PageSort {
            cluster,
            type_number: d.type_number.load(Relaxed),
            kind: d.kind.load(Relaxed),
            capacity_log2: d.capacity_log2.load(Relaxed),
            slot_size,
        })
    }

    /// Looks at the next few descriptors that were not looked at since the container was opened, from
    /// the segment's end backwards. Says whether there were any.
    fn sweep(&self, pages: &mut Pages, cluster: u16) -> bool {
        for w in pages.clusters[usize::from(cluster)].clone() {
            let base = self.window(w);
            let window =
                pages.windows[w as usize].as_mut().expect("a cluster's window is assigned");
            if window.unknown_below <= FIRST_PAGE {
                continue;
            }
            let from = window.unknown_below.saturating_sub(SWEEP_STEP).max(FIRST_PAGE);
            for page in from..window.unknown_below {
                if self.state(base, page).load(Relaxed) != state::UNKNOWN {
                    continue;
                }
                // SAFETY: pages of the segment of an assigned window.
                let d = unsafe { descriptor(base, page) };
                match d.kind.load(Relaxed) {
                    kind::FREE => {
                        self.set_state(base, page, state::FREE);
                        window.add_run(page, 1);
                    }
                    _ => match self.sort_of(cluster, d) {
                        Some(sort) if free_slots(d) > 0 => {
                            self.set_state(base, page, state::PARTIAL);
                            pages.partial.entry(sort).or_default().push(self.number(w, page));
                        }
                        Some(_) => self.set_state(base, page, state::FULL),
                        None => self.set_state(base, page, state::RUN),
                    },
                }
            }
            window.unknown_below = from;
            return true;
        }
        false
    }

    /// Takes back a page from a thread.
    fn page_given_back(&self, pages: &mut Pages, address: usize) {
        let (base, page) = (window_base(address), page_in_window(address));
        debug_assert_eq!(self.state(base, page).load(Relaxed), state::CURRENT);
        self.set_state(base, page, state::FULL);
        self.page_has_room(pages, base, page);
    }

    /// Takes back a page from a thread that ends, without writing to the container.
    fn page_abandoned(&self, pages: &mut Pages, address: usize) {
        let (base, page) = (window_base(address), page_in_window(address));
        self.set_state(base, page, state::FULL);
        self.list_if_room(pages, base, page);
    }

    /// Lists a page that no thread allocates from, if it has room or is free altogether.
    fn page_has_room(&self, pages: &mut Pages, base: usize, page: u32) {
        // SAFETY: a page of an assigned window.
        let d = unsafe { descriptor(base, page) };
        if d.live.iter().all(|live| live.load(Relaxed) == 0) {
            self.free_pages(pages, base + page as usize * PAGE_SIZE);
        } else {
            self.list_if_room(pages, base, page);
        }
    }

    fn list_if_room(&self, pages: &mut Pages, base: usize, page: u32) {
        // SAFETY: a page of an assigned window.
        let d = unsafe { descriptor(base, page) };
        if self.state(base, page).load(Relaxed) == state::PARTIAL || free_slots(d) == 0 {
            return;
        }
        let w = ((base - self.base) / WINDOW_SIZE) as u32;
        let cluster = pages.windows[w as usize].as_ref().expect("an assigned window").cluster;
        let sort = self.sort_of(cluster, d).expect("a page of slots");
        self.set_state(base, page, state::PARTIAL);
        pages.partial.entry(sort).or_default().push(self.number(w, page));
    }

    /// Frees allocations, each named by its first address.
    pub(crate) fn free_all(&self, addresses: &[usize]) {
        let mut pages = self.pages();
        for &address in addresses {
            let (base, page) = (window_base(address), page_in_window(address));
            // SAFETY: allocations lie in assigned windows.
            let d = unsafe { descriptor(base, page) };
            let slot_size = d.slot_size.load(Relaxed) as usize;
            if slot_size == 0 {
                assert!(d.kind.load(Relaxed) != kind::FREE, "pages freed twice: {address:#x}");
                self.free_pages(&mut pages, address);
                continue;
            }
            let slot = (address % PAGE_SIZE) / slot_size;
            let bit = 1u64 << (slot % 64);
            asan::poison(address, slot_size);
            // What this thread did with the slot happens before what its next owner does: `take_slot`.
            let before = d.live[slot / 64].fetch_and(!bit, Release);
            assert!(before & bit != 0, "memory freed twice: {address:#x}");
            if self.state(base, page).load(Relaxed) != state::CURRENT {
                self.page_has_room(&mut pages, base, page);
            }
        }
    }

    // ------------------------------------------------------------------------------ for the site

    pub(crate) fn take_freed_pages(&self, f: &mut dyn FnMut(PageRange)) {
        let freed = std::mem::take(&mut self.pages().freed);
        for (first, count) in freed {
            let mut run = PageRange::new(first, first);
            for page in first..first + u64::from(count) {
                if self.page_is_free(page) {
                    if run.end != page {
                        run.start = page;
                    }
                    run.end = page + 1;
                } else if run.end == page && run.page_count() > 0 {
                    f(run);
                    run = PageRange::new(page + 1, page + 1);
                }
            }
            if run.page_count() > 0 {
                f(run);
            }
        }
    }

    pub(crate) fn page_is_free(&self, number: u64) -> bool {
        let w = (number / PAGES_PER_WINDOW) as u32;
        let page = (number % PAGES_PER_WINDOW) as u32;
        if w as usize >= self.span / WINDOW_SIZE {
            return true;
        }
        // Looked at first: a new window's header is written before window 0 says that it is assigned.
        if page < FIRST_PAGE {
            return false;
        }
        // SAFETY: window 0 is always mapped.
        let zero = unsafe { header(self.base) };
        if zero.clusters[w as usize].load(Relaxed) == UNASSIGNED {
            return true;
        }
        // SAFETY: an assigned window is mapped.
        let (header, d) = unsafe { (header(self.window(w)), descriptor(self.window(w), page)) };
        u64::from(page - FIRST_PAGE) >= header.segment_pages.load(Relaxed)
            || d.kind.load(Relaxed) == kind::FREE
    }

    // ------------------------------------------------------------------------------ small helpers

    #[inline(always)]
    pub(crate) fn window(&self, w: u32) -> usize {
        self.base + w as usize * WINDOW_SIZE
    }

    fn number(&self, w: u32, page: u32) -> u64 {
        u64::from(w) * PAGES_PER_WINDOW + u64::from(page)
    }

    fn state(&self, base: usize, page: u32) -> &AtomicU8 {
        let shadow = descriptor_address(base, page).wrapping_add(self.shadow_offset);
        // SAFETY: the shadow is as large as the container and mapped where the container is; no lock
        // lies in the descriptor table, so nothing else uses these bytes.
        unsafe { &*std::ptr::with_exposed_provenance::<AtomicU8>(shadow) }
    }

    fn set_state(&self, base: usize, page: u32, state: u8) {
        self.state(base, page).store(state, Relaxed);
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        claim_word(&*self.ground).store(0, Release);
    }
}

/// Claims a ground for one arena; gives up if another one of this process stands on it. The claim is in
/// the shadow of the first page, where no lock lies.
pub(crate) fn claim(ground: &dyn Ground) -> bool {
    claim_word(ground).compare_exchange(0, 1, Acquire, Relaxed).is_ok()
}

/// Gives up a claim that no arena came of.
pub(crate) fn unclaim(ground: &dyn Ground) {
    claim_word(ground).store(0, Release);
}

fn claim_word(ground: &dyn Ground) -> &AtomicU64 {
    // SAFETY: the shadow is mapped as far as the container is, and the ground is borrowed.
    unsafe { &*std::ptr::with_exposed_provenance::<AtomicU64>(ground.shadow_base()) }
}

fn free_slots(d: &Descriptor) -> u32 {
    let live: u32 = d.live.iter().map(|l| l.load(Relaxed).count_ones()).sum();
    d.slot_count.load(Relaxed).saturating_sub(live)
}

/// Writes page 0 of a window.
///
/// # Safety
/// The window at `base` is mapped and writable and nothing refers to its first page.
unsafe fn write_header(
    base: usize,
    container: ContainerId,
    canonical_base: usize,
    window_count: u32,
    window: u32,
    cluster: u16,
    cluster_first_window: u32,
) {
    asan::unpoison(base, PAGE_SIZE);
    let p = with_exposed_provenance_mut::<Header>(base);
    // SAFETY: the page is ours by the caller's word; all-zero bytes are a valid Header.
    unsafe {
        p.cast::<u8>().write_bytes(0, PAGE_SIZE);
        let h = &mut *p;
        h.magic = MAGIC;
        h.format_version = FORMAT_VERSION;
        h.container = container.0;
        h.window = window;
        h.cluster = cluster;
        h.cluster_first_window = cluster_first_window;
        h.window_count = window_count;
        h.canonical_base = canonical_base as u64;
        h.empty_group = [0xff; 64];
    }
}
