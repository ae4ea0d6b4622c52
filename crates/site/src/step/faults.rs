//! Which pages a fault brings in, and how each is installed (A7).
//!
//! Pure: the driver reports the fault and what the store holds of the pages named, and performs the
//! installs. No page is read or mapped here. Read [`Faults::fault`] first.

use stead_model::{ContainerId, PageNo, PageRange};

/// Pages brought in by a fault that follows no pattern: the aligned block around the page.
pub const NEIGHBOURS: u64 = 16;
/// Pages brought in when faults begin to walk upwards through a container.
pub const STREAM: u64 = 64;
/// The same as they go on: what lies scattered is read at the same time, and the more the better.
pub const STREAM_MOST: u64 = 256;

/// What the store holds of a run of pages.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Held {
    /// Their images, read and checked.
    Images,
    /// Nothing: they were never stable, or are zero.
    Nothing,
    /// An image that is damaged or cannot be read.
    Damaged,
}

/// How one run of pages enters the memory.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Install {
    /// The run.
    pub range: PageRange,
    /// What is put there.
    pub held: Held,
    /// Whether the first write to it must be noticed. A page that is not protected counts as dirty.
    pub protect: bool,
    /// Whether the run holds the page that a program waits for, or only neighbours of it.
    pub asked: bool,
}

/// Remembers how faults walk, to fetch ahead of a stream.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Faults {
    last: Option<(ContainerId, u64)>,
    /// Pages brought in next if the walk goes on.
    stream: u64,
}

impl Faults {
    /// The run of pages to bring in for a fault on `page`: the page itself and those of its
    /// neighbours, up and down, that are `absent` from memory without a gap. The run stays within
    /// `bounds`, the windows of the cluster that hold the page.
    pub fn fault(
        &mut self,
        container: ContainerId,
        page: PageNo,
        bounds: PageRange,
        mut absent: impl FnMut(PageNo) -> bool,
    ) -> PageRange {
        let walking = self.last == Some((container, page.0));
        let (from, to) = if walking {
            let stream = self.stream;
            self.stream = (stream * 2).min(STREAM_MOST);
            (page.0, (page.0 + stream).min(bounds.end))
        } else {
            self.stream = STREAM;
            let block = page.0 - page.0 % NEIGHBOURS;
            (block.max(bounds.start), (block + NEIGHBOURS).min(bounds.end))
        };
        let mut start = page.0;
        while start > from && absent(PageNo(start - 1)) {
            start -= 1;
        }
        let mut end = page.0 + 1;
        while end < to && absent(PageNo(end)) {
            end += 1;
        }
        self.last = Some((container, end));
        PageRange::new(start, end)
    }
}

/// How to install what was found: `found` lists consecutive runs, in order, that make up the range of
/// the fault. The page that was asked for comes first, so that its program waits for nothing else.
///
/// A written page is installed writable and so counts as dirty. Neighbours with an image are
/// protected; fresh neighbours of a fresh written page are not, since memory that grows is written
/// next (a zero page that stays zero costs the store nothing).
pub fn installs(page: PageNo, write: bool, found: &[(PageRange, Held)], out: &mut Vec<Install>) {
    out.clear();
    for &(range, held) in found {
        if !(range.start..range.end).contains(&page.0) {
            continue;
        }
        let here = PageRange::new(page.0, page.0 + 1);
        let growing = write && held == Held::Nothing;
        out.push(Install { range: here, held, protect: !write, asked: true });
        for side in [PageRange::new(range.start, page.0), PageRange::new(page.0 + 1, range.end)] {
            if side.page_count() > 0 && held != Held::Damaged {
                out.push(Install { range: side, held, protect: !growing, asked: false });
            }
        }
    }
    for &(range, held) in found {
        if (range.start..range.end).contains(&page.0) || held == Held::Damaged {
            continue;
        }
        out.push(Install { range, held, protect: true, asked: false });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const C: ContainerId = ContainerId(3);
    const ALL: PageRange = PageRange::new(0, 1 << 24);

    #[test]
    fn a_lone_fault_takes_its_aligned_block() {
        let mut f = Faults::default();
        assert_eq!(f.fault(C, PageNo(100), ALL, |_| true), PageRange::new(96, 112));
        assert_eq!(f.fault(C, PageNo(5), PageRange::new(4, 10), |_| true), PageRange::new(4, 10));
    }

    #[test]
    fn resident_neighbours_end_the_run() {
        let mut f = Faults::default();
        let absent = |p: PageNo| !matches!(p.0, 97 | 105);
        assert_eq!(f.fault(C, PageNo(100), ALL, absent), PageRange::new(98, 105));
    }

    #[test]
    fn a_stream_is_fetched_ahead() {
        let mut f = Faults::default();
        f.fault(C, PageNo(0), ALL, |_| true);
        assert_eq!(f.fault(C, PageNo(16), ALL, |_| true), PageRange::new(16, 80));
        assert_eq!(f.fault(C, PageNo(80), ALL, |_| true), PageRange::new(80, 208));
        assert_eq!(f.fault(C, PageNo(208), ALL, |_| true), PageRange::new(208, 464));
        assert_eq!(f.fault(C, PageNo(464), ALL, |_| true), PageRange::new(464, 720));
        // Another container does not continue the stream.
        let other = ContainerId(4);
        assert_eq!(f.fault(other, PageNo(720), ALL, |_| true), PageRange::new(720, 736));
    }

    fn installed(page: u64, write: bool, found: &[(PageRange, Held)]) -> Vec<Install> {
        let mut out = Vec::new();
        installs(PageNo(page), write, found, &mut out);
        out
    }

    #[test]
    fn the_asked_page_comes_first_and_neighbours_are_protected() {
        let run = [(PageRange::new(0, 4), Held::Images)];
        let i = installed(2, true, &run);
        assert_eq!(i[0].range, PageRange::new(2, 3));
        assert!(i[0].asked && !i[0].protect);
        assert_eq!((i[1].range, i[2].range), (PageRange::new(0, 2), PageRange::new(3, 4)));
        assert!(i[1..].iter().all(|i| i.protect && !i.asked));
        assert!(installed(2, false, &run)[0].protect);
    }

    #[test]
    fn memory_that_grows_is_installed_writable() {
        let i = installed(0, true, &[(PageRange::new(0, 16), Held::Nothing)]);
        assert!(i.iter().all(|i| !i.protect));
        let i = installed(0, false, &[(PageRange::new(0, 16), Held::Nothing)]);
        assert!(i.iter().all(|i| i.protect));
    }

    #[test]
    fn damage_is_installed_only_for_who_asked() {
        let found = [
            (PageRange::new(0, 1), Held::Images),
            (PageRange::new(1, 2), Held::Damaged),
            (PageRange::new(2, 3), Held::Nothing),
        ];
        let i = installed(0, false, &found);
        assert!(i.iter().all(|i| i.held != Held::Damaged));
        let i = installed(1, false, &found);
        assert_eq!((i[0].held, i[0].asked), (Held::Damaged, true));
        assert_eq!(i.len(), 3);
    }
}
