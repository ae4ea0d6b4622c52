//! A process that commits without end is killed, again and again: what it was told is durable is there, and each
//! state is a whole one.

use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use stead_model::{ContainerId, PAGE_SIZE, PageId, PageNo};
use stead_store::{CreateOptions, Store, Stored};

const KILLS: usize = 12;

/// Every stabilisation stores its number on all pages of one container, and on a varying number of another's.
const PAGES: u64 = 60;

fn id(container: u32, page: u64) -> PageId {
    PageId { container: ContainerId(container), page: PageNo(page) }
}

fn number_at(store: &Store, id: PageId) -> u64 {
    let mut bytes = [0; PAGE_SIZE];
    store.read_page(id, &mut bytes).unwrap();
    let number = u64::from_le_bytes(*bytes.first_chunk().unwrap());
    assert!(bytes.chunks_exact(8).all(|word| word == number.to_le_bytes()), "{id} is torn");
    number
}

/// Not a test of its own: what the test below runs as a process, to be killed.
#[test]
fn helper_that_commits_for_ever() {
    let Some(dir) = std::env::var_os("STEAD_TEST_COMMIT") else { return };
    let (store, _) = Store::open(&PathBuf::from(dir)).unwrap();
    let mut batch = store.batch();
    let first = store.stat().last_sequence + 1;
    for number in first.. {
        let fill = |bytes: &mut [u8]| {
            bytes.chunks_exact_mut(8).for_each(|w| w.copy_from_slice(&number.to_le_bytes()));
        };
        (0..PAGES).for_each(|page| batch.push(id(1, page), fill));
        let more = if number % 7 == 0 { 600 } else { number % 5 };
        (0..more).for_each(|page| batch.push(id(2, page), fill));
        assert_eq!(store.commit(&mut batch).unwrap().sequence, number);
        println!("durable {number}");
        std::io::stdout().flush().unwrap();
        if number % 3 == 0 {
            store.maintain().unwrap();
        }
        if number % 11 == 0 {
            store.checkpoint().unwrap();
        }
    }
}

/// Lets a process commit for a while, kills it, and returns the last number that it said was durable.
fn commit_and_kill(dir: &Path, after: Duration) -> Option<u64> {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "helper_that_commits_for_ever", "--nocapture"])
        .env("STEAD_TEST_COMMIT", dir)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let out = BufReader::new(child.stdout.take().unwrap());
    let said = std::thread::spawn(move || {
        out.lines()
            .map_while(Result::ok)
            .filter_map(|line| line.split_once("durable ")?.1.parse().ok())
            .last()
    });
    std::thread::sleep(after);
    child.kill().unwrap();
    child.wait().unwrap();
    said.join().unwrap()
}

#[test]
fn killed_at_any_moment_nothing_acknowledged_is_gone() {
    let parent = tempfile::tempdir().unwrap();
    let dir = parent.path().join("store");
    drop(Store::create(&dir, &CreateOptions::default()).unwrap());
    let mut acknowledged = 0;
    for _ in 0..KILLS {
        let after = Duration::from_millis(fastrand::u64(20..250));
        acknowledged = commit_and_kill(&dir, after).unwrap_or(acknowledged);
        let (store, report) = Store::open(&dir).unwrap();
        let last = report.last_sequence;
        assert!(
            last == acknowledged || last == acknowledged + 1,
            "{last} found, {acknowledged} acknowledged"
        );
        for page in 0..PAGES {
            assert_eq!(number_at(&store, id(1, page)), last);
        }
        if last >= 7 {
            assert_eq!(number_at(&store, id(2, 599)), last / 7 * 7);
        }
        let mut bytes = [0; PAGE_SIZE];
        assert_eq!(store.read_page(id(1, PAGES), &mut bytes).unwrap(), Stored::Never);
        assert!(store.verify(&mut |_| {}).unwrap().is_clean());
        acknowledged = last;
    }
    assert!(acknowledged > 0, "no process lived long enough to commit anything");
    eprintln!("{KILLS} kills, {acknowledged} stabilisations");
}

/// All of the above, by io_uring.
#[test]
fn by_io_uring_it_is_the_same() {
    if std::env::var_os("STEAD_IO").is_some() {
        return;
    }
    let output = std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--nocapture"])
        .env("STEAD_IO", "ring")
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}
