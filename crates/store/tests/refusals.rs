//! Every way in which a store says no: at creating, opening, stabilising and reading, on real files; and
//! damage of every kind, named.

use std::fs;
use std::io::{Read, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;

use stead_model::{ContainerId, PAGE_SIZE, PageId, PageNo};
use stead_store::sim::{CrashMedium, Fault};
use stead_store::{CommitError, CreateError, CreateOptions, OpenError, ReadError, Store, Stored};

fn id(container: u32, page: u64) -> PageId {
    PageId { container: ContainerId(container), page: PageNo(page) }
}

fn new_store(dir: &Path) -> Store {
    Store::create(dir, &CreateOptions::default()).unwrap()
}

fn commit(store: &Store, pages: impl Iterator<Item = u64>, value: u8) {
    let mut batch = store.batch();
    for page in pages {
        batch.push(id(1, page), |p| p.fill(value));
    }
    store.commit(&mut batch).unwrap();
}

fn value(store: &Store, page: u64) -> Result<u8, ReadError> {
    let mut bytes = [0xEE; PAGE_SIZE];
    store.read_page(id(1, page), &mut bytes)?;
    assert!(bytes.iter().all(|&b| b == bytes[0]));
    Ok(bytes[0])
}

/// Flips bits of one byte of a file.
fn flip(path: &Path, offset: u64) {
    let file = fs::OpenOptions::new().read(true).write(true).open(path).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, offset).unwrap();
    file.write_all_at(&[byte[0] ^ 0x55], offset).unwrap();
}

/// Where in the file the blocks begin that satisfy `wanted`.
fn blocks(path: &Path, wanted: impl Fn(&[u8]) -> bool) -> Vec<u64> {
    let bytes = fs::read(path).unwrap();
    let found = bytes.chunks(4096).enumerate().filter(|(_, block)| wanted(block));
    found.map(|(i, _)| i as u64 * 4096).collect()
}

fn words(error: &dyn std::fmt::Display, wanted: &[&str]) {
    let said = error.to_string();
    for wanted in wanted {
        assert!(said.contains(wanted), "{said:?} does not say {wanted:?}");
    }
}

#[test]
fn creating_where_something_is_already() {
    let dir = tempfile::tempdir().unwrap();
    let store = dir.path().join("store");
    drop(new_store(&store));
    let error = Store::create(&store, &CreateOptions::default()).unwrap_err();
    assert!(matches!(error, CreateError::Exists { .. }), "{error}");
    words(&error, &[store.to_str().unwrap(), "already"]);

    let full = dir.path().join("full");
    fs::create_dir(&full).unwrap();
    fs::write(full.join("letter"), "x").unwrap();
    let error = Store::create(&full, &CreateOptions::default()).unwrap_err();
    assert!(matches!(error, CreateError::NotEmpty { .. }), "{error}");
    let error = Store::create(&full.join("letter"), &CreateOptions::default()).unwrap_err();
    assert!(matches!(error, CreateError::NotADirectory { .. }), "{error}");
    let error = Store::create(&dir.path().join("no/where"), &CreateOptions::default()).unwrap_err();
    assert!(matches!(error, CreateError::Io { .. }), "{error}");
    for bad in [
        CreateOptions { segment_blocks: Some(7), ..CreateOptions::default() },
        CreateOptions { base_window: Some(5000), ..CreateOptions::default() },
    ] {
        let empty = dir.path().join("empty");
        let error = Store::create(&empty, &bad).unwrap_err();
        assert!(matches!(error, CreateError::BadOptions(_)), "{error}");
    }
    // What a creation that was cut short leaves behind is no obstacle.
    let cut = dir.path().join("cut");
    fs::create_dir(&cut).unwrap();
    fs::write(cut.join("log.new"), "half").unwrap();
    fs::write(cut.join("lock"), "1").unwrap();
    drop(new_store(&cut));
    assert!(!cut.join("log.new").exists());
}

#[test]
fn opening_what_is_no_store() {
    let dir = tempfile::tempdir().unwrap();
    let missing = dir.path().join("missing");
    let error = Store::open(&missing).unwrap_err();
    assert!(matches!(error, OpenError::Missing { .. }), "{error}");
    words(&error, &["missing", "create"]);
    let file = dir.path().join("file");
    fs::write(&file, "x").unwrap();
    assert!(matches!(Store::open(&file).unwrap_err(), OpenError::NotADirectory { .. }));
    let error = Store::open(dir.path()).unwrap_err();
    assert!(matches!(error, OpenError::NotAStore { .. }), "{error}");
    words(&error, &["no file `log`"]);
    fs::write(dir.path().join("log"), "x").unwrap();
    let error = Store::open(dir.path()).unwrap_err();
    assert!(matches!(error, OpenError::NotAStore { .. }), "{error}");
    fs::write(dir.path().join("log"), vec![7; 1 << 20]).unwrap();
    let error = Store::open(dir.path()).unwrap_err();
    assert!(matches!(error, OpenError::NotAStore { .. }), "{error}");
    fs::remove_file(dir.path().join("log")).unwrap();
    fs::create_dir(dir.path().join("log")).unwrap();
    assert!(matches!(Store::open(dir.path()).unwrap_err(), OpenError::NotAStore { .. }));
}

/// Writes into both superblocks, with the right checksums.
fn change(dir: &Path, at: usize, bytes: &[u8]) {
    let log = dir.join("log");
    let mut all = fs::read(&log).unwrap();
    for superblock in [0, 3] {
        let block = &mut all[superblock * 4096..][..4096];
        block[at..at + bytes.len()].copy_from_slice(bytes);
        let magic = u64::from_le_bytes(*b"STEADLOG");
        let seal = xxhash_rust::xxh3::xxh3_64_with_seed(&block[..4088], magic);
        block[4088..].copy_from_slice(&seal.to_le_bytes());
    }
    fs::write(&log, all).unwrap();
}

#[test]
fn opening_a_store_with_addresses_that_cannot_be() {
    let dir = tempfile::tempdir().unwrap();
    drop(new_store(dir.path()));
    change(dir.path(), 56, &stead_model::WINDOW_COUNT.to_le_bytes());
    let error = Store::open(dir.path()).unwrap_err();
    assert!(matches!(error, OpenError::NotAStore { .. }), "{error}");
    words(&error, &["addresses outside the range"]);
    change(dir.path(), 56, &(stead_model::WINDOW_COUNT - 1).to_le_bytes());
    Store::open(dir.path()).unwrap();
}

#[test]
fn opening_a_newer_format() {
    let dir = tempfile::tempdir().unwrap();
    drop(new_store(dir.path()));
    change(dir.path(), 24, &[0, 1]);
    let error = Store::open(dir.path()).unwrap_err();
    assert!(matches!(error, OpenError::UnknownFeatures { unknown: 0x100, .. }), "{error}");
    words(&error, &["0x100", "newer version"]);
    change(dir.path(), 8, &[9]);
    let error = Store::open(dir.path()).unwrap_err();
    assert!(matches!(error, OpenError::NewerFormat { found: 9, known: 1, .. }), "{error}");
    words(&error, &["format 9", "up to 1", "newer version"]);
}

#[test]
fn a_directory_is_used_once_at_a_time_in_a_process() {
    let dir = tempfile::tempdir().unwrap();
    let store = new_store(dir.path());
    let error = Store::open(dir.path()).unwrap_err();
    let OpenError::Held(held) = &error else { panic!("{error}") };
    assert!(held.this_process && held.pid == Some(std::process::id()));
    words(&error, &["in this process"]);
    drop(store);
    drop(Store::open(dir.path()).unwrap());
}

/// Not a test of its own: what the test below runs as a second process.
#[test]
fn helper_that_holds_a_store() {
    let Some(dir) = std::env::var_os("STEAD_TEST_HOLD") else { return };
    let _store = Store::open(&PathBuf::from(dir)).unwrap();
    println!("held");
    std::io::stdout().flush().unwrap();
    let mut line = String::new();
    std::io::stdin().read_line(&mut line).unwrap();
}

#[test]
fn a_store_held_by_another_process_names_it() {
    let dir = tempfile::tempdir().unwrap();
    drop(new_store(dir.path()));
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "helper_that_holds_a_store", "--nocapture"])
        .env("STEAD_TEST_HOLD", dir.path())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut said = Vec::new();
    let mut out = child.stdout.take().unwrap();
    while !said.ends_with(b"held\n") {
        let mut byte = [0];
        assert_eq!(out.read(&mut byte).unwrap(), 1, "the other process ended early");
        said.push(byte[0]);
    }
    for _ in 0..2 {
        let error = Store::open(dir.path()).unwrap_err();
        let OpenError::Held(held) = &error else { panic!("{error}") };
        assert!(!held.this_process && held.pid == Some(child.id()), "{held:?}");
        words(&error, &[&child.id().to_string(), "wait"]);
    }
    child.kill().unwrap();
    child.wait().unwrap();
    // Killed, it holds nothing any more.
    drop(Store::open(dir.path()).unwrap());
}

#[test]
fn damage_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let log = dir.path().join("log");
    let store = new_store(dir.path());
    commit(&store, 0..600, 1);
    store.checkpoint().unwrap();
    commit(&store, 600..603, 2);
    commit(&store, 603..606, 3);
    drop(store);
    let good = fs::read(&log).unwrap();
    let heal = || fs::write(&log, &good).unwrap();
    let is_header =
        |kind: u8| move |block: &[u8]| block.starts_with(b"STEADCHK") && block[56] == kind;

    // An image: that page and no other.
    let image = blocks(&log, |block| block.iter().all(|&b| b == 1))[17];
    flip(&log, image + 1000);
    let store = Store::open(dir.path()).unwrap().0;
    let bad: Vec<u64> = (0..606).filter(|&page| value(&store, page).is_err()).collect();
    assert_eq!(bad.len(), 1);
    let Err(ReadError::Damaged(damage)) = value(&store, bad[0]) else { panic!("it is damaged") };
    assert_eq!((damage.page, damage.offset), (Some(id(1, bad[0])), image));
    words(&damage, &["page", "container #1", "log", &format!("{image:#x}"), "checksum"]);
    let verified = store.verify(&mut |_| {}).unwrap();
    assert_eq!(verified.damages, [damage]);
    // A run stops before it.
    let mut bytes = vec![0; 20 * PAGE_SIZE];
    let run = store.read_run(id(1, bad[0] - 3), &mut bytes).unwrap();
    assert_eq!((run.stored, run.pages), (Stored::Image, 3));
    assert!(store.read_run(id(1, bad[0]), &mut bytes).is_err());
    drop(store);
    heal();

    // A leaf of the map: its 256 pages, by name; others are as they were.
    let leaf = (3u64 << 62 | 1 << 40).to_le_bytes();
    let nodes = blocks(&log, |block| is_header(3)(block) && block[128..136] == leaf);
    flip(&log, nodes.last().unwrap() + 4096 + 8);
    let store = Store::open(dir.path()).unwrap().0;
    let bad: Vec<u64> = (0..606).filter(|&page| value(&store, page).is_err()).collect();
    assert_eq!(bad, (0..256).collect::<Vec<_>>());
    let error = value(&store, 5).unwrap_err();
    words(&error, &["the map of container #1 from page 0 to 256", "checksum"]);
    assert!(matches!(store.stored_pages(ContainerId(1)), Err(ReadError::Damaged(_))));
    assert!(!store.verify(&mut |_| {}).unwrap().is_clean());
    drop(store);
    heal();

    // The header of a chunk behind the root, or its copy at the chunk's end: the other serves.
    let record = blocks(&log, is_header(1));
    let twins = blocks(&log, |block| block.starts_with(b"STEADTWN"));
    for (header, twin) in record.iter().rev().zip(twins.iter().rev()).take(2) {
        for (damaged, by_copy) in [(header, 1), (twin, 0)] {
            flip(&log, damaged + 300);
            let (store, report) = Store::open(dir.path()).unwrap();
            assert_eq!((report.last_sequence, report.found_by_copy), (3, by_copy));
            assert_eq!((value(&store, 601).unwrap(), value(&store, 605).unwrap()), (2, 3));
            // Of the very last one it is not known that it was ever written.
            let found = store.verify(&mut |_| {}).unwrap().damages;
            let is_last = header == record.last().unwrap();
            assert_eq!(found.len(), usize::from(!is_last), "{found:?}");
            found.iter().for_each(|found| assert_eq!(found.offset, *damaged));
            found.iter().for_each(|found| words(found, &["record chain", "copy"]));
            drop(store);
            heal();
        }
    }

    // Both of the first chunk behind the root, though a later one follows: not the end of the log.
    let behind_root = record[record.len() - 2];
    flip(&log, behind_root + 300);
    flip(&log, twins[twins.len() - 2] + 300);
    let error = Store::open(dir.path()).unwrap_err();
    let OpenError::Damaged { damage, path } = &error else { panic!("{error}") };
    assert_eq!((damage.offset, path), (behind_root, &log));
    words(&error, &["log", "record chain", "acknowledged"]);
    heal();

    // Both of the last chunk: told apart from nothing at all.
    flip(&log, record[record.len() - 1] + 300);
    flip(&log, twins[twins.len() - 1] + 300);
    let (store, report) = Store::open(dir.path()).unwrap();
    assert_eq!((report.last_sequence, report.unfinished), (2, Some(3)));
    drop(store);
    heal();

    // One superblock of two, one root of two: nothing is lost. Both: an error that says so.
    for (first, second, what) in [(0, 3 * 4096, "superblock"), (4096, 2 * 4096, "roots")] {
        for offset in [first, second] {
            flip(&log, offset + 44);
            let (store, report) = Store::open(dir.path()).unwrap();
            assert_eq!(report.last_sequence, 3);
            assert_eq!(report.fell_back, what == "roots");
            assert_eq!((value(&store, 5).unwrap(), value(&store, 605).unwrap()), (1, 3));
            let verified = store.verify(&mut |_| {}).unwrap();
            assert_eq!(verified.damages.len(), 1);
            drop(store);
            heal();
        }
        flip(&log, first + 44);
        flip(&log, second + 44);
        let error = Store::open(dir.path()).unwrap_err();
        assert!(matches!(error, OpenError::Damaged { .. }), "{error}");
        words(&error, &[what]);
        heal();
    }

    // A file that has been cut off.
    fs::OpenOptions::new().write(true).open(&log).unwrap().set_len(70_000).unwrap();
    let error = Store::open(dir.path()).unwrap_err();
    assert!(matches!(error, OpenError::Damaged { .. }), "{error}");
    words(&error, &["cut off"]);
    heal();

    // Blocks of another store, or of the same store at another place, do not pass.
    let swapped = blocks(&log, |block| block.iter().all(|&b| b == 1));
    let mut bytes = good.clone();
    let (a, b) = (swapped[3] as usize, swapped[4] as usize);
    let page = bytes[a..a + 4096].to_vec();
    bytes.copy_within(b..b + 4096, a);
    bytes[b..b + 4096].copy_from_slice(&page);
    assert!(bytes == good, "these images are alike: only the identity tells them apart");
    bytes[a..a + 4096].fill(2);
    fs::write(&log, &bytes).unwrap();
    let store = Store::open(dir.path()).unwrap().0;
    assert_eq!((0..606).filter(|&page| value(&store, page).is_err()).count(), 1);
}

#[test]
fn a_full_disk_loses_nothing() {
    let medium = CrashMedium::new(1);
    let options = CreateOptions { segment_blocks: Some(64), ..CreateOptions::default() };
    let store = Store::create_on(Arc::new(medium.clone()), &options).unwrap();
    commit(&store, 0..10, 1);
    medium.set_full(true);
    let mut batch = store.batch();
    for page in 0..400 {
        batch.push(id(1, page), |p| p.fill(2));
    }
    for _ in 0..3 {
        let error = store.commit(&mut batch).unwrap_err();
        assert!(matches!(error, CommitError::NoSpace { .. }), "{error}");
        words(&error, &["free some disk space"]);
        assert_eq!(batch.pages(), 400);
        assert_eq!((value(&store, 5).unwrap(), value(&store, 150).unwrap()), (1, 0));
    }
    // Small ones go on for ever in what is there.
    for round in 3..100 {
        commit(&store, 0..1, round);
        assert_eq!(value(&store, 0).unwrap(), round);
    }
    medium.set_full(false);
    store.commit(&mut batch).unwrap();
    assert_eq!((value(&store, 5).unwrap(), value(&store, 150).unwrap()), (2, 2));
    drop(store);
    let (store, _) = Store::open_on(Arc::new(medium)).unwrap();
    assert_eq!((value(&store, 5).unwrap(), value(&store, 150).unwrap()), (2, 2));
    assert!(store.verify(&mut |_| {}).unwrap().is_clean());
}

#[test]
fn an_error_of_the_disk_is_told_and_got_over() {
    for fault in [Fault::Eio, Fault::LosingFlush, Fault::NoSpace] {
        for call in 1..12 {
            let medium = CrashMedium::new(call);
            let options = CreateOptions { segment_blocks: Some(16), ..CreateOptions::default() };
            let store = Store::create_on(Arc::new(medium.clone()), &options).unwrap();
            commit(&store, 0..30, 1);
            medium.fail_at(call, fault);
            // The fault may come with this very read, and only then is there no value.
            let is = |store: &Store, page, want| match value(store, page) {
                Ok(value) => value == want,
                Err(ReadError::Io { .. }) => fault == Fault::Eio,
                Err(ReadError::Damaged(_)) => false,
            };
            let mut batch = store.batch();
            let mut failed = 0;
            for round in 2..6 {
                for page in 0..20 {
                    batch.push(id(1, page), |p| p.fill(round));
                }
                while let Err(error) = store.commit(&mut batch) {
                    failed += 1;
                    assert!(failed < 3, "{error}");
                    assert!(is(&store, 7, round - 1), "as before");
                }
                assert!(is(&store, 7, round));
            }
            medium.no_fault();
            medium.restart();
            let (store, _) = Store::open_on(Arc::new(medium.clone())).unwrap();
            assert_eq!((value(&store, 7).unwrap(), value(&store, 25).unwrap()), (5, 1));
        }
    }
}

/// A disk that is broken for good makes no store grow.
#[test]
fn trying_again_and_again_takes_no_room() {
    let medium = CrashMedium::new(1);
    let options = CreateOptions { segment_blocks: Some(64), ..CreateOptions::default() };
    let store = Store::create_on(Arc::new(medium.clone()), &options).unwrap();
    commit(&store, 0..50, 1);
    let mut batch = store.batch();
    batch.push(id(1, 0), |p| p.fill(2));
    let before = store.stat().segments;
    for _ in 0..100 {
        medium.fail_at(1, Fault::LosingFlush);
        let error = store.commit(&mut batch).unwrap_err();
        assert!(matches!(error, CommitError::Io { .. }), "{error}");
    }
    assert!(store.stat().segments <= before + 8, "{:?}", store.stat());
    medium.no_fault();
    store.commit(&mut batch).unwrap();
    assert_eq!((value(&store, 0).unwrap(), value(&store, 49).unwrap()), (2, 1));
    assert!(store.verify(&mut |_| {}).unwrap().is_clean());
}

/// On a real file system that is really full.
#[test]
fn a_full_file_system_loses_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let mounted = Command::new("mount")
        .args(["-t", "tmpfs", "-o", "size=40m", "stead-test"])
        .arg(dir.path())
        .stderr(Stdio::null())
        .status();
    if !mounted.is_ok_and(|status| status.success()) {
        eprintln!("NOT RUN: mounting a small file system needs root");
        return;
    }
    let unmounted = std::panic::catch_unwind(|| {
        let at = dir.path().join("store");
        let store = new_store(&at);
        let mut batch = store.batch();
        let mut stored = 0;
        let mut refused = 0;
        for round in 0..40 {
            for page in 0..200 {
                batch.push(id(1, round * 200 + page), |p| p.fill(7));
            }
            match store.commit(&mut batch) {
                Ok(_) => stored = round + 1,
                Err(CommitError::NoSpace { .. }) => {
                    refused += 1;
                    batch.clear();
                }
                Err(error) => panic!("{error}"),
            }
        }
        assert!(stored > 5 && refused > 5, "{stored} {refused}");
        assert_eq!(value(&store, stored * 200 - 1).unwrap(), 7);
        drop(store);
        let (store, _) = Store::open(&at).unwrap();
        assert_eq!(value(&store, stored * 200 - 1).unwrap(), 7);
        // Giving a container up makes room, in the store itself.
        let mut batch = store.batch();
        batch.drop_container(ContainerId(1));
        store.commit(&mut batch).unwrap();
        for page in 0..1000 {
            batch.push(id(2, page), |p| p.fill(8));
        }
        store.commit(&mut batch).unwrap();
        assert!(store.verify(&mut |_| {}).unwrap().is_clean());
        drop(store);

        let remount = Command::new("mount").args(["-o", "remount,ro"]).arg(dir.path()).status();
        assert!(remount.unwrap().success());
        let error = Store::open(&at).unwrap_err();
        assert!(matches!(error, OpenError::NotWritable { .. }), "{error}");
        words(&error, &["permissions"]);
        let error = Store::create(&dir.path().join("b"), &CreateOptions::default()).unwrap_err();
        assert!(matches!(error, CreateError::NotWritable { .. }), "{error}");
    });
    assert!(Command::new("umount").arg(dir.path()).status().unwrap().success());
    unmounted.unwrap();
}

/// However a store came to be full, and opened anew or not: giving up a container works, though some pages (those of a
/// directory) change along with it, and makes room.
#[test]
fn giving_up_a_container_makes_room_in_a_full_store() {
    for seed in 0..40 {
        let mut chance = fastrand::Rng::with_seed(seed);
        let medium = CrashMedium::new(seed);
        let segment_blocks = Some([48, 64, 256][seed as usize % 3]);
        let options = CreateOptions { segment_blocks, ..CreateOptions::default() };
        let mut store = Store::create_on(Arc::new(medium.clone()), &options).unwrap();
        commit(&store, 0..10, 1);
        medium.set_full(true);
        let mut batch = store.batch();
        let mut page = 10;
        let mut refused = 0;
        while refused < 8 {
            // First as much as there is room for, then ever less, to the last block.
            for _ in 0..1 + (chance.u64(..64) >> (refused / 2 * 2)) {
                batch.push(id(1, page), |p| p.fill(1));
                page += 1;
            }
            match store.commit(&mut batch) {
                Ok(_) => {}
                Err(CommitError::NoSpace { .. }) => {
                    refused += 1;
                    batch.clear();
                }
                Err(error) => panic!("seed {seed}: {error}"),
            }
            if chance.u8(..4) == 0 {
                let _ = store.maintain();
            }
            if chance.u8(..16) == 0 {
                drop(store);
                store = Store::open_on(Arc::new(medium.clone())).unwrap().0;
            }
        }
        if seed % 3 == 0 {
            drop(store);
            store = Store::open_on(Arc::new(medium.clone())).unwrap().0;
        }
        assert_eq!(value(&store, 5).unwrap(), 1);
        let mut batch = store.batch();
        batch.drop_container(ContainerId(1));
        (0..4).for_each(|page| batch.push(id(0, page), |p| p.fill(9)));
        store.commit(&mut batch).unwrap_or_else(|error| panic!("seed {seed}: {error}"));
        for page in 0..20 {
            batch.push(id(2, page), |p| p.fill(2));
        }
        store.commit(&mut batch).unwrap_or_else(|error| panic!("seed {seed}: {error}"));
        drop(store);
        let (store, _) = Store::open_on(Arc::new(medium)).unwrap();
        assert_eq!(value(&store, 5).unwrap(), 0);
        assert!(store.verify(&mut |_| {}).unwrap().is_clean());
    }
}
