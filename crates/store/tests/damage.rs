//! Damage anywhere in a store's image: right bytes, or an error that names what and where. A part chosen by chance
//! each time; `STEAD_DAMAGE=all` goes through every byte, every length and every pair of blocks (in release, some
//! minutes), `STEAD_SEED=n` through one part again.

use std::collections::hash_map::RandomState;
use std::fs;
use std::hash::BuildHasher;
use std::sync::Arc;

use stead_model::{ContainerId, PageId, PageNo};
use stead_store::planted::{self, Bug};
use stead_store::sim::damage::{Change, Seen, Subject};
use stead_store::sim::{CrashMedium, SplitMix};
use stead_store::{CreateOptions, OpenError, Store};

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
    let table = number(left * BLOCK + 128) as usize * BLOCK;
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
