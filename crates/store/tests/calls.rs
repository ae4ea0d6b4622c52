//! The two kinds of system calls by which a file is read and written: io_uring, and plain ones where it is
//! refused, breaks, or belongs to another process. What they do is the same.

use std::io::IoSlice;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use stead_model::{ContainerId, PAGE_SIZE, PageId, PageNo};
use stead_store::{AlignedBuf, Calls, CreateOptions, FileMedium, Medium, Store, WriteRequest};

fn id(page: u64) -> PageId {
    PageId { container: ContainerId(1), page: PageNo(page) }
}

/// A store, and its file opened anew by a ring; `None` where the kernel gives none.
fn on_a_ring(dir: &Path) -> Option<Arc<FileMedium>> {
    drop(Store::create(dir, &CreateOptions::default()).unwrap());
    let medium = FileMedium::open_with(&dir.join("log"), true, Calls::Ring).unwrap();
    if !medium.uses_ring() {
        eprintln!("NOT RUN: {}", medium.describe());
        return None;
    }
    assert!(medium.describe().ends_with("io_uring"), "{}", medium.describe());
    Some(Arc::new(medium))
}

/// Commits a small and a large record, and reads both back together.
fn works(store: &Store, value: u8) {
    let mut batch = store.batch();
    batch.push(id(0), |page| page.fill(value));
    store.commit(&mut batch).unwrap();
    for page in 1..600 {
        batch.push(id(page), |bytes| bytes.fill(value));
    }
    store.commit(&mut batch).unwrap();
    let ids: Vec<PageId> = (0..600).map(id).collect();
    let mut into = vec![0; ids.len() * PAGE_SIZE];
    store.read_pages(&ids, &mut into).into_iter().for_each(|read| assert!(read.is_ok()));
    assert!(into.iter().all(|&byte| byte == value));
}

/// Has a process of its own run one of the tests marked `ignore` below; what it printed.
fn in_its_own_process(body: &str, dir: &Path) -> String {
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", body, "--ignored", "--nocapture"])
        .env("STEAD_TEST_DIR", dir)
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned()
        + &String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
    said.lines().filter(|line| line.contains("NOT RUN")).for_each(|line| eprintln!("{line}"));
    said
}

fn test_dir() -> PathBuf {
    std::env::var_os("STEAD_TEST_DIR").expect("run by the test of like name").into()
}

/// Has the kernel refuse a system call to this thread, with this error.
fn refuse(call: i64, errno: i32) {
    use seccompiler::{BpfProgram, SeccompAction, SeccompFilter, apply_filter};
    let filter = SeccompFilter::new(
        [(call, Vec::new())].into_iter().collect(),
        SeccompAction::Allow,
        SeccompAction::Errno(errno as u32),
        std::env::consts::ARCH.try_into().unwrap(),
    )
    .unwrap();
    apply_filter(&BpfProgram::try_from(filter).unwrap()).unwrap();
}

/// As in containers (EPERM), on old kernels (ENOSYS), with little memory to lock (ENOMEM).
#[test]
fn where_a_ring_is_refused_plain_calls_do() {
    for errno in [libc::EPERM, libc::ENOSYS, libc::ENOMEM, libc::EACCES] {
        let refused = std::thread::spawn(move || {
            refuse(libc::SYS_io_uring_setup, errno);
            let dir = tempfile::tempdir().unwrap();
            drop(Store::create(dir.path(), &CreateOptions::default()).unwrap());
            let log = dir.path().join("log");
            let medium = Arc::new(FileMedium::open_with(&log, true, Calls::Ring).unwrap());
            assert!(!medium.uses_ring());
            let (store, _) = Store::open_on(medium).unwrap();
            assert!(store.medium().contains("io_uring is refused"), "{}", store.medium());
            works(&store, 3);
            drop(store);
            works(&Store::open(dir.path()).unwrap().0, 4);
        });
        refused.join().unwrap();
    }
}

#[test]
fn a_ring_that_breaks_is_done_without() {
    for errno in [libc::EBADF, libc::EPERM, libc::EIO] {
        let broken = std::thread::spawn(move || {
            let dir = tempfile::tempdir().unwrap();
            let Some(medium) = on_a_ring(dir.path()) else { return };
            let (store, _) = Store::open_on(medium.clone()).unwrap();
            works(&store, 1);
            refuse(libc::SYS_io_uring_enter, errno);
            works(&store, 2);
            assert!(!medium.uses_ring());
            assert!(store.medium().ends_with("plain calls"), "{}", store.medium());
            works(&store, 3);
            drop(store);
            let (store, report) = Store::open(dir.path()).unwrap();
            assert_eq!(report.last_sequence, 6);
            works(&store, 4);
        });
        broken.join().unwrap();
    }
}

/// A child has its parent's ring and leaves it alone.
#[test]
fn a_forked_child_does_without_the_ring() {
    let dir = tempfile::tempdir().unwrap();
    in_its_own_process("body_of_a_process_that_forks", dir.path());
}

#[test]
#[ignore = "the body of a process of its own"]
fn body_of_a_process_that_forks() {
    let Some(medium) = on_a_ring(&test_dir()) else { return };
    let mut page = AlignedBuf::zeroed(PAGE_SIZE);
    let end = medium.len().unwrap() - 4096;
    let mut write_at_the_end = |value: u8| {
        page.as_mut_slice().fill(value);
        let parts = [IoSlice::new(page.as_slice())];
        let written = medium.write_and_sync(&[WriteRequest { offset: end, parts: &parts }]);
        let mut back = [0; PAGE_SIZE];
        written.is_ok() && medium.read(end, &mut back).is_ok() && back == [value; PAGE_SIZE]
    };
    assert!(write_at_the_end(1));
    // SAFETY: The child uses nothing that another thread of this process may have been changing: the
    // other threads are the test harness's, which wait.
    let child = unsafe { libc::fork() };
    assert!(child >= 0);
    if child == 0 {
        let well = !medium.uses_ring() && write_at_the_end(2);
        // SAFETY: Ends the child at once, which is what it is for.
        unsafe { libc::_exit(i32::from(!well)) };
    }
    let mut status = 0;
    // SAFETY: The child was made above and nobody else waits for it; `status` is written.
    assert_eq!(unsafe { libc::waitpid(child, &mut status, 0) }, child);
    assert_eq!(status, 0, "the child did not do well");
    assert!(medium.uses_ring() && write_at_the_end(3));
}

/// Signals come in the middle of system calls.
#[test]
fn signals_interrupt_nothing() {
    for calls in ["plain", "ring"] {
        let dir = tempfile::tempdir().unwrap();
        let output = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "body_of_a_process_under_signals", "--ignored", "--nocapture"])
            .env("STEAD_TEST_DIR", dir.path().join("store"))
            .env("STEAD_IO", calls)
            .output()
            .unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }
}

extern "C" fn do_nothing(_: i32) {}

#[test]
#[ignore = "the body of a process of its own"]
fn body_of_a_process_under_signals() {
    let dir = test_dir();
    let store = Store::create(&dir, &CreateOptions::default()).unwrap();
    let every = libc::timeval { tv_sec: 0, tv_usec: 150 };
    // SAFETY: A zeroed `sigaction` is a valid one, without SA_RESTART; the handler does nothing; what is
    // pointed to lives as long as the calls.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = do_nothing as *const () as usize;
        assert_eq!(libc::sigaction(libc::SIGALRM, &action, std::ptr::null_mut()), 0);
        let timer = libc::itimerval { it_interval: every, it_value: every };
        assert_eq!(libc::setitimer(libc::ITIMER_REAL, &timer, std::ptr::null_mut()), 0);
    }
    for value in 1..60 {
        works(&store, value);
    }
    assert_eq!(store.stat().last_sequence, 2 * 59);
}

/// A limit on the size of files ends a write in its middle, as a full disk does: that is an error, and what
/// was stable stays.
#[test]
fn a_short_write_is_gone_on_with_or_told() {
    for calls in ["plain", "ring"] {
        let dir = tempfile::tempdir().unwrap();
        let store = dir.path().join("store");
        let output = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "body_of_a_process_with_short_writes", "--ignored", "--nocapture"])
            .env("STEAD_TEST_DIR", &store)
            .env("STEAD_IO", calls)
            .output()
            .unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let (store, report) = Store::open(&store).unwrap();
        assert!(report.last_sequence == 3 || report.last_sequence == 4, "{report:?}");
        works(&store, 9);
    }
}

#[test]
#[ignore = "the body of a process of its own"]
fn body_of_a_process_with_short_writes() {
    let dir = test_dir();
    let store = Store::create(&dir, &CreateOptions::default()).unwrap();
    works(&store, 1);
    let mut batch = store.batch();
    batch.push(id(7), |page| page.fill(2));
    let behind = 16 * 4096 + (601 + 5 + 1) * 4096;
    store.commit(&mut batch).unwrap();
    // In the middle of the next record, and in the middle of a block of it.
    let limit = libc::rlimit { rlim_cur: behind + 40 * 4096 + 512, rlim_max: libc::RLIM_INFINITY };
    // SAFETY: Both change how this process is limited and nothing else; the limit is pointed to for the call.
    unsafe {
        libc::signal(libc::SIGXFSZ, libc::SIG_IGN);
        assert_eq!(libc::setrlimit(libc::RLIMIT_FSIZE, &limit), 0);
    }
    for page in 0..200 {
        batch.push(id(page), |bytes| bytes.fill(3));
    }
    let error = store.commit(&mut batch).unwrap_err();
    assert!(error.to_string().contains("nothing was stabilised"), "{error}");
    let mut page = [0; PAGE_SIZE];
    store.read_page(id(7), &mut page).unwrap();
    assert_eq!(page, [2; PAGE_SIZE]);
}
