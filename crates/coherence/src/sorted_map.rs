//! A map for few entries that come and go. Keys stand in a sorted vector and values in places of
//! their own, which are used again: steady traffic allocates nothing, and an entry that comes
//! moves keys, not values. Read [`SortedMap`] first.

use alloc::vec::Vec;
use core::fmt;
use core::hash::{Hash, Hasher};

/// A map in key order.
#[derive(Clone)]
pub(crate) struct SortedMap<K, V> {
    keys: Vec<(K, u32)>,
    places: Vec<V>,
    free: Vec<u32>,
}

impl<K, V> Default for SortedMap<K, V> {
    fn default() -> Self {
        SortedMap { keys: Vec::new(), places: Vec::new(), free: Vec::new() }
    }
}

impl<K: Ord + Copy, V: Default> SortedMap<K, V> {
    fn find(&self, key: &K) -> Result<usize, usize> {
        self.keys.binary_search_by(|(k, _)| k.cmp(key))
    }

    fn place(&self, key: K) -> Option<usize> {
        self.find(&key).ok().map(|at| self.keys[at].1 as usize)
    }

    pub(crate) fn get(&self, key: K) -> Option<&V> {
        self.place(key).map(|place| &self.places[place])
    }

    pub(crate) fn get_mut(&mut self, key: K) -> Option<&mut V> {
        self.place(key).map(|place| &mut self.places[place])
    }

    pub(crate) fn entry(&mut self, key: K) -> &mut V {
        let place = match self.find(&key) {
            Ok(at) => self.keys[at].1 as usize,
            Err(at) => {
                let place = self.free.pop().unwrap_or_else(|| {
                    self.places.push(V::default());
                    self.places.len() as u32 - 1
                });
                self.keys.insert(at, (key, place));
                place as usize
            }
        };
        &mut self.places[place]
    }

    pub(crate) fn insert(&mut self, key: K, value: V) {
        *self.entry(key) = value;
    }

    pub(crate) fn remove(&mut self, key: K) -> Option<V> {
        let at = self.find(&key).ok()?;
        let (_, place) = self.keys.remove(at);
        self.free.push(place);
        Some(core::mem::take(&mut self.places[place as usize]))
    }

    pub(crate) fn key_at(&self, at: usize) -> Option<K> {
        self.keys.get(at).map(|(k, _)| *k)
    }

    pub(crate) fn key_after(&self, key: K) -> Option<K> {
        self.key_at(self.keys.partition_point(|(k, _)| *k <= key))
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (K, &V)> {
        self.keys.iter().map(|(k, place)| (*k, &self.places[*place as usize]))
    }

    pub(crate) fn retain(&mut self, mut keep: impl FnMut(K, &mut V) -> bool) {
        let (places, free) = (&mut self.places, &mut self.free);
        self.keys.retain(|(k, place)| {
            let value = &mut places[*place as usize];
            let kept = keep(*k, value);
            if !kept {
                *value = V::default();
                free.push(*place);
            }
            kept
        });
    }

    pub(crate) fn len(&self) -> usize {
        self.keys.len()
    }

    pub(crate) fn clear(&mut self) {
        *self = SortedMap::default();
    }

    /// Bytes of the entries and the room for more, without what values have elsewhere.
    pub(crate) fn bytes(&self) -> usize {
        self.keys.capacity() * size_of::<(K, u32)>()
            + self.places.capacity() * size_of::<V>()
            + self.free.capacity() * size_of::<u32>()
    }
}

// Maps with the same entries are the same, whatever was in them before.

impl<K: Ord + Copy, V: Default + PartialEq> PartialEq for SortedMap<K, V> {
    fn eq(&self, other: &Self) -> bool {
        self.len() == other.len() && self.iter().eq(other.iter())
    }
}

impl<K: Ord + Copy, V: Default + Eq> Eq for SortedMap<K, V> {}

impl<K: Ord + Copy + Hash, V: Default + Hash> Hash for SortedMap<K, V> {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.len().hash(state);
        for entry in self.iter() {
            entry.hash(state);
        }
    }
}

impl<K: Ord + Copy + fmt::Debug, V: Default + fmt::Debug> fmt::Debug for SortedMap<K, V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map().entries(self.iter()).finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::collections::BTreeMap;

    #[test]
    fn is_a_map_and_has_one_form() {
        let mut map = SortedMap::default();
        let mut plain = BTreeMap::new();
        let mut x = 7u32;
        for _ in 0..4000 {
            x = x.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            let key = (x >> 16) % 20;
            match x >> 28 {
                0..8 => {
                    map.insert(key, x);
                    plain.insert(key, x);
                }
                8..15 => assert_eq!(map.remove(key), plain.remove(&key)),
                _ => {
                    map.retain(|k, _| k % 2 == 0);
                    plain.retain(|k, _| k % 2 == 0);
                }
            }
            assert!(map.iter().eq(plain.iter().map(|(k, v)| (*k, v))));
            assert_eq!(map.key_after(key), plain.range(key + 1..).next().map(|(k, _)| *k));
            let mut fresh = SortedMap::default();
            for (k, v) in &plain {
                fresh.insert(*k, *v);
            }
            assert_eq!(map, fresh);
        }
    }
}
