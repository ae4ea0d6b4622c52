//! Runs the steps of a check one after the other, and counts what could not be run.
//!
//! A test that lacks a right it needs prints a line that starts with `NOT RUN:`; those lines are
//! collected here and shown at the end, so that a green run never hides one. Read [`STEPS`] first.

use std::io::{BufRead, BufReader, Write};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Instant;

/// One command of a check.
pub(crate) struct Step {
    name: &'static str,
    command: &'static [&'static str],
    /// Variables of its environment.
    env: &'static [(&'static str, &'static str)],
    /// Its output is a test run's: summarised, and searched for tests that were not run.
    tests: bool,
}

/// Everything `cargo xtask check` runs after the check of the rooms, in order.
pub(crate) const STEPS: &[Step] = &[
    Step { name: "format", command: &["cargo", "fmt", "--all", "--check"], env: &[], tests: false },
    Step {
        name: "lints",
        command: &[
            "cargo",
            "clippy",
            "--quiet",
            "--workspace",
            "--all-targets",
            "--",
            "-D",
            "warnings",
        ],
        env: &[],
        tests: false,
    },
    Step {
        name: "tests, compile-fail tests, crash injection",
        command: &["cargo", "test", "--workspace", "--no-fail-fast", "--all-targets"],
        env: &[],
        tests: true,
    },
    Step {
        name: "doc tests",
        command: &["cargo", "test", "--workspace", "--no-fail-fast", "--doc"],
        env: &[],
        tests: true,
    },
    Step {
        name: "bugs planted in the gate and the fault log",
        command: &[
            "cargo",
            "test",
            "--no-fail-fast",
            "-p",
            "stead-memory",
            "--features",
            "planted",
            "--test",
            "planted",
        ],
        env: &[],
        tests: true,
    },
    Step {
        name: "written pages by the fault log, checked by scans",
        command: &[
            "cargo",
            "test",
            "--no-fail-fast",
            "-p",
            "stead-memory",
            "--features",
            "planted",
            "--test",
            "space",
            "--test",
            "property",
        ],
        env: &[("STEAD_FAULT_LOG", "checked")],
        tests: true,
    },
    Step {
        name: "forged stores, blocks, backups and containers, for a minute",
        command: &["cargo", "run", "--quiet", "-p", "stead-fuzz", "--", "--seconds", "60"],
        env: &[],
        tests: false,
    },
    Step {
        name: "the code of a dereference, optimised",
        command: &["cargo", "test", "--release", "-p", "stead-heap", "--test", "generated_code"],
        env: &[],
        tests: true,
    },
];

/// The root of the workspace.
pub(crate) fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).parent().expect("xtask lies in the root").to_owned()
}

/// Runs everything; stops at the first step that fails.
pub(crate) fn check() -> Result<(), String> {
    let started = Instant::now();
    crate::rooms::check(&root())?;
    let mut not_run = Vec::new();
    for step in STEPS {
        run(step, &mut not_run)?;
    }
    deny(&mut not_run)?;
    if !not_run.is_empty() {
        println!("\n{} not run on this machine:", not_run.len());
        for line in &not_run {
            println!("  {line}");
        }
    }
    println!("\ncheck passed in {} s", started.elapsed().as_secs());
    Ok(())
}

fn run(step: &Step, not_run: &mut Vec<String>) -> Result<(), String> {
    println!("== {}: {}", step.name, step.command.join(" "));
    let started = Instant::now();
    let (program, args) = step.command.split_first().expect("a step has a program");
    let mut command = Command::new(program);
    // Here is room for the tests that take a gigabyte.
    command.args(args).current_dir(root()).env("STEAD_LARGE", "1").envs(step.env.iter().copied());
    let passed = if step.tests {
        command.args(["--", "--show-output"]);
        run_tests(&mut command, not_run)?
    } else {
        command.status().map_err(|e| format!("{program} could not be started: {e}"))?.success()
    };
    if !passed {
        return Err(format!("{} failed", step.name));
    }
    println!("== {}: passed in {} s", step.name, started.elapsed().as_secs());
    Ok(())
}

/// Shows what ran and how it ended; all of the output, where something failed.
fn run_tests(command: &mut Command, not_run: &mut Vec<String>) -> Result<bool, String> {
    let mut child = command
        .stdout(Stdio::piped())
        .spawn()
        .map_err(|e| format!("cargo could not be started: {e}"))?;
    let stdout = child.stdout.take().expect("stdout is piped");
    let mut all = Vec::new();
    for line in BufReader::new(stdout).lines() {
        let line = line.map_err(|e| format!("output could not be read: {e}"))?;
        if line.starts_with("test result:") || line.starts_with("seed") {
            println!("{line}");
        }
        if line.starts_with("NOT RUN:") {
            not_run.push(line.clone());
        }
        all.push(line);
    }
    let passed = child.wait().map_err(|e| format!("cargo could not be waited for: {e}"))?.success();
    if !passed {
        let mut out = std::io::stdout().lock();
        for line in &all {
            writeln!(out, "{line}").map_err(|e| e.to_string())?;
        }
    }
    Ok(passed)
}

/// Licences and sources of all dependencies, where cargo-deny is installed.
fn deny(not_run: &mut Vec<String>) -> Result<(), String> {
    let installed = Command::new("cargo")
        .args(["deny", "--version"])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .is_ok_and(|s| s.success());
    if !installed {
        not_run.push("NOT RUN: cargo deny (cargo install cargo-deny)".to_owned());
        return Ok(());
    }
    let step = Step {
        name: "dependencies",
        command: &["cargo", "deny", "--offline", "check", "bans", "licenses", "sources"],
        env: &[],
        tests: false,
    };
    run(&step, not_run)
}

/// All tests of memory and of the whole, once for each way of finding written pages.
pub(crate) fn written_pages() -> Result<(), String> {
    for way in ["refused", "log", "checked"] {
        println!("== STEAD_FAULT_LOG={way}");
        let passed = Command::new("cargo")
            .args(["test", "--no-fail-fast", "-p", "stead-memory", "-p", "stead", "--all-targets"])
            .args(["--features", "stead-memory/planted"])
            .env("STEAD_FAULT_LOG", way)
            .current_dir(root())
            .status()
            .map_err(|e| format!("cargo could not be started: {e}"))?
            .success();
        if !passed {
            return Err(format!("tests failed with STEAD_FAULT_LOG={way}"));
        }
    }
    Ok(())
}

/// The heap's tests under AddressSanitizer. The sanitizer is an unstable flag of the compiler, which
/// RUSTC_BOOTSTRAP opens on a stable one.
pub(crate) fn asan() -> Result<(), String> {
    let passed = Command::new("cargo")
        .args(["test", "-p", "stead-heap", "--target", "x86_64-unknown-linux-gnu", "--lib"])
        .args(["basics", "properties", "threads", "damage"].map(|t| ["--test", t]).as_flattened())
        .env("RUSTC_BOOTSTRAP", "1")
        .env("RUSTFLAGS", "-Zsanitizer=address --cfg stead_asan")
        .current_dir(root())
        .status()
        .map_err(|e| format!("cargo could not be started: {e}"))?
        .success();
    if passed { Ok(()) } else { Err("the heap's tests failed under AddressSanitizer".to_owned()) }
}
