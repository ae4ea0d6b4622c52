//! Finding written pages by the fault log and by scans: which is used, that it changes with what the program
//! does, and that nothing is lost by it (B5).

mod common;

use std::io::{BufRead, BufReader};
use std::sync::atomic::{AtomicU64, Ordering};

use stead::{__Allowed as Allowed, Options, Persist, Result, Store, Vec, WrittenPages};

const PAGE: usize = 4096;
/// 96 MiB.
const PAGES: usize = 24 * 1024;

#[derive(Persist)]
#[repr(C)]
struct Root<'s> {
    pages: Vec<'s, [u64; PAGE / 8]>,
}

fn open(dir: &std::path::Path, options: &Options) -> (Store, stead::Container<Root<'static>>) {
    let store = Store::open_with(dir, options).unwrap();
    let c = store.container::<Root<'_>>("pages", |tx| Ok(Root { pages: Vec::new(tx) })).unwrap();
    (store, c)
}

fn fill(store: &Store, c: &stead::Container<Root<'static>>) {
    c.exclusive(|root, tx| -> Result<()> {
        for i in 0..PAGES {
            root.pages.push(tx, [i as u64; PAGE / 8])?;
        }
        Ok(())
    })
    .unwrap();
    store.stabilise().unwrap();
}

fn write_some(c: &stead::Container<Root<'static>>, count: usize, word: u64) {
    c.exclusive(|root, tx| -> Result<()> {
        for i in 0..count {
            let page = (word as usize * 7919 + i * 31) % PAGES;
            root.pages.get_mut(tx, page).unwrap()[9] = word;
        }
        Ok(())
    })
    .unwrap();
}

/// Rounds of `count` written pages until the way is as wanted.
fn rounds_until(
    store: &Store,
    c: &stead::Container<Root<'static>>,
    count: usize,
    wanted: impl Fn(&WrittenPages) -> bool,
) -> u64 {
    for round in 1..5000 {
        write_some(c, count, round);
        store.stabilise().unwrap();
        if round % 16 == 0 {
            // The change is made beside the rounds.
            std::thread::sleep(std::time::Duration::from_millis(1));
            if wanted(&store.stat().written_pages) {
                return round;
            }
        }
    }
    panic!("found by {} still", store.stat().written_pages);
}

/// A program that writes few pages between stabilisations comes to a log, one that writes all of them loses it
/// again; what was written is there after each change.
#[test]
fn the_cheaper_way_is_found_and_nothing_is_lost() {
    if std::env::var_os("STEAD_FAULT_LOG").is_some() {
        return common::not_run("STEAD_FAULT_LOG has chosen the way");
    }
    let Some(_alone) = common::alone() else { return };
    let dir = tempfile::tempdir().unwrap();
    let options = Options::new().interval(None);
    let (store, c) = open(dir.path(), &options);
    fill(&store, &c);
    assert!(!matches!(store.stat().written_pages, WrittenPages::FaultLog));
    if let WrittenPages::NoFaultLog(why) = store.stat().written_pages {
        return common::not_run(&why.to_string());
    }
    rounds_until(&store, &c, 1, |way| matches!(way, WrittenPages::FaultLog));
    let before = store.counters().memory;
    write_some(&c, 3, 1_000_001);
    store.stabilise().unwrap();
    write_some(&c, 3, 1_000_002);
    store.stabilise().unwrap();
    let after = store.counters().memory;
    assert!(after.log_readings > before.log_readings);
    rounds_until(&store, &c, PAGES / 2, |way| !matches!(way, WrittenPages::FaultLog));
    write_some(&c, 3, 1_000_003);
    let pages: std::vec::Vec<u64> =
        c.read(|root, _| root.pages.iter().map(|page| page[9]).collect()).unwrap();
    drop(c);
    drop(store);
    let (_store, c) = open(dir.path(), &options);
    let found: std::vec::Vec<u64> =
        c.read(|root, _| root.pages.iter().map(|page| page[9]).collect()).unwrap();
    assert!(found == pages);
}

#[test]
fn a_refused_log_is_said_with_its_reason() {
    if std::env::var_os("STEAD_FAULT_LOG").is_some() {
        return common::not_run("STEAD_FAULT_LOG has chosen the way");
    }
    let Some(_alone) = common::alone() else { return };
    let dir = tempfile::tempdir().unwrap();
    let options =
        Options::new().interval(None).allowed(Allowed { fault_events: false, ..Allowed::ALL });
    let (store, c) = open(dir.path(), &options);
    fill(&store, &c);
    for round in 1..300 {
        write_some(&c, 1, round);
        store.stabilise().unwrap();
    }
    let way = store.stat().written_pages;
    assert!(matches!(way, WrittenPages::NoFaultLog(_)), "{way}");
    assert!(way.to_string().contains("CAP_PERFMON"), "{way}");
    assert_eq!(store.counters().memory.log_readings, 0);
}

/// Pages of [`large_stabilisations_are_whole`]: 32 MiB.
const MOVED: usize = 8 * 1024;
/// What they always add up to.
const TOTAL: u64 = MOVED as u64 * 1000;

/// Moves amounts between pages all over the container, so that each stabilisation finds thousands written and copies
/// most of them with the gates open.
fn move_amounts_for_ever(dir: &std::path::Path) -> ! {
    let (store, c) = open(dir, &Options::new().interval(None));
    let sections = AtomicU64::new(0);
    std::thread::scope(|scope| {
        for thread in 0..2 {
            let (c, sections) = (&c, &sections);
            scope.spawn(move || {
                let mut chance = fastrand::Rng::with_seed(thread);
                loop {
                    c.exclusive(|root, tx| -> Result<()> {
                        for _ in 0..1000 {
                            let (from, to) = (chance.usize(..MOVED), chance.usize(..MOVED));
                            let amount = chance.u64(..100).min(root.pages[from][0]);
                            root.pages.get_mut(tx, from).unwrap()[0] -= amount;
                            root.pages.get_mut(tx, to).unwrap()[0] += amount;
                        }
                        Ok(())
                    })
                    .unwrap();
                    sections.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        let mut seen = 0;
        loop {
            // Each has thousands of pages to find.
            while sections.load(Ordering::Relaxed) < seen + 2 {
                std::thread::yield_now();
            }
            seen = sections.load(Ordering::Relaxed);
            store.stabilise().unwrap();
            println!("\n>{}", store.counters().pages_stabilised);
        }
    })
}

#[test]
fn large_stabilisations_are_whole() {
    if let Some(dir) = common::part() {
        move_amounts_for_ever(dir.as_ref());
    }
    let Some(_alone) = common::alone() else { return };
    let dir = tempfile::tempdir().unwrap();
    {
        let (store, c) = open(dir.path(), &Options::new().interval(None));
        c.exclusive(|root, tx| -> Result<()> {
            for _ in 0..MOVED {
                root.pages.push(tx, [1000; PAGE / 8])?;
            }
            Ok(())
        })
        .unwrap();
        store.stabilise().unwrap();
    }
    let mut chance = fastrand::Rng::with_seed(common::seed("large_stabilisations_are_whole"));
    for _ in 0..4 {
        let pages = kill_after_rounds(dir.path(), chance.usize(2..6), chance.u64(..20_000));
        assert!(pages > 1000, "only {pages} pages were made stable");
        let (_store, c) = open(dir.path(), &Options::new().interval(None));
        let amounts = |root: &Root<'_>| root.pages.iter().map(|page| page[0]).sum::<u64>();
        let (count, total) = c.read(|root, _| (root.pages.len(), amounts(root))).unwrap();
        assert_eq!((count, total), (MOVED, TOTAL));
    }
}

/// Lets a process of [`move_amounts_for_ever`] do so many stabilisations, kills it some microseconds into the next one,
/// and says how many pages it had made stable.
fn kill_after_rounds(dir: &std::path::Path, rounds: usize, more_us: u64) -> u64 {
    let mut child = common::child("large_stabilisations_are_whole", dir.to_str().unwrap())
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let lines = BufReader::new(child.stdout.take().unwrap()).lines().map_while(std::io::Result::ok);
    let pages =
        lines.filter_map(|line| line.strip_prefix('>')?.parse::<u64>().ok()).nth(rounds - 1);
    std::thread::sleep(std::time::Duration::from_micros(more_us));
    child.kill().unwrap();
    child.wait().unwrap();
    pages.expect("the child stabilises until it is killed")
}
