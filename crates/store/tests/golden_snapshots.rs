//! Yesterday's files stay readable: a store with snapshots and branches, kept as text, opened by whatever this is. The
//! text is as in `golden`; it was written by the test `write`, which only writes where
//! `STEAD_WRITE_GOLDEN_SNAPSHOTS` says; today that writes roots of a later version.

mod images;

use std::io::IoSlice;
use std::sync::Arc;

use images::{Pages, id, image, pages};
use stead_model::{ContainerId, PAGE_SIZE};
use stead_store::sim::CrashMedium;
use stead_store::{Batch, Medium, OpenError, Store};

/// What it holds, in the order in which it came: "first", "second" and the live state, where container 9 is a branch
/// of container 8, which is one of container 1.
fn contents() -> (Pages, Pages, Pages) {
    let mut first: Pages = (0..20).map(|i| (id(1, i * 300), 100 + i)).collect();
    first.insert(id(0, 0), 1);
    let mut second = first.clone();
    second.remove(&id(0, 0));
    second.insert(id(1, 300), 2);
    let branch = first.iter().filter(|(id, _)| id.container == ContainerId(1));
    second.extend(branch.map(|(from, &value)| (id(8, from.page.0), value)));
    second.insert(id(8, 0), 3);
    let mut live = second.clone();
    let branch = second.iter().filter(|(id, _)| id.container == ContainerId(8));
    live.extend(branch.map(|(from, &value)| (id(9, from.page.0), value)));
    live.insert(id(9, 600), 4);
    live.retain(|id, _| id.container != ContainerId(1));
    live.insert(id(8, 900), 5);
    (first, second, live)
}

#[test]
fn write() {
    let Some(path) = std::env::var_os("STEAD_WRITE_GOLDEN_SNAPSHOTS") else { return };
    let (store, medium) = images::new_store();
    let mut batch = store.batch();
    let push = |batch: &mut Batch, id, value| {
        batch.push(id, |p| p.copy_from_slice(&image(value)));
    };
    let (first, ..) = contents();
    first.iter().for_each(|(&id, &value)| push(&mut batch, id, value));
    store.commit(&mut batch).unwrap();
    store.take_snapshot("first").unwrap();
    store.branch("first", ContainerId(1), ContainerId(8)).unwrap();
    batch.zero(id(0, 0));
    push(&mut batch, id(1, 300), 2);
    push(&mut batch, id(8, 0), 3);
    store.commit(&mut batch).unwrap();
    store.take_snapshot("between").unwrap();
    store.take_snapshot("second").unwrap();
    store.drop_snapshot("between").unwrap();
    store.branch("second", ContainerId(8), ContainerId(9)).unwrap();
    push(&mut batch, id(9, 600), 4);
    store.commit(&mut batch).unwrap();
    store.checkpoint().unwrap();
    batch.drop_container(ContainerId(1));
    push(&mut batch, id(8, 900), 5);
    store.commit(&mut batch).unwrap();
    drop(store);

    images::write(&medium, std::path::Path::new(&path));
}

/// The file, as it was.
fn read() -> CrashMedium {
    images::read(include_str!("golden/version-1-snapshots.txt"))
}

#[test]
fn a_store_with_snapshots_is_read_and_gone_on_with() {
    let medium = read();
    let (first, second, mut live) = contents();
    let (store, report) = Store::open_on(Arc::new(medium.clone())).unwrap();
    assert_eq!((report.last_sequence, report.records_replayed), (4, 1));
    let names: Vec<String> = store.snapshots().into_iter().map(|info| info.name).collect();
    assert_eq!(names, ["first", "second"]);
    let check = |store: &Store, live: &Pages| {
        assert_eq!(pages(&store.view()), *live);
        assert_eq!(pages(&store.view_snapshot("first").unwrap()), first);
        assert_eq!(pages(&store.view_snapshot("second").unwrap()), second);
        assert!(store.verify(&mut |_| {}).unwrap().is_clean());
    };
    check(&store, &live);
    let mut batch = store.batch();
    batch.push(id(9, 0), |p| p.copy_from_slice(&image(6)));
    live.insert(id(9, 0), 6);
    store.commit(&mut batch).unwrap();
    store.checkpoint().unwrap();
    check(&store, &live);
    drop(store);
    let (store, _) = Store::open_on(Arc::new(medium)).unwrap();
    check(&store, &live);
    store.go_back("first").unwrap();
    check(&store, &first);
}

#[test]
fn a_root_of_a_later_version_is_refused_with_words() {
    let medium = read();
    // As `Root::encode` would seal it for its slot, had it version 1000.
    for block in [1, 2u64] {
        let mut root = [0; PAGE_SIZE];
        medium.read(block * PAGE_SIZE as u64, &mut root).unwrap();
        root[8..12].copy_from_slice(&1000u32.to_le_bytes());
        let seed = u64::from_le_bytes(*b"STEADRUT") ^ block ^ 999 << 32;
        let seal = xxhash_rust::xxh3::xxh3_64_with_seed(&root[..PAGE_SIZE - 8], seed);
        root[PAGE_SIZE - 8..].copy_from_slice(&seal.to_le_bytes());
        medium.write(block * PAGE_SIZE as u64, &[IoSlice::new(&root)]).unwrap();
    }
    match Store::open_on(Arc::new(medium)) {
        Err(error @ OpenError::NewerFormat { found: 1000, .. }) => {
            assert!(error.to_string().contains("use a newer version"));
        }
        opened => panic!("{opened:?}"),
    }
}

/// Every byte of the table's part with snapshots changed: an error, or the other root, never a panic and never another
/// state.
#[test]
fn damage_in_the_table_is_noticed() {
    let (_, _, live) = contents();
    let whole = read();
    let tables = table_blocks(&whole);
    assert!(!tables.is_empty());
    for block in tables {
        for byte in (0..PAGE_SIZE).step_by(7) {
            let medium = whole.copy(0);
            let offset = block * PAGE_SIZE as u64 + byte as u64;
            medium.rot(offset, |sector| sector[byte % 512] ^= 0x20);
            match Store::open_on(Arc::new(medium)) {
                Err(OpenError::Damaged { .. }) => {}
                Ok((store, _)) => assert_eq!(pages(&store.view()), live),
                Err(error) => panic!("offset {offset:#x}: {error}"),
            }
        }
    }
}

/// Where the tables of both roots lie.
fn table_blocks(medium: &CrashMedium) -> Vec<u64> {
    let mut blocks = Vec::new();
    for root in [1, 2] {
        let mut bytes = [0; PAGE_SIZE];
        medium.read(root * PAGE_SIZE as u64, &mut bytes).unwrap();
        let number = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap());
        for i in 0..number(12) as usize {
            let at = 128 + i * 24;
            let place = u64::from(number(at)) | u64::from(number(at + 4)) << 32;
            blocks.extend(place..place + u64::from(number(at + 8)));
        }
    }
    blocks
}
