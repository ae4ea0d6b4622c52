//! How the cost of a fault grows with the number of sites, from ten to ten thousand. Read [`measure`]
//! first.

use stead_coherence::{ClusterConfig, ClusterId, Config, Manager, PageKey, Policy, SiteId};

use crate::cluster::{Cluster, Weather};
use crate::program::{Op, Place, Program, Surroundings};
use crate::svg::{Panel, Series, draw};

/// Numbers of sites.
pub const SITES: [u16; 4] = [10, 100, 1_000, 10_000];

/// Who shares what.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Sharing {
    /// Groups of eight sites share eight pages, however many sites there are.
    Groups,
    /// One page that all read, and to which one site in fifty stores once in fifty times.
    Hot,
}

/// One cluster, measured.
#[derive(Clone, Copy, Debug)]
pub struct Point {
    /// Number of sites.
    pub sites: u16,
    /// Faults that went to the network.
    pub faults: u64,
    /// Messages that programs waited for, for each fault.
    pub messages: f64,
    /// Messages that followed, for each fault.
    pub after: f64,
    /// Bytes for each fault.
    pub bytes: f64,
    /// Most sites that passed one request on.
    pub hops_max: u8,
    /// Bytes of state, on average over the sites.
    pub state_bytes: f64,
    /// The same at the site with most.
    pub state_bytes_max: usize,
}

/// Runs a cluster to its end.
#[must_use]
pub fn measure(sites: u16, manager: Manager, sharing: Sharing) -> Point {
    let cluster_config =
        ClusterConfig { id: ClusterId(1), manager, policy: Policy::Invalidate, domain: None };
    let mut config = Config::new(vec![cluster_config]);
    // Queues at a hot page grow longer than the time after which a request is said again, which
    // would count repetitions.
    config.retry_us = 60_000_000;
    let around = Surroundings { pages: vec![PageKey::new(1, 0)], locks: Vec::new() };
    let weather = Weather { latency_us: (50, 150), think_us: 20_000, ..Weather::CALM };
    let mut cluster = Cluster::new(u64::from(sites), sites, config, around, weather);
    let mut rng = fastrand::Rng::with_seed(7);
    for site in 0..sites {
        let ops = (0..20).map(|_| operation(site, sharing, &mut rng)).collect();
        cluster.spawn(site.into(), Program::Script { ops, loaded: Vec::new() });
    }
    while cluster.threads_left > 0 || cluster.in_flight > 0 {
        if cluster.step().is_none() {
            break;
        }
    }
    let traffic = cluster.traffic;
    let each = |count: u64| count as f64 / traffic.faults as f64;
    let state: Vec<usize> =
        cluster.nodes.iter().filter_map(|n| n.site.as_ref()).map(|s| s.state_bytes()).collect();
    Point {
        sites,
        faults: traffic.faults,
        messages: each(traffic.waited_for),
        after: each(traffic.after),
        bytes: each(traffic.bytes),
        hops_max: traffic.hops_max,
        state_bytes: state.iter().sum::<usize>() as f64 / state.len() as f64,
        state_bytes_max: state.iter().copied().max().unwrap_or(0),
    }
}

fn operation(site: u16, sharing: Sharing, rng: &mut fastrand::Rng) -> Op {
    match sharing {
        Sharing::Groups => {
            let page = u64::from(site / 8) * 8 + rng.u64(..8);
            // Each page in a chunk of its own, so that homes spread.
            let place = Place { page: PageKey::new(1, page * PageKey::CHUNK_PAGES), word: 0 };
            if rng.u8(..10) < 3 { Op::Store(place) } else { Op::Load(place) }
        }
        Sharing::Hot => {
            let place = Place { page: PageKey::new(1, 0), word: 0 };
            if site.is_multiple_of(50) && rng.u8(..50) == 0 {
                Op::Store(place)
            } else {
                Op::Load(place)
            }
        }
    }
}

/// Everything measured: the page in Markdown and the plot.
#[must_use]
pub fn report(sites: &[u16]) -> (String, String) {
    let managers = [
        ("central", Manager::Central(SiteId::new(0))),
        ("fixed", Manager::Fixed),
        ("dynamic", Manager::Dynamic),
    ];
    let mut table = String::from(include_str!("growth.md"));
    table.push_str(
        "| Sharing | Manager | Sites | Faults | Messages a fault | Following | Bytes a fault | Longest way | State a site, bytes | Most at one |\n| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |\n",
    );
    let mut panels = [
        ("Messages a fault", true),
        ("Bytes a fault", true),
        ("Longest way of a request, sites", false),
        ("State at the fullest site, bytes", true),
    ]
    .map(|(title, logarithmic)| Panel { title, logarithmic, series: Vec::new() });
    for (sharing, words) in [(Sharing::Groups, "groups of 8"), (Sharing::Hot, "one hot page")] {
        for (name, manager) in managers {
            let points: Vec<Point> = sites.iter().map(|n| measure(*n, manager, sharing)).collect();
            for p in &points {
                table.push_str(&format!(
                    "| {words} | {name} | {} | {} | {:.2} | {:.2} | {:.0} | {} | {:.0} | {} |\n",
                    p.sites,
                    p.faults,
                    p.messages,
                    p.after,
                    p.bytes,
                    p.hops_max,
                    p.state_bytes,
                    p.state_bytes_max
                ));
            }
            let values: [fn(&Point) -> f64; 4] = [
                |p| p.messages,
                |p| p.bytes,
                |p| f64::from(p.hops_max),
                |p| p.state_bytes_max as f64,
            ];
            for (panel, value) in panels.iter_mut().zip(values) {
                let points = points.iter().map(|p| (f64::from(p.sites), value(p))).collect();
                let dashed = sharing == Sharing::Hot;
                let name = format!("{name}, {words}");
                panel.series.push(Series { name, dashed, points });
            }
        }
    }
    (table, draw(&panels))
}
