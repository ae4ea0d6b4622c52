//! Where no machine has died, nothing is lost and nobody goes back, however many leave (I22).

use super::Checker;
use crate::cluster::{Cluster, Done};

/// The checker; it remembers nothing.
#[derive(Default)]
pub(super) struct OrderlyLeave;

impl Checker for OrderlyLeave {
    fn after_step(&mut self, cluster: &Cluster, done: &Done) -> Result<(), String> {
        if cluster.crashes > 0 {
            return Ok(());
        }
        if let Some(page) = done.lost.first() {
            return Err(format!("{page:?} is lost although nobody died"));
        }
        if let Some(home) = done.lost_home {
            return Err(format!("pages of {home} are lost although nobody died"));
        }
        if done.rounds.went_back {
            return Err(format!("site {} goes back although nobody died", done.site));
        }
        Ok(())
    }
}
