//! Damage anywhere in a store's image: right bytes, or an error that names what and where. A part chosen by chance
//! each time; `STEAD_DAMAGE=all` goes through every byte, every length and every pair of blocks (in release, some
//! minutes), `STEAD_SEED=n` through one part again.

use std::collections::hash_map::RandomState;
use std::fs;
use std::hash::BuildHasher;

use stead_store::sim::SplitMix;
use stead_store::sim::damage::{Change, Seen, Subject};
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
