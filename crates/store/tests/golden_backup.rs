//! Yesterday's backups stay readable: two of version 1, the second on top of the first, kept as text and restored by
//! whatever this is. The text is as in `golden`; it was written by the test `write` of an earlier version.

mod images;

use std::path::Path;

use images::{id, image};
use stead_model::PAGE_SIZE;
use stead_store::{Restore, Store};

const BACKUPS: &str = include_str!("golden/backup-version-1.txt");

#[test]
fn write() {
    let Some(directory) = std::env::var_os("STEAD_WRITE_GOLDEN_BACKUP") else { return };
    let (store, _) = images::new_store();
    let mut batch = store.batch();
    for (page, value) in [(0, 10), (1, 11), (300, 12)] {
        batch.push(id(1, page), |bytes| bytes.copy_from_slice(&image(value)));
        batch.push(id(2, page), |bytes| bytes.copy_from_slice(&image(value + 10)));
    }
    store.commit(&mut batch).unwrap();
    store.take_snapshot("one").unwrap();
    batch.zero(id(1, 1));
    batch.push(id(1, 0), |bytes| bytes.copy_from_slice(&image(13)));
    batch.drop_container(id(2, 0).container);
    store.commit(&mut batch).unwrap();
    store.take_snapshot("two").unwrap();
    let mut stream = Vec::new();
    let one = store.view_snapshot("one").unwrap();
    one.backup(None, &mut stream, &mut |_| {}).unwrap();
    store.view_snapshot("two").unwrap().backup(Some(&one), &mut stream, &mut |_| {}).unwrap();
    images::write_bytes(&stream, &Path::new(&directory).join("backup-version-1.txt"));
}

#[test]
fn backups_of_version_1_are_restored() {
    let stream = images::read_bytes(BACKUPS);
    assert_eq!((&stream[..8], stream[8]), (&b"STEADBAK"[..], 1));
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path().join("restored");
    let mut restore = Restore::begin(&dir).unwrap();
    restore.apply(&mut &stream[..], &mut |_| {}).unwrap();
    let restored = restore.finish(&mut |_| {}).unwrap();
    assert_eq!((restored.state.name.as_str(), restored.images), ("two", 7));
    let (store, _) = Store::open(&dir).unwrap();
    assert_eq!(images::pages(&store.view()), [(id(1, 0), 13), (id(1, 300), 12)].into());
    assert_eq!((store.quota(), store.space_percent()), (None, 200));
    let mut page = [0; PAGE_SIZE];
    store.read_page(id(1, 0), &mut page).unwrap();
    assert_eq!(page, image(13));
}
