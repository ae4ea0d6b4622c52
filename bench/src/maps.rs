//! A map of many pairs: built, looked up, written again; against hashbrown on the ordinary heap.

use std::hint::black_box;
use std::path::Path;
use std::time::Instant;

use stead::{HashMap, Options, Persist, Result, Store};

use crate::{Row, median};

const ROUNDS: usize = 3;
/// Inserts in a section.
const BATCH: usize = 1000;

#[derive(Persist)]
#[repr(C)]
struct Root<'s> {
    map: HashMap<'s, u64, u64>,
}

#[derive(Default)]
struct Times {
    build: Vec<f64>,
    lookup: Vec<f64>,
    again: Vec<f64>,
}

pub(crate) fn measure(dir: &Path, pairs: u64) -> Result<Vec<Row>, Box<dyn std::error::Error>> {
    let mut chance = fastrand::Rng::with_seed(42);
    let keys: Vec<u64> = (0..pairs).map(|_| chance.u64(..)).collect();
    let mut look_up = keys.clone();
    chance.shuffle(&mut look_up);
    let (mut heap, mut quiet, mut stable) = (Times::default(), Times::default(), Times::default());
    for round in 0..ROUNDS {
        let mut map = hashbrown::HashMap::new();
        heap.build.push(per(pairs, || {
            for &k in &keys {
                map.insert(k, k ^ 1);
            }
        }));
        heap.lookup.push(per(pairs, || {
            black_box(look_up.iter().fold(0u64, |sum, k| sum.wrapping_add(map[k])));
        }));
        heap.again.push(per(pairs, || {
            for &k in &look_up {
                map.insert(k, k ^ 2);
            }
        }));
        drop(map);
        for (times, options, name) in [
            (&mut quiet, Options::new().interval(None).new_bytes_max(u64::MAX), "quiet"),
            (&mut stable, Options::new(), "stable"),
        ] {
            let path = dir.join(format!("map-{name}-{round}"));
            persistent(&path, &options, &keys, &look_up, times)?;
            std::fs::remove_dir_all(path)?;
        }
    }
    let mut rows = Vec::new();
    for (what, own) in [("", quiet), (", stabilised every second", stable)] {
        let mut row = |verb: &str, own: Vec<f64>, heap: &Vec<f64>| {
            rows.push(
                Row::new(format!("{verb} {pairs} pairs{what}"), median(own), "ns")
                    .against("hashbrown", median(heap.clone()))
                    .note("each"),
            );
        };
        row("build", own.build, &heap.build);
        row("look up", own.lookup, &heap.lookup);
        row("overwrite", own.again, &heap.again);
    }
    Ok(rows)
}

fn persistent(
    path: &Path,
    options: &Options,
    keys: &[u64],
    look_up: &[u64],
    times: &mut Times,
) -> Result<()> {
    let store = Store::open_with(path, options)?;
    let c = store.container::<Root<'_>>("map", |tx| Ok(Root { map: HashMap::new(tx) }))?;
    let insert = |keys: &[u64], salt: u64| -> Result<()> {
        for batch in keys.chunks(BATCH) {
            c.exclusive(|root, tx| -> Result<()> {
                for &k in batch {
                    root.map.insert(tx, k, k ^ salt)?;
                }
                Ok(())
            })?;
        }
        Ok(())
    };
    let pairs = keys.len() as u64;
    let mut outcome = Ok(());
    times.build.push(per(pairs, || outcome = insert(keys, 1)));
    outcome?;
    times.lookup.push(c.read(|root, _| {
        per(pairs, || {
            let sum = |sum: u64, k| sum.wrapping_add(*root.map.get(k).expect("it was inserted"));
            black_box(look_up.iter().fold(0u64, sum));
        })
    })?);
    let mut outcome = Ok(());
    times.again.push(per(pairs, || outcome = insert(look_up, 2)));
    outcome
}

/// Nanoseconds for each of `n`.
fn per(n: u64, f: impl FnOnce()) -> f64 {
    let began = Instant::now();
    f();
    began.elapsed().as_secs_f64() * 1e9 / n as f64
}
