//! `stead ls`: the containers of a store, one line each. Read [`run`] first.

use std::path::{Path, PathBuf};

use serde::Serialize;
use stead::ReadStore;

use crate::output::{Outcome, Report};
use crate::units::bytes;

/// The containers, in the order of their names.
#[derive(Serialize)]
pub(crate) struct Listing {
    dir: PathBuf,
    containers: Vec<Line>,
}

#[derive(Serialize)]
struct Line {
    name: String,
    id: u32,
    /// The name of its root's type; null while it has no root, or if that cannot be read.
    root: Option<String>,
    address: String,
    address_bytes: u64,
    pages: u64,
    stored_bytes: u64,
    created_unix_s: u64,
    /// Why it cannot be opened; null if it can.
    problem: Option<String>,
}

pub(crate) fn run(dir: &Path) -> Outcome<Listing> {
    let mut store = crate::open(dir)?;
    let mut containers = Vec::new();
    // The system container is no container of the user's.
    let all: Vec<_> = store.stat().containers.into_iter().skip(1).collect();
    for some in all.chunks(crate::AT_A_TIME) {
        for c in some {
            let (root, problem) = match root_of(&store, &c.name) {
                Ok(root) => (root, None),
                Err(problem) => (None, Some(problem)),
            };
            containers.push(Line {
                name: c.name.clone(),
                id: c.id.0,
                root,
                address: c.base.to_string(),
                address_bytes: c.address_bytes,
                pages: c.stored_bytes / stead::PAGE_SIZE as u64,
                stored_bytes: c.stored_bytes,
                created_unix_s: c.created_unix_s,
                problem,
            });
        }
        if all.len() > crate::AT_A_TIME {
            drop(store);
            store = crate::open(dir)?;
        }
    }
    containers.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(Listing { dir: dir.to_owned(), containers })
}

fn root_of(store: &ReadStore, name: &str) -> Result<Option<String>, String> {
    let opened = store.site().existing(name).map_err(|error| error.to_string())?;
    Ok(opened.root_type().map(|t| t.name))
}

impl Report for Listing {
    fn is_well(&self) -> bool {
        self.containers.iter().all(|c| c.problem.is_none())
    }

    fn print(&self) {
        let width = |of: fn(&Line) -> &str, heading: &str| {
            let widths = self.containers.iter().map(|c| of(c).chars().count());
            widths.chain([heading.len()]).max().unwrap_or(0)
        };
        fn root(c: &Line) -> &str {
            c.root.as_deref().unwrap_or("-")
        }
        let (names, roots) = (width(|c| &c.name, "NAME"), width(root, "ROOT"));
        let addresses = width(|c| &c.address, "ADDRESS");
        crate::say!(
            "{:names$}  {:roots$}  {:addresses$}  {:>9}  {:>10}",
            "NAME",
            "ROOT",
            "ADDRESS",
            "PAGES",
            "STORED"
        );
        for c in &self.containers {
            crate::say!(
                "{:names$}  {:roots$}  {:addresses$}  {:>9}  {:>10}",
                c.name,
                root(c),
                c.address,
                c.pages,
                bytes(c.stored_bytes)
            );
        }
        for problem in self.containers.iter().filter_map(|c| c.problem.as_ref()) {
            crate::say!("{problem}");
        }
    }
}
