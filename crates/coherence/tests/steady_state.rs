//! What the machine allocates: 16 bytes for a resident page in the common state, and nothing while
//! faults are served in the steady state. One test, because it counts the whole process.

use std::alloc::System;
use std::collections::VecDeque;
use std::sync::Arc;

use stats_alloc::{INSTRUMENTED_SYSTEM, Region, StatsAlloc};
use stead_coherence::{
    ClusterConfig, ClusterId, Config, Effect, Effects, Event, Manager, PageKey, Policy, Site,
    SiteId, View,
};

#[global_allocator]
static ALLOCATOR: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

/// Three sites, and messages that arrive in order.
struct Trio {
    sites: Vec<Site>,
    effects: Effects,
    events: VecDeque<(usize, Event)>,
    now: u64,
}

impl Trio {
    fn fault(&mut self, site: usize, page: u64, write: bool) {
        self.now += 2_000;
        for i in 0..self.sites.len() {
            self.events.push_back((i, Event::Tick));
        }
        let fault = Event::Fault { page: PageKey::new(1, page), run: 0, write };
        self.events.push_back((site, fault));
        while let Some((at, event)) = self.events.pop_front() {
            self.sites[at].handle(self.now, event, &mut self.effects);
            for effect in self.effects.drain() {
                if let Effect::Send { to, view, message } = effect {
                    let from = SiteId::new(at as u16);
                    let event = Event::Message { from, view, message };
                    self.events.push_back((usize::from(to.get()), event));
                }
            }
        }
    }
}

#[test]
fn sixteen_bytes_a_page_and_no_allocation_for_a_fault() {
    for manager in [Manager::Central(SiteId::new(0)), Manager::Fixed, Manager::Dynamic] {
        let cluster =
            ClusterConfig { id: ClusterId(1), manager, policy: Policy::Invalidate, domain: None };
        let config = Arc::new(Config::new(vec![cluster]));
        let view = Arc::new(View::first(3));
        let site = |i| Site::new(SiteId::new(i), config.clone(), view.clone());
        let mut trio = Trio {
            sites: (0..3).map(site).collect(),
            effects: Effects::new(),
            events: VecDeque::new(),
            now: 0,
        };
        let pages = 64 * 1_000;
        // Room for what is under way is made once.
        trio.fault(0, pages, true);
        trio.fault(1, pages, false);

        let region = Region::new(ALLOCATOR);
        for page in 0..pages {
            trio.fault(0, page, true);
            trio.fault(1, page, false);
        }
        let change = region.change();
        let live = change.bytes_allocated as isize - change.bytes_deallocated as isize
            + change.bytes_reallocated;
        // Sites 0 and 1 have each page resident; homes know pages that they do not have.
        let entries: usize = trio.sites.iter().map(|s| s.pages().count()).sum();
        let each = live as f64 / entries as f64;
        println!("{manager:?}: {each:.2} bytes for each of {entries} entries");
        assert!(each <= 16.0, "{manager:?}: {each} bytes for each page");

        let region = Region::new(ALLOCATOR);
        for page in 0..2_000 {
            // A read, a write with one copy, an upgrade, and ownership there and back.
            trio.fault(2, page, false);
            trio.fault(1, page, true);
            trio.fault(0, page, true);
        }
        // Pages of the last chunk are new to site 2.
        let first = region.change();
        let region = Region::new(ALLOCATOR);
        for page in 0..2_000 {
            trio.fault(2, page, false);
            trio.fault(1, page, true);
            trio.fault(0, page, true);
        }
        let change = region.change();
        println!(
            "{manager:?}: {} allocations, then {} for 6000 faults",
            first.allocations, change.allocations
        );
        assert_eq!(change.allocations + change.reallocations, 0, "{manager:?}: {change:?}");
    }
}
