//! Crash truth: thousands of crash points, new ones each time. A failure prints a seed; `STEAD_SEED=n` runs that
//! one alone, as does `simulator store --seed n`, which also runs for as long as one likes; `STEAD_CRASH_POINTS=n`
//! runs more or fewer.

use std::collections::hash_map::RandomState;
use std::hash::BuildHasher;
use std::panic::RefUnwindSafe;

use stead_store::planted::{self, Bug};
use stead_store::sim::sweep::{sweep, sweep_cleaning};
use stead_store::sim::torture::{Lived, cleaning_life, life};

const CRASHES_PER_LIFE: u64 = 8;
const THREADS: u64 = 2;

fn number(variable: &str) -> Option<u64> {
    let value = std::env::var(variable).ok()?;
    Some(value.parse().unwrap_or_else(|_| panic!("{variable} must be a number, not {value:?}")))
}

#[test]
fn every_crash_leaves_the_last_state_or_the_one_under_way() {
    if let Some(seed) = number("STEAD_SEED") {
        eprintln!("{:?}", one(seed).unwrap_or_else(|why| panic!("seed {seed}: {why}")));
        return;
    }
    let points = number("STEAD_CRASH_POINTS").unwrap_or(20_000);
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
        assert!(all.crashes_in_recovery > points / 20 && all.committed > points);
        assert!(all.failed > 0 && all.moved > points && all.under_way > 0);
        assert!(all.cut > 0 && all.tidied > 0 && all.streams > points / 20);
        assert!(all.refused > 0 && all.laid_down > points / 50);
        assert!(all.fell_back > 0 && all.rot_noticed > 0 && all.silent_noticed > 0);
    }
}

/// Every fourth life is mostly about cleaning.
fn one(seed: u64) -> Result<Lived, String> {
    if seed.is_multiple_of(4) {
        cleaning_life(seed, CRASHES_PER_LIFE)
    } else {
        life(seed, CRASHES_PER_LIFE)
    }
}

fn live(seeds: impl Iterator<Item = u64>) -> Result<Lived, String> {
    let mut all = Lived::default();
    for seed in seeds {
        match one(seed) {
            Ok(lived) => all.add(lived),
            Err(why) => {
                return Err(format!(
                    "{why}\nagain with STEAD_SEED={seed}, or: cargo run --release -p simulator -- store --seed {seed}"
                ));
            }
        }
    }
    Ok(all)
}

/// How many lives it takes until the checker finds a planted bug.
fn lives_until_caught(bug: Bug) -> u64 {
    caught(bug, life)
}

fn caught(bug: Bug, life: impl Fn(u64, u64) -> Result<Lived, String> + RefUnwindSafe) -> u64 {
    let first = RandomState::new().hash_one(0) >> 16;
    planted::set(Some(bug));
    let caught = (0..3000).find_map(|i| {
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
    lives
}

#[test]
fn a_root_without_a_flush_before_it_is_found() {
    lives_until_caught(Bug::NoFlushBeforeRoot);
}

#[test]
fn a_last_record_believed_unchecked_is_found() {
    lives_until_caught(Bug::ChecksumSkipped);
}

#[test]
fn segments_used_again_too_early_are_found() {
    lives_until_caught(Bug::EarlyReuse);
}

#[test]
fn a_commit_before_its_body_is_found() {
    lives_until_caught(Bug::CommitBeforeBody);
}

#[test]
fn a_chunk_written_ahead_that_failed_unheeded_is_found() {
    lives_until_caught(Bug::AheadUnheeded);
}

#[test]
fn a_chunk_written_behind_the_flush_that_is_to_cover_it_is_found() {
    lives_until_caught(Bug::ChunksBehindFlush);
}

#[test]
fn a_flush_that_does_not_wait_for_writes_under_way_is_found() {
    lives_until_caught(Bug::FlushUnderWay);
}

#[test]
fn a_swallowed_error_is_found() {
    lives_until_caught(Bug::SwallowedEio);
}

#[test]
fn a_flush_tried_again_is_found() {
    lives_until_caught(Bug::RetriedFlush);
}

#[test]
fn an_epoch_behind_one_root_is_found() {
    lives_until_caught(Bug::OneRoot);
}

#[test]
fn quotas_that_a_checkpoint_forgets_are_found() {
    lives_until_caught(Bug::QuotaForgotten);
}

#[test]
fn quotas_that_outlive_their_containers_are_found() {
    lives_until_caught(Bug::QuotaOutlives);
}

#[test]
fn a_file_cut_before_both_roots_allow_it_is_found() {
    lives_until_caught(Bug::CutTooEarly);
}

#[test]
fn a_log_cut_at_its_first_bad_chunk_is_found() {
    lives_until_caught(Bug::BlindTail);
}

#[test]
fn a_copy_of_a_header_of_another_chunk_is_found() {
    lives_until_caught(Bug::TwinOfAnother);
}

#[test]
fn a_header_whose_copy_is_not_looked_for_is_found() {
    lives_until_caught(Bug::TwinIgnored);
}

#[test]
fn a_root_that_could_not_be_read_and_is_kept_is_found() {
    lives_until_caught(Bug::UnusableRootKept);
}

#[test]
fn what_was_read_of_a_segment_before_it_was_written_anew_is_found_moved() {
    caught(Bug::StaleGathered, cleaning_life);
}

/// No call left out: each of them fails, in each way, and crashes follow crashes.
#[test]
fn a_fault_at_every_call() {
    let first = number("STEAD_SEED").unwrap_or_else(|| RandomState::new().hash_one(0) >> 16);
    let swept = sweep(first, 9)
        .unwrap_or_else(|what| panic!("seed {first}: {what}\nagain with STEAD_SEED={first}"));
    eprintln!("seed {first}: {swept:?}");
    assert!(swept.faults > 50 && swept.crashes_again > 20, "{swept:?}");
    let swept = sweep_cleaning(first, 40)
        .unwrap_or_else(|what| panic!("seed {first}: {what}\nagain with STEAD_SEED={first}"));
    assert!(swept.faults > 50, "{swept:?}");
}
