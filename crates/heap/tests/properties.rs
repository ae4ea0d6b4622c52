//! Random sections on all collections against std's: committed, undone by an error, undone by a panic
//! anywhere, with the container closed and opened in between; after each one the contents are equal,
//! `verify` is clean and nothing has leaked. Then the same with bugs planted, which must be found.
#![deny(unsafe_code)]
#![allow(unexpected_cfgs, reason = "stead_asan is set by hand")]

mod common;
mod model;

use proptest::prelude::*;
use proptest::test_runner::{Config, RngAlgorithm, TestError, TestRng, TestRunner};
use stead_heap::planted::{self, Bug};

/// More with `STEAD_CASES=n`.
fn cases() -> u32 {
    std::env::var("STEAD_CASES").ok().and_then(|n| n.parse().ok()).unwrap_or(150)
}

/// Panics on purpose would fill the output.
fn quiet<T>(f: impl FnOnce() -> T) -> T {
    use std::sync::Once;
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let default = std::panic::take_hook();
        std::panic::set_hook(std::boxed::Box::new(move |info| {
            if info.payload().is::<&str>() || info.payload().is::<String>() {
                default(info);
            }
        }));
    });
    f()
}

fn sections() -> impl Strategy<Value = std::vec::Vec<model::Section>> {
    prop::collection::vec(model::section(), 1..12)
}

#[test]
fn sections_do_what_std_does_or_nothing() {
    quiet(|| {
        let mut runner = TestRunner::new(Config {
            cases: cases(),
            failure_persistence: None,
            ..Config::default()
        });
        let result =
            runner.run(&sections(), |sections| model::run(&sections).map_err(TestCaseError::fail));
        if let Err(e) = result {
            panic!("{e}");
        }
    });
}

/// Runs the same property with a bug planted; it must be found within a few hundred cases.
fn finds(bug: Bug) {
    quiet(|| {
        let config = Config {
            cases: 400,
            failure_persistence: None,
            max_shrink_iters: 0,
            ..Config::default()
        };
        let rng = TestRng::deterministic_rng(RngAlgorithm::ChaCha);
        let result = TestRunner::new_with_rng(config, rng).run(&sections(), |sections| {
            planted::set(Some(bug));
            let outcome = model::run(&sections);
            planted::set(None);
            outcome.map_err(TestCaseError::fail)
        });
        assert!(matches!(result, Err(TestError::Fail(..))), "{bug:?} was not found: {result:?}");
    });
}

#[test]
fn planted_control_byte_not_noted_is_found() {
    finds(Bug::ControlByteNotNoted);
}

/// Under AddressSanitizer it is found sooner, and ends the program.
#[cfg(not(stead_asan))]
#[test]
fn planted_frees_not_deferred_is_found() {
    finds(Bug::FreesNotDeferred);
}

#[test]
fn planted_allocations_not_undone_is_found() {
    finds(Bug::AllocationsNotUndone);
}

#[test]
fn planted_popped_not_noted_is_found() {
    finds(Bug::PoppedNotNoted);
}
