//! Checkers, run after every step of a simulated cluster; one file each. Read [`Checker`] first.

mod bounded_queues;
mod fair_locks;
mod fresh_versions;
mod last_write_read;
mod no_lost_page;
mod no_stuck_request;
mod orderly_leave;
mod single_writer;
mod whole_sections;

use crate::cluster::{Cluster, Done};

/// Watches a cluster for one kind of mistake.
pub trait Checker {
    /// Looks at what a step did.
    ///
    /// # Errors
    /// What is wrong, in words.
    fn after_step(&mut self, cluster: &Cluster, done: &Done) -> Result<(), String>;

    /// Is told before a machine dies.
    fn before_crash(&mut self, _cluster: &Cluster, _site: usize) {}

    /// Looks at a cluster that has come to rest.
    ///
    /// # Errors
    /// What is wrong, in words.
    fn at_rest(&mut self, _cluster: &Cluster) -> Result<(), String> {
        Ok(())
    }
}

/// One of each.
#[must_use]
pub fn all() -> Vec<Box<dyn Checker>> {
    vec![
        Box::<single_writer::SingleWriter>::default(),
        Box::<last_write_read::LastWriteRead>::default(),
        Box::<no_lost_page::NoLostPage>::default(),
        Box::<no_stuck_request::NoStuckRequest>::default(),
        Box::<fair_locks::FairLocks>::default(),
        Box::<bounded_queues::BoundedQueues>::default(),
        Box::<fresh_versions::FreshVersions>::default(),
        Box::<whole_sections::WholeSections>::default(),
        Box::<orderly_leave::OrderlyLeave>::default(),
    ]
}
