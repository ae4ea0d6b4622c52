//! Clusters on real memory: faults, installs, dirty pages, what costs what (catalogue A2, A7, B5, D1).

mod ground;

use std::time::Duration;

use ground::{
    Ground, fresh_windows, load, open, ranges, serve_until_quiet, stamp, stamp_word, store,
};
use stead_memory::{Installed, Mode, Plan, Reason, ReserveError, Scan};
use stead_model::{ContainerId, PAGE_SIZE, PAGES_PER_WINDOW, PageNo, PageRange};

#[test]
fn a_touch_asks_for_one_page_and_neighbours_are_counted_apart() {
    let Some(ground) = Ground::served(1, 16, stamp) else { return };
    let page = 1_000_003;
    assert_eq!(load(ground.address(page) + 8), stamp_word(page));
    let counters = ground.space.counters();
    assert_eq!((counters.pages_asked, counters.pages_ahead), (1, 15));
    assert_eq!(counters.faults_missing, 1);
    // The neighbours are there already.
    let block = page & !15;
    for neighbour in block..block + 16 {
        assert_eq!(load(ground.address(neighbour)), stamp_word(neighbour));
    }
    assert_eq!(ground.space.counters().pages_asked, 1);
    assert_eq!(ground.dirty(Scan::Look), []);
}

#[test]
fn dirty_pages_are_exact() {
    let Some(ground) = Ground::served(1, 16, stamp) else { return };
    // Read, then written; written at once; read only; written by a system call.
    load(ground.address(3));
    store(ground.address(3), 1);
    store(ground.address(40), 2);
    load(ground.address(80));
    store(ground.address(41), 3);
    assert_eq!(ground.dirty(Scan::Look), ranges(&[(3, 4), (40, 42)]));
    assert_eq!(ground.dirty(Scan::Protect), ranges(&[(3, 4), (40, 42)]));
    assert_eq!(ground.dirty(Scan::Look), []);
    store(ground.address(41) + 4088, 4);
    assert_eq!(ground.dirty(Scan::Look), ranges(&[(41, 42)]));
    ground.cluster.protect(PageRange::new(0, 100)).unwrap();
    assert_eq!(ground.dirty(Scan::Look), []);
    assert_eq!(load(ground.address(41) + 4088), 4);
}

#[test]
fn frames_are_read_and_written_without_touching_the_mapping() {
    let Some(ground) = Ground::served(1, 1, stamp) else { return };
    let cluster = &ground.cluster;
    let mut buf = vec![7; 3 * PAGE_SIZE];
    store(ground.address(10), 99);
    cluster.read_frames(PageNo(9), &mut buf).unwrap();
    assert!(buf[..PAGE_SIZE].iter().all(|b| *b == 0));
    assert_eq!(buf[PAGE_SIZE..PAGE_SIZE + 8], 99u64.to_ne_bytes());
    // Reading a hole left it one: the touch asks.
    assert!(!cluster.is_resident(PageNo(9)));
    assert_eq!(load(ground.address(9)), stamp_word(9));
    ground.dirty(Scan::Protect);
    cluster.write_frames(PageNo(9), &vec![1; PAGE_SIZE]).unwrap();
    cluster.write_frames(PageNo(200), &vec![2; PAGE_SIZE]).unwrap();
    assert_eq!(ground.dirty(Scan::Protect), ranges(&[(9, 10), (200, 201)]));
    assert_eq!(load(ground.address(9)), u64::from_ne_bytes([1; 8]));
    // Page 200 is in memory but not mapped: a minor fault, which never loses the page's mark.
    assert_eq!(load(ground.address(200)), u64::from_ne_bytes([2; 8]));
    // With huge pages for memory files, page 9 was another such.
    assert!(ground.space.counters().faults_minor >= 1);
}

#[test]
fn an_install_keeps_newer_contents() {
    let Some(ground) = Ground::served(1, 1, stamp) else { return };
    store(ground.address(5), 77);
    let old = vec![0xee; 4 * PAGE_SIZE];
    let cluster = &ground.cluster;
    assert_eq!(cluster.install(PageNo(4), &old, Reason::Ahead).unwrap(), Installed::Raced);
    assert_eq!(load(ground.address(5)), 77);
    assert_eq!(load(ground.address(4)), u64::from_ne_bytes([0xee; 8]));
    assert_eq!(load(ground.address(7)), u64::from_ne_bytes([0xee; 8]));
    let again = cluster.install(PageNo(4), &old, Reason::Ahead).unwrap();
    assert_eq!(again, Installed::AlreadyThere);
    assert_eq!(load(ground.address(5)), 77);
    assert_eq!(ground.dirty(Scan::Look), ranges(&[(5, 6)]));
    let new = cluster.install_zero(PageRange::new(8, 12), Reason::AheadWritable).unwrap();
    assert_eq!(new, Installed::Done);
    assert_eq!(ground.dirty(Scan::Look), ranges(&[(5, 6), (8, 12)]));
    assert_eq!(ground.space.counters().raced, 2);
}

#[test]
fn a_punched_page_is_asked_for_again() {
    let Some(ground) = Ground::served(1, 16, stamp) else { return };
    store(ground.address(20), 1);
    store(ground.address(21), 1);
    ground.cluster.punch(PageRange::new(20, 21)).unwrap();
    assert_eq!(ground.dirty(Scan::Look), ranges(&[(21, 22)]));
    assert_eq!(load(ground.address(20)), stamp_word(20));
    assert_eq!(load(ground.address(21)), 1);
    // A hole through a read-only touch came back unwritten.
    assert_eq!(ground.dirty(Scan::Look), ranges(&[(21, 22)]));
}

#[test]
fn a_large_container_costs_what_a_small_one_costs() {
    let cost = |windows: u32| {
        let ground = Ground::served(windows, 16, stamp)?;
        let page = u64::from(windows) * PAGES_PER_WINDOW - 1;
        assert_eq!(load(ground.address(page)), stamp_word(page));
        assert_eq!(ground.dirty(Scan::Protect), []);
        let mut counters = ground.space.counters();
        counters.windows_mapped = 0;
        Some(counters)
    };
    let Some(small) = cost(1) else { return };
    // Two windows are 128 GiB, sixteen 1 TiB.
    assert_eq!(cost(2).unwrap(), small);
    assert_eq!(cost(16).unwrap(), small);
}

#[test]
fn scattered_windows_make_one_cluster() {
    let Some(space) = open() else { return };
    let reservation = space.reserve(ContainerId(9), fresh_windows(6)).unwrap();
    let a = space.map_cluster(&reservation, &[1, 2, 5], Mode::Faulted).unwrap();
    let b = space.map_cluster(&reservation, &[0], Mode::Faulted).unwrap();
    a.add_windows(&[4]).unwrap();
    assert_eq!(a.windows(), [1, 2, 5, 4]);
    let page = |window: u64, page: u64| PageNo(window * PAGES_PER_WINDOW + page);
    let last = page(2, 0).0 - 1;
    let mut images = vec![0; 2 * PAGE_SIZE];
    stamp(PageNo(last), &mut images[..PAGE_SIZE]);
    stamp(PageNo(last + 1), &mut images[PAGE_SIZE..]);
    // Over the border between two windows, in addresses adjacent.
    a.install(PageNo(last), &images, Reason::Ahead).unwrap();
    a.install(page(5, 7), &images, Reason::AheadWritable).unwrap();
    a.install(page(4, 7), &images, Reason::AheadWritable).unwrap();
    b.install(page(0, 7), &images, Reason::AheadWritable).unwrap();
    let at = |page: PageNo| load(page.address(reservation.base()).0);
    assert_eq!(at(PageNo(last)), stamp_word(last));
    assert_eq!(at(PageNo(last + 1)), stamp_word(last + 1));
    assert_eq!(at(page(5, 7)), stamp_word(last));
    store(PageNo(last).address(reservation.base()).0, 1);
    let mut dirty = Vec::new();
    a.scan_all(Scan::Protect, &mut dirty).unwrap();
    let run = |p: PageNo, n: u64| (p.0, p.0 + n);
    assert_eq!(dirty, ranges(&[run(PageNo(last), 1), run(page(4, 7), 2), run(page(5, 7), 2)]));
    let mut resident = Vec::new();
    a.resident_ranges(&mut resident);
    let expected = [run(PageNo(last), 1), run(PageNo(last + 1), 1), run(page(4, 7), 2)];
    assert_eq!(resident[..3], ranges(&expected));
    assert_eq!(a.resident_page_count(), 6);
    drop(a);
    // Its windows are free for another, which has nothing of it.
    let c = space.map_cluster(&reservation, &[5], Mode::Faulted).unwrap();
    assert!(!c.is_resident(page(5, 7)));
    assert_eq!(at(page(0, 7)), stamp_word(last));
}

#[test]
fn a_resident_cluster_never_faults() {
    let Some(space) = open() else { return };
    let reservation = space.reserve(ContainerId::SYSTEM, fresh_windows(1)).unwrap();
    let cluster = space.map_cluster(&reservation, &[0], Mode::Resident).unwrap();
    let mut image = vec![0; PAGE_SIZE];
    stamp(PageNo(3), &mut image);
    cluster.install(PageNo(3), &image, Reason::Ahead).unwrap();
    // Nobody polls: a fault would hang here.
    assert_eq!(load(PageNo(3).address(reservation.base()).0), stamp_word(3));
    assert_eq!(load(PageNo(4).address(reservation.base()).0), 0);
    store(PageNo(70_000).address(reservation.base()).0, 1);
    let mut dirty = Vec::new();
    cluster.scan_all(Scan::Protect, &mut dirty).unwrap();
    // Page 3 is as it was installed. Page 4 is new, and may be reported.
    assert!(dirty.contains(&PageRange::new(70_000, 70_001)));
    assert!(dirty.iter().all(|r| !(r.start..r.end).contains(&3)), "{dirty:?}");
    dirty.clear();
    store(PageNo(3).address(reservation.base()).0 + 8, 1);
    cluster.scan_all(Scan::Protect, &mut dirty).unwrap();
    assert_eq!(dirty, ranges(&[(3, 4)]));
}

#[test]
fn an_occupied_range_is_named() {
    let Some(space) = open() else { return };
    let run = fresh_windows(2);
    let reservation = space.reserve(ContainerId(1), run).unwrap();
    let error = space.reserve(ContainerId(2), run).unwrap_err();
    let ReserveError::Occupied { by, .. } = &error else { panic!("{error}") };
    assert!(by.starts_with(&format!("{:x}-", run.base().0)), "{by}");
    // A cluster keeps its addresses when the reservation's handle is gone.
    let cluster = space.map_cluster(&reservation, &[1], Mode::Faulted).unwrap();
    drop(reservation);
    assert!(space.reserve(ContainerId(2), run).is_err());
    drop(cluster);
    drop(space.reserve(ContainerId(2), run).unwrap());
}

#[test]
fn more_than_512_runs_are_all_found() {
    let Some(ground) = Ground::served(1, 1, stamp) else { return };
    let zeros = PageRange::new(0, 4096);
    ground.cluster.install_zero(zeros, Reason::Ahead).unwrap();
    let written: Vec<u64> = (0..1500).map(|i| 2 * i + 1).collect();
    for scan in [Scan::Look, Scan::Protect] {
        for page in &written {
            store(ground.address(*page), 1);
        }
        let expected: Vec<_> = written.iter().map(|p| PageRange::new(*p, p + 1)).collect();
        assert_eq!(ground.dirty(scan), expected);
    }
    assert_eq!(ground.dirty(Scan::Look), []);
}

#[test]
fn plans_stay_within_their_block() {
    let Some(ground) = Ground::unserved(1) else { return };
    let cluster = &ground.cluster;
    assert_eq!(cluster.plan(PageNo(37), 16), Plan::Absent(PageRange::new(32, 48)));
    cluster.install_zero(PageRange::new(35, 36), Reason::Ahead).unwrap();
    cluster.install_zero(PageRange::new(40, 41), Reason::Ahead).unwrap();
    assert_eq!(cluster.plan(PageNo(37), 16), Plan::Absent(PageRange::new(36, 40)));
    assert_eq!(cluster.plan(PageNo(37), 1), Plan::Absent(PageRange::new(37, 38)));
    assert_eq!(cluster.plan(PageNo(35), 16), Plan::Resident);
    let within = PageRange::new(35, 45);
    assert_eq!(cluster.next_absent(within), Some(PageRange::new(36, 40)));
    assert_eq!(cluster.next_absent(PageRange::new(40, 45)), Some(PageRange::new(41, 45)));
    assert_eq!(cluster.next_absent(PageRange::new(35, 36)), None);
}

#[test]
fn two_threads_on_one_page_both_go_on() {
    let Some(ground) = Ground::unserved(1) else { return };
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..4)
            .map(|i| {
                scope.spawn({
                    let g = &ground;
                    move || load(g.address(8 + i / 2))
                })
            })
            .collect();
        let mut served = 0;
        while threads.iter().any(|t| !t.is_finished()) {
            served += serve_until_quiet(&ground, 16, Duration::from_millis(20));
        }
        assert!(served >= 1);
        let words: Vec<u64> = threads.into_iter().map(|t| t.join().unwrap()).collect();
        assert_eq!(words, [8, 8, 9, 9].map(stamp_word));
    });
}

#[test]
fn somebody_waiting_for_faults_can_be_woken() {
    let Some(ground) = Ground::unserved(1) else { return };
    let mut batch = stead_memory::FaultBatch::new(4);
    ground.space.wake_poll();
    ground.space.poll(&mut batch, None).unwrap();
    assert!(batch.woken() && batch.faults().is_empty());
    ground.space.poll(&mut batch, Some(Duration::ZERO)).unwrap();
    assert!(!batch.woken());
    std::thread::scope(|scope| {
        scope.spawn(|| ground.space.wake_poll());
        ground.space.poll(&mut batch, None).unwrap();
    });
    assert!(batch.woken());
}

/// Bringing in much at once, and scanning it, lets faults of the same cluster pass in between.
#[test]
fn faults_pass_what_takes_long() {
    const PAGES: u64 = 100_000;
    let Some(ground) = Ground::served(1, 1, stamp) else { return };
    let touched = std::thread::scope(|scope| {
        let cluster = &ground.cluster;
        let long = scope.spawn(|| {
            cluster.install_zero(PageRange::new(0, PAGES), Reason::Ahead).unwrap();
            let mut dirty = Vec::new();
            for _ in 0..20 {
                cluster.scan_all(Scan::Protect, &mut dirty).unwrap();
            }
            dirty
        });
        let mut touched = Vec::new();
        while !long.is_finished() {
            let page = 2 * PAGES + touched.len() as u64 * 40;
            assert_eq!(load(ground.address(page)), stamp_word(page));
            touched.push(page);
        }
        assert_eq!(long.join().unwrap(), []);
        touched.len() as u64
    });
    assert!(touched > 2, "{touched}");
    assert_eq!(ground.cluster.resident_page_count(), PAGES + touched);
    assert_eq!(ground.space.counters().pages_zeroed, PAGES);
}
