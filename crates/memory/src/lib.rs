//! Frames at fixed addresses, page faults answered in the program, dirty pages found, and the gate
//! that sections pass (catalogue A1, A2, A7, B5, B8, D1).
//!
//! Nothing here knows what a page means or where it is stored: the caller serves the faults that
//! [`Space::poll`] hands out, and copies the pages that [`Cluster::scan_dirty`] names. Unsafe code
//! lies in `sys::linux` alone; `sys::sim` is its simulated twin. Read [`Space`] first, then
//! [`Cluster`], then [`gate`].

mod cluster;
mod counters;
mod error;
mod faults;
pub mod gate;
mod named;
#[cfg(feature = "planted")]
pub mod planted;
mod residency;
mod shadow;
mod space;
mod support;
pub mod sys;

pub use cluster::{Cluster, Installed, Plan, Reason, Scan};
pub use counters::CounterValues;
pub use error::{FrameError, MapError, ReserveError, ScanError};
pub use faults::{ClusterKey, Fault, FaultBatch, FaultKind};
pub use gate::{
    CloseError, Closed, EnterError, ExclusiveEntry, Gate, Held, Holder, ReadEntry, WriteEntry,
    close_writers, in_section,
};
pub use shadow::Shadow;
pub use space::{LogUse, Reading, Reservation, Space};
pub use support::{Allowed, Finding, State, Support, Unsupported};
pub use sys::linux::last_words;
pub use sys::{Linux, Mode, Sys};
