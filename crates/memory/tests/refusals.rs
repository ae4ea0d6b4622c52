//! Foreign ground: what happens where kernel, user or container refuse something, and in processes that
//! must not see a container's memory. Some of it needs a process of its own: [`child`] starts this very
//! program again with one of the ignored tests, which are the bodies of such processes.

mod ground;

use std::os::unix::process::ExitStatusExt;
use std::process::{Command, Output};

use ground::{Ground, load, open, ranges, stamp, stamp_word, store};
use stead_memory::{Allowed, Gate, Reason, Scan, Shadow, Space, State, Support, close_writers};
use stead_model::{ContainerId, PAGE_SIZE, PageNo, PageRange};

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
    // A body that could not run says so, for whoever counts.
    for line in err.lines().filter(|line| line.starts_with("NOT RUN: ")) {
        eprintln!("{line}");
    }
}

#[test]
fn each_missing_feature_is_named() {
    let Some(_) = open() else { return };
    for (bit, name, since) in [
        (Allowed::WP_ASYNC, "WP_ASYNC", "6.7"),
        (Allowed::POISON, "POISON", "6.6"),
        (Allowed::WP_SHMEM, "WP_HUGETLBFS_SHMEM", "5.19"),
        (Allowed::MINOR_SHMEM, "MINOR_SHMEM", "5.14"),
        (Allowed::MISSING_SHMEM, "MISSING_SHMEM", "4.11"),
    ] {
        let allowed = Allowed::ALL.without_features(bit);
        let refusal = Space::open_allowed(allowed).unwrap_err();
        assert_eq!(refusal.what, format!("the userfaultfd feature {name}"));
        assert!(refusal.why.contains(&format!("Linux {since}")), "{refusal}");
        assert!(refusal.advice.contains("Linux 6.7"), "{refusal}");
        let missing = Support::probe_allowed(allowed).missing().unwrap();
        assert_eq!((missing.what.as_str(), missing.why), (name, refusal.why));
    }
    let allowed = Allowed { pagemap_scan: false, ..Allowed::ALL };
    let refusal = Space::open_allowed(allowed).unwrap_err();
    assert!(refusal.to_string().contains("PAGEMAP_SCAN request is not available"), "{refusal}");
    assert_eq!(Support::probe_allowed(allowed).missing().unwrap().what, "PAGEMAP_SCAN");
    let allowed = Allowed { full: false, device: false, user_mode: false, ..Allowed::ALL };
    let refusal = Space::open_allowed(allowed).unwrap_err();
    assert!(refusal.to_string().contains("vm.unprivileged_userfaultfd=1"), "{refusal}");
}

#[test]
fn probing_agrees_with_opening() {
    let support = Support::probe();
    assert_eq!(support.missing(), Space::open().err());
    for finding in &support.findings {
        assert!(!finding.name.is_empty() && !finding.needed_for.is_empty(), "{finding:?}");
        assert!(!finding.found.is_empty(), "{finding:?}");
        assert_eq!(finding.advice.is_empty(), finding.state == State::Ok, "{finding:?}");
    }
    let names: Vec<_> = support.findings.iter().map(|f| f.name).collect();
    for name in ["kernel", "userfaultfd", "WP_ASYNC", "PAGEMAP_SCAN", "membarrier", "memfd"] {
        assert!(names.contains(&name), "{names:?}");
    }
}

#[test]
fn the_device_gives_full_mode() {
    let allowed = Allowed { full: false, user_mode: false, ..Allowed::ALL };
    match Space::open_allowed(allowed) {
        Ok(space) => assert!(!space.user_mode_only()),
        Err(refusal) => ground::not_run(&refusal),
    }
}

#[test]
fn a_seccomp_filter_is_named() {
    assert_success(&child("body_of_a_process_behind_a_filter"));
}

#[test]
#[ignore = "the body of a process of its own"]
fn body_of_a_process_behind_a_filter() {
    use seccompiler::{SeccompAction, SeccompFilter, apply_filter};
    let refused = [libc::SYS_userfaultfd, libc::SYS_membarrier].map(|call| (call, Vec::new()));
    let filter = SeccompFilter::new(
        refused.into_iter().collect(),
        SeccompAction::Allow,
        SeccompAction::Errno(libc::EPERM as u32),
        std::env::consts::ARCH.try_into().unwrap(),
    )
    .unwrap();
    let program: seccompiler::BpfProgram = filter.try_into().unwrap();
    apply_filter(&program).unwrap();

    // A container that refuses the call has no device either.
    let allowed = Allowed { device: false, ..Allowed::ALL };
    let refusal = Space::open_allowed(allowed).unwrap_err();
    assert_eq!(refusal.what, "userfaultfd");
    assert!(refusal.why.contains("refused by a seccomp filter"), "{refusal}");
    assert!(refusal.advice.contains("profile"), "{refusal}");
    let support = Support::probe_allowed(allowed);
    assert_eq!(support.missing(), Some(refusal));
    let state = |name| support.findings.iter().find(|f| f.name == name).unwrap().state;
    assert_eq!(state("membarrier"), State::Limited);
    assert_eq!(state("seccomp"), State::Limited);
    // Sections work without the barrier.
    let gate = Gate::new(ContainerId(1));
    drop(gate.enter_write().unwrap());
    drop(gate.enter_read().unwrap());
    drop(close_writers(&[&gate], None).unwrap());
    drop(gate.enter_exclusive(None).unwrap());
}

#[test]
fn an_ordinary_user_has_memory_too() {
    if !rustix::process::geteuid().is_root() {
        // Then every other test of this crate runs as an ordinary user.
        eprintln!("NOT RUN: becoming another user needs root");
        return;
    }
    assert_success(&child("body_of_a_process_of_an_ordinary_user"));
}

#[test]
#[ignore = "the body of a process of its own"]
fn body_of_a_process_of_an_ordinary_user() {
    const NOBODY: u32 = 65534;
    // SAFETY: plain system calls by value; the C library applies them to all threads.
    unsafe {
        assert_eq!(libc::setgroups(0, std::ptr::null()), 0);
        assert_eq!(libc::setresgid(NOBODY, NOBODY, NOBODY), 0);
        assert_eq!(libc::setresuid(NOBODY, NOBODY, NOBODY), 0);
        // A process that changed its user may not look at itself until it says that it may.
        assert_eq!(libc::prctl(libc::PR_SET_DUMPABLE, 1), 0);
    }
    let sysctl = std::fs::read_to_string("/proc/sys/vm/unprivileged_userfaultfd").unwrap();
    let Some(ground) = Ground::served(1, 16, stamp) else { return };
    assert_eq!(ground.space.user_mode_only(), sysctl.trim() == "0");
    store(ground.address(3), 1);
    assert_eq!(load(ground.address(40)), stamp_word(40));
    assert_eq!(ground.dirty(Scan::Protect), ranges(&[(3, 4)]));

    // System calls into the memory.
    let (mut out, into) = std::io::pipe().unwrap();
    let mut read_into = |page: u64| {
        use std::io::{Read, Write};
        (&into).write_all(b"8 bytes.").unwrap();
        // SAFETY: the test alone knows this memory, and keeps no other reference to it.
        let buf = unsafe {
            std::slice::from_raw_parts_mut(
                std::ptr::with_exposed_provenance_mut::<u8>(ground.address(page)),
                8,
            )
        };
        let result = out.read(buf);
        if result.is_err() {
            let mut rest = [0; 8];
            out.read_exact(&mut rest).unwrap();
        }
        result.map_err(|e| e.raw_os_error())
    };
    // Into a page that is in memory and protected: done, and found.
    assert_eq!(read_into(3), Ok(8));
    assert_eq!(ground.dirty(Scan::Protect), ranges(&[(3, 4)]));
    // Into a page that is not: refused in this mode, and possible once it was brought in ahead.
    if ground.space.user_mode_only() {
        assert_eq!(read_into(5000), Err(Some(libc::EFAULT)));
    }
    ground.cluster.install_zero(PageRange::new(5000, 5001), Reason::Ahead).unwrap();
    assert_eq!(read_into(5000), Ok(8));
    assert_eq!(ground.dirty(Scan::Protect), ranges(&[(5000, 5001)]));
    assert_eq!(load(ground.address(5000)), u64::from_ne_bytes(*b"8 bytes."));
}

#[test]
fn a_system_call_may_touch_any_page_in_full_mode() {
    let Some(ground) = Ground::served(1, 16, stamp) else { return };
    if ground.space.user_mode_only() {
        eprintln!("NOT RUN: full mode is not allowed here");
        return;
    }
    let (mut out, mut into) = std::io::pipe().unwrap();
    std::io::Write::write_all(&mut into, b"8 bytes.").unwrap();
    // SAFETY: the test alone knows this memory, and keeps no other reference to it.
    let buf = unsafe {
        std::slice::from_raw_parts_mut(
            std::ptr::with_exposed_provenance_mut::<u8>(ground.address(9)),
            8,
        )
    };
    assert_eq!(std::io::Read::read(&mut out, buf).unwrap(), 8);
    assert_eq!(load(ground.address(9)), u64::from_ne_bytes(*b"8 bytes."));
    assert_eq!(load(ground.address(9) + 8), stamp_word(9));
    assert_eq!(ground.dirty(Scan::Look), ranges(&[(9, 10)]));
}

/// Touches an address in a forked child and says how that ended.
fn touched_by_a_forked_child(address: usize) -> std::process::ExitStatus {
    // SAFETY: the child calls nothing but a load and `_exit`, both of which are allowed after a fork
    // in a process with threads.
    unsafe {
        let child = libc::fork();
        assert!(child >= 0);
        if child == 0 {
            let word = load(address);
            libc::_exit(if word == 0 { 1 } else { 0 });
        }
        let mut status = 0;
        assert_eq!(libc::waitpid(child, &mut status, 0), child);
        std::process::ExitStatus::from_raw(status)
    }
}

#[test]
fn a_forked_child_gets_a_fault_never_zeros() {
    let Some(ground) = Ground::served(2, 16, stamp) else { return };
    let shadow = Shadow::new(&ground.reservation).unwrap();
    store(ground.address(7), 5);
    let in_shadow = ground.address(7).wrapping_add_signed(shadow.delta());
    store(in_shadow, 5);
    let missing = ground.address(100_000);
    for address in [ground.address(7), missing, in_shadow] {
        let status = touched_by_a_forked_child(address);
        assert_eq!(status.signal(), Some(libc::SIGSEGV), "{status}");
    }
    assert_eq!(load(ground.address(7)), 5);
    assert_eq!(load(missing), stamp_word(100_000));
    // So it is with addresses that are only reserved, there and here.
    let reserved = ground::fresh_windows(1);
    let _held = ground.space.reserve(ContainerId(8), reserved).unwrap();
    let status = touched_by_a_forked_child(reserved.base().0);
    assert_eq!(status.signal(), Some(libc::SIGSEGV), "{status}");
}

#[test]
fn a_shadow_lies_beside_and_starts_as_zeros() {
    let Some(ground) = Ground::unserved(4) else { return };
    let shadow = Shadow::new(&ground.reservation).unwrap();
    let of = |page: u64| ground.address(page).wrapping_add_signed(shadow.delta());
    assert_eq!(of(0), shadow.base().0);
    // No page of the container is asked for, and none is written.
    let last = ground.reservation.windows() as u64 * stead_model::PAGES_PER_WINDOW - 1;
    store(of(last) + PAGE_SIZE - 8, 3);
    assert_eq!(load(of(last) + PAGE_SIZE - 8), 3);
    assert_eq!(load(of(77)), 0);
    assert_eq!(ground.dirty(Scan::Look), []);
    assert_eq!(ground.space.counters().faults_missing, 0);
}

#[test]
fn touching_a_poisoned_page_ends_the_process() {
    let output = child("body_of_a_process_that_touches_a_damaged_page");
    let not_run = String::from_utf8_lossy(&output.stderr).contains("NOT RUN");
    if not_run {
        return assert_success(&output);
    }
    assert_eq!(output.status.signal(), Some(libc::SIGBUS), "{}", output.status);
}

#[test]
#[ignore = "the body of a process of its own"]
fn body_of_a_process_that_touches_a_damaged_page() {
    let Some(ground) = Ground::unserved(1) else { return };
    std::thread::scope(|scope| {
        // Poisoned while a thread waits for it, as a damaged page of a store is.
        scope.spawn(|| load(ground.address(12)));
        let mut batch = stead_memory::FaultBatch::new(4);
        ground.space.poll(&mut batch, None).unwrap();
        assert_eq!(batch.faults()[0].page, PageNo(12));
        // A scan between pages that are there leaves its marks on the hole.
        ground.cluster.install_zero(PageRange::new(11, 12), Reason::Ahead).unwrap();
        ground.cluster.install_zero(PageRange::new(13, 14), Reason::Ahead).unwrap();
        assert_eq!(ground.dirty(Scan::Protect), []);
        ground.cluster.poison(PageNo(12)).unwrap();
    });
}

#[test]
fn a_page_in_memory_cannot_be_poisoned() {
    let Some(ground) = Ground::served(1, 1, stamp) else { return };
    store(ground.address(4), 1);
    let error = ground.cluster.poison(PageNo(4)).unwrap_err();
    assert!(error.to_string().contains("poisoning of page 4 failed"), "{error}");
    assert_eq!(load(ground.address(4)), 1);
    // A poisoned page heals once its contents are found elsewhere.
    assert_eq!(ground.dirty(Scan::Protect), ranges(&[(4, 5)]));
    ground.cluster.poison(PageNo(6)).unwrap();
    ground.cluster.poison(PageNo(6)).unwrap();
    assert_eq!(ground.dirty(Scan::Protect), []);
    let mut image = vec![0; PAGE_SIZE];
    stamp(PageNo(6), &mut image);
    ground.cluster.install(PageNo(6), &image, Reason::Ahead).unwrap();
    assert_eq!(load(ground.address(6)), stamp_word(6));
    assert_eq!(ground.space.counters().pages_poisoned, 1);
}

#[test]
fn a_poisoned_page_stays_so_through_a_scan() {
    let output = child("body_of_a_process_with_a_damaged_page_among_others");
    if String::from_utf8_lossy(&output.stderr).contains("NOT RUN") {
        return assert_success(&output);
    }
    assert_eq!(output.status.signal(), Some(libc::SIGBUS), "{}", output.status);
}

#[test]
#[ignore = "the body of a process of its own"]
fn body_of_a_process_with_a_damaged_page_among_others() {
    let Some(ground) = Ground::served(1, 1, stamp) else { return };
    store(ground.address(1), 1);
    store(ground.address(3), 1);
    ground.cluster.poison(PageNo(2)).unwrap();
    for _ in 0..2 {
        let dirty = ground.dirty(Scan::Protect);
        assert!(dirty.iter().all(|run| !(run.start..run.end).contains(&2)), "{dirty:?}");
    }
    load(ground.address(2));
}

#[test]
fn a_thread_waiting_in_a_dropped_cluster_meets_the_missing_access() {
    let output = child("body_of_a_process_whose_cluster_is_dropped");
    if String::from_utf8_lossy(&output.stderr).contains("NOT RUN") {
        return assert_success(&output);
    }
    assert_eq!(output.status.signal(), Some(libc::SIGSEGV), "{}", output.status);
}

#[test]
#[ignore = "the body of a process of its own"]
fn body_of_a_process_whose_cluster_is_dropped() {
    let Some(space) = open() else { return };
    let reservation = space.reserve(ContainerId(1), ground::fresh_windows(1)).unwrap();
    let cluster = space.map_cluster(&reservation, &[0], stead_memory::Mode::Faulted).unwrap();
    std::thread::scope(|scope| {
        scope.spawn(|| load(reservation.base().0));
        let mut batch = stead_memory::FaultBatch::new(4);
        space.poll(&mut batch, None).unwrap();
        assert_eq!(batch.faults().len(), 1);
        drop(cluster);
    });
}
