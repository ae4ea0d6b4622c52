//! `stead ls`: the containers of a store, one line each. Read [`run`] first.

use std::path::{Path, PathBuf};

use serde::Serialize;
use stead::ReadStore;

use crate::output::{Outcome, Report, shown};
use crate::quota::in_words;
use crate::units::bytes;

/// The containers, in the order of their names.
#[derive(Serialize)]
pub(crate) struct Listing {
    #[serde(serialize_with = "crate::output::path")]
    dir: PathBuf,
    containers: Vec<Line>,
    /// Names of snapshots, in the order in which they were taken.
    snapshots: Vec<String>,
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
    /// What it may hold; null if nobody has said.
    quota_bytes: Option<u64>,
    created_unix_s: u64,
    /// Why it cannot be opened; null if it can.
    problem: Option<String>,
}

pub(crate) fn run(dir: &Path) -> Outcome<Listing> {
    let store = crate::open(dir)?;
    // The system container is no container of the user's.
    let stats = store.stat().containers.into_iter().skip(1);
    let line = |c: stead::ContainerStat| {
        let (root, problem) = match root_of(&store, &c.name) {
            Ok(root) => (root, None),
            Err(problem) => (None, Some(problem)),
        };
        Line {
            id: c.id.0,
            root,
            address: c.base.to_string(),
            address_bytes: c.address_bytes,
            pages: c.stored_bytes / stead::PAGE_SIZE as u64,
            stored_bytes: c.stored_bytes,
            quota_bytes: c.quota_bytes,
            created_unix_s: c.created_unix_s,
            problem,
            name: c.name,
        }
    };
    let mut containers: Vec<Line> = stats.map(line).collect();
    containers.sort_by(|a, b| a.name.cmp(&b.name));
    let snapshots = store.snapshots().into_iter().map(|snapshot| snapshot.name).collect();
    Ok(Listing { dir: dir.to_owned(), containers, snapshots })
}

fn root_of(store: &ReadStore, name: &str) -> Result<Option<String>, String> {
    let opened = store.site().existing(name).map_err(|error| error.to_string())?;
    let root = opened.root_type().map(|t| t.name);
    // A branch of it is at the same addresses.
    store.site().close(opened);
    Ok(root)
}

impl Report for Listing {
    fn is_well(&self) -> bool {
        self.containers.iter().all(|c| c.problem.is_none())
    }

    fn print(&self) {
        let width = |of: fn(&Line) -> String, heading: &str| {
            let widths = self.containers.iter().map(|c| of(c).chars().count());
            widths.chain([heading.len()]).max().unwrap_or(0)
        };
        fn root(c: &Line) -> String {
            c.root.as_deref().map_or_else(|| "-".to_owned(), shown)
        }
        let (names, roots) = (width(|c| shown(&c.name), "NAME"), width(root, "ROOT"));
        let addresses = width(|c| c.address.clone(), "ADDRESS");
        let has_quotas = self.containers.iter().any(|c| c.quota_bytes.is_some());
        // Only where there are some.
        let quota = |text: String| if has_quotas { format!("  {text:>10}") } else { String::new() };
        crate::say!(
            "{:names$}  {:roots$}  {:addresses$}  {:>9}  {:>10}{}",
            "NAME",
            "ROOT",
            "ADDRESS",
            "PAGES",
            "STORED",
            quota("QUOTA".to_owned())
        );
        for c in &self.containers {
            crate::say!(
                "{:names$}  {:roots$}  {:addresses$}  {:>9}  {:>10}{}",
                shown(&c.name),
                root(c),
                c.address,
                c.pages,
                bytes(c.stored_bytes),
                quota(in_words(c.quota_bytes))
            );
        }
        if !self.snapshots.is_empty() {
            let names: Vec<String> = self.snapshots.iter().map(|name| shown(name)).collect();
            crate::say!("snapshots: {}", names.join(", "));
        }
        for problem in self.containers.iter().filter_map(|c| c.problem.as_ref()) {
            crate::say!("{problem}");
        }
    }
}
