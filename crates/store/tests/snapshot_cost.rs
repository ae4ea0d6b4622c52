//! What snapshots cost, counted: it must not grow with what is stored. `STEAD_SNAPSHOT_GIB=n` measures a store of that
//! size on a real file under `STEAD_SNAPSHOT_DIR` (or the directory for temporary files) and prints a table:
//! `STEAD_SNAPSHOT_GIB=10 cargo test --release -p stead-store --test snapshot_cost -- --nocapture`.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use stead_model::{ContainerId, PAGE_SIZE, PageId, PageNo};
use stead_store::sim::{CrashMedium, SplitMix};
use stead_store::{Batch, CreateOptions, Store};

/// What is stored.
#[derive(Clone, Copy)]
struct Stored {
    pages: u64,
    containers: u64,
}

impl Stored {
    fn push(self, batch: &mut Batch, page: u64, value: u64) {
        let container = ContainerId((page % self.containers) as u32);
        let id = PageId { container, page: PageNo(page / self.containers) };
        batch.push(id, |bytes| {
            bytes.fill(0);
            bytes[..8].copy_from_slice(&value.to_le_bytes());
            bytes[8] = 1;
        });
    }

    fn fill(self, store: &Store) {
        let mut batch = store.batch();
        for page in 0..self.pages {
            self.push(&mut batch, page, page);
            if batch.pages() == 4096 || page + 1 == self.pages {
                store.commit(&mut batch).unwrap();
                while store.maintain().unwrap().more {}
            }
        }
        store.checkpoint().unwrap();
    }

    /// Changes some pages, by chance.
    fn change(self, store: &Store, random: &mut SplitMix, count: u64) {
        let mut batch = store.batch();
        for _ in 0..count {
            self.push(&mut batch, random.below(self.pages), random.next_u64());
        }
        store.commit(&mut batch).unwrap();
    }
}

/// Bytes written and read, and seconds.
#[derive(Debug)]
struct Cost {
    written: u64,
    read: u64,
    seconds: f64,
}

fn cost(store: &Store, verb: impl FnOnce()) -> Cost {
    let before = store.stat().counters;
    let start = Instant::now();
    verb();
    let seconds = start.elapsed().as_secs_f64();
    let after = store.stat().counters;
    Cost {
        written: after.upkeep_bytes - before.upkeep_bytes,
        read: after.read_bytes - before.read_bytes,
        seconds,
    }
}

/// All the verbs in turn, each behind a change of `changed` pages but for those that say so.
fn costs(store: &Store, stored: Stored, changed: u64) -> Vec<(&'static str, Cost)> {
    let mut random = SplitMix(1);
    let mut costs = Vec::new();
    let mut run = |what, changed, verb: &dyn Fn()| {
        if changed > 0 {
            stored.change(store, &mut random, changed);
        }
        costs.push((what, cost(store, verb)));
    };
    run("checkpoint, to compare", changed, &|| store.checkpoint().unwrap());
    run(UNCHANGED, 0, &|| drop(store.take_snapshot("one").unwrap()));
    run("take", changed, &|| drop(store.take_snapshot("two").unwrap()));
    let branch = ContainerId(1000);
    run("branch", changed, &|| store.branch("two", ContainerId(1), branch).unwrap());
    run("go back", changed, &|| drop(store.go_back("one").unwrap()));
    run("drop", changed, &|| store.drop_snapshot("two").unwrap());
    run("drop the last", changed, &|| store.drop_snapshot("one").unwrap());
    assert!(store.snapshots().is_empty());
    costs
}

const UNCHANGED: &str = "take, with nothing changed since the last checkpoint";

#[test]
fn what_snapshots_cost_does_not_grow_with_the_store() {
    // Thirty times as much, in maps of as many levels.
    let all = [2_000, 60_000].map(|pages| {
        let stored = Stored { pages, containers: 4 };
        let medium = CrashMedium::new(0);
        let options = CreateOptions { store_id: Some(1), ..CreateOptions::default() };
        stored.fill(&Store::create_on(Arc::new(medium.clone()), &options).unwrap());
        // Opened anew, so that no part of the map is in memory.
        let (store, _) = Store::open_on(Arc::new(medium)).unwrap();
        store.maintain().unwrap();
        costs(&store, stored, 20)
    });
    let [small, large] = all;
    for ((what, small), (_, large)) in small.into_iter().zip(large) {
        eprintln!("{what}: {small:?}, {large:?}");
        if what == UNCHANGED {
            // Two tables with a header each, and both roots.
            assert_eq!((small.written, small.read), (6 * PAGE_SIZE as u64, 0));
            assert_eq!((large.written, large.read), (6 * PAGE_SIZE as u64, 0));
        }
        // Twenty changes touch up to twenty leaves; where there are few of them, fewer.
        let twenty_leaves = 20 * PAGE_SIZE as u64;
        assert!(large.written <= small.written + twenty_leaves, "{what}");
        assert!(large.read <= small.read + 4 * twenty_leaves, "{what}");
    }
}

#[test]
fn a_large_store() {
    let Ok(gib) = std::env::var("STEAD_SNAPSHOT_GIB") else { return };
    let gib: u64 = gib.parse().expect("STEAD_SNAPSHOT_GIB is a number");
    let parent =
        std::env::var_os("STEAD_SNAPSHOT_DIR").map_or_else(std::env::temp_dir, PathBuf::from);
    let dir = tempfile::tempdir_in(parent).unwrap();
    let dir = dir.path().join("store");
    let stored = Stored { pages: (gib << 30) / PAGE_SIZE as u64, containers: 100 };
    stored.fill(&Store::create(&dir, &CreateOptions::default()).unwrap());
    let (store, _) = Store::open(&dir).unwrap();
    store.maintain().unwrap();
    println!("{gib} GiB in {} containers, 1000 pages changed before each:", stored.containers);
    for (what, cost) in costs(&store, stored, 1000) {
        let Cost { written, read, seconds } = cost;
        println!("| {what} | {written} bytes written | {read} read | {:.1} ms |", seconds * 1e3);
    }
}
