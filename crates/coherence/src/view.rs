//! Who is there: views as the authority issues them, and the home that a view gives each page.
//! Nobody votes here; a view is an input. Read [`View`] first.

use alloc::vec::Vec;

use crate::ids::{ChunkKey, SiteId};

/// A site in a view, with the number of the view in which it came. A site that died and came back
/// is another member, although its number is the same.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Member {
    /// The site.
    pub site: SiteId,
    /// Number of the view in which it joined.
    pub since: u32,
}

/// The members that the authority counts as alive, under a number that only rises. Messages of
/// another view than the receiver's are not heard (I8).
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct View {
    number: u32,
    members: Vec<Member>,
    /// Members that left in order, the latest last.
    left: Vec<Member>,
}

impl View {
    /// View `number` with `members`, in any order.
    ///
    /// # Panics
    /// If there are no members, or two with one site number.
    #[must_use]
    pub fn new(number: u32, mut members: Vec<Member>) -> View {
        assert!(!members.is_empty(), "a view has members");
        members.sort_unstable();
        assert!(members.windows(2).all(|w| w[0].site != w[1].site), "one member for each site");
        View { number, members, left: Vec::new() }
    }

    /// View 1 of sites `0..count`, all new.
    #[must_use]
    pub fn first(count: u16) -> View {
        View::new(1, (0..count).map(|i| Member { site: SiteId::new(i), since: 1 }).collect())
    }

    /// So many of those that left in order are remembered, for sites that miss views: far more than leave
    /// while a site is not heard of and yet taken for alive.
    const LEFT_MAX: usize = 64;

    /// The next view, without `site`, which is dead.
    #[must_use]
    pub fn without(&self, site: SiteId) -> View {
        let members = self.members.iter().filter(|m| m.site != site).copied().collect();
        self.next(members)
    }

    /// The next view, without `site`, which said in this one that it may leave
    /// ([`Effect::MayLeave`](crate::Effect::MayLeave)).
    #[must_use]
    pub fn left_by(&self, site: SiteId) -> View {
        let mut next = self.without(site);
        next.left.extend(self.find(site));
        let forgotten = next.left.len().saturating_sub(Self::LEFT_MAX);
        next.left.drain(..forgotten);
        next
    }

    fn next(&self, members: Vec<Member>) -> View {
        View { left: self.left.clone(), ..View::new(self.number + 1, members) }
    }

    /// Whether this member left in order.
    pub(crate) fn has_left(&self, member: &Member) -> bool {
        self.left.contains(member)
    }

    /// The next view, with `site` as a new member.
    #[must_use]
    pub fn with(&self, site: SiteId) -> View {
        let number = self.number + 1;
        let mut members = self.members.clone();
        members.retain(|m| m.site != site);
        members.push(Member { site, since: number });
        self.next(members)
    }

    /// Its number.
    #[must_use]
    pub fn number(&self) -> u32 {
        self.number
    }

    /// The members in order of their sites.
    #[must_use]
    pub fn members(&self) -> &[Member] {
        &self.members
    }

    /// The sites in order.
    pub fn sites(&self) -> impl Iterator<Item = SiteId> + '_ {
        self.members.iter().map(|m| m.site)
    }

    /// Whether `site` is a member.
    #[must_use]
    pub fn contains(&self, site: SiteId) -> bool {
        self.find(site).is_some()
    }

    /// The member that `site` is.
    #[must_use]
    pub fn find(&self, site: SiteId) -> Option<Member> {
        let at = self.members.binary_search_by_key(&site, |m| m.site).ok()?;
        Some(self.members[at])
    }

    /// The member with the lowest number; it gathers what a new view needs.
    #[must_use]
    pub fn first_site(&self) -> SiteId {
        self.members[0].site
    }

    pub(crate) fn hashed_home(&self, chunk: ChunkKey) -> SiteId {
        let mut x = chunk.chunk ^ (u64::from(chunk.cluster.0) << 40);
        // The finaliser of splitmix64: neighbouring chunks go to unrelated sites.
        x = (x ^ (x >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        x = (x ^ (x >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        x ^= x >> 31;
        self.members[(x % self.members.len() as u64) as usize].site
    }
}
