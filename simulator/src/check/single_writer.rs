//! One site may store, or many may load (I11), and one site owns a page (I13).

use stead_coherence::Access;

use super::Checker;
use crate::cluster::{Cluster, Done};

/// The checker; it remembers nothing.
#[derive(Default)]
pub(super) struct SingleWriter;

impl Checker for SingleWriter {
    fn after_step(&mut self, cluster: &Cluster, done: &Done) -> Result<(), String> {
        for page in &done.pages {
            let (mut readers, mut writers, mut owners) = (0, 0, 0);
            for node in &cluster.nodes {
                match node.frames.get(page).map(|f| f.access) {
                    Some(Access::Write) => writers += 1,
                    Some(Access::Read) => readers += 1,
                    _ => {}
                }
                owners += usize::from(node.site.as_ref().is_some_and(|s| s.page(*page).owner));
            }
            if writers > 1 || writers == 1 && readers > 0 {
                return Err(format!("page {page:?}: {writers} may store and {readers} may load"));
            }
            // A site that has not heard of a view yet may think that it is the home of a page.
            if owners > 1 && cluster.now > cluster.disturbed_at + 1_000_000 {
                return Err(format!("page {page:?} has {owners} owners"));
            }
        }
        Ok(())
    }
}
