//! Containers that lie end nobody's process, and would find whoever believes them: with a bug planted, children end as
//! they must not.

use std::path::Path;
use std::process::Command;

use stead_fuzz::containers::{Forger, Outcome, child, directory, handle, missing};

/// Inputs that are tried until a planted bug shows.
const TRIES: u64 = 400;

#[test]
fn helper_that_handles() {
    let Some(dir) = std::env::var_os("STEAD_FORGED") else { return };
    match std::env::var("STEAD_BUG").as_deref() {
        Ok("directory") => {
            stead_site::planted::set(Some(stead_site::planted::Bug::DirectoryBelieved));
        }
        Ok("table") => stead_heap::planted::set(Some(stead_heap::planted::Bug::TableBelieved)),
        _ => {}
    }
    let seed = std::env::var("STEAD_SEED").unwrap().parse().unwrap();
    child(Path::new(&dir), seed);
}

fn handled(forger: &Forger, parent: &Path, seed: u64, bug: &str) -> Result<Outcome, String> {
    let dir = parent.join("forged");
    forger.forge(seed, &dir).unwrap();
    let mut helper = Command::new(std::env::current_exe().unwrap());
    helper.args(["--exact", "helper_that_handles", "--nocapture"]);
    helper.env("STEAD_FORGED", &dir).env("STEAD_SEED", seed.to_string()).env("STEAD_BUG", bug);
    handle(&mut helper)
}

/// A directory for stores, and the forger in it; `None` where there can be none.
fn forger() -> Option<(tempfile::TempDir, Forger)> {
    if let Some(missing) = missing() {
        println!("NOT RUN: {missing}");
        return None;
    }
    let parent = directory().unwrap();
    let forger = Forger::new(parent.path()).unwrap();
    Some((parent, forger))
}

fn is_found(bug: &str) -> bool {
    let Some((parent, forger)) = forger() else { return true };
    let found = (0..TRIES)
        .find_map(|seed| handled(&forger, parent.path(), seed, bug).err().map(|what| (seed, what)));
    println!("{bug} believed: {found:?}");
    found.is_some()
}

#[test]
fn whatever_containers_say_processes_end_by_themselves() {
    let Some((parent, forger)) = forger() else { return };
    let first = fastrand::u64(..) >> 16;
    let mut refused = 0;
    for seed in first..first + 60 {
        let outcome = handled(&forger, parent.path(), seed, "none");
        refused += u64::from(
            outcome.unwrap_or_else(|what| panic!("seed {seed}: {what}")) != Outcome::Walked,
        );
    }
    assert!(refused > 0, "seeds from {first} on");
}

#[test]
fn who_believes_the_directory_is_found_out() {
    assert!(is_found("directory"));
}

#[test]
fn who_believes_tables_is_found_out() {
    assert!(is_found("table"));
}
