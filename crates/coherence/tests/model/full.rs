//! The cases about rounds, and the long runs. Read [`round_cases`] first.

use stateright::Property;
use stead_coherence::Policy;

use crate::happened::Sight;
use crate::rounds::Op::{Lock, Read, Unlock, Write};
use crate::rounds::{Bounds, Script};
use crate::{Limits, Rounds, explore, page_cases, world};

type Case = (&'static str, Bounds, Vec<Property<Rounds>>);

fn script(site: usize, ops: &'static [crate::rounds::Op]) -> Script {
    Script { site, ops }
}

/// Each with what it ought to show.
pub(crate) fn round_cases() -> Vec<Case> {
    let seen = |name, condition| Property::<Rounds>::sometimes(name, condition);
    let committed_by_two = seen("a round of two", |m, _| m.happened.has(Sight::RoundOfTwo));
    let all_stable = seen("all is stable", |m, _| m.happened.has(Sight::AllStable));
    let captured = seen("captured, then given", |m, _| m.happened.has(Sight::CapturedBeforeGiving));
    let aborted = seen("a round is aborted", |m, _| m.happened.has(Sight::Aborted));
    let back = seen("a site goes back", |m, _| m.happened.has(Sight::WentBack));
    let moved = seen("the lock moves", |m, _| m.happened.has(Sight::LockMoved));
    let over = seen("all is over", |_, w| w.is_over());
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
            "a page goes, and comes back with the cut",
            Bounds {
                early_ticks: 1,
                ..Bounds::new(
                    vec![script(0, &[Write(0)]), script(1, &[Write(0)]), script(0, &[Write(0)])],
                    vec![0],
                )
            },
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

/// The long runs' limits: seconds for each case from `MODEL_SECONDS`, states that it may reach from
/// `MODEL_STATES`; in breadth if there is a `MODEL_BREADTH`.
fn limits() -> Limits {
    let get = |name: &str| std::env::var(name).ok().and_then(|v| v.parse().ok());
    Limits {
        states_max: get("MODEL_STATES").unwrap_or(1_000_000_000) as usize,
        seconds_max: get("MODEL_SECONDS").unwrap_or(7200),
        breadth: std::env::var_os("MODEL_BREADTH").is_some(),
    }
}

/// Cases of which the name has `MODEL_CASE` in it; all without.
fn is_wanted(name: &str) -> bool {
    std::env::var("MODEL_CASE").map_or(true, |part| name.contains(&part))
}

fn run_pages(what: &str, change: impl Fn(&mut world::Bounds)) {
    for (name, pages) in page_cases(what, change) {
        if is_wanted(&name) {
            explore(&name, pages, limits()).expect_sound(&name);
        }
    }
}

/// One after another, so that they do not take each other's memory and time.
#[test]
#[ignore = "long"]
fn full() {
    for (name, bounds, sometimes) in round_cases() {
        if is_wanted(name) {
            explore(name, Rounds::new(bounds, sometimes), limits()).expect_sound(name);
        }
    }
    run_pages("3 sites, 2 pages, 3 faults, 1 loss, 1 doubled", |b| {
        b.losses = 1;
        b.doubles = 1;
    });
    run_pages("3 sites, 2 pages, 3 faults, 1 early timer", |b| b.early_ticks = 1);
    run_pages("3 sites, 2 pages, 3 faults, 1 crash, 1 return", |b| {
        b.crashes = 1;
        b.rejoins = 1;
    });
    run_pages("3 sites, 2 pages, 2 faults, 2 crashes", |b| {
        b.faults = 2;
        b.crashes = 2;
    });
    run_pages("3 sites, 2 pages, 2 faults, 1 leave, 1 crash", |b| {
        b.faults = 2;
        b.leaves = 1;
        b.crashes = 1;
    });
    run_pages("3 sites, 2 pages, 4 faults of 3 stores", |b| {
        b.faults = 4;
        b.stores = 3;
    });
    run_pages("3 sites, 2 pages, 2 faults, 1 loss, 1 doubled, 1 crash, 1 return", |b| {
        b.faults = 2;
        b.losses = 1;
        b.doubles = 1;
        b.crashes = 1;
        b.rejoins = 1;
    });
}
