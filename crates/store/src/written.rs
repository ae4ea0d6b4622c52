//! What has been written to a store since it was made, and for what: the price of each page that its users made stable.
//! Counted in memory as it is written, and kept with each root. Read [`Written`] first.

use crate::disk::Counters;
use crate::format::{BLOCK, Chunk, Entry};
use crate::store::Store;

/// Blocks of 4096 bytes written to the file of a store, over all its openings.
///
/// Of the record chain the stabilisations that came to pass are counted, whatever happens behind them. All else is counted
/// as it is written, and what was written of it behind the newest root is forgotten by a crash or a kill. The header of 16
/// blocks with which a store is made is not counted.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Written {
    /// The stabilisation behind which counting began: 0 for all that was ever written. It is another one where a version
    /// that does not count has written the store.
    pub since: u64,
    /// Images of pages that were made stable.
    pub pages: u64,
    /// Blocks of the record chain: these images and the headers before them.
    pub record_blocks: u64,
    /// Blocks of the map, its table, and roots.
    pub map_blocks: u64,
    /// Blocks that cleaning moved, and the headers before them.
    pub cleaning_blocks: u64,
    /// Blocks of scattered pages that were put in order, and the headers before them.
    pub tidying_blocks: u64,
    /// Blocks of zeros, written once when the file is made longer.
    pub ahead_blocks: u64,
}

impl Written {
    /// Blocks written for whatever.
    #[must_use]
    pub fn blocks(&self) -> u64 {
        let parts = [
            self.record_blocks,
            self.map_blocks,
            self.cleaning_blocks,
            self.tidying_blocks,
            self.ahead_blocks,
        ];
        parts.into_iter().fold(0, u64::saturating_add)
    }

    /// Blocks written for each page that was made stable; `None` as long as there was none.
    #[must_use]
    pub fn amplification(&self) -> Option<f64> {
        (self.pages > 0).then(|| self.blocks() as f64 / self.pages as f64)
    }

    /// What a root says of the time before an opening that goes by it.
    pub(crate) fn before(self, last_sequence: u64) -> Self {
        if self.record_blocks == 0 && last_sequence > 0 {
            // Who wrote it did not count.
            return Written { since: last_sequence, ..Written::default() };
        }
        self
    }

    /// With what upkeep has written since the opening.
    pub(crate) fn and_upkeep(self, since: &Counters) -> Self {
        let with = |before: u64, bytes: u64| before.saturating_add(bytes / BLOCK as u64);
        Written {
            map_blocks: with(self.map_blocks, since.upkeep_bytes),
            cleaning_blocks: with(self.cleaning_blocks, since.cleaning_bytes),
            tidying_blocks: with(self.tidying_blocks, since.tidying_bytes),
            ahead_blocks: with(self.ahead_blocks, since.prewritten_bytes),
            ..self
        }
    }

    /// Counts a chunk of the record chain that is durable.
    pub(crate) fn add_record(&mut self, chunk: &Chunk) {
        self.pages = self.pages.saturating_add(images(chunk));
        self.record_blocks = self.record_blocks.saturating_add(chunk.blocks());
    }
}

/// How many images of pages a chunk has.
fn images(chunk: &Chunk) -> u64 {
    chunk.entries.iter().filter(|(entry, _)| matches!(entry, Entry::Image(_))).count() as u64
}

impl Store {
    /// What has been written to the store so far.
    #[must_use]
    pub fn written(&self) -> Written {
        let so_far = self.state().written;
        so_far.and_upkeep(&self.disk.counters())
    }
}
