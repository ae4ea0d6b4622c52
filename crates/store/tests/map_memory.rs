//! A map takes no more memory than it may, however large it is: what has been read of it is forgotten again, first what
//! nobody uses, and read anew when it is needed. `STEAD_MAP_LEAVES=50000` does the same with a map of that many leaves, and
//! prints what memory the process has.

use std::path::Path;

use stead_model::{ContainerId, PAGE_SIZE, PageId, PageNo};
use stead_store::planted::{self, Bug};
use stead_store::{CreateOptions, Store};

/// Each page lies in a leaf of its own.
const APART: u64 = 256;

/// What the map may take: a tenth of what it would, as it is here.
fn most(leaves: u64) -> u64 {
    leaves * 4096 / 10
}

/// A path through the map, with the nodes above the leaf, and what was found when it was just not too much yet.
const PATH: u64 = 64 << 10;

fn leaves() -> u64 {
    std::env::var("STEAD_MAP_LEAVES").map_or(3000, |n| n.parse().expect("a number of leaves"))
}

fn id(container: u32, i: u64) -> PageId {
    PageId { container: ContainerId(container), page: PageNo(i * APART) }
}

fn commit(store: &Store, container: u32, pages: impl Iterator<Item = u64>, value: u64) {
    let mut batch = store.batch();
    for i in pages {
        batch
            .push(id(container, i), |bytes| bytes[..8].copy_from_slice(&(value + i).to_le_bytes()));
    }
    store.commit(&mut batch).unwrap();
}

fn value(store: &Store, container: u32, i: u64) -> u64 {
    let mut bytes = [0; PAGE_SIZE];
    store.read_page(id(container, i), &mut bytes).unwrap();
    u64::from_le_bytes(*bytes.first_chunk().unwrap())
}

fn make(dir: &Path, leaves: u64) {
    let store = Store::create(dir, &CreateOptions::default()).unwrap();
    for first in (0..leaves).step_by(1000) {
        commit(&store, 1, first..leaves.min(first + 1000), 1);
        while store.wants_maintenance() {
            store.maintain().unwrap();
        }
    }
    store.checkpoint().unwrap();
}

fn open(dir: &Path, most: u64) -> Store {
    let (store, _) = Store::open(dir).unwrap();
    store.set_map_bytes_max(most);
    store
}

fn map_bytes(store: &Store) -> u64 {
    store.stat().map_memory_bytes
}

/// Reads all pages; the most memory that the map took meanwhile.
fn read_all(store: &Store, leaves: u64) -> u64 {
    let mut largest = 0;
    for i in 0..leaves {
        assert_eq!(value(store, 1, i), i + 1);
        largest = map_bytes(store).max(largest);
    }
    largest
}

/// Memory that the process has, in MiB.
fn resident_mib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() / 1024
}

#[test]
fn a_large_map_takes_no_more_memory_than_it_may() {
    let leaves = leaves();
    let most = most(leaves);
    let dir = tempfile::tempdir().unwrap();
    make(dir.path(), leaves);

    let store = open(dir.path(), most);
    assert!(map_bytes(&store) < PATH, "opening reads no map");
    let before = resident_mib();
    for _ in 0..2 {
        let largest = read_all(&store, leaves);
        assert!(largest <= most + PATH, "{largest} of {most}");
        assert!(largest > most / 2, "what there is room for is kept: {largest} of {most}");
    }
    let with = resident_mib();
    // Who goes through all of it leaves nothing behind that there is no room for.
    let stored = store.stored_pages(ContainerId(1)).unwrap();
    assert_eq!(stored.len() as u64, leaves);
    assert!(map_bytes(&store) <= most + PATH);
    assert!(store.verify(&mut |_| {}).unwrap().is_clean());
    assert!(map_bytes(&store) <= most + PATH);
    // What is changed, and what is compared with a snapshot, is forgotten as well.
    store.take_snapshot("then").unwrap();
    for round in 0..4 {
        commit(&store, 1, (0..leaves).skip(round).step_by(7), 1);
        store.checkpoint().unwrap();
        assert!(map_bytes(&store) <= most + PATH, "{} of {most}", map_bytes(&store));
    }
    let then = store.view_snapshot("then").unwrap();
    let changed = store.view().changed_pages(&then, ContainerId(1)).unwrap();
    let changed: u64 = changed.iter().map(|range| range.page_count()).sum();
    let want = (0..leaves).filter(|i| (0..4).any(|round| *i >= round && (i - round) % 7 == 0));
    assert_eq!(changed, want.count() as u64);
    assert_eq!(value(&store, 1, 5), 6);
    assert!(map_bytes(&store) <= most + PATH);
    drop(then);
    assert!(store.verify(&mut |_| {}).unwrap().is_clean());
    drop(store);

    let store = open(dir.path(), u64::MAX);
    let whole = read_all(&store, leaves);
    assert!(whole > leaves * 4096, "{whole}");
    eprintln!(
        "{leaves} leaves: {before} MiB before, {with} with {} KiB for the map, {} with all of it, {} KiB",
        most / 1024,
        resident_mib(),
        whole / 1024
    );
    // Also what is there already.
    store.set_map_bytes_max(most);
    assert!(map_bytes(&store) <= most);
    assert_eq!(value(&store, 1, leaves - 1), leaves);
}

#[test]
fn what_is_used_stays_and_what_was_passed_by_goes() {
    let leaves = 2000;
    let dir = tempfile::tempdir().unwrap();
    make(dir.path(), leaves);
    let store = open(dir.path(), most(leaves));
    let used = 0..50;
    let mut again = 0;
    for i in used.end..leaves {
        let before = store.stat().counters.read_bytes;
        for page in used.clone() {
            assert_eq!(value(&store, 1, page), page + 1);
        }
        let read = store.stat().counters.read_bytes - before;
        // The pages themselves, and nothing of the map.
        again += read / PAGE_SIZE as u64 - (used.end - used.start);
        assert_eq!(value(&store, 1, i), i + 1);
    }
    assert!(again <= 2 * used.end, "{again} parts of the map were read again");
}

#[test]
fn a_map_that_is_kept_is_found_out() {
    let dir = tempfile::tempdir().unwrap();
    make(dir.path(), 1000);
    let store = open(dir.path(), most(1000));
    planted::set(Some(Bug::MapKept));
    let largest = read_all(&store, 1000);
    planted::set(None);
    assert!(largest > most(1000) + PATH);
}
