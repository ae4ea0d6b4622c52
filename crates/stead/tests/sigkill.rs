//! SIGKILL at random moments, hundreds of times, while several threads change vectors and maps in two
//! containers (A6, B1, B8). After each restart the state is one that a stabilisation saw: whole sections
//! only, both containers at the same moment, every pointer sound, and nothing acknowledged is gone.

mod common;

use std::io::Write as _;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::time::Duration;

use stead::{Container, Counter, HashMap, Mutex, Options, Persist, Result, Store, Text, Vec};

const THREADS: usize = 3;
/// Entries that a lane's map keeps.
const KEPT: u64 = 200;

/// What one thread changes: `list` holds 0..n, `map` the last [`KEPT`] of them, with their squares as text.
#[derive(Persist)]
#[repr(C)]
struct Lane<'s> {
    list: Vec<'s, u64>,
    map: HashMap<'s, u64, Text<'s>>,
}

#[derive(Persist)]
#[repr(C)]
struct Half<'s> {
    lanes: Vec<'s, Mutex<'s, Lane<'s>>>,
    /// The same keys as in all lanes' maps, changed in the same sections.
    shared: Mutex<'s, HashMap<'s, u64, u64>>,
    /// Not undone, not part of any promise but that it is there.
    tries: Counter<'s>,
}

fn half(store: &Store, name: &str) -> Result<Container<Half<'static>>> {
    store.container(name, |tx| {
        let mut lanes = Vec::new(tx);
        for _ in 0..THREADS {
            lanes.push(tx, Mutex::new(Lane { list: Vec::new(tx), map: HashMap::new(tx) }))?;
        }
        Ok(Half { lanes, shared: Mutex::new(HashMap::new(tx)), tries: Counter::new(0) })
    })
}

fn key(thread: usize, n: u64) -> u64 {
    (thread as u64) << 48 | n
}

/// Adds one to a lane, in one section. How many there are after it.
fn step(half: &Container<Half<'static>>, thread: usize, and_then: AndThen) -> Result<u64> {
    half.write(|root, tx| -> Result<_> {
        root.tries.add(tx, 1);
        let mut shared = root.shared.lock(tx)?;
        let mut lane = root.lanes[thread].lock(tx)?;
        let n = lane.list.len() as u64;
        lane.list.push(tx, n)?;
        let square = Text::from_str(tx, &(n * n).to_string())?;
        lane.map.insert(tx, n, square)?;
        shared.insert(tx, key(thread, n), n * n)?;
        if let Some(old) = n.checked_sub(KEPT) {
            lane.map.remove(tx, &old);
            shared.remove(tx, &key(thread, old));
        }
        match and_then {
            AndThen::Commit => Ok(n + 1),
            AndThen::Fail => Err(stead::Error::other("undone on purpose")),
            AndThen::Panic => std::panic::panic_any("undone on purpose"),
        }
    })
}

#[derive(Clone, Copy)]
enum AndThen {
    Commit,
    Fail,
    Panic,
}

/// The lengths of all lanes, after checking that each is whole.
fn checked(half: &Container<Half<'static>>) -> Result<std::vec::Vec<u64>> {
    half.exclusive(|root, tx| -> Result<_> {
        let mut lengths = std::vec::Vec::new();
        let shared = root.shared.lock(tx)?;
        let mut shared_len = 0;
        for (thread, lane) in root.lanes.iter().enumerate() {
            let lane = lane.lock(tx)?;
            let n = lane.list.len() as u64;
            assert!(lane.list.iter().copied().eq(0..n), "lane {thread} holds 0..{n}");
            let first = n.saturating_sub(KEPT);
            assert_eq!(lane.map.len() as u64, n - first, "lane {thread} keeps its last entries");
            for i in first..n {
                let square = lane.map.get(&i).map(|t| (**t).to_owned());
                assert_eq!(square, Some((i * i).to_string()), "lane {thread}, entry {i}");
                assert_eq!(shared.get(&key(thread, i)), Some(&(i * i)));
            }
            shared_len += n - first;
            lengths.push(n);
        }
        assert_eq!(shared.len() as u64, shared_len, "the shared map holds what the lanes hold");
        Ok(lengths)
    })
}

/// Checks a store as a kill left it. What is left of each lane.
fn check_store(store: &Store, acknowledged: &[u64]) -> Result<std::vec::Vec<u64>> {
    let (left, right) = (half(store, "left")?, half(store, "right")?);
    let (in_left, in_right) = (checked(&left)?, checked(&right)?);
    for thread in 0..THREADS {
        let (l, r) = (in_left[thread], in_right[thread]);
        // Each thread changes the left container first, then the right one.
        assert!(l == r || l == r + 1, "lane {thread}: {l} left, {r} right: not one moment");
        assert!(r >= acknowledged[thread], "lane {thread}: {r} left of {acknowledged:?}");
    }
    for name in store.names() {
        let report = store.site().verify_container(&*store.site().existing(&name)?)?;
        assert!(report.first_bad.is_none(), "{name}: {report}");
        assert_eq!(report.lost_bytes, 0, "{name}: {report}");
        assert!(report.leaks.is_empty(), "{name}: {report}");
    }
    Ok(in_right)
}

fn open(dir: &Path) -> Result<Store> {
    // Many stabilisations in little time, so that kills meet them at every stage.
    let options = Options::new().interval(Some(Duration::from_millis(7)));
    Ok(Store::open_with(dir, &options)?)
}

/// The child: checks what it finds, then changes it until it is killed.
fn work(dir: &Path, acknowledged: &[u64]) -> Result<()> {
    let store = open(dir)?;
    check_store(&store, acknowledged)?;
    say("> checked.");
    let (left, right) = (half(&store, "left")?, half(&store, "right")?);
    std::thread::scope(|scope| {
        for thread in 0..THREADS {
            let (store, left, right) = (&store, &left, &right);
            scope.spawn(move || lane_work(store, left, right, thread).unwrap());
        }
    });
    Ok(())
}

fn lane_work(
    store: &Store,
    left: &Container<Half<'static>>,
    right: &Container<Half<'static>>,
    thread: usize,
) -> Result<()> {
    // Killed between the two, a lane is one ahead in the left container: make up for it.
    let length = |half: &Container<Half<'static>>| {
        half.write(|root, tx| -> Result<_> { Ok(root.lanes[thread].lock(tx)?.list.len()) })
    };
    if length(right)? < length(left)? {
        step(right, thread, AndThen::Commit)?;
    }
    loop {
        let half = if fastrand::bool() { left } else { right };
        match fastrand::u32(..20) {
            0 => assert!(step(half, thread, AndThen::Fail).is_err()),
            1 => {
                let step = || step(half, thread, AndThen::Panic);
                assert!(catch_unwind(AssertUnwindSafe(step)).is_err());
            }
            2 => {
                let n = length(right)?;
                store.stabilise()?;
                say(&format!("> {thread} {n}."));
            }
            _ => {
                step(left, thread, AndThen::Commit)?;
                step(right, thread, AndThen::Commit)?;
            }
        }
    }
}

/// A line in one piece; only whole lines count.
fn say(line: &str) {
    let mut out = std::io::stdout().lock();
    out.write_all(format!("{line}\n").as_bytes()).expect("the parent reads until the end");
    out.flush().expect("the parent reads until the end");
}

#[test]
fn killed_hundreds_of_times() {
    if let Some(part) = common::part() {
        // A panic that is meant is not to fill the output.
        std::panic::set_hook(Box::new(|info| {
            if info.payload().downcast_ref::<&str>() != Some(&"undone on purpose") {
                eprintln!("{info}");
                std::process::exit(101);
            }
        }));
        let (dir, acknowledged) = part.split_once('|').unwrap();
        let acknowledged: std::vec::Vec<u64> =
            acknowledged.split(',').map(|n| n.parse().unwrap()).collect();
        work(&PathBuf::from(dir), &acknowledged).unwrap();
        return;
    }
    let Some(_alone) = common::alone() else { return };
    let mut chance = fastrand::Rng::with_seed(common::seed("killed_hundreds_of_times"));
    let kills: u32 = std::env::var("STEAD_KILLS").map_or(300, |n| n.parse().unwrap());
    let temp = tempfile::tempdir().unwrap();
    let dir = temp.path().join("store");
    let mut acknowledged = std::vec![0; THREADS];
    let (mut checked_count, mut acknowledgements) = (0, 0);
    for kill in 1..=kills {
        let list: std::vec::Vec<String> = acknowledged.iter().map(u64::to_string).collect();
        let part = format!("{}|{}", dir.display(), list.join(","));
        let time = Duration::from_micros(chance.u64(1_000..120_000));
        let lines = common::run_and_kill(common::child("killed_hundreds_of_times", &part), time);
        for line in lines {
            let line = line.trim_matches(['>', ' ', '.']);
            match line.split_once(' ') {
                None => checked_count += 1,
                Some((thread, n)) => {
                    let known = &mut acknowledged[thread.parse::<usize>().unwrap()];
                    *known = n.parse::<u64>().unwrap().max(*known);
                    acknowledgements += 1;
                }
            }
        }
        if kill % 20 == 0 {
            let store = open(&dir).unwrap();
            acknowledged = check_store(&store, &acknowledged).unwrap();
            let verified = store.site().verify_store(&mut |_| {}).unwrap();
            assert!(verified.is_clean(), "{verified:?}");
        }
    }
    println!(
        "{kills} kills, {checked_count} restarts checked by the child, {acknowledgements} acknowledgements, lanes {acknowledged:?}"
    );
    assert!(checked_count > kills / 4, "most children lived long enough to check");
    assert!(acknowledgements > 0);
}
