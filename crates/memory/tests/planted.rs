//! The stress of the gate finds a gate that is left out.
#![cfg(feature = "planted")]

mod stress;

use std::time::Duration;

use stead_memory::Gate;
use stead_memory::planted::{self, Bug};

#[test]
fn planted_gate_left_out_is_found() {
    planted::set(Bug::GateLeftOut);
    let result = stress::run(Gate::new, Duration::from_secs(20));
    planted::set(Bug::None);
    assert!(result.is_err(), "sections entered closed gates, and nothing was seen torn");
}
