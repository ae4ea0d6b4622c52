//! Counts the messages of each kind of fault for each manager, one fault at a time in a calm
//! cluster. Read [`table`] first.

use std::fmt;

use stead_coherence::{ClusterConfig, ClusterId, Config, Event, Manager, PageKey, Policy, SiteId};

use crate::cluster::{Cluster, Weather};
use crate::program::Surroundings;

/// One kind of fault, counted.
#[derive(Clone, Debug)]
pub struct Row {
    /// The manager.
    pub manager: &'static str,
    /// The kind of fault.
    pub fault: String,
    /// Messages that the program waits for, as the table of the design has them.
    pub expected: u64,
    /// As counted.
    pub waited_for: u64,
    /// Messages that follow: that the page was taken, and who owns it.
    pub after: u64,
    /// Bodies of pages sent.
    pub bodies: usize,
}

impl fmt::Display for Row {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Row { manager, fault, expected, waited_for, after, bodies } = self;
        write!(f, "{manager:8} {fault:44} {expected:8} {waited_for:8} {after:6} {bodies:6}")
    }
}

/// Copies to be invalidated in the rows with copies.
const COPIES: u64 = 3;

/// All kinds of faults with all managers.
#[must_use]
pub fn table() -> Vec<Row> {
    let mut rows = Vec::new();
    for (name, manager) in [
        ("central", Manager::Central(SiteId::new(0))),
        ("fixed", Manager::Fixed),
        ("dynamic", Manager::Dynamic),
    ] {
        let mut row = |fault: &str, expected, measure: &dyn Fn(&mut Scene) -> Count| {
            let mut scene = Scene::new(manager);
            let Count { waited_for, after, bodies } = measure(&mut scene);
            let fault = fault.to_string();
            rows.push(Row { manager: name, fault, expected, waited_for, after, bodies });
        };
        let m = COPIES;
        row("read, manager apart", 3, &|s| {
            s.write(s.other(0));
            s.read(s.other(1))
        });
        row("read, manager asks", 2, &|s| {
            s.write(s.other(0));
            s.read(s.home)
        });
        row("read, manager owns", 2, &|s| s.read(s.other(0)));
        row("write, no copies, manager apart", 3, &|s| {
            s.write(s.other(0));
            s.write(s.other(1))
        });
        row("write, 3 copies, manager apart", 3 + 2 * m, &|s| {
            s.write(s.other(0));
            s.read_at(2..2 + m);
            s.write(s.other(1))
        });
        row("write, 3 copies, manager asks", 2 + 2 * m, &|s| {
            s.write(s.other(0));
            s.read_at(2..2 + m);
            s.write(s.home)
        });
        row("write, 3 copies, manager owns", 2 + 2 * m, &|s| {
            s.write(s.home);
            s.read_at(2..2 + m);
            s.write(s.other(0))
        });
        row("owner upgrades, 3 copies", 2 * m, &|s| {
            s.write(s.other(0));
            s.read_at(2..2 + m);
            s.write(s.other(0))
        });
        if manager != Manager::Dynamic {
            row("reader upgrades, 3 other copies, no body", 3 + 2 * m, &|s| {
                s.write(s.other(0));
                s.read_at(1..2 + m);
                s.write(s.other(1))
            });
        }
        row("run of 16 pages to read, manager apart", 3, &|s| {
            for page in 0..16 {
                s.fault(s.other(0), page, 0, true);
            }
            s.count(|s| s.fault(s.other(1), 0, 0xFFFF, false))
        });
    }
    let manager = Manager::Dynamic;
    let mut row = |fault: &str, expected, measure: &dyn Fn(&mut Scene) -> Count| {
        let mut scene = Scene::new(manager);
        let Count { waited_for, after, bodies } = measure(&mut scene);
        let fault = fault.to_string();
        rows.push(Row { manager: "dynamic", fault, expected, waited_for, after, bodies });
    };
    let m = COPIES;
    // A site that had a copy until the owner wrote again knows the owner.
    let hint = |s: &mut Scene, of: usize| {
        s.write(s.other(0));
        s.read(of);
        s.write(s.other(0));
    };
    for owners in 0..=5 {
        // Two sites pass a request on by their hints, a third one to the home, the home to the
        // owner: no more than four, however many owners there were.
        let k = if owners <= 2 { owners } else { 4 };
        row(&format!("read, {owners} owners since the hint (k = {k})"), k + 2, &|s| {
            let asks = s.other(8);
            hint(s, asks);
            for owner in 1..=owners {
                s.write(s.other(owner as usize));
            }
            s.read(asks)
        });
    }
    row("write, 3 copies, hint right (least possible)", 2 + 2 * m, &|s| {
        let asks = s.other(6);
        hint(s, asks);
        s.read_at(2..2 + m);
        s.write(asks)
    });
    row("reader upgrades, 3 other copies, no body", 2 + 2 * m, &|s| {
        s.write(s.other(0));
        s.read_at(1..2 + m);
        s.write(s.other(1))
    });
    rows
}

struct Count {
    waited_for: u64,
    after: u64,
    bodies: usize,
}

/// Ten sites and one page whose home is `home`.
struct Scene {
    cluster: Cluster,
    home: usize,
}

impl Scene {
    fn new(manager: Manager) -> Scene {
        let config =
            ClusterConfig { id: ClusterId(1), manager, policy: Policy::Invalidate, domain: None };
        let around = Surroundings { pages: vec![PageKey::new(1, 0)], locks: Vec::new() };
        let cluster = Cluster::new(1, 10, Config::new(vec![config]), around, Weather::CALM);
        let site = cluster.nodes[0].site.as_ref();
        let home = site.and_then(|s| s.home(PageKey::new(1, 0))).map_or(0, |s| s.get().into());
        Scene { cluster, home }
    }

    /// The `n`th site that is not the home.
    fn other(&self, n: usize) -> usize {
        (0..10).filter(|s| *s != self.home).nth(n).expect("ten sites are enough")
    }

    fn fault(&mut self, site: usize, page: u64, run: u64, write: bool) {
        // Long enough apart for holds to end.
        let page = PageKey::new(1, page);
        self.cluster.now += 10_000;
        self.cluster.inject(site, Event::Tick);
        self.cluster.inject(site, Event::Fault { page, run, write });
        while !self.cluster.is_quiet() {
            self.cluster.step().expect("a fault ends");
        }
        while self.cluster.step().is_some() {}
    }

    fn count(&mut self, act: impl FnOnce(&mut Scene)) -> Count {
        let before = self.cluster.traffic;
        self.cluster.log = Some(Vec::new());
        act(self);
        let log = self.cluster.log.take().unwrap_or_default();
        let traffic = self.cluster.traffic;
        Count {
            waited_for: traffic.waited_for - before.waited_for,
            after: traffic.after - before.after,
            bodies: log.iter().map(|(_, _, message)| message.bodies().count()).sum(),
        }
    }

    fn read(&mut self, site: usize) -> Count {
        self.count(|s| s.fault(site, 0, 0, false))
    }

    fn write(&mut self, site: usize) -> Count {
        self.count(|s| s.fault(site, 0, 0, true))
    }

    fn read_at(&mut self, others: std::ops::Range<u64>) {
        for n in others {
            self.read(self.other(n as usize));
        }
    }
}
