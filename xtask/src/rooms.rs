//! Holds the manifests and sources against `rooms.toml`: which room may use which, and where unsafe
//! code may stand. Read [`check`] first.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use cargo_metadata::{DependencyKind, MetadataCommand};
use serde::Deserialize;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Rooms {
    room: Vec<Room>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Room {
    package: String,
    floor: u32,
    may_use: Vec<String>,
    /// Rooms that its tests may use besides.
    #[serde(default)]
    tests: Vec<String>,
    #[serde(default)]
    no_std: bool,
    /// Files or folders, relative to the package, that may hold unsafe code.
    #[serde(default)]
    unsafe_in: Vec<PathBuf>,
}

/// Checks every package of the workspace.
///
/// # Errors
/// With all that is out of place, a line each.
pub(crate) fn check(root: &Path) -> Result<(), String> {
    let text =
        fs::read_to_string(root.join("rooms.toml")).map_err(|e| format!("rooms.toml: {e}"))?;
    let rooms: Rooms = toml::from_str(&text).map_err(|e| format!("rooms.toml: {e}"))?;
    let rooms: BTreeMap<String, Room> =
        rooms.room.into_iter().map(|r| (r.package.clone(), r)).collect();
    let metadata = MetadataCommand::new()
        .manifest_path(root.join("Cargo.toml"))
        .no_deps()
        .exec()
        .map_err(|e| format!("cargo metadata: {e}"))?;
    let ours: Vec<String> = metadata.packages.iter().map(|p| p.name.to_string()).collect();
    let mut wrong = Vec::new();
    for package in &metadata.packages {
        let name = package.name.to_string();
        let Some(room) = rooms.get(&name) else {
            wrong.push(format!("{name} has no room in rooms.toml"));
            continue;
        };
        for dependency in package.dependencies.iter().filter(|d| ours.contains(&d.name)) {
            let for_tests = dependency.kind == DependencyKind::Development;
            // A package may name itself, to turn on its own features for its tests.
            let allowed = dependency.name == name
                || room.may_use.contains(&dependency.name)
                || (for_tests && room.tests.contains(&dependency.name));
            if !allowed {
                wrong.push(format!("{name} may not use {}", dependency.name));
            }
            let lower = rooms.get(&dependency.name).is_some_and(|d| d.floor < room.floor);
            if !lower && !for_tests {
                wrong.push(format!(
                    "{name} uses {}, which is not on a lower floor",
                    dependency.name
                ));
            }
        }
        let folder = package.manifest_path.parent().expect("a manifest lies in a folder");
        check_sources(room, folder.as_std_path(), &mut wrong)?;
    }
    if wrong.is_empty() {
        println!("== rooms: {} packages are as rooms.toml says", metadata.packages.len());
        Ok(())
    } else {
        Err(wrong.join("\n       "))
    }
}

fn check_sources(room: &Room, folder: &Path, wrong: &mut Vec<String>) -> Result<(), String> {
    let source = folder.join("src");
    let mut files = Vec::new();
    rust_files(&source, &mut files)?;
    for file in files {
        let text = fs::read_to_string(&file).map_err(|e| format!("{}: {e}", file.display()))?;
        let inside = file.strip_prefix(folder).expect("walked from this folder");
        let allowed = room.unsafe_in.iter().any(|place| inside.starts_with(place));
        if !allowed {
            for (number, line) in text.lines().enumerate() {
                let code = line.split("//").next().unwrap_or_default();
                let words =
                    ["unsafe {", "unsafe fn", "unsafe impl", "unsafe trait", "unsafe extern"];
                if words.iter().any(|w| code.contains(w)) && !code.contains('"') {
                    wrong.push(format!(
                        "{}:{}: unsafe code outside the places that rooms.toml names",
                        file.display(),
                        number + 1
                    ));
                }
            }
        }
        if inside == Path::new("src/lib.rs") && room.no_std && !text.contains("#![no_std]") {
            wrong.push(format!("{} is to be no_std", room.package));
        }
    }
    Ok(())
}

fn rust_files(folder: &Path, into: &mut Vec<PathBuf>) -> Result<(), String> {
    let entries = fs::read_dir(folder).map_err(|e| format!("{}: {e}", folder.display()))?;
    for entry in entries {
        let path = entry.map_err(|e| format!("{}: {e}", folder.display()))?.path();
        if path.is_dir() {
            rust_files(&path, into)?;
        } else if path.extension().is_some_and(|e| e == "rs") {
            into.push(path);
        }
    }
    Ok(())
}
