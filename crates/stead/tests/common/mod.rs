//! What the tests of the whole share: directories, children that are killed, reasons not to run.
#![allow(dead_code, reason = "each test file uses some of it")]

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// Lets one test at a time have stores open in this process: the addresses of a store are random, and two
/// stores made at different times may want the same. `None`, and said so, where stead does not work at all.
pub(crate) fn alone() -> Option<MutexGuard<'static, ()>> {
    static ALONE: Mutex<()> = Mutex::new(());
    match stead::Support::probe().missing() {
        // A test that failed has closed its stores as well.
        None => Some(ALONE.lock().unwrap_or_else(PoisonError::into_inner)),
        Some(missing) => {
            not_run(&missing.to_string());
            None
        }
    }
}

/// Reports a test as not run.
pub(crate) fn not_run(why: &str) {
    println!("NOT RUN: {why}");
}

pub(crate) fn is_root() -> bool {
    // /proc/self is owned by the effective user.
    use std::os::unix::fs::MetadataExt;
    std::fs::metadata("/proc/self").is_ok_and(|m| m.uid() == 0)
}

/// A child that runs one test function of this test program, which does its part when the environment
/// variable `STEAD_CHILD` is set.
pub(crate) fn child(test: &str, part: &str) -> Command {
    let mut command = Command::new(std::env::current_exe().expect("a test program has a path"));
    command
        .args([test, "--exact", "--nocapture", "--test-threads=1"])
        .env("STEAD_CHILD", part)
        .env("RUST_BACKTRACE", "0")
        .stdin(Stdio::null());
    command
}

/// What part this process is to do; `None` in the test itself.
pub(crate) fn part() -> Option<String> {
    std::env::var("STEAD_CHILD").ok()
}

/// Starts a child, lets it run for `time`, kills it, and returns what it said: lines that end with a full
/// stop, from a `>` on (before it stands what the test harness says).
pub(crate) fn run_and_kill(mut command: Command, time: Duration) -> Vec<String> {
    let mut child: Child = command.stdout(Stdio::piped()).spawn().expect("a child can be started");
    let stdout = child.stdout.take().expect("stdout is piped");
    let reader = std::thread::spawn(move || {
        BufReader::new(stdout)
            .lines()
            .map_while(Result::ok)
            .filter(|line| line.ends_with('.'))
            .filter_map(|line| line.find('>').map(|at| line[at..].to_owned()))
            .collect()
    });
    std::thread::sleep(time);
    let ended = child.try_wait().expect("a child can be waited for");
    child.kill().expect("a child can be killed");
    child.wait().expect("a child can be waited for");
    let lines: Vec<String> = reader.join().expect("the reader does not panic");
    if let Some(status) = ended {
        panic!("the child ended by itself: {status}: {lines:?}");
    }
    lines
}

/// A number for this run's chance, printed so that a failure can be repeated with STEAD_SEED.
pub(crate) fn seed(test: &str) -> u64 {
    let seed = std::env::var("STEAD_SEED")
        .ok()
        .and_then(|s| s.parse().ok())
        .unwrap_or_else(|| fastrand::u64(..));
    println!("seed of {test}: {seed} (STEAD_SEED={seed} repeats its choices)");
    seed
}
