//! A disk that fills up under a program: it is told, goes on, is killed, and starts again on a disk without a free
//! byte. Nothing stable is lost, giving up a container makes room in the store itself, and space that returns is used.
//! On file systems of its own, mounted for this test alone.

mod common;

use std::io::Write;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use stead::{Options, Persist, Result, Store, Vec};

#[derive(Persist)]
#[repr(C)]
struct Numbers<'s> {
    numbers: Vec<'s, u64>,
}

fn open(dir: &Path) -> Store {
    Store::open_with(dir, &Options::new().interval(None)).unwrap()
}

fn push(store: &Store, name: &str, count: u64) -> Result<u64> {
    let container = store.container::<Numbers>(name, |tx| Ok(Numbers { numbers: Vec::new(tx) }))?;
    container.exclusive(|root, tx| -> Result<u64> {
        let first = root.numbers.len() as u64;
        for i in first..first + count {
            root.numbers.push(tx, i)?;
        }
        Ok(first + count)
    })
}

/// How many numbers there are; each must be what it was.
fn count(store: &Store, name: &str) -> Result<u64> {
    let container = store.container::<Numbers>(name, |tx| Ok(Numbers { numbers: Vec::new(tx) }))?;
    let right =
        container.read(|root, _| root.numbers.iter().enumerate().all(|(i, &n)| n == i as u64))?;
    assert!(right, "the numbers of {name} are not what they were");
    Ok(container.read(|root, _| root.numbers.len() as u64)?)
}

fn say(what: &str) {
    println!("> {what}.");
    std::io::stdout().flush().unwrap();
}

/// Fills the disk, and goes on when it is full.
fn fill(dir: &Path) {
    let store = open(dir);
    loop {
        let numbers = push(&store, "kept", 1).unwrap();
        // What is in memory only is no more than the disk would have to take.
        if count(&store, "ballast").unwrap() < 10_000_000 {
            push(&store, "ballast", 500_000).unwrap();
        }
        match store.stabilise() {
            Ok(_) => say(&format!("durable {numbers}")),
            Err(error) => {
                let error = error.to_string();
                assert!(error.contains("no room") && error.contains("free some"), "{error}");
                say("full");
                std::thread::sleep(Duration::from_millis(10));
            }
        }
        // Memory is as the program left it, whatever the disk says.
        assert_eq!(count(&store, "kept").unwrap(), numbers);
    }
}

/// Starts again while the disk is full, gives up a container, and uses the room that this makes.
fn go_on(dir: &Path, durable: u64) {
    let store = open(dir);
    let kept = count(&store, "kept").unwrap();
    assert!(kept >= durable, "{kept} numbers, {durable} were durable");
    let ballast = count(&store, "ballast").unwrap();
    assert!(ballast >= 500_000, "{ballast}");
    // A small change has room, or is refused and kept.
    let numbers = push(&store, "kept", 1).unwrap();
    if store.stabilise().is_ok() {
        say(&format!("durable {numbers}"));
    }
    store.remove("ballast").unwrap();
    say("removed");
    for _ in 0..5 {
        let numbers = push(&store, "kept", 100_000).unwrap();
        store.stabilise().unwrap();
        say(&format!("durable {numbers}"));
    }
    say("went on");
    std::thread::sleep(Duration::from_secs(600));
}

/// Starts again when there is space: what was refused then is taken now.
fn finish(dir: &Path, durable: u64) {
    let store = open(dir);
    let kept = count(&store, "kept").unwrap();
    assert!(kept >= durable, "{kept} numbers, {durable} were durable");
    push(&store, "ballast", 2_000_000).unwrap();
    store.stabilise().unwrap();
    assert!(store.site().verify_store(&mut |_| {}).unwrap().is_clean());
    drop(store);
    assert_eq!(count(&open(dir), "ballast").unwrap(), 2_000_000);
    say("finished");
}

/// What a process said: the number that was last durable, and whether it was told that the disk is full, and the
/// rest.
fn heard(lines: &[String], durable: &mut u64, word: &str) -> bool {
    let mut numbers = lines
        .iter()
        .filter_map(|line| line.strip_prefix("> durable ")?.strip_suffix('.')?.parse::<u64>().ok());
    *durable = numbers.next_back().unwrap_or(*durable);
    lines.iter().any(|line| line.contains(word))
}

fn occupy(filler: &Path) {
    let mut file = std::fs::File::options().create(true).append(true).open(filler).unwrap();
    for bytes in [1 << 16, 4096, 1] {
        while file.write_all(&vec![1; bytes]).is_ok() {}
    }
}

/// The whole story, on the file system that is mounted at `mount`.
fn story(test: &str, mount: &Path) {
    let dir = mount.join("store");
    let part = |part: &str, durable: u64| {
        common::child(test, &format!("{part} {durable} {}", dir.display()))
    };
    let mut durable = 0;
    let mut full = false;
    for _ in 0..40 {
        let lines = common::run_and_kill(part("fill", durable), Duration::from_millis(700));
        full |= heard(&lines, &mut durable, "full");
        if full {
            break;
        }
    }
    assert!(full && durable > 0, "the disk did not fill up");
    let filler = mount.join("filler");
    occupy(&filler);
    // Killed and started again, with the disk full, twice.
    let lines = common::run_and_kill(part("fill", durable), Duration::from_millis(700));
    heard(&lines, &mut durable, "full");
    occupy(&filler);
    let mut went_on = false;
    let mut command = part("go_on", durable);
    for time in [2000, 20_000] {
        let lines = common::run_and_kill(command, Duration::from_millis(time));
        went_on |= heard(&lines, &mut durable, "went on");
        if went_on || heard(&lines, &mut durable, "removed") {
            break;
        }
        command = part("go_on", durable);
    }
    assert!(went_on, "giving up a container made no room");
    std::fs::remove_file(&filler).unwrap();
    let output = part("finish", durable).output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{said}{}", String::from_utf8_lossy(&output.stderr));
    assert!(said.contains("> finished."), "{said}");
    println!("{test}: {durable} stabilised numbers came through");
}

fn run(program: &str, args: &[&str]) -> bool {
    Command::new(program).args(args).output().is_ok_and(|output| output.status.success())
}

/// Runs the story in a process with mounts of its own, on what `mount` mounts.
fn on_its_own_file_system(test: &str, mount: impl FnOnce(&Path) -> bool) {
    match common::part() {
        None => {
            let Some(_alone) = common::alone() else { return };
            if !common::is_root() {
                common::not_run("to mount a small file system, run as root");
                return;
            }
            let temp = tempfile::tempdir().unwrap();
            let part = format!("story 0 {}", temp.path().display());
            let output = common::child(test, &part).output().unwrap();
            let said = String::from_utf8_lossy(&output.stdout);
            let why = String::from_utf8_lossy(&output.stderr);
            assert!(output.status.success(), "{said}{why}");
            said.lines().filter(|line| line.contains("NOT RUN")).for_each(|l| println!("{l}"));
        }
        Some(part) => {
            let mut words = part.splitn(3, ' ');
            let mut word = || words.next().expect("three words").to_owned();
            let (part, durable, path) = (word(), word().parse().unwrap(), word());
            let path = Path::new(&path);
            match part.as_str() {
                "fill" => fill(path),
                "go_on" => go_on(path, durable),
                "finish" => finish(path, durable),
                _ => {
                    // SAFETY: a plain system call; only this process's view of mounts changes.
                    let apart = unsafe { libc::unshare(libc::CLONE_NEWNS) == 0 };
                    if apart && run("mount", &["--make-rprivate", "/"]) && mount(path) {
                        story(test, path);
                    } else {
                        common::not_run("a small file system could not be mounted");
                    }
                }
            }
        }
    }
}

#[test]
fn a_full_tmpfs() {
    on_its_own_file_system("a_full_tmpfs", |path| {
        run("mount", &["-t", "tmpfs", "-o", "size=96m", "stead-test", path.to_str().unwrap()])
    });
}

#[test]
fn a_full_ext4() {
    on_its_own_file_system("a_full_ext4", |path| {
        let image = path.join("image");
        let (image, path) = (image.to_str().unwrap(), path.to_str().unwrap());
        run("truncate", &["-s", "96M", image])
            && run("mkfs.ext4", &["-q", "-F", "-m", "0", image])
            && run("mount", &["-o", "loop", image, path])
    });
}
