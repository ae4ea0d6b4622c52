//! A store that is too damaged to be opened goes on, with consent, from the newest state that can be proven whole; what is
//! given up is named, and the damaged log kept (catalogue B12). On real files.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use stead_model::{ContainerId, PAGE_SIZE, PageId, PageNo};
use stead_store::planted::{self, Bug};
use stead_store::{CreateOptions, OpenError, SalvageError, Store, salvage};

type Model = BTreeMap<u64, u8>;

const BLOCK: usize = PAGE_SIZE;

fn commit(store: &Store, model: &mut Model, pages: impl Iterator<Item = u64>, value: u8) {
    let mut batch = store.batch();
    for page in pages {
        let id = PageId { container: ContainerId(1), page: PageNo(page) };
        batch.push(id, |p| p.fill(value));
        model.insert(page, value);
    }
    store.commit(&mut batch).unwrap();
}

fn contents(store: &Store) -> Model {
    let mut found = Model::new();
    for range in store.stored_pages(ContainerId(1)).unwrap() {
        for page in range.pages() {
            let mut bytes = [0; PAGE_SIZE];
            let id = PageId { container: ContainerId(1), page };
            store.read_page(id, &mut bytes).unwrap();
            assert!(bytes.iter().all(|&byte| byte == bytes[0]));
            found.insert(page.0, bytes[0]);
        }
    }
    found
}

/// A store with two roots of one epoch, stabilisations between and behind them, small ones and a large one; and what it
/// held behind each of them.
fn make(dir: &Path) -> (PathBuf, Vec<Model>) {
    let options = CreateOptions { segment_blocks: Some(64), ..CreateOptions::default() };
    let store = Store::create(dir, &options).unwrap();
    let mut states = vec![Model::new()];
    let mut model = Model::new();
    for number in 1..=12u8 {
        let first = u64::from(number) * 5 % 17;
        let count = if number == 9 { 100 } else { 4 };
        commit(&store, &mut model, first..first + count, number);
        states.push(model.clone());
        if number == 3 || number == 6 {
            store.checkpoint().unwrap();
        }
    }
    drop(store);
    (dir.join("log"), states)
}

/// Of each chunk of the record chain its header's block, its twin's, its stabilisation, and when that was.
fn chunks(bytes: &[u8]) -> Vec<(usize, usize, u64, u64)> {
    let number = |at: usize| u64::from_le_bytes(*bytes[at..].first_chunk().unwrap());
    let headers = (16..bytes.len() / BLOCK).map(|block| block * BLOCK);
    headers
        .filter(|&at| bytes[at..].starts_with(b"STEADCHK") && bytes[at + 56] != 3)
        .map(|at| {
            let payload = usize::from(u16::from_le_bytes(*bytes[at + 60..].first_chunk().unwrap()));
            (at / BLOCK, at / BLOCK + payload + 1, number(at + 40), number(at + 88))
        })
        .collect()
}

fn spoil(bytes: &mut [u8], block: usize) {
    bytes[block * BLOCK + 700] ^= 4;
}

/// The slot of the newest root, and the first block of its table.
fn newest(bytes: &[u8]) -> (usize, usize) {
    let number = |at: usize| u64::from_le_bytes(*bytes[at..].first_chunk().unwrap());
    let slot = if number(BLOCK + 32) > number(2 * BLOCK + 32) { 1 } else { 2 };
    (slot, number(slot * BLOCK + 224) as usize)
}

/// Looks at a damaged log, of which the chunk that begins at block `cut` is gone, salvages it, and goes on: the state must be
/// that behind stabilisation `last`.
fn salvaged(dir: &Path, damaged: &[u8], cut: usize, states: &[Model], last: u64) {
    let log = dir.join("log");
    fs::write(&log, damaged).unwrap();
    let refused = Store::open(dir).unwrap_err();
    let OpenError::Damaged { damage, .. } = refused else { panic!("{refused}") };
    let looked = salvage(dir, false).unwrap();
    assert_eq!(looked.damaged_log, None);
    assert!(fs::read(&log).unwrap() == damaged, "looking changes nothing");
    assert!(looked.damages.contains(&damage), "{:?}", looked.damages);
    assert_eq!(looked.last_sequence, last);
    // All of which anything is left, by number and time, and nothing else.
    let known: BTreeMap<u64, u64> = chunks(damaged)
        .into_iter()
        .filter(|&(header, _, sequence, _)| sequence > last && header != cut)
        .map(|(_, _, sequence, time)| (sequence, time))
        .collect();
    assert_eq!(looked.given_up.iter().copied().collect::<BTreeMap<_, _>>(), known);
    assert!(looked.acknowledged >= 11, "{looked:?}");

    let done = salvage(dir, true).unwrap();
    let kept = dir.join("log.damaged");
    assert_eq!(done.damaged_log.as_ref(), Some(&kept));
    assert!(fs::read(&kept).unwrap() == damaged, "it is kept as it was");
    assert!(!dir.join("log.salvage").exists());
    assert_eq!((done.last_sequence, &done.given_up), (last, &looked.given_up));
    let (store, report) = Store::open(dir).unwrap();
    assert_eq!((report.last_sequence, report.fell_back, report.unfinished), (last, false, None));
    let mut model = states[last as usize].clone();
    assert!(contents(&store) == model, "stabilisation {last}");
    assert!(store.verify(&mut |_| {}).unwrap().is_clean());
    for round in 0..20 {
        commit(&store, &mut model, round..round + 9, 100 + round as u8);
        while store.maintain().unwrap().more {}
    }
    drop(store);
    let (store, _) = Store::open(dir).unwrap();
    assert!(contents(&store) == model);
    assert!(store.verify(&mut |_| {}).unwrap().is_clean());
    drop(store);
    // Nothing more is given up, and what was kept is not written over.
    assert_eq!(salvage(dir, true).unwrap().damages, []);
    assert!(fs::read(&kept).unwrap() == damaged);
    fs::remove_file(kept).unwrap();
}

#[test]
fn a_chain_cut_anywhere_is_gone_on_with_before_the_cut() {
    let dir = tempfile::tempdir().unwrap();
    let (log, states) = make(dir.path());
    let good = fs::read(&log).unwrap();
    let mut cuts = 0;
    for (header, twin, sequence, _) in chunks(&good) {
        // What the newest root knows needs no chain, and of the last one nobody can tell.
        if !(7..12).contains(&sequence) {
            continue;
        }
        let mut damaged = good.clone();
        spoil(&mut damaged, header);
        spoil(&mut damaged, twin);
        salvaged(dir.path(), &damaged, header, &states, sequence - 1);
        cuts += 1;
    }
    assert!(cuts > 5, "{cuts}");
}

/// The newest root is lost as well: what can be had is what the older one leads to.
#[test]
fn a_chain_cut_behind_the_older_root_is_gone_on_with_too() {
    let dir = tempfile::tempdir().unwrap();
    let (log, states) = make(dir.path());
    let good = fs::read(&log).unwrap();
    let (slot, table) = newest(&good);
    for lost in [slot, table] {
        for (header, twin, sequence, _) in chunks(&good) {
            if !(4..12).contains(&sequence) {
                continue;
            }
            let mut damaged = good.clone();
            [lost, header, twin].into_iter().for_each(|block| spoil(&mut damaged, block));
            salvaged(dir.path(), &damaged, header, &states, sequence - 1);
        }
    }
}

#[test]
fn what_is_whole_or_beyond_help_stays_as_it_is() {
    let dir = tempfile::tempdir().unwrap();
    let (log, _) = make(dir.path());
    let good = fs::read(&log).unwrap();
    let looked = salvage(dir.path(), true).unwrap();
    assert_eq!((looked.damages, looked.last_sequence, looked.damaged_log), (vec![], 12, None));
    assert_eq!((looked.acknowledged, looked.given_up), (12, vec![]));
    assert!(fs::read(&log).unwrap() == good);
    // Both roots.
    let mut damaged = good.clone();
    [1, 2].into_iter().for_each(|block| spoil(&mut damaged, block));
    fs::write(&log, &damaged).unwrap();
    let error = salvage(dir.path(), true).unwrap_err();
    assert!(error.to_string().contains("both roots"), "{error}");
    assert!(fs::read(&log).unwrap() == damaged);
    // What an earlier salvage kept is not thrown away.
    let (header, twin, ..) = *chunks(&good).iter().find(|chunk| chunk.2 == 8).unwrap();
    damaged.clone_from(&good);
    [header, twin].into_iter().for_each(|block| spoil(&mut damaged, block));
    fs::write(&log, &damaged).unwrap();
    let kept = dir.path().join("log.damaged");
    fs::write(&kept, "something").unwrap();
    let error = salvage(dir.path(), true).unwrap_err();
    assert!(matches!(&error, SalvageError::InTheWay { path } if *path == kept), "{error}");
    assert!(fs::read(&log).unwrap() == damaged);
    fs::remove_file(&kept).unwrap();
    // One that was killed just before the new log got its name is begun anew.
    fs::hard_link(&log, &kept).unwrap();
    fs::write(dir.path().join("log.salvage"), "half of it").unwrap();
    assert_eq!(salvage(dir.path(), true).unwrap().damaged_log.as_ref(), Some(&kept));
    assert!(fs::read(&kept).unwrap() == damaged);
    assert_eq!(Store::open(dir.path()).unwrap().1.last_sequence, 7);
    // Somebody has it open.
    fs::write(&log, &good).unwrap();
    let store = Store::open(dir.path()).unwrap().0;
    let error = salvage(dir.path(), true).unwrap_err();
    assert!(matches!(error, SalvageError::Open(OpenError::Held(_))), "{error}");
    drop(store);
}

#[test]
fn a_salvage_that_does_not_look_for_what_it_gives_up_is_found() {
    let dir = tempfile::tempdir().unwrap();
    let (log, _) = make(dir.path());
    let mut damaged = fs::read(&log).unwrap();
    let (header, twin, ..) = *chunks(&damaged).iter().find(|chunk| chunk.2 == 8).unwrap();
    [header, twin].into_iter().for_each(|block| spoil(&mut damaged, block));
    fs::write(&log, &damaged).unwrap();
    planted::set(Some(Bug::GivenUpUntold));
    let looked = salvage(dir.path(), false);
    planted::set(None);
    let looked = looked.unwrap();
    assert_eq!((looked.last_sequence, looked.given_up.len()), (7, 0), "the bug is not there");
    assert!(looked.acknowledged < 11);
    let told = salvage(dir.path(), false).unwrap();
    assert_eq!((told.given_up.len(), told.acknowledged), (4, 11));
}
