//! Hundreds of seeds, the litmus tests, the table of message counts, and mistakes that only a
//! simulation finds. Thousands of seeds: `cargo run --release -p simulator -- protocol --seeds 10000`.

use simulator::protocol::Plan;
use simulator::{counts, growth, litmus, protocol};
use stead_coherence::planted::Bug;
use stead_coherence::{Manager, SiteId};

const MANAGERS: [Manager; 3] = [Manager::Central(SiteId::new(0)), Manager::Fixed, Manager::Dynamic];

#[test]
fn seeds() {
    let (mut steps, mut crashes) = (0, 0);
    for seed in 0..2_400 {
        match protocol::run(seed) {
            Ok(report) => {
                steps += report.steps;
                crashes += report.crashes;
            }
            Err(what) => panic!("seed {seed}: {what}"),
        }
    }
    println!("2400 seeds, {steps} steps, {crashes} crashes");
    assert!(crashes > 800, "the seeds hardly kill anyone: {crashes}");
}

#[test]
fn a_seed_is_a_run() {
    let twice = [protocol::run(11), protocol::run(11)].map(|r| r.expect("sound").steps);
    assert_eq!(twice[0], twice[1]);
}

#[test]
fn litmus_tests() {
    for litmus in &litmus::ALL {
        let mut outcomes = std::collections::BTreeSet::new();
        for manager in MANAGERS {
            for one_page in [false, true] {
                for seed in 0..100 {
                    match litmus::run(litmus, manager, one_page, seed) {
                        Ok(values) => outcomes.insert(values),
                        Err(what) => panic!("{what}"),
                    };
                }
            }
        }
        println!("{}: {} outcomes in 600 runs, none forbidden", litmus.name, outcomes.len());
        // A test that always ends in the same way shows nothing.
        assert!(outcomes.len() > 1 || litmus.name == "2+2W", "{}", litmus.name);
    }
}

#[test]
fn messages_are_as_in_the_table() {
    for row in counts::table() {
        println!("{row}");
        assert_eq!(row.waited_for, row.expected, "{row}");
        assert!(row.after <= 2, "more than two messages follow: {row}");
        let upgrade = row.fault.contains("upgrade");
        assert!(!upgrade || row.bodies == 0, "a body goes with an upgrade: {row}");
    }
}

/// What a fault costs does not depend on how many sites there are, if as many share a page.
#[test]
fn groups_cost_the_same_among_many() {
    for manager in MANAGERS {
        let few = growth::measure(10, manager, growth::Sharing::Groups);
        let many = growth::measure(1_000, manager, growth::Sharing::Groups);
        println!("{manager:?}: {few:?} {many:?}");
        // Ten sites are homes to more of their own pages than a thousand are.
        assert!(many.messages < few.messages * 1.5, "{manager:?}: {few:?} {many:?}");
        assert!(many.hops_max <= 6, "{manager:?}: {many:?}");
    }
}

fn finds(bug: Bug, seeds: std::ops::Range<u64>) -> Option<(u64, String)> {
    seeds.into_iter().find_map(|seed| {
        let plan = Plan::draw(seed);
        let mut config = plan.config();
        config.planted = Some(bug);
        protocol::run_plan(&plan, config).err().map(|what| (seed, what))
    })
}

fn expect_found(bug: Bug) {
    let (seed, what) = finds(bug, 0..2_400).unwrap_or_else(|| panic!("{bug:?} was not found"));
    println!("planted {bug:?}: found with seed {seed}: {what}");
}

#[test]
fn planted_unfair() {
    expect_found(Bug::Unfair);
}

#[test]
fn planted_skip_invalidation() {
    expect_found(Bug::SkipInvalidation);
}

#[test]
fn planted_take_twice() {
    expect_found(Bug::TakeTwice);
}

#[test]
fn planted_install_stale() {
    expect_found(Bug::InstallStale);
}

#[test]
fn planted_drop_frame() {
    expect_found(Bug::DropFrame);
}

#[test]
fn planted_no_fence() {
    expect_found(Bug::NoFence);
}
