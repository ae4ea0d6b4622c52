//! Containers that lie: pages with wrong contents and right checksums, the directory of containers among them. Each is
//! opened, verified, walked and changed in a child of its own, which must end by itself: with an error, or well.
//! Read [`Forger`] first, then [`handle`].

use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use fastrand::Rng;
use stead::{Box, Container, Counter, HashMap, Mutex, Persist, Ptr, Slot, Store, Text, Vec};
use stead_model::{ContainerId, PAGE_SIZE, PageId};
use stead_store::Store as Pages;

/// After so long a child is taken for one that hangs. One that does not takes a few hundredths of a second.
const HANGS: Duration = Duration::from_secs(60);

/// Memory that a child may come to have, in KiB: the template has less than a hundredth of it.
const MEMORY_MOST_KIB: u64 = 512 << 10;

/// What a [`Shelf`] holds.
#[derive(Persist)]
#[repr(C)]
struct Item<'s> {
    name: Text<'s>,
    kind: Kind<'s>,
    next: Slot<'s, Option<Ptr<'s, Item<'s>>>>,
    marks: [u16; 4],
}

/// A choice with pointers in it.
#[derive(Persist)]
#[repr(C, u32)]
enum Kind<'s> {
    Plain = 1,
    Counted(Counter<'s>) = 2,
    Owned(Option<Box<'s, u64>>) = 5,
}

/// The root of the containers that are forged: something of each sort that a container can hold.
#[derive(Persist)]
#[repr(C)]
struct Shelf<'s> {
    by_name: HashMap<'s, Text<'s>, Ptr<'s, Item<'s>>>,
    guarded: Mutex<'s, Vec<'s, [u32; 3]>>,
    numbers: Vec<'s, u64>,
    texts: Vec<'s, Text<'s>>,
    first: Slot<'s, Option<Ptr<'s, Item<'s>>>>,
    hits: Counter<'s>,
    letter: char,
    is_full: bool,
    zeros: [u8; 3],
}

/// A store with some containers, and its pages.
#[derive(Debug)]
pub struct Forger {
    template: PathBuf,
    pages: std::vec::Vec<(PageId, std::boxed::Box<[u8; PAGE_SIZE]>)>,
    /// Pages of the directory of containers; they come first.
    directory: usize,
}

/// What came of a forged store.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Outcome {
    /// The store, or a container in it, was refused with words.
    Refused,
    /// A wrong pointer or the like was found and named.
    Found,
    /// Nothing was found, and everything could be walked and changed.
    Walked,
}

type Anyhow = std::boxed::Box<dyn std::error::Error>;

impl Forger {
    /// Makes the store that is forged, in a new directory below `dir`.
    ///
    /// # Errors
    /// If it cannot be made, for instance because the system lacks what stores need.
    pub fn new(dir: &Path) -> Result<Forger, Anyhow> {
        let template = dir.join("template");
        // Small, since it is copied for each input.
        let options = stead_store::CreateOptions { segment_blocks: Some(64), ..Default::default() };
        drop(Pages::create(&template, &options)?);
        let store = stead::open(&template)?;
        for name in ["one", "two", "gone"] {
            fill(&shelf(&store, name)?, name, 40)?;
        }
        store.remove("gone")?;
        store.snapshot("then")?;
        store.branch("then", "one", "a branch")?;
        for number in 0..12 {
            // The directory gets a table of some size.
            shelf(&store, &format!("number {number}"))?;
        }
        store.close()?;
        let (store, _) = Pages::open(&template)?;
        let mut pages = std::vec::Vec::new();
        let mut directory = 0;
        // All but those of the last, which are hardly others.
        for container in store.containers().into_iter().take(4) {
            for page in store.stored_pages(container)?.iter().flat_map(|run| run.pages()) {
                let (id, mut bytes) =
                    (PageId { container, page }, std::boxed::Box::new([0; PAGE_SIZE]));
                store.read_page(id, &mut bytes)?;
                pages.push((id, bytes));
            }
            if container == ContainerId::SYSTEM {
                directory = pages.len();
            }
        }
        Ok(Forger { template, pages, directory })
    }

    /// Puts the forged store of a seed to `dir`, over the one that is there.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn forge(&self, seed: u64, dir: &Path) -> Result<(), Anyhow> {
        if dir.exists() {
            std::fs::remove_dir_all(dir)?;
        }
        std::fs::create_dir(dir)?;
        for entry in std::fs::read_dir(&self.template)? {
            let entry = entry?;
            std::fs::copy(entry.path(), dir.join(entry.file_name()))?;
        }
        let mut random = Rng::with_seed(seed);
        let of = if random.bool() {
            &self.pages[..self.directory]
        } else {
            &self.pages[self.directory..]
        };
        let (store, _) = Pages::open(dir)?;
        let mut batch = store.batch();
        for _ in 0..random.usize(1..4) {
            let (id, bytes) = &of[random.usize(..of.len())];
            let mut bytes = bytes.clone();
            for _ in 0..random.usize(1..4) {
                self.change(&mut bytes, of, &mut random);
            }
            batch.push(*id, |page| page.copy_from_slice(&bytes[..]));
        }
        store.commit(&mut batch)?;
        Ok(())
    }

    fn change(
        &self,
        bytes: &mut [u8; PAGE_SIZE],
        of: &[(PageId, std::boxed::Box<[u8; PAGE_SIZE]>)],
        random: &mut Rng,
    ) {
        let word = |page: &[u8; PAGE_SIZE], at: usize| {
            u64::from_le_bytes(*page[at..].first_chunk().expect("a word of the page"))
        };
        let any = |random: &mut Rng| random.usize(..PAGE_SIZE / 8) * 8;
        // Mostly where something is, and that is mostly at the beginning.
        let mut at = any(random);
        for _ in 0..20 {
            if word(bytes, at) != 0 {
                break;
            }
            at = if random.bool() { any(random) } else { random.usize(..64) * 8 };
        }
        let old = word(bytes, at);
        let new = match random.u8(..12) {
            0 => 0,
            1 => u64::MAX,
            2 => 1 << random.u32(..64),
            3 => random.u64(..32),
            4 => random.u64(..),
            // What stands elsewhere: another's address, length or mark.
            5..8 => {
                let (_, other) = &of[random.usize(..of.len())];
                word(other, any(random))
            }
            // Not far from what was there.
            8 => old.wrapping_add(random.u64(..9) * 8).wrapping_sub(32),
            9 => old.wrapping_add(random.u64(..64) << 12),
            _ => old ^ 1 << random.u32(..64),
        };
        match random.u8(..6) {
            0 => bytes[at + random.usize(..8)] = new as u8,
            1 => bytes[at + random.usize(..4) * 2..][..2].copy_from_slice(&new.to_le_bytes()[..2]),
            2 => bytes[at + random.usize(..2) * 4..][..4].copy_from_slice(&new.to_le_bytes()[..4]),
            _ => bytes[at..][..8].copy_from_slice(&new.to_le_bytes()),
        }
    }
}

/// Hands a forged store to a child, `command` with whatever makes it call [`child`].
///
/// # Errors
/// What is wrong: the child was ended by a signal, by a panic, not at all, or took too much memory.
pub fn handle(command: &mut Command) -> Result<Outcome, String> {
    let spoke = |error: io::Error| format!("the child cannot be run: {error}");
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(spoke)?;
    let begun = Instant::now();
    let status = loop {
        if let Some(status) = child.try_wait().map_err(spoke)? {
            break status;
        }
        if begun.elapsed() > HANGS {
            child.kill().and_then(|()| child.wait()).map_err(spoke)?;
            return Err(format!("not at its end after {} s", HANGS.as_secs()));
        }
        std::thread::sleep(Duration::from_millis(1));
    };
    let (mut said, mut complained) = (String::new(), String::new());
    child.stdout.take().map(|mut out| out.read_to_string(&mut said));
    child.stderr.take().map(|mut err| err.read_to_string(&mut complained));
    if !status.success() {
        return Err(format!("{status}: {said}{complained}"));
    }
    let answer = said.lines().find_map(|line| line.strip_prefix(ANSWER));
    let Some((outcome, memory)) = answer.and_then(|line| line.split_once(' ')) else {
        return Err(format!("the child does not say what came of it: {said}{complained}"));
    };
    let memory_kib: u64 = memory.parse().map_err(|_| format!("no number of KiB: {memory}"))?;
    if memory_kib > MEMORY_MOST_KIB {
        return Err(format!("{memory_kib} KiB of memory: {said}"));
    }
    match outcome {
        "refused" => Ok(Outcome::Refused),
        "found" => Ok(Outcome::Found),
        _ => Ok(Outcome::Walked),
    }
}

/// What begins the line in which a child says what came of it, and how much memory it had at most.
const ANSWER: &str = "outcome: ";

/// Does with the store in `dir` all that can be done with one, in this process, and says what came of it.
pub fn child(dir: &Path, seed: u64) {
    let outcome = look(dir).and_then(|first| {
        // Whoever only looks has found nothing that whoever changes the store would not meet.
        let second = if Rng::with_seed(!seed).bool() { change(dir)? } else { Outcome::Walked };
        Ok(if first == Outcome::Walked { second } else { first })
    });
    let word = match outcome {
        Ok(Outcome::Walked) => "walked",
        Ok(Outcome::Found) => "found",
        Ok(Outcome::Refused) => "refused",
        Err(why) => {
            let why = why.to_string();
            assert!(!why.is_empty());
            println!("{why}");
            "refused"
        }
    };
    let status = std::fs::read_to_string("/proc/self/status").expect("the system says how it is");
    let memory = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).expect("it is said");
    // Whatever stands in the line already.
    println!("\n{ANSWER}{word} {}", memory.trim().trim_end_matches(" kB"));
}

/// As `stead ls`, `stead stat` and `stead verify` look at a store; and what is well is walked.
fn look(dir: &Path) -> Result<Outcome, Anyhow> {
    let store = stead::open_read_only(dir)?;
    let _ = store.stat();
    let mut outcome = Outcome::Walked;
    if !store.site().verify_system()?.is_clean() {
        outcome = Outcome::Found;
    }
    for name in store.names() {
        let opened = match store.site().existing(&name) {
            Ok(opened) => opened,
            Err(why) => {
                println!("{why}");
                outcome = Outcome::Refused;
                continue;
            }
        };
        opened.check_all()?;
        let report = store.site().verify_container(&opened)?;
        if let Some(bad) = &report.first_bad {
            println!("{bad}");
            outcome = Outcome::Found;
        } else if let Ok(container) = store.container::<Shelf<'static>>(&name) {
            println!("{name}: {}", container.read(walk)?);
        }
        store.site().close(opened);
    }
    Ok(outcome)
}

/// As a program changes a store. Whatever a container has that is not well, nobody walks.
fn change(dir: &Path) -> Result<Outcome, Anyhow> {
    let store = stead::open(dir)?;
    let _ = store.stat();
    let mut outcome = Outcome::Walked;
    for name in store.names() {
        let opened = match store.site().existing(&name) {
            Ok(opened) => opened,
            Err(why) => {
                println!("{why}");
                outcome = Outcome::Refused;
                continue;
            }
        };
        let is_clean = store.site().verify_container(&opened)?.is_clean();
        drop(opened);
        if is_clean && store.site().existing_typed::<Shelf<'static>>(&name).is_ok() {
            fill(&shelf(&store, &name)?, "another", 10)?;
        }
    }
    if let Ok(new) = shelf(&store, "new") {
        fill(&new, "new", 20)?;
    }
    store.stabilise()?;
    store.snapshot("now")?;
    for name in ["two", "one"] {
        if let Err(why) = store.remove(name) {
            println!("{why}");
        }
    }
    let _ = store.branch("now", "one", "one again");
    store.drop_snapshot("then")?;
    store.close()?;
    let (store, _) = Pages::open(dir)?;
    assert!(store.verify(&mut |_| {})?.is_clean());
    Ok(outcome)
}

fn shelf(store: &Store, name: &str) -> stead::Result<Container<Shelf<'static>>> {
    store.container::<Shelf<'static>>(name, |tx| {
        Ok(Shelf {
            by_name: HashMap::new(tx),
            guarded: Mutex::new(Vec::new(tx)),
            numbers: Vec::new(tx),
            texts: Vec::new(tx),
            first: Slot::new(None),
            hits: Counter::new(0),
            letter: 'ä',
            is_full: false,
            zeros: [0; 3],
        })
    })
}

/// Puts things on a shelf, and takes some away again.
fn fill(shelf: &Container<Shelf<'static>>, what: &str, count: u64) -> stead::Result<()> {
    shelf.exclusive(|root, tx| -> stead::Result<()> {
        for number in 0..count {
            let name = Text::from_str(tx, &format!("{what} {number}"))?;
            let kind = match number % 3 {
                0 => Kind::Plain,
                1 => Kind::Counted(Counter::new(number)),
                _ => Kind::Owned(Some(Box::new(tx, number)?)),
            };
            let next = Slot::new(*root.first.get(tx));
            let item = tx.alloc(Item { name, kind, next, marks: [3; 4] })?;
            root.first.set(tx, Some(item));
            let key = Text::from_str(tx, &format!("{what} {number}"))?;
            root.by_name.insert(tx, key, item)?;
            root.guarded.get_mut().push(tx, [1, 2, number as u32])?;
            root.numbers.extend(tx, (0..30).map(|n| n * number))?;
            root.texts.push(tx, Text::from_str(tx, "a text of some length, for all of them")?)?;
        }
        for number in (0..count).step_by(4) {
            root.by_name.remove(tx, &*format!("{what} {number}"));
            root.texts.pop(tx);
        }
        Ok(())
    })
}

/// Follows every pointer; a number that stands for all that was read.
fn walk<'s>(root: &'s Shelf<'s>, tx: &'s stead::Read<'s>) -> u64 {
    let mut sum = root.numbers.iter().fold(0, |sum: u64, n| sum.wrapping_add(*n));
    sum += root.texts.iter().map(|text| text.chars().count() as u64).sum::<u64>();
    sum += u64::from(u32::from(root.letter)) + u64::from(root.is_full);
    for (name, item) in &root.by_name {
        let found = root.by_name.get(&**name).map_or(0, |found| found.name.chars().count());
        sum += item.name.chars().count() as u64 + found as u64;
    }
    let mut next = *root.first.get(tx);
    let mut left = 10_000;
    while let Some(item) = next {
        sum += item.name.chars().count() as u64;
        sum = sum.wrapping_add(match &item.kind {
            Kind::Plain => u64::from(item.marks[0]),
            Kind::Counted(counter) => counter.get(),
            Kind::Owned(owned) => owned.as_ref().map_or(0, |number| **number),
        });
        // A list that bites its tail is no wrong pointer.
        left -= 1;
        next = (left > 0).then(|| *item.next.get(tx)).flatten();
    }
    sum
}

/// A directory that is removed when it is dropped; in memory where there is one, as nothing here is about disks.
///
/// # Errors
/// What the system says.
pub fn directory() -> io::Result<tempfile::TempDir> {
    tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir())
}

/// Whether stores can be opened on this system at all; why not, otherwise.
#[must_use]
pub fn missing() -> Option<String> {
    stead::Support::probe().missing().map(|missing| missing.to_string())
}
