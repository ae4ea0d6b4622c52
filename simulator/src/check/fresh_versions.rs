//! A version of a page never names two contents, also after going back (I14): whatever is sent with a
//! version is what was sent with it before.

use std::collections::HashMap;

use stead_coherence::{PageKey, Version};

use super::Checker;
use crate::cluster::{Body, Cluster, Done};

/// The checker.
#[derive(Default)]
pub(super) struct FreshVersions {
    /// By page and version, copies and grants apart: a grant names the version to come.
    sent: HashMap<(PageKey, Version, bool), Body>,
}

impl Checker for FreshVersions {
    fn after_step(&mut self, _: &Cluster, done: &Done) -> Result<(), String> {
        for (page, version, granted, body) in &done.rounds.sent {
            let first = self.sent.entry((*page, *version, *granted)).or_insert(*body);
            if first != body {
                return Err(format!(
                    "{version:?} of {page:?} is {body:?} from site {}, and was {first:?}",
                    done.site
                ));
            }
        }
        Ok(())
    }
}
