//! Quotas (catalogue B9): what a container or the whole store may have, for good. Beyond it a stabilisation is refused and
//! changes nothing; what makes room goes on.

use std::sync::{Arc, Barrier};

use stead_model::{ContainerId, PAGE_SIZE, PageId, PageNo};
use stead_store::sim::CrashMedium;
use stead_store::{Batch, CommitError, CreateOptions, Medium, Store};

const PAGE: u64 = PAGE_SIZE as u64;

fn id(container: u32, page: u64) -> PageId {
    PageId { container: ContainerId(container), page: PageNo(page) }
}

fn create(seed: u64, segment_blocks: u32) -> (CrashMedium, Store) {
    let medium = CrashMedium::new(seed);
    let segment_blocks = Some(segment_blocks);
    let options = CreateOptions { segment_blocks, ..CreateOptions::default() };
    let store = Store::create_on(Arc::new(medium.clone()), &options).unwrap();
    (medium, store)
}

fn again(medium: &CrashMedium) -> Store {
    Store::open_on(Arc::new(medium.clone())).unwrap().0
}

fn push(batch: &mut Batch, container: u32, pages: std::ops::Range<u64>, value: u8) {
    pages.for_each(|page| batch.push(id(container, page), |p| p.fill(value)));
}

fn commit(store: &Store, container: u32, pages: std::ops::Range<u64>, value: u8) {
    let mut batch = store.batch();
    push(&mut batch, container, pages, value);
    store.commit(&mut batch).unwrap();
}

fn value(store: &Store, container: u32, page: u64) -> u8 {
    let mut bytes = [0; PAGE_SIZE];
    store.read_page(id(container, page), &mut bytes).unwrap();
    assert!(bytes.iter().all(|&b| b == bytes[0]));
    bytes[0]
}

#[test]
fn a_container_holds_no_more_than_its_quota() {
    let (medium, store) = create(1, 32);
    let one = ContainerId(1);
    // Before there is anything in it.
    store.set_container_quota(one, Some(10 * PAGE + 4095)).unwrap();
    commit(&store, 1, 0..6, 1);
    commit(&store, 2, 0..50, 1);
    let before = store.stat();
    let mut batch = store.batch();
    push(&mut batch, 1, 4..11, 2);
    push(&mut batch, 2, 0..1, 2);
    for _ in 0..2 {
        let error = store.commit(&mut batch).unwrap_err();
        let CommitError::ContainerFull { container, quota_bytes, held_bytes, asked_bytes } = error
        else {
            panic!("{error}");
        };
        assert_eq!((container, quota_bytes), (one, 10 * PAGE + 4095));
        assert_eq!((held_bytes, asked_bytes), (6 * PAGE, 11 * PAGE));
        assert_eq!(batch.pages(), 8, "the batch keeps all of it");
        assert_eq!((value(&store, 1, 4), value(&store, 1, 6), value(&store, 2, 0)), (1, 0, 1));
    }
    let now = store.stat();
    assert_eq!(now.counters.written_bytes(), before.counters.written_bytes());
    assert_eq!((now.file_bytes, now.last_sequence), (before.file_bytes, before.last_sequence));
    let words = store.commit(&mut batch).unwrap_err().to_string();
    assert!(words.contains("free something in it, or raise its quota"), "{words}");
    // Something is freed in it: then there is room.
    batch.zero(id(1, 0));
    store.commit(&mut batch).unwrap();
    assert_eq!(store.stored_pages(one).unwrap().iter().map(|r| r.page_count()).sum::<u64>(), 10);
    // Full: overwriting and freeing go on, whatever lies between.
    for round in 3..9 {
        commit(&store, 1, 1..11, round);
        store.checkpoint().unwrap();
    }
    push(&mut batch, 1, 11..12, 9);
    assert!(matches!(store.commit(&mut batch), Err(CommitError::ContainerFull { .. })));
    batch.zero(id(1, 10));
    store.commit(&mut batch).unwrap();
    // Less than it has: it keeps that, and gets no more.
    drop(store);
    let store = again(&medium);
    assert_eq!(store.container_quota(one), Some(10 * PAGE + 4095));
    store.set_container_quota(one, Some(3 * PAGE)).unwrap();
    commit(&store, 1, 1..10, 9);
    push(&mut batch, 1, 20..21, 9);
    batch.zero(id(1, 1));
    store.commit(&mut batch).unwrap();
    push(&mut batch, 1, 21..22, 9);
    assert!(matches!(store.commit(&mut batch), Err(CommitError::ContainerFull { .. })));
    // Raised, lifted, laid down again.
    store.set_container_quota(one, None).unwrap();
    store.commit(&mut batch).unwrap();
    assert_eq!(store.container_quotas(), []);
    store.set_container_quota(one, Some(11 * PAGE)).unwrap();
    push(&mut batch, 1, 30..31, 9);
    assert!(matches!(store.commit(&mut batch), Err(CommitError::ContainerFull { .. })));
    // Given up, and its quota with it.
    batch.clear();
    batch.drop_container(one);
    push(&mut batch, 1, 0..20, 1);
    store.commit(&mut batch).unwrap();
    assert_eq!(store.container_quota(one), None);
    drop(store);
    let store = again(&medium);
    assert_eq!(store.container_quota(one), None);
    commit(&store, 1, 20..40, 1);
    assert!(store.verify(&mut |_| {}).unwrap().is_clean());
}

/// Of several that stabilise at once only the one that asks for too much is refused.
#[test]
fn others_of_a_group_are_not_refused() {
    let (_, store) = create(2, 64);
    store.set_container_quota(ContainerId(1), Some(4 * PAGE)).unwrap();
    commit(&store, 1, 0..4, 1);
    let barrier = Barrier::new(3);
    std::thread::scope(|scope| {
        for container in 1..=3 {
            let (store, barrier) = (&store, &barrier);
            scope.spawn(move || {
                let mut batch = store.batch();
                for round in 1..60 {
                    barrier.wait();
                    batch.clear();
                    push(&mut batch, container, round % 7..round % 7 + 3, round as u8);
                    let committed = store.commit(&mut batch);
                    let over = container == 1 && round % 7 + 3 > 4;
                    match committed {
                        Ok(_) => assert!(!over),
                        Err(CommitError::ContainerFull { .. }) => assert!(over),
                        Err(error) => panic!("{error}"),
                    }
                }
            });
        }
    });
    assert!(store.verify(&mut |_| {}).unwrap().is_clean());
}

#[test]
fn quotas_and_snapshots() {
    let (medium, store) = create(3, 32);
    let (one, two, three) = (ContainerId(1), ContainerId(2), ContainerId(3));
    commit(&store, 1, 0..10, 1);
    commit(&store, 2, 0..10, 1);
    store.set_container_quota(one, Some(20 * PAGE)).unwrap();
    store.take_snapshot("then").unwrap();
    store.set_container_quota(one, Some(5 * PAGE)).unwrap();
    store.set_container_quota(two, Some(7 * PAGE)).unwrap();
    store.set_container_quota(three, Some(8 * PAGE)).unwrap();
    commit(&store, 3, 0..1, 1);
    // A branch is a container of its own, and what only snapshots hold counts for nobody.
    store.branch("then", one, ContainerId(4)).unwrap();
    commit(&store, 4, 0..30, 1);
    let mut batch = store.batch();
    batch.drop_container(two);
    store.commit(&mut batch).unwrap();
    store.go_back("then").unwrap();
    let quotas = vec![(one, 5 * PAGE)];
    assert_eq!(store.container_quotas(), quotas);
    commit(&store, 1, 0..10, 2);
    push(&mut batch, 1, 10..11, 2);
    assert!(matches!(store.commit(&mut batch), Err(CommitError::ContainerFull { .. })));
    drop(store);
    assert_eq!(again(&medium).container_quotas(), quotas);
}

/// A store at its quota is one on a full disk.
#[test]
fn giving_up_a_container_makes_room_in_a_store_at_its_quota() {
    for seed in 0..40 {
        let mut chance = fastrand::Rng::with_seed(seed);
        let blocks = [48, 64, 256][seed as usize % 3];
        let (medium, mut store) = create(seed, blocks);
        let quota = (16 + (8 + chance.u64(..4)) * u64::from(blocks)) * PAGE + chance.u64(..PAGE);
        store.set_quota(Some(quota)).unwrap();
        commit(&store, 1, 0..10, 1);
        let mut batch = store.batch();
        let mut page = 10;
        let (mut refused, mut last) = (0, 9);
        while refused < 8 {
            let first = page;
            for _ in 0..1 + (chance.u64(..64) >> (refused / 2 * 2)) {
                batch.push(id(1, page), |p| p.fill(1));
                page += 1;
            }
            match store.commit(&mut batch) {
                Ok(_) => last = page - 1,
                Err(error @ CommitError::StoreFull { .. }) => {
                    assert!(error.to_string().contains("remove containers"), "{error}");
                    refused += 1;
                    batch.clear();
                    page = first;
                }
                Err(error) => panic!("seed {seed}: {error}"),
            }
            if chance.u8(..4) == 0 {
                let _ = store.maintain();
            }
            if chance.u8(..16) == 0 {
                drop(store);
                store = again(&medium);
            }
            assert!(medium.len().unwrap() <= quota, "seed {seed}");
        }
        // Most of it is there to be used.
        let used = last * PAGE * 100 / quota;
        assert!(used > 25, "seed {seed}: only {used} percent of the quota could be used");
        assert_eq!((value(&store, 1, last), value(&store, 1, last + 1)), (1, 0));
        if seed % 3 == 0 {
            drop(store);
            store = again(&medium);
        }
        let mut batch = store.batch();
        batch.drop_container(ContainerId(1));
        push(&mut batch, 0, 0..4, 9);
        store.commit(&mut batch).unwrap_or_else(|error| panic!("seed {seed} 1: {error}"));
        push(&mut batch, 2, 0..20, 2);
        store.commit(&mut batch).unwrap_or_else(|error| panic!("seed {seed} 2: {error}"));
        drop(store);
        let store = again(&medium);
        assert_eq!((value(&store, 1, 5), value(&store, 2, 5)), (0, 2));
        assert!(store.verify(&mut |_| {}).unwrap().is_clean());
        assert!(medium.len().unwrap() <= quota, "seed {seed}");
        // Raised, it goes on.
        store.set_quota(None).unwrap();
        for first in (0..2000).step_by(100) {
            commit(&store, 3, first..first + 100, 3);
        }
        assert_eq!(value(&store, 3, 1999), 3);
    }
}

/// A store works for ever in a quota of little more than it holds.
#[test]
fn a_store_near_its_quota_cleans_harder() {
    let (medium, store) = create(5, 64);
    let quota = (16 + 64 * 64) * PAGE;
    store.set_quota(Some(quota)).unwrap();
    // Three quarters of what there is, where cleaning by itself would want the half.
    commit(&store, 1, 0..3000, 1);
    let mut chance = fastrand::Rng::with_seed(5);
    let mut batch = store.batch();
    for round in 0..1000u32 {
        for _ in 0..20 {
            batch.push(id(1, chance.u64(..3000)), |p| p.fill(round as u8 | 1));
        }
        store.commit(&mut batch).unwrap_or_else(|error| panic!("round {round}: {error}"));
        for _ in 0..20 {
            if store.wants_maintenance() {
                store.maintain().unwrap();
            }
        }
        assert!(medium.len().unwrap() <= quota);
    }
    assert!(store.verify(&mut |_| {}).unwrap().is_clean());
}

#[test]
fn a_store_beyond_its_quota_becomes_shorter_as_it_can() {
    let (medium, store) = create(6, 64);
    for container in 1..20 {
        commit(&store, container, 0..200, 1);
        while store.wants_maintenance() {
            store.maintain().unwrap();
        }
    }
    let quota = (16 + 16 * 64) * PAGE;
    store.set_quota(Some(quota)).unwrap();
    let before = medium.len().unwrap();
    assert!(before > 3 * quota);
    let mut batch = store.batch();
    (3..20).for_each(|container| batch.drop_container(ContainerId(container)));
    store.commit(&mut batch).unwrap();
    for _ in 0..500 {
        if store.wants_maintenance() {
            store.maintain().unwrap();
        }
    }
    assert!(medium.len().unwrap() <= quota, "{:?}", store.stat());
    assert_eq!(value(&store, 2, 199), 1);
    assert!(store.verify(&mut |_| {}).unwrap().is_clean());
}

#[test]
fn how_large_the_file_may_be_stays_as_it_was_laid_down() {
    let (medium, store) = create(7, 32);
    assert_eq!((store.space_percent(), store.stat().space_percent), (200, 200));
    commit(&store, 1, 0..10, 1);
    store.take_snapshot("then").unwrap();
    store.set_space_percent(Some(350)).unwrap();
    for refused in [0, 149, 10_001, u32::MAX] {
        let error = store.set_space_percent(Some(refused)).unwrap_err();
        assert!(error.to_string().contains("150 at the least"), "{error}");
        assert_eq!(error.word(), "quota");
    }
    for round in 2..20 {
        commit(&store, 1, 0..10, round);
        store.checkpoint().unwrap();
    }
    drop(store);
    // It belongs to the store, not to its states.
    let store = again(&medium);
    assert_eq!(store.space_percent(), 350);
    store.go_back("then").unwrap();
    assert_eq!((value(&store, 1, 0), store.space_percent()), (1, 350));
    drop(store);
    let store = again(&medium);
    assert_eq!((store.space_percent(), store.stat().space_percent), (350, 350));
    store.set_space_percent(None).unwrap();
    drop(store);
    assert_eq!(again(&medium).space_percent(), 200);

    let medium = Arc::new(CrashMedium::new(8));
    let create = |space_percent| {
        let options = CreateOptions { space_percent, ..CreateOptions::default() };
        Store::create_on(medium.clone(), &options)
    };
    let error = create(Some(100)).unwrap_err();
    assert!(error.to_string().contains("150 to 10000"), "{error}");
    assert_eq!(create(Some(500)).unwrap().space_percent(), 500);
    assert_eq!(again(&medium).space_percent(), 500);
}

#[test]
fn too_small_a_quota_is_refused_with_words() {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::create(dir.path(), &CreateOptions::default()).unwrap();
    let error = store.set_quota(Some(1 << 20)).unwrap_err();
    assert!(error.to_string().contains("needs 33619968 at the least"), "{error}");
    assert_eq!((store.quota(), store.stat().quota_bytes), (None, None));
    store.set_quota(Some(33_619_968)).unwrap();
    drop(store);
    let (store, _) = Store::open_read_only(dir.path()).unwrap();
    assert_eq!(store.stat().quota_bytes, Some(33_619_968));
    assert!(matches!(store.set_quota(None), Err(CommitError::ReadOnly)));
}
