//! Times of what this crate does, as medians on the machine at hand: entering and leaving a section,
//! serving a fault, the first write to a protected page, scanning. Comparisons are absent. Start at
//! `main`.

use std::hint::black_box;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use stead_memory::{
    Cluster, Fault, FaultBatch, Gate, Mode, Plan, Reason, Scan, Space, close_writers,
};
use stead_model::windows::WindowRun;
use stead_model::{Address, ContainerId, PAGE_SIZE, PageNo, PageRange};

fn main() {
    sections();
    // A virtual machine may get its memory from its host at the first use, which is not ours to measure.
    drop(vec![1u8; 3 << 30]);
    for around in [1, 16, 64] {
        faults(around);
    }
    for page_count in [1, 16, 64, 1024] {
        ahead(page_count);
    }
    protection(false);
    protection(true);
    scans(1, false);
    scans(1, true);
    scans(2, false);
    scans(64, false);
}

fn median(mut samples: Vec<f64>) -> f64 {
    samples.sort_unstable_by(f64::total_cmp);
    samples[samples.len() / 2]
}

fn sections() {
    const ENTRIES: u32 = 1_000_000;
    let per_entry = |threads: u32, body: &(dyn Fn(&Gate) + Sync), gates: &[Gate]| {
        let mut samples = Vec::new();
        for _ in 0..15 {
            let took: Vec<f64> = std::thread::scope(|scope| {
                let running: Vec<_> = (0..threads)
                    .map(|i| {
                        let gate = &gates[i as usize % gates.len()];
                        scope.spawn(move || {
                            let start = Instant::now();
                            body(gate);
                            start.elapsed().as_nanos() as f64 / f64::from(ENTRIES)
                        })
                    })
                    .collect();
                running.into_iter().map(|t| t.join().unwrap()).collect()
            });
            samples.push(took.into_iter().fold(0.0, f64::max));
        }
        median(samples)
    };
    let write = |gate: &Gate| {
        for _ in 0..ENTRIES {
            drop(black_box(gate.enter_write().unwrap()));
        }
    };
    let read = |gate: &Gate| {
        for _ in 0..ENTRIES {
            drop(black_box(gate.enter_read().unwrap()));
        }
    };
    for (name, gate) in
        [("membarrier", Gate::new(ContainerId(1))), ("fenced", Gate::fenced(ContainerId(1)))]
    {
        let gate = [gate];
        for threads in [1, 2] {
            println!(
                "section entry + exit, {name}, {threads} threads: write {:.2} ns, read {:.2} ns",
                per_entry(threads, &write, &gate),
                per_entry(threads, &read, &gate),
            );
        }
    }
    let gate = Gate::new(ContainerId(1));
    let closings = |body: &dyn Fn()| {
        median(
            (0..2001)
                .map(|_| {
                    let start = Instant::now();
                    body();
                    start.elapsed().as_nanos() as f64 / 1000.0
                })
                .collect(),
        )
    };
    let close = || drop(close_writers(&[&gate], None).unwrap());
    let exclusive = || drop(gate.enter_exclusive(None).unwrap());
    println!("closing to writers, nobody inside: {:.2} us", closings(&close));
    println!("exclusive section, nobody inside: {:.2} us", closings(&exclusive));
}

struct Ground {
    space: Space,
    base: Address,
    cluster: Arc<Cluster>,
}

fn ground() -> Ground {
    let space = Space::open().expect("this measures real memory");
    let run = WindowRun { first: 40, count: 1 };
    let reservation = space.reserve(ContainerId(1), run).unwrap();
    let cluster = space.map_cluster(&reservation, &[0], Mode::Faulted).unwrap();
    Ground { space, base: run.base(), cluster: Arc::new(cluster) }
}

impl Ground {
    fn address(&self, page: u64) -> usize {
        PageNo(page).address(self.base).0
    }
}

fn load(address: usize) -> u64 {
    // SAFETY: the address lies in a mapped cluster.
    unsafe { std::ptr::with_exposed_provenance::<u64>(address).read_volatile() }
}

fn store(address: usize, value: u64) {
    // SAFETY: the address lies in a mapped cluster to which no reference exists.
    unsafe { std::ptr::with_exposed_provenance_mut::<u64>(address).write_volatile(value) }
}

fn serve(cluster: &Cluster, fault: &Fault, around: u64, images: &[u8]) {
    match cluster.plan(fault.page, around) {
        Plan::Resident => {
            cluster.resume(fault.page).unwrap();
        }
        Plan::Absent(range) => {
            let images = &images[..range.page_count() as usize * PAGE_SIZE];
            cluster.install(PageNo(range.start), images, Reason::of(fault)).unwrap();
        }
    }
}

fn faults(around: u64) {
    const FAULTS: u64 = 4000;
    let images = vec![1; around as usize * PAGE_SIZE];
    for write in [false, true] {
        let ground = ground();
        let stop = AtomicBool::new(false);
        let mut serving = Vec::new();
        let mut samples = Vec::new();
        std::thread::scope(|scope| {
            let (serving, stop, ground, images) = (&mut serving, &stop, &ground, &images);
            scope.spawn(move || {
                let mut batch = FaultBatch::new(64);
                while !stop.load(Ordering::Relaxed) {
                    ground.space.poll(&mut batch, Some(Duration::from_millis(50))).unwrap();
                    for fault in batch.faults() {
                        let start = Instant::now();
                        serve(&ground.cluster, fault, around, images);
                        serving.push(start.elapsed().as_nanos() as f64 / 1000.0);
                    }
                }
            });
            for i in 0..FAULTS {
                let address = ground.address(i * around);
                let start = Instant::now();
                if write {
                    store(address, 1);
                } else {
                    load(address);
                }
                samples.push(start.elapsed().as_nanos() as f64 / 1000.0);
            }
            stop.store(true, Ordering::Relaxed);
            ground.space.wake_poll();
        });
        let each = median(samples);
        let serving = median(serving);
        println!(
            "{} fault, {around} pages: {each:.1} us for the thread, {:.2} us a page; {serving:.1} us of \
             them in plan and install, {:.2} us a page",
            if write { "write" } else { "read" },
            each / around as f64,
            serving / around as f64,
        );
    }
}

fn ahead(page_count: u64) {
    let ground = ground();
    let mut samples = Vec::new();
    for i in 0..50_000 / page_count {
        let range = PageRange::new(i * page_count, (i + 1) * page_count);
        let start = Instant::now();
        ground.cluster.install_zero(range, Reason::AheadWritable).unwrap();
        samples.push(start.elapsed().as_nanos() as f64 / 1000.0);
    }
    let each = median(samples);
    println!(
        "{page_count} new pages ahead of any fault: {each:.1} us, {:.2} us a page",
        each / page_count as f64
    );
}

fn protection(by_log: bool) {
    const PAGES: u64 = 20_000;
    let ground = ground();
    if by_log && !log(&ground) {
        return;
    }
    ground.cluster.install_zero(PageRange::new(0, PAGES), Reason::Ahead).unwrap();
    let mut dirty = Vec::new();
    for _ in 0..2 {
        let mut first = Vec::new();
        let mut second = Vec::new();
        for samples in [&mut first, &mut second] {
            for page in 0..PAGES {
                let address = ground.address(page);
                let start = Instant::now();
                store(address, 1);
                samples.push(start.elapsed().as_nanos() as f64 / 1000.0);
            }
        }
        println!(
            "first write to a protected page{}: {:.2} us; second: {:.3} us",
            if by_log { ", with the fault log" } else { "" },
            median(first),
            median(second)
        );
        ground.cluster.scan_all(Scan::Protect, &mut dirty).unwrap();
    }
}

/// Starts the fault log, or says why there is none.
fn log(ground: &Ground) -> bool {
    match ground.space.start_log() {
        Ok(()) => true,
        Err(refusal) => {
            println!("not measured: {refusal}");
            false
        }
    }
}

/// One page of `step` is in memory.
fn scans(step: u64, by_log: bool) {
    const PAGES: u64 = 1 << 18;
    let ground = ground();
    let chunk = if step == 1 { 4096 } else { 1 };
    for start in (0..PAGES).step_by(chunk.max(step as usize)) {
        let range = PageRange::new(start, start + chunk as u64);
        ground.cluster.install_zero(range, Reason::Ahead).unwrap();
    }
    if by_log && !log(&ground) {
        return;
    }
    let mut rng = 1u64;
    let mut dirty = Vec::new();
    ground.cluster.scan_all(Scan::Protect, &mut dirty).unwrap();
    for written in [0, 1, 100, 2_600, 10_000, 26_000] {
        let mut samples = Vec::new();
        let mut looks = Vec::new();
        for _ in 0..9 {
            for _ in 0..written {
                rng = rng.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                store(ground.address((rng >> 33) % PAGES / step * step), rng);
            }
            for (scan, samples) in [(Scan::Look, &mut looks), (Scan::Protect, &mut samples)] {
                dirty.clear();
                let start = Instant::now();
                ground.cluster.scan_all(scan, &mut dirty).unwrap();
                samples.push(start.elapsed().as_nanos() as f64 / 1000.0);
            }
        }
        println!(
            "{} of 1 GiB, one page of {step} in memory, {written} pages written: look {:.0} us, protect {:.1} us ({} runs)",
            if by_log { "scan by the fault log" } else { "scan" },
            median(looks),
            median(samples),
            dirty.len()
        );
    }
}
