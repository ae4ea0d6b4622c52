//! Several associations that stabilise at once, and share flushes: on a medium that crashes, on one that fails, and
//! on a real file, from one thread as a seed has it and from several as they come.

use std::collections::hash_map::RandomState;
use std::hash::BuildHasher;
use std::io::{self, IoSlice};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use stead_model::{ContainerId, PAGE_SIZE, PageId, PageNo};
use stead_store::planted::{self, Bug};
use stead_store::sim::groups::{Lived, life};
use stead_store::sim::{CrashMedium, Fault};
use stead_store::{CreateOptions, FileMedium, Medium, Store, WriteRequest, WriteSyncError};

const CRASHES_PER_LIFE: u64 = 8;

fn number(variable: &str) -> Option<u64> {
    let value = std::env::var(variable).ok()?;
    Some(value.parse().unwrap_or_else(|_| panic!("{variable} must be a number, not {value:?}")))
}

fn first_seed() -> u64 {
    RandomState::new().hash_one(0) >> 16
}

#[test]
fn every_association_is_at_its_last_state_or_the_next() {
    if let Some(seed) = number("STEAD_SEED") {
        let lived = life(seed, CRASHES_PER_LIFE).unwrap_or_else(|why| panic!("{seed}: {why}"));
        eprintln!("{lived:?}");
        return;
    }
    let points = number("STEAD_CRASH_POINTS").unwrap_or(1500);
    let first = first_seed();
    let mut all = Lived::default();
    for seed in first..first + points.div_ceil(CRASHES_PER_LIFE) {
        let lived = life(seed, CRASHES_PER_LIFE);
        all.add(lived.unwrap_or_else(|why| panic!("{why}; again with STEAD_SEED={seed}")));
    }
    eprintln!("{all:?}");
    if points >= 1000 {
        // The torture has reached what it is for.
        assert!(all.groups > points / 4 && all.failed > points / 50);
        assert!(all.whole > points / 100 && all.part > points / 100);
    }
}

/// How many lives it takes until the checker finds a planted bug.
fn lives_until_caught(bug: Bug) {
    let first = first_seed();
    planted::set(Some(bug));
    let caught = (0..3000).find_map(|i| Some((i + 1, life(first + i, CRASHES_PER_LIFE).err()?)));
    planted::set(None);
    let (lives, why) = caught.unwrap_or_else(|| panic!("{bug:?} is not found, from {first}"));
    eprintln!("{bug:?}: found in life {lives}: {why}");
}

#[test]
fn followers_told_before_the_flush_are_found() {
    lives_until_caught(Bug::FollowersUnflushed);
}

#[test]
fn a_group_believed_for_its_length_is_found() {
    lives_until_caught(Bug::GroupBelieved);
}

#[test]
fn a_swallowed_error_is_found() {
    lives_until_caught(Bug::SwallowedEio);
}

const THREADS: u64 = 6;
const PAGES: u64 = 3;

fn id(association: u64, page: u64) -> PageId {
    PageId { container: ContainerId(association as u32), page: PageNo(page) }
}

/// Stores its number on all pages of the association.
fn stabilise(store: &Store, association: u64, number: u64) -> bool {
    let mut batch = store.batch();
    batch.set_association(association as u32);
    // Now and then a heavy one.
    let pages = if number % 16 == 15 { 300 } else { PAGES };
    for page in 0..pages {
        batch.push(id(association, page), |bytes| fill(number, bytes));
    }
    match store.commit(&mut batch) {
        Ok(_) => true,
        Err(_) => {
            assert_eq!(batch.pages() as u64, pages, "a batch that failed is kept");
            assert_eq!(batch.association(), association as u32);
            false
        }
    }
}

fn fill(number: u64, bytes: &mut [u8]) {
    bytes.chunks_exact_mut(8).for_each(|word| word.copy_from_slice(&number.to_le_bytes()));
}

fn number_at(store: &Store, association: u64) -> u64 {
    let numbers: Vec<u64> = (0..PAGES)
        .map(|page| {
            let mut bytes = [0; PAGE_SIZE];
            store.read_page(id(association, page), &mut bytes).unwrap();
            let number = u64::from_le_bytes(*bytes.first_chunk().unwrap());
            assert!(bytes.chunks_exact(8).all(|word| word == number.to_le_bytes()), "torn");
            number
        })
        .collect();
    assert!(numbers.iter().all(|&n| n == numbers[0]), "torn: {numbers:?}");
    numbers[0]
}

/// Lets a disk that is shared take its time, so that others come meanwhile.
#[derive(Debug)]
struct Slow<M>(M, Duration);

impl<M: Medium> Medium for Slow<M> {
    fn read(&self, offset: u64, into: &mut [u8]) -> io::Result<()> {
        self.0.read(offset, into)
    }

    fn write(&self, offset: u64, parts: &[IoSlice<'_>]) -> io::Result<()> {
        self.0.write(offset, parts)
    }

    fn write_and_sync(&self, writes: &[WriteRequest<'_>]) -> Result<(), WriteSyncError> {
        std::thread::sleep(self.1);
        self.0.write_and_sync(writes)
    }

    fn sync(&self) -> io::Result<()> {
        self.0.sync()
    }

    fn len(&self) -> io::Result<u64> {
        self.0.len()
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.0.set_len(len)
    }
}

/// Threads that stabilise until the machine stops; what is wrong after it has started again.
fn threads_until_crash(seed: u64, bug: Option<Bug>) -> Result<(u64, u64), String> {
    let medium = CrashMedium::new(seed);
    let slow = Arc::new(Slow(medium.clone(), Duration::from_micros(200)));
    let options = CreateOptions { segment_blocks: Some(64), ..CreateOptions::default() };
    let store = Store::create_on(slow, &options).unwrap();
    let faults = [Fault::Crash, Fault::Crash, Fault::LosingFlush, Fault::Eio];
    medium.fail_at(5 + seed % 150, faults[(seed / 150 % 4) as usize]);
    let told: Vec<AtomicU64> = (0..THREADS).map(|_| AtomicU64::new(0)).collect();
    let tried: Vec<AtomicU64> = (0..THREADS).map(|_| AtomicU64::new(0)).collect();
    std::thread::scope(|scope| {
        for association in 0..THREADS {
            let (store, medium, told, tried) = (&store, &medium, &told, &tried);
            scope.spawn(move || {
                planted::set(bug);
                for number in 1..60 {
                    tried[association as usize].store(number, Ordering::SeqCst);
                    if stabilise(store, association, number) {
                        told[association as usize].store(number, Ordering::SeqCst);
                    } else if medium.is_crashed() {
                        return;
                    }
                    if number % 20 == 10 {
                        let _ = store.maintain();
                    }
                }
            });
        }
    });
    let commits = told.iter().map(|told| told.load(Ordering::SeqCst)).sum();
    let flushes = store.stat().counters.record_flushes;
    drop(store);
    medium.restart();
    let (store, _) = Store::open_on(Arc::new(medium)).map_err(|error| error.to_string())?;
    for association in 0..THREADS {
        let found = number_at(&store, association);
        let told = told[association as usize].load(Ordering::SeqCst);
        let tried = tried[association as usize].load(Ordering::SeqCst);
        if found != told && found != tried {
            return Err(format!("{association}: {found} found, {told} told, {tried} tried"));
        }
    }
    Ok((commits, flushes))
}

#[test]
fn threads_on_a_disk_that_crashes() {
    let first = first_seed();
    let (mut commits, mut flushes) = (0, 0);
    for seed in first..first + 40 {
        let done = threads_until_crash(seed, None);
        let done = done.unwrap_or_else(|why| panic!("seed {seed}: {why}"));
        commits += done.0;
        flushes += done.1;
    }
    eprintln!("{commits} stabilisations with {flushes} flushes");
    assert!(flushes * 3 < commits * 2, "{commits} stabilisations with {flushes} flushes");
}

#[test]
fn threads_told_before_the_flush_are_found() {
    let first = first_seed();
    let bug = Some(Bug::FollowersUnflushed);
    let caught = (first..first + 400).find_map(|seed| threads_until_crash(seed, bug).err());
    eprintln!("{}", caught.expect("the bug is not found"));
}

#[test]
fn threads_on_a_real_file_share_flushes() {
    let dir = tempfile::tempdir().unwrap();
    drop(Store::create(dir.path(), &CreateOptions::default()).unwrap());
    let file = FileMedium::open(&dir.path().join("log")).unwrap();
    let (store, _) = Store::open_on(Arc::new(Slow(file, Duration::from_millis(1)))).unwrap();
    const EACH: u64 = 40;
    // One by one, each has a flush of its own, and the large ones two.
    for number in 1..=16 {
        assert!(stabilise(&store, 0, number));
    }
    let alone = store.stat();
    assert_eq!((alone.counters.record_flushes, alone.last_sequence), (17, 16));
    std::thread::scope(|scope| {
        for association in 0..THREADS {
            let store = &store;
            scope.spawn(move || {
                for number in 17..17 + EACH {
                    assert!(stabilise(store, association, number));
                }
            });
        }
    });
    let stat = store.stat();
    let flushes = stat.counters.record_flushes - 17;
    let commits = stat.last_sequence - 16;
    eprintln!("{commits} stabilisations of {THREADS} threads with {flushes} flushes");
    assert_eq!(commits, THREADS * EACH);
    assert!(flushes * 3 < commits * 2, "{flushes} flushes");
    drop(store);
    let (store, report) = Store::open(dir.path()).unwrap();
    assert_eq!(report.last_sequence, 16 + THREADS * EACH);
    for association in 0..THREADS {
        assert_eq!(number_at(&store, association), 16 + EACH);
    }
    assert!(store.verify(&mut |_| {}).unwrap().is_clean());
}
