//! The tests of the gate find a gate that is left out, and a barrier that is; those of the fault log find a
//! loss that is left out, and names that are forgotten too late.
#![cfg(feature = "planted")]

mod ground;
mod stress;

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use stead_memory::planted::{self, Bug};
use stead_memory::sys::sim::{Sim, Touch};
use stead_memory::{Gate, LogUse, Mode, Reason, Scan, Space};
use stead_model::{ContainerId, PAGE_SIZE, PageNo, PageRange};

/// The switch is one for the whole process.
fn plant(bug: Bug) -> MutexGuard<'static, ()> {
    static TURN: Mutex<()> = Mutex::new(());
    let turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    planted::set(bug);
    turn
}

fn races() -> [bool; 4] {
    stress::RACES.map(|(entering, closing)| {
        let gate = Gate::new(ContainerId(1));
        stress::race(&gate, entering, closing, Duration::from_secs(20))
    })
}

#[test]
fn planted_gate_left_out_is_found() {
    let _turn = plant(Bug::GateLeftOut);
    let torn = stress::run(Gate::new, Duration::from_secs(20));
    let found = races();
    planted::set(Bug::None);
    assert!(torn.is_err(), "sections entered closed gates, and nothing was seen torn");
    assert_eq!(found, [true; 4]);
}

#[test]
fn planted_barrier_left_out_is_found() {
    if std::thread::available_parallelism().map_or(1, usize::from) < 2 {
        eprintln!("NOT RUN: two threads have to run at once");
        return;
    }
    let _turn = plant(Bug::BarrierLeftOut);
    let [write, exclusive @ ..] = races();
    planted::set(Bug::None);
    assert!(write, "a writer and a stabilisation were never in at once");
    // An exclusive section looks twice, so that each of these is seldom in at the wrong moment.
    assert!(exclusive.contains(&true), "nobody and an exclusive section were in at once");
}

/// Writes that leave no record: after many that fill the rings, and by a call. Whether the next scan finds them.
fn unrecorded_writes_are_found() -> Option<[bool; 2]> {
    let ground = ground::Ground::served(1, 16, ground::stamp)?;
    if let Err(refusal) = ground.space.start_log() {
        ground::not_run(&refusal);
        return None;
    }
    assert_eq!(ground.space.log_use(), LogUse::Log);
    let reports = |page: u64| {
        let dirty = ground.dirty(Scan::Protect);
        dirty.iter().any(|run| (run.start..run.end).contains(&page))
    };
    // In different blocks, so that none is met for another's sake, and where the sweep does not come by.
    let [busy, full, called] = [35_001, 40_001, 45_001];
    for page in (1..50_000).step_by(16).chain([busy, full, called]) {
        ground::load(ground.address(page));
    }
    ground.dirty(Scan::Protect);
    ground.dirty(Scan::Protect);
    let processors = std::thread::available_parallelism().map_or(1, usize::from);
    for _ in 0..processors * 20_000 {
        ground::store(ground.address(busy), 1);
        let range = stead_model::PageRange::new(busy, busy + 1);
        ground.cluster.protect(range).unwrap();
    }
    ground::store(ground.address(full), 1);
    let found_full = reports(full);
    ground.dirty(Scan::Protect);
    ground.dirty(Scan::Protect);
    ground::store_by_call(ground.address(called), 1);
    Some([found_full, reports(called)])
}

#[test]
fn planted_loss_left_out_is_found() {
    let _turn = plant(Bug::None);
    let Some(found) = unrecorded_writes_are_found() else { return };
    assert_eq!(found, [true, true]);
    planted::set(Bug::LossLeftOut);
    let found = unrecorded_writes_are_found();
    planted::set(Bug::None);
    assert_eq!(found, Some([false, false]), "losses were left out, and nothing was missing");
}

/// Pages are written, found behind closed gates, and written again. Whether the second writes are found; and how many
/// pages that were only read were taken for written.
fn writes_after_a_search_behind_gates_are_found() -> Option<(bool, u64)> {
    let ground = ground::Ground::served(1, 16, ground::stamp)?;
    if let Err(refusal) = ground.space.start_log() {
        ground::not_run(&refusal);
        return None;
    }
    let pages: Vec<u64> = (0..40).map(|i| 1000 + i * 1111).collect();
    for page in &pages {
        ground::load(ground.address(*page));
    }
    ground.dirty(Scan::Protect);
    let search = || {
        let (mut found, mut unprotected) = (Vec::new(), Vec::new());
        let reading = ground.space.read_log();
        ground.cluster.scan_still(reading, &mut found, &mut unprotected).unwrap();
        let count = |runs: &[PageRange]| runs.iter().map(|run| run.page_count()).sum::<u64>();
        let counts = (count(&found), count(&unprotected));
        ground.cluster.protect_found(&unprotected);
        counts
    };
    let write = || pages.iter().for_each(|page| ground::store(ground.address(*page), 1));
    search();
    // Pages that are read for the first time are named, and looked at.
    for i in 0..40 {
        ground::load(ground.address(60_000 + i * 555));
    }
    let (read, _) = search();
    // What was installed unwritten is looked at once; from then on the log is believed.
    write();
    assert_eq!(search(), (40, 0));
    let calls = ground.space.counters().calls_scan;
    write();
    assert_eq!(search(), (40, 40));
    // The sweep alone looks at anything.
    assert!(ground.space.counters().calls_scan - calls <= 2);
    write();
    Some((search().0 == 40, read))
}

#[test]
fn planted_pages_left_unprotected_are_found() {
    let _turn = plant(Bug::None);
    let Some(found) = writes_after_a_search_behind_gates_are_found() else { return };
    assert_eq!(found, (true, 0));
    planted::set(Bug::FoundUnprotected);
    let found = writes_after_a_search_behind_gates_are_found();
    planted::set(Bug::None);
    assert_eq!(found, Some((false, 0)), "pages stayed unprotected, and no write was lost");
}

/// A page is written just after a scan has looked at it. Whether the next scan finds it.
fn a_write_behind_the_look_is_found() -> bool {
    const PAGE: u64 = 15 * 512;
    let space = Space::on(Sim::new(0));
    let sim = space.sys().clone();
    sim.allow_log(100);
    space.start_log().unwrap();
    let reservation = space.reserve(ContainerId(1), ground::fresh_windows(1)).unwrap();
    let cluster = space.map_cluster(&reservation, &[0], Mode::Faulted).unwrap();
    for block in 0..30 {
        cluster.install(PageNo(block * 512), &[0; PAGE_SIZE], Reason::Ahead).unwrap();
    }
    let reports = || {
        let mut dirty = Vec::new();
        cluster.scan_all(Scan::Protect, &mut dirty).unwrap();
        dirty.iter().any(|run| (run.start..run.end).contains(&PAGE))
    };
    assert!(!reports());
    let address = PageNo(PAGE).address(reservation.base()).0;
    assert_eq!(sim.store(address, 1), Touch::Done(1));
    // The log is read, the page's block is looked at, and then:
    let mut calls = 0;
    sim.meanwhile(move |sim| {
        calls += 1;
        if calls == 3 {
            assert_eq!(sim.store(address, 2), Touch::Done(2));
        }
    });
    assert!(reports());
    sim.meanwhile(|_| {});
    reports()
}

#[test]
fn planted_names_forgotten_late_are_found() {
    let _turn = plant(Bug::None);
    assert!(a_write_behind_the_look_is_found());
    planted::set(Bug::NamesForgottenLate);
    let found = a_write_behind_the_look_is_found();
    planted::set(Bug::None);
    assert!(!found, "names were forgotten after the scan, and no write was lost");
}
