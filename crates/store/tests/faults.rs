//! A real process on a real file, one of whose system calls goes wrong: each call in turn. It says through a pipe what
//! it was told is durable; behind its end the store is opened, and must hold exactly that, or what was under way.

mod supervisor;

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use stead_model::{ContainerId, PAGE_SIZE, PageId, PageNo};
use stead_store::planted::{self, Bug};
use stead_store::{Calls, CreateOptions, FileMedium, Medium, Store};

use supervisor::{Call, Fault, Supervisor};

const PAGES: u64 = 5;
const STEPS: u64 = 9;

fn id(page: u64) -> PageId {
    PageId { container: ContainerId(1), page: PageNo(page) }
}

/// The number that all pages hold.
fn number_at(store: &Store) -> Result<u64, String> {
    let mut numbers = Vec::new();
    for page in 0..PAGES {
        let mut bytes = [0; PAGE_SIZE];
        store.read_page(id(page), &mut bytes).map_err(|error| error.to_string())?;
        let words = bytes.chunks_exact(8).map(|word| u64::from_le_bytes(word.try_into().unwrap()));
        numbers.extend(words);
    }
    numbers.dedup();
    if let [number] = numbers[..] { Ok(number) } else { Err(format!("torn: {numbers:?}")) }
}

#[test]
#[ignore = "the body of a process of its own"]
fn body_of_a_supervised_process() {
    let dir = PathBuf::from(std::env::var_os("STEAD_TEST_DIR").expect("run by its test"));
    planted::set(match std::env::var("STEAD_TEST_BUG").as_deref() {
        Ok("swallowed") => Some(Bug::SwallowedEio),
        Ok("retried") => Some(Bug::RetriedFlush),
        _ => None,
    });
    if let Err(error) = supervisor::submit() {
        println!("NOT RUN: this kernel lets no process be supervised: {error}");
        return;
    }
    let stop_at_once = std::env::var_os("STEAD_TEST_STOP").is_some();
    let Ok((store, _)) = Store::open(&dir) else { return };
    let mut batch = store.batch();
    for number in 1..=STEPS {
        let fill = |bytes: &mut [u8]| {
            bytes.chunks_exact_mut(8).for_each(|w| w.copy_from_slice(&number.to_le_bytes()));
        };
        // One heavy, one that needs more room than there is.
        let pages = [PAGES, 60, 130][usize::from(number == 3) + 2 * usize::from(number == 6)];
        (0..pages).for_each(|page| batch.push(id(page), fill));
        println!("trying {number}");
        match store.commit(&mut batch) {
            Ok(_) => println!("durable {number}"),
            Err(_) if stop_at_once => return,
            // What failed is in the next one, with newer images.
            Err(error) => println!("failed {number}: {error}"),
        }
        let upkeep = match number {
            4 => store.checkpoint(),
            5 | 7 => store.maintain().map(drop),
            _ => Ok(()),
        };
        if upkeep.is_err() && stop_at_once {
            return;
        }
    }
}

/// What became of a supervised process.
#[derive(Debug)]
struct Life {
    calls: Vec<Call>,
    /// Whether the fault was met with.
    met: bool,
    durable: u64,
    tried: u64,
    failed: bool,
}

/// Runs a process with one fault; `None` if that cannot be done here.
fn live(dir: &Path, at: usize, fault: Fault, settings: &[(&str, &str)]) -> Option<Life> {
    drop(
        Store::create(dir, &CreateOptions { segment_blocks: Some(32), ..CreateOptions::default() })
            .unwrap(),
    );
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "body_of_a_supervised_process", "--ignored", "--nocapture"])
        .env("STEAD_TEST_DIR", dir)
        .envs(settings.iter().copied())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines().map_while(Result::ok);
    let listener = lines.find_map(|line| {
        if line.contains("NOT RUN") {
            eprintln!("{line}");
            return Some(None);
        }
        Some(line.split_once("listener ")?.1.parse().ok())
    });
    let supervisor = listener.flatten().map(|fd| Supervisor::new(child.id(), fd, &dir.join("log")));
    let mut supervisor = match supervisor {
        Some(Ok(supervisor)) => supervisor,
        Some(Err(error)) => {
            eprintln!("NOT RUN: this process may not supervise another: {error}");
            child.kill().unwrap();
            child.wait().unwrap();
            return None;
        }
        None => {
            child.wait().unwrap();
            return None;
        }
    };
    let said = std::thread::spawn(move || {
        let (mut tried, mut durable, mut failed) = (0, 0, false);
        for line in lines {
            let number = |word| line.split_once(word).and_then(|(_, rest)| rest.parse().ok());
            tried = number("trying ").unwrap_or(tried);
            durable = number("durable ").unwrap_or(durable);
            failed |= line.contains("failed ");
        }
        (tried, durable, failed)
    });
    let met = supervisor.watch(at, fault).unwrap();
    assert!(child.wait().unwrap().success(), "the process has not ended well");
    let (tried, durable, failed) = said.join().unwrap();
    Some(Life { calls: supervisor.calls, met, durable, tried, failed })
}

/// Opens what the process has left; what is wrong with it.
fn check(dir: &Path, life: &Life) -> Result<(), String> {
    let (store, report) = Store::open(dir).map_err(|error| error.to_string())?;
    let found = number_at(&store)?;
    if found != life.durable && found != life.tried {
        return Err(format!("{found} found; {life:?}; {report:?}"));
    }
    let verified = store.verify(&mut |_| {}).map_err(|error| error.to_string())?;
    // A root that was being written is torn at most.
    if verified.damages.len() > 1 || !verified.miscounted.is_empty() {
        let first = verified.damages.first();
        return Err(format!("{} damages, {first:?}", verified.damages.len()));
    }
    // It works again.
    let mut batch = store.batch();
    (0..PAGES).for_each(|page| batch.push(id(page), |bytes| bytes.fill(77)));
    store.commit(&mut batch).map_err(|error| error.to_string())?;
    drop(store);
    let (store, _) = Store::open(dir).map_err(|error| error.to_string())?;
    let again = u64::from_le_bytes([77; 8]);
    if number_at(&store)? == again { Ok(()) } else { Err("what came later is gone".into()) }
}

/// The faults to try at a call of this kind.
fn faults(call: Call) -> &'static [Fault] {
    match call {
        Call::Write => &[
            Fault::Error(libc::EIO),
            Fault::Short,
            Fault::Error(libc::ENOSPC),
            Fault::Error(libc::EINTR),
        ],
        Call::Flush => &[Fault::Loss, Fault::Error(libc::EIO), Fault::Error(libc::ENOSPC)],
        Call::Room => {
            &[Fault::Error(libc::ENOSPC), Fault::Error(libc::EIO), Fault::Error(libc::EOPNOTSUPP)]
        }
        Call::Ring => &[
            Fault::Error(libc::EIO),
            Fault::Error(libc::EINTR),
            Fault::Error(libc::EAGAIN),
            Fault::Error(libc::EPERM),
        ],
    }
}

fn every_call_in_turn(settings: &[(&str, &str)], wanted: &[Call]) {
    let parent = tempfile::tempdir().unwrap();
    let dir = |name: &str| parent.path().join(name);
    let none = Fault::Error(0);
    let Some(undisturbed) = live(&dir("none"), usize::MAX, none, settings) else { return };
    assert_eq!((undisturbed.durable, undisturbed.failed), (STEPS, false), "{undisturbed:?}");
    check(&dir("none"), &undisturbed).unwrap();
    for call in wanted {
        assert!(undisturbed.calls.contains(call), "no {call:?} among {:?}", undisturbed.calls);
    }
    let (mut lives, mut failures) = (0, 0);
    for (at, call) in undisturbed.calls.iter().enumerate() {
        for (i, &fault) in faults(*call).iter().enumerate() {
            let mut settings = settings.to_vec();
            // Half of the processes end at the first failure, half go on.
            if (at + i).is_multiple_of(2) {
                settings.push(("STEAD_TEST_STOP", "1"));
            }
            let name = dir(&format!("{at}-{i}"));
            let life = live(&name, at, fault, &settings).expect("it was possible before");
            assert!(life.met, "call {at} is another now: {life:?}");
            if let Err(why) = check(&name, &life) {
                panic!("{fault:?} at call {at} ({call:?}), {settings:?}: {why}");
            }
            std::fs::remove_dir_all(&name).unwrap();
            lives += 1;
            failures += u64::from(life.failed || life.tried > life.durable);
        }
    }
    eprintln!("{lives} faults, {failures} processes had stabilisations that failed");
    // What a ring refuses is done by plain calls.
    assert!(wanted.contains(&Call::Ring) || failures > lives / 4, "the faults hit nothing");
}

#[test]
fn a_call_that_fails_is_never_followed_by_a_false_acknowledgement() {
    every_call_in_turn(&[("STEAD_IO", "plain")], &[Call::Write, Call::Flush, Call::Room]);
}

#[test]
fn nor_is_a_submission_to_a_ring() {
    let dir = tempfile::tempdir().unwrap();
    let log = dir.path().join("log");
    drop(FileMedium::create(&log).unwrap());
    let medium = FileMedium::open_with(&log, true, Calls::Ring).unwrap();
    if medium.uses_ring() {
        every_call_in_turn(&[("STEAD_IO", "ring")], &[Call::Ring]);
    } else {
        eprintln!("NOT RUN: {}", medium.describe());
    }
}

/// The checker finds what it is for.
fn is_found(bug: &str) {
    let parent = tempfile::tempdir().unwrap();
    let settings = [("STEAD_IO", "plain"), ("STEAD_TEST_BUG", bug)];
    for at in 0..60 {
        let dir = parent.path().join(at.to_string());
        let Some(life) = live(&dir, at, Fault::Loss, &settings) else { return };
        if let Err(why) = check(&dir, &life) {
            eprintln!("{bug}: found at call {at}: {why}");
            return;
        }
    }
    panic!("a {bug} error of a flush is not found");
}

#[test]
fn a_swallowed_error_is_found() {
    is_found("swallowed");
}

#[test]
fn a_flush_tried_again_is_found() {
    is_found("retried");
}
