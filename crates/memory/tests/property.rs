//! Random sequences of everything a site does with a cluster, against a plain reference: on the
//! simulated machine, which answers in unusual ways, and on real memory with a thread that serves
//! faults. Contents are right, and what is written since the last scan is reported (catalogue B5).
//! Start at [`Op`].

mod ground;
mod model;

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use model::{Op, Real, Simulated, World, page_of, play};
use proptest::prelude::*;
use proptest::test_runner::TestCaseError;
use stead_memory::sys::sim::{Sim, Touch};
use stead_memory::{FrameError, Mode, Reason, Scan, Space};
use stead_model::{ContainerId, PAGE_SIZE, PageNo, PageRange};

const INDEX_END: u64 = model::INDEX_END;

fn op() -> impl Strategy<Value = Op> {
    let page = 0..INDEX_END;
    let len = 1..12u64;
    prop_oneof![
        4 => page.clone().prop_map(Op::Read),
        1 => (page.clone(), 1..1000u64).prop_map(|(p, v)| Op::WriteByCall(p, v)),
        6 => (page.clone(), 1..1000u64).prop_map(|(p, v)| Op::Write(p, v)),
        2 => (page.clone(), len.clone()).prop_map(|(p, n)| Op::Install(p, n)),
        2 => (page.clone(), len.clone(), any::<bool>()).prop_map(|(p, n, w)| Op::Zero(p, n, w)),
        2 => (page.clone(), len.clone()).prop_map(|(p, n)| Op::Punch(p, n)),
        2 => (page.clone(), len.clone(), 1..1000u64).prop_map(|(p, n, v)| Op::SiteWrite(p, n, v)),
        1 => (page.clone(), len.clone()).prop_map(|(p, n)| Op::Mark(p, n)),
        1 => (page.clone(), len.clone()).prop_map(|(p, n)| Op::Protect(p, n)),
        1 => page.clone().prop_map(Op::Resume),
        3 => page.clone().prop_map(Op::Unmap),
        2 => Just(Op::Look),
        2 => Just(Op::Stabilise),
        2 => Just(Op::StabiliseStill),
        2 => (page, len).prop_map(|(p, n)| Op::StabilisePart(p, n)),
    ]
}

fn around() -> impl Strategy<Value = u64> {
    prop_oneof![Just(1), Just(4), Just(16)]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1000, ..ProptestConfig::default() })]

    #[test]
    fn the_simulated_machine_agrees_with_the_reference(
        ops in prop::collection::vec(op(), 1..60),
        around in around(),
        seed in any::<u64>(),
        swapped_windows in any::<bool>(),
        log in prop_oneof![Just(None), Just(Some(0)), Just(Some(5)), Just(Some(1000))],
    ) {
        let world = Simulated::new(seed, swapped_windows, log);
        play(&world, &ops, around)?;
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    #[test]
    fn real_memory_agrees_with_the_reference(
        ops in prop::collection::vec(op(), 1..60),
        around in around(),
        swapped_windows in any::<bool>(),
        log in any::<bool>(),
    ) {
        let Some(world) = Real::new(around, swapped_windows, log) else { return Ok(()) };
        play(&world, &ops, around)?;
    }
}

#[test]
fn no_write_is_lost_between_two_system_calls() -> Result<(), TestCaseError> {
    for seed in 1..=300 {
        for log in [None, Some(3), Some(1000)] {
            assert!(model::race(seed, log)? > 50);
        }
    }
    Ok(())
}

/// Threads count in pages of their own while another copies what each protecting scan reports, and
/// a third takes part by installing. At the end the copies are what the threads wrote.
#[test]
fn no_write_of_a_running_thread_is_lost() {
    const PAGES: u64 = 600;
    let Some(world) = Real::new(16, false, false) else { return };
    let cluster = world.cluster();
    let stop = AtomicBool::new(false);
    let counts: Vec<AtomicU64> = (0..PAGES).map(|_| AtomicU64::new(0)).collect();
    let copies: std::sync::Mutex<Vec<u64>> = std::sync::Mutex::new(vec![0; PAGES as usize]);
    let zero = |page: PageNo| page.address(world.base()).0;
    let round = || {
        let mut dirty = Vec::new();
        cluster.scan_dirty(PageRange::new(0, PAGES), Scan::Protect, &mut dirty).unwrap();
        let mut buf = vec![0; PAGE_SIZE];
        for page in dirty.iter().flat_map(|run| run.pages()) {
            cluster.read_frames(page, &mut buf).unwrap();
            copies.lock().unwrap()[page.0 as usize] =
                u64::from_ne_bytes(buf[..8].try_into().unwrap());
        }
        dirty.iter().map(|run| run.page_count()).sum::<u64>()
    };
    let mut rounds = 0;
    std::thread::scope(|scope| {
        for thread in 0..2 {
            let (stop, counts) = (&stop, &counts);
            scope.spawn(move || {
                let mut rng = fastrand::Rng::with_seed(thread);
                while !stop.load(Ordering::Relaxed) {
                    let page = rng.u64(..PAGES / 2) * 2 + thread;
                    let count = counts[page as usize].load(Ordering::Relaxed) + 1;
                    ground::store(zero(PageNo(page)), count);
                    counts[page as usize].store(count, Ordering::Relaxed);
                }
            });
        }
        scope.spawn(|| {
            // Stale images, all too late or overtaken: they must never replace what was written.
            let images = vec![0; 8 * PAGE_SIZE];
            let mut rng = fastrand::Rng::with_seed(9);
            while !stop.load(Ordering::Relaxed) {
                let first = PageNo(rng.u64(..PAGES - 8));
                cluster.install(first, &images, Reason::Ahead).unwrap();
            }
        });
        let end = Instant::now() + Duration::from_secs(3);
        while Instant::now() < end {
            round();
            rounds += 1;
        }
        stop.store(true, Ordering::Relaxed);
    });
    round();
    assert_eq!(round(), 0, "nobody writes any more");
    let copies = copies.into_inner().unwrap();
    for (page, count) in counts.iter().enumerate() {
        let count = count.load(Ordering::Relaxed);
        assert_eq!(ground::load(zero(PageNo(page as u64))), count, "memory of page {page}");
        assert_eq!(copies[page], count, "copy of page {page}");
    }
    assert!(rounds > 10 && counts.iter().all(|c| c.load(Ordering::Relaxed) > 0));
}

/// Memory runs out in the middle of installs and site writes: what was there stays, and trying again
/// when there is memory works.
#[test]
fn short_memory_harms_nothing() -> Result<(), TestCaseError> {
    for seed in 1..200 {
        let mut rng = fastrand::Rng::with_seed(seed);
        let world = Simulated::new(seed, false, None);
        let images = vec![3; 10 * PAGE_SIZE];
        for limit in [0, 3, 7] {
            model::step(&world, &Op::Write(rng.u64(..INDEX_END), 5), 4)?;
            world.sim().limit_frames(Some(limit));
            let first = PageNo(2_000_000 + 100 * limit);
            let range = PageRange::new(first.0, first.0 + 10);
            let cluster = world.cluster();
            let result = match rng.u8(..3) {
                0 => cluster.install(first, &images, Reason::Ahead).map(drop),
                1 => cluster.install_zero(range, Reason::Ahead).map(drop),
                _ => cluster.write_frames(first, &images),
            };
            let Err(FrameError::NoMemory { page, .. }) = result else { panic!("{result:?}") };
            prop_assert!((range.start..range.end).contains(&page.0));
            prop_assert!(cluster.resident_page_count() > 0 && !cluster.is_resident(page));
            world.sim().limit_frames(None);
            cluster.install(first, &images, Reason::Ahead).unwrap();
            prop_assert!(range.pages().all(|page| cluster.is_resident(page)));
            cluster.punch(range).unwrap();
        }
        model::step(&world, &Op::Stabilise, 1)?;
        world.model().lock().unwrap().assert_all_stable();
    }
    Ok(())
}

/// A scan fails after it has protected pages: what it would have reported is not lost.
#[test]
fn a_failed_scan_loses_nothing() -> Result<(), TestCaseError> {
    for seed in 1..200 {
        let mut rng = fastrand::Rng::with_seed(seed);
        let world = Simulated::new(seed, false, None);
        let by_log = seed % 2 == 0;
        if by_log {
            world.sim().allow_log(1000);
            world.space().start_log().unwrap();
            model::step(&world, &Op::Stabilise, 4)?;
        }
        for _ in 0..20 {
            model::step(&world, &Op::Write(rng.u64(..INDEX_END), rng.u64(1..)), 4)?;
        }
        let cluster = world.cluster();
        let mut out = vec![PageRange::new(0, 1)];
        world.sim().fail_scan(if by_log { 0 } else { rng.u32(..3) });
        cluster.scan_all(Scan::Protect, &mut out).unwrap_err();
        prop_assert_eq!(&out, &[PageRange::new(0, 1)]);
        // From now on everything in memory counts as written, once.
        out.clear();
        cluster.scan_all(Scan::Look, &mut out).unwrap();
        let mut resident = Vec::new();
        cluster.resident_ranges(&mut resident);
        let pages = |runs: &[PageRange]| -> Vec<PageNo> {
            runs.iter().flat_map(|run| run.pages()).collect()
        };
        prop_assert_eq!(pages(&out), pages(&resident));
        world.model().lock().unwrap().doubt_all();
        model::step(&world, &Op::Stabilise, 1)?;
        world.model().lock().unwrap().assert_all_stable();
        out.clear();
        cluster.scan_all(Scan::Look, &mut out).unwrap();
        prop_assert_eq!(out, []);
    }
    Ok(())
}

#[test]
fn a_resident_cluster_reports_what_the_kernel_added() {
    let space = Space::on(Sim::new(0));
    let sim = space.sys().clone();
    let run = ground::fresh_windows(1);
    let reservation = space.reserve(ContainerId::SYSTEM, run).unwrap();
    let cluster = space.map_cluster(&reservation, &[0], Mode::Resident).unwrap();
    let at = |page: u64| PageNo(page).address(reservation.base()).0;
    let image = vec![1; PAGE_SIZE];
    cluster.install(PageNo(2), &image, Reason::Ahead).unwrap();
    assert_eq!(sim.load(at(2)), Touch::Done(u64::from_ne_bytes([1; 8])));
    assert_eq!(sim.load(at(7)), Touch::Done(0));
    assert_eq!(sim.store(at(9), 4), Touch::Done(4));
    let mut dirty = Vec::new();
    cluster.scan_all(Scan::Protect, &mut dirty).unwrap();
    assert_eq!(dirty, ground::ranges(&[(7, 8), (9, 10)]));
    dirty.clear();
    cluster.scan_all(Scan::Protect, &mut dirty).unwrap();
    assert_eq!(dirty, []);
}

#[test]
fn the_reference_sees_its_own_pages() {
    // The three groups straddle a block's border, a window's border, and lie far away.
    let pages: Vec<u64> = (0..INDEX_END).map(|i| page_of(i).0).collect();
    assert!(pages.is_sorted() && pages.windows(2).all(|p| p[0] < p[1]));
    assert!(pages.contains(&511) && pages.contains(&512));
    let border = stead_model::PAGES_PER_WINDOW;
    assert!(pages.contains(&(border - 1)) && pages.contains(&border));
}
