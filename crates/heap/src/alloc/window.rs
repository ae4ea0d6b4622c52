//! What is known of one window: its segment and its free runs of pages. Touches no memory of the
//! container. Read [`WindowPages`] first.

use std::collections::{BTreeMap, BTreeSet};

use stead_model::PAGE_SIZE;

use crate::layout::{DESCRIPTOR_SIZE, FIRST_PAGE};

/// Pages that one page of descriptors describes.
const DESCRIBED: u32 = (PAGE_SIZE / DESCRIPTOR_SIZE) as u32;

/// The segment of one window.
pub(super) struct WindowPages {
    pub(super) cluster: u16,
    /// One past the segment's last page.
    pub(super) end: u32,
    /// Pages below this one have not been looked at, unless their state says so.
    pub(super) unknown_below: u32,
    /// One past the last page that the ground was told about.
    pub(super) asked_end: u32,
    /// Free runs known: first page, pages.
    pub(super) runs: BTreeMap<u32, u32>,
    /// Pages in them.
    free: u32,
    /// The same runs, by length.
    by_length: BTreeSet<(u32, u32)>,
}

impl WindowPages {
    pub(super) fn new(cluster: u16, end: u32) -> WindowPages {
        WindowPages {
            cluster,
            end,
            unknown_below: end,
            asked_end: end,
            runs: BTreeMap::new(),
            free: 0,
            by_length: BTreeSet::new(),
        }
    }

    pub(super) fn remove_run(&mut self, start: u32, length: u32) {
        let removed = self.runs.remove(&start);
        debug_assert_eq!(removed, Some(length));
        self.free -= length;
        self.by_length.remove(&(length, start));
    }

    /// Adds a free run, joined with its neighbours.
    pub(super) fn add_run(&mut self, mut start: u32, mut length: u32) {
        if let Some((&before, &n)) = self.runs.range(..start).next_back()
            && before + n == start
        {
            self.remove_run(before, n);
            start = before;
            length += n;
        }
        if let Some(&n) = self.runs.get(&(start + length)) {
            self.remove_run(start + length, n);
            length += n;
        }
        self.runs.insert(start, length);
        self.free += length;
        self.by_length.insert((length, start));
    }

    /// Pages in use: the header, those of the segment that are not known to be free, and those that describe the segment.
    pub(super) fn in_use(&self) -> u64 {
        let segment = self.end - FIRST_PAGE;
        u64::from(1 + segment - self.free + segment.div_ceil(DESCRIBED))
    }

    /// The shortest run of at least so many pages: first page, pages.
    pub(super) fn run_for(&self, count: u32) -> Option<(u32, u32)> {
        self.by_length.range((count, 0)..).next().map(|&(length, start)| (start, length))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_join_with_their_neighbours() {
        let mut w = WindowPages::new(0, 1000);
        w.add_run(10, 5);
        w.add_run(20, 5);
        w.add_run(30, 1);
        assert_eq!(w.runs.len(), 3);
        w.add_run(15, 5);
        assert_eq!(w.runs.iter().collect::<Vec<_>>(), [(&10, &15), (&30, &1)]);
        w.add_run(25, 5);
        assert_eq!(w.runs.iter().collect::<Vec<_>>(), [(&10, &21)]);
        assert_eq!(w.by_length.len(), 1);
        w.remove_run(10, 21);
        w.add_run(3, 2);
        w.add_run(50, 4);
        w.add_run(90, 9);
        assert_eq!(w.run_for(3), Some((50, 4)));
        assert_eq!(w.run_for(5), Some((90, 9)));
        assert_eq!(w.run_for(10), None);
    }
}
