//! Whole clusters from one seed: sites of the shipped type, their memory, their programs, and a
//! network that delays, loses, doubles, reorders and cuts. Time and chance are numbers here, so a
//! seed that fails is a bug report. Read [`cluster::Cluster`] first, then [`protocol::run`].
#![forbid(unsafe_code)]

pub mod check;
pub mod cluster;
pub mod counts;
pub mod growth;
pub mod litmus;
pub mod program;
pub mod protocol;
pub mod store;
mod svg;
