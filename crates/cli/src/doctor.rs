//! `stead doctor`: what this kernel, user and container allow, and what to do about the rest. Read
//! [`run`] first.

use std::path::{Path, PathBuf};

use serde::Serialize;
use stead::Support;

use crate::output::{FINE, Failure, Outcome, Report, WRONG};

/// What was found.
#[derive(Serialize)]
pub(crate) struct Findings {
    /// What is missing without which nothing works.
    missing: Option<String>,
    findings: Vec<Finding>,
    store: Option<Opening>,
}

#[derive(Serialize)]
struct Finding {
    state: String,
    name: String,
    found: String,
    needed_for: String,
    advice: String,
}

/// How a store opened.
#[derive(Serialize)]
struct Opening {
    #[serde(serialize_with = "crate::output::path")]
    dir: PathBuf,
    /// Why it did not open; null if it did.
    error: Option<String>,
    /// In which way it did not.
    kind: Option<&'static str>,
    /// What any other command would end with.
    #[serde(skip)]
    exit_code: u8,
    records_replayed: u64,
    bytes_read: u64,
    unfinished: Option<u64>,
    /// How its log is read and written.
    medium: Option<String>,
}

pub(crate) fn run(dir: Option<&Path>) -> Outcome<Findings> {
    let support = Support::probe();
    let findings = support.findings.iter().map(|f| Finding {
        state: f.state.to_string(),
        name: f.name.to_string(),
        found: f.found.to_string(),
        needed_for: f.needed_for.to_string(),
        advice: f.advice.to_string(),
    });
    Ok(Findings {
        missing: support.missing().map(|missing| missing.to_string()),
        findings: findings.collect(),
        store: dir.map(opening),
    })
}

fn opening(dir: &Path) -> Opening {
    let mut opening = Opening {
        dir: dir.to_owned(),
        error: None,
        kind: None,
        exit_code: 0,
        records_replayed: 0,
        bytes_read: 0,
        unfinished: None,
        medium: None,
    };
    match crate::open(dir) {
        Ok(store) => {
            let report = store.site().report();
            opening.records_replayed = report.records_replayed;
            opening.bytes_read = report.bytes_read;
            opening.unfinished = report.unfinished;
            opening.medium = Some(store.stat().medium);
        }
        Err(error) => {
            let failure = Failure::from(error);
            opening.error = Some(failure.to_string());
            opening.kind = Some(failure.kind());
            opening.exit_code = failure.exit_code();
        }
    }
    opening
}

impl Report for Findings {
    fn is_well(&self) -> bool {
        self.missing.is_none() && self.store.as_ref().is_none_or(|s| s.error.is_none())
    }

    fn exit_code(&self) -> u8 {
        match (&self.missing, &self.store) {
            (Some(_), _) => WRONG,
            (None, Some(store)) => store.exit_code,
            (None, None) => FINE,
        }
    }

    fn print(&self) {
        for finding in &self.findings {
            crate::say!("{:<9} {}: {}", finding.state, finding.name, finding.found);
            crate::say!("          for: {}", finding.needed_for);
            if !finding.advice.is_empty() {
                crate::say!("          do:  {}", finding.advice);
            }
        }
        match &self.missing {
            None => crate::say!("stead works here"),
            Some(missing) => crate::say!("stead does not work here: {missing}"),
        }
        let Some(store) = &self.store else { return };
        if let Some(error) = &store.error {
            crate::say!("store {} does not open: {error}", store.dir.display());
            return;
        }
        crate::say!(
            "store {} opens: {} stabilisations found in the log behind the last root, {} bytes read",
            store.dir.display(),
            store.records_replayed,
            store.bytes_read
        );
        if let Some(medium) = &store.medium {
            crate::say!("  its log is written: {medium}");
        }
        if let Some(number) = store.unfinished {
            crate::say!(
                "  stabilisation {number} was under way when its process ended, and is not in it"
            );
        }
    }
}
