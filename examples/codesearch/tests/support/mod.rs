//! What the tests share: a tree full of nasty files, and running codesearch and grep over it.

#![allow(dead_code, reason = "each test file uses some of it")]

use std::ffi::{OsStr, OsString};
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use tempfile::TempDir;

/// A directory with a store and trees to search in it.
pub(crate) struct Bench {
    dir: TempDir,
}

impl Bench {
    pub(crate) fn new() -> Bench {
        Bench { dir: tempfile::tempdir().unwrap() }
    }

    pub(crate) fn path(&self) -> &Path {
        self.dir.path()
    }

    /// Makes a file and the directories above it.
    pub(crate) fn file(&self, path: impl AsRef<Path>, content: impl AsRef<[u8]>) -> PathBuf {
        let path = self.path().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, content).unwrap();
        path
    }

    pub(crate) fn store(&self) -> PathBuf {
        self.path().join("store")
    }

    /// codesearch with this bench's store, to be run in its directory.
    pub(crate) fn codesearch(&self) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_codesearch"));
        command.arg("--store").arg(self.store()).current_dir(self.path());
        command.env_remove("CARGO_HOME").env("HOME", self.path()).env_remove("XDG_CACHE_HOME");
        command
    }

    /// Runs codesearch with these arguments.
    pub(crate) fn search(&self, args: impl IntoIterator<Item = impl AsRef<OsStr>>) -> Output {
        self.codesearch().args(args).output().unwrap()
    }

    /// Runs `grep -rnIE` with these arguments in this bench's directory.
    pub(crate) fn grep(&self, args: impl IntoIterator<Item = impl AsRef<OsStr>>) -> Output {
        let mut command = Command::new("grep");
        command.arg("-rnIE").args(args).env("LC_ALL", "C").current_dir(self.path());
        command.output().unwrap()
    }
}

/// Whether this system has what a store needs; says so if not.
pub(crate) fn has_stead() -> bool {
    let missing = stead::Support::probe().missing();
    if let Some(missing) = &missing {
        eprintln!("NOT RUN: {missing}");
    }
    missing.is_none()
}

/// Whether there is a GNU grep to compare with; says so if not.
pub(crate) fn has_grep() -> bool {
    let version = Command::new("grep").arg("--version").output();
    let is_gnu = version.is_ok_and(|output| output.stdout.starts_with(b"grep (GNU grep)"));
    if !is_gnu {
        eprintln!("NOT RUN: there is no GNU grep to compare with");
    }
    is_gnu
}

/// The lines of an output, sorted by their bytes.
pub(crate) fn sorted(output: &[u8]) -> Vec<&[u8]> {
    let mut lines: Vec<&[u8]> = output.split_inclusive(|byte| *byte == b'\n').collect();
    lines.sort_unstable();
    lines
}

pub(crate) fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// The number that `--stats` says in front of `unit` on the line called `name`.
pub(crate) fn figure(output: &Output, name: &str, unit: &str) -> u64 {
    let stats = text(&output.stderr);
    let line = stats
        .lines()
        .find(|line| line.split("  ").next() == Some(name))
        .unwrap_or_else(|| panic!("no line about {name:?} in:\n{stats}"));
    let words: Vec<&str> = line.split([' ', ',', ';']).filter(|word| !word.is_empty()).collect();
    let at = words.iter().position(|word| *word == unit).expect("the unit stands in the line");
    words[at - 1].parse().expect("a number stands in front of the unit")
}

/// Makes a tree with long lines. They stand apart: grep keeps the larger buffer that they call for,
/// and from then on looks for zero bytes in larger pieces.
pub(crate) fn long_lines(bench: &Bench, root: &str) {
    let long = [b"x".repeat(300_000), b" foo 1234\n".to_vec()].concat();
    bench.file(Path::new(root).join("once"), &long);
    bench.file(Path::new(root).join("again"), long.repeat(3));
}

/// Makes a tree of files of every kind that grep and codesearch could disagree about.
pub(crate) fn nasty_tree(bench: &Bench, root: &str) {
    let at = |name: &str| Path::new(root).join(name);
    let source = "use std::fmt;\n\n/// A thing.\npub unsafe fn do_it(x: u32) -> u32 {\n    \
                  let y = x + 42; // TODO: why?\n\tif y == 0x2A { return 1_000; }\n    \
                  println!(\"{} $100 ^caret [brackets] a.b a*b a\\\\b\", y);\n}\n\n\
                  #[derive(Debug, Clone)]\nstruct Foo<'a, T> { name: &'a str, value: Option<T> }\n\
                  impl<'a, T> Foo<'a, T> {}\nUNSAFE Fn unsafe  fn unsafefn\n";
    bench.file(at("src/lib.rs"), source);
    bench.file(at("src/crlf.rs"), source.replace('\n', "\r\n"));
    bench.file(at("src/open_end.rs"), source.trim_end());
    bench.file(at("src-old/lib.rs"), source.to_uppercase());
    bench.file(at(".hidden/.gitignore"), "*\nignored\n");
    bench.file(at(".hidden/ignored"), "unsafe fn ignored()\n");
    bench.file(at("empty"), "");
    bench.file(at("one_line_feed"), "\n");
    bench.file(at("blank_lines"), "\n\n   \n\t\n\r\nx\n\n");
    bench.file(at("one_byte"), "a");
    bench.file(at("spaces and:colons: 1"), "foo bar\nunsafe fn a:b:c\n");
    bench.file(at("-dash"), "foo\n--foo\n");
    bench.file(at("line\nfeed"), "foo in a strange place\n");
    bench.file(Path::new(root).join(OsStr::from_bytes(b"latin\xe9/\xff.c")), "caf\u{e9}\nfoo\n");
    bench.file(at("latin1"), b"caf\xe9 foo\n\xff\xfe\nna\xefve unsafe fn\n");
    bench.file(at("utf8"), "caf\u{e9} \u{4e2d}\u{6587} foo \u{1f600}\nfoo\u{a0}bar\n");
    bench.file(at("control"), b"a\x01b\x7f\x0b\x0cfoo\nfoo\x1b[0m\n");

    // Binary data: at once, in the first piece that grep reads, and later.
    bench.file(at("bin/zero_first"), b"\0foo\nfoo\n");
    bench.file(at("bin/zero_last"), b"foo\nunsafe fn x\n\0");
    let lines = |bytes: usize| b"some foo text..\n".repeat(bytes / 16);
    for (name, zero_at) in [
        ("in_first_piece", 90_000),
        ("end_of_first_piece", 96 * 1024 - 1),
        ("start_of_second_piece", 96 * 1024),
        ("in_second_piece", 100_007),
    ] {
        let mut content = lines(130 * 1024);
        content[zero_at] = 0;
        bench.file(at("bin").join(name), content);
    }
    let hole = bench.file(at("bin/hole"), lines(120 * 1024));
    fs::File::options().write(true).open(hole).unwrap().set_len(1 << 20).unwrap();

    // More lines than fit into a buffer, and a long way down.
    bench.file(at("long/lines"), "abc def\nunsafe fn   \n".repeat(9000));
    let deep: OsString = "d/".repeat(40).into();
    bench.file(Path::new(root).join(deep).join("file"), "deep foo\n");

    // What is no file, or is reached by a link.
    let root = bench.path().join(root);
    std::os::unix::fs::symlink("src/lib.rs", root.join("link_to_file")).unwrap();
    std::os::unix::fs::symlink("src", root.join("link_to_dir")).unwrap();
    std::os::unix::fs::symlink("nowhere", root.join("dangling")).unwrap();
    std::os::unix::fs::symlink("..", root.join("src/up")).unwrap();
    rustix::fs::mknodat(
        rustix::fs::CWD,
        root.join("pipe"),
        rustix::fs::FileType::Fifo,
        rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR,
        0,
    )
    .unwrap();
    fs::create_dir(root.join("empty_dir")).unwrap();
}
