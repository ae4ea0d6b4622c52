//! `stead doctor`: what this kernel, user and container allow, and what to do about the rest. Read
//! [`run`] first.

use std::path::Path;

use stead::Support;

use crate::Outcome;

pub(crate) fn run(dir: Option<&Path>) -> Outcome {
    let support = Support::probe();
    for finding in &support.findings {
        crate::say!("{:<9} {}: {}", finding.state.to_string(), finding.name, finding.found);
        crate::say!("          for: {}", finding.needed_for);
        if !finding.advice.is_empty() {
            crate::say!("          do:  {}", finding.advice);
        }
    }
    let mut all_well = true;
    match support.missing() {
        None => crate::say!("stead works here"),
        Some(missing) => {
            all_well = false;
            crate::say!("stead does not work here: {missing}");
        }
    }
    if let Some(dir) = dir {
        match crate::open(dir) {
            Ok(store) => {
                let report = store.site().report();
                crate::say!(
                    "store {} opens: {} stabilisations found in the log behind the last root, {} bytes read",
                    dir.display(),
                    report.records_replayed,
                    report.bytes_read
                );
                if let Some(number) = report.unfinished {
                    crate::say!(
                        "  stabilisation {number} was under way when its process ended, and is not in it"
                    );
                }
            }
            Err(error) => {
                all_well = false;
                crate::say!("store {} does not open: {error}", dir.display());
            }
        }
    }
    Ok(all_well)
}
