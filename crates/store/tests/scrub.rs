//! Scrubbing: damage of every kind is found on the disk, whatever memory knows; nothing is taken for damage that is
//! only moved; the caller sets the pace (catalogue B12).

use std::collections::BTreeSet;
use std::fs;
use std::ops::ControlFlow;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use stead_model::{ContainerId, PageId, PageNo, PageRange};
use stead_store::{CreateOptions, Damage, Holders, Scrubbed, Store};

fn id(page: u64) -> PageId {
    PageId { container: ContainerId(1), page: PageNo(page) }
}

fn commit(store: &Store, pages: impl Iterator<Item = u64>, round: u64) {
    let mut batch = store.batch();
    for page in pages {
        batch.push(id(page), |bytes| {
            bytes.fill(round as u8 | 1);
            bytes[..8].copy_from_slice(&page.to_le_bytes());
            bytes[8..16].copy_from_slice(&round.to_le_bytes());
        });
    }
    store.commit(&mut batch).unwrap();
}

/// A store of 600 pages, three leaves of the map, stored whole, and some pages stored since.
fn new_store(dir: &Path) -> (Store, PathBuf) {
    let store = Store::create(dir, &CreateOptions::default()).unwrap();
    commit(&store, 0..600, 1);
    store.checkpoint().unwrap();
    store.checkpoint().unwrap();
    commit(&store, 10..20, 2);
    (store, dir.join("log"))
}

fn scrub(store: &Store) -> Scrubbed {
    let scrubbed = store.scrub(&mut |_| ControlFlow::Continue(()));
    assert!(scrubbed.complete);
    scrubbed
}

/// A scrub, and a verification that finds the same.
fn look(store: &Store) -> Scrubbed {
    let scrubbed = scrub(store);
    let verified = store.verify(&mut |_| {}).unwrap();
    let places = |damages: &[Damage]| damages.iter().map(|d| d.offset).collect::<BTreeSet<u64>>();
    assert_eq!(places(&scrubbed.damages), places(&verified.damages));
    scrubbed
}

/// Blocks of the log that satisfy `wanted`.
fn blocks(log: &Path, wanted: impl Fn(&[u8]) -> bool) -> Vec<u64> {
    let bytes = fs::read(log).unwrap();
    let found = bytes.chunks(4096).enumerate().filter(|(_, block)| wanted(block));
    found.map(|(block, _)| block as u64).collect()
}

/// The block with this image.
fn image(log: &Path, page: u64, round: u64) -> u64 {
    let wanted = |block: &[u8]| {
        block[..8] == page.to_le_bytes()
            && block[8..16] == round.to_le_bytes()
            && block[16..].iter().all(|&b| b == round as u8 | 1)
    };
    let [block] = blocks(log, wanted)[..] else { panic!("page {page} has one image") };
    block
}

/// Spoils a block for as long as `f` runs.
fn spoiled<T>(log: &Path, block: u64, f: impl FnOnce() -> T) -> T {
    let file = fs::OpenOptions::new().read(true).write(true).open(log).unwrap();
    let flip = || {
        let mut byte = [0];
        file.read_exact_at(&mut byte, block * 4096 + 1000).unwrap();
        file.write_all_at(&[byte[0] ^ 4], block * 4096 + 1000).unwrap();
        file.sync_all().unwrap();
    };
    flip();
    let answer = f();
    flip();
    answer
}

fn the_one(scrubbed: &Scrubbed, block: u64) -> &Damage {
    let [damage] = &scrubbed.damages[..] else { panic!("{:?}", scrubbed.damages) };
    assert_eq!(damage.offset, block * 4096, "{damage}");
    damage
}

#[test]
fn damage_of_each_kind_is_found_though_memory_knows_better() {
    let dir = tempfile::tempdir().unwrap();
    let (store, log) = new_store(dir.path());
    assert_eq!(look(&store).damages, []);
    // Images: in the map, and in the record since.
    for (page, round) in [(500, 1), (15, 2)] {
        let block = image(&log, page, round);
        let scrubbed = spoiled(&log, block, || look(&store));
        assert_eq!(the_one(&scrubbed, block).page, Some(id(page)));
    }
    // What nothing refers to any more is not damage.
    store.checkpoint().unwrap();
    store.checkpoint().unwrap();
    let block = image(&log, 15, 1);
    assert_eq!(spoiled(&log, block, || look(&store)).damages, []);
    // Superblocks and roots.
    for block in 0..4 {
        let scrubbed = spoiled(&log, block, || look(&store));
        assert_eq!(the_one(&scrubbed, block).page, None);
    }
    // The nodes of the map, all of which are in memory, and the tables of both roots: every block of the cold stream
    // that is in use, one after the other.
    let header = |block: &[u8]| block[..8] == *b"STEADCHK" && block[56] == 3;
    let (mut nodes, mut tables) = (0, 0);
    for chunk in blocks(&log, header) {
        let file = fs::File::open(&log).unwrap();
        let mut bytes = [0; 4096];
        file.read_exact_at(&mut bytes, chunk * 4096).unwrap();
        let payloads = u64::from(u16::from_le_bytes([bytes[60], bytes[61]]));
        for block in chunk + 1..=chunk + payloads {
            let scrubbed = spoiled(&log, block, || look(&store));
            let [damage] = &scrubbed.damages[..] else { continue };
            match &damage.map_of {
                Some((container, pages)) => {
                    assert_eq!(*container, ContainerId(1));
                    assert!(
                        [PageRange::new(0, 256), PageRange::new(512, 768)].contains(pages)
                            || pages.start == 256
                            || pages.end == 65536,
                        "{damage}"
                    );
                    nodes += 1;
                }
                None => tables += 1,
            }
        }
    }
    assert_eq!((nodes, tables), (4, 2), "three leaves and the node above them; two roots");
    // The record chain, as far as a recovery would read it.
    commit(&store, 30..40, 3);
    let header = |block: &[u8]| block[..8] == *b"STEADCHK" && block[40..48] == 3u64.to_le_bytes();
    let [block] = blocks(&log, header)[..] else { panic!("one record") };
    let scrubbed = spoiled(&log, block, || look(&store));
    assert!(the_one(&scrubbed, block).what.contains("chain"));
    assert_eq!(look(&store).damages, []);
}

#[test]
fn what_only_a_snapshot_holds_is_looked_at() {
    let dir = tempfile::tempdir().unwrap();
    let (store, log) = new_store(dir.path());
    store.take_snapshot("kept").unwrap();
    commit(&store, 500..510, 3);
    store.checkpoint().unwrap();
    let block = image(&log, 505, 1);
    let scrubbed = spoiled(&log, block, || look(&store));
    assert_eq!(the_one(&scrubbed, block).page, Some(id(505)));
    let holders = store.holders(the_one(&scrubbed, block));
    assert!(holders.only_snapshots());
    assert_eq!(holders.snapshot_names(), ["kept"]);
    // The live state has the rest, too.
    let shared = image(&log, 300, 1);
    let scrubbed = spoiled(&log, shared, || look(&store));
    let holders = store.holders(the_one(&scrubbed, shared));
    assert_eq!((holders.live, holders.snapshots.len()), (vec![ContainerId(1)], 1));
    store.drop_snapshot("kept").unwrap();
    store.checkpoint().unwrap();
    assert_eq!(spoiled(&log, block, || look(&store)).damages, []);
}

#[test]
fn what_only_the_older_root_refers_to_is_looked_at() {
    let dir = tempfile::tempdir().unwrap();
    let (store, log) = new_store(dir.path());
    store.checkpoint().unwrap();
    store.checkpoint().unwrap();
    commit(&store, 500..510, 3);
    store.checkpoint().unwrap();
    let block = image(&log, 505, 1);
    let scrubbed = spoiled(&log, block, || look(&store));
    let damage = the_one(&scrubbed, block);
    assert!(damage.page.is_none() && damage.what.contains("only the older root"), "{damage}");
    assert_eq!(store.holders(damage), Holders::default(), "nothing is lost with it");
    // The leaf of the map that leads there.
    let leaf = |bytes: &[u8]| {
        let entry = &bytes[(505 - 256) * 16..][..8];
        entry == block.to_le_bytes() && bytes[16 * 255..][..8] != [0; 8]
    };
    let leaves = blocks(&log, leaf);
    assert_eq!(leaves.len(), 1);
    let scrubbed = spoiled(&log, leaves[0], || look(&store));
    let damage = the_one(&scrubbed, leaves[0]);
    assert!(damage.map_of.is_none() && damage.what.contains("only the older root"), "{damage}");
    // The next one lets go of it.
    store.checkpoint().unwrap();
    for block in [block, leaves[0]] {
        assert_eq!(spoiled(&log, block, || look(&store)).damages, []);
    }
}

#[test]
fn branches_and_snapshots_are_told_as_which_containers_have_it() {
    let dir = tempfile::tempdir().unwrap();
    let (store, log) = new_store(dir.path());
    store.take_snapshot("first").unwrap();
    store.branch("first", ContainerId(1), ContainerId(2)).unwrap();
    store.take_snapshot("second").unwrap();
    let mut batch = store.batch();
    batch.drop_container(ContainerId(1));
    store.commit(&mut batch).unwrap();
    let block = image(&log, 400, 1);
    let (holders, node) = spoiled(&log, block, || {
        let scrubbed = look(&store);
        (store.holders(the_one(&scrubbed, block)), scrubbed)
    });
    assert_eq!(node.damages.len(), 1);
    assert_eq!(holders.live, [ContainerId(2)], "{holders:?}");
    let of: Vec<_> =
        holders.snapshots.iter().map(|held| (held.snapshot.as_str(), held.container.0)).collect();
    assert_eq!(of, [("first", 1), ("second", 1), ("second", 2)]);
    assert_eq!(holders.snapshot_names(), ["first", "second"]);
}

#[test]
fn what_several_snapshots_share_is_read_once() {
    let dir = tempfile::tempdir().unwrap();
    let (store, _) = new_store(dir.path());
    for round in 3..13 {
        // A page in each leaf, so that no snapshot shares a part of the map with another.
        commit(&store, [0, 256, 512].into_iter(), round);
        store.take_snapshot(&round.to_string()).unwrap();
    }
    let scrubbed = scrub(&store);
    assert_eq!(scrubbed.damages, []);
    // What there was in the beginning, ten of which have been replaced, and three for each snapshot but the last.
    assert_eq!(scrubbed.images, 600 + 9 * 3);
}

#[test]
fn a_store_in_use_is_scrubbed_without_false_alarms() {
    let dir = tempfile::tempdir().unwrap();
    let options = CreateOptions { segment_blocks: Some(64), ..CreateOptions::default() };
    let store = Store::create(dir.path(), &options).unwrap();
    commit(&store, 0..600, 1);
    let stopped = AtomicBool::new(false);
    let (mut scrubs, mut images) = (0, 0);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut round = 2;
            while !stopped.load(Ordering::Relaxed) {
                let first = round * 37 % 580;
                commit(&store, first..first + 20, round);
                while store.maintain().unwrap().more {}
                round += 1;
            }
        });
        let start = store.stat().generation;
        while store.stat().generation < start + 60 {
            let scrubbed = scrub(&store);
            stopped.fetch_or(!scrubbed.damages.is_empty(), Ordering::Relaxed);
            assert_eq!(scrubbed.damages, []);
            scrubs += 1;
            images += scrubbed.images;
        }
        stopped.store(true, Ordering::Relaxed);
    });
    assert!(images >= scrubs * 600, "{images} images in {scrubs} scrubs");
}

#[test]
fn the_caller_sets_the_pace_and_may_stop_it() {
    let dir = tempfile::tempdir().unwrap();
    let (store, _) = new_store(dir.path());
    let mut steps = Vec::new();
    let whole = store.scrub(&mut |progress| {
        steps.push(progress);
        ControlFlow::Continue(())
    });
    // Ten have been replaced since the last root, which refers to them still.
    assert!(whole.complete && whole.images == 610);
    let last = steps.last().unwrap();
    assert_eq!(last.done_bytes, whole.read_bytes);
    for pair in steps.windows(2) {
        let bytes = pair[1].done_bytes - pair[0].done_bytes;
        assert!((1..=256 << 10).contains(&bytes), "{pair:?}");
        assert!(pair[1].done_bytes <= pair[1].total_bytes);
    }
    for stop in [1, 3, steps.len() - 1] {
        let mut calls = 0;
        let scrubbed = store.scrub(&mut |_| {
            calls += 1;
            if calls == stop { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        });
        assert!(!scrubbed.complete && calls == stop, "{calls} calls, {stop}");
    }
}

#[cfg(feature = "planted")]
#[test]
fn a_scrub_that_looks_away_is_found() {
    use stead_store::planted::{Bug, set};
    let dir = tempfile::tempdir().unwrap();
    let (store, log) = new_store(dir.path());
    let block = image(&log, 500, 1);
    set(Some(Bug::ScrubLooksAway));
    let missed = spoiled(&log, block, || scrub(&store)).damages.is_empty();
    set(None);
    assert!(missed, "the bug is there, and the test above would fail with it");
}

#[cfg(feature = "planted")]
#[test]
fn an_older_root_that_is_not_looked_at_is_found() {
    use stead_store::planted::{Bug, set};
    let dir = tempfile::tempdir().unwrap();
    let (store, log) = new_store(dir.path());
    store.checkpoint().unwrap();
    commit(&store, 500..510, 3);
    store.checkpoint().unwrap();
    let block = image(&log, 505, 1);
    set(Some(Bug::OlderRootUnread));
    let missed = spoiled(&log, block, || look(&store)).damages.is_empty();
    set(None);
    assert!(missed, "the bug is there, and the test above would fail with it");
    assert_eq!(spoiled(&log, block, || look(&store)).damages.len(), 1);
}
