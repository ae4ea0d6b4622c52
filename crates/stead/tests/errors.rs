//! Bad input gets a clear error that says what, where and what to do, and nothing is lost.

mod common;

use std::fs;
use std::io::BufRead;
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::path::Path;

use stead::{ContainerOptions, Options, Persist, Store, Vec};

#[derive(Persist)]
#[repr(C)]
struct Numbers<'s> {
    list: Vec<'s, u64>,
}

#[derive(Persist)]
#[repr(C)]
struct Other {
    value: u32,
    more: u32,
}

fn numbers(store: &Store) -> stead::Result<stead::Container<Numbers<'static>>> {
    store.container("numbers", |tx| Ok(Numbers { list: Vec::new(tx) }))
}

fn filled(dir: &Path, n: u64) {
    let store = stead::open(dir).unwrap();
    let c = numbers(&store).unwrap();
    c.exclusive(|root, tx| -> stead::Result<_> {
        for i in 0..n {
            root.list.push(tx, i)?;
        }
        Ok(())
    })
    .unwrap();
}

fn sum(dir: &Path) -> u64 {
    let store = stead::open(dir).unwrap();
    numbers(&store).unwrap().read(|root, _| root.list.iter().sum()).unwrap()
}

/// Asserts that a store does not open, and what its message holds.
fn refused(dir: &Path, words: &[&str]) {
    let error = stead::open(dir).expect_err("the store is not to open").to_string();
    for word in words {
        assert!(error.contains(word), "{word:?} is missing in: {error}");
    }
}

#[test]
fn directories_that_are_no_store() {
    let Some(_alone) = common::alone() else { return };
    let temp = tempfile::tempdir().unwrap();
    let at = |name: &str| temp.path().join(name);
    refused(&at("no/such/parent"), &["no/such"]);
    let missing = Store::open_with(at("missing"), &Options::new().create(false));
    assert!(missing.unwrap_err().to_string().contains("missing"));
    assert!(!at("missing").exists(), "looking creates nothing");
    fs::write(at("file"), "text").unwrap();
    refused(&at("file"), &["file"]);
    fs::create_dir(at("full")).unwrap();
    fs::write(at("full/note.txt"), "text").unwrap();
    refused(&at("full"), &["full"]);
    assert_eq!(fs::read_to_string(at("full/note.txt")).unwrap(), "text");
    fs::create_dir(at("foreign")).unwrap();
    fs::write(at("foreign/log"), vec![7; 100_000]).unwrap();
    refused(&at("foreign"), &["foreign"]);
}

#[test]
fn a_store_whose_making_was_cut_short_is_made_anew() {
    let Some(_alone) = common::alone() else { return };
    let temp = tempfile::tempdir().unwrap();
    let dir = temp.path().join("store");
    fs::create_dir(&dir).unwrap();
    fs::write(dir.join("lock"), "12345").unwrap();
    fs::write(dir.join("log.new"), vec![3; 70_000]).unwrap();
    filled(&dir, 10);
    assert_eq!(sum(&dir), 45);
    let mut names: std::vec::Vec<_> =
        fs::read_dir(&dir).unwrap().map(|e| e.unwrap().file_name()).collect();
    names.sort();
    assert_eq!(names, ["lock", "log"]);
}

#[test]
fn a_directory_that_may_not_be_written() {
    let Some(_alone) = common::alone() else { return };
    if let Some(dir) = common::part() {
        println!("{}", stead::open(Path::new(&dir)).unwrap_err());
        return;
    }
    if !common::is_root() {
        common::not_run("a directory of another user needs a second user: run as root");
        return;
    }
    let temp = tempfile::tempdir().unwrap();
    fs::set_permissions(temp.path(), fs::Permissions::from_mode(0o755)).unwrap();
    let dir = temp.path().join("store");
    use std::os::unix::process::CommandExt;
    let output = std::process::Command::new(readable_copy(temp.path()))
        .args(["a_directory_that_may_not_be_written", "--exact", "--nocapture"])
        .env("STEAD_CHILD", &dir)
        .uid(65534)
        .gid(65534)
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(text.contains("cannot be written"), "{output:?}");
    assert!(text.contains("store"), "{output:?}");
}

/// A copy of this program that every user may run.
fn readable_copy(into: &Path) -> std::path::PathBuf {
    let copy = into.join("program");
    fs::copy(std::env::current_exe().unwrap(), &copy).unwrap();
    fs::set_permissions(&copy, fs::Permissions::from_mode(0o755)).unwrap();
    copy
}

#[test]
fn a_store_that_is_held() {
    let Some(_alone) = common::alone() else { return };
    if let Some(dir) = common::part() {
        let _store = stead::open(Path::new(&dir)).unwrap();
        println!("> {}.", std::process::id());
        std::thread::sleep(std::time::Duration::from_secs(60));
        return;
    }
    let temp = tempfile::tempdir().unwrap();
    let dir = temp.path().join("store");
    filled(&dir, 10);
    {
        let _open = stead::open(&dir).unwrap();
        refused(&dir, &["this process"]);
    }
    let mut child = common::child("a_store_that_is_held", dir.to_str().unwrap())
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    // It says when it has the store open.
    let mut lines = std::io::BufReader::new(child.stdout.take().unwrap()).lines();
    assert!(lines.any(|line| line.unwrap().contains("> ")));
    refused(&dir, &[&child.id().to_string(), "process"]);
    // Somebody takes the file for a stale one: the log itself is locked too.
    fs::remove_file(dir.join("lock")).unwrap();
    refused(&dir, &[&child.id().to_string(), "process"]);
    child.kill().unwrap();
    child.wait().unwrap();
    assert_eq!(sum(&dir), 45, "the dead holder's lock is gone with it");
}

#[test]
fn a_newer_format_and_damage() {
    let Some(_alone) = common::alone() else { return };
    let temp = tempfile::tempdir().unwrap();
    let dir = temp.path().join("store");
    filled(&dir, 100_000);
    let log = dir.join("log");
    let image = fs::read(&log).unwrap();
    // The superblock is kept twice: one of them is enough, both damaged are refused with words.
    let file = fs::OpenOptions::new().write(true).open(&log).unwrap();
    file.write_all_at(&[0xee; 64], 100).unwrap();
    assert_eq!(sum(&dir), 100_000 * 99_999 / 2);
    file.write_all_at(&[0xee; 64], 100).unwrap();
    file.write_all_at(&[0xee; 64], 3 * 4096 + 100).unwrap();
    refused(&dir, &["log"]);
    fs::write(&log, &image).unwrap();
    assert_eq!(sum(&dir), 100_000 * 99_999 / 2);
    fs::write(&log, &image[..200_000]).unwrap();
    let cut = stead::open(&dir).map(|store| {
        let verified = store.site().verify_store(&mut |_| {}).unwrap();
        verified.damages.len()
    });
    assert!(!matches!(cut, Ok(0)), "a log cut short is found");
}

#[test]
fn another_root_type_is_shown_beside_the_stored_one() {
    let Some(_alone) = common::alone() else { return };
    let temp = tempfile::tempdir().unwrap();
    let dir = temp.path().join("store");
    filled(&dir, 3);
    {
        let store = stead::open(&dir).unwrap();
        let wrong = store.container::<Other>("numbers", |_| Ok(Other { value: 0, more: 0 }));
        let error = wrong.unwrap_err().to_string();
        for word in ["numbers", "Numbers", "Other", "list", "value"] {
            assert!(error.contains(word), "{word:?} is missing in: {error}");
        }
    }
    assert_eq!(sum(&dir), 3);
}

#[test]
fn names_and_addresses() {
    let Some(_alone) = common::alone() else { return };
    let temp = tempfile::tempdir().unwrap();
    let store = stead::open(temp.path().join("store")).unwrap();
    let make = |name: &str| store.container(name, |_| Ok(Other { value: 0, more: 0 }));
    let make = |name: &str| make(name).map(|c: stead::Container<Other>| c.address());
    assert!(make("").unwrap_err().to_string().contains("empty"));
    assert!(make(&"x".repeat(256)).unwrap_err().to_string().contains("255"));
    assert!(make("a\tb").unwrap_err().to_string().contains("control"));
    assert!(make("(system)").unwrap_err().to_string().contains("directory"));
    make(&"x".repeat(255)).unwrap();
    let all = ContainerOptions::new().address_bytes(1 << 60);
    let error = store
        .container_with::<Other>("vast", &all, |_| Ok(Other { value: 0, more: 0 }))
        .unwrap_err()
        .to_string();
    assert!(error.contains("address space"), "{error}");
    // Nothing of the refused ones is left.
    assert_eq!(store.names(), ["x".repeat(255)]);
}

#[test]
fn an_occupied_address_names_what_lies_there() {
    let Some(_alone) = common::alone() else { return };
    let temp = tempfile::tempdir().unwrap();
    let dir = temp.path().join("store");
    let address = {
        let store = stead::open(&dir).unwrap();
        numbers(&store).unwrap().address().0
    };
    // SAFETY: a new mapping where nothing is mapped: MAP_FIXED_NOREPLACE refuses otherwise.
    let squatter = unsafe {
        libc::mmap(
            (address + 4096) as *mut _,
            4096,
            libc::PROT_READ,
            libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED_NOREPLACE,
            -1,
            0,
        )
    };
    assert_eq!(squatter as usize, address + 4096);
    let store = stead::open(&dir).unwrap();
    let error = numbers(&store).unwrap_err().to_string();
    assert!(error.contains("numbers"), "{error}");
    assert!(error.contains(&format!("{:x}", address + 4096)), "{error}");
    // SAFETY: unmaps the page mapped above, which nothing uses.
    unsafe { libc::munmap(squatter, 4096) };
    numbers(&store).unwrap();
}

#[test]
fn damage_of_a_page_image_names_container_and_page() {
    let Some(_alone) = common::alone() else { return };
    if let Some(dir) = common::part() {
        println!("> begins.");
        println!("> {}.", sum(Path::new(&dir)));
        return;
    }
    let temp = tempfile::tempdir().unwrap();
    let dir = temp.path().join("store");
    filled(&dir, 300_000);
    // Find an image of the list's contents by what it holds, and spoil one byte of it.
    let log = dir.join("log");
    let image = fs::read(&log).unwrap();
    let needle: std::vec::Vec<u8> = (200_000u64..200_008).flat_map(u64::to_le_bytes).collect();
    let hits: std::vec::Vec<usize> = image
        .windows(needle.len())
        .enumerate()
        .filter(|(_, w)| *w == needle)
        .map(|(at, _)| at)
        .collect();
    assert!(!hits.is_empty());
    let file = fs::OpenOptions::new().write(true).open(&log).unwrap();
    for at in hits {
        file.write_all_at(&[0x55], at as u64 + 3).unwrap();
    }
    drop(file);
    let child =
        common::child("damage_of_a_page_image_names_container_and_page", dir.to_str().unwrap())
            .stdout(std::process::Stdio::piped())
            .stderr(std::process::Stdio::piped())
            .output()
            .unwrap();
    let (out, err) = (
        String::from_utf8_lossy(&child.stdout).into_owned(),
        String::from_utf8_lossy(&child.stderr).into_owned(),
    );
    use std::os::unix::process::ExitStatusExt;
    assert_eq!(child.status.signal(), Some(libc::SIGBUS), "{out}{err}");
    assert!(out.contains("> begins") && !out.contains("> 4"), "no sum from wrong bytes: {out}");
    for word in ["numbers", "page", "log", "scrub"] {
        assert!(err.contains(word), "{word:?} is missing in: {err}");
    }
    // The store opens all the same, and says what is damaged.
    let store = stead::open(&dir).unwrap();
    let verified = store.site().verify_store(&mut |_| {}).unwrap();
    assert_eq!(verified.damages.len(), 1, "{:?}", verified.damages);
    let damage = verified.damages[0].to_string();
    assert!(damage.contains("page") && damage.contains("container"), "{damage}");
}
