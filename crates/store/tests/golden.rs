//! Yesterday's files stay readable: a store that version 1 wrote, kept as text, opened by whatever this is.
//!
//! `tests/golden/version-1.txt` has the bytes that are not zero: a line with the file's length, then lines of offset
//! and 16 bytes in hexadecimal. It was written by the test `write`, which only writes where
//! `STEAD_WRITE_GOLDEN` says; today that writes roots of a later version.

mod images;

use std::sync::Arc;

use images::{Pages, id, image, pages};
use stead_model::ContainerId;
use stead_store::Store;
use stead_store::sim::CrashMedium;

/// What the store holds: it has been written in three stabilisations behind a root, and two before.
fn contents() -> Pages {
    let mut want: Pages = (0..20).map(|i| (id(1, i * 300), 100 + i)).collect();
    want.insert(id(0, 0), 1);
    want.remove(&id(1, 600));
    want.insert(id(1, 0), 7);
    want.insert(id(1, (1 << 40) - 1), 8);
    want.insert(id(3, 5), 9);
    want
}

#[test]
fn write() {
    let Some(path) = std::env::var_os("STEAD_WRITE_GOLDEN") else { return };
    let (store, medium) = images::new_store();
    let mut batch = store.batch();
    let push = |batch: &mut stead_store::Batch, id, value| {
        batch.push(id, |p| p.copy_from_slice(&image(value)));
    };
    (0..20).for_each(|i| push(&mut batch, id(1, i * 300), 100 + i));
    store.commit(&mut batch).unwrap();
    push(&mut batch, id(0, 0), 1);
    push(&mut batch, id(2, 2), 2);
    store.commit(&mut batch).unwrap();
    store.checkpoint().unwrap();
    batch.drop_container(ContainerId(2));
    batch.zero(id(1, 600));
    store.commit(&mut batch).unwrap();
    push(&mut batch, id(1, 0), 7);
    push(&mut batch, id(1, (1 << 40) - 1), 8);
    store.commit(&mut batch).unwrap();
    push(&mut batch, id(3, 5), 9);
    store.commit(&mut batch).unwrap();
    drop(store);

    images::write(&medium, std::path::Path::new(&path));
}

/// The file, as it was.
fn read() -> CrashMedium {
    images::read(include_str!("golden/version-1.txt"))
}

#[test]
fn a_store_of_version_1_is_read_and_gone_on_with() {
    let medium = read();
    let (store, report) = Store::open_on(Arc::new(medium.clone())).unwrap();
    assert_eq!((report.last_sequence, report.records_replayed), (5, 3));
    assert!(!report.fell_back && report.unfinished.is_none());
    let header = store.header();
    assert_eq!(header.store_id, 0x0123_4567_89AB_CDEF_0011_2233_4455_6677);
    assert_eq!((header.base_window, header.created), (11, 1_763_000_000));
    let mut want = contents();
    check(&store, &want);
    let mut batch = store.batch();
    batch.push(id(1, 600), |p| p.copy_from_slice(&image(10)));
    want.insert(id(1, 600), 10);
    store.commit(&mut batch).unwrap();
    drop(store);
    let (store, _) = Store::open_on(Arc::new(medium)).unwrap();
    check(&store, &want);
}

fn check(store: &Store, want: &Pages) {
    assert_eq!(pages(&store.view()), *want);
    assert!(store.verify(&mut |_| {}).unwrap().is_clean());
}
