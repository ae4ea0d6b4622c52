//! Snapshots and branches, one promise at a time. What crashes do to them is in `snapshots`.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use stead_model::{ContainerId, PAGE_SIZE, PageId, PageNo, PageRange};
use stead_store::sim::CrashMedium;
use stead_store::{CommitError, CreateOptions, Medium, SnapshotError, Store, Stored, View};

fn id(container: u32, page: u64) -> PageId {
    PageId { container: ContainerId(container), page: PageNo(page) }
}

fn new_store(segment_blocks: u32) -> (Store, CrashMedium) {
    let medium = CrashMedium::new(0);
    let options = CreateOptions {
        segment_blocks: Some(segment_blocks),
        store_id: Some(1),
        ..CreateOptions::default()
    };
    (Store::create_on(Arc::new(medium.clone()), &options).unwrap(), medium)
}

fn write(store: &Store, container: u32, pages: impl Iterator<Item = u64>, value: u8) {
    let mut batch = store.batch();
    pages.for_each(|page| batch.push(id(container, page), |bytes| bytes.fill(value)));
    store.commit(&mut batch).unwrap();
}

fn value(view: &View<'_>, container: u32, page: u64) -> u8 {
    let mut bytes = [0; PAGE_SIZE];
    view.read_page(id(container, page), &mut bytes).unwrap();
    assert!(bytes.iter().all(|&byte| byte == bytes[0]));
    bytes[0]
}

fn whole(store: &Store) {
    let verified = store.verify(&mut |_| {}).unwrap();
    assert!(verified.is_clean(), "{verified:?}");
    let b = verified.blocks;
    assert_eq!(b.whole, b.header + b.free + b.pending + b.images + b.map + b.pinned + b.other);
    assert_eq!(b.pinned * PAGE_SIZE as u64, store.stat().pinned_bytes);
}

#[test]
fn names_are_bounded_and_used_once() {
    let (store, _) = new_store(64);
    let long = "x".repeat(255);
    for bad in
        ["", &"x".repeat(256), "two\nlines", " ", "to\u{202e}morf", "a\u{200b}", "#7", "(system)"]
    {
        assert!(matches!(store.take_snapshot(bad), Err(SnapshotError::BadName { .. })), "{bad:?}");
    }
    write(&store, 1, 0..3, 1);
    let taken = store.take_snapshot(&long).unwrap();
    assert_eq!((taken.sequence, taken.containers, taken.pages), (1, 1, 3));
    assert!(matches!(store.take_snapshot(&long), Err(SnapshotError::Exists { .. })));
    let second = store.take_snapshot("später").unwrap();
    assert!(second.number > taken.number);
    assert_eq!(store.snapshots(), [taken, second]);
    for unknown in ["nothing", ""] {
        let refused = [
            store.drop_snapshot(unknown),
            store.go_back(unknown).map(drop),
            store.view_snapshot(unknown).map(drop),
            store.branch(unknown, ContainerId(1), ContainerId(2)),
        ];
        for refused in refused {
            assert!(matches!(refused, Err(SnapshotError::Unknown { .. })), "{refused:?}");
        }
    }
    store.drop_snapshot(&long).unwrap();
    store.take_snapshot(&long).unwrap();
    let names: Vec<String> = store.snapshots().into_iter().map(|info| info.name).collect();
    assert_eq!(names, ["später", &long]);
}

#[test]
fn dropping_gives_the_room_back() {
    let (store, _) = new_store(64);
    write(&store, 1, 0..1000, 1);
    store.take_snapshot("old").unwrap();
    assert_eq!(store.stat().pinned_bytes, 0);
    let live = store.stat().live_bytes;
    write(&store, 1, 0..1000, 2);
    store.checkpoint().unwrap();
    // The thousand pages, their leaves, and the root of the map.
    assert_eq!(store.stat().pinned_bytes, (1000 + 4 + 1) * PAGE_SIZE as u64);
    assert_eq!(store.stat().snapshots, 1);
    whole(&store);
    let view = store.view_snapshot("old").unwrap();
    assert!(matches!(store.drop_snapshot("old"), Err(SnapshotError::InUse { .. })));
    assert_eq!((value(&view, 1, 7), value(&store.view(), 1, 7)), (1, 2));
    drop(view);
    store.drop_snapshot("old").unwrap();
    store.checkpoint().unwrap();
    assert_eq!((store.stat().pinned_bytes, store.stat().snapshots), (0, 0));
    // But for the table's length.
    assert!(store.stat().live_bytes.abs_diff(live) <= PAGE_SIZE as u64);
    let segments = store.stat().segments;
    assert!(store.stat().free_segments > 1000 / 64, "{:?}", store.stat());
    write(&store, 1, 0..900, 3);
    assert_eq!(store.stat().segments, segments, "what was let go of is used again");
    whole(&store);
}

#[test]
fn a_branch_copies_nothing_and_goes_its_own_way() {
    let (store, medium) = new_store(64);
    write(&store, 1, 0..2000, 1);
    write(&store, 2, 0..10, 9);
    store.take_snapshot("fork").unwrap();
    write(&store, 1, 0..1, 2);
    store.checkpoint().unwrap();
    let before = store.stat();
    store.branch("fork", ContainerId(1), ContainerId(5)).unwrap();
    let after = store.stat();
    assert!(after.counters.upkeep_bytes - before.counters.upkeep_bytes <= 7 * PAGE_SIZE as u64);
    assert!(after.live_bytes.abs_diff(before.live_bytes) <= PAGE_SIZE as u64);
    // What only the snapshot had, the branch has now.
    assert_eq!(after.pinned_bytes, 0);
    let taken = ContainerId(2);
    let refused = store.branch("fork", ContainerId(1), taken);
    assert!(
        matches!(refused, Err(SnapshotError::ContainerInUse { container }) if container == taken)
    );
    let refused = store.branch("fork", ContainerId(7), ContainerId(8));
    assert!(matches!(refused, Err(SnapshotError::NoContainer { .. })));

    write(&store, 5, 1..2, 3);
    let live = store.view();
    let values = |container| [0, 1, 2].map(|page| value(&live, container, page));
    assert_eq!((values(1), values(5)), ([2, 1, 1], [1, 3, 1]));
    // The origin goes, and so does the snapshot: the branch has all that it needs.
    let mut batch = store.batch();
    batch.drop_container(ContainerId(1));
    store.commit(&mut batch).unwrap();
    store.drop_snapshot("fork").unwrap();
    whole(&store);
    store.checkpoint().unwrap();
    drop(store);
    let (store, _) = Store::open_on(Arc::new(medium)).unwrap();
    let live = store.view();
    assert_eq!((value(&live, 5, 0), value(&live, 5, 1), value(&live, 5, 1999)), (1, 3, 1));
    assert_eq!(live.stored_pages(ContainerId(5)).unwrap(), [PageRange::new(0, 2000)]);
    assert_eq!(live.stored_pages(ContainerId(1)).unwrap(), []);
    whole(&store);
}

#[test]
fn branches_of_branches_have_a_bound() {
    let (store, medium) = new_store(64);
    write(&store, 0, 0..300, 1);
    let mut deepest = 0;
    let refused = loop {
        write(&store, deepest, u64::from(deepest)..u64::from(deepest) + 1, 2);
        let name = format!("of {deepest}");
        store.take_snapshot(&name).unwrap();
        match store.branch(&name, ContainerId(deepest), ContainerId(deepest + 1)) {
            Ok(()) => deepest += 1,
            Err(refused) => break refused,
        }
    };
    assert!(matches!(refused, SnapshotError::TooDeep { .. }));
    assert_eq!(deepest, 32);
    drop(store);
    let (store, _) = Store::open_on(Arc::new(medium)).unwrap();
    for page in 0..300 {
        let want = if page <= u64::from(deepest) { 2 } else { 1 };
        assert_eq!(value(&store.view(), deepest, page), want);
    }
    whole(&store);
}

#[test]
fn changed_pages_are_those_that_differ() {
    let (store, _) = new_store(64);
    write(&store, 1, 0..100_000, 1);
    store.take_snapshot("base").unwrap();
    write(&store, 1, 70_000..70_003, 2);
    let mut batch = store.batch();
    batch.zero(id(1, 5));
    batch.push(id(1, 1 << 30), |bytes| bytes.fill(3));
    store.commit(&mut batch).unwrap();
    let want = [(5, 6), (70_000, 70_003), (1 << 30, (1 << 30) + 1)];
    let want = want.map(|(start, end)| PageRange::new(start, end));
    let container = ContainerId(1);
    let base = store.view_snapshot("base").unwrap();
    assert_eq!(store.view().changed_pages(&base, container).unwrap(), want);
    store.take_snapshot("now").unwrap();
    let now = store.view_snapshot("now").unwrap();
    let read = store.stat().counters.read_bytes;
    assert_eq!(now.changed_pages(&base, container).unwrap(), want);
    assert_eq!(base.changed_pages(&now, container).unwrap(), want);
    assert!(store.stat().counters.read_bytes - read <= 20 * PAGE_SIZE as u64);
    assert_eq!(now.changed_pages(&store.view(), container).unwrap(), []);
    assert_eq!(now.changed_pages(&base, ContainerId(2)).unwrap(), []);
}

#[test]
fn a_table_that_grows_too_long_is_refused_in_time() {
    let (store, _) = new_store(64);
    for number in 0.. {
        let mut batch = store.batch();
        for container in 0..600 {
            batch.push(id(container, 0), |bytes| bytes.fill(number as u8 + 1));
        }
        store.commit(&mut batch).unwrap();
        match store.take_snapshot(&format!("number {number}")) {
            Ok(_) => {}
            Err(SnapshotError::Failed(CommitError::Limit(_))) => break,
            Err(error) => panic!("{error}"),
        }
        assert!(number < 100, "the table is bounded");
    }
    let kept = store.snapshots().len();
    assert!(kept > 20, "{kept}");
    // It goes on without it.
    write(&store, 1, 0..5, 7);
    store.checkpoint().unwrap();
    whole(&store);
    store.drop_snapshot("number 1").unwrap();
    store.take_snapshot("one more").unwrap();
    whole(&store);
}

#[test]
fn snapshots_are_read_while_everything_else_goes_on() {
    let (store, _) = new_store(32);
    let store = &store;
    write(store, 1, 0..600, 1);
    store.take_snapshot("still").unwrap();
    let done = &AtomicBool::new(false);
    std::thread::scope(|scope| {
        for thread in 0..2 {
            scope.spawn(move || {
                let view = store.view_snapshot("still").unwrap();
                let mut page = thread;
                while !done.load(Ordering::Relaxed) {
                    assert_eq!(value(&view, 1, page), 1);
                    page = (page + 7) % 600;
                    let mut run = vec![0; 8 * PAGE_SIZE];
                    let read = view.read_run(id(1, page), &mut run).unwrap();
                    assert_eq!(read.stored, Stored::Image);
                    assert!(run[..read.pages * PAGE_SIZE].iter().all(|&byte| byte == 1));
                }
            });
        }
        // Upkeep, as its own thread would do it.
        scope.spawn(|| {
            while !done.load(Ordering::Relaxed) {
                if !store.maintain().unwrap().more {
                    std::thread::yield_now();
                }
            }
        });
        for round in 0..60u64 {
            let value = round as u8 + 2;
            write(store, 1, (round * 31 % 500..600).step_by(3), value);
            if round % 4 == 0 {
                store.take_snapshot("passing").unwrap();
            }
            if round % 4 == 2 {
                store.drop_snapshot("passing").unwrap();
            }
            if round % 20 == 19 {
                store.go_back("still").unwrap();
            }
        }
        done.store(true, Ordering::Relaxed);
    });
    whole(store);
}

#[test]
fn another_process_reads_snapshots_and_takes_none() {
    let parent = tempfile::tempdir().unwrap();
    let dir = parent.path().join("store");
    let store = Store::create(&dir, &CreateOptions::default()).unwrap();
    write(&store, 1, 0..50, 1);
    store.take_snapshot("then").unwrap();
    write(&store, 1, 0..50, 2);
    let (reader, _) = Store::open_read_only(&dir).unwrap();
    assert_eq!(reader.snapshots(), store.snapshots());
    let then = reader.view_snapshot("then").unwrap();
    assert_eq!((value(&then, 1, 3), value(&reader.view(), 1, 3)), (1, 2));
    let refused = [
        reader.take_snapshot("now").map(drop),
        reader.drop_snapshot("then"),
        reader.go_back("then").map(drop),
        reader.branch("then", ContainerId(1), ContainerId(2)),
    ];
    for refused in refused {
        assert!(
            matches!(refused, Err(SnapshotError::Failed(CommitError::ReadOnly))),
            "{refused:?}"
        );
    }
    // What it has open stays as it was, whatever becomes of it in the store.
    store.drop_snapshot("then").unwrap();
    for value in 3..40 {
        write(&store, 1, 0..50, value);
        store.checkpoint().unwrap();
    }
    assert_eq!((value(&then, 1, 3), value(&reader.view(), 1, 3)), (1, 2));
}

/// A part of a snapshot's map that is damaged withholds that part of the snapshot, and holds up nothing else.
#[test]
fn a_damaged_snapshot_holds_up_nothing() {
    let (store, whole_medium) = new_store(64);
    write(&store, 1, 0..600, 1);
    store.take_snapshot("old").unwrap();
    write(&store, 1, 0..600, 2);
    store.checkpoint().unwrap();
    drop(store);
    let blocks = whole_medium.len().unwrap() / PAGE_SIZE as u64;
    let mut nodes = 0;
    for block in 16..blocks {
        let medium = whole_medium.copy(0);
        medium.rot(block * PAGE_SIZE as u64, |sector| sector[3] ^= 1);
        let Ok((store, _)) = Store::open_on(Arc::new(medium)) else { continue };
        let old = store.view_snapshot("old").unwrap();
        let damaged = old.stored_pages(ContainerId(1)).is_err();
        drop(old);
        if !damaged || store.stored_pages(ContainerId(1)).is_err() {
            continue;
        }
        nodes += 1;
        // Every page is replaced, a branch made, and the snapshot dropped: all beside the damage.
        write(&store, 1, 0..600, 3);
        store.checkpoint().unwrap();
        store.take_snapshot("new").unwrap();
        store.branch("new", ContainerId(1), ContainerId(2)).unwrap();
        write(&store, 1, 0..300, 4);
        store.checkpoint().unwrap();
        store.drop_snapshot("old").unwrap();
        store.checkpoint().unwrap();
        assert_eq!(value(&store.view(), 1, 299), 4);
        assert_eq!(value(&store.view(), 2, 299), 3);
        whole(&store);
    }
    // The root of that map, and its three leaves.
    assert_eq!(nodes, 4);
}
