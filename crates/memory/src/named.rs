//! Which parts of a window may hold written pages: those that a fault named, or that were made writable by
//! a call, since a scan last protected them. Whether a page there really is written, its protection says.
//! Read [`Named`] first.

use std::sync::atomic::{AtomicU64, Ordering};

use stead_model::PAGES_PER_WINDOW;

use crate::residency::PAGES_PER_BLOCK;

const BITS: u64 = 64;
const WORD_COUNT: usize = (PAGES_PER_WINDOW / PAGES_PER_BLOCK / BITS) as usize;

/// A set of blocks of one window, for threads that add and threads that take at the same time. One page's worth
/// of bits for a window of any size: a block with one written page is scanned whole, which costs no
/// more than scanning that page.
#[derive(Debug)]
pub(crate) struct Named {
    words: Box<[AtomicU64]>,
    /// Which words may have a bit set.
    any: Box<[AtomicU64]>,
}

impl Named {
    pub(crate) fn new() -> Named {
        let zeros = |count: usize| (0..count).map(|_| AtomicU64::new(0)).collect();
        Named { words: zeros(WORD_COUNT), any: zeros(WORD_COUNT.div_ceil(BITS as usize)) }
    }

    /// Adds the block of a page.
    pub(crate) fn add(&self, page: u64) {
        let block = page / PAGES_PER_BLOCK;
        let word = block / BITS;
        // First the bit, then the way to it: whoever takes looks the other way round, and so leaves at worst a
        // way to nothing.
        self.words[word as usize].fetch_or(1 << (block % BITS), Ordering::SeqCst);
        self.any[(word / BITS) as usize].fetch_or(1 << (word % BITS), Ordering::SeqCst);
    }

    /// Adds the blocks of the pages `start..end`.
    pub(crate) fn add_range(&self, start: u64, end: u64) {
        let mut page = start;
        while page < end {
            self.add(page);
            page = (page / PAGES_PER_BLOCK + 1) * PAGES_PER_BLOCK;
        }
    }

    /// Appends the runs of pages, cut to `start..end`, whose blocks are in the set. With `forget`, blocks that
    /// lie wholly within leave it.
    pub(crate) fn runs(&self, start: u64, end: u64, forget: bool, out: &mut Vec<(u64, u64)>) {
        let first_word = start / PAGES_PER_BLOCK / BITS;
        let end_word = end.div_ceil(PAGES_PER_BLOCK).div_ceil(BITS);
        let mut word = first_word;
        while word < end_word {
            let any = &self.any[(word / BITS) as usize];
            let left = any.load(Ordering::SeqCst) >> (word % BITS);
            if left == 0 {
                word = (word / BITS + 1) * BITS;
                continue;
            }
            word += u64::from(left.trailing_zeros());
            if word >= end_word {
                return;
            }
            self.runs_of_word(word, (start, end), forget, out);
            word += 1;
        }
    }

    fn runs_of_word(
        &self,
        word: u64,
        (start, end): (u64, u64),
        forget: bool,
        out: &mut Vec<(u64, u64)>,
    ) {
        let first_block = word * BITS;
        // Blocks of this word that lie wholly within, and those that overlap.
        let mask = |from: u64, to: u64| {
            let bits = |n: u64| if n >= BITS { u64::MAX } else { (1 << n) - 1 };
            bits(to.saturating_sub(first_block)) & !bits(from.saturating_sub(first_block))
        };
        let whole = mask(start.div_ceil(PAGES_PER_BLOCK), end / PAGES_PER_BLOCK);
        let touched = mask(start / PAGES_PER_BLOCK, end.div_ceil(PAGES_PER_BLOCK));
        let bits = &self.words[word as usize];
        let found = if forget {
            if whole == u64::MAX {
                // Before the bits, for who adds one meanwhile.
                let any = &self.any[(word / BITS) as usize];
                any.fetch_and(!(1 << (word % BITS)), Ordering::SeqCst);
            }
            bits.fetch_and(!whole, Ordering::SeqCst)
        } else {
            bits.load(Ordering::SeqCst)
        };
        let mut found = found & touched;
        while found != 0 {
            let block = first_block + u64::from(found.trailing_zeros());
            let from = start.max(block * PAGES_PER_BLOCK);
            let to = end.min((block + 1) * PAGES_PER_BLOCK);
            match out.last_mut() {
                Some(last) if last.1 == from => last.1 = to,
                _ => out.push((from, to)),
            }
            found &= found - 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn agrees_with_an_ordinary_set() {
        let named = Named::new();
        let mut set = BTreeSet::new();
        let mut rng = fastrand::Rng::with_seed(11);
        let mut met = 0;
        for _ in 0..3000 {
            let base = if rng.bool() { 0 } else { PAGES_PER_WINDOW - 200 * PAGES_PER_BLOCK };
            let start = base + rng.u64(..150 * PAGES_PER_BLOCK);
            let longest = if rng.bool() { 5 } else { 40 * PAGES_PER_BLOCK };
            let end = start + 1 + rng.u64(..longest);
            let blocks = start / PAGES_PER_BLOCK..end.div_ceil(PAGES_PER_BLOCK);
            if rng.bool() {
                named.add_range(start, end);
                set.extend(blocks);
                continue;
            }
            let forget = rng.bool();
            let mut found = Vec::new();
            named.runs(start, end, forget, &mut found);
            let pages: Vec<u64> = found.iter().flat_map(|(from, to)| *from..*to).collect();
            let expected: Vec<u64> = set
                .range(blocks)
                .flat_map(|b| start.max(b * PAGES_PER_BLOCK)..end.min((b + 1) * PAGES_PER_BLOCK))
                .collect();
            assert_eq!(pages, expected);
            met += expected.len();
            if forget {
                let whole = start.div_ceil(PAGES_PER_BLOCK)..end / PAGES_PER_BLOCK;
                set.retain(|block| !whole.contains(block));
            }
        }
        assert!(met > 1000 && !set.is_empty());
    }

    #[test]
    fn what_is_added_while_others_take_is_taken_once_or_more() {
        const BLOCKS: u64 = 200;
        const ROUNDS: u64 = 300;
        let named = Named::new();
        let done = std::sync::atomic::AtomicBool::new(false);
        let taken: Vec<AtomicU64> = (0..BLOCKS).map(|_| AtomicU64::new(0)).collect();
        let take = || {
            let mut found = Vec::new();
            named.runs(0, PAGES_PER_WINDOW, true, &mut found);
            for block in
                found.iter().flat_map(|(from, to)| (*from..*to).step_by(PAGES_PER_BLOCK as usize))
            {
                taken[(block / PAGES_PER_BLOCK) as usize].fetch_add(1, Ordering::SeqCst);
            }
        };
        std::thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| {
                    while !done.load(Ordering::SeqCst) {
                        take();
                    }
                });
            }
            for _ in 0..ROUNDS {
                let before: Vec<u64> = taken.iter().map(|n| n.load(Ordering::SeqCst)).collect();
                (0..BLOCKS).for_each(|block| named.add(block * PAGES_PER_BLOCK));
                let all =
                    || (0..BLOCKS as usize).all(|b| taken[b].load(Ordering::SeqCst) > before[b]);
                let began = std::time::Instant::now();
                while !all() {
                    assert!(began.elapsed().as_secs() < 30, "a block was never taken");
                    std::thread::yield_now();
                }
            }
            done.store(true, Ordering::SeqCst);
        });
    }
}
