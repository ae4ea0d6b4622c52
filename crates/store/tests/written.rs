//! What has been written over all openings of a store, held against what its disk was given.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use stead_model::{ContainerId, PAGE_SIZE, PageId, PageNo};
use stead_store::planted::{self, Bug};
use stead_store::sim::CrashMedium;
use stead_store::{CreateOptions, Store, Written};

fn create(seed: u64, space_percent: Option<u32>) -> (CrashMedium, Store) {
    let medium = CrashMedium::new(seed);
    let segment_blocks = Some(32);
    let options = CreateOptions { segment_blocks, space_percent, ..CreateOptions::default() };
    let store = Store::create_on(Arc::new(medium.clone()), &options).unwrap();
    (medium, store)
}

fn again(medium: &CrashMedium) -> Store {
    Store::open_on(Arc::new(medium.clone())).unwrap().0
}

/// Commits so many pages, chosen by chance among twice as many as are ever stored at once.
fn commit(store: &Store, pages: u64, chance: &mut fastrand::Rng) -> u64 {
    let mut batch = store.batch();
    for _ in 0..pages {
        let page = PageNo(chance.u64(..600));
        batch.push(PageId { container: ContainerId(1), page }, |bytes| bytes.fill(chance.u8(1..)));
    }
    store.commit(&mut batch).unwrap().pages
}

/// Lives through some openings, each of which ends with a root; what differs, if anything, at the first where it does.
fn openings(seed: u64) -> Result<Written, String> {
    let mut chance = fastrand::Rng::with_seed(seed);
    // With settings and without them, which is another layout of roots.
    let percent = seed.is_multiple_of(2).then_some(150);
    let (medium, mut store) = create(seed, percent);
    let header = medium.tally().bytes;
    let mut pages = 0;
    for _ in 0..5 {
        for _ in 0..60 {
            let most = if chance.u8(..10) == 0 { 400 } else { 20 };
            pages += commit(&store, 1 + chance.u64(..most), &mut chance);
            for _ in 0..3 {
                store.maintain().unwrap();
            }
        }
        store.checkpoint().unwrap();
        let told = store.written();
        drop(store);
        store = again(&medium);
        let kept = store.written();
        if kept != told {
            return Err(format!("{told:?} were told, {kept:?} are kept"));
        }
        let given = medium.tally().bytes - header;
        if (kept.pages, kept.blocks() * PAGE_SIZE as u64, kept.since) != (pages, given, 0) {
            return Err(format!("{pages} pages and {given} bytes are not {kept:?}"));
        }
    }
    Ok(store.written())
}

#[test]
fn every_block_is_counted_once_over_all_openings() {
    for seed in 0..6 {
        let written = openings(seed).unwrap_or_else(|why| panic!("seed {seed}: {why}"));
        assert!(written.record_blocks > written.pages && written.map_blocks > 0, "{written:?}");
        assert!(written.cleaning_blocks > 0 && written.ahead_blocks > 0, "{written:?}");
        assert!(written.amplification().unwrap() > 1.0);
    }
}

#[test]
fn roots_that_do_not_say_it_are_found_out() {
    planted::set(Some(Bug::WrittenForgotten));
    let lived = openings(1);
    planted::set(None);
    assert!(lived.is_err());
}

/// The record chain is counted once, whether a root knows of it or it is found behind one.
#[test]
fn stabilisations_behind_a_root_and_beside_one_are_counted_once() {
    for seed in 0..8 {
        let (medium, store) = create(seed, None);
        assert_eq!((store.written(), store.written().amplification()), (Written::default(), None));
        let done = AtomicBool::new(false);
        let (pages, bytes) = std::thread::scope(|scope| {
            scope.spawn(|| {
                while !done.load(Ordering::Relaxed) {
                    store.checkpoint().unwrap();
                }
            });
            let mut chance = fastrand::Rng::with_seed(seed);
            let pages: u64 =
                (0..150).map(|_| commit(&store, 1 + chance.u64(..9), &mut chance)).sum();
            done.store(true, Ordering::Relaxed);
            (pages, store.stat().counters.record_bytes)
        });
        pages_and_blocks(&store, pages, bytes);
        drop(store);
        // Nothing was written for the sake of a clean end.
        let store = again(&medium);
        pages_and_blocks(&store, pages, bytes);
        store.checkpoint().unwrap();
        drop(store);
        pages_and_blocks(&again(&medium), pages, bytes);
    }
}

fn pages_and_blocks(store: &Store, pages: u64, bytes: u64) {
    let written = store.written();
    assert_eq!((written.pages, written.record_blocks * PAGE_SIZE as u64), (pages, bytes));
    assert_eq!(store.stat().written, written);
}

/// It belongs to the file, not to the state that is in it.
#[test]
fn going_back_does_not_unwrite_anything() {
    let (medium, store) = create(1, None);
    let mut chance = fastrand::Rng::with_seed(1);
    let first = commit(&store, 10, &mut chance);
    store.take_snapshot("then").unwrap();
    let second = commit(&store, 100, &mut chance);
    store.go_back("then").unwrap();
    assert_eq!(store.written().pages, first + second);
    drop(store);
    assert_eq!(again(&medium).written().pages, first + second);
}
