//! The room that a store takes (catalogue B9, B16): how large its file becomes under random writing, what is written
//! beside the images, that it becomes shorter again, and that scattered pages are put in order.

use std::io::{self, IoSlice};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use stead_model::{ContainerId, PAGE_SIZE, PageId, PageNo};
use stead_store::sim::CrashMedium;
use stead_store::{CreateOptions, FileMedium, Medium, ReadRequest, Store, Stored};

fn id(container: u32, page: u64) -> PageId {
    PageId { container: ContainerId(container), page: PageNo(page) }
}

fn options(segment_blocks: u32) -> CreateOptions {
    CreateOptions { segment_blocks: Some(segment_blocks), ..CreateOptions::default() }
}

fn image(id: PageId, version: u64, bytes: &mut [u8]) {
    bytes.fill(0x5a);
    bytes[..8].copy_from_slice(&(u64::from(id.container.0) << 32 | id.page.0).to_le_bytes());
    bytes[8..16].copy_from_slice(&version.to_le_bytes());
}

fn commit(store: &Store, ids: impl Iterator<Item = PageId>, version: u64) {
    let mut batch = store.batch();
    ids.for_each(|id| batch.push(id, |bytes| image(id, version, bytes)));
    store.commit(&mut batch).unwrap();
}

fn check(store: &Store, id: PageId, version: u64) {
    let (mut want, mut found) = ([0; PAGE_SIZE], [0; PAGE_SIZE]);
    image(id, version, &mut want);
    assert_eq!(store.read_page(id, &mut found).unwrap(), Stored::Image);
    assert!(want == found, "{id} has wrong bytes");
}

fn keep(store: &Store) {
    for _ in 0..100_000 {
        if !store.wants_maintenance() {
            return;
        }
        store.maintain().unwrap();
    }
    panic!("upkeep does not come to an end: {:?}", store.stat());
}

#[test]
fn random_writing_keeps_the_file_within_the_factor() {
    const PAGES: u64 = 16384;
    for (percent, most) in [(200, 2.2), (300, 1.9)] {
        let medium = Arc::new(CrashMedium::new(1));
        let store = Store::create_on(medium.clone(), &options(128)).unwrap();
        store.set_space_percent(Some(percent)).unwrap();
        drop(store);
        // As it was laid down, in another opening.
        let (store, _) = Store::open_on(medium).unwrap();
        for first in (0..PAGES).step_by(512) {
            commit(&store, (first..first + 512).map(|page| id(1, page)), 0);
            keep(&store);
        }
        let mut random = fastrand::Rng::with_seed(7);
        let before = store.stat().counters;
        let mut largest = 0;
        for version in 1..=PAGES * 3 / 100 {
            commit(&store, (0..100).map(|_| id(1, random.u64(..PAGES))), version);
            keep(&store);
            largest = largest.max(store.stat().file_bytes);
        }
        let after = store.stat().counters;
        let live = PAGES * PAGE_SIZE as u64;
        // The map and the table take room as well.
        let bound = live * u64::from(percent) / 100 * 102 / 100;
        assert!(largest <= bound, "{percent}: {largest} bytes for {live} live");
        let written = after.written_bytes() - before.written_bytes();
        let factor = written as f64 / (PAGES * 3 * PAGE_SIZE as u64) as f64;
        eprintln!("{percent}: file {:.3}, written {factor:.3}", largest as f64 / live as f64);
        assert!(factor < most, "{percent}: {factor} bytes written for each byte of images");
        assert!(store.verify(&mut |_| {}).unwrap().is_clean());
    }
}

#[test]
fn what_is_dropped_makes_the_file_shorter() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("store");
    let store = Store::create(&path, &options(64)).unwrap();
    // Interleaved, so that what stays lies all over the file.
    for round in 0..40 {
        commit(&store, (0..10).flat_map(|c| (0..50).map(move |p| id(c, round * 50 + p))), 1);
        keep(&store);
    }
    let len = || std::fs::metadata(path.join("log")).unwrap().len();
    let large = len();
    let mut batch = store.batch();
    (1..10).for_each(|container| batch.drop_container(ContainerId(container)));
    store.commit(&mut batch).unwrap();
    keep(&store);
    store.checkpoint().unwrap();
    keep(&store);
    let small = len();
    assert!(small * 3 < large, "{small} of {large} bytes are left: {:?}", store.stat());
    assert_eq!(small, store.stat().file_bytes);
    // It stays so, and does not breathe with small changes.
    for version in 2..30 {
        commit(&store, (0..100).map(|p| id(0, p * 3)), version);
        keep(&store);
        assert_eq!(len(), small);
    }
    assert!(store.verify(&mut |_| {}).unwrap().is_clean());
    drop(store);
    let (store, report) = Store::open(&path).unwrap();
    assert!(!report.fell_back);
    for page in 0..2000 {
        check(&store, id(0, page), if page < 300 && page % 3 == 0 { 29 } else { 1 });
    }
    // And becomes longer again when there is something to hold.
    commit(&store, (0..4000).map(|p| id(1, p)), 1);
    assert!(len() > small);
    assert!(store.verify(&mut |_| {}).unwrap().is_clean());
}

/// Counts how many reads are asked for.
#[derive(Debug)]
struct Counting {
    file: FileMedium,
    reads: Arc<AtomicU64>,
}

impl Medium for Counting {
    fn read(&self, offset: u64, into: &mut [u8]) -> io::Result<()> {
        self.reads.fetch_add(1, Ordering::Relaxed);
        self.file.read(offset, into)
    }

    fn read_many(&self, reads: &mut [ReadRequest<'_>]) {
        self.reads.fetch_add(reads.len() as u64, Ordering::Relaxed);
        self.file.read_many(reads);
    }

    fn write(&self, offset: u64, parts: &[IoSlice<'_>]) -> io::Result<()> {
        self.file.write(offset, parts)
    }

    fn sync(&self) -> io::Result<()> {
        self.file.sync()
    }

    fn len(&self) -> io::Result<u64> {
        self.file.len()
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.file.set_len(len)
    }
}

/// Reads everything in order, 64 pages at a time; how many reads the disk saw.
fn scan(store: &Store, pages: u64, reads: &AtomicU64) -> u64 {
    let before = reads.load(Ordering::Relaxed);
    let mut buffer = vec![0; 64 * PAGE_SIZE];
    let mut at = 0;
    while at < pages {
        let run = store.read_run(id(1, at), &mut buffer).unwrap();
        assert_eq!(run.stored, Stored::Image);
        for (i, page) in buffer.chunks(PAGE_SIZE).take(run.pages).enumerate() {
            assert_eq!(page[..8], (1u64 << 32 | (at + i as u64)).to_le_bytes());
        }
        at += run.pages as u64;
    }
    reads.load(Ordering::Relaxed) - before
}

#[test]
fn scattered_pages_are_put_in_order_when_there_is_time() {
    const PAGES: u64 = 4096;
    let dir = tempfile::tempdir().unwrap();
    let reads = Arc::new(AtomicU64::new(0));
    let file = FileMedium::create(Path::new(&dir.path().join("log"))).unwrap();
    let medium = Counting { file, reads: Arc::clone(&reads) };
    let store = Store::create_on(Arc::new(medium), &options(256)).unwrap();
    commit(&store, (0..PAGES).map(|page| id(1, page)), 0);
    keep(&store);
    let fresh = scan(&store, PAGES, &reads);
    let mut random = fastrand::Rng::with_seed(7);
    for version in 1..=PAGES * 3 / 100 {
        commit(&store, (0..100).map(|_| id(1, random.u64(..PAGES))), version);
        keep(&store);
    }
    let aged = scan(&store, PAGES, &reads);
    assert!(aged > fresh * 10, "{aged} reads, {fresh} when it was fresh");
    let before = store.stat().counters;
    // Idle for long enough.
    std::thread::sleep(std::time::Duration::from_millis(400));
    keep(&store);
    let tidied = scan(&store, PAGES, &reads);
    assert!(tidied * 10 <= aged, "{tidied} reads, {aged} before, {fresh} when it was fresh");
    let after = store.stat().counters;
    assert!(after.tidying_bytes > before.tidying_bytes);
    assert!(after.tidying_bytes <= after.record_bytes);
    assert!(store.verify(&mut |_| {}).unwrap().is_clean());
    // There is nothing left to do.
    keep(&store);
    assert_eq!(store.stat().counters.tidying_bytes, after.tidying_bytes);
}
