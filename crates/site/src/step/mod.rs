//! What a site decides, apart from how it is done: deterministic, without threads, clocks, files or
//! pages. The driver feeds events in and performs the effects. Read [`rounds`] first.

pub mod faults;
pub mod rounds;
pub mod search;
