//! Running the command, and stores to run it on.
#![allow(dead_code, reason = "each test file uses some of it")]

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};

use serde_json::Value;
use stead::{Container, Persist, Store, Vec};
use tempfile::TempDir;

/// Where keys and exit codes are documented.
pub(crate) const DOCUMENT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../docs/command.md");

#[derive(Persist)]
#[repr(C)]
pub(crate) struct Bank<'s> {
    pub(crate) accounts: Vec<'s, stead::Mutex<'s, u64>>,
}

pub(crate) fn bank_of(store: &Store) -> Container<Bank<'static>> {
    store.container("bank", |tx| Ok(Bank { accounts: Vec::new(tx) })).unwrap()
}

/// Where a store is to be: a directory that is not there, in one that goes when the first is dropped.
pub(crate) fn place() -> (TempDir, PathBuf) {
    let temp = tempfile::tempdir().unwrap();
    let dir = temp.path().join("store");
    (temp, dir)
}

/// A store with a bank in it, as [`place`] and [`bank`] make it, with its directory as an argument.
pub(crate) fn new_bank(accounts: u64) -> (TempDir, String) {
    let (temp, dir) = place();
    bank(&dir, accounts);
    (temp, dir.into_os_string().into_string().unwrap())
}

/// Makes a store with a bank in it.
pub(crate) fn bank(dir: &Path, accounts: u64) {
    let store = stead::open(dir).unwrap();
    bank_of(&store)
        .exclusive(|root, tx| -> stead::Result<_> {
            for i in 0..accounts {
                root.accounts.push(tx, stead::Mutex::new(i))?;
            }
            Ok(())
        })
        .unwrap();
}

/// Lets one test at a time have stores open in this process: their addresses are random, and two may want the
/// same. `None`, and said so, where stead does not work at all.
pub(crate) fn alone() -> Option<MutexGuard<'static, ()>> {
    static ALONE: Mutex<()> = Mutex::new(());
    match stead::Support::probe().missing() {
        // A test that failed has closed its stores as well.
        None => Some(ALONE.lock().unwrap_or_else(PoisonError::into_inner)),
        Some(missing) => {
            println!("NOT RUN: {missing}");
            None
        }
    }
}

/// How a command ended.
#[derive(Debug)]
pub(crate) struct Ran {
    pub(crate) code: i32,
    pub(crate) out: String,
    pub(crate) err: String,
}

/// Runs the command.
pub(crate) fn run(args: &[&str], more: &[&str]) -> Ran {
    let ended = Command::new(env!("CARGO_BIN_EXE_stead"))
        .args(args)
        .args(more)
        .stdin(Stdio::null())
        .output()
        .unwrap();
    Ran {
        code: ended.status.code().unwrap_or_else(|| panic!("{args:?}: {ended:?}")),
        out: String::from_utf8(ended.stdout).unwrap(),
        err: String::from_utf8(ended.stderr).unwrap(),
    }
}

impl Ran {
    /// The one JSON object on standard output.
    pub(crate) fn json(&self) -> Value {
        assert_eq!(self.out.lines().count(), 1, "one line: {self:?}");
        serde_json::from_str(&self.out).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }
}

/// Asserts that every key of an object is documented: where all objects are, or with its command.
pub(crate) fn keys_are_documented(command: &str, json: &Value) {
    let document = std::fs::read_to_string(DOCUMENT).unwrap();
    let (general, commands) = document.split_once("\n**").unwrap();
    let commands = format!("\n**{commands}");
    let mark = format!("\n**{command}**");
    let own = commands.split(&mark).nth(1).unwrap_or_else(|| panic!("{command} is not documented"));
    let own = own.split("\n**").next().unwrap();
    each_key(json, &mut |key| {
        let key = format!("`{key}`");
        assert!(general.contains(&key) || own.contains(&key), "{command}: {key} is not documented");
    });
}

fn each_key(json: &Value, f: &mut impl FnMut(&str)) {
    match json {
        Value::Object(fields) => {
            for (key, value) in fields {
                f(key);
                each_key(value, f);
            }
        }
        Value::Array(elements) => elements.iter().for_each(|element| each_key(element, f)),
        _ => {}
    }
}
