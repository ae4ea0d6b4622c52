//! How fast the machine decides, without a network: `cargo bench -p stead-coherence`. Each benchmark
//! is one event in a state that traffic has made. Allocations are counted beside the time.

use std::collections::VecDeque;
use std::sync::Arc;

use divan::counter::ItemsCount;
use divan::{AllocProfiler, Bencher};
use stead_coherence::{
    ClusterConfig, ClusterId, Config, Effect, Effects, Event, Manager, PageKey, Policy, Site,
    SiteId, View,
};

#[global_allocator]
static ALLOC: AllocProfiler = AllocProfiler::system();

/// Pages that the sites know, so that look-ups are not all in cache.
const PAGES: u64 = 100_000;

fn main() {
    divan::main();
}

/// Two sites; site 0 is home to all pages and owns them, site 1 reads.
struct Pair {
    sites: [Site; 2],
    effects: Effects,
    events: VecDeque<(usize, Event)>,
    now: u64,
}

impl Pair {
    fn new() -> Pair {
        let cluster = ClusterConfig {
            id: ClusterId(1),
            manager: Manager::Central(SiteId::new(0)),
            policy: Policy::Invalidate,
            domain: None,
        };
        let config = Arc::new(Config::new(vec![cluster]));
        let view = Arc::new(View::first(2));
        let site = |i| Site::new(SiteId::new(i), config.clone(), view.clone());
        let mut pair = Pair {
            sites: [site(0), site(1)],
            effects: Effects::new(),
            events: VecDeque::new(),
            now: 0,
        };
        for page in 0..PAGES {
            pair.fault(0, page, true);
            pair.fault(1, page, false);
        }
        pair
    }

    /// A fault and everything that follows from it; the number of events handled.
    fn fault(&mut self, site: usize, page: u64, write: bool) -> usize {
        self.now += 2_000;
        let fault = Event::Fault { page: PageKey::new(1, page), run: 0, write };
        self.events.extend([(site, Event::Tick), (site ^ 1, Event::Tick), (site, fault)]);
        let mut handled = 0;
        while let Some((at, event)) = self.events.pop_front() {
            handled += 1;
            self.sites[at].handle(self.now, event, &mut self.effects);
            for effect in self.effects.drain() {
                if let Effect::Send { to, view, message } = effect {
                    let from = SiteId::new(at as u16);
                    let event = Event::Message { from, view, message };
                    self.events.push_back((usize::from(to.get()), event));
                }
            }
        }
        handled
    }

    /// The message that site 0 answers a read fault at site 1 with.
    fn asked(&mut self, page: u64) -> Event {
        self.fault(0, page, true);
        let fault = Event::Fault { page: PageKey::new(1, page), run: 0, write: false };
        self.sites[1].handle(self.now, fault, &mut self.effects);
        first_sent(&mut self.effects, 1)
    }
}

fn first_sent(effects: &mut Effects, from: u16) -> Event {
    let sent = effects.drain().find_map(|effect| match effect {
        Effect::Send { view, message, .. } => {
            Some(Event::Message { from: SiteId::new(from), view, message })
        }
        _ => None,
    });
    sent.expect("a message")
}

/// At the reader: the fault becomes a request.
#[divan::bench]
fn read_fault_asks(bencher: Bencher) {
    let mut pair = Pair::new();
    let mut page = 0;
    for page in 0..PAGES {
        pair.fault(0, page, true);
    }
    bencher.counter(ItemsCount::new(1u32)).bench_local(|| {
        // Each page faults once; beyond that the fault is already outstanding.
        page = (page + 7919) % PAGES;
        let fault = Event::Fault { page: PageKey::new(1, page), run: 0, write: false };
        pair.sites[1].handle(pair.now, fault, &mut pair.effects);
        pair.effects.drain().count()
    });
}

/// At the owner: the request is answered.
#[divan::bench]
fn read_fault_served(bencher: Bencher) {
    let mut pair = Pair::new();
    let request = pair.asked(4_711);
    bencher.counter(ItemsCount::new(1u32)).with_inputs(|| request.clone()).bench_local_values(
        |request| {
            pair.sites[0].handle(pair.now, request, &mut pair.effects);
            pair.effects.drain().count()
        },
    );
}

/// A read fault from its beginning to its end: the owner's earlier write has taken the copy away.
#[divan::bench]
fn write_then_read_round_trip(bencher: Bencher) {
    let mut pair = Pair::new();
    let mut page = 0;
    let handled = pair.fault(0, 0, true) + pair.fault(1, 0, false);
    bencher.counter(ItemsCount::new(handled)).bench_local(|| {
        page = (page + 7919) % PAGES;
        pair.fault(0, page, true) + pair.fault(1, page, false)
    });
}

/// The same with one page, which stays in the cache.
#[divan::bench]
fn write_then_read_one_page(bencher: Bencher) {
    let mut pair = Pair::new();
    let handled = pair.fault(0, 0, true) + pair.fault(1, 0, false);
    bencher
        .counter(ItemsCount::new(handled))
        .bench_local(|| pair.fault(0, 0, true) + pair.fault(1, 0, false));
}

/// Ownership goes there and back.
#[divan::bench]
fn ownership_ping_pong(bencher: Bencher) {
    let mut pair = Pair::new();
    let handled = pair.fault(1, 0, true) + pair.fault(0, 0, true);
    bencher
        .counter(ItemsCount::new(handled))
        .bench_local(|| pair.fault(1, 0, true) + pair.fault(0, 0, true));
}
