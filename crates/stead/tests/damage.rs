//! Damage on the disk, met in use (B12): real stores whose file was spoiled where a page lies. Errors name
//! container, page, address and what is on it; a plain load ends its process with the same words; nothing
//! else is touched by it.

mod common;

use std::fs;
use std::io::{Read as _, Write as _};
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Output, Stdio};

use stead::{
    Address, CheckError, Container, Damaged, Error, PAGE_SIZE, PageKind, Persist, Result, Store,
    Vec,
};

#[derive(Persist)]
#[repr(C)]
struct Numbers<'s> {
    list: Vec<'s, u64>,
}

const N: usize = 60_000;
/// A number in the middle of the list, and so in a page of elements.
const HIT: usize = 40_000;

fn numbers(store: &Store, name: &str) -> Result<Container<Numbers<'static>>> {
    store.container(name, |tx| Ok(Numbers { list: Vec::new(tx) }))
}

/// Two containers with different numbers. Where the root and some number of the first lie.
fn filled(dir: &Path) -> (Address, Address) {
    let store = stead::open(dir).unwrap();
    let mut at = (Address(0), Address(0));
    for (name, factor) in [("numbers", 1), ("others", 3)] {
        let container = numbers(&store, name).unwrap();
        let places = container
            .exclusive(|root, tx| -> Result<_> {
                for i in 0..N as u64 {
                    root.list.push(tx, i * factor)?;
                }
                let hit = std::ptr::from_ref(&root.list[HIT]).addr();
                Ok((Address(std::ptr::from_ref(root).addr()), Address(hit)))
            })
            .unwrap();
        if factor == 1 {
            at = places;
        }
    }
    at
}

fn page_of(address: Address) -> Address {
    Address(address.0 & !(PAGE_SIZE - 1))
}

/// The page as memory has it, once it is stable.
fn page(dir: &Path, address: Address) -> std::vec::Vec<u8> {
    let store = stead::open(dir).unwrap();
    let container = numbers(&store, "numbers").unwrap();
    container.check(address..Address(address.0 + 1)).unwrap();
    let mut bytes = std::vec![0u8; PAGE_SIZE];
    let from = std::ptr::with_exposed_provenance::<u8>(page_of(address).0);
    // SAFETY: a page of the container, which is open and in memory; nobody writes it.
    unsafe { std::ptr::copy_nonoverlapping(from, bytes.as_mut_ptr(), PAGE_SIZE) };
    bytes
}

/// Spoils a byte of each image of a page in the log.
fn spoil(dir: &Path, address: Address) {
    let image = page(dir, address);
    let log = dir.join("log");
    let all = fs::read(&log).unwrap();
    let file = fs::OpenOptions::new().write(true).open(&log).unwrap();
    let mut spoiled = 0;
    for (block, bytes) in all.chunks(PAGE_SIZE).enumerate() {
        if bytes == image {
            file.write_all_at(&[!bytes[77]], (block * PAGE_SIZE + 77) as u64).unwrap();
            spoiled += 1;
        }
    }
    assert!(spoiled > 0, "the page at {address} has an image");
}

fn child(test: &str, part: &str) -> Output {
    common::child(test, part).stdout(Stdio::piped()).stderr(Stdio::piped()).output().unwrap()
}

fn words(text: &str, wanted: &[&str]) {
    for word in wanted {
        assert!(text.contains(word), "{word:?} is missing in: {text}");
    }
}

/// Asserts that the damaged page is named wholly.
fn named(damaged: &Damaged, at: Address, kind: PageKind) {
    assert_eq!((&*damaged.container, damaged.address), ("numbers", page_of(at)));
    assert_eq!(damaged.holds.kind, kind, "{damaged}");
    let text = damaged.to_string();
    words(&text, &["\"numbers\"", &page_of(at).to_string(), "page ", "log, offset", "scrub"]);
    words(&text, &[&damaged.page.0.to_string()]);
}

fn around(at: Address) -> Range<Address> {
    Address(at.0 - 3 * PAGE_SIZE)..Address(at.0 + 3 * PAGE_SIZE)
}

/// The numbers that lie on the page of [`HIT`], and those before and after it.
fn without_hit(at: Address) -> (Range<usize>, Range<usize>) {
    let first = HIT - (at.0 - page_of(at).0) / 8;
    (0..first, first + PAGE_SIZE / 8..N)
}

#[test]
fn one_damaged_page_is_an_error_where_one_asks_and_all_else_works() {
    let Some(_alone) = common::alone() else { return };
    let temp = tempfile::tempdir().unwrap();
    let dir = temp.path().join("store");
    let (_, hit) = filled(&dir);
    spoil(&dir, hit);
    let store = stead::open(&dir).unwrap();
    let container = numbers(&store, "numbers").unwrap();
    let Err(CheckError::Damaged(damaged)) = container.check(around(hit)) else {
        panic!("no error")
    };
    named(&damaged, hit, PageKind::Elements);
    assert_eq!(damaged.holds.ty.as_deref(), Some("u64"));
    // In sections of each kind.
    let check = |root: &Numbers<'_>| std::ptr::from_ref(&root.list[HIT]);
    let error = container
        .read(|root, section| section.check(&root.list[HIT - 1..=HIT]).unwrap_err())
        .unwrap();
    assert_eq!(error, damaged);
    let error = container.write(|root, tx| -> Result<_> {
        tx.check(&root.list[HIT])?;
        Ok(check(root).addr())
    });
    assert_eq!(error.unwrap_err().damaged(), Some(&damaged));
    let error = container.exclusive(|root, tx| -> Result<_> {
        tx.check(&root.list[HIT])?;
        Ok(check(root).addr())
    });
    assert_eq!(error.unwrap_err().damaged(), Some(&damaged));
    // Every other number is there and right, and can be changed; the other container is whole.
    let (before, after) = without_hit(hit);
    container
        .exclusive(|root, tx| -> Result<_> {
            let numbers = before.clone().chain(after.clone());
            assert!(numbers.into_iter().all(|i| root.list[i] == i as u64));
            root.list.push(tx, 7)?;
            Ok(())
        })
        .unwrap();
    let others = numbers(&store, "others").unwrap();
    let sum: u64 = others.read(|root, _| root.list.iter().sum()).unwrap();
    assert_eq!(sum, 3 * (N as u64 * (N as u64 - 1) / 2));
    store.stabilise().unwrap();
    assert_eq!(store.damage_met(), [], "nobody touched it");
    // All of the container, and addresses that are not its own.
    let base = container.address();
    let all = base..Address(base.0 + (128 << 30));
    let Err(CheckError::Damaged(again)) = container.check(all.clone()) else { panic!("no error") };
    assert_eq!(again, damaged);
    others.check(others.address()..Address(others.address().0 + (128 << 30))).unwrap();
    let beyond = container.check(all.start..Address(all.end.0 + 1)).unwrap_err().to_string();
    words(&beyond, &["numbers", &all.start.to_string(), &all.end.to_string()]);
}

#[test]
fn a_plain_load_or_store_ends_the_process_with_the_message() {
    let Some(_alone) = common::alone() else { return };
    const TEST: &str = "a_plain_load_or_store_ends_the_process_with_the_message";
    if let Some(part) = common::part() {
        let (dir, what) = part.split_once('|').unwrap();
        let store = stead::open(Path::new(dir)).unwrap();
        let container = numbers(&store, "numbers").unwrap();
        println!("> begins.");
        let value = container
            .exclusive(|root, tx| -> Result<_> {
                if what == "store" {
                    root.list.as_mut_slice(tx)[HIT] = 1;
                }
                Ok(root.list[HIT])
            })
            .unwrap();
        println!("> got {value}.");
        return;
    }
    let temp = tempfile::tempdir().unwrap();
    let dir = temp.path().join("store");
    let (_, hit) = filled(&dir);
    spoil(&dir, hit);
    for what in ["load", "store"] {
        let ended = child(TEST, &format!("{}|{what}", dir.display()));
        let (out, err) = texts(&ended);
        assert_eq!(ended.status.signal(), Some(libc::SIGBUS), "{out}{err}");
        assert!(out.contains("> begins") && !out.contains("> got"), "never a wrong byte: {out}");
        words(&err, &["stead: container \"numbers\"", &page_of(hit).to_string(), "type u64"]);
        words(&err, &["SIGBUS", "log, offset", "scrub", dir.to_str().unwrap()]);
        assert_eq!(err.matches("stead: container").count(), 1, "said once: {err}");
    }
    // Nothing was made stable of it.
    let store = stead::open(&dir).unwrap();
    let container = numbers(&store, "numbers").unwrap();
    assert!(container.check(around(hit)).is_err());
}

fn texts(ended: &Output) -> (String, String) {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (text(&ended.stdout), text(&ended.stderr))
}

extern "C" fn the_programs_own(signal: i32) {
    let text = b"> the program's own handler.\n";
    // SAFETY: both calls are allowed in handlers.
    unsafe {
        libc::write(libc::STDOUT_FILENO, text.as_ptr().cast(), text.len());
        libc::_exit(signal + 100);
    }
}

#[test]
fn a_handler_of_the_programs_own_is_called_after_the_message() {
    let Some(_alone) = common::alone() else { return };
    const TEST: &str = "a_handler_of_the_programs_own_is_called_after_the_message";
    if let Some(dir) = common::part() {
        let store = stead::open(Path::new(&dir)).unwrap();
        let container = numbers(&store, "numbers").unwrap();
        let handler = the_programs_own as extern "C" fn(i32);
        // SAFETY: the handler does only what a handler may.
        unsafe { libc::signal(libc::SIGBUS, handler as *const () as usize) };
        let value = container.read(|root, _| root.list[HIT]).unwrap();
        println!("> got {value}.");
        return;
    }
    let temp = tempfile::tempdir().unwrap();
    let dir = temp.path().join("store");
    let (_, hit) = filled(&dir);
    spoil(&dir, hit);
    let ended = child(TEST, dir.to_str().unwrap());
    let (out, err) = texts(&ended);
    assert_eq!(ended.status.code(), Some(libc::SIGBUS + 100), "{out}{err}");
    assert!(out.contains("> the program's own") && !out.contains("> got"), "{out}");
    words(&err, &["stead: container \"numbers\"", &page_of(hit).to_string()]);
}

#[test]
fn a_system_call_fails_and_its_page_can_be_asked_for() {
    let Some(_alone) = common::alone() else { return };
    const TEST: &str = "a_system_call_fails_and_its_page_can_be_asked_for";
    if let Some(part) = common::part() {
        let (dir, hit) = part.split_once('|').unwrap();
        let hit = Address(hit.parse().unwrap());
        let store = stead::open(Path::new(dir)).unwrap();
        if store.site().user_mode_only() {
            println!("> user mode only.");
            return;
        }
        let container = numbers(&store, "numbers").unwrap();
        let (mut reader, mut writer) = std::io::pipe().unwrap();
        let error = container
            .read(|root, _| {
                let numbers = &root.list[without_hit(hit).0.end..][..8];
                // SAFETY: numbers are bytes; the borrow does not touch them.
                let bytes = unsafe { std::slice::from_raw_parts(numbers.as_ptr().cast(), 64) };
                writer.write_all(bytes)
            })
            .unwrap();
        println!("> {:?}.", error.unwrap_err().raw_os_error());
        drop(writer);
        let mut got = std::vec::Vec::new();
        reader.read_to_end(&mut got).unwrap();
        println!("> {} bytes.", got.len());
        println!(
            "> {:?}.",
            store.damage_met().iter().map(|d| d.address.0).collect::<std::vec::Vec<_>>()
        );
        // Asked for twice, it is the same error; and the container works on.
        assert!(container.check(around(hit)).is_err());
        let value = container.read(|root, _| root.list[7]).unwrap();
        println!("> alive with {value}.");
        return;
    }
    let temp = tempfile::tempdir().unwrap();
    let dir = temp.path().join("store");
    let (_, hit) = filled(&dir);
    spoil(&dir, hit);
    let ended = child(TEST, &format!("{}|{}", dir.display(), hit.0));
    let (out, err) = texts(&ended);
    if out.contains("> user mode only") {
        common::not_run("faults of system calls are not served for this user");
        return;
    }
    assert!(ended.status.success(), "{out}{err}");
    words(&out, &[&format!("> Some({}).", libc::EFAULT), "> 0 bytes.", "> alive with 7."]);
    words(&out, &[&format!("> [{}].", page_of(hit).0)]);
}

#[test]
fn a_damaged_root_is_an_error_of_the_section_and_a_damaged_header_of_opening() {
    let Some(_alone) = common::alone() else { return };
    let temp = tempfile::tempdir().unwrap();
    let dir = temp.path().join("store");
    let (root, _) = filled(&dir);
    let whole = fs::read(dir.join("log")).unwrap();
    spoil(&dir, root);
    {
        let store = stead::open(&dir).unwrap();
        let container = numbers(&store, "numbers").unwrap();
        let error = Error::from(container.read(|root, _| root.list.len()).unwrap_err());
        named(error.damaged().unwrap(), root, PageKind::Objects);
        assert_eq!(error.damaged().unwrap().holds.ty.as_deref(), Some("Numbers"));
        let error = container.write(|root, _| -> Result<_> { Ok(root.list.len()) }).unwrap_err();
        named(error.damaged().unwrap(), root, PageKind::Objects);
        let error =
            container.exclusive(|root, _| -> Result<_> { Ok(root.list.len()) }).unwrap_err();
        named(error.damaged().unwrap(), root, PageKind::Objects);
        assert_eq!(numbers(&store, "others").unwrap().read(|r, _| r.list.len()).unwrap(), N);
        assert_eq!(store.damage_met(), []);
    }
    fs::write(dir.join("log"), whole).unwrap();
    let header = Address(root.0 & !((1 << 36) - 1));
    spoil(&dir, header);
    let store = stead::open(&dir).unwrap();
    let error = numbers(&store, "numbers").unwrap_err();
    words(&error.to_string(), &["numbers", "page 0", "log, offset"]);
    assert_eq!(numbers(&store, "others").unwrap().read(|r, _| r.list.len()).unwrap(), N);
}

#[test]
fn memory_that_is_freed_and_taken_again_is_whole() {
    let Some(_alone) = common::alone() else { return };
    let temp = tempfile::tempdir().unwrap();
    let dir = temp.path().join("store");
    let (_, hit) = filled(&dir);
    spoil(&dir, hit);
    let store = stead::open(&dir).unwrap();
    let container = numbers(&store, "numbers").unwrap();
    container
        .exclusive(|root, tx| -> Result<_> {
            root.list = Vec::new(tx);
            Ok(())
        })
        .unwrap();
    // Free in a stable state: what is on the page means nothing, so whoever takes it finds zeros.
    store.stabilise().unwrap();
    container.check(around(hit)).unwrap();
    container
        .exclusive(|root, tx| -> Result<_> {
            for i in 0..2 * N as u64 {
                root.list.push(tx, i)?;
            }
            Ok(())
        })
        .unwrap();
    container.check(around(hit)).unwrap();
    store.stabilise().unwrap();
    assert!(store.site().verify_store(&mut |_| {}).unwrap().is_clean());
}

/// Which containers there are, and of which of them everything can be read.
fn can_be_read(dir: &Path) -> Result<(std::vec::Vec<String>, std::vec::Vec<String>)> {
    let store = stead::open_read_only(dir)?;
    let names = store.names();
    let whole =
        |name: &&String| store.site().existing(name).is_ok_and(|opened| opened.check_all().is_ok());
    let readable = names.iter().filter(whole).cloned().collect();
    Ok((names, readable))
}

/// Each block of a store's log in turn is replaced by zeros. The blocks with which the store cannot be opened; those that
/// leave fewer containers than one less have no place at all.
fn blocks_that_refuse(dir: &Path) -> std::vec::Vec<usize> {
    let log = dir.join("log");
    let whole = fs::read(&log).unwrap();
    let (names, readable) = can_be_read(dir).unwrap();
    assert_eq!(names, readable);
    let file = fs::OpenOptions::new().write(true).open(&log).unwrap();
    let (mut refused, mut hit) = (std::vec::Vec::new(), 0);
    for (block, bytes) in whole.chunks(PAGE_SIZE).enumerate() {
        if bytes.iter().all(|&byte| byte == 0) {
            continue;
        }
        let at = (block * PAGE_SIZE) as u64;
        file.write_all_at(&[0; PAGE_SIZE], at).unwrap();
        match can_be_read(dir) {
            Ok((still, readable)) => {
                assert_eq!(still, names, "block {block}");
                assert!(readable.len() + 1 >= names.len(), "block {block}: only {readable:?}");
                hit += names.len() - readable.len();
            }
            Err(_) => refused.push(block),
        }
        file.write_all_at(bytes, at).unwrap();
    }
    assert!(hit > 0, "some blocks are pages of containers");
    refused
}

fn several(dir: &Path) {
    let store = stead::open(dir).unwrap();
    for name in ["one", "two", "three"] {
        let container = numbers(&store, name).unwrap();
        container
            .exclusive(|root, tx| -> Result<_> {
                (0..2000).try_for_each(|i| root.list.push(tx, i))?;
                Ok(())
            })
            .unwrap();
    }
}

#[test]
fn whichever_block_is_damaged_all_other_containers_open() {
    let Some(_alone) = common::alone() else { return };
    let temp = tempfile::tempdir().unwrap();
    let dir = temp.path().join("store");
    several(&dir);
    assert_eq!(blocks_that_refuse(&dir), []);
    stead_site::planted::set(Some(stead_site::planted::Bug::NoSpare));
    let refused = blocks_that_refuse(&dir);
    stead_site::planted::set(None);
    assert!(!refused.is_empty(), "a directory that is there once is lost with a block");
    // Who opens it to change it has it whole again.
    let file = fs::OpenOptions::new().write(true).open(dir.join("log")).unwrap();
    let whole = fs::read(dir.join("log")).unwrap();
    for block in refused {
        file.write_all_at(&[0xA5; PAGE_SIZE], (block * PAGE_SIZE) as u64).unwrap();
        let found = stead::open_read_only(&dir).unwrap().site().verify_store(&mut |_| {});
        assert!(!found.unwrap().is_clean());
        // The older root as well refers to what was damaged until there are two newer ones.
        for n in 0..3 {
            let store = stead::open(&dir).unwrap();
            let container = numbers(&store, "one").unwrap();
            container.exclusive(|root, tx| -> Result<_> { Ok(root.list.push(tx, n)?) }).unwrap();
        }
        let store = stead::open(&dir).unwrap();
        let found = store.site().verify_store(&mut |_| {}).unwrap();
        assert!(found.is_clean(), "block {block}: {found:?}");
        assert_eq!(store.names(), ["one", "three", "two"]);
        drop(store);
        fs::write(dir.join("log"), &whole).unwrap();
    }
}

#[test]
fn a_directory_that_is_stored_once_is_stored_twice_from_the_next_opening_on() {
    let Some(_alone) = common::alone() else { return };
    let temp = tempfile::tempdir().unwrap();
    let dir = temp.path().join("store");
    several(&dir);
    let spare = stead_model::ContainerId::SPARE;
    // As earlier versions left it.
    {
        let store = stead_store::Store::open(&dir).unwrap().0;
        assert!(store.view().stored_count(spare) > 0);
        let mut batch = store.batch();
        batch.drop_container(spare);
        store.commit(&mut batch).unwrap();
        store.take_snapshot("early").unwrap();
    }
    let count = || stead_store::Store::open_read_only(&dir).unwrap().0.view().stored_count(spare);
    assert_eq!(count(), 0);
    drop(stead::open(&dir).unwrap());
    assert!(count() > 0);
    let mut store = stead::open(&dir).unwrap();
    store.go_back("early").unwrap();
    assert_eq!(store.names(), ["one", "three", "two"]);
    drop(store);
    assert!(count() > 0);
    assert_eq!(can_be_read(&dir).unwrap().1.len(), 3);
}
