//! Which pages of a window are in memory: a bitmap with a summary, so that runs are found quickly
//! in sparse and in dense windows. It is told, and does not look itself. Read [`Bitmap`] first.
//!
//! A bitmap of a window is 2 MiB of zeros at first, which an allocator takes straight from the kernel:
//! only the parts that are used cost memory.

use stead_model::PAGES_PER_WINDOW;

const BITS: u64 = 64;
const WORD_COUNT: usize = (PAGES_PER_WINDOW / BITS) as usize;

/// Pages whose presence is summed up: those of one of the processor's page tables.
pub(crate) const PAGES_PER_BLOCK: u64 = 512;
const BLOCK_COUNT: usize = (PAGES_PER_WINDOW / PAGES_PER_BLOCK) as usize;

/// A set of pages of one window.
#[derive(Debug)]
pub(crate) struct Bitmap {
    words: Vec<u64>,
    /// Pages of the set in each block.
    block_counts: Vec<u16>,
    /// Which blocks have any.
    blocks: Vec<u64>,
    page_count: u64,
}

impl Bitmap {
    pub(crate) fn new() -> Bitmap {
        Bitmap {
            words: vec![0; WORD_COUNT],
            block_counts: vec![0; BLOCK_COUNT],
            blocks: vec![0; BLOCK_COUNT.div_ceil(BITS as usize)],
            page_count: 0,
        }
    }

    pub(crate) fn page_count(&self) -> u64 {
        self.page_count
    }

    pub(crate) fn contains(&self, page: u64) -> bool {
        self.words[(page / BITS) as usize] >> (page % BITS) & 1 == 1
    }

    pub(crate) fn insert(&mut self, start: u64, end: u64) {
        self.change(start, end, |word, mask| word | mask);
    }

    pub(crate) fn remove(&mut self, start: u64, end: u64) {
        let mut at = start;
        // Removing what was never there must not touch, and so allocate, the words.
        while let Some(first) = self.next(at, end) {
            at = end.min((first / PAGES_PER_BLOCK + 1) * PAGES_PER_BLOCK);
            self.change(first, at, |word, mask| word & !mask);
        }
    }

    fn change(&mut self, start: u64, end: u64, f: impl Fn(u64, u64) -> u64) {
        let mut at = start;
        while at < end {
            let bits_end = end.min((at / BITS + 1) * BITS);
            let mask = (u64::MAX >> (BITS - (bits_end - at))) << (at % BITS);
            let word = &mut self.words[(at / BITS) as usize];
            let before = word.count_ones();
            *word = f(*word, mask);
            let after = word.count_ones();
            let block = at / PAGES_PER_BLOCK;
            let count = &mut self.block_counts[block as usize];
            *count = *count + after as u16 - before as u16;
            let populated = &mut self.blocks[(block / BITS) as usize];
            if *count > 0 {
                *populated |= 1 << (block % BITS);
            } else {
                *populated &= !(1 << (block % BITS));
            }
            self.page_count = self.page_count + u64::from(after) - u64::from(before);
            at = bits_end;
        }
    }

    /// The first page of the set in `from..end`.
    pub(crate) fn next(&self, from: u64, end: u64) -> Option<u64> {
        let mut at = from;
        while at < end {
            let block = first_set(&self.blocks, at / PAGES_PER_BLOCK)?;
            at = at.max(block * PAGES_PER_BLOCK);
            let block_end = end.min((block + 1) * PAGES_PER_BLOCK);
            while at < block_end {
                let word = self.words[(at / BITS) as usize] >> (at % BITS);
                if word != 0 {
                    let found = at + u64::from(word.trailing_zeros());
                    return (found < end).then_some(found);
                }
                at = (at / BITS + 1) * BITS;
            }
        }
        None
    }

    /// The first page of `from..end` that is not in the set.
    pub(crate) fn next_absent(&self, from: u64, end: u64) -> Option<u64> {
        let mut at = from;
        while at < end {
            let block = at / PAGES_PER_BLOCK;
            match u64::from(self.block_counts[block as usize]) {
                0 => return Some(at),
                PAGES_PER_BLOCK => {
                    at = (block + 1) * PAGES_PER_BLOCK;
                    continue;
                }
                _ => {}
            }
            let word = !self.words[(at / BITS) as usize] >> (at % BITS);
            if word != 0 {
                let found = at + u64::from(word.trailing_zeros());
                return (found < end).then_some(found);
            }
            at = (at / BITS + 1) * BITS;
        }
        None
    }

    /// The first run of pages of the set in `from..end`.
    pub(crate) fn next_run(&self, from: u64, end: u64) -> Option<(u64, u64)> {
        let start = self.next(from, end)?;
        Some((start, self.next_absent(start, end).unwrap_or(end)))
    }

    /// The first run of pages in `from..end` that are not in the set.
    pub(crate) fn next_absent_run(&self, from: u64, end: u64) -> Option<(u64, u64)> {
        let start = self.next_absent(from, end)?;
        Some((start, self.next(start, end).unwrap_or(end)))
    }

    /// The absent pages around `page` without a gap, within `low..high`. `page` must be absent.
    pub(crate) fn absent_around(&self, page: u64, low: u64, high: u64) -> (u64, u64) {
        let end = self.next(page, high).unwrap_or(high);
        let mut start = page;
        while start > low && !self.contains(start - 1) {
            start -= 1;
        }
        (start, end)
    }

    /// The first stretch of whole blocks with pages of the set, cut to `from..end`.
    pub(crate) fn next_populated(&self, from: u64, end: u64) -> Option<(u64, u64)> {
        let first = first_set(&self.blocks, from / PAGES_PER_BLOCK)?;
        let last = end.div_ceil(PAGES_PER_BLOCK).min(BLOCK_COUNT as u64);
        let mut until = first;
        while until < last && self.block_counts[until as usize] > 0 {
            until += 1;
        }
        let start = from.max(first * PAGES_PER_BLOCK);
        (start < end).then_some((start, end.min(until * PAGES_PER_BLOCK)))
    }
}

/// The first bit that is set, at `from` or later.
fn first_set(words: &[u64], from: u64) -> Option<u64> {
    let index = (from / BITS) as usize;
    let first = words.get(index)? >> (from % BITS);
    if first != 0 {
        return Some(from + u64::from(first.trailing_zeros()));
    }
    let more = words[index + 1..].iter().position(|word| *word != 0)?;
    let index = index + 1 + more;
    Some(index as u64 * BITS + u64::from(words[index].trailing_zeros()))
}

const _: () = assert!(PAGES_PER_BLOCK.is_multiple_of(BITS) && PAGES_PER_BLOCK <= u16::MAX as u64);

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn agrees_with_an_ordinary_set() {
        let mut bitmap = Bitmap::new();
        let mut set = BTreeSet::new();
        let mut rng = fastrand::Rng::with_seed(7);
        let far = PAGES_PER_WINDOW - 9000;
        for _ in 0..4000 {
            let base = if rng.bool() { 0 } else { far };
            let start = base + rng.u64(..8900);
            let end = start + rng.u64(..100);
            match rng.u8(..4) {
                0 | 1 => {
                    bitmap.insert(start, end);
                    set.extend(start..end);
                }
                2 => {
                    bitmap.remove(start, end);
                    set.retain(|p| !(start..end).contains(p));
                }
                _ => {
                    let end = start + rng.u64(..9000);
                    let end = end.min(PAGES_PER_WINDOW);
                    assert_eq!(bitmap.next(start, end), set.range(start..end).next().copied());
                    let absent = (start..end).find(|p| !set.contains(p));
                    assert_eq!(bitmap.next_absent(start, end), absent);
                    assert_eq!(bitmap.contains(start), set.contains(&start));
                    let covered = |page: u64| {
                        let mut at = 0;
                        while let Some((s, e)) = bitmap.next_populated(at, PAGES_PER_WINDOW) {
                            if (s..e).contains(&page) {
                                return true;
                            }
                            at = e;
                        }
                        false
                    };
                    if let Some(page) = set.range(start..).next() {
                        assert!(covered(*page));
                    }
                }
            }
            assert_eq!(bitmap.page_count(), set.len() as u64);
        }
        assert!(set.len() > 100);
    }
}
