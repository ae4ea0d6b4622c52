//! What goes wrong is said as grep says it, with its exit codes; the rest of the work is done.

use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::process::Stdio;

use support::{Bench, has_stead, text};

mod support;

#[test]
fn exit_codes() {
    if !has_stead() {
        return;
    }
    let bench = Bench::new();
    bench.file("tree/a", "one\ntwo\n");
    assert_eq!(bench.search(["one", "tree"]).status.code(), Some(0));
    let none = bench.search(["three", "tree"]);
    assert_eq!(none.status.code(), Some(1));
    assert_eq!((text(&none.stdout), text(&none.stderr)), (String::new(), String::new()));
    let option = bench.search(["-i", "one", "tree"]);
    assert_eq!(option.status.code(), Some(2));
    assert!(text(&option.stderr).contains("-i"), "{}", text(&option.stderr));
    assert_eq!(bench.search([""; 0]).status.code(), Some(2));
}

#[test]
fn a_missing_path_does_not_hide_the_others() {
    if !has_stead() {
        return;
    }
    let bench = Bench::new();
    bench.file("tree/a", "one\n");
    let output = bench.search(["one", "nosuch", "tree", "tree/a/b"]);
    assert_eq!(text(&output.stdout), "tree/a:1:one\n");
    assert_eq!(
        text(&output.stderr),
        "codesearch: nosuch: No such file or directory\n\
         codesearch: tree/a/b: Not a directory\n"
    );
    assert_eq!(output.status.code(), Some(2));
}

#[test]
fn a_bad_pattern_is_shown() {
    let bench = Bench::new();
    bench.file("tree/a", "one\n");
    for pattern in ["a(b", "[z-a]", "x{5,2}", "*a", r"(a)\1"] {
        let output = bench.search(["--", pattern, "tree"]);
        assert_eq!(output.status.code(), Some(2), "{pattern}");
        assert_eq!(text(&output.stdout), "");
        let said = text(&output.stderr);
        assert!(said.starts_with("codesearch: "), "{said}");
        assert!(said.contains(pattern), "{said}");
    }
    assert!(!bench.store().exists(), "a bad pattern makes no store");
}

#[test]
fn binary_files_are_passed_over_in_silence() {
    if !has_stead() {
        return;
    }
    let bench = Bench::new();
    bench.file("tree/binary", b"one\n\0");
    let output = bench.search(["one", "tree", "tree/binary"]);
    assert_eq!((text(&output.stdout), text(&output.stderr)), (String::new(), String::new()));
    assert_eq!(output.status.code(), Some(1));
}

#[test]
fn unreadable_files_are_named_in_every_search() {
    if !has_stead() {
        return;
    }
    let bench = Bench::new();
    let file = bench.file("tree/locked", "one\n");
    let dir = bench.file("tree/shut/a", "one\n").parent().unwrap().to_owned();
    bench.file("tree/open", "one\n");
    let close = |mode| {
        fs::set_permissions(&file, fs::Permissions::from_mode(mode & 0o666)).unwrap();
        fs::set_permissions(&dir, fs::Permissions::from_mode(mode)).unwrap();
    };
    // Root may read everything: be somebody else.
    let nobody = rustix::process::geteuid().is_root().then_some(65534);
    fs::set_permissions(bench.path(), fs::Permissions::from_mode(0o777)).unwrap();
    let search = |args: &[&str]| {
        let mut command = bench.codesearch();
        if let Some(nobody) = nobody {
            command.uid(nobody).gid(nobody);
        }
        command.args(args).output()
    };
    let first = search(&["one", "tree"]);
    if !first.as_ref().is_ok_and(|output| output.status.success()) {
        eprintln!("NOT RUN: the program cannot be run by a user without rights: {first:?}");
        return;
    }
    fs::remove_dir_all(bench.store()).unwrap();

    close(0);
    for _ in 0..2 {
        let output = search(&["one", "tree", "tree/locked"]).unwrap();
        assert_eq!(text(&output.stdout), "tree/open:1:one\n", "{}", text(&output.stderr));
        assert_eq!(
            text(&output.stderr),
            "codesearch: tree/locked: Permission denied\n\
             codesearch: tree/shut: Permission denied\n\
             codesearch: tree/locked: Permission denied\n"
        );
        assert_eq!(output.status.code(), Some(2));
    }
    // A refresh tries again, though no time stamp of the file has changed.
    close(0o777);
    let output = search(&["--refresh", "one", "tree"]).unwrap();
    assert_eq!(text(&output.stderr), "");
    assert_eq!(text(&output.stdout), "tree/locked:1:one\ntree/open:1:one\ntree/shut/a:1:one\n");
}

#[test]
fn a_closed_pipe_ends_it_quietly() {
    if !has_stead() {
        return;
    }
    let bench = Bench::new();
    bench.file("tree/a", "line\n".repeat(1_000_000));
    for _ in 0..2 {
        let mut child = bench
            .codesearch()
            .args(["line", "tree"])
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut first = [0; 12];
        child.stdout.as_mut().unwrap().read_exact(&mut first).unwrap();
        drop(child.stdout.take());
        let output = child.wait_with_output().unwrap();
        assert_eq!(&first, b"tree/a:1:lin");
        assert_eq!(text(&output.stderr), "");
        assert!(output.status.code().is_some(), "{}", output.status);
    }
}

#[test]
fn a_full_disk_is_reported() {
    if !has_stead() {
        return;
    }
    let Ok(full) = fs::File::options().write(true).open("/dev/full") else {
        eprintln!("NOT RUN: there is no /dev/full");
        return;
    };
    let bench = Bench::new();
    bench.file("tree/a", "one\n");
    let mut command = bench.codesearch();
    let output = command.args(["one", "tree"]).stdout(full).output().unwrap();
    assert_eq!(text(&output.stderr), "codesearch: write error: No space left on device\n");
    assert_eq!(output.status.code(), Some(2));
}

#[test]
fn the_output_is_not_its_own_input() {
    if !has_stead() {
        return;
    }
    let bench = Bench::new();
    bench.file("tree/a", "one\n");
    let out = fs::File::create(bench.path().join("tree/out")).unwrap();
    let mut command = bench.codesearch();
    let output = command.args(["", "tree"]).stdout(out).output().unwrap();
    assert_eq!(text(&output.stderr), "codesearch: tree/out: input file is also the output\n");
    assert_eq!(fs::read_to_string(bench.path().join("tree/out")).unwrap(), "tree/a:1:one\n");
    assert_eq!(output.status.code(), Some(2));
}

#[test]
fn a_store_that_cannot_be_used_is_named() {
    let bench = Bench::new();
    bench.file("tree/a", "one\n");
    bench.file("store", "I was here first");
    let output = bench.search(["one", "tree"]);
    assert_eq!(output.status.code(), Some(2));
    assert_eq!(text(&output.stdout), "");
    assert!(text(&output.stderr).contains("store"), "{}", text(&output.stderr));
    assert_eq!(fs::read_to_string(bench.store()).unwrap(), "I was here first");
}

#[test]
fn runs_on_one_store_take_turns() {
    if !has_stead() {
        return;
    }
    let bench = Bench::new();
    bench.file("tree/a", "one\n");
    fs::create_dir(bench.store()).unwrap();
    let turn = fs::File::open(bench.store()).unwrap();
    turn.lock().unwrap();
    let mut child = bench
        .codesearch()
        .args(["one", "tree"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // It says that it waits, and goes on when its turn has come.
    let mut said = String::new();
    BufReader::new(child.stderr.take().unwrap()).read_line(&mut said).unwrap();
    assert!(said.starts_with("codesearch: waiting for another codesearch that uses /"), "{said}");
    assert!(child.try_wait().unwrap().is_none());
    drop(turn);
    let output = child.wait_with_output().unwrap();
    assert_eq!(text(&output.stdout), "tree/a:1:one\n");
    assert_eq!(output.status.code(), Some(0));
}

#[test]
fn a_store_in_other_hands_is_left_alone() {
    if !has_stead() {
        return;
    }
    let bench = Bench::new();
    let tree = bench.file("tree/a", "one\n").parent().unwrap().canonicalize().unwrap();
    let store = stead::open(bench.store()).unwrap();
    let output = bench.search(["one", "tree"]);
    assert_eq!((output.status.code(), text(&output.stdout)), (Some(2), String::new()));
    let said = text(&output.stderr);
    assert!(said.contains(&std::process::id().to_string()), "it names who has the store: {said}");

    // A container of that name that holds something else.
    let init = |_: &stead::Tx<'_>| Ok(Counter { runs: 7 });
    drop(store.container::<Counter>(tree.to_str().unwrap(), init).unwrap());
    drop(store);
    let output = bench.search(["one", "tree"]);
    assert_eq!((output.status.code(), text(&output.stdout)), (Some(2), String::new()));
    let said = text(&output.stderr);
    assert!(said.contains("Counter") && said.contains("Index"), "it shows both types: {said}");
}

#[derive(stead::Persist)]
#[repr(C)]
struct Counter {
    runs: u64,
}

#[test]
fn the_defaults_are_cargos_sources_and_the_users_cache() {
    if !has_stead() {
        return;
    }
    let bench = Bench::new();
    bench.file(".cargo/registry/src/index/crate-1.0.0/src/lib.rs", "unsafe fn one()\n");
    bench.file("elsewhere/registry/src/a", "unsafe fn two()\n");
    let run = |change: &dyn Fn(&mut std::process::Command)| {
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_codesearch"));
        command.env("HOME", bench.path()).env_remove("CARGO_HOME").env_remove("XDG_CACHE_HOME");
        change(&mut command);
        command.arg("unsafe fn [a-z_]+").output().unwrap()
    };
    let path = bench.path().display();
    let output = run(&|_| {});
    assert_eq!(
        text(&output.stdout),
        format!("{path}/.cargo/registry/src/index/crate-1.0.0/src/lib.rs:1:unsafe fn one()\n"),
        "{}",
        text(&output.stderr)
    );
    assert!(bench.path().join(".cache/codesearch").is_dir());

    let output = run(&|command| {
        command.env("CARGO_HOME", bench.path().join("elsewhere"));
        command.env("XDG_CACHE_HOME", bench.path().join("cache"));
    });
    assert_eq!(
        text(&output.stdout),
        format!("{path}/elsewhere/registry/src/a:1:unsafe fn two()\n")
    );
    assert!(bench.path().join("cache/codesearch").is_dir());
}
