//! The door: what may happen to a site, and what it wants done. Nothing here decides. Read [`Event`]
//! and [`Effect`] first.

use alloc::collections::VecDeque;
use alloc::sync::Arc;
use alloc::vec::{self, Vec};

use crate::ids::{Access, DomainId, PageKey, RoundId, SiteId, Version};
use crate::message::Message;
use crate::site_set::SiteSet;
use crate::view::View;

/// Something happened.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum Event {
    /// A program touched a page it may not, or is expected to. Pages `n` after `page` are wanted too
    /// if bit `n` of `run` is set and nobody needs them more (I9). Harmless when repeated.
    Fault {
        /// The page.
        page: PageKey,
        /// Bit 0 is not looked at; pages beyond the chunk are not asked for.
        run: u64,
        /// It was a store, or a load with intent to store.
        write: bool,
    },
    /// A message came. Bodies, if any, lie ready for [`Effect::Fill`].
    Message {
        /// Who sent it.
        from: SiteId,
        /// The view it was sent in.
        view: u32,
        /// The message.
        message: Message,
    },
    /// Time passed. See [`Site::next_tick`](crate::Site::next_tick).
    Tick,
    /// The authority issued a view.
    View(Arc<View>),
    /// A thread wants a lock; [`Effect::Locked`] comes once for each.
    Lock {
        /// The lock: a page of a cluster of locks.
        lock: PageKey,
        /// The page that it protects may come with it (C8).
        with: Option<PageKey>,
    },
    /// A thread gives back the lock it has.
    Unlock {
        /// The lock.
        lock: PageKey,
    },
    /// [`Effect::Capture`] is done: the page's contents are set aside for the round.
    Captured {
        /// The page.
        page: PageKey,
        /// The version that was to be captured.
        version: Version,
        /// The round.
        round: RoundId,
    },
    /// Take a stabilisation of the domain; [`Effect::RoundEnded`] says how it went. One at a time: a
    /// second one before that is the same.
    Stabilise {
        /// The domain.
        domain: DomainId,
    },
    /// The gate of the domain is closed and no mutating section is open behind it.
    Drained {
        /// The domain.
        domain: DomainId,
    },
    /// [`Effect::Persist`] is done.
    Persisted {
        /// The round.
        round: RoundId,
        /// The domain.
        domain: DomainId,
    },
    /// [`Effect::Commit`] is done: the stable state has moved.
    Committed {
        /// The round.
        round: RoundId,
        /// The domain.
        domain: DomainId,
    },
    /// Answers [`Effect::AskFate`] from the authority.
    Fate {
        /// The round.
        round: RoundId,
        /// The domain.
        domain: DomainId,
        /// Whether the stable state has moved.
        committed: bool,
    },
    /// The site is to leave: its programs have ended, their locks are given back. It gives its pages to
    /// others and has modified ones stabilised; [`Effect::MayLeave`] says that it is done. One site at a
    /// time.
    Leave,
    /// The round coordinated here is no longer wanted.
    GiveUp {
        /// The domain.
        domain: DomainId,
    },
    /// The caller has undone what it must; modified pages of the domain return to their last stable
    /// contents.
    GoBack {
        /// The domain.
        domain: DomainId,
        /// The site whose death began it.
        because: SiteId,
    },
}

/// Something to be done. Effects are done in order, each one complete before the next: the machine
/// relies on it (a page is protected before it is sent), and so needs no word back about mappings.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum Effect {
    /// Send a message, with the bodies of the pages that it gives, read from the frames now; the
    /// frame of a page without one is read from the stable store.
    Send {
        /// To whom; never this site.
        to: SiteId,
        /// In which view.
        view: u32,
        /// What.
        message: Message,
    },
    /// Put a body into the page's frame, without giving access.
    Fill {
        /// The page.
        page: PageKey,
        /// Where the body is.
        source: Source,
    },
    /// Let programs have this access to the frame, and wake those that wait for the page.
    Map {
        /// The page.
        page: PageKey,
        /// More than before.
        access: Access,
    },
    /// Programs may load but no longer store.
    Protect {
        /// The page.
        page: PageKey,
    },
    /// Programs may neither load nor store. The frame is kept for [`Effect::Send`], or dropped.
    Revoke {
        /// The page.
        page: PageKey,
        /// Keep the frame until [`Effect::Release`] or a new [`Effect::Fill`].
        keep: bool,
    },
    /// Drop a frame that was kept.
    Release {
        /// The page.
        page: PageKey,
    },
    /// The thread that waits longest here has the lock.
    Locked {
        /// The lock.
        lock: PageKey,
    },
    /// Set the page's contents aside for the round: a copy in memory or in the store's log. Then
    /// [`Event::Captured`]. Asked again, with the same version, if a program waits for it: that is no
    /// second capture, which could find newer contents.
    Capture {
        /// The page.
        page: PageKey,
        /// The version captured; in a round the highest one of a page counts.
        version: Version,
        /// The round.
        round: RoundId,
    },
    /// Let no mutating section of the domain begin; then [`Event::Drained`] when none is open.
    CloseGate {
        /// The domain.
        domain: DomainId,
    },
    /// Let mutating sections begin.
    OpenGate {
        /// The domain.
        domain: DomainId,
    },
    /// Make everything captured for the round durable, then [`Event::Persisted`].
    Persist {
        /// The round.
        round: RoundId,
        /// The domain.
        domain: DomainId,
    },
    /// Move the stable state to the round in one step, then [`Event::Committed`].
    Commit {
        /// The round.
        round: RoundId,
        /// The domain.
        domain: DomainId,
        /// The sites whose captures it is made of.
        members: SiteSet,
    },
    /// What was captured for the round counts no more.
    DropCaptures {
        /// The round.
        round: RoundId,
        /// The domain.
        domain: DomainId,
    },
    /// The coordinator died: ask the authority whether the round was committed.
    AskFate {
        /// The round.
        round: RoundId,
        /// The domain.
        domain: DomainId,
    },
    /// How a stabilisation asked for here went.
    RoundEnded {
        /// The domain.
        domain: DomainId,
        /// How.
        outcome: Outcome,
    },
    /// The view is in force and homes are rebuilt: faults are served again.
    Rebuilt {
        /// The view's number.
        view: u32,
    },
    /// The page was with a site that died; it is again what it was in the last stable state. Said by
    /// its home, before anyone may load it (I21).
    Lost {
        /// The page.
        page: PageKey,
        /// The site that died, if it is known.
        with: Option<SiteId>,
    },
    /// A site died that was home to pages in this view, or left in order while another one died. It may
    /// have had some of them alone, or alone known that the dead site had them, and nobody else know; and what it said itself by [`Effect::Lost`] is gone with it. So each page whose home
    /// it was ([`Site::home_in`](crate::Site::home_in)), unless this site had it all the time, may be
    /// again what it was in the last stable state (I21). Said at every site that was in the view,
    /// before [`Effect::Rebuilt`].
    LostHome {
        /// The site that is gone.
        site: SiteId,
        /// The last view in which it was a member.
        view: Arc<View>,
    },
    /// The site has nothing more that others need: if this view is still the last, the next one may be
    /// [`View::left_by`] it. If another came first, this is said again.
    MayLeave {
        /// The view's number.
        view: u32,
    },
    /// This site's association has to go back, because it shared modified pages with a site that
    /// died or went back. Let no mutating section begin or go on, undo the open ones, then
    /// [`Event::GoBack`].
    Doomed {
        /// The domain.
        domain: DomainId,
        /// The site whose death began it.
        because: SiteId,
    },
    /// The site has gone back, at once after [`Event::GoBack`] or when the round was over that it was
    /// in: what was done here and is not stable is gone, and programs may be told.
    WentBack {
        /// The domain.
        domain: DomainId,
        /// The site whose death began it.
        because: SiteId,
    },
}

/// Where a body comes from.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Source {
    /// It came with the message that is being handled.
    Message,
    /// The last stable contents.
    Store,
}

/// How a stabilisation went.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub enum Outcome {
    /// Everything that was done here before the cut is stable.
    Stable {
        /// The round that did it; another than asked for if two rounds met.
        round: RoundId,
    },
    /// Nothing has changed; it may be tried again.
    Aborted {
        /// Sites that were not quiet in time, if that was the reason.
        waited_for: SiteSet,
    },
}

/// Effects in order. Kept by the caller and handed in again, so that it allocates only while it
/// grows.
#[derive(Debug, Default)]
pub struct Effects {
    list: Vec<Effect>,
    /// Messages of the site to itself, handled before `handle` returns.
    pub(crate) to_self: VecDeque<Message>,
}

impl Effects {
    /// None.
    #[must_use]
    pub fn new() -> Effects {
        Effects::default()
    }

    pub(crate) fn push(&mut self, effect: Effect) {
        self.list.push(effect);
    }

    /// The effects so far.
    #[must_use]
    pub fn as_slice(&self) -> &[Effect] {
        &self.list
    }

    /// Takes the effects out, in order.
    pub fn drain(&mut self) -> vec::Drain<'_, Effect> {
        self.list.drain(..)
    }
}
