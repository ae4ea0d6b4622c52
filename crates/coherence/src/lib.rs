//! Who may read or write which page: the coherence protocol between sites as a pure machine
//! (catalogue C2, C3, C5, C6, C8 to C11, B7). Events go in, effects come out, time is a number.
//!
//! It knows no clock, socket, file, thread, memory or heap; the very types of this crate run in the
//! model checker, in the simulator and in a site. `SPEC.md` beside the crate has the vocabulary,
//! the messages and the invariants that comments here cite as `I1`. Read [`Site`] first, then
//! [`Event`] and [`Effect`].
#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;

/// Whether a mistake is made on purpose; never without the feature `planted`.
macro_rules! planted {
    ($site:expr, $bug:ident) => {{
        #[cfg(feature = "planted")]
        let made = $site.planted($crate::planted::Bug::$bug);
        #[cfg(not(feature = "planted"))]
        let made = false;
        made
    }};
}

mod config;
mod domain;
mod effect;
mod going_back;
mod ids;
mod lead;
mod leaving;
mod locks;
mod membership;
mod message;
mod pages;
#[cfg(feature = "planted")]
pub mod planted;
mod round;
mod site;
mod site_set;
mod sorted_map;
mod table;
mod taking;
mod view;

pub use config::{ClusterConfig, Config, Manager, Policy};
pub use effect::{Effect, Effects, Event, Outcome, Source};
pub use ids::{Access, ClusterId, DomainId, Micros, Number, PageKey, RoundId, SiteId, Version};
pub use message::{Copy, Grant, Held, Message, Request, Role, RoundWord, Vec1};
pub use site::{PageState, Site};
pub use site_set::SiteSet;
pub use view::{Member, View};
