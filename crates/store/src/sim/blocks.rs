//! The contents of a disk in memory: blocks, zero where nothing has been written, shared between copies as long as
//! neither changes them. It knows no failures. Read [`Blocks`] first.

use std::sync::Arc;

use super::SECTOR;
use crate::format::BLOCK;

pub(super) const SECTORS_PER_BLOCK: u64 = (BLOCK / SECTOR) as u64;

static ZERO: [u8; BLOCK] = [0; BLOCK];

/// Blocks by number.
#[derive(Clone, Debug, Default)]
pub(super) struct Blocks {
    blocks: Vec<Option<Arc<[u8; BLOCK]>>>,
}

impl Blocks {
    pub(super) fn block(&self, index: u64) -> &[u8; BLOCK] {
        self.blocks.get(index as usize).and_then(Option::as_deref).unwrap_or(&ZERO)
    }

    fn slot(&mut self, index: u64) -> &mut Option<Arc<[u8; BLOCK]>> {
        let index = index as usize;
        if self.blocks.len() <= index {
            self.blocks.resize(index + 1, None);
        }
        &mut self.blocks[index]
    }

    pub(super) fn block_mut(&mut self, index: u64) -> &mut [u8; BLOCK] {
        Arc::make_mut(self.slot(index).get_or_insert_with(|| Arc::new(ZERO)))
    }

    pub(super) fn set_block(&mut self, index: u64, bytes: &[u8; BLOCK]) {
        let slot = self.slot(index);
        match slot.as_mut().and_then(Arc::get_mut) {
            Some(block) => block.copy_from_slice(bytes),
            None => *slot = Some(Arc::new(*bytes)),
        }
    }

    /// Takes over a whole block.
    pub(super) fn share_block(&mut self, index: u64, from: &Blocks) {
        let shared = from.blocks.get(index as usize).cloned().flatten();
        if shared.is_some() || (index as usize) < self.blocks.len() {
            *self.slot(index) = shared;
        }
    }

    pub(super) fn sector(&self, sector: u64) -> &[u8; SECTOR] {
        let start = (sector % SECTORS_PER_BLOCK) as usize * SECTOR;
        self.block(sector / SECTORS_PER_BLOCK)[start..]
            .first_chunk()
            .expect("a block has whole sectors")
    }

    pub(super) fn sector_mut(&mut self, sector: u64) -> &mut [u8; SECTOR] {
        let start = (sector % SECTORS_PER_BLOCK) as usize * SECTOR;
        self.block_mut(sector / SECTORS_PER_BLOCK)[start..]
            .first_chunk_mut()
            .expect("a block has whole sectors")
    }

    pub(super) fn read(&self, offset: u64, into: &mut [u8]) {
        let mut at = offset;
        let mut rest = into;
        while !rest.is_empty() {
            let start = (at % BLOCK as u64) as usize;
            let bytes = rest.len().min(BLOCK - start);
            let (these, others) = rest.split_at_mut(bytes);
            these.copy_from_slice(&self.block(at / BLOCK as u64)[start..start + bytes]);
            rest = others;
            at += bytes as u64;
        }
    }

    /// Makes zero what lies at `len` and behind it.
    pub(super) fn truncate(&mut self, len: u64) {
        let (whole, rest) = (len / BLOCK as u64, (len % BLOCK as u64) as usize);
        if rest > 0 && self.blocks.len() as u64 > whole {
            self.block_mut(whole)[rest..].fill(0);
        }
        self.blocks.truncate(len.div_ceil(BLOCK as u64) as usize);
    }
}
