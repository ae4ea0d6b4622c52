//! Each collection against std's, through random operations with stabilise, kill, panic, `Err` and reopen
//! among them. A child process plays the operations of a seed and kills itself with SIGKILL; the test plays
//! the same operations on std's collections, and finds in the store exactly what the last stabilisation
//! saw.

mod common;

use std::collections::HashMap as StdMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::process::Stdio;

use fastrand::Rng;
use stead::{
    Box, Container, Error, HashMap, Mutex, Options, Persist, Ptr, Result, RwLock, Slot, Store,
    Text, Vec,
};

#[derive(Persist)]
#[repr(C)]
struct Root<'s> {
    list: Vec<'s, u64>,
    nested: Vec<'s, Vec<'s, u32>>,
    map: HashMap<'s, u64, Text<'s>>,
    words: HashMap<'s, Text<'s>, u64>,
    text: Text<'s>,
    boxed: Box<'s, [u64; 40]>,
    head: Slot<'s, Option<Ptr<'s, Node<'s>>>>,
    locked: Mutex<'s, Vec<'s, u64>>,
    shared: RwLock<'s, u64>,
}

#[derive(Persist)]
#[repr(C)]
struct Node<'s> {
    value: u64,
    next: Option<Ptr<'s, Node<'s>>>,
}

/// The same in std's words.
#[derive(Clone, PartialEq, Debug)]
struct Model {
    list: std::vec::Vec<u64>,
    nested: std::vec::Vec<std::vec::Vec<u32>>,
    map: StdMap<u64, String>,
    words: StdMap<String, u64>,
    text: String,
    boxed: [u64; 40],
    nodes: std::vec::Vec<u64>,
    locked: std::vec::Vec<u64>,
    shared: u64,
}

impl Model {
    fn new() -> Self {
        Model {
            list: std::vec![],
            nested: std::vec![],
            map: StdMap::new(),
            words: StdMap::new(),
            text: String::new(),
            boxed: [7; 40],
            nodes: std::vec![],
            locked: std::vec![],
            shared: 1,
        }
    }
}

/// One change; its numbers are taken modulo what there is.
#[derive(Clone, Debug)]
enum Change {
    Push(u64),
    Pop,
    Insert(usize, u64),
    Remove(usize),
    SwapRemove(usize),
    Truncate(usize),
    Set(usize, u64),
    Extend(u64, usize),
    Clear,
    NewList(usize),
    PushNested(usize, u32),
    DropNested(usize),
    MapInsert(u64, String),
    MapRemove(u64),
    MapClear,
    WordAdd(String, u64),
    WordRetain(u64),
    TextPush(String),
    TextTruncate(usize),
    BoxSet(usize, u64),
    BoxReplace(u64),
    NodeInFront(u64),
    ForgetNodes,
    Locked(u64),
    LockedTake,
    Shared(u64),
}

fn change(chance: &mut Rng) -> Change {
    use Change as C;
    let any = |chance: &mut Rng| chance.u64(..1000);
    let word = |chance: &mut Rng| {
        let letters = (0..chance.usize(..30)).map(|_| chance.char('à'..='ö'));
        letters.collect::<String>()
    };
    match chance.u8(..32) {
        0..4 => C::Push(any(chance)),
        4 => C::Pop,
        5 => C::Insert(chance.usize(..), any(chance)),
        6 => C::Remove(chance.usize(..)),
        7 => C::SwapRemove(chance.usize(..)),
        8 => C::Truncate(chance.usize(..)),
        9 => C::Set(chance.usize(..), any(chance)),
        10 => C::Extend(any(chance), chance.usize(..600)),
        11 if chance.u8(..8) == 0 => C::Clear,
        11 | 12 => C::NewList(chance.usize(..20)),
        13 | 14 => C::PushNested(chance.usize(..), chance.u32(..)),
        15 => C::DropNested(chance.usize(..)),
        16..20 => C::MapInsert(any(chance), word(chance)),
        20 => C::MapRemove(any(chance)),
        21 if chance.u8(..16) == 0 => C::MapClear,
        21..23 => C::WordAdd(word(chance), any(chance)),
        23 => C::WordRetain(chance.u64(2..6)),
        24 => C::TextPush(word(chance)),
        25 => C::TextTruncate(chance.usize(..)),
        26 => C::BoxSet(chance.usize(..40), any(chance)),
        27 => C::BoxReplace(any(chance)),
        28 => C::NodeInFront(any(chance)),
        29 if chance.u8(..8) == 0 => C::ForgetNodes,
        29 | 30 => C::Locked(any(chance)),
        31 if chance.bool() => C::LockedTake,
        _ => C::Shared(any(chance)),
    }
}

fn on_model(m: &mut Model, change: &Change) {
    use Change as C;
    let at = |i: usize, len: usize| if len == 0 { None } else { Some(i % len) };
    match change.clone() {
        C::Push(n) => m.list.push(n),
        C::Pop => drop(m.list.pop()),
        C::Insert(i, n) => m.list.insert(i % (m.list.len() + 1), n),
        C::Remove(i) => drop(at(i, m.list.len()).map(|i| m.list.remove(i))),
        C::SwapRemove(i) => drop(at(i, m.list.len()).map(|i| m.list.swap_remove(i))),
        C::Truncate(i) => m.list.truncate(i % (m.list.len() + 1)),
        C::Set(i, n) => drop(at(i, m.list.len()).map(|i| m.list[i] = n)),
        C::Extend(n, count) => m.list.extend(std::iter::repeat_n(n, count)),
        C::Clear => m.list.clear(),
        C::NewList(n) => m.nested.push((0..n as u32).collect()),
        C::PushNested(i, n) => drop(at(i, m.nested.len()).map(|i| m.nested[i].push(n))),
        C::DropNested(i) => drop(at(i, m.nested.len()).map(|i| m.nested.swap_remove(i))),
        C::MapInsert(k, v) => drop(m.map.insert(k, v)),
        C::MapRemove(k) => drop(m.map.remove(&k)),
        C::MapClear => m.map.clear(),
        C::WordAdd(w, n) => *m.words.entry(w).or_insert(0) += n,
        C::WordRetain(n) => m.words.retain(|_, v| *v % n != 0),
        C::TextPush(w) => m.text.push_str(&w),
        C::TextTruncate(i) => {
            let cut = floor(&m.text, i);
            m.text.truncate(cut);
        }
        C::BoxSet(i, n) => m.boxed[i] = n,
        C::BoxReplace(n) => m.boxed = [n; 40],
        C::NodeInFront(n) => m.nodes.insert(0, n),
        C::ForgetNodes => m.nodes.clear(),
        C::Locked(n) => m.locked.push(n),
        C::LockedTake => m.locked = std::vec![],
        C::Shared(n) => m.shared += n,
    }
}

fn floor(text: &str, i: usize) -> usize {
    let mut cut = i % (text.len() + 1);
    while !text.is_char_boundary(cut) {
        cut -= 1;
    }
    cut
}

fn on_store<'s>(r: &mut Root<'s>, tx: &mut stead::Exclusive<'s>, change: &Change) -> Result<()> {
    use Change as C;
    let at = |i: usize, len: usize| if len == 0 { None } else { Some(i % len) };
    match change.clone() {
        C::Push(n) => r.list.push(tx, n)?,
        C::Pop => drop(r.list.pop(tx)),
        C::Insert(i, n) => r.list.insert(tx, i % (r.list.len() + 1), n)?,
        C::Remove(i) => drop(at(i, r.list.len()).map(|i| r.list.remove(tx, i))),
        C::SwapRemove(i) => drop(at(i, r.list.len()).map(|i| r.list.swap_remove(tx, i))),
        C::Truncate(i) => r.list.truncate(tx, i % (r.list.len() + 1)),
        C::Set(i, n) => {
            if let Some(i) = at(i, r.list.len()) {
                *r.list.get_mut(tx, i).unwrap() = n;
            }
        }
        C::Extend(n, count) => r.list.extend(tx, std::iter::repeat_n(n, count))?,
        C::Clear => r.list.clear(tx),
        C::NewList(n) => {
            let mut list = Vec::new(tx);
            list.extend(tx, 0..n as u32)?;
            r.nested.push(tx, list)?;
        }
        C::PushNested(i, n) => {
            if let Some(i) = at(i, r.nested.len()) {
                r.nested.get_mut(tx, i).unwrap().push(tx, n)?;
            }
        }
        C::DropNested(i) => drop(at(i, r.nested.len()).map(|i| r.nested.swap_remove(tx, i))),
        C::MapInsert(k, v) => drop(r.map.insert(tx, k, Text::from_str(tx, &v)?)?),
        C::MapRemove(k) => drop(r.map.remove(tx, &k)),
        C::MapClear => r.map.clear(tx),
        C::WordAdd(w, n) => {
            if let Some(count) = r.words.get_mut(tx, w.as_str()) {
                *count += n;
            } else {
                r.words.insert(tx, Text::from_str(tx, &w)?, n)?;
            }
        }
        C::WordRetain(n) => r.words.retain(tx, |_, v| *v % n != 0),
        C::TextPush(w) => r.text.push_str(tx, &w)?,
        C::TextTruncate(i) => {
            let cut = floor(&r.text, i);
            r.text.truncate(tx, cut);
        }
        C::BoxSet(i, n) => r.boxed.get_mut(tx)[i] = n,
        C::BoxReplace(n) => r.boxed = Box::new(tx, [n; 40])?,
        C::NodeInFront(n) => {
            let next = *r.head.get(tx);
            let node = tx.alloc(Node { value: n, next })?;
            r.head.set(tx, Some(node));
        }
        C::ForgetNodes => r.head.set(tx, None),
        C::Locked(n) => r.locked.lock(tx)?.push(tx, n)?,
        C::LockedTake => *r.locked.lock(tx)? = Vec::new(tx),
        C::Shared(n) => *r.shared.write(tx)? += n,
    }
    Ok(())
}

fn seen(c: &Container<Root<'static>>) -> Model {
    c.exclusive(|r, tx| -> Result<_> {
        let mut nodes = std::vec![];
        let mut at = *r.head.get(tx);
        while let Some(node) = at {
            nodes.push(node.value);
            at = node.next;
        }
        Ok(Model {
            list: r.list.to_vec(),
            nested: r.nested.iter().map(|l| l.to_vec()).collect(),
            map: r.map.iter().map(|(k, v)| (*k, (**v).to_owned())).collect(),
            words: r.words.iter().map(|(k, v)| ((**k).to_owned(), *v)).collect(),
            text: (*r.text).to_owned(),
            boxed: *r.boxed,
            nodes,
            locked: r.locked.lock(tx)?.to_vec(),
            shared: *r.shared.read(tx)?,
        })
    })
    .unwrap()
}

/// What happens between two sections.
enum Between {
    Stabilise,
    Reopen,
    Kill,
    Nothing,
}

/// How a section ends.
#[derive(Clone, Copy, PartialEq)]
enum End {
    Commit,
    Fail,
    Panic,
}

/// The next section of a seed, and what comes after it. Both players draw the same.
fn next(chance: &mut Rng) -> (std::vec::Vec<Change>, End, Between) {
    let changes = (0..chance.usize(1..25)).map(|_| change(chance)).collect();
    let end = match chance.u8(..10) {
        0 | 1 => End::Fail,
        2 | 3 => End::Panic,
        _ => End::Commit,
    };
    let between = match chance.u8(..24) {
        0..4 => Between::Stabilise,
        4 => Between::Reopen,
        5 => Between::Kill,
        _ => Between::Nothing,
    };
    (changes, end, between)
}

fn open(dir: &Path) -> (Store, Container<Root<'static>>) {
    // Nothing becomes stable unless the seed says so.
    let options = Options::new().interval(None).new_bytes_max(u64::MAX);
    let store = Store::open_with(dir, &options).unwrap();
    let c = store
        .container("c", |tx| {
            Ok(Root {
                list: Vec::new(tx),
                nested: Vec::new(tx),
                map: HashMap::new(tx),
                words: HashMap::new(tx),
                text: Text::new(tx),
                boxed: Box::new(tx, [7; 40])?,
                head: Slot::new(None),
                locked: Mutex::new(Vec::new(tx)),
                shared: RwLock::new(1),
            })
        })
        .unwrap();
    (store, c)
}

/// The child: plays a seed on the store until the seed says to die.
fn play(dir: &Path, seed: u64) {
    std::panic::set_hook(std::boxed::Box::new(|_| ()));
    let mut chance = Rng::with_seed(seed);
    let (mut store, mut c) = open(dir);
    loop {
        let (changes, end, between) = next(&mut chance);
        let section = || {
            c.exclusive(|root, tx| -> Result<()> {
                for change in &changes {
                    on_store(root, tx, change)?;
                }
                match end {
                    End::Commit => Ok(()),
                    End::Fail => Err(Error::other("undone")),
                    End::Panic => panic!("undone"),
                }
            })
        };
        let ended = catch_unwind(AssertUnwindSafe(section));
        if matches!(ended, Ok(Ok(()))) != (end == End::Commit) {
            std::process::exit(3);
        }
        match between {
            Between::Stabilise => drop(store.stabilise().unwrap()),
            Between::Reopen => {
                drop((c, store));
                (store, c) = open(dir);
            }
            // SAFETY: ends this process.
            Between::Kill => unsafe {
                libc::kill(libc::getpid(), libc::SIGKILL);
            },
            Between::Nothing => {}
        }
    }
}

/// Plays the same on std's collections: what the last stabilisation saw.
fn expected(model: &mut Model, seed: u64) {
    let mut chance = Rng::with_seed(seed);
    let mut stable = model.clone();
    loop {
        let (changes, end, between) = next(&mut chance);
        if end == End::Commit {
            changes.iter().for_each(|change| on_model(model, change));
        }
        match between {
            Between::Stabilise | Between::Reopen => stable = model.clone(),
            Between::Kill => break,
            Between::Nothing => {}
        }
    }
    *model = stable;
}

#[test]
fn as_std_through_kills_panics_and_reopening() {
    if let Some(part) = common::part() {
        let (dir, seed) = part.split_once('|').unwrap();
        play(&PathBuf::from(dir), seed.parse().unwrap());
        unreachable!("every seed ends with a kill");
    }
    let Some(_alone) = common::alone() else { return };
    let mut seeds = Rng::with_seed(common::seed("as_std_through_kills"));
    let temp = tempfile::tempdir().unwrap();
    let lives: u64 = std::env::var("STEAD_KILLS").map_or(150, |n| n.parse().unwrap());
    for store_number in 0..lives.div_ceil(30) {
        let dir = temp.path().join(format!("store-{store_number}"));
        let mut model = Model::new();
        // The first state is made stable, so that each life has one to fall back on.
        drop(open(&dir));
        for life in 0..30 {
            let seed = seeds.u64(..);
            let test = "as_std_through_kills_panics_and_reopening";
            let status = common::child(test, &format!("{}|{seed}", dir.display()))
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .status()
                .unwrap();
            use std::os::unix::process::ExitStatusExt;
            assert_eq!(status.signal(), Some(libc::SIGKILL), "life {life}, seed {seed}: {status}");
            expected(&mut model, seed);
            if life % 3 == 2 {
                let (store, c) = open(&dir);
                assert_eq!(seen(&c), model, "life {life}, seed {seed}");
                let report = store.site().verify_container(&store.site().existing("c").unwrap());
                let report = report.unwrap();
                assert!(report.is_clean(), "life {life}, seed {seed}: {report}");
                // Forgotten nodes are the only garbage: shared objects are not freed yet.
                assert!(report.leaks.iter().all(|l| l.ty.contains("Node")), "{report}");
            }
        }
    }
}
