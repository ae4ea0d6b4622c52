//! The cases about rounds, and the long runs. Read [`round_cases`] first.

use stateright::Property;
use stead_coherence::Policy;

use crate::rounds::Op::{Lock, Read, Unlock, Write};
use crate::rounds::{Bounds, Script, World};
use crate::{Pages, Rounds, explore, managers, world};

type Case = (&'static str, Bounds, Vec<Property<Rounds>>);

fn script(site: usize, ops: &'static [crate::rounds::Op]) -> Script {
    Script { site, ops }
}

/// Each with what it ought to show.
pub(crate) fn round_cases() -> Vec<Case> {
    let committed_by_two =
        Property::sometimes("a round of two", |_, w: &World| w.seen.committed_by >= 2);
    let all_stable = Property::sometimes("all is stable", |_, w: &World| w.seen.all_stable);
    let captured =
        Property::sometimes("captured, then given", |_, w: &World| w.seen.captured_before_giving);
    let aborted = Property::sometimes("a round is aborted", |_, w: &World| w.seen.aborted);
    let back = Property::sometimes("a site goes back", |_, w: &World| w.seen.went_back);
    let moved = Property::sometimes("the lock moves", |_, w: &World| w.seen.lock_moved);
    let over = Property::sometimes("all is over", |_, w: &World| w.is_over());
    let both = vec![script(0, &[Write(0), Write(1)]), script(1, &[Write(0)])];
    vec![
        (
            "the giver stabilises",
            Bounds::new(both.clone(), vec![0]),
            vec![committed_by_two.clone(), all_stable.clone(), over.clone()],
        ),
        (
            "the taker stabilises",
            Bounds::new(both.clone(), vec![1]),
            vec![committed_by_two.clone(), all_stable.clone(), over.clone()],
        ),
        (
            "a page leaves while its site is quiet",
            Bounds::new(vec![script(0, &[Write(0), Write(1)]), script(2, &[Write(0)])], vec![0]),
            vec![captured, over.clone()],
        ),
        (
            "a reader writes elsewhere",
            Bounds::new(
                vec![script(0, &[Write(0), Write(1)]), script(1, &[Read(0), Write(1)])],
                vec![1],
            ),
            vec![all_stable.clone(), over.clone()],
        ),
        (
            "both write both pages",
            Bounds::new(
                vec![script(0, &[Write(0), Write(1)]), script(1, &[Write(0), Write(1)])],
                vec![0],
            ),
            vec![committed_by_two.clone(), over.clone()],
        ),
        (
            "two rounds meet",
            Bounds::new(both.clone(), vec![0, 1]),
            vec![all_stable.clone(), over.clone()],
        ),
        (
            "a lock and a round",
            Bounds::new(
                vec![script(0, &[Lock, Write(0), Unlock]), script(1, &[Lock, Write(0), Unlock])],
                vec![2],
            ),
            vec![moved, over.clone()],
        ),
        (
            "a lock, two pages and a round",
            Bounds::new(
                vec![
                    script(0, &[Lock, Write(0), Write(1), Unlock]),
                    script(1, &[Lock, Write(0), Write(1), Unlock]),
                ],
                vec![0],
            ),
            vec![committed_by_two.clone(), all_stable.clone(), over.clone()],
        ),
        (
            "three sections and a round",
            Bounds::new(
                vec![
                    script(0, &[Write(0), Write(1)]),
                    script(1, &[Read(0), Write(1)]),
                    script(2, &[Write(0)]),
                ],
                vec![0],
            ),
            vec![over.clone()],
        ),
        (
            "a round given up",
            Bounds { give_ups: 1, ..Bounds::new(both.clone(), vec![0]) },
            vec![aborted, over.clone()],
        ),
        (
            "a round and a loss",
            Bounds { losses: 1, ..Bounds::new(both.clone(), vec![0]) },
            vec![over.clone()],
        ),
        (
            "a round and an early timer",
            Bounds { early_ticks: 1, ..Bounds::new(both.clone(), vec![0]) },
            vec![over.clone()],
        ),
        (
            "a round in a single-copy cluster",
            Bounds { policy: Policy::SingleCopy, ..Bounds::new(both.clone(), vec![0]) },
            vec![over.clone()],
        ),
        (
            "a reader, a round and a crash",
            Bounds {
                crashes: 1,
                ..Bounds::new(
                    vec![script(0, &[Write(0), Write(1)]), script(1, &[Read(0), Write(1)])],
                    vec![1],
                )
            },
            vec![back.clone(), over.clone()],
        ),
        (
            "a round and a crash",
            Bounds { crashes: 1, ..Bounds::new(both, vec![0]) },
            vec![back, over],
        ),
    ]
}

/// States that a complete run may reach before it is broken off, from `MODEL_STATES`, and seconds
/// for each case, from `MODEL_SECONDS`.
fn limits() -> (usize, u64) {
    let get = |name: &str| std::env::var(name).ok().and_then(|v| v.parse().ok());
    (get("MODEL_STATES").unwrap_or(20_000_000) as usize, get("MODEL_SECONDS").unwrap_or(7200))
}

fn run_pages(what: &str, change: impl Fn(&mut world::Bounds)) {
    let (states_max, seconds_max) = limits();
    for manager in managers() {
        let mut bounds = world::Bounds::new(manager);
        change(&mut bounds);
        let name = format!("{what}, {manager:?}");
        let found = explore(&name, Pages(bounds), states_max, seconds_max);
        crate::expect_sound(&name, &found);
    }
}

#[test]
#[ignore = "long"]
fn full_loss_double_timer() {
    run_pages("3 sites, 2 pages, 3 faults, 1 loss, 1 doubled", |b| {
        b.losses = 1;
        b.doubles = 1;
    });
    run_pages("3 sites, 2 pages, 3 faults, 1 early timer", |b| b.early_ticks = 1);
}

#[test]
#[ignore = "long"]
fn full_crash_and_return() {
    run_pages("3 sites, 2 pages, 2 faults, 1 crash, 1 return", |b| {
        b.faults = 2;
        b.crashes = 1;
        b.rejoins = 1;
    });
    run_pages("3 sites, 2 pages, 3 faults, 1 crash", |b| b.crashes = 1);
}

#[test]
#[ignore = "long"]
fn full_everything() {
    run_pages("3 sites, 2 pages, 2 faults, 1 loss, 1 doubled, 1 crash, 1 return", |b| {
        b.faults = 2;
        b.losses = 1;
        b.doubles = 1;
        b.crashes = 1;
        b.rejoins = 1;
    });
}

#[test]
#[ignore = "long"]
fn full_four_faults() {
    run_pages("3 sites, 2 pages, 4 faults of 3 stores", |b| {
        b.faults = 4;
        b.stores = 3;
    });
}

#[test]
#[ignore = "long"]
fn full_rounds() {
    let (states_max, seconds_max) = limits();
    // One case alone: its name, or a part of it, in `MODEL_CASE`.
    let wanted = std::env::var("MODEL_CASE").unwrap_or_default();
    for (name, bounds, sometimes) in round_cases() {
        if !name.contains(&wanted) {
            continue;
        }
        let found = explore(name, Rounds { bounds, sometimes }, states_max, seconds_max);
        crate::expect_sound(name, &found);
    }
}
