//! Backups bring back the state that they were made of, alone or one on top of the other; what is not as it was written, or
//! does not fit, is refused with words and leaves nothing; a killed restoration leaves a whole store or none.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use stead_model::{ContainerId, PAGE_SIZE, PageId, PageNo};
use stead_store::planted::{self, Bug};
use stead_store::sim::forge::{Outcome, forge_backup, try_restore as try_restore_forged};
use stead_store::{BackupError, CreateOptions, Restore, RestoreError, Restored, Store, View};

type Model = BTreeMap<PageId, u64>;

fn id(container: u32, page: u64) -> PageId {
    PageId { container: ContainerId(container), page: PageNo(page) }
}

fn create(dir: &Path) -> Store {
    let options = CreateOptions {
        segment_blocks: Some(64),
        base_window: Some(77),
        created: Some(123_456),
        ..CreateOptions::default()
    };
    Store::create(dir, &options).unwrap()
}

/// Changes some pages of the store and of the model alike.
fn change(store: &Store, model: &mut Model, chance: &mut fastrand::Rng) {
    let mut batch = store.batch();
    if chance.u32(..6) == 0 {
        let container = ContainerId(chance.u32(1..4));
        batch.drop_container(container);
        model.retain(|id, _| id.container != container);
    }
    for _ in 0..chance.u32(1..60) {
        // Some pages are far away, so that the map has several levels.
        let far = if chance.u32(..10) == 0 { 1 << 20 } else { 0 };
        let id = id(chance.u32(1..4), chance.u64(..400) + far);
        match chance.u64(..5) {
            0 => {
                batch.zero(id);
                model.remove(&id);
            }
            value => {
                let value = value + (chance.u64(..1 << 40) << 8);
                batch.push(id, |page| {
                    page.chunks_exact_mut(8).for_each(|w| w.copy_from_slice(&value.to_le_bytes()));
                });
                model.insert(id, value);
            }
        }
    }
    store.commit(&mut batch).unwrap();
    while store.wants_maintenance() && store.maintain().unwrap().more {}
}

fn contents(view: &View<'_>) -> Model {
    let mut found = Model::new();
    let mut bytes = [0; PAGE_SIZE];
    for container in view.containers() {
        for range in view.stored_pages(container).unwrap() {
            for page in range.pages() {
                let id = PageId { container, page };
                view.read_page(id, &mut bytes).unwrap();
                found.insert(id, u64::from_le_bytes(*bytes.first_chunk().unwrap()));
            }
        }
    }
    found
}

fn backup(view: &View<'_>, since: Option<&View<'_>>) -> Vec<u8> {
    let mut stream = Vec::new();
    let done = view.backup(since, &mut stream, &mut |_| {}).unwrap();
    assert_eq!(done.bytes, stream.len() as u64);
    assert_eq!(done.base, since.map(View::state_id));
    stream
}

fn try_restore(dir: &Path, streams: &[&[u8]]) -> Result<Restored, RestoreError> {
    let mut restore = Restore::begin(dir)?;
    for &(mut stream) in streams {
        restore.apply(&mut stream, &mut |_| {})?;
    }
    restore.finish(&mut |_| {})
}

/// Restores, and asserts that what comes of it holds what the model holds, and is a store like any other.
fn restored(parent: &Path, streams: &[&[u8]], model: &Model) {
    let dir = parent.join("restored");
    let said = try_restore(&dir, streams).unwrap();
    assert_eq!(said.bytes, streams.iter().map(|stream| stream.len() as u64).sum::<u64>());
    assert!(!parent.join("restored.restoring").exists());
    let (store, report) = Store::open(&dir).unwrap();
    assert!(!report.fell_back && report.unfinished.is_none(), "{report:?}");
    assert_eq!((store.header().base_window, store.header().created), (77, 123_456));
    assert_eq!(&contents(&store.view()), model);
    assert!(store.verify(&mut |_| {}).unwrap().is_clean());
    let mut model = model.clone();
    change(&store, &mut model, &mut fastrand::Rng::new());
    assert_eq!(contents(&store.view()), model);
    drop(store);
    std::fs::remove_dir_all(dir).unwrap();
}

#[test]
fn backups_bring_back_what_they_were_made_of() {
    let seed =
        std::env::var("STEAD_SEED").map_or_else(|_| fastrand::u64(..), |s| s.parse().unwrap());
    println!("STEAD_SEED={seed}");
    let mut chance = fastrand::Rng::with_seed(seed);
    let parent = tempfile::tempdir().unwrap();
    let dir = parent.path().join("store");
    let store = create(&dir);
    assert!(matches!(
        store.view().backup(None, &mut Vec::new(), &mut |_| {}),
        Err(BackupError::Moving)
    ));
    let mut model = Model::new();
    let mut states: Vec<(String, Model)> = Vec::new();
    for n in 0..6 {
        // The first is of an empty store.
        for _ in 0..n * 3 {
            change(&store, &mut model, &mut chance);
        }
        let name = format!("state {n}");
        store.take_snapshot(&name).unwrap();
        states.push((name, model.clone()));
    }
    store.branch("state 5", ContainerId(1), ContainerId(9)).unwrap();
    for (id, value) in model.clone().range(id(1, 0)..id(2, 0)) {
        model.insert(PageId { container: ContainerId(9), ..*id }, *value);
    }
    change(&store, &mut model, &mut chance);
    store.take_snapshot("branched").unwrap();
    states.push(("branched".to_owned(), model.clone()));
    change(&store, &mut model, &mut chance);
    store.go_back("state 3").unwrap();
    let mut model = states[3].1.clone();
    change(&store, &mut model, &mut chance);
    store.checkpoint().unwrap();

    let (reader, _) = Store::open_read_only(&dir).unwrap();
    let view = |n: usize| reader.view_snapshot(&states[n].0).unwrap();
    let full: Vec<Vec<u8>> = (0..states.len()).map(|n| backup(&view(n), None)).collect();
    for (n, (_, model)) in states.iter().enumerate() {
        restored(parent.path(), &[&full[n]], model);
    }
    // From each state to each other, earlier ones too; and all steps one after the other, in one stream.
    for _ in 0..6 {
        let (from, to) = (chance.usize(..states.len()), chance.usize(..states.len()));
        let changes = backup(&view(to), Some(&view(from)));
        restored(parent.path(), &[&full[from], &changes], &states[to].1);
        if from == to {
            assert!(changes.len() < 1000, "nothing has changed: {} bytes", changes.len());
        }
    }
    let mut steps = full[0].clone();
    for n in 1..states.len() {
        steps.extend(backup(&view(n), Some(&view(n - 1))));
    }
    restored(parent.path(), &[&steps], &states[states.len() - 1].1);
    // What is live, in a reader, stands still.
    let last = backup(&reader.view(), Some(&view(3)));
    change(&store, &mut model.clone(), &mut chance);
    restored(parent.path(), &[&full[3], &last], &model);
    assert!(last.len() < full[3].len() + 70 * PAGE_SIZE, "only what changed");
}

/// A small store, with a snapshot, and streams of it: whole, and what changed since the snapshot.
fn small(parent: &Path) -> (Vec<u8>, Vec<u8>) {
    let dir = parent.join("store");
    let store = create(&dir);
    let mut batch = store.batch();
    for page in [1, 2, 3, 500] {
        batch.push(id(1, page), |bytes| bytes.fill(page as u8 | 1));
    }
    batch.push(id(2, 0), |bytes| bytes.fill(9));
    store.commit(&mut batch).unwrap();
    store.take_snapshot("base").unwrap();
    batch.push(id(1, 2), |bytes| bytes.fill(77));
    batch.zero(id(1, 3));
    batch.drop_container(ContainerId(2));
    store.commit(&mut batch).unwrap();
    store.take_snapshot("now").unwrap();
    let (base, now) = (store.view_snapshot("base").unwrap(), store.view_snapshot("now").unwrap());
    (backup(&base, None), backup(&now, Some(&base)))
}

/// Asserts that nothing is left of an attempt.
fn nothing_left(dir: &Path) {
    assert!(!dir.exists() && !dir.with_file_name("restored.restoring").exists());
}

/// Places at which to spoil a stream: some of all bytes that are not an image's, others in each run, and few of those
/// that are. Each with STEAD_SPOIL_ALL.
fn places(stream: &[u8]) -> Vec<usize> {
    let step = if std::env::var_os("STEAD_SPOIL_ALL").is_some() { 1 } else { 12 };
    let first = fastrand::usize(..step);
    let in_image = |at: usize| {
        let around = &stream[at.saturating_sub(16)..(at + 17).min(stream.len())];
        around.windows(2).all(|pair| pair[0] == pair[1])
    };
    let places = (0..stream.len()).filter(|&at| at % 257 == 0 || !in_image(at));
    places.skip(first).step_by(step).collect()
}

/// Spoils each of the places in turn, until a restoration comes to its end all the same; whether one did.
fn is_spoilt_unnoticed(dir: &Path, full: &[u8], changes: &[u8]) -> bool {
    for (which, stream) in [full, changes].into_iter().enumerate() {
        for at in places(stream) {
            let mut bad = stream.to_vec();
            bad[at] ^= 1 << (at % 8);
            let streams = if which == 0 { [&bad[..], changes] } else { [full, &bad[..]] };
            match try_restore(dir, &streams) {
                Ok(_) => return true,
                Err(error) => assert!(!error.to_string().is_empty()),
            }
            nothing_left(dir);
        }
    }
    false
}

#[test]
fn what_is_not_as_it_was_written_is_refused() {
    let parent = tempfile::tempdir().unwrap();
    let dir = parent.path().join("restored");
    let (full, changes) = small(parent.path());
    try_restore(&dir, &[&full, &changes]).unwrap();
    std::fs::remove_dir_all(&dir).unwrap();
    assert!(!is_spoilt_unnoticed(&dir, &full, &changes));
    // Cut off anywhere.
    for at in places(&full) {
        let error = try_restore(&dir, &[&full[..at]]).unwrap_err();
        assert!(matches!(error, RestoreError::Cut { .. } | RestoreError::Nothing), "{at}: {error}");
        nothing_left(&dir);
    }
    // Something else behind it, or altogether.
    let mut more = full.clone();
    more.extend_from_slice(b"and more");
    let error = try_restore(&dir, &[&more]).unwrap_err();
    assert!(matches!(error, RestoreError::Damaged { .. }), "{error}");
    assert!(matches!(try_restore(&dir, &[b"#!/bin/sh"]), Err(RestoreError::NotABackup)));
    assert!(matches!(try_restore(&dir, &[]), Err(RestoreError::Nothing)));
    let mut newer = full.clone();
    newer[8] = 3;
    let error = try_restore(&dir, &[&newer]).unwrap_err();
    assert_eq!(
        error.to_string(),
        "this backup has format 3, this program reads 2: restore it with a newer version"
    );
    // Pieces left out, doubled, or in another order: each has a checksum that hangs on those before.
    let frames = frames(&full);
    for (i, frame) in frames.iter().enumerate().skip(1) {
        for bad in [
            [&full[..frame.start], &full[frame.end..]].concat(),
            [&full[..frame.end], &full[frame.clone()], &full[frame.end..]].concat(),
        ] {
            assert!(try_restore(&dir, &[&bad]).is_err(), "piece {i} of {}", frames.len());
            nothing_left(&dir);
        }
    }
}

/// Where the frames of a stream lie, and its preamble.
fn frames(stream: &[u8]) -> Vec<std::ops::Range<usize>> {
    let mut frames: Vec<_> = std::iter::once(0..16).collect();
    while frames[frames.len() - 1].end < stream.len() {
        let at = frames[frames.len() - 1].end;
        let payload = u32::from_le_bytes(stream[at + 4..at + 8].try_into().unwrap());
        frames.push(at..at + 16 + payload as usize);
    }
    frames
}

#[test]
fn a_restoration_that_believes_anything_is_found_out() {
    let parent = tempfile::tempdir().unwrap();
    let (full, changes) = small(parent.path());
    planted::set(Some(Bug::StreamUnchecked));
    let unnoticed = is_spoilt_unnoticed(&parent.path().join("restored"), &full, &changes);
    planted::set(None);
    assert!(unnoticed);
}

/// Restores forged backups, of which all checksums are right: how many were refused, and how many restored.
fn forged(parent: &Path, seeds: std::ops::Range<u64>) -> (u64, u64) {
    let (full, changes) = small(parent);
    let both = [full, changes].concat();
    let mut counts = (0, 0);
    for seed in seeds {
        match try_restore_forged(&parent.join("restored"), &forge_backup(&both, seed)) {
            Outcome::Refused => counts.0 += 1,
            Outcome::Opened | Outcome::Salvaged => counts.1 += 1,
        }
    }
    counts
}

#[test]
fn of_a_forged_backup_comes_a_sound_store_or_none() {
    let parent = tempfile::tempdir().unwrap();
    let first = fastrand::u64(..) >> 16;
    println!("seeds from {first} on");
    let (refused, restored) = forged(parent.path(), first..first + 60);
    assert!(refused > 0 && restored > 0, "{refused} refused, {restored} restored");
}

#[test]
fn a_restoration_that_believes_what_has_a_checksum_is_found_out() {
    let parent = tempfile::tempdir().unwrap();
    planted::set(Some(Bug::StreamBelieved));
    let found = std::panic::catch_unwind(|| forged(parent.path(), 0..300));
    planted::set(None);
    assert!(found.is_err());
}

#[test]
fn what_does_not_follow_is_refused_with_words() {
    let parent = tempfile::tempdir().unwrap();
    let dir = parent.path().join("restored");
    let (full, changes) = small(parent.path());
    let other = tempfile::tempdir().unwrap();
    let (other_full, _) = small(other.path());
    let refused = |streams: &[&[u8]], words: &[&str]| {
        let error = try_restore(&dir, streams).unwrap_err().to_string();
        for word in words {
            assert!(error.contains(word), "{word:?} is missing in: {error}");
        }
        nothing_left(&dir);
    };
    refused(&[&changes], &["since snapshot \"base\" (number", "nothing has been restored yet"]);
    refused(
        &[&full, &changes, &changes],
        &["since snapshot \"base\"", "restored is snapshot \"now\""],
    );
    refused(
        &[&other_full, &changes],
        &["what has been restored is snapshot \"base\"", "restore first"],
    );
    refused(&[&full, &full], &["whole state", "only be the first"]);

    // What is in the way is left as it is.
    let error = try_restore(&parent.path().join("store"), &[&full]).unwrap_err();
    assert!(matches!(error, RestoreError::Exists { .. }), "{error}");
    let beside = parent.path().join("restored.restoring");
    drop(create(&beside));
    let error = try_restore(&dir, &[&full]).unwrap_err().to_string();
    assert!(error.contains("restored.restoring is there already"), "{error}");
    drop(Store::open(&beside).unwrap());
    std::fs::remove_dir_all(&beside).unwrap();
    let under_way = {
        let mut first = Restore::begin(&dir).unwrap();
        first.apply(&mut &full[..], &mut |_| {}).unwrap();
        let error = Restore::begin(&dir).unwrap_err();
        first.finish(&mut |_| {}).unwrap();
        error
    };
    assert!(matches!(under_way, RestoreError::UnderWay { .. }), "{under_way}");
    assert!(matches!(Restore::begin(&dir), Err(RestoreError::Exists { .. })));
    // An empty directory is as good as none.
    let empty = parent.path().join("empty");
    std::fs::create_dir(&empty).unwrap();
    try_restore(&empty, &[&full]).unwrap();
    assert!(Store::open(&empty).is_ok());
    // So is a link to one, which stays a link.
    let (link, behind) = (parent.path().join("link"), parent.path().join("behind"));
    std::os::unix::fs::symlink("behind", &link).unwrap();
    let nowhere = try_restore(&link, &[&full]).unwrap_err().to_string();
    assert!(nowhere.contains("following the link"), "{nowhere}");
    std::fs::create_dir(&behind).unwrap();
    try_restore(&link, &[&full]).unwrap();
    assert!(link.is_symlink() && Store::open(&behind).is_ok());
    // Whatever follows a backup is a backup.
    let longer = [&full[..], b"and more"].concat();
    let error = try_restore(&parent.path().join("longer"), &[&longer]).unwrap_err().to_string();
    assert!(error.contains("damaged at byte") && error.contains("follows the end"), "{error}");
    assert!(!parent.path().join("longer.restoring").exists());
}

#[test]
fn of_several_attempts_at_once_one_restores_and_the_others_are_told() {
    let parent = tempfile::tempdir().unwrap();
    let store = create(&parent.path().join("store"));
    let mut model = Model::new();
    change(&store, &mut model, &mut fastrand::Rng::with_seed(1));
    store.take_snapshot("base").unwrap();
    let mut full = Vec::new();
    store.view_snapshot("base").unwrap().backup(None, &mut full, &mut |_| {}).unwrap();
    let mut told = 0;
    for round in 0..15 {
        let dir = parent.path().join(round.to_string());
        // What a killed attempt has left is in nobody's way.
        if round % 3 == 0 {
            std::fs::create_dir(dir.with_file_name(format!("{round}.restoring"))).unwrap();
        }
        let ended: Vec<_> = std::thread::scope(|scope| {
            let all: Vec<_> = (0..4).map(|_| scope.spawn(|| try_restore(&dir, &[&full]))).collect();
            all.into_iter().map(|one| one.join().unwrap()).collect()
        });
        assert_eq!(ended.iter().filter(|ended| ended.is_ok()).count(), 1, "{ended:?}");
        for error in ended.into_iter().filter_map(Result::err) {
            told += u32::from(matches!(error, RestoreError::UnderWay { .. }));
            let in_words =
                matches!(error, RestoreError::UnderWay { .. } | RestoreError::Exists { .. });
            assert!(in_words, "{error}");
        }
        let (restored, _) = Store::open(&dir).unwrap();
        assert_eq!(contents(&restored.view()), model);
    }
    assert!(told > 0, "the attempts met each other");
    let left = std::fs::read_dir(parent.path()).unwrap().flatten();
    assert!(!left.into_iter().any(|e| e.file_name().to_string_lossy().ends_with(".restoring")));
}

/// Not a test of its own: restores from standard input, to be killed.
#[test]
fn helper_that_restores() {
    let Some(dir) = std::env::var_os("STEAD_TEST_RESTORE") else { return };
    let mut restore = Restore::begin(&PathBuf::from(dir)).unwrap();
    restore.apply(&mut std::io::stdin().lock(), &mut |_| {}).unwrap();
    restore.finish(&mut |_| {}).unwrap();
}

#[test]
fn killed_it_leaves_a_whole_store_or_none() {
    const PAGES: u64 = 4000;
    let parent = tempfile::tempdir().unwrap();
    let store = create(&parent.path().join("store"));
    let mut batch = store.batch();
    for page in 0..PAGES {
        batch.push(id(1, page), |bytes| bytes.fill(page as u8 | 1));
    }
    store.commit(&mut batch).unwrap();
    store.take_snapshot("all").unwrap();
    let file = parent.path().join("backup");
    std::fs::write(&file, backup(&store.view_snapshot("all").unwrap(), None)).unwrap();
    let dir = parent.path().join("restored");
    let (mut whole, mut none) = (0, 0);
    // Until it was killed before its end several times, and then came to its end.
    while whole == 0 || none < 6 {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "helper_that_restores", "--nocapture"])
            .env("STEAD_TEST_RESTORE", &dir)
            .stdin(std::fs::File::open(&file).unwrap())
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        let ended = if none < 6 {
            std::thread::sleep(Duration::from_millis(fastrand::u64(..150)));
            child.try_wait().unwrap()
        } else {
            Some(child.wait().unwrap())
        };
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(ended.is_none_or(|status| status.success()));
        if dir.exists() {
            let (store, _) = Store::open(&dir).unwrap();
            assert_eq!(store.stored_pages(ContainerId(1)).unwrap()[0].page_count(), PAGES);
            assert!(store.verify(&mut |_| {}).unwrap().is_clean());
            drop(store);
            std::fs::remove_dir_all(&dir).unwrap();
            whole += 1;
        } else {
            assert!(ended.is_none(), "it says it is done");
            none += 1;
        }
    }
    println!("{none} killed before the end, {whole} whole");
}

/// What has been laid down for a store.
fn laid_down(store: &Store) -> (Option<u64>, u32, Vec<(ContainerId, u64)>) {
    (store.quota(), store.space_percent(), store.container_quotas())
}

#[test]
fn what_has_been_laid_down_goes_with_a_backup() {
    const PAGE: u64 = PAGE_SIZE as u64;
    let parent = tempfile::tempdir().unwrap();
    let store = create(&parent.path().join("store"));
    let fill = |store: &Store, container: u32, pages: u64| {
        let mut batch = store.batch();
        (0..pages).for_each(|page| batch.push(id(container, page), |bytes| bytes.fill(7)));
        store.commit(&mut batch)
    };
    for container in 1..4 {
        fill(&store, container, 300).unwrap();
    }
    // Not much more than there is.
    let quota = (16 + 26 * 64) * PAGE;
    store.set_quota(Some(quota)).unwrap();
    store.set_space_percent(Some(300)).unwrap();
    for container in [1, 2, 3, 9] {
        let bytes = (300 + u64::from(container)) * PAGE;
        store.set_container_quota(ContainerId(container), Some(bytes)).unwrap();
    }
    store.take_snapshot("one").unwrap();
    let one = store.view_snapshot("one").unwrap();
    let whole = backup(&one, None);
    let mut batch = store.batch();
    batch.drop_container(ContainerId(3));
    store.commit(&mut batch).unwrap();
    store.take_snapshot("two").unwrap();
    let two = store.view_snapshot("two").unwrap();
    let changes = backup(&two, Some(&one));
    // It is what there is now, of the containers that there were then and are now.
    store.set_container_quota(ContainerId(2), None).unwrap();
    let later = backup(&one, None);
    // Nothing any more.
    store.set_quota(None).unwrap();
    store.set_space_percent(None).unwrap();
    store.set_container_quota(ContainerId(1), None).unwrap();
    let lifted = backup(&two, Some(&one));

    let container = |number: u32| (ContainerId(number), (300 + u64::from(number)) * PAGE);
    for (streams, want) in [
        (vec![&whole], (Some(quota), 300, vec![container(1), container(2), container(3)])),
        (vec![&whole, &changes], (Some(quota), 300, vec![container(1), container(2)])),
        (vec![&later], (Some(quota), 300, vec![container(1)])),
        (vec![&whole, &lifted], (None, 200, vec![])),
    ] {
        let dir = parent.path().join("restored");
        let streams: Vec<&[u8]> = streams.into_iter().map(Vec::as_slice).collect();
        try_restore(&dir, &streams).unwrap();
        let (restored, _) = Store::open(&dir).unwrap();
        assert_eq!(laid_down(&restored), want);
        let file = restored.stat().file_bytes;
        assert!(want.0.is_none_or(|quota| file <= quota), "{file} of {quota}");
        let full = fill(&restored, 1, 302);
        assert_eq!(full.is_err(), want.0.is_some(), "{full:?}");
        assert!(restored.verify(&mut |_| {}).unwrap().is_clean());
        drop(restored);
        std::fs::remove_dir_all(dir).unwrap();
    }
}
