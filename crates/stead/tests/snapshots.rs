//! Snapshots as programs use them (B11, B15): read in another process while the store goes on, gone back to, branched
//! from, dropped; and what SIGKILL leaves between the steps.

mod common;

use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead, BufReader, Write as _};
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use stead::{Container, Options, Persist, ReadContainer, Result, Store, Text, Vec};

#[derive(Persist)]
#[repr(C)]
struct Log<'s> {
    length: u64,
    lines: Vec<'s, Text<'s>>,
}

type Logs = Container<Log<'static>>;

fn log(store: &Store, name: &str) -> Result<Logs> {
    store.container(name, |tx| Ok(Log { length: 0, lines: Vec::new(tx) }))
}

fn append(log: &Logs, count: u64) -> Result<u64> {
    log.exclusive(|root, tx| -> Result<_> {
        for _ in 0..count {
            let line = Text::from_str(tx, &format!("line {}", root.length))?;
            root.lines.push(tx, line)?;
            root.length += 1;
        }
        Ok(root.length)
    })
}

fn checked(root: &Log<'_>) -> u64 {
    assert_eq!(root.lines.len() as u64, root.length);
    for (n, line) in root.lines.iter().enumerate() {
        assert_eq!(**line, *format!("line {n}"));
    }
    root.length
}

fn length(log: &Logs) -> u64 {
    log.read(|root, _| checked(root)).unwrap()
}

/// Only asked-for stabilisations: what is in a snapshot is then certain.
fn open(dir: &Path) -> Store {
    Store::open_with(dir, &Options::new().interval(None)).unwrap()
}

fn say(line: &str) {
    let mut out = std::io::stdout().lock();
    out.write_all(format!("> {line}.\n").as_bytes()).expect("the parent reads until the end");
    out.flush().expect("the parent reads until the end");
}

/// A process of this program that does `part`, and answers.
struct Other {
    child: Child,
    stdin: ChildStdin,
    out: BufReader<ChildStdout>,
}

impl Other {
    fn start(test: &str, part: &str) -> Other {
        let mut command = common::child(test, part);
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let (stdin, out) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
        Other { child, stdin, out: BufReader::new(out) }
    }

    /// Its next line; `None` at its end.
    fn said(&mut self) -> Option<String> {
        loop {
            let mut line = String::new();
            if self.out.read_line(&mut line).unwrap() == 0 {
                return None;
            }
            if let Some((_, words)) = line.trim_end().split_once("> ")
                && let Some(words) = words.strip_suffix('.')
            {
                return Some(words.to_owned());
            }
        }
    }

    fn ask(&mut self) -> String {
        self.stdin.write_all(b"\n").unwrap();
        self.said().expect("it answers")
    }

    fn end(mut self) {
        drop(self.stdin);
        assert!(self.child.wait().unwrap().success());
    }

    fn kill(mut self) {
        self.child.kill().unwrap();
        let ended = self.child.wait().unwrap();
        assert_eq!(ended.signal(), Some(libc::SIGKILL), "it ended by itself: {ended}");
    }
}

/// Reads a container of a snapshot as often as it is asked to.
fn read_snapshot(part: &str) {
    let [dir, snapshot, name] = part.split('|').collect::<std::vec::Vec<_>>()[..] else {
        panic!("{part}")
    };
    let store = stead::open_snapshot(dir, snapshot).unwrap();
    assert_eq!(store.snapshot().unwrap().name, snapshot);
    let log: ReadContainer<Log> = store.container(name).unwrap();
    for _ in std::io::stdin().lines() {
        let length = log.read(|root, _| checked(root)).unwrap();
        let opened = store.site().existing(name).unwrap();
        assert!(store.site().verify_container(&opened).unwrap().first_bad.is_none());
        say(&format!("{length} {} {}", log.address(), store.names().join(",")));
    }
}

#[test]
fn a_snapshot_is_read_while_the_store_goes_on() {
    const NAME: &str = "a_snapshot_is_read_while_the_store_goes_on";
    if let Some(part) = common::part() {
        return read_snapshot(&part);
    }
    let Some(_alone) = common::alone() else { return };
    let temp = tempfile::tempdir().unwrap();
    let dir = temp.path().join("store");
    let store = open(&dir);
    let lines = log(&store, "lines").unwrap();
    let reader =
        |snapshot: &str| Other::start(NAME, &format!("{}|{snapshot}|lines", dir.display()));
    append(&lines, 1000).unwrap();
    // Nothing was made stable before: taking the snapshot does it.
    let first = store.snapshot("first").unwrap();
    append(&lines, 500).unwrap();
    log(&store, "second log").unwrap();
    store.snapshot("second").unwrap();
    append(&lines, 1).unwrap();
    let error = store.snapshot("first").unwrap_err().to_string();
    assert!(error.contains("there is a snapshot \"first\" already"), "{error}");
    let names: std::vec::Vec<String> = store.snapshots().into_iter().map(|s| s.name).collect();
    assert_eq!(names, ["first", "second"]);
    assert!(first.sequence < store.snapshots()[1].sequence);

    let address = lines.address();
    let (mut one, mut two) = (reader("first"), reader("second"));
    assert_eq!(one.ask(), format!("1000 {address} lines"));
    assert_eq!(two.ask(), format!("1500 {address} lines,second log"));
    // What it reads stays, also when the snapshot is dropped and its room is wanted.
    store.drop_snapshot("first").unwrap();
    for _ in 0..60 {
        append(&lines, 100).unwrap();
        store.stabilise().unwrap();
    }
    assert_eq!(one.ask(), format!("1000 {address} lines"));
    assert_eq!(two.ask(), format!("1500 {address} lines,second log"));
    one.end();
    two.end();
    assert_eq!(length(&lines), 7501);
    let error = stead::open_snapshot(&dir, "first").unwrap_err().to_string();
    assert!(error.contains("there is no snapshot \"first\""), "{error}");
    assert!(store.drop_snapshot("first").is_err());
    assert!(store.site().verify_store(&mut |_| {}).unwrap().is_clean());
}

#[test]
fn a_store_goes_back_whole() {
    let Some(_alone) = common::alone() else { return };
    let temp = tempfile::tempdir().unwrap();
    let dir = temp.path().join("store");
    let mut store = open(&dir);
    let lines = log(&store, "lines").unwrap();
    append(&lines, 700).unwrap();
    store.snapshot("then").unwrap();
    append(&lines, 300).unwrap();
    append(&log(&store, "later").unwrap(), 10).unwrap();
    store.snapshot("later").unwrap();
    append(&lines, 1).unwrap();

    let error = store.go_back("then").unwrap_err().to_string();
    assert!(error.contains("cannot go back while it is in use"), "{error}");
    assert_eq!(length(&lines), 1001);
    drop(lines);
    let error = store.go_back("never").unwrap_err().to_string();
    assert!(error.contains("there is no snapshot \"never\""), "{error}");
    assert_eq!(length(&log(&store, "lines").unwrap()), 1001, "all is as it was");

    for round in 0..3 {
        assert_eq!(store.go_back("then").unwrap().name, "then");
        assert_eq!(store.names(), ["lines"]);
        let lines = log(&store, "lines").unwrap();
        assert_eq!(length(&lines), 700, "round {round}");
        append(&lines, 5).unwrap();
        // A number that a container of a later snapshot has is not given again.
        let other = log(&store, "other").unwrap();
        assert_eq!(append(&other, 3).unwrap(), 3);
        if round == 1 {
            store.stabilise().unwrap();
        }
        drop((lines, other));
    }
    // Forward again: the later snapshot is still there.
    store.go_back("later").unwrap();
    assert_eq!(store.names(), ["later", "lines"]);
    assert_eq!(length(&log(&store, "lines").unwrap()), 1000);
    assert_eq!(length(&log(&store, "later").unwrap()), 10);
    drop(store);
    let store = open(&dir);
    assert_eq!(length(&log(&store, "lines").unwrap()), 1000);
    assert_eq!(append(&log(&store, "lines").unwrap(), 1).unwrap(), 1001);
    assert!(store.site().verify_store(&mut |_| {}).unwrap().is_clean());
    let ids: BTreeSet<u32> = store.stat().containers.iter().map(|c| c.id.0).collect();
    assert_eq!(ids.len(), 3, "each has a number of its own");
}

#[test]
fn a_branch_is_a_container_like_any_other() {
    let Some(_alone) = common::alone() else { return };
    let temp = tempfile::tempdir().unwrap();
    let dir = temp.path().join("store");
    let store = open(&dir);
    let lines = log(&store, "lines").unwrap();
    append(&lines, 400).unwrap();
    store.snapshot("base").unwrap();
    append(&lines, 50).unwrap();
    store.branch("base", "lines", "draft").unwrap();
    assert_eq!(store.names(), ["draft", "lines"]);

    let refused = |error: stead::Error, words: &str| {
        let error = error.to_string();
        assert!(error.contains(words), "{words:?} is missing in: {error}");
    };
    refused(
        log(&store, "draft").unwrap_err(),
        "same addresses as container \"lines\", which is open",
    );
    refused(
        store.branch("base", "lines", "draft").unwrap_err().into(),
        "container named \"draft\" already",
    );
    refused(store.branch("base", "none", "x").unwrap_err().into(), "no container named \"none\"");
    refused(store.branch("none", "lines", "x").unwrap_err().into(), "no snapshot \"none\"");
    refused(store.branch("base", "lines", "").unwrap_err().into(), "name");

    // In turn, each with its own changes.
    let address = lines.address();
    let number = lines_number(&store);
    drop(lines);
    let draft = log(&store, "draft").unwrap();
    assert_eq!(draft.address(), address);
    assert_eq!(append(&draft, 7).unwrap(), 407);
    drop(draft);
    let lines = log(&store, "lines").unwrap();
    assert_eq!(append(&lines, 1).unwrap(), 451);
    drop(lines);
    assert_eq!(length(&log(&store, "draft").unwrap()), 407);
    // A branch of a branch; and the origin goes, with its snapshot.
    store.snapshot("drafted").unwrap();
    store.branch("drafted", "draft", "second draft").unwrap();
    append(&log(&store, "second draft").unwrap(), 100).unwrap();
    store.remove("lines").unwrap();
    store.drop_snapshot("base").unwrap();
    drop(store);
    let store = open(&dir);
    assert_eq!(store.names(), ["draft", "second draft"]);
    assert_eq!(length(&log(&store, "draft").unwrap()), 407);
    assert_eq!(length(&log(&store, "second draft").unwrap()), 507);
    // What was removed comes back from a snapshot by its number.
    store.branch("drafted", &format!("#{number}"), "rescued").unwrap();
    assert_eq!(length(&log(&store, "rescued").unwrap()), 451);
    for name in store.names() {
        log(&store, &name).unwrap();
        let opened = store.site().existing(&name).unwrap();
        let report = store.site().verify_container(&opened).unwrap();
        assert!(report.first_bad.is_none() && report.lost_bytes == 0, "{name}: {report}");
    }
    let verified = store.site().verify_store(&mut |_| {}).unwrap();
    assert!(verified.is_clean(), "{verified:?}");
    // New containers keep away from addresses that a branch has.
    let new = log(&store, "new").unwrap();
    assert_ne!(new.address(), address);
}

fn lines_number(store: &Store) -> u32 {
    store.stat().containers.iter().find(|c| c.name == "lines").unwrap().id.0
}

/// Branches while a section is open elsewhere: what a branch does last, making its name stable, waits for that.
fn branch_and_hang(dir: &Path) {
    let store = open(dir);
    let other = log(&store, "other").unwrap();
    let (entered, is_in) = mpsc::channel();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            other.exclusive(|_, _| -> Result<()> {
                entered.send(()).unwrap();
                std::thread::sleep(Duration::from_secs(3600));
                Ok(())
            })
        });
        is_in.recv().unwrap();
        say("branching");
        drop(store.branch("base", "lines", "draft"));
    });
}

#[test]
fn a_branch_that_was_cut_short_leaves_nothing() {
    const NAME: &str = "a_branch_that_was_cut_short_leaves_nothing";
    if let Some(part) = common::part() {
        return branch_and_hang(part.as_ref());
    }
    let Some(_alone) = common::alone() else { return };
    let temp = tempfile::tempdir().unwrap();
    let dir = temp.path().join("store");
    let store = open(&dir);
    append(&log(&store, "lines").unwrap(), 400).unwrap();
    append(&log(&store, "other").unwrap(), 1).unwrap();
    store.snapshot("base").unwrap();
    drop(store);
    let before = stead::open_read_only(&dir).unwrap().site().stored_containers();
    for _ in 0..3 {
        let mut other = Other::start(NAME, dir.to_str().unwrap());
        assert_eq!(other.said().unwrap(), "branching");
        // Until the first of the two steps is there for all to see.
        let stored = || stead::open_read_only(&dir).unwrap().site().stored_containers();
        let end = std::time::Instant::now() + Duration::from_secs(30);
        while stored().len() == before.len() && std::time::Instant::now() < end {
            std::thread::sleep(Duration::from_millis(5));
        }
        other.kill();
        assert_eq!(stored().len(), before.len() + 1, "cut short between the two steps");
        let store = open(&dir);
        assert_eq!(store.names(), ["lines", "other"]);
        assert_eq!(store.site().stored_containers(), before);
        // As if it had never been tried.
        store.branch("base", "lines", "draft").unwrap();
        assert_eq!(length(&log(&store, "draft").unwrap()), 400);
        store.remove("draft").unwrap();
        assert!(store.site().verify_store(&mut |_| {}).unwrap().is_clean());
    }
}

/// What is known of a store: how long each log is, now and in each snapshot.
#[derive(Clone, Default, Debug, PartialEq)]
struct Known {
    snapshots: BTreeMap<String, BTreeMap<String, u64>>,
    logs: BTreeMap<String, u64>,
}

/// One thing after the other, by chance, until killed; each is said before and after.
fn work(dir: &Path, number: u64) {
    let mut chance = fastrand::Rng::new();
    let mut store = open(dir);
    for n in 0.. {
        let snapshots: std::vec::Vec<String> =
            store.snapshots().into_iter().map(|s| s.name).collect();
        let any =
            (!snapshots.is_empty()).then(|| snapshots[chance.usize(..snapshots.len())].clone());
        let names = store.names();
        let new = format!("n{number}-{n}");
        match (chance.u32(..10), any) {
            (0..3, _) if snapshots.len() < 6 => {
                say(&format!("take {new}"));
                store.snapshot(&new).unwrap();
            }
            (3..5, Some(name)) => {
                say(&format!("drop {name}"));
                store.drop_snapshot(&name).unwrap();
            }
            (5..6, Some(name)) => {
                say(&format!("back {name}"));
                store.go_back(&name).unwrap();
            }
            (6..8, Some(name)) if names.len() < 6 => {
                say(&format!("branch {name} {new}"));
                store.branch(&name, "lines", &new).unwrap();
            }
            (8..9, _) if names.len() > 3 => {
                let gone = names.iter().find(|name| *name != "lines").unwrap();
                say(&format!("remove {gone}"));
                store.remove(gone).unwrap();
            }
            _ => {
                let name = &names[chance.usize(..names.len())];
                let count = chance.u64(1..30);
                say(&format!("append {name} {count}"));
                append(&log(&store, name).unwrap(), count).unwrap();
                store.stabilise().unwrap();
            }
        }
        say("done");
    }
}

impl Known {
    fn with(&self, line: &str) -> Known {
        let mut known = self.clone();
        let words: std::vec::Vec<&str> = line.split(' ').collect();
        match words[..] {
            ["take", name] => drop(known.snapshots.insert(name.into(), known.logs.clone())),
            ["drop", name] => drop(known.snapshots.remove(name)),
            ["back", name] => known.logs = known.snapshots[name].clone(),
            ["branch", name, new] => {
                let length = known.snapshots[name]["lines"];
                known.logs.insert(new.into(), length);
            }
            ["remove", name] => drop(known.logs.remove(name)),
            ["append", name, count] => {
                *known.logs.get_mut(name).unwrap() += count.parse::<u64>().unwrap();
            }
            _ => panic!("{line}"),
        }
        known
    }

    /// What a store holds, everything in it checked.
    fn of(dir: &Path) -> Known {
        let mut known = Known::default();
        let store = open(dir);
        for name in store.names() {
            known.logs.insert(name.clone(), length(&log(&store, &name).unwrap()));
            let opened = store.site().existing(&name).unwrap();
            assert!(store.site().verify_container(&opened).unwrap().first_bad.is_none(), "{name}");
        }
        let verified = store.site().verify_store(&mut |_| {}).unwrap();
        assert!(verified.is_clean(), "{verified:?}");
        assert_eq!(store.site().stored_containers().len(), known.logs.len() + 1);
        let names: std::vec::Vec<String> = store.snapshots().into_iter().map(|s| s.name).collect();
        drop(store);
        for name in names {
            let store = stead::open_snapshot(dir, &name).unwrap();
            let mut logs = BTreeMap::new();
            for log in store.names() {
                // Those with the same addresses are read one after the other.
                let opened: ReadContainer<Log> = store.container(&log).unwrap();
                logs.insert(log, opened.read(|root, _| checked(root)).unwrap());
            }
            known.snapshots.insert(name, logs);
        }
        known
    }
}

#[test]
fn killed_between_the_steps_each_was_done_or_not() {
    const NAME: &str = "killed_between_the_steps_each_was_done_or_not";
    if let Some(part) = common::part() {
        let (dir, number) = part.split_once('|').unwrap();
        return work(dir.as_ref(), number.parse().unwrap());
    }
    let Some(_alone) = common::alone() else { return };
    let mut chance = fastrand::Rng::with_seed(common::seed(NAME));
    let kills: u32 = std::env::var("STEAD_KILLS").map_or(25, |n| n.parse().unwrap());
    let temp = tempfile::tempdir().unwrap();
    let dir = temp.path().join("store");
    let store = open(&dir);
    append(&log(&store, "lines").unwrap(), 300).unwrap();
    drop(store);
    let mut known = Known::of(&dir);
    let (mut steps, mut done_after_all) = (0, 0);
    for kill in 0..kills {
        let mut other = Other::start(NAME, &format!("{}|{kill}", dir.display()));
        let mut left = chance.u32(0..25);
        let mut under_way: Option<String> = None;
        while let Some(line) = other.said() {
            if line == "done" {
                known = known.with(&under_way.take().expect("it said what it does"));
                steps += 1;
            } else {
                under_way = Some(line);
                if left == 0 {
                    break;
                }
                left -= 1;
            }
        }
        std::thread::sleep(Duration::from_micros(chance.u64(..20_000)));
        // It may have gone on before it died.
        other.child.kill().unwrap();
        while let Some(line) = other.said() {
            if line == "done" {
                known = known.with(&under_way.take().expect("it said what it does"));
            } else {
                under_way = Some(line);
            }
        }
        other.kill();
        let found = Known::of(&dir);
        let after = under_way.as_ref().map(|line| known.with(line));
        if after.as_ref() == Some(&found) {
            done_after_all += 1;
        } else {
            assert_eq!(found, known, "{under_way:?} was under way");
        }
        known = found;
    }
    println!(
        "{kills} kills, {steps} steps done, {done_after_all} of those under way done after all"
    );
}
