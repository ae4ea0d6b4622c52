//! What sites say to each other. No encoding here: the transport has it. Read [`Message`] first,
//! with `SPEC.md` beside it.

use alloc::vec::Vec;

use crate::ids::{DomainId, Number, PageKey, RoundId, SiteId, Version};
use crate::site_set::SiteSet;

/// From one site to another, or to itself. Each may be lost, doubled and overtaken (I5).
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Message {
    /// Asks for pages.
    Request(Request),
    /// Answers a request to read, with as many bodies as pages.
    Copies {
        /// The request's number.
        number: Number,
        /// The page that had to be given.
        first: Copy,
        /// Pages of the run that were free.
        more: Vec<Copy>,
    },
    /// Gives pages away. Repeated until [`Message::Took`] comes back for each.
    Grants {
        /// The first page.
        first: Grant,
        /// Pages of the run that were free.
        more: Vec<Grant>,
    },
    /// A copy older than `version` must go.
    Invalidate {
        /// The page.
        page: PageKey,
        /// The version that the owner is about to write.
        version: Version,
        /// Who is to be told when the copy is gone.
        owner: SiteId,
    },
    /// No copy older than `version` is left at the sender.
    Invalidated {
        /// The page.
        page: PageKey,
        /// The version named by the invalidation.
        version: Version,
    },
    /// The sender owns these pages; the frames kept for it may be dropped.
    Took {
        /// The pages and the versions granted.
        pages: Vec1<(PageKey, Version)>,
    },
    /// The sender does not take a modified page now (R3), and never will with this version: the giver
    /// has it again.
    Refused {
        /// The page.
        page: PageKey,
        /// The version granted.
        version: Version,
        /// The requests that came with the page.
        waiting: Vec<Request>,
    },
    /// Tells the home who owns a page.
    Owner {
        /// The pages and the versions with which `owner` came to own them.
        pages: Vec1<(PageKey, Version)>,
        /// The owner.
        owner: SiteId,
    },
    /// What the sender holds of the receiver's pages, at the start of a view.
    Report {
        /// Everything, in page order.
        pages: Vec<Held>,
    },
    /// The report has arrived.
    Reported,
    /// To the view's first site: all homes have the sender's reports.
    Ready,
    /// From the view's first site: all are ready, homes may be read.
    Resume,
    /// The sender gave a page to a site that then died, and does not know what became of it.
    Stranded {
        /// The page.
        page: PageKey,
        /// The version it was given with.
        version: Version,
    },
    /// Answers [`Message::Stranded`].
    Settle {
        /// The page.
        page: PageKey,
        /// The version named in the question.
        version: Version,
        /// The version with which the asker owns it again; `None` if it is elsewhere.
        keep: Option<Version>,
        /// Sites with copies that the asker did not give.
        copies: SiteSet,
        /// Nobody took the page: the frame that was kept is the page.
        untaken: bool,
    },
    /// The sender had the page with this version, gave it on, and knows of nobody who has it now.
    NotHere {
        /// The page.
        page: PageKey,
        /// The version with which the home sent a request.
        version: Version,
    },
    /// The sender's association in this domain goes back to its last stable state, and so must the
    /// receiver if it shares modified pages with the sender.
    GoBack {
        /// The domain.
        domain: DomainId,
        /// The site whose death began it.
        because: SiteId,
        /// What the sender gave while it had a lower colour is void.
        colour: u32,
    },
    /// Answers [`Message::GoBack`]: it was heard.
    WentBack {
        /// The domain.
        domain: DomainId,
        /// The colour named by it.
        colour: u32,
    },
    /// About a round of stabilisation.
    Round {
        /// Which round.
        round: RoundId,
        /// In which domain.
        domain: DomainId,
        /// What is said.
        word: RoundWord,
    },
}

/// One item, and room for more without allocation for the one.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Vec1<T> {
    /// The first.
    pub first: T,
    /// The others.
    pub more: Vec<T>,
}

impl<T> Vec1<T> {
    pub(crate) fn one(first: T) -> Self {
        Vec1 { first, more: Vec::new() }
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &T> {
        core::iter::once(&self.first).chain(&self.more)
    }
}

/// A request for a run of pages.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Request {
    /// The page that must be given.
    pub page: PageKey,
    /// Bit `n` stands for the page `n` after the first: to be given if free (I9).
    pub run: u64,
    /// Who asks.
    pub from: SiteId,
    /// The request's number at that site.
    pub number: Number,
    /// To write, that is to own; otherwise to read a copy.
    pub write: bool,
    /// Version of the valid copy that the asker has: it needs no body of that (I4).
    pub have: Version,
    /// The sender knows that the receiver was given the page with this version. A receiver that
    /// has not seen it yet keeps the request until it has (I1).
    pub expect: Version,
    /// Sites that passed it on.
    pub hops: u8,
    /// It went through the home and follows the owners from there.
    pub sure: bool,
    /// A page that is given with a lock, if free.
    pub with: Option<PageKey>,
}

/// A page's copy for reading; its body goes with the message.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Copy {
    /// The page.
    pub page: PageKey,
    /// Which contents.
    pub version: Version,
    /// The contents are not stable yet: the reader depends on the sender (R2).
    pub modified: bool,
    /// How often the giver's domain had been cut.
    pub colour: u32,
    /// The last round that the giver was cut by, of which the receiver may not know yet.
    pub cut: Option<RoundId>,
}

/// The right to write a page, with all that belongs to it.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Grant {
    /// The page.
    pub page: PageKey,
    /// The version that the receiver may write.
    pub version: Version,
    /// Its body goes with the message. Without, the receiver's copy is valid.
    pub body: bool,
    /// The body is the last stable one, read from the store by the receiver.
    pub stable: bool,
    /// The contents are not stable yet.
    pub modified: bool,
    /// How often the giver's domain had been cut.
    pub colour: u32,
    /// The last round that the giver was cut by, of which the receiver may not know yet.
    pub cut: Option<RoundId>,
    /// Sites that have copies: they were told to answer the receiver.
    pub copies: SiteSet,
    /// Requests that were waiting, in order (I6).
    pub waiting: Vec<Request>,
}

/// What a site has of a page at the start of a view.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Held {
    /// The page.
    pub page: PageKey,
    /// Its version.
    pub version: Version,
    /// In which role.
    pub role: Role,
}

/// The role in which a site has a page.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Role {
    /// It owns the page.
    Owner,
    /// It gave the page to this site, which has not said that it took it.
    Giving(SiteId),
    /// The same, and that site is gone.
    Stranded(SiteId),
    /// The same, but it left in order, and nobody died: if it had taken the page, someone has it.
    Untaken(SiteId),
    /// It has nothing, but last knew that this site, which is gone or need not have taken it, owned the
    /// page.
    Missing(SiteId),
    /// It owned the page, which is in the store and with nobody.
    Stored,
    /// It has a copy.
    Reader,
}

/// What is said in a round of stabilisation (`SPEC.md` has the order).
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum RoundWord {
    /// From the coordinator: let no mutating section begin.
    Close {
        /// Which time this site is asked in this round.
        ask: u8,
        /// It is asked because someone took a modified page from it, when its colour was this.
        /// Without, it is asked whatever its colour.
        taken_at: Option<u32>,
    },
    /// No mutating section is open here and no modified page is under way to here.
    Quiet {
        /// Echoes [`RoundWord::Close`].
        ask: u8,
        /// The sender changed nothing: it is not gated, and takes no part in the cut.
        observer: bool,
        /// Sites that this one gave a modified page since its last cut (R1).
        gave: SiteSet,
        /// Sites that this one took a modified page from since its last cut, with each colour that
        /// they had then (R2).
        took: Vec<(SiteId, u32)>,
        /// What the sender did at a lower colour is stable, or gone as it went back.
        settled: u32,
        /// Colours at which what the sender did is gone. Whoever took of that cannot be in a cut.
        void: Vec<u32>,
        /// What these gave the sender at this colour or before is gone, as the sender went back: if it
        /// is not settled with them, the round cannot be.
        dropped: Vec<(SiteId, u32)>,
    },
    /// The receiver is asked by two rounds; `other` has it.
    Meets {
        /// The round that the sender is in.
        other: RoundId,
    },
    /// A round that gave way asks to be part of this one.
    Join,
    /// From the coordinator: all are quiet, this is the cut.
    Cut {
        /// Who is cut.
        members: SiteSet,
    },
    /// All that the sender had to keep is captured and durable.
    Kept,
    /// The round is part of the stable state.
    Stable,
    /// The sender knows that the round is stable.
    Told,
    /// The round did not happen.
    Abort,
    /// The sender was waited for too long and lets its sections in again; or it has to go back, or has
    /// gone back since what it is asked for was taken from it.
    Refuse,
}

impl Message {
    /// The pages whose bodies travel with it, in the order in which they do.
    pub fn bodies(&self) -> impl Iterator<Item = PageKey> {
        let (copies, grants) = match self {
            Message::Copies { first, more, .. } => (Some((first, more)), None),
            Message::Grants { first, more } => (None, Some((first, more))),
            _ => (None, None),
        };
        let copies =
            copies.into_iter().flat_map(|(first, more)| core::iter::once(first).chain(more));
        let grants =
            grants.into_iter().flat_map(|(first, more)| core::iter::once(first).chain(more));
        copies
            .map(|copy| copy.page)
            .chain(grants.filter(|grant| grant.body).map(|grant| grant.page))
    }

    /// Whether it is heard before the homes of a view are rebuilt. Rounds under way end meanwhile, as
    /// homes are not whole before (I20); none begin.
    pub(crate) fn belongs_to_rebuild(&self) -> bool {
        match self {
            Message::Report { .. } | Message::Reported | Message::Ready | Message::Resume => true,
            Message::Round { word, .. } => {
                !matches!(word, RoundWord::Close { .. } | RoundWord::Meets { .. } | RoundWord::Join)
            }
            _ => false,
        }
    }

    /// Whether a program waits for it: a request, its answer, an invalidation or its answer. The
    /// others follow after the fault is served.
    #[must_use]
    pub fn is_waited_for(&self) -> bool {
        matches!(
            self,
            Message::Request(_)
                | Message::Copies { .. }
                | Message::Grants { .. }
                | Message::Invalidate { .. }
                | Message::Invalidated { .. }
        )
    }
}
