//! The commands of the README, run in its order on a store with a container called as there.

mod common;

use std::fs;
use std::process::Command;

use common::{Bank, alone};
use stead::Vec;

/// The lines of the README that begin with the command.
fn lines() -> std::vec::Vec<String> {
    let readme =
        fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/../../README.md")).unwrap();
    let blocks = readme.split("```sh\n").skip(1).map(|block| block.split("```").next().unwrap());
    let lines = blocks.flat_map(str::lines).map(|line| line.split(" # ").next().unwrap().trim());
    let commands = lines.filter_map(|line| {
        let line = line.replace("cargo run --release -p stead-cli --", "$stead");
        line.starts_with("$stead").then_some(line)
    });
    commands.collect()
}

#[test]
fn the_commands_of_the_readme_do_what_they_say() {
    let Some(_alone) = alone() else { return };
    let temp = tempfile::tempdir().unwrap();
    {
        let store = stead::open(temp.path().join("DIR")).unwrap();
        store.container::<Bank>("NAME", |tx| Ok(Bank { accounts: Vec::new(tx) })).unwrap();
    }
    let lines = lines();
    for line in &lines {
        // A hundred kills are for people.
        let line = line.replace("stead demo", "stead demo --kills 2");
        let ran = Command::new("bash")
            .args([
                "-c",
                &format!("set -eo pipefail; stead={}; {line}", env!("CARGO_BIN_EXE_stead")),
            ])
            .current_dir(temp.path())
            .output()
            .unwrap();
        assert!(ran.status.success(), "{line}: {ran:?}");
    }
    assert!(lines.len() >= 16, "{lines:?}");
    for made in ["NEW_DIR", "COPY"] {
        let store = stead::open_read_only(temp.path().join(made)).unwrap();
        assert_eq!(store.names(), ["NAME", "NEW_NAME"]);
        assert_eq!(store.snapshots(), [], "a restored store has none");
    }
}
