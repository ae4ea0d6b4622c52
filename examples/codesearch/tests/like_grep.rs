//! The sorted output is byte for byte that of `LC_ALL=C grep -rnIE`, sorted, for fifty patterns of
//! the common subset, over a tree of nasty files and over sources that cargo downloaded.

use std::env;
use std::fs;
use std::path::PathBuf;

use support::{Bench, has_grep, has_stead, long_lines, nasty_tree, sorted, text};

mod support;

/// One for each thing that the common subset allows.
const PATTERNS: [&str; 50] = [
    // Plain text.
    "foo",
    "unsafe fn",
    "TODO: why",
    "e",
    "",
    "caf\u{e9}",
    "no such text anywhere, not even here in the source",
    // Any character.
    "a.b",
    "f..",
    ".",
    ".*",
    "unsafe.*fn",
    // Escaped punctuation.
    r"a\.b",
    r"a\*b",
    r"\$100",
    r"\^caret",
    r"\[brackets\]",
    r"\{\}",
    r"\(\)",
    r"a\\\\b",
    // Sets and ranges.
    "[abc]foo|foo[ -]",
    "0x[0-9A-F]+",
    "[^a-zA-Z0-9 ]foo",
    "[^x]$",
    "[.*]b",
    "[]x]",
    "[^]a-z]",
    // Named classes.
    "^[[:space:]]+[[:alpha:]]",
    "[[:upper:]]{2}[[:lower:]]",
    "[[:digit:]_]{5}",
    "[[:punct:]]{3}",
    "[[:xdigit:]]{8}",
    "[[:cntrl:]]",
    // Repetition.
    "x*",
    "fo+",
    "unsafe +fn",
    "colou?r|calls?",
    "o{2}",
    "[0-9]{2,}",
    "[a-z]{3,4}[(]",
    "(ab|cd)+",
    // Alternation and groups.
    "unsafe|TODO|derive",
    "(un)?safe (fn|impl|trait) [a-z_]+",
    "((a|b)c|(d|e)f)g",
    // Anchors and words.
    "^use ",
    ";$",
    "^$",
    "^(pub|impl).*[{;]$",
    r"\bfn\b",
    r"\<un[[:alpha:]]*\>.\w+\W",
];

fn assert_same(bench: &Bench, pattern: &str, paths: &[PathBuf]) -> usize {
    let mut args: Vec<PathBuf> = vec!["--".into(), pattern.into()];
    args.extend(paths.iter().cloned());
    let ours = bench.search(&args);
    let theirs = bench.grep(&args);
    assert_eq!(text(&ours.stderr), "", "{pattern:?}");
    assert_eq!(text(&theirs.stderr), "", "{pattern:?} is not in the common subset");
    let (our_lines, their_lines) = (sorted(&ours.stdout), sorted(&theirs.stdout));
    for (ours, theirs) in our_lines.iter().zip(&their_lines) {
        assert_eq!(text(ours), text(theirs), "{pattern:?} in {paths:?}");
    }
    assert_eq!(our_lines.len(), their_lines.len(), "{pattern:?} in {paths:?}");
    assert!(our_lines == their_lines, "{pattern:?} in {paths:?}");
    assert_eq!(ours.status.code(), theirs.status.code(), "{pattern:?} in {paths:?}");
    our_lines.len()
}

#[test]
fn over_nasty_files() {
    if !has_stead() || !has_grep() {
        return;
    }
    let bench = Bench::new();
    nasty_tree(&bench, "tree");
    let lines: usize =
        PATTERNS.iter().map(|pattern| assert_same(&bench, pattern, &["tree".into()])).sum();
    assert!(lines > 10_000, "{lines}");

    long_lines(&bench, "long");
    for pattern in PATTERNS {
        assert_same(&bench, pattern, &["long".into()]);
    }

    // However the user spells a directory, and whatever else stands beside it.
    for paths in [
        &["tree/"][..],
        &["tree//"],
        &["./tree/../tree"],
        &["."],
        &["tree/src", "tree/long"],
        &["tree", "tree"],
        &["tree/link_to_dir"],
        &["tree/link_to_file"],
        &["tree/src/lib.rs"],
        &["tree/src/lib.rs", "tree/latin1"],
        &["tree/src/lib.rs", "tree/.hidden"],
        &["tree/bin/zero_last"],
        &["tree/empty", "tree/empty_dir"],
    ] {
        let paths: Vec<PathBuf> = paths.iter().map(PathBuf::from).collect();
        for pattern in ["foo", "unsafe fn", "^$"] {
            // The store lies in "." and is no part of it.
            if paths == [PathBuf::from(".")] {
                let moved = bench.path().join("store");
                let aside = tempfile::tempdir().unwrap();
                let output = bench.search([pattern, "."]);
                fs::rename(&moved, aside.path().join("store")).unwrap();
                let theirs = bench.grep([pattern, "."]);
                fs::rename(aside.path().join("store"), &moved).unwrap();
                assert_eq!(sorted(&output.stdout), sorted(&theirs.stdout));
                continue;
            }
            assert_same(&bench, pattern, &paths);
        }
    }
}

#[test]
fn over_real_sources() {
    if !has_stead() || !has_grep() {
        return;
    }
    let Some(crates) = some_crates() else {
        eprintln!("NOT RUN: cargo keeps no sources here");
        return;
    };
    let bench = Bench::new();
    let lines: usize = PATTERNS.iter().map(|pattern| assert_same(&bench, pattern, &crates)).sum();
    assert!(lines > 10_000, "{lines}");
}

/// A few megabytes of sources that cargo downloaded: crates that this program depends on.
fn some_crates() -> Option<Vec<PathBuf>> {
    let cargo = env::var_os("CARGO_HOME")
        .map(PathBuf::from)
        .or_else(|| env::home_dir().map(|home| home.join(".cargo")))?;
    let mut crates: Vec<PathBuf> = fs::read_dir(cargo.join("registry/src"))
        .ok()?
        .flatten()
        .filter_map(|registry| fs::read_dir(registry.path()).ok())
        .flatten()
        .flatten()
        .map(|entry| entry.path())
        .collect();
    crates.sort();
    let wanted = ["regex-syntax-", "memchr-", "syn-", "bitflags-", "clap_builder-"];
    crates.retain(|path| {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        wanted.iter().any(|wanted| name.starts_with(wanted))
    });
    crates.truncate(6);
    (!crates.is_empty()).then_some(crates)
}
