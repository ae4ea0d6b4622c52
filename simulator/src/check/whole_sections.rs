//! The stable state is a consistent cut of whole sections (I18): each section is in it with all its
//! stores or with none, and with everything that it read; none that is open or was undone is in it. It
//! only moves forward, also in versions (I20). What a stabilisation promised is in it.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use stead_coherence::PageKey;

use super::Checker;
use crate::cluster::{Cluster, Done, Moved, SectionState};

/// The checker.
#[derive(Default)]
pub(super) struct WholeSections {
    /// Values that are stable, or were and have been replaced by stable ones.
    stable: HashSet<u64>,
    /// Sections that are stable.
    sections: BTreeSet<usize>,
    /// Sections that were over and not stable when their site went back or died.
    void: BTreeSet<usize>,
    /// Sections of a site that has died since: they may have become stable, and nobody is promised it.
    past: BTreeSet<usize>,
    /// The section that stored a value.
    by: HashMap<u64, usize>,
    /// Sections of which the stores are in `by`.
    known: usize,
    /// What a site was promised.
    promised: BTreeMap<usize, Vec<usize>>,
}

impl Checker for WholeSections {
    fn after_step(&mut self, cluster: &Cluster, done: &Done) -> Result<(), String> {
        if let Some(moved) = &done.rounds.committed {
            self.committed(cluster, moved)?;
        }
        if done.rounds.went_back {
            // Also what the site was promised: its programs are told.
            self.forget(cluster, done.site);
        }
        if done.rounds.asked {
            let of_site = self.over_at(cluster, done.site).collect();
            self.promised.insert(done.site, of_site);
        }
        if let Some(stable) = done.rounds.ended {
            let promised = self.promised.remove(&done.site).unwrap_or_default();
            let missing = promised.iter().find(|s| stable && !self.is_stable(cluster, **s));
            if let Some(section) = missing {
                return Err(format!(
                    "section {section} was promised to be stable and is not: {:?}",
                    cluster.sections[*section]
                ));
            }
        }
        Ok(())
    }

    fn before_crash(&mut self, cluster: &Cluster, site: usize) {
        self.promised.remove(&site);
        let over: Vec<usize> = self.over_at(cluster, site).collect();
        self.past.extend(over);
        let open = cluster.nodes[site].threads.iter().filter_map(|t| t.section);
        self.void.extend(open);
    }

    fn at_rest(&mut self, cluster: &Cluster) -> Result<(), String> {
        for (page, body) in cluster.around.pages.iter().map(|p| (p, cluster.stable.body(*p))) {
            let lost = body.iter().find(|value| **value != 0 && !self.stable.contains(value));
            if let Some(value) = lost {
                return Err(format!("{value} of {page:?} became stable without a round"));
            }
        }
        // Each site was promised all that it did.
        match self.promised.iter().next() {
            Some((site, _)) => Err(format!("at rest site {site} still waits for a round")),
            None => Ok(()),
        }
    }
}

impl WholeSections {
    fn over_at(&self, cluster: &Cluster, site: usize) -> impl Iterator<Item = usize> {
        let sections = cluster.sections.iter().enumerate();
        let wanted = move |(n, s): &(usize, &crate::cluster::Section)| {
            let gone = self.void.contains(n) || self.past.contains(n);
            s.site == site && s.state == SectionState::Over && !gone
        };
        sections.filter(wanted).map(|(n, _)| n)
    }

    fn is_stable(&self, cluster: &Cluster, section: usize) -> bool {
        self.sections.contains(&section) || cluster.sections[section].stores.is_empty()
    }

    fn forget(&mut self, cluster: &Cluster, site: usize) {
        let over: Vec<usize> = self.over_at(cluster, site).collect();
        let void = over.into_iter().filter(|s| !self.is_stable(cluster, *s));
        let void: Vec<usize> = void.collect();
        if let Some(promised) = self.promised.get_mut(&site) {
            promised.retain(|s| !void.contains(s));
        }
        self.void.extend(void);
    }

    fn committed(&mut self, cluster: &Cluster, moved: &[Moved]) -> Result<(), String> {
        for (n, section) in cluster.sections.iter().enumerate().skip(self.known) {
            if section.state == SectionState::Open {
                break;
            }
            self.known = n + 1;
            self.by.extend(section.stores.iter().map(|(_, value)| (*value, n)));
        }
        let late = cluster.sections.iter().enumerate().skip(self.known);
        let late: HashMap<u64, usize> =
            late.flat_map(|(n, s)| s.stores.iter().map(move |(_, value)| (*value, n))).collect();
        let by = |value: &u64| self.by.get(value).or(late.get(value)).copied();
        let mut new = BTreeSet::new();
        for Moved { page, from, to } in moved {
            if to.0 < from.0 {
                return Err(format!("{page:?} went from {:?} to {:?} in the store", from.0, to.0));
            }
            for (before, after) in from.1.iter().zip(&to.1) {
                let values = history(cluster, *page, *before, *after)?;
                self.stable.extend(&values);
                new.extend(values.iter().filter_map(by));
            }
        }
        for section in new {
            self.whole(cluster, section)?;
            self.sections.insert(section);
        }
        Ok(())
    }

    fn whole(&self, cluster: &Cluster, n: usize) -> Result<(), String> {
        let section = &cluster.sections[n];
        if section.state != SectionState::Over || self.void.contains(&n) {
            return Err(format!("section {n} is stable, and is open or was undone: {section:?}"));
        }
        if let Some(store) = section.stores.iter().find(|(_, v)| !self.stable.contains(v)) {
            return Err(format!("section {n} is stable by half, without {store:?}: {section:?}"));
        }
        let unseen = |(_, value): &&(_, u64)| *value != 0 && !self.stable.contains(value);
        match section.loads.iter().find(unseen) {
            Some(load) => Err(format!("section {n} is stable, and what it read is not: {load:?}")),
            None => Ok(()),
        }
    }
}

/// The values that a word had after `before` and up to `after`.
fn history(
    cluster: &Cluster,
    page: PageKey,
    before: u64,
    mut after: u64,
) -> Result<Vec<u64>, String> {
    let mut values = Vec::new();
    while after != before {
        if after == 0 {
            return Err(format!("the stable state of {page:?} lost {before}"));
        }
        values.push(after);
        after = cluster.replaced.get(&after).copied().unwrap_or(0);
    }
    Ok(values)
}
