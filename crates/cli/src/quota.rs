//! `stead quota`: what a store may take of the disk, and what its containers may hold. Read [`Quota`] first.

use std::path::{Path, PathBuf};

use clap::Args;
use serde::Serialize;
use stead::{Options, Quotas, SiteStat, Store};

use crate::output::{Failure, Outcome, Report, path, shown};
use crate::units::{bytes, limit, percent};

/// Changing something needs the store for itself; looking does not.
#[derive(Args)]
pub(crate) struct Quota {
    /// Directory of the store
    dir: PathBuf,
    /// How much of the disk the store may take, like 20GiB, or none
    #[arg(long, value_name = "BYTES", value_parser = limit)]
    store: Option<Limit>,
    /// How large its file may become in hundredths of what is live in it, like 300, or none for the usual 200
    #[arg(long, value_name = "HUNDREDTHS", value_parser = percent)]
    space_percent: Option<Percent>,
    /// How much a container may hold, like 500MiB, or none; may be given several times
    #[arg(long, num_args = 2, value_names = ["NAME", "BYTES"])]
    container: Vec<String>,
}

/// So many bytes, or as many as there are.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Limit(pub(crate) Option<u64>);

/// So many hundredths, or as many as usual.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Percent(pub(crate) Option<u32>);

/// What there may be, and what there is.
#[derive(Serialize)]
pub(crate) struct Found {
    #[serde(serialize_with = "path")]
    dir: PathBuf,
    /// Null: as much as the disk gives.
    quota_bytes: Option<u64>,
    file_bytes: u64,
    live_bytes: u64,
    /// How large the file may become in hundredths of what is live.
    space_percent: u32,
    containers: Vec<Line>,
}

#[derive(Serialize)]
struct Line {
    name: String,
    /// Null: as much as its addresses and the store allow.
    quota_bytes: Option<u64>,
    stored_bytes: u64,
}

impl Quota {
    pub(crate) fn run(self) -> Outcome<Found> {
        let containers: Vec<(&str, Limit)> = self
            .container
            .chunks(2)
            .map(|pair| Ok((pair[0].as_str(), limit(&pair[1])?)))
            .collect::<Result<_, String>>()
            .map_err(|why| Failure::usage(&why))?;
        if self.store.is_none() && self.space_percent.is_none() && containers.is_empty() {
            return Ok(Found::new(&self.dir, crate::open(&self.dir)?.stat()));
        }
        let options = Options::new().create(false).interval(None);
        let store = Store::open_with(&self.dir, &options)?;
        let mut quotas = Quotas::new();
        if let Some(Limit(quota)) = self.store {
            quotas = quotas.store(quota);
        }
        if let Some(Percent(percent)) = self.space_percent {
            quotas = quotas.space_percent(percent);
        }
        for (name, Limit(quota)) in containers {
            quotas = quotas.container(name, quota);
        }
        store.set_quotas(&quotas)?;
        Ok(Found::new(&self.dir, store.stat()))
    }
}

impl Found {
    fn new(dir: &Path, stat: SiteStat) -> Found {
        // The system container is no container of the user's.
        let mut containers: Vec<Line> = stat
            .containers
            .into_iter()
            .skip(1)
            .map(|c| Line {
                name: c.name,
                quota_bytes: c.quota_bytes,
                stored_bytes: c.stored_bytes,
            })
            .collect();
        containers.sort_by(|a, b| a.name.cmp(&b.name));
        let s = stat.store;
        Found {
            dir: dir.to_owned(),
            quota_bytes: s.quota_bytes,
            file_bytes: s.file_bytes,
            live_bytes: s.live_bytes,
            space_percent: s.space_percent,
            containers,
        }
    }
}

/// A quota in words.
pub(crate) fn in_words(quota: Option<u64>) -> String {
    quota.map_or_else(|| "none".to_owned(), bytes)
}

/// How large the file may be for what is live, in words.
pub(crate) fn may_have(percent: u32) -> String {
    format!("{percent} hundredths of what is live, or 12 segments beyond it if that is more")
}

impl Report for Found {
    fn is_well(&self) -> bool {
        true
    }

    fn print(&self) {
        let names = self.containers.iter().map(|c| shown(&c.name).chars().count());
        let width = names.chain(["(the store)".len()]).max().unwrap_or(0);
        crate::say!("{:width$}  {:>10}  {:>10}", "NAME", "QUOTA", "TAKEN");
        let (quota, taken) = (in_words(self.quota_bytes), bytes(self.file_bytes));
        crate::say!("{:width$}  {quota:>10}  {taken:>10}", "(the store)");
        for c in &self.containers {
            let (quota, taken) = (in_words(c.quota_bytes), bytes(c.stored_bytes));
            crate::say!("{:width$}  {quota:>10}  {taken:>10}", shown(&c.name));
        }
        let (live, percent) = (bytes(self.live_bytes), self.space_percent);
        crate::say!("{live} are live; the file may have {}", may_have(percent));
    }
}
