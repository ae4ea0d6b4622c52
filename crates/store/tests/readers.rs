//! Processes that read a store while its owner changes it as fast as it can: each sees the state of one
//! stabilisation, whole, for as long as it looks; killed, it holds up nothing.

use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use stead_model::{ContainerId, PAGE_SIZE, PageId, PageNo};
use stead_store::planted::{self, Bug};
use stead_store::{CommitError, CreateOptions, OpenError, Restore, Store, Stored};

/// Pages of the one container, far enough apart for a map with several leaves.
const PAGES: u64 = 240;

fn id(page: u64) -> PageId {
    PageId { container: ContainerId(1), page: PageNo(page * 3) }
}

fn mixed(number: u64, page: u64) -> u64 {
    let mut x =
        number.wrapping_mul(0x9E37_79B9_7F4A_7C15) ^ page.wrapping_mul(0xD1B5_4A32_D192_ED03);
    x ^= x >> 29;
    x.wrapping_mul(0xBF58_476D_1CE4_E5B9) >> 32
}

/// What stabilisation `number` does to a page: nothing, zero it, or store its number there.
fn written(number: u64, page: u64) -> Option<u64> {
    // A third of them change seldom: they stay behind in segments that are then cleaned.
    let seldom = if page.is_multiple_of(3) { 40 } else { 1 };
    match mixed(number, page) % (32 * seldom) {
        0 => Some(0),
        1..8 => Some(number),
        _ => None,
    }
}

/// What a page holds after stabilisation `number`.
fn expected(number: u64, page: u64) -> u64 {
    (1..=number).rev().find_map(|n| written(n, page)).unwrap_or(0)
}

fn create(dir: &Path) {
    let options = CreateOptions { segment_blocks: Some(32), ..CreateOptions::default() };
    drop(Store::create(dir, &options).unwrap());
}

/// Reads every page and holds it against what stabilisation `number` left.
fn check_all(store: &Store, number: u64) -> Result<(), String> {
    let mut bytes = [0; PAGE_SIZE];
    for page in 0..PAGES {
        let stored = store.read_page(id(page), &mut bytes).map_err(|error| error.to_string())?;
        let value = u64::from_le_bytes(*bytes.first_chunk().unwrap());
        let want = expected(number, page);
        let whole = bytes.chunks_exact(8).all(|word| word == value.to_le_bytes());
        if value != want || !whole || (stored == Stored::Never) != (want == 0) {
            return Err(format!("page {page} holds {value} (whole: {whole}), not {want}"));
        }
    }
    Ok(())
}

/// Not a test of its own: what the tests below run as the owner, to be killed.
#[test]
fn helper_that_owns() {
    let Some(dir) = std::env::var_os("STEAD_TEST_OWN") else { return };
    let plant = std::env::var_os("STEAD_TEST_PLANT").is_some();
    planted::set(plant.then_some(Bug::PinsIgnored));
    let (store, report) = Store::open(&PathBuf::from(dir)).unwrap();
    let mut batch = store.batch();
    for number in report.last_sequence + 1.. {
        for page in 0..PAGES {
            match written(number, page) {
                None => {}
                Some(0) => batch.zero(id(page)),
                Some(value) => batch.push(id(page), |bytes| {
                    bytes.chunks_exact_mut(8).for_each(|w| w.copy_from_slice(&value.to_le_bytes()));
                }),
            }
        }
        assert_eq!(store.commit(&mut batch).unwrap().sequence, number);
        let moved = store.maintain().unwrap().blocks_moved;
        if number % 2 == 0 {
            store.checkpoint().unwrap();
        }
        say(&format!("owner {number} {moved}."));
    }
}

/// Not a test of its own: opens, reads, waits, reads again, without end.
#[test]
fn helper_that_reads() {
    let Some(dir) = std::env::var_os("STEAD_TEST_READ") else { return };
    let dir = PathBuf::from(dir);
    loop {
        let read = (|| {
            let (store, report) = Store::open_read_only(&dir).map_err(|e| e.to_string())?;
            let number = report.last_sequence;
            check_all(&store, number)?;
            std::thread::sleep(Duration::from_millis(fastrand::u64(0..40)));
            check_all(&store, number)?;
            let verified = store.verify(&mut |_| {}).map_err(|e| e.to_string())?;
            if !verified.is_clean() {
                return Err(format!("{verified:?}"));
            }
            Ok(number)
        })();
        match read {
            Ok(number) => say(&format!("read {number}.")),
            Err(error) => say(&format!("WRONG {error}.")),
        }
    }
}

/// A line in one piece; whoever is killed meanwhile says part of one.
fn say(line: &str) {
    let mut out = std::io::stdout().lock();
    out.write_all(format!("> {line}\n").as_bytes()).and_then(|()| out.flush()).unwrap();
}

/// A process of this program, and what it says.
struct Helper {
    child: Child,
    listener: std::thread::JoinHandle<()>,
}

impl Helper {
    fn start(name: &str, variable: &str, dir: &Path, plant: bool, said: &Arc<Said>) -> Self {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["--exact", name, "--nocapture"]).env(variable, dir).stdout(Stdio::piped());
        if plant {
            command.env("STEAD_TEST_PLANT", "1");
        }
        let mut child = command.spawn().unwrap();
        let out = BufReader::new(child.stdout.take().unwrap());
        let said = Arc::clone(said);
        let listener = std::thread::spawn(move || {
            for line in out.lines().map_while(Result::ok) {
                if let Some((_, line)) = line.split_once("> ")
                    && let Some(line) = line.strip_suffix('.')
                {
                    said.hear(line);
                }
            }
        });
        Helper { child, listener }
    }

    fn kill(mut self) {
        assert!(self.child.try_wait().unwrap().is_none(), "nobody ends by itself");
        self.child.kill().unwrap();
        self.child.wait().unwrap();
        self.listener.join().unwrap();
    }
}

#[derive(Default)]
struct Said {
    owner: AtomicU64,
    moved: AtomicU64,
    reads: AtomicU64,
    wrong: Mutex<Vec<String>>,
}

impl Said {
    fn hear(&self, line: &str) {
        let mut words = line.split(' ');
        let (first, rest) = (words.next(), line.split_once(' ').map_or("", |(_, rest)| rest));
        match first {
            Some("owner") => {
                let mut numbers = words.map(|n| n.parse::<u64>().unwrap());
                self.owner.store(numbers.next().unwrap(), Ordering::SeqCst);
                self.moved.fetch_add(numbers.next().unwrap(), Ordering::SeqCst);
            }
            Some("read") => drop(self.reads.fetch_add(1, Ordering::SeqCst)),
            _ => self.wrong.lock().unwrap().push(rest.to_owned()),
        }
    }

    fn wrong(&self) -> Vec<String> {
        self.wrong.lock().unwrap().clone()
    }
}

fn owner(dir: &Path, plant: bool, said: &Arc<Said>) -> Helper {
    Helper::start("helper_that_owns", "STEAD_TEST_OWN", dir, plant, said)
}

fn reader(dir: &Path, said: &Arc<Said>) -> Helper {
    Helper::start("helper_that_reads", "STEAD_TEST_READ", dir, false, said)
}

#[test]
fn readers_see_one_stabilisation_each_and_whole() {
    let parent = tempfile::tempdir().unwrap();
    let dir = parent.path().join("store");
    create(&dir);
    let said = Arc::new(Said::default());
    let mut owning = owner(&dir, false, &said);
    let mut reading: Vec<Helper> = (0..3).map(|_| reader(&dir, &said)).collect();
    let (mut killed, mut restarts) = (0, 0);
    let seconds = std::env::var("STEAD_READERS_SECONDS").map_or(6, |s| s.parse().unwrap());
    let start = Instant::now();
    let (half, end) =
        (start + Duration::from_secs(seconds) / 2, start + Duration::from_secs(seconds));
    let mut patient = None;
    let moved = || said.moved.load(Ordering::SeqCst);
    let may_end = || Instant::now() > end && moved() > 0 && said.reads.load(Ordering::SeqCst) > 0;
    while !may_end() && said.wrong().is_empty() {
        std::thread::sleep(Duration::from_millis(fastrand::u64(50..400)));
        reading.remove(fastrand::usize(0..reading.len())).kill();
        reading.push(reader(&dir, &said));
        killed += 1;
        if killed % 5 == 0 {
            owning.kill();
            owning = owner(&dir, false, &said);
            restarts += 1;
        }
        if Instant::now() > half {
            // One that looks on for the rest of the time, through deaths of the owner too.
            let (store, report) =
                patient.get_or_insert_with(|| Store::open_read_only(&dir).unwrap());
            check_all(store, report.last_sequence).unwrap();
        }
    }
    let (patient, report) = patient.expect("half of the time is over");
    reading.into_iter().for_each(Helper::kill);
    owning.kill();
    assert_eq!(said.wrong(), [""; 0]);
    let (reads, commits) = (said.reads.load(Ordering::SeqCst), said.owner.load(Ordering::SeqCst));
    println!(
        "{reads} states read, {killed} readers and {restarts} owners killed, {commits} stabilisations, {} blocks moved",
        moved()
    );
    assert!(commits > report.last_sequence);

    // What readers held is free again when the last of them is gone.
    let (store, _) = Store::open(&dir).unwrap();
    for _ in 0..3 {
        store.checkpoint().unwrap();
    }
    let kept = store.stat();
    check_all(&patient, report.last_sequence).unwrap();
    drop(patient);
    for _ in 0..3 {
        store.checkpoint().unwrap();
    }
    let free = store.stat();
    assert!(free.free_segments > kept.free_segments, "{kept:?}, then {free:?}");
    check_all(&store, free.last_sequence).unwrap();
    assert!(store.verify(&mut |_| {}).unwrap().is_clean());
}

#[test]
fn an_owner_that_ignores_readers_is_found_out() {
    let parent = tempfile::tempdir().unwrap();
    let dir = parent.path().join("store");
    create(&dir);
    let said = Arc::new(Said::default());
    let owning = owner(&dir, true, &said);
    let reading: Vec<Helper> = (0..2).map(|_| reader(&dir, &said)).collect();
    let end = Instant::now() + Duration::from_secs(60);
    while Instant::now() < end && said.wrong().is_empty() {
        std::thread::sleep(Duration::from_millis(20));
    }
    reading.into_iter().for_each(Helper::kill);
    owning.kill();
    let wrong = said.wrong();
    assert!(!wrong.is_empty(), "no reader noticed");
    // Noticed by checksums: never a wrong byte, even then.
    assert!(wrong.iter().all(|what| !what.contains("holds")), "{wrong:?}");
    println!("found: {}", wrong[0]);
}

#[test]
fn a_reader_changes_nothing_and_lets_its_own_process_own() {
    let parent = tempfile::tempdir().unwrap();
    let dir = parent.path().join("store");
    create(&dir);
    let (first, _) = Store::open_read_only(&dir).unwrap();
    let (store, _) = Store::open(&dir).unwrap();
    let mut batch = store.batch();
    batch.push(id(0), |bytes| bytes.fill(7));
    store.commit(&mut batch).unwrap();

    let (second, report) = Store::open_read_only(&dir).unwrap();
    assert_eq!((report.last_sequence, report.unfinished, report.fell_back), (1, None, false));
    let mut bytes = [0; PAGE_SIZE];
    assert_eq!(first.read_page(id(0), &mut bytes).unwrap(), Stored::Never);
    assert_eq!(second.read_page(id(0), &mut bytes).unwrap(), Stored::Image);
    assert_eq!(bytes, [7; PAGE_SIZE]);
    assert!(second.is_read_only() && !second.wants_maintenance());
    let mut refused = second.batch();
    refused.push(id(0), |bytes| bytes.fill(8));
    for refused in
        [second.commit(&mut refused).map(drop), second.maintain().map(drop), second.checkpoint()]
    {
        assert!(matches!(refused, Err(CommitError::ReadOnly)), "{refused:?}");
    }

    // Closing a reader's descriptors lets go of no lock of this process, not even when the file `lock` is gone.
    drop((first, second));
    std::fs::remove_file(dir.join("lock")).unwrap();
    let other = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "helper_that_opens", "--nocapture"])
        .env("STEAD_TEST_OPEN", &dir)
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&other.stdout);
    assert!(said.contains(&format!("in use by process {}", std::process::id())), "{said}");
    drop(store);
    Store::open(&dir).unwrap();
}

/// Not a test of its own: opens as an owner does, and says what came of it.
#[test]
fn helper_that_opens() {
    let Some(dir) = std::env::var_os("STEAD_TEST_OPEN") else { return };
    match Store::open(&PathBuf::from(dir)) {
        Ok(_) => println!("opened"),
        Err(error @ OpenError::Held(_)) => println!("{error}"),
        Err(error) => panic!("{error}"),
    }
}

#[test]
fn a_directory_that_may_not_be_written_can_be_read() {
    use std::os::unix::fs::PermissionsExt;
    let parent = tempfile::tempdir().unwrap();
    let dir = parent.path().join("store");
    create(&dir);
    std::fs::remove_file(dir.join("lock")).unwrap();
    for (path, mode) in [(dir.join("log"), 0o444), (dir.clone(), 0o555)] {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
    }
    let (store, report) = Store::open_read_only(&dir).unwrap();
    assert_eq!(report.last_sequence, 0);
    assert!(store.verify(&mut |_| {}).unwrap().is_clean());
    assert!(!dir.join("lock").exists(), "nothing is made there");
    std::fs::set_permissions(&dir, std::fs::Permissions::from_mode(0o755)).unwrap();
}

#[test]
fn a_store_in_use_is_copied_whole() {
    let parent = tempfile::tempdir().unwrap();
    let dir = parent.path().join("store");
    create(&dir);
    let said = Arc::new(Said::default());
    let owning = owner(&dir, false, &said);
    for n in 0..4 {
        let (store, report) = Store::open_read_only(&dir).unwrap();
        let mut stream = Vec::new();
        // As slow as a pipe to somewhere: the owner goes on meanwhile.
        let mut slow = |_| std::thread::sleep(Duration::from_millis(1));
        store.view().backup(None, &mut stream, &mut slow).unwrap();
        let copy = parent.path().join(format!("copy {n}"));
        let mut restore = Restore::begin(&copy).unwrap();
        restore.apply(&mut &stream[..], &mut |_| {}).unwrap();
        restore.finish(&mut |_| {}).unwrap();
        check_all(&Store::open(&copy).unwrap().0, report.last_sequence).unwrap();
    }
    owning.kill();
}
