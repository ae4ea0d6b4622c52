//! Whether written pages are better found by scanning what is in memory, or by the kernel's log of page faults.
//!
//! A scan costs by what is in memory; the log costs by what is written, and makes each page fault of the program
//! dearer. Which is cheaper depends on the program and changes with it, so both are reckoned round by
//! round, and the way is changed once the other one would have saved what changing costs. Pure: nothing is
//! measured or switched here. Read [`Search::round`] first.

/// What looking at a page that was not written costs a scan.
const SCAN_NS_PER_PAGE: i64 = 1;
/// What the log adds to a page fault, reading it included.
const LOG_NS_PER_FAULT: i64 = 350;
/// What starting a log costs: the kernel waits for all its processors.
const CHANGE_NS: i64 = 12_000_000;

/// What a round found.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Found {
    /// Whether there is a log.
    pub by_log: bool,
    /// Pages in memory.
    pub resident_pages: u64,
    /// Faults that there were: those in the log, or, without one, at least the pages found written.
    pub faults: u64,
    /// Whether everything was scanned: without a log, or because it was not whole.
    pub scanned: bool,
}

/// What is to be done.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Change {
    /// Start the log.
    Start,
    /// Stop it.
    Stop,
}

/// How written pages are searched for, and what the other way would have saved.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Search {
    /// There is no log here.
    refused: bool,
    /// Nanoseconds that the other way would have saved, lately.
    lost_ns: i64,
}

impl Search {
    /// Takes what a round found, and says whether to change the way.
    pub fn round(&mut self, found: Found) -> Option<Change> {
        if self.refused {
            return None;
        }
        let ns =
            |count: u64, each: i64| i64::try_from(count).unwrap_or(i64::MAX).saturating_mul(each);
        let scan_ns = ns(found.resident_pages, SCAN_NS_PER_PAGE);
        let log_ns = ns(found.faults, LOG_NS_PER_FAULT);
        let lost_ns = if !found.by_log {
            scan_ns.saturating_sub(log_ns)
        } else if found.scanned {
            log_ns
        } else {
            log_ns.saturating_sub(scan_ns)
        };
        self.lost_ns = self.lost_ns.saturating_add(lost_ns).max(0);
        if self.lost_ns < CHANGE_NS {
            return None;
        }
        self.lost_ns = 0;
        Some(if found.by_log { Change::Stop } else { Change::Start })
    }

    /// The log was refused, and will be.
    pub fn refused(&mut self) {
        *self = Search { refused: true, lost_ns: 0 };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GIB: u64 = 262_144;

    /// A round by the log if it did not scan, and by a scan without one if it did.
    fn round(faults: u64, scanned: bool) -> Found {
        Found { by_log: !scanned, resident_pages: GIB, faults, scanned }
    }

    fn rounds_until_change(search: &mut Search, found: Found) -> Option<(u32, Change)> {
        (0..10_000).find_map(|round| Some((round, search.round(found)?)))
    }

    #[test]
    fn much_memory_and_few_writes_start_a_log_after_as_much_as_it_costs() {
        let mut search = Search::default();
        let (rounds, change) = rounds_until_change(&mut search, round(10, true)).unwrap();
        assert_eq!(change, Change::Start);
        assert!((40..60).contains(&rounds), "{rounds}");
        assert_eq!(rounds_until_change(&mut search, round(10, false)), None);
    }

    #[test]
    fn little_memory_or_many_writes_start_none() {
        let little = Found { by_log: false, resident_pages: 1000, faults: 10, scanned: true };
        assert_eq!(rounds_until_change(&mut Search::default(), little), None);
        assert_eq!(rounds_until_change(&mut Search::default(), round(GIB, true)), None);
    }

    #[test]
    fn many_writes_stop_a_log_and_so_does_one_that_is_never_whole() {
        let mut search = Search::default();
        let changed = rounds_until_change(&mut search, round(GIB, false));
        assert_eq!(changed, Some((0, Change::Stop)));
        let holed = Found { scanned: true, ..round(3000, false) };
        let (rounds, change) = rounds_until_change(&mut search, holed).unwrap();
        assert!(change == Change::Stop && rounds < 20, "{rounds}");
        assert_eq!(rounds_until_change(&mut search, round(10, true)).unwrap().1, Change::Start);
    }

    #[test]
    fn one_unusual_round_is_made_up_for_by_usual_ones() {
        let mut search = Search::default();
        for _ in 0..1000 {
            assert_eq!(search.round(round(20_000, true)), None);
            assert_eq!(search.round(round(10, true)), None);
        }
    }

    #[test]
    fn a_refusal_is_final() {
        let mut search = Search::default();
        search.refused();
        assert_eq!(rounds_until_change(&mut search, round(10, true)), None);
    }
}
