//! `stead doctor`: what this kernel, user and container allow, and what to do about the rest. Read
//! [`run`] first.

use std::path::Path;

use stead::{Options, Store, Support};

use crate::Outcome;

pub(crate) fn run(dir: Option<&Path>) -> Outcome {
    let support = Support::probe();
    for finding in &support.findings {
        println!("{:<9} {}: {}", finding.state.to_string(), finding.name, finding.found);
        println!("          for: {}", finding.needed_for);
        if !finding.advice.is_empty() {
            println!("          do:  {}", finding.advice);
        }
    }
    let mut all_well = true;
    match support.missing() {
        None => println!("stead works here"),
        Some(missing) => {
            all_well = false;
            println!("stead does not work here: {missing}");
        }
    }
    if let Some(dir) = dir {
        let options = Options::new().create(false).interval(None);
        match Store::open_with(dir, &options) {
            Ok(store) => println!("store {} opens: {:?}", dir.display(), store.site().report()),
            Err(error) => {
                all_well = false;
                println!("store {} does not open: {error}", dir.display());
            }
        }
    }
    Ok(all_well)
}
