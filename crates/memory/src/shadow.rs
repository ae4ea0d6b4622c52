//! Memory that accompanies a container without being part of it: as large, zero at start, gone with
//! the process. Lock state lives here, because in a page it would dirty the page and enter stable
//! states. What the bytes mean is absent. Read [`Shadow`] first.

use stead_model::Address;

use crate::error::MapError;
use crate::space::Reservation;
use crate::sys::{Linux, Sys};

/// One byte of volatile memory for each byte of a container; only the pages touched cost memory.
pub struct Shadow<S: Sys = Linux> {
    base: Address,
    container_base: Address,
    _area: S::Area,
}

impl<S: Sys> Shadow<S> {
    /// A shadow for a whole container.
    ///
    /// # Errors
    /// If the kernel refuses so many addresses (`vm.overcommit_memory=2`, or a limit).
    pub fn new(reservation: &Reservation<S>) -> Result<Shadow<S>, MapError> {
        let held = &reservation.held;
        let (area, base) =
            held.space.sys.reserve_volatile(held.run.byte_len()).map_err(|errno| {
                MapError::Refused {
                    container: held.container,
                    step: "reserving memory for locks",
                    errno,
                    advice: "vm.overcommit_memory must not be 2, and `ulimit -v` unlimited",
                }
            })?;
        crate::counters::add(&held.space.counters.calls_mapping, 1);
        Ok(Shadow { base, container_base: reservation.base(), _area: area })
    }

    /// The shadow of the container's first byte.
    #[must_use]
    pub fn base(&self) -> Address {
        self.base
    }

    /// What to add to an address in the container to get the address of its shadow, bytes.
    #[must_use]
    pub fn delta(&self) -> isize {
        self.base.0.wrapping_sub(self.container_base.0) as isize
    }
}

impl<S: Sys> std::fmt::Debug for Shadow<S> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shadow").field("base", &self.base).finish_non_exhaustive()
    }
}
