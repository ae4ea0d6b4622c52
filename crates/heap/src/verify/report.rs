//! The findings of `verify`, as values and in words. Read [`Report`] first.

use std::fmt;

use stead_model::{Address, ContainerId};

/// What [`Arena::verify`](crate::Arena::verify) found.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Report {
    /// Which container.
    pub container: ContainerId,
    /// The first thing that is wrong, if any.
    pub first_bad: Option<Finding>,
    /// How many things are wrong.
    pub bad_count: u64,
    /// Allocations that are live.
    pub live_allocations: u64,
    /// Bytes of their slots and runs.
    pub live_bytes: u64,
    /// Bytes of free slots and pages within the segments.
    pub free_bytes: u64,
    /// Bytes behind the last slot of pages, which no slot can use.
    pub waste_bytes: u64,
    /// Bytes of the container's own: type descriptions within the segments.
    pub own_bytes: u64,
    /// Bytes of segments that are none of these.
    pub lost_bytes: u64,
    /// Live allocations that the root does not reach.
    pub leaked_allocations: u64,
    /// Bytes of their slots and runs.
    pub leaked_bytes: u64,
    /// The first of them, at most [`Report::LEAKS_SHOWN`].
    pub leaks: Vec<Leak>,
    /// Pointers that were followed.
    pub pointers: u64,
}

impl Report {
    /// Leaks that are listed one by one.
    pub const LEAKS_SHOWN: usize = 100;

    /// Whether every pointer is right and no byte is lost. Leaks do not count.
    #[must_use]
    pub fn is_clean(&self) -> bool {
        self.first_bad.is_none() && self.lost_bytes == 0
    }
}

/// Something that is wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// Which container.
    pub container: ContainerId,
    /// Where the bytes stand that are wrong.
    pub address: Address,
    /// The type that stands there, as far as it is known.
    pub ty: String,
    /// The field in it, like `next.0`.
    pub field: String,
    /// What is wrong.
    pub what: String,
}

/// An allocation that nothing reaches.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Leak {
    /// Where it is.
    pub address: Address,
    /// Of its slot or run.
    pub bytes: u64,
    /// Its type.
    pub ty: String,
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "container {} at {}: {}", self.container, self.address, self.ty)?;
        if !self.field.is_empty() {
            write!(f, ", field {}", self.field)?;
        }
        write!(f, ": {}", self.what)
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.first_bad {
            None => write!(
                f,
                "container {}: {} pointers followed, all right",
                self.container, self.pointers
            )?,
            Some(bad) => write!(f, "{bad} ({} findings in all)", self.bad_count)?,
        }
        write!(
            f,
            "; {} allocations live with {} bytes, {} bytes free, {} waste, {} own, {} lost; {} allocations with {} bytes unreachable",
            self.live_allocations,
            self.live_bytes,
            self.free_bytes,
            self.waste_bytes,
            self.own_bytes,
            self.lost_bytes,
            self.leaked_allocations,
            self.leaked_bytes
        )
    }
}
