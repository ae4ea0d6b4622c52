//! The numbers the protocol speaks in: sites, clusters, pages, versions, rounds. Nothing here knows
//! what they are used for. Read [`PageKey`] and [`Version`] first.

use core::fmt;

use stead_model::PageNo;

/// A moment or a span in microseconds, on a clock of the caller's choice that never runs backwards.
pub type Micros = u64;

/// The number of an outstanding request, unique at its site while that site is in the view. Pairs of
/// (site, number) make requests recognisable when they are doubled.
pub type Number = u32;

/// Names a site in the views of the authority. 14 bits, because each resident page has room for
/// three of them.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SiteId(u16);

impl SiteId {
    /// Largest number of a site.
    pub const MAX: SiteId = SiteId(0x3FFE);
    /// Stands for "no site known"; never a member of a view.
    pub const NONE: SiteId = SiteId(0x3FFF);

    /// The site with number `id`.
    ///
    /// # Panics
    /// If `id` is above [`SiteId::MAX`]: the authority gives numbers out, peers cannot.
    #[must_use]
    pub const fn new(id: u16) -> SiteId {
        assert!(id <= Self::MAX.0, "site numbers have 14 bits");
        SiteId(id)
    }

    /// Its number.
    #[must_use]
    pub const fn get(self) -> u16 {
        self.0
    }

    pub(crate) const fn from_bits(bits: u64) -> SiteId {
        SiteId((bits & 0x3FFF) as u16)
    }
}

impl fmt::Debug for SiteId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if *self == SiteId::NONE { write!(f, "S-") } else { write!(f, "S{}", self.0) }
    }
}

impl fmt::Display for SiteId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "site {}", self.0)
    }
}

/// Names a cluster among those whose pages a site shares. The manager and the policy are chosen for
/// each cluster.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct ClusterId(pub u32);

/// Names an association's outermost bound: pages of different domains never join each other's
/// rounds. A container is one domain.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct DomainId(pub u32);

/// A page of a cluster; or, in a cluster of kind [`Policy::Lock`](crate::Policy::Lock), a lock.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PageKey {
    /// The cluster.
    pub cluster: ClusterId,
    /// The page within the cluster's container, or the lock's identity.
    pub page: PageNo,
}

impl PageKey {
    /// Pages whose numbers share all but the low six bits form a chunk: it has one home, and a
    /// request for a run stays within it.
    pub const CHUNK_PAGES: u64 = 64;

    /// Page `page` of cluster `cluster`.
    #[must_use]
    pub const fn new(cluster: u32, page: u64) -> PageKey {
        PageKey { cluster: ClusterId(cluster), page: PageNo(page) }
    }

    pub(crate) fn chunk(self) -> ChunkKey {
        ChunkKey { cluster: self.cluster, chunk: self.page.0 / Self::CHUNK_PAGES }
    }

    pub(crate) fn slot(self) -> usize {
        (self.page.0 % Self::CHUNK_PAGES) as usize
    }
}

impl fmt::Debug for PageKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.cluster.0, self.page.0)
    }
}

/// 64 neighbouring pages of a cluster.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub(crate) struct ChunkKey {
    pub(crate) cluster: ClusterId,
    pub(crate) chunk: u64,
}

impl ChunkKey {
    pub(crate) fn page(self, slot: usize) -> PageKey {
        PageKey {
            cluster: self.cluster,
            page: PageNo(self.chunk * PageKey::CHUNK_PAGES + slot as u64),
        }
    }
}

/// Which contents of a page: every gain of the right to write makes a new one. It never repeats
/// (I14): 17 bits name the view in which it was made, 39 count within the view.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Version(u64);

impl Version {
    /// Older than any version of any page.
    pub const ZERO: Version = Version(0);
    const COUNT_BITS: u32 = 39;
    /// Bits that a version takes in a page's entry.
    pub(crate) const BITS: u32 = 56;

    /// The first version of view `view`: what nobody has written since the view began has it.
    ///
    /// # Panics
    /// If the view's number has more than 17 bits.
    #[must_use]
    pub const fn first_of(view: u32) -> Version {
        assert!(view < 1 << (Self::BITS - Self::COUNT_BITS), "view numbers have 17 bits");
        Version((view as u64) << Self::COUNT_BITS)
    }

    /// The version after this one.
    ///
    /// # Panics
    /// If 2^39 versions of one page were made in one view (32 days at one every five microseconds).
    #[must_use]
    pub const fn next(self) -> Version {
        let next = self.0 + 1;
        assert!(next >> Self::COUNT_BITS == self.0 >> Self::COUNT_BITS, "versions ran out");
        Version(next)
    }

    /// The version before this one, for comparison only.
    pub(crate) const fn before(self) -> Version {
        Version(self.0.saturating_sub(1))
    }

    pub(crate) const fn bits(self) -> u64 {
        self.0
    }

    pub(crate) const fn from_bits(bits: u64) -> Version {
        Version(bits)
    }
}

impl fmt::Debug for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "v{}.{}", self.0 >> Self::COUNT_BITS, self.0 & ((1 << Self::COUNT_BITS) - 1))
    }
}

/// Names a round of stabilisation. Where two meet, the lower one goes on.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct RoundId {
    /// One more than any that its coordinator had heard of.
    pub sequence: u32,
    /// The site that coordinates it.
    pub coordinator: SiteId,
    /// Number of the view in which the coordinator joined: one that died and came back counts anew, and
    /// nobody is to take its rounds for those of its earlier life.
    pub since: u32,
}

/// What programs at a site may do with a page.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub enum Access {
    /// Nothing: a touch is a fault.
    #[default]
    None,
    /// Load.
    Read,
    /// Load and store.
    Write,
}
