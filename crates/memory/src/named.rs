//! Which parts of a window may hold written pages since a scan last protected them: pages that the fault log names,
//! and blocks in which a call made pages writable. Whether a page there really is written, its protection says.
//! Read [`Named`] first.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

use stead_model::PAGES_PER_WINDOW;

use crate::residency::PAGES_PER_BLOCK;

const BITS: u64 = 64;
const WORD_COUNT: usize = (PAGES_PER_WINDOW / PAGES_PER_BLOCK / BITS) as usize;
const WORDS_PER_BLOCK: usize = (PAGES_PER_BLOCK / BITS) as usize;

/// A set of pages of one window, for threads that add and threads that take at the same time.
#[derive(Debug)]
pub(crate) struct Named {
    /// Named whole, by calls: serving a fault allocates nothing, and knows of many pages at once.
    whole: Blocks,
    /// Blocks with named pages in them.
    parts: Blocks,
    /// For each word of `parts`, the pages of its blocks; made when the first of them is named.
    pages: Box<[OnceLock<BlockPages>]>,
}

/// The pages of as many blocks as a word has bits.
type BlockPages = Box<[AtomicU64]>;

fn zeros(count: usize) -> Box<[AtomicU64]> {
    (0..count).map(|_| AtomicU64::new(0)).collect()
}

impl Named {
    pub(crate) fn new() -> Named {
        let pages = (0..WORD_COUNT).map(|_| OnceLock::new()).collect();
        Named { whole: Blocks::new(), parts: Blocks::new(), pages }
    }

    /// Adds a page. May allocate.
    pub(crate) fn add(&self, page: u64) {
        let block = page / PAGES_PER_BLOCK;
        let pages = self.pages[(block / BITS) as usize].get_or_init(|| zeros((BITS * 8) as usize));
        let word = block % BITS * WORDS_PER_BLOCK as u64 + page % PAGES_PER_BLOCK / BITS;
        // First the page, then the way to it, as in `Blocks::add`.
        pages[word as usize].fetch_or(1 << (page % BITS), Ordering::SeqCst);
        self.parts.add(block);
    }

    /// Adds the blocks of the pages `start..end`.
    pub(crate) fn add_range(&self, start: u64, end: u64) {
        let mut page = start;
        while page < end {
            self.whole.add(page / PAGES_PER_BLOCK);
            page = (page / PAGES_PER_BLOCK + 1) * PAGES_PER_BLOCK;
        }
    }

    /// Appends the runs of pages of the set, cut to `start..end`, in order. With `forget`, those whose blocks
    /// lie wholly within leave it.
    pub(crate) fn runs(&self, start: u64, end: u64, forget: bool, out: &mut Vec<(u64, u64)>) {
        let before = out.len();
        self.blocks(start, end, forget, out);
        self.pages(start, end, forget, |page| out.push((page, page + 1)));
        join(out, before);
    }

    /// As [`Named::runs`], of what is named by blocks.
    pub(crate) fn blocks(&self, start: u64, end: u64, forget: bool, out: &mut Vec<(u64, u64)>) {
        self.whole.take(start, end, forget, |block, _| {
            let first = block * PAGES_PER_BLOCK;
            out.push((start.max(first), end.min(first + PAGES_PER_BLOCK)));
        });
    }

    /// As [`Named::runs`], of what is named by pages, page by page.
    pub(crate) fn pages(&self, start: u64, end: u64, forget: bool, mut each: impl FnMut(u64)) {
        self.parts.take(start, end, forget, |block, forget| {
            let Some(pages) = self.pages[(block / BITS) as usize].get() else { return };
            let first = block * PAGES_PER_BLOCK;
            let words = &pages[(block % BITS) as usize * WORDS_PER_BLOCK..][..WORDS_PER_BLOCK];
            for (base, word) in (first..).step_by(BITS as usize).zip(words) {
                let mut left = word.load(Ordering::SeqCst);
                if left != 0 && forget {
                    left = word.swap(0, Ordering::SeqCst);
                }
                while left != 0 {
                    let page = base + u64::from(left.trailing_zeros());
                    if (start..end).contains(&page) {
                        each(page);
                    }
                    left &= left - 1;
                }
            }
        });
    }
}

/// Sorts the runs from `from` on and joins those that touch or overlap.
pub(crate) fn join(runs: &mut Vec<(u64, u64)>, from: usize) {
    runs[from..].sort_unstable();
    let mut kept = from;
    for i in from + 1..runs.len() {
        if runs[i].0 <= runs[kept].1 {
            runs[kept].1 = runs[kept].1.max(runs[i].1);
        } else {
            kept += 1;
            runs[kept] = runs[i];
        }
    }
    runs.truncate((kept + 1).max(from).min(runs.len()));
}

/// A set of blocks of one window. One page's worth of bits for a window of any size.
#[derive(Debug)]
struct Blocks {
    words: Box<[AtomicU64]>,
    /// Which words may have a bit set.
    any: Box<[AtomicU64]>,
}

impl Blocks {
    fn new() -> Blocks {
        Blocks { words: zeros(WORD_COUNT), any: zeros(WORD_COUNT.div_ceil(BITS as usize)) }
    }

    fn add(&self, block: u64) {
        let word = block / BITS;
        // First the bit, then the way to it: whoever takes looks the other way round, and so leaves at worst a
        // way to nothing.
        self.words[word as usize].fetch_or(1 << (block % BITS), Ordering::SeqCst);
        self.any[(word / BITS) as usize].fetch_or(1 << (word % BITS), Ordering::SeqCst);
    }

    /// Hands out the blocks of the set that hold any of the pages `start..end`, in order. With `forget`, those that lie
    /// wholly within leave it, and are handed out with `true`.
    fn take(&self, start: u64, end: u64, forget: bool, mut each: impl FnMut(u64, bool)) {
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
            self.take_of_word(word, (start, end), forget, &mut each);
            word += 1;
        }
    }

    fn take_of_word(
        &self,
        word: u64,
        (start, end): (u64, u64),
        forget: bool,
        each: &mut impl FnMut(u64, bool),
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
            let bit = found & found.wrapping_neg();
            each(first_block + u64::from(found.trailing_zeros()), forget && whole & bit != 0);
            found &= found - 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn agrees_with_ordinary_sets() {
        let named = Named::new();
        let (mut blocks, mut pages) = (BTreeSet::new(), BTreeSet::new());
        let mut rng = fastrand::Rng::with_seed(11);
        let (mut met, mut met_alone) = (0, 0);
        for _ in 0..3000 {
            let base = if rng.bool() { 0 } else { PAGES_PER_WINDOW - 200 * PAGES_PER_BLOCK };
            let start = base + rng.u64(..150 * PAGES_PER_BLOCK);
            let longest = if rng.bool() { 5 } else { 40 * PAGES_PER_BLOCK };
            let end = start + 1 + rng.u64(..longest);
            let touched = start / PAGES_PER_BLOCK..end.div_ceil(PAGES_PER_BLOCK);
            match rng.u32(..4) {
                0 => {
                    named.add_range(start, end);
                    blocks.extend(touched);
                    continue;
                }
                1 => {
                    for page in (start..end).step_by(1 + rng.usize(..700)) {
                        named.add(page);
                        pages.insert(page);
                    }
                    continue;
                }
                _ => {}
            }
            let forget = rng.bool();
            let mut found = Vec::new();
            named.runs(start, end, forget, &mut found);
            assert!(found.is_sorted_by(|a, b| a.1 < b.0), "{found:?}");
            let mut expected: BTreeSet<u64> = blocks
                .range(touched)
                .flat_map(|b| start.max(b * PAGES_PER_BLOCK)..end.min((b + 1) * PAGES_PER_BLOCK))
                .collect();
            let of_blocks = expected.len();
            expected.extend(pages.range(start..end));
            met += of_blocks;
            met_alone += expected.len() - of_blocks;
            assert!(found.iter().flat_map(|(from, to)| *from..*to).eq(expected));
            if forget {
                let whole = start.div_ceil(PAGES_PER_BLOCK)..end / PAGES_PER_BLOCK;
                pages.retain(|page| !whole.contains(&(page / PAGES_PER_BLOCK)));
                blocks.retain(|block| !whole.contains(block));
            }
        }
        assert!(met > 1000 && met_alone > 1000 && !blocks.is_empty() && !pages.is_empty());
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
