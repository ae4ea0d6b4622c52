//! The same life again and again, with a fault at its first call, its second, its third: no call is left out by
//! chance. Read [`sweep`] first.

use std::sync::Arc;

use super::Fault;
use super::torture::Life;
use crate::store::Store;

/// What a sweep did.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Swept {
    /// Lives, each with one fault.
    pub faults: u64,
    /// Lives with a crash, a second one in what opening does next, and a third.
    pub crashes_again: u64,
}

/// The faults that are told to the store.
const TOLD: [Fault; 4] = [Fault::Crash, Fault::Eio, Fault::NoSpace, Fault::LosingFlush];

/// Lives the life of `seed`, `steps` long, with each kind of fault at each call in turn, and checks what is
/// there after a restart; and with a second and a third crash at each call of what opening and the first root do.
///
/// # Errors
/// The promise that was broken, in words, with the fault and the call.
pub fn sweep(seed: u64, steps: u64) -> Result<Swept, String> {
    let mut swept = Swept::default();
    for fault in TOLD {
        swept.faults += each_call(fault, steps, || Life::new(seed))?;
    }
    for call in (1..).step_by(7) {
        for second in 1.. {
            let mut life = Life::new(seed)?;
            if !fails_at(&mut life, call, Fault::Crash, steps)? {
                return Ok(swept);
            }
            life.power_off();
            if !crash_again(&life, second) {
                break;
            }
            crash_again(&life, 1 + second % 11);
            life.recover().map_err(|what| format!("crashes at {call} and {second}: {what}"))?;
            swept.crashes_again += 1;
        }
    }
    Ok(swept)
}

/// Lives a life that is mostly about cleaning, `steps` long, with a crash at each call in turn.
///
/// # Errors
/// As for [`sweep`].
pub fn sweep_cleaning(seed: u64, steps: u64) -> Result<Swept, String> {
    let faults = each_call(Fault::Crash, steps, || Life::of_cleaning(seed))?;
    Ok(Swept { faults, crashes_again: 0 })
}

/// Lives a life with this fault at its first call, its second, and so on; how many there were.
fn each_call(
    fault: Fault,
    steps: u64,
    new: impl Fn() -> Result<Life, String>,
) -> Result<u64, String> {
    for call in 1.. {
        let mut life = new()?;
        if !fails_at(&mut life, call, fault, steps).map_err(told(fault, call))? {
            return Ok(call - 1);
        }
        let again = life.recover().and_then(|()| life.work()).and_then(|()| life.recover());
        again.map_err(told(fault, call))?;
    }
    unreachable!("calls are counted until there are no more")
}

fn told(fault: Fault, call: u64) -> impl Fn(String) -> String {
    move |what| format!("{fault:?} at call {call}: {what}")
}

/// Whether the fault came.
fn fails_at(life: &mut Life, call: u64, fault: Fault, steps: u64) -> Result<bool, String> {
    life.medium.fail_at(call, fault);
    for _ in 0..steps {
        life.work()?;
        if life.medium.is_crashed() {
            break;
        }
    }
    Ok(!life.medium.no_fault())
}

/// Opens the store and has it write its first roots, with a crash at this call; whether it came to that.
fn crash_again(life: &Life, call: u64) -> bool {
    life.medium.restart();
    life.medium.fail_at(call, Fault::Crash);
    if let Ok((store, _)) = Store::open_on(Arc::new(life.medium.clone())) {
        // The crash is what is wanted.
        let _ = store.checkpoint();
    }
    life.medium.is_crashed()
}
