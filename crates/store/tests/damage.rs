//! Damage anywhere in a store's image: right bytes, or an error that names what and where. A part chosen by chance
//! each time; `STEAD_DAMAGE=all` goes through every byte, every length and every pair of blocks (in release, some
//! minutes), `STEAD_SEED=n` through one part again.

use std::collections::BTreeSet;
use std::collections::hash_map::RandomState;
use std::fs;
use std::hash::BuildHasher;
use std::io::{self, IoSlice};
use std::sync::Arc;

use stead_model::{ContainerId, PageId, PageNo};
use stead_store::planted::{self, Bug};
use stead_store::sim::damage::{Change, Seen, Subject};
use stead_store::sim::{CrashMedium, SplitMix};
use stead_store::{CreateOptions, Medium, OpenError, ReadError, Store};

const CHANGES: u64 = 3000;
const BLOCK: usize = 4096;

#[derive(Debug, Default)]
struct Tally {
    refused: u64,
    withheld: u64,
    right: u64,
}

impl Tally {
    fn check(&mut self, subject: &Subject, change: Change) -> Result<(), String> {
        match subject.check(change)? {
            Seen::Refused => self.refused += 1,
            Seen::Withheld => self.withheld += 1,
            Seen::Right => self.right += 1,
        }
        Ok(())
    }
}

#[test]
fn right_bytes_or_an_error_that_says_what_and_where() {
    let all = std::env::var("STEAD_DAMAGE").is_ok_and(|what| what == "all");
    let given = std::env::var("STEAD_SEED").ok().map(|seed| seed.parse().expect("a number"));
    let seed: u64 = given.unwrap_or_else(|| RandomState::new().hash_one(0) >> 16);
    let subject = Subject::new(seed).unwrap();
    let mut tally = Tally::default();
    let outcome =
        if all { everything(&subject, &mut tally) } else { some(&subject, &mut tally, seed) };
    outcome.unwrap_or_else(|what| panic!("{what}\nagain with STEAD_SEED={seed}"));
    eprintln!("seed {seed}: {tally:?}");
    assert!(tally.refused > 0 && tally.withheld > 0 && tally.right > 0);
    // Each is among the changes of a run through everything.
    let strange = |block| Change::Strange { block };
    let superblock = [0, 3].map(strange).to_vec();
    let zeroed = |block| Change::Zeroed { block };
    let any_block = subject.written_blocks().into_iter().map(zeroed).collect();
    for (bug, changes) in [(Bug::OneSuperblock, superblock), (Bug::TwinIgnored, any_block)] {
        planted::set(Some(bug));
        let missed = changes.into_iter().all(|change| subject.check(change).is_ok());
        planted::set(None);
        assert!(!missed, "{bug:?} is not found, seed {seed}");
    }
}

fn some(subject: &Subject, tally: &mut Tally, seed: u64) -> Result<(), String> {
    let mut random = SplitMix(seed);
    (0..CHANGES).try_for_each(|_| tally.check(subject, subject.any_change(&mut random)))
}

fn everything(subject: &Subject, tally: &mut Tally) -> Result<(), String> {
    let blocks = subject.written_blocks();
    for &block in &blocks {
        for offset in block * BLOCK..(block + 1) * BLOCK {
            tally.check(subject, Change::Flip { offset, with: 0x40 })?;
        }
    }
    for end in (0..=subject.bytes()).step_by(BLOCK) {
        for len in [end.saturating_sub(1), end, end + 1, end + 777] {
            tally.check(subject, Change::Cut { len: len.min(subject.bytes()) })?;
        }
    }
    for &block in &blocks {
        for &other in &blocks {
            tally.check(subject, Change::Copied { block, from: other })?;
            tally.check(subject, Change::Swapped { block, with: other })?;
        }
        tally.check(subject, Change::Older { block })?;
        tally.check(subject, Change::Strange { block })?;
        tally.check(subject, Change::Zeroed { block })?;
    }
    Ok(())
}

/// A root of a new epoch that went astray and hit the table of the one before it: one fault that damages both. The root
/// that is left is of the epoch before, of which nothing that was stabilised since is a part.
#[test]
fn a_root_of_an_earlier_epoch_does_not_hide_what_was_stabilised_since() {
    let [earlier, now] = [1, 2].map(|rounds| {
        let medium = CrashMedium::new(7);
        let options = CreateOptions { store_id: Some(7), ..CreateOptions::default() };
        drop(Store::create_on(Arc::new(medium.clone()), &options).unwrap());
        for round in 1..=rounds {
            let (store, _) = Store::open_on(Arc::new(medium.clone())).unwrap();
            let mut batch = store.batch();
            batch.push(PageId { container: ContainerId(1), page: PageNo(1) }, |p| p.fill(round));
            store.commit(&mut batch).unwrap();
        }
        medium.bytes()
    });
    let number = |at: usize| u64::from_le_bytes(now[at..at + 8].try_into().unwrap());
    let generation = |block: usize| number(block * BLOCK + 32);
    let (astray, left) = if generation(1) > generation(2) { (1, 2) } else { (2, 1) };
    let table = table_of(&now, left - 1).0[0] * BLOCK;
    let mut bytes = now.clone();
    bytes[astray * BLOCK..][..BLOCK].copy_from_slice(&earlier[astray * BLOCK..][..BLOCK]);
    let open = |bytes: &[u8]| Store::open_on(Arc::new(CrashMedium::with_bytes(0, bytes)));
    assert_eq!(open(&bytes).unwrap().1.last_sequence, 2, "the other root has everything");
    bytes[table..][..BLOCK].copy_from_slice(&now[astray * BLOCK..][..BLOCK]);
    let refused = open(&bytes).unwrap_err().to_string();
    assert!(refused.contains(&format!("offset {table:#x}")), "{refused}");
    assert!(refused.contains("the other root is too old"), "{refused}");
    planted::set(Some(Bug::EpochForgotten));
    let forgotten = open(&bytes);
    planted::set(None);
    assert_eq!(forgotten.unwrap().1.last_sequence, 1, "the bug is not there");

    // If what it hit is the other root, it can be used from there.
    bytes.clone_from(&now);
    bytes[astray * BLOCK..][..BLOCK].copy_from_slice(&earlier[astray * BLOCK..][..BLOCK]);
    bytes[left * BLOCK..][..BLOCK].copy_from_slice(&now[astray * BLOCK..][..BLOCK]);
    assert_eq!(open(&bytes).unwrap().1.last_sequence, 2);
    planted::set(Some(Bug::AstrayRootIgnored));
    let ignored = open(&bytes);
    planted::set(None);
    assert_eq!(ignored.unwrap().1.last_sequence, 1, "the bug is not there");
}

/// The blocks of the table of the root in this slot, and the root's generation.
fn table_of(bytes: &[u8], slot: usize) -> (Vec<usize>, u64) {
    let root = &bytes[(1 + slot) * BLOCK..][..BLOCK];
    let number = |at: usize| u64::from_le_bytes(root[at..at + 8].try_into().unwrap()) as usize;
    let half = |at: usize| number(at) & 0xffff_ffff;
    let fixed = if half(8) >= 5 { 224 } else { 128 };
    let extents = (0..half(12)).map(|i| fixed + i * 24);
    let blocks = extents.flat_map(|at| number(at)..number(at) + half(at + 8)).collect();
    (blocks, number(32) as u64)
}

/// A store's image in which every block of either table is damaged in turn: all there is, and the same once more.
fn each_table_may_be_damaged(store: &Store, medium: &CrashMedium, what: &str) -> usize {
    let want = everything_in(store);
    let tables = [0, 1].map(|slot| table_of(&medium.bytes(), slot));
    let newest = tables[0].1.max(tables[1].1);
    assert!(tables[0].0.iter().all(|block| !tables[1].0.contains(block)), "{what}: one for both");
    for (blocks, generation) in &tables {
        for &block in blocks {
            let copy = medium.copy(0);
            copy.rot((block * BLOCK + 77) as u64, |sector| sector[77] ^= 8);
            let (store, report) = Store::open_on(Arc::new(copy.clone()))
                .unwrap_or_else(|error| panic!("{what}, root {generation} of {newest}: {error}"));
            assert_eq!(report.fell_back, *generation == newest, "{what}");
            assert!(everything_in(&store) == want, "{what}, root {generation} of {newest}");
            // It is told of, as one of two.
            let found = store.verify_map().unwrap().damages;
            assert_eq!(found.len(), 1, "{what}: {found:?}");
            assert_eq!(found[0].offset as usize / BLOCK, block, "{what}: {found:?}");
            assert!(found[0].what.contains("the other one leads to the same state"), "{found:?}");
            // What is written next mends it.
            let mut batch = store.batch();
            batch.push(PageId { container: ContainerId(9), page: PageNo(1) }, |p| p.fill(7));
            store.commit(&mut batch).unwrap();
            assert_eq!(store.verify(&mut |_| {}).unwrap().damages, [], "{what}");
        }
    }
    tables[0].0.len() + tables[1].0.len()
}

/// Pages of the live state and of all snapshots.
fn everything_in(store: &Store) -> Vec<(String, PageId, Vec<u8>)> {
    let snapshots = store.snapshots();
    let names = snapshots.iter().map(|info| info.name.as_str());
    let views = names.map(|name| (name, store.view_snapshot(name).unwrap()));
    let mut found = Vec::new();
    for (name, view) in views.chain([("", store.view())]) {
        for container in view.containers() {
            for range in view.stored_pages(container).unwrap() {
                for page in range.pages() {
                    let id = PageId { container, page };
                    let mut bytes = [0; BLOCK];
                    view.read_page(id, &mut bytes).unwrap();
                    found.push((name.to_owned(), id, bytes.to_vec()));
                }
            }
        }
    }
    found
}

fn store_in_small_segments() -> (Store, CrashMedium) {
    let medium = CrashMedium::new(0);
    let options = CreateOptions { segment_blocks: Some(16), ..CreateOptions::default() };
    (Store::create_on(Arc::new(medium.clone()), &options).unwrap(), medium)
}

/// So many stabilisations, with whatever upkeep is due.
fn live_on(store: &Store, rounds: u64) {
    let mut batch = store.batch();
    for round in 0..rounds {
        for i in 0..7 {
            let container = ContainerId((round % 3) as u32);
            let id = PageId { container, page: PageNo((round * 5 + i * 3) % 60) };
            batch.push(id, |p| p.fill((round + i) as u8 | 1));
        }
        store.commit(&mut batch).unwrap();
        while store.maintain().unwrap().more {}
    }
}

/// Whatever wrote the roots last: one checkpoint or one for both, in the middle of upkeep, with records behind or none.
#[test]
fn any_table_may_be_damaged() {
    let (store, medium) = store_in_small_segments();
    let mut damaged = 0;
    let mut now = |what: &str| damaged += each_table_may_be_damaged(&store, &medium, what);
    live_on(&store, 1);
    now("an epoch has begun");
    live_on(&store, 9);
    now("with records behind");
    store.take_snapshot("one").unwrap();
    now("a snapshot has been taken");
    live_on(&store, 4);
    now("with records behind that");
    store.branch("one", ContainerId(1), ContainerId(5)).unwrap();
    now("a branch has been made");
    store.set_container_quota(ContainerId(1), Some(1 << 20)).unwrap();
    now("a quota has been laid down");
    store.go_back("one").unwrap();
    now("it has gone back");
    store.drop_snapshot("one").unwrap();
    now("a snapshot has been dropped");
    store.checkpoint().unwrap();
    now("a clean end");
    // Where segments are used again all the time, the older root's part of the chain is there as long as that root is.
    for round in 0..40 {
        live_on(&store, 2 + round % 5);
        if round % 7 == 0 {
            store.checkpoint().unwrap();
        }
        now("in upkeep");
    }
    eprintln!("{damaged} blocks of tables were damaged");
}

#[test]
#[should_panic(expected = "one for both")]
fn one_table_for_two_roots_is_found() {
    planted::set(Some(Bug::OneTable));
    let (store, medium) = store_in_small_segments();
    live_on(&store, 3);
    each_table_may_be_damaged(&store, &medium, "an epoch has begun");
}

/// Of a chunk in the middle of the chain the header is gone and its copy is damaged, at any byte: what cannot be proven is not
/// believed.
#[test]
fn neither_of_two_headers_is_believed_without_its_checksum() {
    let (store, medium) = store_in_small_segments();
    let mut batch = store.batch();
    for round in 1..=3 {
        for page in 0..3 {
            batch.push(PageId { container: ContainerId(1), page: PageNo(page) }, |p| p.fill(round));
        }
        store.commit(&mut batch).unwrap();
    }
    drop(store);
    let bytes = medium.bytes();
    let begins = |magic: &[u8]| {
        let found = bytes.chunks(BLOCK).enumerate().filter(|(_, block)| block.starts_with(magic));
        found.map(|(index, _)| index * BLOCK).collect::<Vec<_>>()
    };
    let is_record = |&at: &usize| bytes[at + 56] == 1;
    let headers: Vec<usize> = begins(b"STEADCHK").into_iter().filter(is_record).collect();
    let (header, twin) = (headers[1], begins(b"STEADTWN")[1]);
    let opened_with = |at: usize| {
        let mut bytes = bytes.clone();
        bytes[header..][..BLOCK].fill(0);
        bytes[twin + at] ^= 1;
        Store::open_on(Arc::new(CrashMedium::with_bytes(0, &bytes)))
    };
    for at in 0..BLOCK {
        match opened_with(at) {
            Err(OpenError::Damaged { damage, .. }) => assert_eq!(damage.offset as usize, header),
            opened => panic!("byte {at}: {opened:?}"),
        }
    }
    planted::set(Some(Bug::TwinUnchecked));
    let believed = (0..BLOCK).filter(|&at| opened_with(at).is_ok()).count();
    planted::set(None);
    assert!(believed > 0, "the bug is not there");
}

/// A disk that refuses to read one block, over and over.
#[derive(Debug)]
struct BadBlock {
    medium: CrashMedium,
    bad: u64,
}

impl Medium for BadBlock {
    fn read(&self, offset: u64, into: &mut [u8]) -> io::Result<()> {
        let blocks = offset / BLOCK as u64..(offset + into.len() as u64).div_ceil(BLOCK as u64);
        if blocks.contains(&self.bad) {
            return Err(io::Error::from_raw_os_error(5));
        }
        self.medium.read(offset, into)
    }

    fn write(&self, offset: u64, parts: &[IoSlice<'_>]) -> io::Result<()> {
        self.medium.write(offset, parts)
    }

    fn sync(&self) -> io::Result<()> {
        self.medium.sync()
    }

    fn len(&self) -> io::Result<u64> {
        self.medium.len()
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.medium.set_len(len)
    }
}

/// Each block of a file in turn, free ones too: the store opens, and what is not on that block is read.
#[test]
fn a_block_that_the_disk_refuses_to_read_is_as_good_as_damaged() {
    let (store, medium) = store_in_small_segments();
    live_on(&store, 12);
    store.take_snapshot("one").unwrap();
    live_on(&store, 3);
    store.checkpoint().unwrap();
    let mut batch = store.batch();
    for page in 0..12 {
        batch.push(PageId { container: ContainerId(1), page: PageNo(page / 3) }, |p| p.fill(99));
        if page % 3 == 2 {
            store.commit(&mut batch).unwrap();
        }
    }
    let want = everything_in(&store);
    drop(store);
    // The images of the last stabilisation: nobody can tell whether it was ever whole.
    let bytes = medium.bytes();
    let headers = bytes.chunks(BLOCK).enumerate().filter(|(_, b)| b.starts_with(b"STEADCHK"));
    let number = |block: &[u8]| u64::from_le_bytes(*block[40..].first_chunk().unwrap());
    let last = headers.clone().map(|(_, block)| number(block)).max().unwrap();
    let images: BTreeSet<u64> = headers
        .filter(|(_, block)| number(block) == last && block[57] & 1 == 1)
        .flat_map(|(i, block)| i as u64 + 1..=i as u64 + u64::from(block[60]))
        .collect();
    let (mut whole, mut withheld, mut by_copy) = (0, 0, 0);
    for bad in 0..(bytes.len() / BLOCK) as u64 {
        let disk = BadBlock { medium: medium.copy(0), bad };
        let (store, report) = match Store::open_on(Arc::new(disk)) {
            Err(OpenError::Io { .. }) if images.contains(&bad) => continue,
            opened => opened.unwrap_or_else(|error| panic!("block {bad}: {error}")),
        };
        by_copy += report.found_by_copy;
        let mut missing = 0;
        for (name, id, image) in &want {
            let view = match name.as_str() {
                "" => store.view(),
                name => store.view_snapshot(name).unwrap(),
            };
            let mut found = [0; BLOCK];
            match view.read_page(*id, &mut found) {
                Ok(_) => assert!(found[..] == image[..], "block {bad}: {id}"),
                Err(ReadError::Io { offset, .. }) => {
                    assert_eq!(offset / BLOCK as u64, bad);
                    missing += 1;
                }
                Err(error) => panic!("block {bad}: {error}"),
            }
        }
        whole += u64::from(missing == 0);
        withheld += u64::from(missing > 0);
    }
    assert!(whole > 20 && withheld > 20 && by_copy > 3, "{whole}, {withheld}, {by_copy}");
}

/// Files that are not there, are empty, or are something else.
#[test]
fn files_that_are_something_else() {
    let new = || {
        let dir = tempfile::tempdir().unwrap();
        drop(Store::create(dir.path(), &CreateOptions::default()).unwrap());
        dir
    };
    let refused = |dir: &tempfile::TempDir, words: &str| {
        let error = Store::open(dir.path()).map(drop).unwrap_err();
        assert!(error.to_string().contains(words), "{error}");
        assert!(error.to_string().contains(dir.path().to_str().unwrap()), "{error}");
        error
    };
    let dir = new();
    fs::remove_file(dir.path().join("log")).unwrap();
    assert!(matches!(refused(&dir, "no file `log`"), OpenError::NotAStore { .. }));
    fs::write(dir.path().join("log"), "").unwrap();
    assert!(matches!(refused(&dir, "0 bytes"), OpenError::NotAStore { .. }));
    fs::write(dir.path().join("log"), vec![0; 1 << 20]).unwrap();
    assert!(matches!(refused(&dir, "does not begin as a store"), OpenError::NotAStore { .. }));
    fs::remove_file(dir.path().join("log")).unwrap();
    fs::create_dir(dir.path().join("log")).unwrap();
    assert!(matches!(refused(&dir, "not a file"), OpenError::NotAStore { .. }));
    let dir = new();
    fs::remove_file(dir.path().join("lock")).unwrap();
    // It is made anew.
    drop(Store::open(dir.path()).unwrap());
    fs::remove_file(dir.path().join("lock")).unwrap();
    fs::create_dir(dir.path().join("lock")).unwrap();
    assert!(matches!(refused(&dir, "lock"), OpenError::Io { .. }));
}
