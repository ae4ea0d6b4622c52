//! Forged inputs for whatever reads what a disk may hold. Stores, blocks and backups are handled in this process
//! ([`stead_store::sim::forge`]); containers, whose pages become memory, in a child for each input. Read
//! [`containers`] first.
#![forbid(unsafe_code)]

pub mod containers;
