//! A process reads a store that another has open and goes on changing (B11): each opening shows one stabilisation,
//! whole, at the same addresses; nothing can be changed there, and nobody is held up.

mod common;

use std::io::{BufRead, BufReader, Write as _};
use std::path::Path;
use std::process::{Child, Stdio};
use std::time::Duration;

use stead::{Container, Options, Persist, Result, SectionError, Store, Text, Vec};

#[derive(Persist)]
#[repr(C)]
struct Log<'s> {
    length: u64,
    lines: Vec<'s, Text<'s>>,
}

fn log(store: &Store) -> Result<Container<Log<'static>>> {
    store.container("log", |tx| Ok(Log { length: 0, lines: Vec::new(tx) }))
}

fn append(log: &Container<Log<'static>>) -> Result<u64> {
    log.exclusive(|root, tx| -> Result<_> {
        let n = root.length;
        let line = Text::from_str(tx, &format!("line {n}"))?;
        root.lines.push(tx, line)?;
        root.length = n + 1;
        Ok(n + 1)
    })
}

/// Owns a store and changes it until killed; says where its container lies, then what is stable.
fn own(dir: &Path) -> Result<()> {
    let options = Options::new().interval(Some(Duration::from_millis(3)));
    let store = Store::open_with(dir, &options)?;
    let log = log(&store)?;
    for asked in 0.. {
        let length = append(&log)?;
        if asked % 50 == 0 {
            store.stabilise()?;
            say(&format!("{} {length}", log.address()));
        }
    }
    Ok(())
}

fn say(line: &str) {
    let mut out = std::io::stdout().lock();
    out.write_all(format!("> {line}\n").as_bytes()).expect("the parent reads until the end");
    out.flush().expect("the parent reads until the end");
}

struct Owner {
    child: Child,
    out: BufReader<std::process::ChildStdout>,
}

impl Owner {
    fn start(dir: &Path) -> Owner {
        let mut command = common::child("read_while_it_is_written", dir.to_str().unwrap());
        let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
        let out = BufReader::new(child.stdout.take().unwrap());
        Owner { child, out }
    }

    /// The container's address, and a length that is stable.
    fn said(&mut self) -> (String, u64) {
        loop {
            let mut line = String::new();
            assert!(self.out.read_line(&mut line).unwrap() > 0, "the owner has ended");
            if let Some((_, words)) = line.trim().split_once("> ") {
                let (address, length) = words.split_once(' ').unwrap();
                return (address.to_owned(), length.parse().unwrap());
            }
        }
    }

    fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

#[test]
fn read_while_it_is_written() {
    if let Some(dir) = common::part() {
        own(dir.as_ref()).unwrap();
        return;
    }
    let Some(_alone) = common::alone() else { return };
    let temp = tempfile::tempdir().unwrap();
    let dir = temp.path().join("store");
    let mut owner = Owner::start(&dir);
    let mut longest = 0;
    for opening in 1..=40 {
        let (address, stable) = owner.said();
        let store = stead::open_read_only(&dir).unwrap();
        assert_eq!(store.names(), ["log"]);
        let log = store.container::<Log>("log").unwrap();
        assert_eq!(log.address().to_string(), address);
        let check = || {
            log.read(|root, _| {
                assert_eq!(root.lines.len() as u64, root.length);
                for (n, line) in root.lines.iter().enumerate() {
                    assert_eq!(**line, *format!("line {n}"));
                }
                root.length
            })
            .unwrap()
        };
        let length = check();
        assert!(
            length >= stable && length >= longest,
            "{length}, {stable} was stable, {longest} seen"
        );
        longest = length;
        // What is seen stands still, also when its owner has died and come back.
        if opening % 10 == 0 {
            owner.kill();
            owner = Owner::start(&dir);
        }
        owner.said();
        assert_eq!(check(), length);
        let report = store.site().verify_container(&store.site().existing("log").unwrap()).unwrap();
        assert!(report.first_bad.is_none(), "{report}");
        if opening % 10 == 0 {
            let verified = store.site().verify_store(&mut |_| {}).unwrap();
            assert!(verified.is_clean(), "{verified:?}");
        }
    }
    owner.kill();
    assert!(longest > 40);
    println!("40 openings, up to {longest} lines");
}

#[test]
fn nothing_can_be_changed() {
    let Some(_alone) = common::alone() else { return };
    let temp = tempfile::tempdir().unwrap();
    let dir = temp.path().join("store");
    assert!(stead::open_read_only(&dir).unwrap_err().to_string().contains("does not exist"));
    let store = stead::open(&dir).unwrap();
    append(&log(&store).unwrap()).unwrap();
    drop(store);
    let before = std::fs::read(dir.join("log")).unwrap();
    let store = stead::open_read_only(&dir).unwrap();
    let error = store.container::<Log>("none").unwrap_err();
    assert!(error.to_string().contains("no container named \"none\""), "{error}");
    let typed = store.site().existing_typed::<Log>("log").unwrap();
    let refused = typed.exclusive(|_, _| -> Result<()> { unreachable!("nobody gets in") });
    assert_eq!(refused.unwrap_err(), SectionError::ReadOnly);
    let refused = typed.write(|_, _| -> Result<()> { unreachable!("nobody gets in") });
    assert!(refused.unwrap_err().to_string().contains("open for reading only"));
    assert!(store.site().stabilise(Duration::from_secs(1)).is_err());
    assert!(store.site().remove("log", Duration::from_secs(1)).is_err());
    assert!(
        store
            .site()
            .container::<Log, stead::Error>(
                "new",
                &stead::ContainerOptions::new(),
                |_| unreachable!("nothing is made"),
            )
            .is_err()
    );
    drop((typed, store));
    assert!(before == std::fs::read(dir.join("log")).unwrap(), "not a byte has changed");
    // It is nobody's afterwards.
    assert_eq!(append(&log(&stead::open(&dir).unwrap()).unwrap()).unwrap(), 2);
}
