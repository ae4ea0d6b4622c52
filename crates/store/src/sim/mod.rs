//! Proofs on a simulated disk: [`CrashMedium`] is as cruel as a disk may be and the same each time for the same
//! seed; [`torture`] has a whole store live on it. Nothing of it is used by a store that is in use.

mod audit;
mod blocks;
pub mod damage;
pub mod forge;
pub mod groups;
mod medium;
mod model;
pub mod snapshots;
pub mod sweep;
pub mod torture;

pub use medium::{CrashMedium, Fault, Tally};

/// Bytes that a disk writes whole or not at all.
pub const SECTOR: usize = 512;

/// A small random number generator of our own, so that a seed means the same for ever.
#[derive(Clone, Debug)]
pub struct SplitMix(pub u64);

impl SplitMix {
    /// The next number.
    pub fn next_u64(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// A number below `limit`, which is not 0.
    pub fn below(&mut self, limit: u64) -> u64 {
        self.next_u64() % limit
    }
}
