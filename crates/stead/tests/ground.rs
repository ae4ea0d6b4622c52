//! Foreign ground: an ordinary user, a system that refuses userfaultfd, an old kernel, a full disk.

mod common;

use std::ffi::CString;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use stead::{Options, Persist, Result, Store, Vec};

#[derive(Persist)]
#[repr(C)]
struct Root<'s> {
    list: Vec<'s, u64>,
}

fn root(store: &Store) -> stead::Container<Root<'static>> {
    store.container("c", |tx| Ok(Root { list: Vec::new(tx) })).unwrap()
}

fn push(c: &stead::Container<Root<'static>>, n: u64) -> Result<()> {
    c.exclusive(|r, tx| -> Result<_> { (0..n).try_for_each(|i| Ok(r.list.push(tx, i)?)) })
}

/// Runs a child to its end, and asserts that it passed.
fn passes(command: &mut Command) -> String {
    let output = command.stdout(Stdio::piped()).stderr(Stdio::piped()).output().unwrap();
    let text = format!(
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    assert!(output.status.success(), "{}: {text}", output.status);
    text
}

/// A copy of this program in a place that every user may reach.
fn copy_for_all(into: &Path) -> PathBuf {
    use std::os::unix::fs::PermissionsExt;
    std::fs::set_permissions(into, std::fs::Permissions::from_mode(0o777)).unwrap();
    let copy = into.join("program");
    std::fs::copy(std::env::current_exe().unwrap(), &copy).unwrap();
    std::fs::set_permissions(&copy, std::fs::Permissions::from_mode(0o755)).unwrap();
    copy
}

#[test]
fn an_ordinary_user() {
    if let Some(dir) = common::part() {
        let dir = PathBuf::from(dir);
        {
            let store = stead::open(&dir).unwrap();
            push(&root(&store), 500_000).unwrap();
            store.stabilise().unwrap();
            push(&root(&store), 500_000).unwrap();
        }
        let store = stead::open(&dir).unwrap();
        println!("user mode only: {}", store.site().user_mode_only());
        let c = root(&store);
        assert_eq!(c.read(|r, _| r.list.len()).unwrap(), 1_000_000);
        // Pages are brought in ahead, so that system calls may read them; here all of them were.
        let end = std::time::Instant::now() + std::time::Duration::from_secs(30);
        let stat = || store.stat().containers.into_iter().find(|c| c.name == "c").unwrap();
        while store.site().user_mode_only() && stat().resident_bytes < Some(stat().stored_bytes) {
            assert!(std::time::Instant::now() < end, "the container is never filled");
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
        c.read(|r, _| {
            let bytes: &[u64] = &r.list;
            // SAFETY: the bytes of initialised numbers, for as long as they are borrowed.
            let bytes = unsafe {
                std::slice::from_raw_parts(bytes.as_ptr().cast::<u8>(), size_of_val(bytes))
            };
            let mut file = std::fs::File::create(dir.join("../copy")).unwrap();
            std::io::Write::write_all(&mut file, bytes).unwrap();
        })
        .unwrap();
        return;
    }
    let Some(_alone) = common::alone() else { return };
    if !common::is_root() {
        common::not_run("to be another user, run as root");
        return;
    }
    let temp = tempfile::tempdir().unwrap();
    let program = copy_for_all(temp.path());
    let text = passes(
        Command::new(program)
            .args(["an_ordinary_user", "--exact", "--nocapture"])
            .env("STEAD_CHILD", temp.path().join("store"))
            .uid(65534)
            .gid(65534),
    );
    let privileged = std::fs::read_to_string("/proc/sys/vm/unprivileged_userfaultfd").unwrap();
    if privileged.trim() == "0" {
        assert!(text.contains("user mode only: true"), "{text}");
    }
}

#[test]
fn a_system_that_refuses_userfaultfd() {
    if common::part().is_some() {
        refuse_userfaultfd();
        let temp = tempfile::tempdir().unwrap();
        let dir = temp.path().join("store");
        let error = stead::open(&dir).unwrap_err().to_string();
        assert!(error.contains("userfaultfd"), "{error}");
        assert!(error.contains("seccomp"), "what to do about it: {error}");
        assert!(!dir.exists(), "nothing was made that cannot be used");
        let support = stead::Support::probe();
        assert!(support.missing().is_some());
        assert!(support.findings.iter().any(|f| !f.advice.is_empty()));
        return;
    }
    let Some(_alone) = common::alone() else { return };
    passes(&mut common::child("a_system_that_refuses_userfaultfd", "yes"));
}

/// From here on this process gets EPERM for the system call, as under the default filter of containers.
fn refuse_userfaultfd() {
    use seccompiler::{BpfProgram, SeccompAction, SeccompFilter};
    let rules = [(libc::SYS_userfaultfd, std::vec::Vec::new())].into_iter().collect();
    let filter = SeccompFilter::new(
        rules,
        SeccompAction::Allow,
        SeccompAction::Errno(libc::EPERM as u32),
        std::env::consts::ARCH.try_into().unwrap(),
    )
    .unwrap();
    let program: BpfProgram = filter.try_into().unwrap();
    seccompiler::apply_filter(&program).unwrap();
    // The device would give a descriptor all the same; a container has none.
    // SAFETY: drops all rights of this process to open it; no memory is involved.
    unsafe {
        libc::setgid(65534);
        libc::setuid(65534);
    }
}

#[test]
fn an_old_kernel() {
    let Some(_alone) = common::alone() else { return };
    let temp = tempfile::tempdir().unwrap();
    let mut allowed = stead::__Allowed::ALL;
    // UFFD_FEATURE_WP_ASYNC, new in Linux 6.7.
    allowed.features &= !(1 << 15);
    let options = Options::new().allowed(allowed);
    let error = Store::open_with(temp.path().join("store"), &options).unwrap_err().to_string();
    assert!(error.contains("6.7"), "{error}");
}

#[test]
fn a_full_disk_loses_nothing() {
    if let Some(mount) = common::part() {
        full_disk(Path::new(&mount));
        return;
    }
    let Some(_alone) = common::alone() else { return };
    if !common::is_root() {
        common::not_run("to mount a small file system, run as root");
        return;
    }
    let temp = tempfile::tempdir().unwrap();
    passes(&mut common::child("a_full_disk_loses_nothing", temp.path().to_str().unwrap()));
}

/// Runs in a process of its own, which takes its mount along when it ends.
fn full_disk(mount: &Path) {
    let path = CString::new(mount.to_str().unwrap()).unwrap();
    // SAFETY: strings end with NUL and outlive the calls; only this process's own mounts change.
    let mounted = unsafe {
        libc::unshare(libc::CLONE_NEWNS) == 0
            && libc::mount(
                c"none".as_ptr(),
                c"/".as_ptr(),
                std::ptr::null(),
                libc::MS_REC | libc::MS_PRIVATE,
                std::ptr::null(),
            ) == 0
            && libc::mount(
                c"tmpfs".as_ptr(),
                path.as_ptr(),
                c"tmpfs".as_ptr(),
                0,
                c"size=160m".as_ptr().cast(),
            ) == 0
    };
    if !mounted {
        common::not_run("a small file system could not be mounted");
        return;
    }
    let dir = mount.join("store");
    let options = Options::new().interval(None);
    let store = Store::open_with(&dir, &options).unwrap();
    let c = root(&store);
    push(&c, 1000).unwrap();
    store.stabilise().unwrap();
    // Somebody else fills the disk.
    let filler = mount.join("filler");
    let mut file = std::fs::File::create(&filler).unwrap();
    while std::io::Write::write_all(&mut file, &[1; 1 << 16]).is_ok() {}
    drop(file);
    // More than the log has room for.
    push(&c, 6_000_000).unwrap();
    let error = store.stabilise().unwrap_err().to_string();
    assert!(error.to_lowercase().contains("space") || error.contains("full"), "{error}");
    assert_eq!(c.read(|r, _| r.list.len()).unwrap(), 6_001_000, "memory is intact");
    push(&c, 1).unwrap();
    store.stabilise().unwrap_err();
    std::fs::remove_file(&filler).unwrap();
    store.stabilise().unwrap();
    push(&c, 1).unwrap();
    store.stabilise().unwrap();
    drop((c, store));
    let store = Store::open_with(&dir, &options).unwrap();
    assert_eq!(root(&store).read(|r, _| r.list.len()).unwrap(), 6_001_002);
}
