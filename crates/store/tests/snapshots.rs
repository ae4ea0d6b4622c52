//! Snapshots under crashes: thousands of crash points, new ones each time. A failure prints a seed; `STEAD_SEED=n` runs
//! that one alone, `STEAD_SNAPSHOT_POINTS=n` more or fewer crash points.

use std::collections::hash_map::RandomState;
use std::hash::BuildHasher;

use stead_store::planted::{self, Bug};
use stead_store::sim::snapshots::{Lived, life};

const CRASHES_PER_LIFE: u64 = 8;
const THREADS: u64 = 2;

fn number(variable: &str) -> Option<u64> {
    let value = std::env::var(variable).ok()?;
    Some(value.parse().unwrap_or_else(|_| panic!("{variable} must be a number, not {value:?}")))
}

#[test]
fn every_crash_leaves_all_versions_whole() {
    if let Some(seed) = number("STEAD_SEED") {
        let lived = life(seed, CRASHES_PER_LIFE).unwrap_or_else(|why| panic!("seed {seed}: {why}"));
        eprintln!("{lived:?}");
        return;
    }
    let points = number("STEAD_SNAPSHOT_POINTS").unwrap_or(4000);
    let first = RandomState::new().hash_one(0) >> 16;
    eprintln!("seeds from {first} on");
    let lives = points.div_ceil(CRASHES_PER_LIFE);
    let lived = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..THREADS)
            .map(|thread| {
                let seeds = (thread..lives).step_by(THREADS as usize).map(|i| first + i);
                scope.spawn(move || live(seeds))
            })
            .collect();
        threads
            .into_iter()
            .map(|thread| thread.join().expect("the checker itself works"))
            .collect::<Result<Vec<Lived>, String>>()
    });
    let mut all = Lived::default();
    lived.unwrap_or_else(|why| panic!("{why}")).into_iter().for_each(|lived| all.add(lived));
    eprintln!("{all:?}");
    assert!(all.crashes >= points);
    if points >= 2000 {
        // The torture has reached what it is for.
        assert!(all.committed > points && all.taken > points / 2 && all.dropped > points / 8);
        assert!(all.gone_back > points / 20 && all.branched > points / 20);
        assert!(all.moved > points && all.pinned > points && all.under_way > 0);
        assert!(all.one_root > points / 20);
    }
}

fn live(seeds: impl Iterator<Item = u64>) -> Result<Lived, String> {
    let mut all = Lived::default();
    for seed in seeds {
        let ended = std::panic::catch_unwind(|| life(seed, CRASHES_PER_LIFE));
        match ended {
            Ok(Ok(lived)) => all.add(lived),
            Ok(Err(why)) => return Err(format!("{why}; again with STEAD_SEED={seed}")),
            Err(_) => return Err(format!("it panics; again with STEAD_SEED={seed}")),
        }
    }
    Ok(all)
}

/// How many lives it takes until the checker finds a planted bug.
fn lives_until_caught(bug: Bug) {
    let first = RandomState::new().hash_one(0) >> 16;
    planted::set(Some(bug));
    let caught = (0..2000).find_map(|i| {
        let ended = std::panic::catch_unwind(|| life(first + i, CRASHES_PER_LIFE));
        match ended {
            Ok(Ok(_)) => None,
            Ok(Err(why)) => Some((i + 1, why)),
            Err(_) => Some((i + 1, "an assertion of the store's own".to_string())),
        }
    });
    planted::set(None);
    let (lives, why) = caught.unwrap_or_else(|| panic!("{bug:?} is not found, seeds from {first}"));
    eprintln!("{bug:?}: found in life {lives}: {why}");
}

#[test]
fn a_block_freed_that_a_snapshot_has_is_found() {
    lives_until_caught(Bug::SharedBlockFreed);
}

#[test]
fn going_back_behind_one_root_is_found() {
    lives_until_caught(Bug::GoBackWithOneRoot);
}

#[test]
fn cleaning_in_the_live_map_only_is_found() {
    lives_until_caught(Bug::MovedInLiveOnly);
}

#[test]
fn blocks_of_a_dropped_snapshot_that_are_kept_are_found() {
    lives_until_caught(Bug::DroppedButKept);
}
