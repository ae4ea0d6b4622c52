//! Yesterday's files stay readable: a store in whose record chain each header has a twin (roots of version 6), kept as text,
//! opened by whatever this is. The text is as in `golden`; it was written by the test `write`, which only writes where
//! `STEAD_WRITE_GOLDEN_TWINS` says.

mod images;

use std::path::Path;
use std::sync::Arc;

use images::{Pages, id, image, pages};
use stead_model::{ContainerId, PAGE_SIZE};
use stead_store::Store;
use stead_store::sim::CrashMedium;

const TWINS: &str = include_str!("golden/version-1-twins.txt");

/// What it holds: a small record, a large one and a small one behind the root, and two small ones before.
fn contents() -> Pages {
    let mut want: Pages = (0..40).map(|i| (id(1, i * 7), 300 + i)).collect();
    want.insert(id(2, 0), 20);
    want.insert(id(3, 0), 31);
    want
}

#[test]
fn write() {
    let Some(path) = std::env::var_os("STEAD_WRITE_GOLDEN_TWINS") else { return };
    let (store, medium) = images::new_store();
    let commit = |pages: &[(stead_model::PageId, u64)], drops: Option<u32>| {
        let mut batch = store.batch();
        drops.into_iter().for_each(|container| batch.drop_container(ContainerId(container)));
        for &(id, value) in pages {
            batch.push(id, |p| p.copy_from_slice(&image(value)));
        }
        store.commit(&mut batch).unwrap();
    };
    commit(&[(id(1, 0), 10), (id(2, 0), 20)], None);
    commit(&[(id(3, 0), 30), (id(4, 0), 40)], None);
    store.checkpoint().unwrap();
    commit(&[(id(1, 7), 11)], Some(4));
    let large: Vec<_> = (0..40).map(|i| (id(1, i * 7), 300 + i)).collect();
    commit(&large, None);
    commit(&[(id(3, 0), 31)], None);
    drop(store);
    images::write(&medium, Path::new(&path));
}

fn check(medium: &CrashMedium, found_by_copy: u64) -> Store {
    let (store, report) = Store::open_on(Arc::new(medium.clone())).unwrap();
    assert_eq!((report.last_sequence, report.records_replayed), (5, 3));
    assert_eq!((report.fell_back, report.found_by_copy), (false, found_by_copy));
    assert_eq!(pages(&store.view()), contents());
    store
}

#[test]
fn a_store_with_twins_is_read_and_gone_on_with() {
    let medium = images::read(TWINS);
    let bytes = medium.bytes();
    assert_eq!([bytes[PAGE_SIZE + 8], bytes[2 * PAGE_SIZE + 8]], [6, 6]);
    let store = check(&medium, 0);
    assert!(store.verify(&mut |_| {}).unwrap().is_clean());
    let mut batch = store.batch();
    batch.push(id(9, 1), |p| p.copy_from_slice(&image(91)));
    store.commit(&mut batch).unwrap();
    drop(store);
    let (store, _) = Store::open_on(Arc::new(medium)).unwrap();
    let mut want = contents();
    want.insert(id(9, 1), 91);
    assert_eq!(pages(&store.view()), want);
}

#[test]
fn each_header_can_be_done_without() {
    let medium = images::read(TWINS);
    let bytes = medium.bytes();
    let root = [1, 2]
        .map(|root| u64::from_le_bytes(*bytes[root * PAGE_SIZE + 72..].first_chunk().unwrap()));
    let serial = |block: &[u8]| u64::from_le_bytes(*block[32..].first_chunk().unwrap());
    let mut done_without = 0;
    for (index, block) in bytes.chunks(PAGE_SIZE).enumerate() {
        let is_header = block.starts_with(b"STEADCHK") && block[56] != 3;
        if is_header && serial(block) >= *root.iter().max().unwrap() {
            let copy = medium.copy(0);
            copy.rot((index * PAGE_SIZE) as u64, |sector| sector.fill(0));
            check(&copy, 1);
            done_without += 1;
        }
    }
    // Forty pages take four chunks, one of them being cut short by the segment's end, and one that commits them.
    assert_eq!(done_without, 1 + 4 + 1 + 1);
}
