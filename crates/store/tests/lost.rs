//! A part of the map that is damaged when it must be changed: what it told is lost, and said to be; everything else goes
//! on, and no block stays counted that nobody can reach (catalogue B9, B12).

use std::fs;
use std::os::unix::fs::FileExt;
use std::path::Path;

use stead_model::{ContainerId, PAGE_SIZE, PageId, PageNo};
use stead_store::{CreateOptions, ReadError, Store, Stored};

fn id(container: u32, page: u64) -> PageId {
    PageId { container: ContainerId(container), page: PageNo(page) }
}

fn commit(store: &Store, container: u32, pages: impl IntoIterator<Item = u64>, value: u8) {
    let mut batch = store.batch();
    for page in pages {
        batch.push(id(container, page), |bytes| bytes.fill(value));
    }
    store.commit(&mut batch).unwrap();
}

fn value(store: &Store, container: u32, page: u64) -> Result<u8, ReadError> {
    let mut bytes = [0xEE; PAGE_SIZE];
    store.read_page(id(container, page), &mut bytes)?;
    assert!(bytes.iter().all(|&b| b == bytes[0]));
    Ok(bytes[0])
}

/// Asserts that a page is lost, and that the error names it.
fn lost(store: &Store, container: u32, page: u64) {
    let error = value(store, container, page).unwrap_err();
    let ReadError::Damaged(damage) = &error else { panic!("{error}") };
    let pages = damage.map_of.map(|(_, pages)| pages);
    let named = damage.page == Some(id(container, page))
        || pages.is_some_and(|pages| (pages.start..pages.end).contains(&page));
    assert!(named && damage.what.contains("map"), "{error}");
}

/// Three roots, so that nothing waits for one any more.
fn settle(store: &Store) {
    (0..3).for_each(|_| store.checkpoint().unwrap());
}

/// Two containers of 600 pages, each three leaves and the node above them, all stored.
fn filled(dir: &Path) {
    let store = Store::create(dir, &CreateOptions::default()).unwrap();
    commit(&store, 1, 0..600, 1);
    commit(&store, 2, 0..600, 2);
    settle(&store);
}

/// Damages all images of this node of container 1's map.
fn spoil(dir: &Path, level: u64, index: u64) {
    spoil_of(dir, 1, level, index);
}

fn spoil_of(dir: &Path, container: u64, level: u64, index: u64) {
    let wanted = (3u64 << 62 | container << 40 | level << 32 | index).to_le_bytes();
    let log = dir.join("log");
    let bytes = fs::read(&log).unwrap();
    let mut found = Vec::new();
    for (at, header) in bytes.chunks(4096).enumerate() {
        if header[..8] != *b"STEADCHK" || header[56] != 3 {
            continue;
        }
        let entries = usize::from(u16::from_le_bytes([header[58], header[59]]));
        let ids = header[128..].chunks(16).take(entries);
        found.extend(ids.enumerate().filter(|(_, e)| e[..8] == wanted).map(|(i, _)| at + 1 + i));
    }
    let file = fs::OpenOptions::new().write(true).open(&log).unwrap();
    for block in found {
        let byte = bytes[block * 4096 + 7];
        file.write_all_at(&[byte ^ 1], block as u64 * 4096 + 7).unwrap();
    }
}

/// Where the oldest first leaf of container 2's map lies, in bytes.
fn snapshots_leaf(log: &[u8]) -> usize {
    let wanted = (3u64 << 62 | 2 << 40).to_le_bytes();
    let mut chunks =
        log.chunks(4096).enumerate().filter(|(_, b)| b[..8] == *b"STEADCHK" && b[56] == 3);
    let found = chunks.find_map(|(at, header)| {
        let mut ids = header[128..].chunks(16);
        Some(at + 1 + ids.position(|entry| entry[..8] == wanted)?)
    });
    found.unwrap() * 4096
}

fn open(dir: &Path) -> Store {
    Store::open(dir).unwrap().0
}

/// What is in use when nothing is damaged: pages and map of two containers, in blocks.
fn live_blocks(store: &Store) -> u64 {
    let verified = store.verify_map().unwrap();
    assert_eq!(verified.miscounted, Vec::<String>::new());
    let used = verified.blocks;
    assert_eq!(
        used.whole,
        used.header + used.free + used.pending + used.images + used.map + used.pinned + used.other
    );
    store.stat().live_bytes / 4096
}

#[test]
fn a_damaged_leaf_heals_page_by_page_and_holds_up_nothing() {
    let dir = tempfile::tempdir().unwrap();
    filled(dir.path());
    let whole = live_blocks(&open(dir.path()));
    spoil(dir.path(), 0, 0);
    let store = open(dir.path());
    assert!(matches!(value(&store, 1, 5), Err(ReadError::Damaged(_))));
    // A page of it is stored anew, another becomes zero: checkpoints go on, and all else in the leaf is lost.
    commit(&store, 1, [5], 7);
    let mut batch = store.batch();
    batch.zero(id(1, 6));
    store.commit(&mut batch).unwrap();
    settle(&store);
    let stays = |store: &Store| {
        assert_eq!(value(store, 1, 5).unwrap(), 7);
        let mut page = [1; PAGE_SIZE];
        assert_eq!(store.read_page(id(1, 6), &mut page).unwrap(), Stored::Never);
        for page in [0, 4, 7, 255] {
            lost(store, 1, page);
        }
        assert!((256..600).all(|page| value(store, 1, page).unwrap() == 1));
        assert!((0..600).all(|page| value(store, 2, page).unwrap() == 2));
    };
    stays(&store);
    drop(store);
    // It is the same after a restart, and everybody who asks is told.
    let store = open(dir.path());
    stays(&store);
    let damages = store.verify(&mut |_| {}).unwrap().damages;
    assert_eq!(damages.len(), 254, "one for each page: {:?}", damages.first());
    let scrubbed = store.scrub(&mut |_| std::ops::ControlFlow::Continue(()));
    assert_eq!(scrubbed.damages.len(), 254);
    let stored: u64 =
        store.stored_pages(ContainerId(1)).unwrap().iter().map(|run| run.page_count()).sum();
    assert_eq!(stored, 599, "who reads all that is stored meets what is lost");
    // The blocks of the pages that are lost are in use no more: 255, and one page is gone for good.
    assert_eq!(store.stat().live_bytes / 4096, whole - 255);
    // All of it is stored anew: nothing is damaged, and everything adds up.
    commit(&store, 1, 0..256, 8);
    settle(&store);
    assert_eq!(live_blocks(&store), whole);
    assert!((0..256).all(|page| value(&store, 1, page).unwrap() == 8));
    drop(store);
    let store = open(dir.path());
    settle(&store);
    assert!(store.verify(&mut |_| {}).unwrap().is_clean());
    assert_eq!(live_blocks(&store), whole);
}

#[test]
fn a_damaged_node_above_leaves_loses_them_all_and_heals() {
    let dir = tempfile::tempdir().unwrap();
    filled(dir.path());
    let whole = live_blocks(&open(dir.path()));
    spoil(dir.path(), 1, 0);
    let store = open(dir.path());
    commit(&store, 1, [300], 7);
    settle(&store);
    assert_eq!(value(&store, 1, 300).unwrap(), 7);
    for page in [0, 255, 256, 299, 301, 599, 65_535] {
        lost(&store, 1, page);
    }
    assert!((0..600).all(|page| value(&store, 2, page).unwrap() == 2));
    drop(store);
    let store = open(dir.path());
    lost(&store, 1, 599);
    // What was never stored is lost too: nobody knows that it was not.
    lost(&store, 1, 40_000);
    commit(&store, 1, 0..65_536, 8);
    settle(&store);
    assert!(store.verify_map().unwrap().is_clean());
    // Zeros take no room; the pages that were there are as before.
    let mut batch = store.batch();
    (600..65_536).for_each(|page| batch.zero(id(1, page)));
    store.commit(&mut batch).unwrap();
    settle(&store);
    assert_eq!(live_blocks(&store), whole);
}

#[test]
fn a_damaged_node_above_all_others_loses_whatever_there_can_have_been() {
    const ALL: u64 = 1 << 24;
    let dir = tempfile::tempdir().unwrap();
    let store = Store::create(dir.path(), &CreateOptions::default()).unwrap();
    commit(&store, 1, (0..600).chain([100_000]), 1);
    settle(&store);
    drop(store);
    spoil(dir.path(), 2, 0);
    let store = open(dir.path());
    commit(&store, 1, [5], 7);
    settle(&store);
    let ranges = |store: &Store| -> Vec<(u64, u64)> {
        let stored = store.stored_pages(ContainerId(1)).unwrap();
        stored.iter().map(|range| (range.start, range.end)).collect()
    };
    assert_eq!(ranges(&store), [(0, ALL)]);
    [0, 599, 100_000, ALL - 1].into_iter().for_each(|page| lost(&store, 1, page));
    assert_eq!(value(&store, 1, 5).unwrap(), 7);
    // Only what is known to be there counts.
    assert_eq!(store.view().stored_count(ContainerId(1)), 1);
    let mut batch = store.batch();
    [0, 70_000].into_iter().for_each(|page| batch.zero(id(1, page)));
    store.commit(&mut batch).unwrap();
    for _ in 0..2 {
        assert_eq!(ranges(&store), [(1, 70_000), (70_001, ALL)]);
        store.checkpoint().unwrap();
    }
    drop(store);
    let (store, _) = Store::open_read_only(dir.path()).unwrap();
    let refused = store.view().backup(None, &mut std::io::sink(), &mut |_| {}).unwrap_err();
    assert!(refused.to_string().contains("storing it anew heals it"), "{refused}");
}

#[test]
fn a_damaged_map_that_is_dropped_frees_all_it_had() {
    let dir = tempfile::tempdir().unwrap();
    filled(dir.path());
    for level in [0, 1] {
        let copy = tempfile::tempdir().unwrap();
        for file in ["log", "lock"] {
            fs::copy(dir.path().join(file), copy.path().join(file)).unwrap();
        }
        spoil(copy.path(), level, 0);
        let blocks = |dir: &Path| {
            let store = open(dir);
            let mut batch = store.batch();
            batch.drop_container(ContainerId(1));
            store.commit(&mut batch).unwrap();
            settle(&store);
            assert!(store.verify(&mut |_| {}).unwrap().is_clean());
            live_blocks(&store)
        };
        let sound = tempfile::tempdir().unwrap();
        for file in ["log", "lock"] {
            fs::copy(dir.path().join(file), sound.path().join(file)).unwrap();
        }
        assert_eq!(blocks(copy.path()), blocks(sound.path()), "level {level}");
    }
}

#[test]
fn a_snapshot_keeps_its_damage_to_itself() {
    let dir = tempfile::tempdir().unwrap();
    filled(dir.path());
    {
        let store = open(dir.path());
        store.take_snapshot("kept").unwrap();
        settle(&store);
    }
    spoil(dir.path(), 0, 0);
    let store = open(dir.path());
    commit(&store, 1, 0..256, 8);
    settle(&store);
    assert!((0..256).all(|page| value(&store, 1, page).unwrap() == 8));
    let mut page = [0; PAGE_SIZE];
    let view = store.view_snapshot("kept").unwrap();
    assert!(matches!(view.read_page(id(1, 5), &mut page), Err(ReadError::Damaged(_))));
    view.read_page(id(1, 500), &mut page).unwrap();
    drop(view);
    // Nothing that is stored anew is held back for a snapshot of which nobody knows what it had.
    let grows = |store: &Store, container| {
        let before = store.stat().live_bytes;
        for round in 9..14 {
            commit(store, container, 50..100, round);
            settle(store);
        }
        store.stat().live_bytes - before
    };
    assert_eq!(grows(&store, 1), 0);
    // Nor if the damage is in what only the snapshot has, and is found then.
    commit(&store, 2, 0..256, 3);
    settle(&store);
    drop(store);
    let log = fs::read(dir.path().join("log")).unwrap();
    let leaf = snapshots_leaf(&log);
    let file = fs::OpenOptions::new().write(true).open(dir.path().join("log")).unwrap();
    file.write_all_at(&[!log[leaf + 7]], leaf as u64 + 7).unwrap();
    let store = open(dir.path());
    commit(&store, 2, [70], 8);
    settle(&store);
    assert_eq!(grows(&store, 2), 0);
    assert!((0..600).all(|page| value(&store, 2, page).is_ok()));
    let view = store.view_snapshot("kept").unwrap();
    assert!(matches!(view.read_page(id(2, 5), &mut page), Err(ReadError::Damaged(_))));
    view.read_page(id(2, 300), &mut page).unwrap();
    drop(view);
    store.drop_snapshot("kept").unwrap();
    settle(&store);
    assert!(store.verify(&mut |_| {}).unwrap().is_clean());
    let twin = tempfile::tempdir().unwrap();
    filled(twin.path());
    assert_eq!(live_blocks(&store), live_blocks(&open(twin.path())));
}

#[test]
fn a_snapshot_of_what_is_lost_holds_back_nothing_that_is_stored_anew() {
    let dir = tempfile::tempdir().unwrap();
    filled(dir.path());
    spoil_of(dir.path(), 2, 0, 0);
    let store = open(dir.path());
    commit(&store, 2, [5], 3);
    settle(&store);
    store.take_snapshot("with lost pages").unwrap();
    commit(&store, 2, 0..256, 4);
    settle(&store);
    let before = store.stat().live_bytes;
    for round in 5..15 {
        commit(&store, 2, 100..200, round);
        settle(&store);
    }
    assert_eq!(store.stat().live_bytes, before);
    let mut page = [0; PAGE_SIZE];
    let view = store.view_snapshot("with lost pages").unwrap();
    assert!(matches!(view.read_page(id(2, 6), &mut page), Err(ReadError::Damaged(_))));
    view.read_page(id(2, 5), &mut page).unwrap();
    drop(view);
    store.drop_snapshot("with lost pages").unwrap();
    settle(&store);
    assert!(store.verify(&mut |_| {}).unwrap().is_clean());
    let twin = tempfile::tempdir().unwrap();
    filled(twin.path());
    assert_eq!(live_blocks(&store), live_blocks(&open(twin.path())));
}

#[cfg(feature = "planted")]
#[test]
fn a_lost_part_taken_for_an_empty_one_or_counted_for_ever_is_found() {
    use stead_store::planted::{Bug, set};
    let dir = tempfile::tempdir().unwrap();
    filled(dir.path());
    let whole = live_blocks(&open(dir.path()));
    spoil(dir.path(), 0, 0);
    let copy = fs::read(dir.path().join("log")).unwrap();
    set(Some(Bug::LostReadsZero));
    let store = open(dir.path());
    commit(&store, 1, [5], 7);
    settle(&store);
    assert_eq!(value(&store, 1, 6).unwrap(), 0, "the wrong bytes that the first test would see");
    drop(store);
    fs::write(dir.path().join("log"), copy).unwrap();
    set(Some(Bug::LostNotRecounted));
    let store = open(dir.path());
    commit(&store, 1, 0..256, 8);
    settle(&store);
    set(None);
    assert!(store.stat().live_bytes / 4096 > whole, "256 blocks that nobody can reach");
    assert!(!store.verify_map().unwrap().is_clean());
}
