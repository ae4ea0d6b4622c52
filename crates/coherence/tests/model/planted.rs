//! Mistakes made on purpose, each of which the checker has to find (the others are found by the
//! simulator). Read [`catch`] first.

use stead_coherence::Manager;
use stead_coherence::planted::Bug;

use crate::world::Bounds;
use crate::{Pages, Rounds, explore, rounds_of};

/// Explores until the mistake shows, and prints by which property.
fn catch(bug: Bug, change: impl Fn(&mut Bounds)) {
    let mut bounds = Bounds::new(Manager::Dynamic);
    bounds.pages = 1;
    bounds.bug = Some(bug);
    change(&mut bounds);
    let found = explore(&format!("planted {bug:?}"), Pages(bounds), 2_000_000, 120);
    let by = found.violated.unwrap_or_else(|| panic!("{bug:?} was not found"));
    println!("planted {bug:?}: found by {by}");
}

fn catch_in_round(bug: Bug, case: &str) {
    let Rounds { mut bounds, .. } = rounds_of(case);
    bounds.bug = Some(bug);
    let model = Rounds { bounds, sometimes: Vec::new() };
    let found = explore(&format!("planted {bug:?}"), model, 2_000_000, 120);
    let by = found.violated.unwrap_or_else(|| panic!("{bug:?} was not found"));
    println!("planted {bug:?}: found by {by}");
}

#[test]
fn bounce() {
    catch(Bug::Bounce, |b| b.count_hops = true);
}

#[test]
fn install_stale() {
    catch(Bug::InstallStale, |_| ());
}

#[test]
fn wait_for_fault() {
    catch(Bug::WaitForFault, |_| ());
}

#[test]
fn trust_copy() {
    catch(Bug::TrustCopy, |b| b.faults = 4);
}

#[test]
fn take_twice() {
    catch(Bug::TakeTwice, |b| b.doubles = 1);
}

#[test]
fn hint_from_read() {
    catch(Bug::HintFromRead, |b| {
        b.faults = 4;
        b.count_hops = true;
    });
}

#[test]
fn no_fence() {
    catch(Bug::NoFence, |b| {
        b.faults = 3;
        b.crashes = 1;
        b.rejoins = 1;
    });
}

#[test]
fn hold_and_wait() {
    catch(Bug::HoldAndWait, |b| {
        b.sites = 2;
        b.pages = 2;
        b.runs = true;
        b.faults = 4;
        b.stores = 4;
    });
}

#[test]
fn skip_invalidation() {
    catch(Bug::SkipInvalidation, |_| ());
}

#[test]
fn write_early() {
    catch(Bug::WriteEarly, |_| ());
}

#[test]
fn drop_frame() {
    catch(Bug::DropFrame, |b| b.losses = 1);
}

#[test]
fn serve_only_awake() {
    catch_in_round(Bug::ServeOnlyAwake, "both write both pages");
}

#[test]
fn forget_gave() {
    catch_in_round(Bug::ForgetGave, "the giver stabilises");
}

#[test]
fn forget_took() {
    catch_in_round(Bug::ForgetTook, "the taker stabilises");
}

#[test]
fn give_uncaptured() {
    catch_in_round(Bug::GiveUncaptured, "a page leaves while its site is quiet");
}

#[test]
fn no_drain() {
    catch_in_round(Bug::NoDrain, "the giver stabilises");
}

#[test]
fn forget_history() {
    catch_in_round(Bug::ForgetHistory, "the giver stabilises");
}
