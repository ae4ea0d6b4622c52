//! A set of sites that costs no allocation while it has few members, as almost all do. It has one
//! form for each set, so that states compare and hash by meaning. Read [`SiteSet`] first.

use alloc::vec::Vec;
use core::fmt;

use crate::ids::SiteId;

const FEW: usize = 6;

/// A set of sites, kept in order.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SiteSet {
    few_count: u8,
    few: [SiteId; FEW],
    /// All members once there are more than [`FEW`]; empty otherwise.
    many: Vec<SiteId>,
}

impl Default for SiteSet {
    fn default() -> Self {
        SiteSet { few_count: 0, few: [SiteId::NONE; FEW], many: Vec::new() }
    }
}

impl SiteSet {
    /// The empty set.
    #[must_use]
    pub fn new() -> SiteSet {
        SiteSet::default()
    }

    /// The members in order.
    #[must_use]
    pub fn as_slice(&self) -> &[SiteId] {
        if self.many.is_empty() { &self.few[..self.few_count as usize] } else { &self.many }
    }

    /// The members in order.
    pub fn iter(&self) -> impl Iterator<Item = SiteId> + '_ {
        self.as_slice().iter().copied()
    }

    /// Number of members.
    #[must_use]
    pub fn len(&self) -> usize {
        self.as_slice().len()
    }

    /// Whether it has none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Whether `site` is one.
    #[must_use]
    pub fn contains(&self, site: SiteId) -> bool {
        self.as_slice().binary_search(&site).is_ok()
    }

    /// Adds `site`; whether it was not a member.
    pub fn insert(&mut self, site: SiteId) -> bool {
        debug_assert!(site != SiteId::NONE);
        let Err(at) = self.as_slice().binary_search(&site) else { return false };
        if !self.many.is_empty() {
            self.many.insert(at, site);
        } else if (self.few_count as usize) < FEW {
            self.few.copy_within(at..FEW - 1, at + 1);
            self.few[at] = site;
            self.few_count += 1;
        } else {
            self.many.extend_from_slice(&self.few);
            self.many.insert(at, site);
            self.few = [SiteId::NONE; FEW];
            self.few_count = 0;
        }
        true
    }

    /// Takes `site` out; whether it was a member.
    pub fn remove(&mut self, site: SiteId) -> bool {
        let Ok(at) = self.as_slice().binary_search(&site) else { return false };
        if self.many.is_empty() {
            self.few.copy_within(at + 1.., at);
            self.few[FEW - 1] = SiteId::NONE;
            self.few_count -= 1;
        } else {
            self.many.remove(at);
            if self.many.len() == FEW {
                self.few.copy_from_slice(&self.many);
                self.few_count = FEW as u8;
                self.many = Vec::new();
            }
        }
        true
    }

    /// Takes out every member for which `keep` does not hold.
    pub fn retain(&mut self, mut keep: impl FnMut(SiteId) -> bool) {
        if self.as_slice().iter().all(|s| keep(*s)) {
            return;
        }
        *self = self.iter().filter(|s| keep(*s)).collect();
    }

    /// Adds all members of `other`.
    pub fn extend(&mut self, other: &SiteSet) {
        for site in other.iter() {
            self.insert(site);
        }
    }
}

impl FromIterator<SiteId> for SiteSet {
    fn from_iter<I: IntoIterator<Item = SiteId>>(sites: I) -> SiteSet {
        let mut set = SiteSet::new();
        for site in sites {
            set.insert(site);
        }
        set
    }
}

impl fmt::Debug for SiteSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_set().entries(self.iter()).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::collections::BTreeSet;

    /// Growing past the inline room and shrinking back gives the same form as never having grown.
    #[test]
    fn has_one_form_for_each_set() {
        let mut set = SiteSet::new();
        let mut plain = BTreeSet::new();
        let mut x = 1u32;
        for _ in 0..4000 {
            x = x.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            let site = SiteId::new((x >> 16) as u16 % 12);
            if x & 0x100 == 0 {
                assert_eq!(set.insert(site), plain.insert(site));
            } else {
                assert_eq!(set.remove(site), plain.remove(&site));
            }
            assert!(set.iter().eq(plain.iter().copied()));
            assert_eq!(set, plain.iter().copied().collect());
        }
    }
}
