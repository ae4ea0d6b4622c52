//! The store on a real file, as a program uses it.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use stead_model::{ContainerId, PAGE_SIZE, PageId, PageNo, PageRange};
use stead_store::sim::CrashMedium;
use stead_store::{CreateOptions, FileMedium, Store, Stored};

fn id(container: u32, page: u64) -> PageId {
    PageId { container: ContainerId(container), page: PageNo(page) }
}

fn image(seed: u64) -> Vec<u8> {
    let mut rng = fastrand::Rng::with_seed(seed);
    let mut bytes = vec![0; PAGE_SIZE];
    rng.fill(&mut bytes);
    bytes
}

fn open(dir: &Path) -> Store {
    Store::open(dir).unwrap().0
}

/// Checks that the store holds exactly these pages.
fn check(store: &Store, want: &BTreeMap<PageId, u64>) {
    let mut page = [0; PAGE_SIZE];
    for (&id, &seed) in want {
        assert_eq!(store.read_page(id, &mut page).unwrap(), Stored::Image, "{id}");
        assert!(page[..] == image(seed), "{id}");
    }
    let mut found = Vec::new();
    for container in store.containers() {
        for range in store.stored_pages(container).unwrap() {
            found.extend(range.pages().map(|page| PageId { container, page }));
        }
    }
    assert_eq!(found, want.keys().copied().collect::<Vec<_>>());
    let verified = store.verify(&mut |_| {}).unwrap();
    assert!(verified.is_clean(), "{verified:#?}");
    let b = verified.blocks;
    assert_eq!(b.whole, b.header + b.free + b.pending + b.images + b.map + b.other);
    assert_eq!(b.images, want.len() as u64);
}

fn maintain(store: &Store) {
    for _ in 0..100 {
        if !store.maintain().unwrap().more {
            return;
        }
    }
    panic!("upkeep does not come to an end: {:?}", store.stat());
}

#[test]
fn what_is_committed_is_there_after_reopening() {
    let dir = tempfile::tempdir().unwrap();
    let mut want = BTreeMap::new();
    let store = Store::create(dir.path(), &CreateOptions::default()).unwrap();
    let mut batch = store.batch();
    for round in 0..20u64 {
        for i in 0..1 + round * 7 {
            let (at, seed) = (id((i % 3) as u32, i * i % 1000), round * 1000 + i);
            batch.push(at, |p| p.copy_from_slice(&image(seed)));
            want.insert(at, seed);
        }
        if round == 9 {
            batch.drop_container(ContainerId(1));
            want.retain(|id, _| id.container != ContainerId(1));
            let gone: Vec<PageId> = want.keys().copied().take(5).collect();
            for id in gone {
                batch.zero(id);
                want.remove(&id);
            }
        }
        let committed = store.commit(&mut batch).unwrap();
        assert_eq!(committed.sequence, round + 1);
        assert!(batch.is_empty());
        if round % 5 == 3 {
            maintain(&store);
        }
    }
    check(&store, &want);
    let stat = store.stat();
    drop(store);
    for round in 0..3 {
        let (store, report) = Store::open(dir.path()).unwrap();
        assert_eq!(store.stat().last_sequence, stat.last_sequence + round);
        assert_eq!(store.stat().last_time == stat.last_time, round == 0);
        assert!(!report.fell_back && report.unfinished.is_none(), "{report:?}");
        check(&store, &want);
        let mut batch = store.batch();
        batch.push(id(9, round), |p| p.copy_from_slice(&image(round)));
        want.insert(id(9, round), round);
        store.commit(&mut batch).unwrap();
        store.checkpoint().unwrap();
        check(&store, &want);
    }
    let (store, report) = Store::open(dir.path()).unwrap();
    assert_eq!(report.records_replayed, 0);
    check(&store, &want);
}

#[test]
fn one_page_is_one_write_of_three_blocks_and_one_flush() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::create(dir.path(), &CreateOptions::default()).unwrap();
    maintain(&store);
    let mut batch = store.batch();
    for (pages, bytes, flushes) in [(1, 3 * 4096, 1), (248, 250 * 4096, 1)] {
        for i in 0..pages {
            batch.push(id(1, i), |p| p.copy_from_slice(&image(i)));
        }
        let before = store.stat().counters;
        let committed = store.commit(&mut batch).unwrap();
        assert_eq!((committed.bytes_written, committed.flushes), (bytes, flushes));
        let after = store.stat().counters;
        assert_eq!(after.record_bytes - before.record_bytes, bytes);
        assert_eq!(after.record_flushes - before.record_flushes, u64::from(flushes));
        assert_eq!(after.upkeep_bytes, before.upkeep_bytes);
    }
    // Zero pages that were never stored, and empty batches, cost nothing at all.
    batch.push(id(7, 3), |p| p.fill(0));
    batch.zero(id(7, 4));
    for _ in 0..2 {
        let committed = store.commit(&mut batch).unwrap();
        assert_eq!((committed.sequence, committed.bytes_written, committed.flushes), (2, 0, 0));
    }
    // Stored ones become zero for an entry in a header.
    batch.push(id(1, 3), |p| p.fill(0));
    let committed = store.commit(&mut batch).unwrap();
    assert_eq!((committed.sequence, committed.bytes_written), (3, 2 * 4096));
    assert_eq!(
        store.stored_pages(ContainerId(1)).unwrap(),
        [PageRange::new(0, 3), PageRange::new(4, 248)]
    );
}

#[test]
fn large_stabilisations_and_runs() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::create(dir.path(), &CreateOptions::default()).unwrap();
    let mut batch = store.batch();
    let mut want = BTreeMap::new();
    for round in 0..2 {
        for i in 0..5000 {
            batch.push(id(1, i), |p| p.copy_from_slice(&image(round * 10_000 + i)));
            want.insert(id(1, i), round * 10_000 + i);
        }
        let committed = store.commit(&mut batch).unwrap();
        assert!(committed.bytes_written < 5000 * 4096 * 102 / 100, "{committed:?}");
        assert_eq!(committed.flushes, 2);
    }
    check(&store, &want);
    drop(store);
    let (store, report) = Store::open(dir.path()).unwrap();
    assert!(report.bytes_read < 4 << 20, "recovery reads headers only: {report:?}");
    check(&store, &want);

    // A run ends where a chunk does, so there are few.
    let mut bytes = vec![0; 300 * PAGE_SIZE];
    let (mut page, mut runs) = (0, 0);
    while page < 5000 {
        let run = store.read_run(id(1, page), &mut bytes).unwrap();
        assert_eq!(run.stored, Stored::Image);
        for i in 0..run.pages {
            assert!(bytes[i * PAGE_SIZE..][..PAGE_SIZE] == image(10_000 + page + i as u64));
        }
        page += run.pages as u64;
        runs += 1;
    }
    assert!(runs <= 5000 / 248 * 5 / 4 + 2, "{runs} runs");
    let run = store.read_run(id(1, 4990), &mut bytes).unwrap();
    assert_eq!((run.stored, run.pages), (Stored::Image, 10));
    let run = store.read_run(id(1, 5000), &mut bytes).unwrap();
    assert_eq!((run.stored, run.pages), (Stored::Never, 300));
    let run = store.read_run(id(5, 1 << 35), &mut bytes[..PAGE_SIZE]).unwrap();
    assert_eq!((run.stored, run.pages), (Stored::Never, 1));
}

#[test]
fn pages_far_apart_are_found_again() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::create(dir.path(), &CreateOptions::default()).unwrap();
    let mut batch = store.batch();
    let mut want = BTreeMap::new();
    for (i, page) in
        [0, 255, 256, 65_535, 65_536, 1 << 24, 1 << 32, (1 << 40) - 1].into_iter().enumerate()
    {
        let container = if i % 2 == 0 { 1 } else { ContainerId::MAX.0 };
        batch.push(id(container, page), |p| p.copy_from_slice(&image(page)));
        want.insert(id(container, page), page);
        store.commit(&mut batch).unwrap();
        store.checkpoint().unwrap();
        check(&store, &want);
    }
    drop(store);
    let store = open(dir.path());
    check(&store, &want);
    let gone: Vec<PageId> = want.keys().copied().collect();
    for at in gone {
        batch.zero(at);
        want.remove(&at);
        store.commit(&mut batch).unwrap();
        store.checkpoint().unwrap();
        check(&store, &want);
    }
    assert!(store.containers().is_empty());
}

/// Random updates of the same pages, for many times the size of the data.
#[test]
fn the_file_stays_bounded_under_updates() {
    let medium = Arc::new(CrashMedium::new(1));
    let options = CreateOptions { segment_blocks: Some(64), ..CreateOptions::default() };
    let store = Store::create_on(medium.clone(), &options).unwrap();
    let mut batch = store.batch();
    let mut want = BTreeMap::new();
    let pages = 6000;
    let mut seed = 0;
    for i in 0..pages {
        seed += 1;
        batch.push(id(1, i), |p| p.copy_from_slice(&image(seed)));
        want.insert(id(1, i), seed);
    }
    store.commit(&mut batch).unwrap();
    maintain(&store);
    let mut largest = 0;
    for round in 0..1500 {
        for _ in 0..60 {
            seed += 1;
            let at = id(1, fastrand::u64(0..pages));
            batch.push(at, |p| p.copy_from_slice(&image(seed)));
            want.insert(at, seed);
        }
        store.commit(&mut batch).unwrap();
        // Upkeep comes late now and then, and never in one of three phases.
        if round % 3 == 0 && round / 500 != 1 {
            maintain(&store);
        }
        largest = largest.max(store.stat().file_bytes);
    }
    check(&store, &want);
    let live = pages * PAGE_SIZE as u64;
    eprintln!(
        "file at most {:.2} times the live data; {:?}",
        largest as f64 / live as f64,
        store.stat()
    );
    // Twice the images, their map and headers, what recovery may have to replay, and some segments.
    assert!(largest < live * 5 / 2 + 32 * 64 * 4096, "{largest} bytes for {live}");
    drop(store);
    check(&Store::open_on(medium).unwrap().0, &want);
}

/// Where the file system refuses O_DIRECT, everything goes through the page cache, with the same guarantees.
#[test]
fn without_direct_writes_it_is_the_same() {
    let dir = tempfile::tempdir().unwrap();
    drop(Store::create(dir.path(), &CreateOptions::default()).unwrap());
    let mut want = BTreeMap::new();
    for round in 0..3 {
        let medium = FileMedium::open_buffered(&dir.path().join("log")).unwrap();
        assert!(!medium.is_direct());
        let (store, _) = Store::open_on(Arc::new(medium)).unwrap();
        check(&store, &want);
        let mut batch = store.batch();
        for i in 0..300 {
            batch.push(id(1, i * 3), |p| p.copy_from_slice(&image(round * 1000 + i)));
            want.insert(id(1, i * 3), round * 1000 + i);
        }
        store.commit(&mut batch).unwrap();
        maintain(&store);
        check(&store, &want);
    }
    check(&open(dir.path()), &want);
}

/// Pages that lie anywhere are read in one go, each with an outcome of its own.
#[test]
fn scattered_pages_are_read_together() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::create(dir.path(), &CreateOptions::default()).unwrap();
    let mut batch = store.batch();
    let mut want = BTreeMap::new();
    for round in 0..8 {
        for i in 0..60 {
            let at = id(1, (i * 37 + round * 11) % 500);
            batch.push(at, |p| p.copy_from_slice(&image(round * 1000 + i)));
            want.insert(at, round * 1000 + i);
        }
        store.commit(&mut batch).unwrap();
    }
    let ids: Vec<PageId> = (0..520).map(|page| id(1, page)).collect();
    let mut bytes = vec![0xEE; ids.len() * PAGE_SIZE];
    let outcomes = store.read_pages(&ids, &mut bytes);
    for ((id, page), outcome) in ids.iter().zip(bytes.chunks(PAGE_SIZE)).zip(outcomes) {
        match want.get(id) {
            Some(&seed) => {
                assert_eq!(outcome.unwrap(), Stored::Image);
                assert!(page == image(seed));
            }
            None => {
                assert_eq!(outcome.unwrap(), Stored::Never);
                assert!(page.iter().all(|&byte| byte == 0));
            }
        }
    }
    // One that is damaged does not spoil its neighbours.
    let damaged = ids[..500].iter().position(|id| want.contains_key(id)).unwrap();
    let log = dir.path().join("log");
    let whole = std::fs::read(&log).unwrap();
    let at = whole.windows(PAGE_SIZE).step_by(PAGE_SIZE);
    let at = at.into_iter().rposition(|b| b == image(want[&ids[damaged]])).unwrap();
    let file = std::fs::OpenOptions::new().write(true).open(&log).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&file, b"rot", (at * PAGE_SIZE) as u64).unwrap();
    for (i, outcome) in store.read_pages(&ids, &mut bytes).into_iter().enumerate() {
        assert_eq!(outcome.is_err(), i == damaged, "page {i}: {outcome:?}");
    }
}

/// All of the above, by io_uring.
#[test]
fn by_io_uring_it_is_the_same() {
    if std::env::var_os("STEAD_IO").is_some() {
        return;
    }
    let output = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--nocapture"])
        .env("STEAD_IO", "ring")
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}
