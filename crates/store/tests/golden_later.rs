//! Yesterday's files stay readable: a store with groups of stabilisations (roots of version 3), the same store after a
//! part of a map was lost (version 4), and one with settings (version 5), kept as text, opened by whatever this is. The
//! texts are as in `golden`; they were written by the test `write`, which only writes into the directory that
//! `STEAD_WRITE_GOLDEN_LATER` names; today that writes roots of a later version.
//! The first two are older than the counts of what has been written.

mod images;

use std::path::Path;
use std::sync::Arc;

use images::{id, image};
use stead_model::{ContainerId, PageId};
use stead_store::sim::CrashMedium;
use stead_store::sim::groups::commit_as_group;
use stead_store::{CommitError, ReadError, Store};

const BLOCK: usize = 4096;
const GROUPS: &str = include_str!("golden/version-1-groups.txt");
const LOST: &str = include_str!("golden/version-1-lost.txt");
const SETTINGS: &str = include_str!("golden/version-1-settings.txt");

fn read(store: &Store, id: PageId) -> Result<Option<u64>, ReadError> {
    images::read_page(&store.view(), id)
}

fn commit_group(store: &Store, pages: &[(PageId, u64)]) {
    let mut batches: Vec<_> = pages
        .iter()
        .map(|&(id, value)| {
            let mut batch = store.batch();
            batch.set_association(id.container.0);
            batch.push(id, |p| p.copy_from_slice(&image(value)));
            batch
        })
        .collect();
    let outcomes = commit_as_group(store, &mut batches.iter_mut().collect::<Vec<_>>());
    assert!(outcomes.iter().all(Result::is_ok), "{outcomes:?}");
}

fn open(medium: &CrashMedium) -> Store {
    Store::open_on(Arc::new(medium.clone())).unwrap().0
}

fn root_versions(medium: &CrashMedium) -> [u8; 2] {
    let bytes = medium.bytes();
    [bytes[BLOCK + 8], bytes[2 * BLOCK + 8]]
}

#[test]
fn write() {
    let Some(directory) = std::env::var_os("STEAD_WRITE_GOLDEN_LATER") else { return };
    let (store, medium) = images::new_store();
    commit_group(&store, &[(id(1, 0), 10), (id(2, 0), 20), (id(3, 0), 30)]);
    commit_group(&store, &[(id(1, 1), 11), (id(2, 300), 21)]);
    store.checkpoint().unwrap();
    commit_group(&store, &[(id(1, 2), 12), (id(2, 1), 22), (id(1, 0), 13)]);
    drop(store);
    images::write(&medium, &Path::new(&directory).join("version-1-groups.txt"));

    open(&medium).checkpoint().unwrap();
    let leaf = (16 * BLOCK..medium.bytes().len()).step_by(BLOCK).find(|&offset| {
        let copy = medium.copy(0);
        copy.rot(offset as u64, |sector| sector[100] ^= 1);
        let damage = Store::open_on(Arc::new(copy)).ok().and_then(|(store, _)| read(&store, id(1, 0)).err());
        matches!(damage, Some(ReadError::Damaged(damage)) if damage.map_of.is_some() && damage.offset == offset as u64)
    });
    medium.rot(leaf.unwrap() as u64, |sector| sector[100] ^= 1);
    let store = open(&medium);
    commit_group(&store, &[(id(1, 2), 14)]);
    store.checkpoint().unwrap();
    store.checkpoint().unwrap();
    drop(store);
    images::write(&medium, &Path::new(&directory).join("version-1-lost.txt"));

    let (store, medium) = images::new_store();
    commit_group(&store, &[(id(1, 0), 10), (id(2, 0), 20)]);
    store.set_quota(Some(QUOTA)).unwrap();
    store.set_space_percent(Some(350)).unwrap();
    for (container, pages) in [(1, 3), (2, 4), (3, 5)] {
        store.set_container_quota(ContainerId(container), Some(pages * BLOCK as u64)).unwrap();
    }
    commit_group(&store, &[(id(1, 1), 11)]);
    let mut batch = store.batch();
    batch.drop_container(ContainerId(2));
    store.commit(&mut batch).unwrap();
    drop(store);
    images::write(&medium, &Path::new(&directory).join("version-1-settings.txt"));
}

/// 12 segments of 32 blocks, and the header.
const QUOTA: u64 = (16 + 12 * 32) * BLOCK as u64;

#[test]
fn a_store_with_settings_is_read_and_gone_on_with() {
    let medium = images::read(SETTINGS);
    assert_eq!(root_versions(&medium), [5, 5]);
    let store = open(&medium);
    assert_eq!(images::pages(&store.view()), [(id(1, 0), 10), (id(1, 1), 11)].into());
    // That of the container that was given up behind the root is gone.
    let quotas = vec![(ContainerId(1), 3 * BLOCK as u64), (ContainerId(3), 5 * BLOCK as u64)];
    let kept = |store: &Store| {
        assert_eq!((store.quota(), store.space_percent()), (Some(QUOTA), 350));
        assert_eq!(store.container_quotas(), quotas);
    };
    kept(&store);
    let written = store.written();
    assert_eq!((written.since, written.pages, written.record_blocks), (0, 3, 7));
    assert_eq!((written.map_blocks, written.cleaning_blocks), (39, 0));
    let mut batch = store.batch();
    (5..8).for_each(|page| batch.push(id(1, page), |p| p.copy_from_slice(&image(page))));
    assert!(matches!(store.commit(&mut batch), Err(CommitError::ContainerFull { .. })));
    commit_group(&store, &[(id(1, 2), 12)]);
    store.checkpoint().unwrap();
    drop(store);
    let store = open(&medium);
    kept(&store);
    assert_eq!((read(&store, id(1, 2)).unwrap(), store.written().pages), (Some(12), 4));
    assert!(store.verify(&mut |_| {}).unwrap().is_clean());
}

#[test]
fn a_store_with_groups_is_read_and_gone_on_with() {
    let medium = images::read(GROUPS);
    assert_eq!(root_versions(&medium), [3, 3]);
    let want = [
        (id(1, 0), 13),
        (id(1, 1), 11),
        (id(1, 2), 12),
        (id(2, 0), 20),
        (id(2, 1), 22),
        (id(2, 300), 21),
        (id(3, 0), 30),
    ];
    let store = open(&medium);
    assert_eq!(store.stat().last_sequence, 8);
    assert_eq!(images::pages(&store.view()), want.into());
    assert!(store.verify(&mut |_| {}).unwrap().is_clean());
    // Counted from the root on that does not count, behind which there are three.
    assert_eq!((store.written().since, store.written().pages), (5, 3));
    commit_group(&store, &[(id(3, 1), 31), (id(2, 1), 23)]);
    drop(store);
    let store = open(&medium);
    assert_eq!(read(&store, id(2, 1)).unwrap(), Some(23));
    assert_eq!(read(&store, id(3, 1)).unwrap(), Some(31));
    assert_eq!(read(&store, id(1, 0)).unwrap(), Some(13));
    assert_eq!((store.written().since, store.written().pages), (5, 5));
}

#[test]
fn a_store_with_lost_entries_is_read_and_gone_on_with() {
    let medium = images::read(LOST);
    assert_eq!(root_versions(&medium), [4, 4]);
    let store = open(&medium);
    let lost = |store: &Store, id| matches!(read(store, id), Err(ReadError::Damaged(damage)) if damage.page == Some(id));
    assert_eq!(read(&store, id(1, 2)).unwrap(), Some(14));
    assert!(lost(&store, id(1, 0)) && lost(&store, id(1, 1)));
    assert_eq!(read(&store, id(2, 300)).unwrap(), Some(21));
    assert_eq!(read(&store, id(3, 0)).unwrap(), Some(30));
    commit_group(&store, &[(id(1, 0), 15)]);
    store.checkpoint().unwrap();
    drop(store);
    let store = open(&medium);
    assert_eq!(read(&store, id(1, 0)).unwrap(), Some(15));
    assert!(lost(&store, id(1, 1)));
}
