//! Litmus tests: small programs whose forbidden outcomes tell sequential consistency from less. Read
//! [`Litmus`] and [`run`] first.

use stead_coherence::{ClusterConfig, ClusterId, Config, Manager, PageKey, Policy};

use crate::cluster::{Cluster, Weather};
use crate::program::{Op, Place, Program, Surroundings, WORDS};

/// A litmus test: threads at sites of their own, and what must not come out.
#[derive(Debug)]
pub struct Litmus {
    /// Its usual name.
    pub name: &'static str,
    /// What each thread does; words are named by number.
    threads: &'static [&'static [Do]],
    /// Whether values loaded by the threads, and the final words, are forbidden.
    forbidden: fn(&[Vec<u64>], [u64; 2]) -> bool,
}

#[derive(Clone, Copy, Debug)]
enum Do {
    Load(usize),
    Store(usize, u64),
}

use Do::{Load, Store};

const X: usize = 0;
const Y: usize = 1;

/// The six.
pub const ALL: [Litmus; 6] = [
    Litmus {
        name: "SB",
        threads: &[&[Store(X, 1), Load(Y)], &[Store(Y, 1), Load(X)]],
        forbidden: |loaded, _| loaded[0][0] == 0 && loaded[1][0] == 0,
    },
    Litmus {
        name: "MP",
        threads: &[&[Store(X, 1), Store(Y, 1)], &[Load(Y), Load(X)]],
        forbidden: |loaded, _| loaded[1] == [1, 0],
    },
    Litmus {
        name: "LB",
        threads: &[&[Load(X), Store(Y, 1)], &[Load(Y), Store(X, 1)]],
        forbidden: |loaded, _| loaded[0][0] == 1 && loaded[1][0] == 1,
    },
    Litmus {
        name: "IRIW",
        threads: &[&[Store(X, 1)], &[Store(Y, 1)], &[Load(X), Load(Y)], &[Load(Y), Load(X)]],
        forbidden: |loaded, _| loaded[2] == [1, 0] && loaded[3] == [1, 0],
    },
    Litmus {
        name: "2+2W",
        threads: &[&[Store(X, 1), Store(Y, 2)], &[Store(Y, 1), Store(X, 2)]],
        forbidden: |_, last| last == [1, 1],
    },
    Litmus {
        name: "CoRR",
        threads: &[&[Store(X, 1)], &[Load(X), Load(X)], &[Load(X), Load(X)]],
        forbidden: |loaded, _| loaded[1] == [1, 0] || loaded[2] == [1, 0],
    },
];

/// Runs a litmus test once; what the threads loaded and what the words were at the end.
///
/// # Errors
/// If the outcome is forbidden or the threads do not end.
pub fn run(
    litmus: &Litmus,
    manager: Manager,
    one_page: bool,
    seed: u64,
) -> Result<Vec<Vec<u64>>, String> {
    let cluster_config =
        ClusterConfig { id: ClusterId(1), manager, policy: Policy::Invalidate, domain: None };
    let pages: Vec<PageKey> = [0, 37].map(|p| PageKey::new(1, p * 64)).to_vec();
    let place = |word: usize| {
        let page = pages[if one_page { 0 } else { word }];
        Place { page, word: word % WORDS }
    };
    let weather = Weather {
        latency_us: (20, 200),
        lost_per_mille: 20,
        doubled_per_mille: 20,
        slow_us: 0,
        retire_us: 20,
        think_us: 300,
        disk_us: 0,
    };
    let around = Surroundings { pages: pages.clone(), locks: Vec::new() };
    let config = Config::new(vec![cluster_config]);
    let sites = litmus.threads.len() as u16 + 1;
    let mut cluster = Cluster::new(seed, sites, config, around, weather);
    for (site, ops) in litmus.threads.iter().enumerate() {
        let ops = ops.iter().rev().map(|op| match op {
            Load(word) => Op::Load(place(*word)),
            Store(word, value) => Op::StoreValue(place(*word), *value),
        });
        cluster.spawn(site, Program::Script { ops: ops.collect(), loaded: Vec::new() });
    }
    // The last site looks at both words when all is over.
    let mut steps = 0;
    let loaded = |cluster: &Cluster, site: usize| match &cluster.nodes[site].threads[0].program {
        Program::Script { loaded, .. } => loaded.clone(),
        Program::Workload { .. } => Vec::new(),
    };
    let mut looking = false;
    while !cluster.is_over() || !looking {
        if cluster.is_over() {
            looking = true;
            let ops = vec![Op::Load(place(Y)), Op::Load(place(X))];
            cluster.spawn(litmus.threads.len(), Program::Script { ops, loaded: Vec::new() });
        }
        steps += 1;
        if cluster.step().is_none() || steps > 100_000 {
            return Err(format!("{} with {manager:?}, seed {seed}: does not end", litmus.name));
        }
    }
    let values: Vec<Vec<u64>> = (0..litmus.threads.len()).map(|s| loaded(&cluster, s)).collect();
    let last = loaded(&cluster, litmus.threads.len());
    if (litmus.forbidden)(&values, [last[0], last[1]]) {
        return Err(format!(
            "{} with {manager:?}, seed {seed}: loaded {values:?}, at the end {last:?}",
            litmus.name
        ));
    }
    Ok(values)
}
