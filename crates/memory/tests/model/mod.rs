//! The reference: what each page holds in memory and in the store, and which were written since the
//! last scan; and the two worlds in which the code under test runs. Start at [`play`].
#![allow(unreachable_pub, reason = "a module of one test")]

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use proptest::prelude::*;
use proptest::test_runner::TestCaseError;
use stead_memory::sys::Sys;
use stead_memory::sys::sim::{Sim, Touch};
use stead_memory::{
    Cluster, Fault, FaultBatch, Linux, Mode, Plan, Reading, Reason, Reservation, Scan, Space,
};
use stead_model::{Address, ContainerId, PAGE_SIZE, PAGES_PER_WINDOW, PageNo, PageRange};

use crate::ground;

/// Pages that the operations are about, by index: three groups of 32.
pub const INDEX_END: u64 = 96;

/// The page of an index. Within a group, pages are adjacent.
pub fn page_of(index: u64) -> PageNo {
    let start = [500, PAGES_PER_WINDOW - 16, PAGES_PER_WINDOW + 1_000_000];
    PageNo(start[(index / 32) as usize] + index % 32)
}

/// `n` pages from an index on, cut at the end of its group.
fn run_of(index: u64, n: u64) -> PageRange {
    let first = page_of(index).0;
    PageRange::new(first, first + n.min(32 - index % 32))
}

/// What can happen. Pages are indices.
#[derive(Clone, Debug)]
pub enum Op {
    /// A thread reads.
    Read(u64),
    /// A thread writes.
    Write(u64, u64),
    /// A thread lets the kernel write, by a call that resolves faults without running into them.
    WriteByCall(u64, u64),
    /// Pages are installed from the store ahead of any fault.
    Install(u64, u64),
    /// New pages of zeros, to be written or not.
    Zero(u64, u64, bool),
    /// Pages leave memory, after they were made stable.
    Punch(u64, u64),
    /// The site overwrites pages.
    SiteWrite(u64, u64, u64),
    /// The site marks pages.
    Mark(u64, u64),
    /// Pages are made stable and protected, without a scan.
    Protect(u64, u64),
    /// A fault that was answered already.
    Resume(u64),
    /// The kernel takes a page out of the mapping; on real memory nothing happens.
    Unmap(u64),
    /// A scan that changes nothing.
    Look,
    /// A scan that protects, and a copy of what it reports.
    Stabilise,
    /// The same while nobody can write, so that what is found is protected after it was copied.
    StabiliseStill,
    /// The same as the first for a part.
    StabilisePart(u64, u64),
}

/// What is expected.
#[derive(Default, Debug)]
pub struct Model {
    /// The first word of each page in memory.
    memory: BTreeMap<u64, u64>,
    /// The same of each page in the store; others hold their stamp.
    store: BTreeMap<u64, u64>,
    /// Pages that a scan has to report.
    written: BTreeSet<u64>,
    /// Pages that it may report besides: the kernel forgot that they were protected.
    doubtful: BTreeSet<u64>,
}

impl Model {
    fn stored(&self, page: u64) -> u64 {
        self.store.get(&page).copied().unwrap_or_else(|| ground::stamp_word(page))
    }

    fn image(&self, page: u64) -> Vec<u8> {
        self.stored(page).to_ne_bytes().repeat(PAGE_SIZE / 8)
    }

    fn wrote(&mut self, page: u64, word: u64) {
        self.memory.insert(page, word);
        self.written.insert(page);
    }

    /// A write of another thread, in the midst of a call.
    pub fn raced_write(&mut self, page: u64, word: u64) {
        self.wrote(page, word);
    }

    fn came_in(&mut self, range: PageRange) {
        for page in range.start..range.end {
            let stored = self.stored(page);
            self.memory.entry(page).or_insert(stored);
        }
    }

    /// A scan may report every page in memory.
    pub fn doubt_all(&mut self) {
        self.doubtful.extend(self.memory.keys());
    }

    /// Everything in memory is in the store.
    pub fn assert_all_stable(&self) {
        for (page, word) in &self.memory {
            assert_eq!(self.stored(*page), *word, "page {page} was written and not reported");
        }
    }
}

/// Where the code under test runs.
pub trait World {
    type Sys: Sys;
    fn cluster(&self) -> &Cluster<Self::Sys>;
    fn base(&self) -> Address;
    fn model(&self) -> Arc<Mutex<Model>>;
    fn read_log(&self) -> Reading;
    /// Loads a word, serving the fault if there is one.
    fn load(&self, page: PageNo, around: u64) -> u64;
    fn store(&self, page: PageNo, around: u64, word: u64);
    /// As `store`, by a call that leaves no record of its fault.
    fn store_by_call(&self, page: PageNo, around: u64, word: u64);
    /// Whether the page left the mapping.
    fn unmap(&self, page: PageNo) -> bool;
    /// Whether other threads write meanwhile.
    fn races(&self) -> bool {
        false
    }
}

pub fn play<W: World>(world: &W, ops: &[Op], around: u64) -> Result<(), TestCaseError> {
    for op in ops {
        step(world, op, around)?;
    }
    step(world, &Op::Stabilise, around)?;
    world.model().lock().unwrap().assert_all_stable();
    let resident = world.cluster().resident_page_count();
    prop_assert_eq!(resident, world.model().lock().unwrap().memory.len() as u64);
    Ok(())
}

pub fn step<W: World>(world: &W, op: &Op, around: u64) -> Result<(), TestCaseError> {
    let cluster = world.cluster();
    let model = world.model();
    match *op {
        Op::Read(index) => {
            let page = page_of(index);
            let word = world.load(page, around);
            prop_assert_eq!(word, model.lock().unwrap().memory[&page.0]);
        }
        Op::Write(index, word) => {
            world.store(page_of(index), around, word);
        }
        Op::WriteByCall(index, word) => {
            world.store_by_call(page_of(index), around, word);
        }
        Op::Install(index, n) => {
            let range = run_of(index, n);
            let images: Vec<u8> = {
                let model = model.lock().unwrap();
                (range.start..range.end).flat_map(|page| model.image(page)).collect()
            };
            let absent = absent(&model, range);
            cluster.install(PageNo(range.start), &images, Reason::Ahead).unwrap();
            let mut model = model.lock().unwrap();
            model.came_in(range);
            // Those in memory were mapped again, and count as written if they were not.
            doubt_unmapped(&mut model, range, &absent);
        }
        Op::Zero(index, n, writable) => {
            let range = run_of(index, n);
            let absent = absent(&model, range);
            let reason = if writable { Reason::AheadWritable } else { Reason::Ahead };
            {
                // The store has no such page yet, and zeros it is.
                let mut model = model.lock().unwrap();
                for page in &absent {
                    model.store.insert(*page, 0);
                    model.memory.insert(*page, 0);
                }
            }
            cluster.install_zero(range, reason).unwrap();
            let mut model = model.lock().unwrap();
            if writable {
                model.written.extend(&absent);
            }
            doubt_unmapped(&mut model, range, &absent);
        }
        Op::Punch(index, n) => {
            let range = run_of(index, n);
            copy(world, &model, range);
            cluster.punch(range).unwrap();
            let mut model = model.lock().unwrap();
            model.memory.retain(|page, _| !(range.start..range.end).contains(page));
            model.written.retain(|page| !(range.start..range.end).contains(page));
            model.doubtful.retain(|page| !(range.start..range.end).contains(page));
        }
        Op::SiteWrite(index, n, word) => {
            let range = run_of(index, n);
            let image = word.to_ne_bytes().repeat(PAGE_SIZE / 8);
            let images = image.repeat(range.page_count() as usize);
            cluster.write_frames(PageNo(range.start), &images).unwrap();
            let mut model = model.lock().unwrap();
            for page in range.start..range.end {
                model.wrote(page, word);
            }
        }
        Op::Mark(index, n) => {
            let range = run_of(index, n);
            let resident: Vec<u64> = {
                let model = model.lock().unwrap();
                model.memory.range(range.start..range.end).map(|(page, _)| *page).collect()
            };
            for page in resident {
                cluster.mark_dirty(PageRange::new(page, page + 1));
                model.lock().unwrap().written.insert(page);
            }
        }
        Op::Protect(index, n) => {
            let range = run_of(index, n);
            copy(world, &model, range);
            cluster.protect(range).unwrap();
            let mut model = model.lock().unwrap();
            model.written.retain(|page| !(range.start..range.end).contains(page));
            model.doubtful.retain(|page| !(range.start..range.end).contains(page));
        }
        Op::Resume(index) => {
            let page = page_of(index).0;
            if absent(&model, PageRange::new(page, page + 1)).is_empty() {
                cluster.resume(PageNo(page)).unwrap();
                model.lock().unwrap().doubtful.insert(page);
            }
        }
        Op::Unmap(index) => {
            let page = page_of(index);
            if world.unmap(page) {
                // The next touch brings it back as written.
                model.lock().unwrap().doubtful.insert(page.0);
            }
        }
        Op::Look => {
            let mut out = Vec::new();
            let expected = model.lock().unwrap().written.clone();
            cluster.scan_all(Scan::Look, &mut out).unwrap();
            check(world, &model, &out, &expected, None)?;
        }
        Op::Stabilise => stabilise(world, &model, None)?,
        Op::StabiliseStill => stabilise_still(world, &model)?,
        Op::StabilisePart(index, n) => stabilise(world, &model, Some(run_of(index, n)))?,
    }
    Ok(())
}

/// While the code under test makes its system calls, another thread of the simulated machine writes
/// wherever it can. Its writes are found by the same or a later scan. Returns how many there were.
pub fn race(seed: u64, log: Option<usize>) -> Result<u64, TestCaseError> {
    let mut rng = fastrand::Rng::with_seed(seed);
    let world = Simulated::new(seed, rng.bool(), log);
    let writes = Arc::new(AtomicU64::new(0));
    let (model, count, base) = (world.model(), Arc::clone(&writes), world.base());
    let mut racer = rng.fork();
    world.sim().meanwhile(move |sim: &Sim| {
        for _ in 0..racer.u8(..4) {
            // The last third belongs to this thread, so that the order of writes is known.
            let page = page_of(racer.u64(INDEX_END * 2 / 3..INDEX_END));
            let (address, word) = (page.address(base).0, racer.u64(1..));
            let touch = match racer.u8(..50) {
                0 => sim.store_directly(address, word),
                _ => sim.store(address, word),
            };
            if let Touch::Done(_) = touch {
                model.lock().unwrap().raced_write(page.0, word);
                count.fetch_add(1, Ordering::Relaxed);
            }
        }
    });
    let around = 1 << rng.u32(..5);
    for _ in 0..80 {
        let (own, any) = (rng.u64(..INDEX_END * 2 / 3 - 12), rng.u64(..INDEX_END));
        let n = rng.u64(1..12);
        let op = match rng.u8(..12) {
            0 => Op::Read(any),
            1 => Op::Write(own, rng.u64(1..)),
            2 | 3 => Op::Install(any, n),
            4 => Op::Zero(own, n, rng.bool()),
            5 => Op::Punch(own, n),
            6 => Op::SiteWrite(own, n, rng.u64(1..)),
            7 => Op::Unmap(any),
            8 => Op::StabilisePart(any, n),
            _ => Op::Stabilise,
        };
        step(&world, &op, around)?;
    }
    // The last round finds nobody writing.
    world.sim().meanwhile(|_| {});
    step(&world, &Op::Stabilise, around)?;
    world.model().lock().unwrap().assert_all_stable();
    Ok(writes.load(Ordering::Relaxed))
}

fn absent(model: &Mutex<Model>, range: PageRange) -> Vec<u64> {
    let model = model.lock().unwrap();
    (range.start..range.end).filter(|page| !model.memory.contains_key(page)).collect()
}

/// Pages of `range` that were in memory were mapped anew if the kernel had unmapped them, or the site
/// had written them without mapping.
fn doubt_unmapped(model: &mut Model, range: PageRange, absent: &[u64]) {
    for page in range.start..range.end {
        if !absent.contains(&page) {
            model.doubtful.insert(page);
        }
    }
}

/// Copies pages from memory to the store as they are.
fn copy<W: World>(world: &W, model: &Mutex<Model>, range: PageRange) {
    for page in range.pages() {
        if !world.cluster().is_resident(page) {
            continue;
        }
        let mut buf = vec![0; PAGE_SIZE];
        world.cluster().read_frames(page, &mut buf).unwrap();
        let word = u64::from_ne_bytes(buf[..8].try_into().unwrap());
        model.lock().unwrap().store.insert(page.0, word);
    }
}

fn stabilise<W: World>(
    world: &W,
    model: &Mutex<Model>,
    part: Option<PageRange>,
) -> Result<(), TestCaseError> {
    let mut out = vec![PageRange::new(0, 1)];
    let within = |page: &u64| part.is_none_or(|part| (part.start..part.end).contains(page));
    // What other threads write from here on may be reported now or next time.
    let expected: BTreeSet<u64> = {
        let mut model = model.lock().unwrap();
        let (now, later) = model.written.iter().partition(|page| within(page));
        model.written = later;
        now
    };
    match part {
        None => world.cluster().scan_all(Scan::Protect, &mut out).unwrap(),
        Some(part) => world.cluster().scan_dirty(part, Scan::Protect, &mut out).unwrap(),
    }
    prop_assert_eq!(out.remove(0), PageRange::new(0, 1));
    check(world, model, &out, &expected, part)?;
    {
        let mut model = model.lock().unwrap();
        // Not those that were unmapped while protected: they come back as written.
        let reported: BTreeSet<u64> = out.iter().flat_map(|run| run.start..run.end).collect();
        model.doubtful.retain(|page| !reported.contains(page));
        if world.races() {
            model.written.retain(|page| !reported.contains(page) || !within(page));
        }
    }
    for run in &out {
        copy(world, model, *run);
    }
    Ok(())
}

fn stabilise_still<W: World>(world: &W, model: &Mutex<Model>) -> Result<(), TestCaseError> {
    let (mut out, mut unprotected) = (Vec::new(), Vec::new());
    let expected = std::mem::take(&mut model.lock().unwrap().written);
    world.cluster().scan_still(world.read_log(), &mut out, &mut unprotected).unwrap();
    check(world, model, &out, &expected, None)?;
    out.iter().for_each(|run| copy(world, model, *run));
    world.cluster().protect_found(&unprotected);
    let reported: BTreeSet<u64> = out.iter().flat_map(|run| run.start..run.end).collect();
    model.lock().unwrap().doubtful.retain(|page| !reported.contains(page));
    Ok(())
}

fn check<W: World>(
    world: &W,
    model: &Mutex<Model>,
    out: &[PageRange],
    expected: &BTreeSet<u64>,
    part: Option<PageRange>,
) -> Result<(), TestCaseError> {
    prop_assert!(out.windows(2).all(|pair| pair[0].end < pair[1].start), "{:?}", out);
    let reported: BTreeSet<u64> = out.iter().flat_map(|run| run.start..run.end).collect();
    let model = model.lock().unwrap();
    prop_assert!(reported.is_superset(expected), "{:?} of {:?}", reported, expected);
    if let Some(part) = part {
        prop_assert!(reported.iter().all(|page| (part.start..part.end).contains(page)));
    }
    if !world.races() {
        let more: Vec<&u64> =
            reported.difference(expected).filter(|page| !model.doubtful.contains(page)).collect();
        prop_assert!(more.is_empty(), "{:?} reported, but not written", more);
    }
    Ok(())
}

fn map<S: Sys>(space: &Space<S>, swapped: bool) -> (Reservation<S>, Cluster<S>) {
    // A test that runs longer may still have some of them.
    let reserve = || space.reserve(ContainerId(5), ground::fresh_windows(2)).ok();
    let reservation = (0..100).find_map(|_| reserve()).unwrap();
    if !swapped {
        let cluster = space.map_cluster(&reservation, &[0, 1], Mode::Faulted).unwrap();
        return (reservation, cluster);
    }
    let cluster = space.map_cluster(&reservation, &[1], Mode::Faulted).unwrap();
    cluster.add_windows(&[0]).unwrap();
    (reservation, cluster)
}

/// Serves a fault from the reference's store.
fn serve<S: Sys>(cluster: &Cluster<S>, model: &Mutex<Model>, fault: &Fault, around: u64) {
    match cluster.plan(fault.page, around) {
        Plan::Resident => {
            model.lock().unwrap().doubtful.insert(fault.page.0);
            cluster.resume(fault.page).unwrap();
        }
        Plan::Absent(range) => {
            let images: Vec<u8> = {
                let mut model = model.lock().unwrap();
                model.came_in(range);
                // What the thread wanted to write counts as written, although it may do so later.
                if fault.write {
                    model.doubtful.insert(fault.page.0);
                }
                (range.start..range.end).flat_map(|page| model.image(page)).collect()
            };
            cluster.install(PageNo(range.start), &images, Reason::of(fault)).unwrap();
        }
    }
}

/// The simulated machine.
pub struct Simulated {
    space: Space<Sim>,
    reservation: Reservation<Sim>,
    cluster: Cluster<Sim>,
    model: Arc<Mutex<Model>>,
}

impl Simulated {
    /// With a fault log that has room for so many faults, or without.
    pub fn new(seed: u64, swapped: bool, log: Option<usize>) -> Simulated {
        let space = Space::on(Sim::new(seed));
        if let Some(room) = log {
            space.sys().allow_log(room);
            // Half of them believe it, half of them check it.
            if seed.is_multiple_of(2) { space.start_log() } else { space.check_log() }.unwrap();
        }
        let (reservation, cluster) = map(&space, swapped);
        Simulated { space, reservation, cluster, model: Arc::default() }
    }

    pub fn space(&self) -> &Space<Sim> {
        &self.space
    }

    pub fn sim(&self) -> &Sim {
        self.space.sys()
    }

    fn touch(&self, around: u64, touch: impl Fn() -> Touch) -> u64 {
        let mut batch = FaultBatch::new(4);
        loop {
            match touch() {
                Touch::Done(word) => return word,
                Touch::Waits => {}
                other => panic!("{other:?}"),
            }
            self.space.poll(&mut batch, None).unwrap();
            for fault in batch.faults() {
                serve(&self.cluster, &self.model, fault, around);
            }
        }
    }
}

impl World for Simulated {
    type Sys = Sim;

    fn cluster(&self) -> &Cluster<Sim> {
        &self.cluster
    }

    fn base(&self) -> Address {
        self.reservation.base()
    }

    fn model(&self) -> Arc<Mutex<Model>> {
        Arc::clone(&self.model)
    }

    fn read_log(&self) -> Reading {
        self.space.read_log()
    }

    fn load(&self, page: PageNo, around: u64) -> u64 {
        self.touch(around, || self.sim().load(page.address(self.base()).0))
    }

    fn store(&self, page: PageNo, around: u64, word: u64) {
        self.touch(around, || self.sim().store(page.address(self.base()).0, word));
        self.model.lock().unwrap().wrote(page.0, word);
    }

    fn store_by_call(&self, page: PageNo, around: u64, word: u64) {
        self.touch(around, || self.sim().store_directly(page.address(self.base()).0, word));
        self.model.lock().unwrap().wrote(page.0, word);
    }

    fn unmap(&self, page: PageNo) -> bool {
        self.sim().unmap_page(page.address(self.base()).0)
    }

    fn races(&self) -> bool {
        self.sim().has_company()
    }
}

/// Real memory, with a thread that serves faults.
pub struct Real {
    space: Space,
    reservation: Reservation,
    cluster: Arc<Cluster>,
    model: Arc<Mutex<Model>>,
    stop: Arc<AtomicBool>,
    server: Option<JoinHandle<()>>,
}

impl Real {
    /// With a fault log, checked by scans unless the windows are swapped, where one can be had, or as the test's environment
    /// says.
    pub fn new(around: u64, swapped: bool, log: bool) -> Option<Real> {
        let space = ground::open()?;
        if log {
            let started = if swapped { space.start_log() } else { space.check_log() };
            if let Err(refusal) = started {
                ground::not_run(&refusal);
                return None;
            }
        }
        let (reservation, cluster) = map(&space, swapped);
        let cluster = Arc::new(cluster);
        let (model, stop) = (Arc::<Mutex<Model>>::default(), Arc::<AtomicBool>::default());
        let server = std::thread::spawn({
            let (space, cluster) = (space.clone(), Arc::clone(&cluster));
            let (model, stop) = (Arc::clone(&model), Arc::clone(&stop));
            move || {
                let mut batch = FaultBatch::new(16);
                while !stop.load(Ordering::Relaxed) {
                    space.poll(&mut batch, None).unwrap();
                    for fault in batch.faults() {
                        serve(&cluster, &model, fault, around);
                    }
                }
            }
        });
        Some(Real { space, reservation, cluster, model, stop, server: Some(server) })
    }
}

impl Drop for Real {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        self.space.wake_poll();
        self.server.take().unwrap().join().unwrap();
    }
}

impl World for Real {
    type Sys = Linux;

    fn cluster(&self) -> &Cluster {
        &self.cluster
    }

    fn base(&self) -> Address {
        self.reservation.base()
    }

    fn model(&self) -> Arc<Mutex<Model>> {
        Arc::clone(&self.model)
    }

    fn read_log(&self) -> Reading {
        self.space.read_log()
    }

    fn load(&self, page: PageNo, _around: u64) -> u64 {
        ground::load(page.address(self.base()).0)
    }

    fn store(&self, page: PageNo, _around: u64, word: u64) {
        ground::store(page.address(self.base()).0, word);
        self.model.lock().unwrap().wrote(page.0, word);
    }

    fn store_by_call(&self, page: PageNo, _around: u64, word: u64) {
        let address = page.address(self.base()).0;
        // In user mode a call may touch only what is in memory.
        ground::load(address);
        ground::store_by_call(address, word);
        self.model.lock().unwrap().wrote(page.0, word);
    }

    fn unmap(&self, _page: PageNo) -> bool {
        false
    }
}
