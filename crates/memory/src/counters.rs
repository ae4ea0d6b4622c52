//! Counts of what a space has done, readable while it runs (catalogue A7). Times are absent. Read
//! [`CounterValues`] first.

use std::sync::atomic::{AtomicU64, Ordering};

macro_rules! counters {
    ($($(#[$doc:meta])* $name:ident,)*) => {
        /// Counts since the space was opened.
        #[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
        pub struct CounterValues {
            $($(#[$doc])* pub $name: u64,)*
        }

        /// The running counts of a space.
        #[derive(Debug, Default)]
        pub(crate) struct Counters {
            $(pub(crate) $name: AtomicU64,)*
        }

        impl Counters {
            pub(crate) fn values(&self) -> CounterValues {
                CounterValues { $($name: self.$name.load(Ordering::Relaxed),)* }
            }
        }
    };
}

counters! {
    /// Faults on pages that were not in memory.
    faults_missing,
    /// Faults on pages that were in memory, but not mapped.
    faults_minor,
    /// Faults on write-protected pages; none while the kernel resolves them itself.
    faults_protected,
    /// Pages installed because a fault asked for them.
    pages_asked,
    /// Pages installed beside those asked for, or ahead of any fault.
    pages_ahead,
    /// Installed pages, asked for or ahead, that were new pages of zeros.
    pages_zeroed,
    /// Installs that met a page which was in memory already.
    raced,
    /// Pages made fatal to touch.
    pages_poisoned,
    /// Pages taken out of memory.
    pages_punched,
    /// Clusters mapped.
    clusters_mapped,
    /// Windows mapped as parts of clusters.
    windows_mapped,
    /// Calls that reserved, mapped, registered or unmapped addresses.
    calls_mapping,
    /// Calls that mapped pages, woke threads, protected or poisoned.
    calls_fault,
    /// Calls on page frames: reads, writes, allocations, punches.
    calls_frame,
    /// Scans for written pages, each possibly of several calls.
    scans,
    /// Calls that these scans made.
    calls_scan,
    /// Pages that scans reported as written.
    pages_found_written,
    /// Readings of the fault log.
    log_readings,
    /// Those that may have missed a fault, so that everything was scanned.
    log_holed,
    /// Faults in watched memory that the log named.
    log_faults,
    /// Scans of clusters that went by the log.
    scans_by_log,
    /// Written pages that the log had not named, met by the sweep: written by another process.
    pages_strayed,
}

pub(crate) fn add(counter: &AtomicU64, n: u64) {
    counter.fetch_add(n, Ordering::Relaxed);
}
