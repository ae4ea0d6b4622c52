//! The fault log on real memory: whoever writes, by whatever way, is found; and where there is no log, scans
//! do the same (catalogue B5). Some of it needs a process of its own, as in `refusals.rs`.

mod ground;

use std::process::{Command, Output};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use ground::{Ground, load, ranges, stamp, stamp_word, store, store_by_call};
use stead_memory::{LogUse, Scan, Support};
use stead_model::{PAGE_SIZE, PageNo};

/// A cluster whose written pages the log names, with scans to check it; `None` where there is no log.
fn logged(checked: bool) -> Option<Ground> {
    let ground = Ground::served(1, 16, stamp)?;
    let started = if checked { ground.space.check_log() } else { ground.space.start_log() };
    if let Err(refusal) = started {
        ground::not_run(&refusal);
        return None;
    }
    // What was before the log is found by a scan of everything.
    ground.dirty(Scan::Protect);
    Some(ground)
}

/// Runs an ignored test of this file in a process of its own.
fn child(name: &str) -> Output {
    Command::new(std::env::current_exe().unwrap())
        .args(["--exact", name, "--ignored", "--nocapture", "--test-threads=1"])
        .output()
        .unwrap()
}

fn assert_success(output: &Output) {
    let (out, err) =
        (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{}\n{out}\n{err}", output.status);
    assert!(out.contains("1 passed"), "{out}");
    for line in err.lines().filter(|line| line.starts_with("NOT RUN: ")) {
        eprintln!("{line}");
    }
}

/// A page written by `write`, which is a third of a window away from others.
fn is_found(ground: &Ground, page: u64, write: impl FnOnce(usize)) {
    load(ground.address(page));
    ground.dirty(Scan::Protect);
    write(ground.address(page));
    assert_eq!(ground.dirty(Scan::Look), ranges(&[(page, page + 1)]), "looked");
    assert_eq!(ground.dirty(Scan::Protect), ranges(&[(page, page + 1)]), "protected");
    assert_eq!(ground.dirty(Scan::Protect), []);
}

#[test]
fn whoever_writes_is_found() {
    assert_success(&child("body_of_a_process_in_which_all_sorts_write"));
}

#[test]
#[ignore = "the body of a process of its own"]
fn body_of_a_process_in_which_all_sorts_write() {
    let (go, wait) = std::sync::mpsc::channel::<usize>();
    let (done, is_done) = std::sync::mpsc::channel();
    // A thread from before the log.
    let old = std::thread::spawn(move || {
        for address in wait {
            store(address, 1);
            done.send(()).unwrap();
        }
    });
    let Some(ground) = logged(false) else { return };
    let count = || ground.space.counters();
    let quiet = |what: &str, page: u64, write: &dyn Fn(usize)| {
        let before = count();
        is_found(&ground, page, write);
        let after = count();
        assert_eq!(after.log_holed, before.log_holed, "{what} leaves the log whole");
        assert_eq!(after.scans_by_log - before.scans_by_log, 4, "{what} is found by the log");
    };
    // The first times something in the process may still settle.
    is_found(&ground, 900, |address| store(address, 1));
    quiet("this thread", 1000, &|address| store(address, 1));
    quiet("an old thread", 2000, &|address| {
        go.send(address).unwrap();
        is_done.recv().unwrap();
    });
    let zeros = std::fs::File::open("/dev/zero").unwrap();
    quiet("a system call", 4000, &|address| {
        // SAFETY: the test alone knows this memory, and keeps no other reference to it.
        let buf = unsafe {
            std::slice::from_raw_parts_mut(std::ptr::with_exposed_provenance_mut::<u8>(address), 8)
        };
        std::io::Read::read_exact(&mut &zeros, buf).unwrap();
    });
    // New threads fault in their stacks, and in ways that the kernel does not log when they end.
    is_found(&ground, 3000, |address| {
        std::thread::spawn(move || store(address, 1)).join().unwrap()
    });
    let holed = count().log_holed;
    is_found(&ground, 5000, |address| store_by_call(address, 1));
    assert!(count().log_holed > holed, "a fault that left no record was noticed");
    is_found(&ground, 6000, |address| {
        // A forked child counts for itself.
        // SAFETY: the child calls nothing but `_exit`, after touching memory of its own.
        unsafe {
            let child = libc::fork();
            assert!(child >= 0);
            if child == 0 {
                let mut bytes = [0u8; 64 * PAGE_SIZE];
                bytes.iter_mut().step_by(PAGE_SIZE).for_each(|b| *b = 1);
                libc::_exit(i32::from(std::hint::black_box(bytes)[0]) - 1);
            }
            let mut status = 1;
            assert_eq!(libc::waitpid(child, &raw mut status, 0), child);
            assert_eq!(status, 0);
        }
        store(address, 1);
    });
    assert_eq!(count().pages_strayed, 0);
    drop(go);
    old.join().unwrap();
    // Stopped and started again, it begins with a scan of everything.
    ground.space.stop_log();
    assert_eq!(ground.space.log_use(), LogUse::Scan);
    is_found(&ground, 7000, |address| store(address, 1));
    store(ground.address(7001), 1);
    ground.space.start_log().unwrap();
    assert_eq!(ground.dirty(Scan::Protect), ranges(&[(7001, 7002)]));
    is_found(&ground, 8000, |address| store(address, 1));
}

#[test]
fn direct_input_into_memory_is_found() {
    use std::os::unix::fs::{FileExt, OpenOptionsExt};
    let Some(ground) = logged(false) else { return };
    if ground.space.user_mode_only() {
        eprintln!("NOT RUN: full mode is not allowed here");
        return;
    }
    let path = std::path::Path::new(env!("CARGO_TARGET_TMPDIR")).join("direct-input");
    std::fs::write(&path, [7; 2 * PAGE_SIZE]).unwrap();
    let file = std::fs::OpenOptions::new().read(true).custom_flags(libc::O_DIRECT).open(&path);
    let Ok(file) = file else {
        eprintln!("NOT RUN: no direct reading in {}", path.display());
        return;
    };
    for page in [1500, 200_000] {
        is_found(&ground, page, |address| {
            // SAFETY: the test alone knows this memory, and keeps no other reference to it.
            let buf = unsafe {
                std::slice::from_raw_parts_mut(
                    std::ptr::with_exposed_provenance_mut::<u8>(address),
                    PAGE_SIZE,
                )
            };
            file.read_exact_at(buf, PAGE_SIZE as u64).unwrap();
        });
        assert_eq!(load(ground.address(page)), u64::from_ne_bytes([7; 8]));
    }
    std::fs::remove_file(path).unwrap();
}

/// What another process writes leaves no trace in this one: the sweep comes by in the end.
#[test]
fn what_another_process_writes_is_met_by_the_sweep() {
    let Some(ground) = logged(false) else { return };
    let page = 20_000;
    for at in (0..24_000).step_by(16) {
        load(ground.address(at));
    }
    ground.dirty(Scan::Protect);
    let word = 5u64;
    let part = |base: usize| libc::iovec {
        iov_base: std::ptr::with_exposed_provenance_mut(base),
        iov_len: 8,
    };
    let (from, into) =
        (part(std::ptr::from_ref(&word).expose_provenance()), part(ground.address(page)));
    // SAFETY: the child makes one call, which copies eight bytes of its own into memory of its parent that
    // no reference leads to, and ends.
    unsafe {
        let parent = libc::getpid();
        let child = libc::fork();
        assert!(child >= 0);
        if child == 0 {
            let n = libc::process_vm_writev(parent, &raw const from, 1, &raw const into, 1, 0);
            libc::_exit(i32::from(n != 8));
        }
        let mut status = 1;
        assert_eq!(libc::waitpid(child, &raw mut status, 0), child);
        if status != 0 {
            eprintln!("NOT RUN: a process may not write into its parent here");
            return;
        }
    }
    assert_eq!(load(ground.address(page)), word);
    let reports = || ground.dirty(Scan::Protect).iter().any(|r| (r.start..r.end).contains(&page));
    // The whole memory, four blocks a scan; fewer if something else has it scanned whole.
    assert!((0..40).any(|_| reports()), "never met");
}

/// Threads that come and go write in all sorts of ways, while each scan by the log is checked by a scan of
/// everything. At the end, the copies are what was written.
#[test]
fn log_and_scan_agree_while_threads_write() {
    const PAGES: u64 = 40_000;
    const THREADS: u64 = 3;
    let Some(ground) = logged(true) else { return };
    let seed = fastrand::u64(..);
    println!("seed {seed}");
    let mut copies: std::collections::HashMap<u64, u64> = Default::default();
    let mut round = || {
        let dirty = ground.dirty(Scan::Protect);
        let mut buf = vec![0; PAGE_SIZE];
        for page in dirty.iter().flat_map(|run| run.pages()) {
            ground.cluster.read_frames(page, &mut buf).unwrap();
            copies.insert(page.0, u64::from_ne_bytes(buf[..8].try_into().unwrap()));
        }
    };
    let stop = AtomicBool::new(false);
    let writes = AtomicU64::new(0);
    let written = Mutex::new(std::collections::HashMap::new());
    std::thread::scope(|scope| {
        for thread in 0..THREADS {
            let (stop, writes, written, ground) = (&stop, &writes, &written, &ground);
            scope.spawn(move || {
                let mut rng = fastrand::Rng::with_seed(seed ^ thread);
                while !stop.load(Ordering::Relaxed) {
                    // A new thread each time.
                    let mut rng = rng.fork();
                    std::thread::scope(|scope| {
                        scope.spawn(move || {
                            for _ in 0..rng.u32(1..300) {
                                let near = rng.bool();
                                let page =
                                    rng.u64(..if near { 64 } else { PAGES }) / THREADS * THREADS;
                                let (page, word) = (page + thread, rng.u64(1..));
                                let address = ground.address(page);
                                match rng.u8(..200) {
                                    0 => {
                                        load(address);
                                        store_by_call(address, word);
                                    }
                                    1..10 => {
                                        drop(vec![1u8; 1 << rng.u32(10..20)]);
                                        store(address, word);
                                    }
                                    _ => store(address, word),
                                }
                                written.lock().unwrap().insert(page, word);
                                writes.fetch_add(1, Ordering::Relaxed);
                            }
                        });
                    });
                }
            });
        }
        let end = Instant::now() + Duration::from_secs(2);
        while Instant::now() < end || writes.load(Ordering::Relaxed) < 1000 {
            round();
        }
        stop.store(true, Ordering::Relaxed);
    });
    round();
    for (page, word) in written.into_inner().unwrap() {
        assert_eq!(load(ground.address(page)), word);
        assert_eq!(copies.get(&page), Some(&word), "page {page}, seed {seed}");
    }
    let counters = ground.space.counters();
    assert!(counters.scans_by_log > 0, "{counters:?}");
}

#[test]
fn reading_names_nothing() {
    let Some(ground) = logged(true) else { return };
    for page in (0..5000).step_by(7) {
        assert_eq!(load(ground.address(page)), stamp_word(page));
    }
    assert_eq!(ground.dirty(Scan::Protect), []);
    assert_eq!(ground.space.counters().pages_found_written, 0);
    assert!(ground.cluster.is_resident(PageNo(0)));
}

fn finding() -> stead_memory::Finding {
    let support = Support::probe();
    support.findings.into_iter().find(|f| f.name == "page-fault events").unwrap()
}

/// Without the log, everything is found by scans.
fn works_without_a_log(ground: &Ground, advice: &str) {
    let refusal = ground.space.start_log().unwrap_err();
    assert!(refusal.advice.contains(advice), "{refusal}");
    let finding = finding();
    assert_eq!(finding.state, stead_memory::State::Limited);
    assert!(finding.advice.contains(advice) && finding.found.contains("by a scan"), "{finding:?}");
    assert_eq!(ground.space.log_use(), LogUse::Scan);
    is_found(ground, 1000, |address| store(address, 1));
    assert_eq!(ground.space.counters().scans_by_log, 0);
}

#[test]
fn an_ordinary_user_may_have_no_log() {
    if !rustix::process::geteuid().is_root() {
        eprintln!("NOT RUN: becoming another user needs root");
        return;
    }
    assert_success(&child("body_of_a_process_of_an_ordinary_user"));
}

#[test]
#[ignore = "the body of a process of its own"]
fn body_of_a_process_of_an_ordinary_user() {
    const NOBODY: u32 = 65534;
    let level = std::fs::read_to_string("/proc/sys/kernel/perf_event_paranoid").unwrap();
    if level.trim().parse::<i32>().unwrap() < 2 {
        eprintln!("NOT RUN: every user may log faults here");
        return;
    }
    // SAFETY: plain system calls by value; the C library applies them to all threads.
    unsafe {
        assert_eq!(libc::setgroups(0, std::ptr::null()), 0);
        assert_eq!(libc::setresgid(NOBODY, NOBODY, NOBODY), 0);
        assert_eq!(libc::setresuid(NOBODY, NOBODY, NOBODY), 0);
        // A process that changed its user may not look at itself until it says that it may.
        assert_eq!(libc::prctl(libc::PR_SET_DUMPABLE, 1), 0);
    }
    let Some(ground) = Ground::served(1, 16, stamp) else { return };
    works_without_a_log(&ground, "CAP_PERFMON");
}

#[test]
fn a_filter_may_refuse_the_log() {
    assert_success(&child("body_of_a_process_behind_a_filter"));
}

#[test]
#[ignore = "the body of a process of its own"]
fn body_of_a_process_behind_a_filter() {
    use seccompiler::{SeccompAction, SeccompFilter, apply_filter_all_threads};
    let filter = SeccompFilter::new(
        [(libc::SYS_perf_event_open, Vec::new())].into_iter().collect(),
        SeccompAction::Allow,
        SeccompAction::Errno(libc::EPERM as u32),
        std::env::consts::ARCH.try_into().unwrap(),
    )
    .unwrap();
    let program: seccompiler::BpfProgram = filter.try_into().unwrap();
    apply_filter_all_threads(&program).unwrap();
    let Some(ground) = Ground::served(1, 16, stamp) else { return };
    works_without_a_log(&ground, "profile");
}
