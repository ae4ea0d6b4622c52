//! A hash table of the Swiss kind: a control byte for each slot, looked at sixteen at a time. Slots and
//! control bytes are one allocation: slots before `ctrl`, last one first, control bytes from `ctrl` on,
//! the first sixteen repeated behind the last. Read [`HashMap`] first.
//!
//! Undo: whoever lent the map for change noted its 40 bytes. A slot is garbage while its control byte
//! says so, so inserting notes the control byte alone; removing notes slot and control byte; a table
//! that grew is fresh memory, and the old one stays as it was until the section commits.

use std::borrow::Borrow;
use std::fmt;
use std::marker::PhantomData;
use std::mem::{needs_drop, offset_of, replace};
use std::ops::Index;
use std::ptr::{self, with_exposed_provenance_mut};

use stead_model::PAGE_SIZE;

use crate::alloc::Request;
use crate::error::AllocError;
use crate::group::{DELETED, EMPTY, Group, WIDTH};
use crate::hash::{StableHash, stable_hash};
use crate::journal;
use crate::layout::{EMPTY_GROUP, GRAIN, SMALL_MAX, kind, window_base};
use crate::section::{Brand, Cluster, Owns, Tx};
use crate::types::{
    Describer, FieldDescription, Persist, Shape, TypeDescription, TypeRef, combine_ids, name_id,
};

/// A map from keys to values that it owns. Reads like std's; whatever changes it takes the section's
/// `tx`. Hashes are stable ([`StableHash`]) under a seed that is stored in the map.
#[repr(C)]
pub struct HashMap<'s, K, V> {
    /// Address of the control bytes; of the empty group in a window's header while there is no table.
    ctrl: usize,
    /// Slots less one; 0 while there is no table.
    mask: usize,
    items: usize,
    /// Insertions into empty slots until it grows.
    left: usize,
    seed: u64,
    owns: Owns<(K, V)>,
    brand: Brand<'s>,
}

/// What a slot holds.
#[repr(C)]
struct Entry<K, V> {
    key: K,
    value: V,
}

// SAFETY: repr(C). Padding between key and value is never read.
unsafe impl<'s, K: Persist<'s>, V: Persist<'s>> Persist<'s> for Entry<K, V> {
    const ID: u64 = combine_ids(combine_ids(name_id("Entry"), K::ID), V::ID);
    const POINTERS: bool = K::POINTERS || V::POINTERS;
    const TAGGED: bool = K::TAGGED || V::TAGGED;
    const CHECK: () = {
        let () = K::CHECK;
        let () = V::CHECK;
        assert!(align_of::<Self>() <= GRAIN);
        assert!(
            !Self::TAGGED
                || (size_of::<Self>().is_power_of_two() && size_of::<Self>() <= PAGE_SIZE),
            "key or value hold an enum with pointers: pad them so that both together are a power of two, and no entry lies on two pages"
        );
    };
    fn name() -> String {
        format!("Entry<{}, {}>", K::name(), V::name())
    }
    fn describe(d: &mut Describer) -> TypeDescription {
        let field = |name: &str, offset: usize, ty| FieldDescription {
            name: name.into(),
            offset: offset as u64,
            ty,
        };
        let fields = vec![
            field("key", offset_of!(Self, key), d.refer::<K>()),
            field("value", offset_of!(Self, value), d.refer::<V>()),
        ];
        d.shaped::<Self>(Shape::Struct(fields))
    }
}

/// Insertions that a table of `slots` slots takes.
pub(crate) const fn room(slots: usize) -> usize {
    if slots <= 8 { slots - 1 } else { slots / 8 * 7 }
}

/// Bytes of a table.
const fn table_bytes(slots: usize, entry: usize) -> Option<usize> {
    match slots.checked_mul(entry + 1) {
        Some(n) if n < isize::MAX as usize / 2 => Some(n + WIDTH),
        _ => None,
    }
}

/// Where a search ended.
enum Found {
    At(usize),
    /// Not there; it may be put here.
    Vacant(usize),
}

impl<K, V> HashMap<'_, K, V> {
    /// Entries in the map.
    #[inline]
    #[must_use]
    pub fn len(&self) -> usize {
        self.items
    }

    /// Whether there is none.
    #[inline]
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.items == 0
    }

    /// Entries that it holds without growing.
    #[must_use]
    pub fn capacity(&self) -> usize {
        self.items + self.left
    }

    #[inline(always)]
    fn slots(&self) -> usize {
        if self.mask == 0 { 0 } else { self.mask + 1 }
    }

    #[inline(always)]
    fn ctrl(&self) -> *mut u8 {
        with_exposed_provenance_mut(self.ctrl)
    }

    /// # Safety
    /// `index` is a slot of the table.
    #[inline(always)]
    unsafe fn entry(&self, index: usize) -> *mut Entry<K, V> {
        // SAFETY: slots lie before the control bytes in the same allocation.
        unsafe { self.ctrl().cast::<Entry<K, V>>().sub(index + 1) }
    }

    /// # Safety
    /// `at` is at most the mask.
    #[inline(always)]
    unsafe fn group(&self, at: usize) -> Group {
        // SAFETY: the control bytes and their first sixteen again make `mask + 17`; the empty group in
        // the header has 64.
        unsafe { Group::load(self.ctrl().add(at)) }
    }

    /// Indices of the slots that hold something.
    fn full(&self) -> Full {
        Full { ctrl: self.ctrl(), slots: self.slots(), base: 0, group: None, left: self.items }
    }

    /// Where the table's allocation begins.
    fn table_start(&self) -> usize {
        self.ctrl - self.slots() * size_of::<Entry<K, V>>()
    }

    #[inline(always)]
    fn find<Q>(&self, hash: u64, key: &Q) -> Option<usize>
    where
        K: Borrow<Q>,
        Q: Eq + ?Sized,
    {
        let mut at = hash as usize & self.mask;
        let mut step = 0;
        loop {
            // SAFETY: at <= mask.
            let group = unsafe { self.group(at) };
            for place in group.equal_to((hash >> 57) as u8) {
                let index = (at + place) & self.mask;
                // SAFETY: a control byte below 128 says that the slot holds an entry. In small tables
                // places behind the last slot are empty or repetitions.
                if unsafe { &(*self.entry(index)).key }.borrow() == key {
                    return Some(index);
                }
            }
            if group.empty().any() {
                return None;
            }
            step += WIDTH;
            at = (at + step) & self.mask;
        }
    }

    #[inline(always)]
    fn find_or_vacant(&self, hash: u64, key: &K) -> Found
    where
        K: Eq,
    {
        let mut at = hash as usize & self.mask;
        let mut step = 0;
        let mut vacant = None;
        loop {
            // SAFETY: at <= mask.
            let group = unsafe { self.group(at) };
            for place in group.equal_to((hash >> 57) as u8) {
                let index = (at + place) & self.mask;
                // SAFETY: as in `find`.
                if unsafe { &(*self.entry(index)).key } == key {
                    return Found::At(index);
                }
            }
            if vacant.is_none() {
                vacant = group.vacant().first().map(|place| (at + place) & self.mask);
            }
            if let Some(index) = vacant
                && group.empty().any()
            {
                return Found::Vacant(self.really_vacant(index));
            }
            step += WIDTH;
            at = (at + step) & self.mask;
        }
    }

    /// In tables smaller than a group, a vacant place may stand for a slot that is not: the bytes
    /// between the last slot and the repetition are empty.
    #[inline(always)]
    fn really_vacant(&self, index: usize) -> usize {
        // SAFETY: index <= mask.
        if unsafe { *self.ctrl().add(index) } >= 0x80 {
            return index;
        }
        // SAFETY: a group can be read at 0.
        unsafe { self.group(0) }.vacant().first().unwrap_or(0)
    }

    /// A vacant slot for a key that is not in the table.
    #[inline(always)]
    fn vacant(&self, hash: u64) -> usize {
        let mut at = hash as usize & self.mask;
        let mut step = 0;
        loop {
            // SAFETY: at <= mask.
            if let Some(place) = unsafe { self.group(at) }.vacant().first() {
                return self.really_vacant((at + place) & self.mask);
            }
            step += WIDTH;
            at = (at + step) & self.mask;
        }
    }

    /// Where the control byte of a slot is repeated; the byte itself if nowhere.
    #[inline(always)]
    fn repeated(&self, index: usize) -> usize {
        (index.wrapping_sub(WIDTH) & self.mask) + WIDTH
    }

    /// # Safety
    /// `index` is a slot of the table, which is ours to write.
    #[inline(always)]
    unsafe fn write_ctrl(&self, index: usize, byte: u8) {
        // SAFETY: as the caller vouches; there are mask + 17 control bytes.
        unsafe {
            *self.ctrl().add(index) = byte;
            *self.ctrl().add(self.repeated(index)) = byte;
        }
    }
}

/// Walks over the slots that hold something.
struct Full {
    ctrl: *const u8,
    slots: usize,
    base: usize,
    group: Option<crate::group::Places>,
    left: usize,
}

impl Iterator for Full {
    type Item = usize;

    #[inline]
    fn next(&mut self) -> Option<usize> {
        while self.base < self.slots {
            let places = match &mut self.group {
                Some(places) => places,
                none => {
                    // SAFETY: there are slots + 16 control bytes.
                    none.insert(unsafe { Group::load(self.ctrl.add(self.base)) }.full())
                }
            };
            if let Some(place) = places.next() {
                self.left -= 1;
                return Some(self.base + place);
            }
            self.base += WIDTH;
            self.group = None;
        }
        None
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        (self.left, Some(self.left))
    }
}

impl<'s, K: Persist<'s>, V: Persist<'s>> HashMap<'s, K, V> {
    /// An empty map, which will allocate in the default cluster.
    #[must_use]
    pub fn new(tx: &Tx<'s>) -> Self {
        Self::empty_at(tx.base(), tx.journal().random())
    }

    /// An empty map, which will allocate in this cluster.
    #[must_use]
    pub fn new_in(tx: &Tx<'s>, cluster: Cluster<'s>) -> Self {
        Self::empty_at(cluster.base(), tx.journal().random())
    }

    fn empty_at(header: usize, seed: u64) -> Self {
        const { Entry::<K, V>::CHECK }
        HashMap {
            ctrl: header + EMPTY_GROUP,
            mask: 0,
            items: 0,
            left: 0,
            seed,
            owns: PhantomData,
            brand: PhantomData,
        }
    }

    /// All entries, in no order that means anything.
    pub fn iter(&self) -> Iter<'_, 's, K, V> {
        Iter { full: self.full(), map: self }
    }

    /// All keys.
    pub fn keys(&self) -> impl Iterator<Item = &K> {
        self.iter().map(|(k, _)| k)
    }

    /// All values.
    pub fn values(&self) -> impl Iterator<Item = &V> {
        self.iter().map(|(_, v)| v)
    }

    /// All entries, values to be changed.
    pub fn iter_mut<'a>(
        &'a mut self,
        tx: &'a Tx<'s>,
    ) -> impl Iterator<Item = (&'a K, &'a mut V)> + use<'a, 's, K, V> {
        let map: &'a Self = self;
        map.full().map(move |index| {
            // SAFETY: a slot that holds an entry; the map is borrowed for change for 'a, and each slot
            // is given out once.
            let entry = unsafe { &mut *map.entry(index) };
            tx.note(&raw const entry.value);
            (&entry.key, &mut entry.value)
        })
    }

    /// Drops all entries and gives the memory back.
    pub fn clear(&mut self, _tx: &Tx<'s>) {
        if self.mask != 0 {
            // The old table stays as it is until the section commits, so it needs no note.
            *self = Self::empty_at(window_base(self.ctrl), self.seed);
        }
    }
}

impl<'s, K: Persist<'s> + StableHash + Eq, V: Persist<'s>> HashMap<'s, K, V> {
    /// An empty map with room for `capacity` entries.
    ///
    /// # Errors
    /// If memory cannot be had.
    pub fn with_capacity(tx: &Tx<'s>, capacity: usize) -> Result<Self, AllocError> {
        let mut map = Self::new(tx);
        map.reserve(tx, capacity)?;
        Ok(map)
    }

    /// The value of a key.
    #[inline]
    pub fn get<Q>(&self, key: &Q) -> Option<&V>
    where
        K: Borrow<Q>,
        Q: StableHash + Eq + ?Sized,
    {
        self.get_key_value(key).map(|(_, v)| v)
    }

    /// The stored key and its value.
    #[inline]
    pub fn get_key_value<Q>(&self, key: &Q) -> Option<(&K, &V)>
    where
        K: Borrow<Q>,
        Q: StableHash + Eq + ?Sized,
    {
        let index = self.find(stable_hash(self.seed, key), key)?;
        // SAFETY: `find` gives a slot that holds an entry; the map is borrowed.
        let entry = unsafe { &*self.entry(index) };
        Some((&entry.key, &entry.value))
    }

    /// Whether the key is there.
    #[inline]
    pub fn contains_key<Q>(&self, key: &Q) -> bool
    where
        K: Borrow<Q>,
        Q: StableHash + Eq + ?Sized,
    {
        self.find(stable_hash(self.seed, key), key).is_some()
    }

    /// The value of a key, to be changed.
    #[inline]
    pub fn get_mut<Q>(&mut self, tx: &Tx<'s>, key: &Q) -> Option<&mut V>
    where
        K: Borrow<Q>,
        Q: StableHash + Eq + ?Sized,
    {
        let index = self.find(stable_hash(self.seed, key), key)?;
        Some(self.value_mut(tx, index))
    }

    #[inline(always)]
    fn value_mut(&mut self, tx: &Tx<'s>, index: usize) -> &mut V {
        // SAFETY: callers found that this slot holds an entry; the map is borrowed for change.
        let value = unsafe { &mut (*self.entry(index)).value };
        tx.note(value);
        value
    }

    /// Puts a value under a key, and returns the one that was there. The key that was there stays.
    ///
    /// # Errors
    /// If memory cannot be had; key and value are dropped.
    #[inline]
    pub fn insert(&mut self, tx: &Tx<'s>, key: K, value: V) -> Result<Option<V>, AllocError> {
        let hash = stable_hash(self.seed, &key);
        match self.find_or_vacant(hash, &key) {
            Found::At(index) => Ok(Some(replace(self.value_mut(tx, index), value))),
            Found::Vacant(index) => {
                self.insert_new(tx, hash, index, key, value)?;
                Ok(None)
            }
        }
    }

    /// The value of a key, to be changed; made by `make` if there is none.
    ///
    /// # Errors
    /// Those of `make`, and if memory cannot be had; then the map is as it was.
    pub fn get_or_insert_with<E: From<AllocError>>(
        &mut self,
        tx: &Tx<'s>,
        key: K,
        make: impl FnOnce() -> Result<V, E>,
    ) -> Result<&mut V, E> {
        let hash = stable_hash(self.seed, &key);
        match self.find_or_vacant(hash, &key) {
            Found::At(index) => Ok(self.value_mut(tx, index)),
            Found::Vacant(index) => {
                let value = make()?;
                let index = self.insert_new(tx, hash, index, key, value)?;
                // SAFETY: just inserted; the map is borrowed for change. Its slot was vacant, so it
                // needs no note.
                Ok(unsafe { &mut (*self.entry(index)).value })
            }
        }
    }

    /// Puts an entry into a vacant slot, which is `index` unless the table has to grow.
    #[inline(always)]
    fn insert_new(
        &mut self,
        tx: &Tx<'s>,
        hash: u64,
        mut index: usize,
        key: K,
        value: V,
    ) -> Result<usize, AllocError> {
        // SAFETY: index <= mask. A deleted slot is used again at no cost in room.
        let mut was_empty = unsafe { *self.ctrl().add(index) } == EMPTY;
        if self.left == 0 && was_empty {
            self.grow(tx, 1)?;
            index = self.vacant(hash);
            was_empty = true;
        }
        self.note_ctrl(tx, index);
        // SAFETY: a vacant slot of a table that is borrowed for change; what it holds is garbage, and
        // if it was vacated in this section, that noted it.
        unsafe {
            self.write_ctrl(index, (hash >> 57) as u8);
            self.entry(index).write(Entry { key, value });
        }
        self.items += 1;
        self.left -= usize::from(was_empty);
        Ok(index)
    }

    #[inline(always)]
    fn note_ctrl(&self, tx: &Tx<'s>, index: usize) {
        let repeated = self.repeated(index);
        // SAFETY: both are control bytes of the table.
        let (first, second) = unsafe { (self.ctrl().add(index), self.ctrl().add(repeated)) };
        tx.note_byte(first);
        if repeated != index {
            tx.note_byte(second);
        }
    }

    /// Takes a key out, and returns its value.
    #[inline]
    pub fn remove<Q>(&mut self, tx: &Tx<'s>, key: &Q) -> Option<V>
    where
        K: Borrow<Q>,
        Q: StableHash + Eq + ?Sized,
    {
        self.remove_entry(tx, key).map(|(_, v)| v)
    }

    /// Takes a key out, and returns it and its value.
    pub fn remove_entry<Q>(&mut self, tx: &Tx<'s>, key: &Q) -> Option<(K, V)>
    where
        K: Borrow<Q>,
        Q: StableHash + Eq + ?Sized,
    {
        let index = self.find(stable_hash(self.seed, key), key)?;
        let entry = self.vacate(tx, index);
        Some((entry.key, entry.value))
    }

    /// Moves the entry out of a slot that holds one.
    fn vacate(&mut self, tx: &Tx<'s>, index: usize) -> Entry<K, V> {
        // SAFETY: callers found that the slot holds an entry.
        let at = unsafe { self.entry(index) };
        tx.note(at);
        self.note_ctrl(tx, index);
        // SAFETY: both places are at most the mask.
        let (before, after) = unsafe {
            (self.group(index.wrapping_sub(WIDTH) & self.mask).empty(), self.group(index).empty())
        };
        // If every window of sixteen around the slot has an empty one, no search went over it.
        let byte = if before.trailing_out() + after.leading_out() >= WIDTH {
            DELETED
        } else {
            self.left += 1;
            EMPTY
        };
        self.items -= 1;
        // SAFETY: a slot of a table that is borrowed for change; the entry is moved out once.
        unsafe {
            self.write_ctrl(index, byte);
            at.read()
        }
    }

    /// Drops the entries for which `keep` does not hold.
    pub fn retain(&mut self, tx: &Tx<'s>, mut keep: impl FnMut(&K, &mut V) -> bool) {
        for index in self.full() {
            // SAFETY: a slot that holds an entry, looked at before it may be vacated.
            let entry = unsafe { &mut *self.entry(index) };
            tx.note(&raw const entry.value);
            if !keep(&entry.key, &mut entry.value) {
                drop(self.vacate(tx, index));
            }
        }
    }

    /// Makes room for `additional` entries more.
    ///
    /// # Errors
    /// If memory cannot be had.
    pub fn reserve(&mut self, tx: &Tx<'s>, additional: usize) -> Result<(), AllocError> {
        if self.left < additional { self.grow(tx, additional) } else { Ok(()) }
    }

    /// Moves to a table with room for `additional` entries more.
    #[cold]
    #[inline(never)]
    fn grow(&mut self, tx: &Tx<'s>, additional: usize) -> Result<(), AllocError> {
        const { Entry::<K, V>::CHECK }
        /// Frees a table that was not finished, as hashing panicked.
        struct Unfinished(usize);
        impl Drop for Unfinished {
            fn drop(&mut self) {
                journal::free_later(self.0);
            }
        }
        let too_large = AllocError::TooLarge { bytes: usize::MAX };
        let least = self.items.checked_add(additional).ok_or(too_large.clone())?;
        let mut slots = self.slots().max(4);
        // With many deleted slots a table of the same size will do.
        while room(slots) < least || (slots == self.slots() && self.items > room(slots) / 2) {
            slots = slots.checked_mul(2).ok_or(too_large.clone())?;
        }
        let entry = size_of::<Entry<K, V>>();
        let bytes = table_bytes(slots, entry).ok_or(too_large)?;
        let unit = if bytes > SMALL_MAX { PAGE_SIZE } else { GRAIN };
        let request = Request {
            ty: TypeRef::of::<Entry<K, V>>(),
            kind: kind::TABLE,
            capacity_log2: slots.trailing_zeros() as u8,
            bytes: bytes.next_multiple_of(unit),
        };
        let start = tx.allocate(tx.cluster_of(self.ctrl), &request)?.as_ptr();
        let unfinished = Unfinished(start.addr());
        // SAFETY: the allocation has room for the slots, then slots + 16 control bytes.
        let ctrl = unsafe {
            let ctrl = start.add(slots * entry);
            ctrl.write_bytes(EMPTY, slots + WIDTH);
            ctrl
        };
        let new = std::mem::ManuallyDrop::new(Self {
            ctrl: ctrl.expose_provenance(),
            mask: slots - 1,
            items: self.items,
            left: room(slots) - self.items,
            ..Self::empty_at(0, self.seed)
        });
        for index in self.full() {
            // SAFETY: a slot that holds an entry; entries are copied, and the old table is not used
            // again but by undoing.
            unsafe {
                let from = self.entry(index);
                let hash = stable_hash(self.seed, &(*from).key);
                let to = new.vacant(hash);
                new.write_ctrl(to, (hash >> 57) as u8);
                ptr::copy_nonoverlapping(from, new.entry(to), 1);
            }
        }
        std::mem::forget(unfinished);
        if self.mask != 0 {
            tx.free_later(self.table_start());
        }
        (self.ctrl, self.mask, self.left) = (new.ctrl, new.mask, new.left);
        Ok(())
    }
}

/// The entries of a map.
pub struct Iter<'a, 's, K, V> {
    full: Full,
    map: &'a HashMap<'s, K, V>,
}

impl<'a, K, V> Iterator for Iter<'a, '_, K, V> {
    type Item = (&'a K, &'a V);

    #[inline]
    fn next(&mut self) -> Option<Self::Item> {
        let index = self.full.next()?;
        // SAFETY: a slot that holds an entry; the map is borrowed for 'a.
        let entry = unsafe { &*self.map.entry(index) };
        Some((&entry.key, &entry.value))
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        self.full.size_hint()
    }
}

impl<K, V> ExactSizeIterator for Iter<'_, '_, K, V> {}

impl<K, V> fmt::Debug for Iter<'_, '_, K, V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Iter({} left)", self.full.left)
    }
}

impl<'a, 's, K: Persist<'s>, V: Persist<'s>> IntoIterator for &'a HashMap<'s, K, V> {
    type Item = (&'a K, &'a V);
    type IntoIter = Iter<'a, 's, K, V>;

    fn into_iter(self) -> Iter<'a, 's, K, V> {
        self.iter()
    }
}

impl<'s, K, V, Q> Index<&Q> for HashMap<'s, K, V>
where
    K: Persist<'s> + StableHash + Eq + Borrow<Q>,
    V: Persist<'s>,
    Q: StableHash + Eq + ?Sized,
{
    type Output = V;

    /// # Panics
    /// If the key is not there.
    fn index(&self, key: &Q) -> &V {
        self.get(key).expect("no entry for this key")
    }
}

impl<K, V> Drop for HashMap<'_, K, V> {
    fn drop(&mut self) {
        if self.mask == 0 {
            return;
        }
        if needs_drop::<Entry<K, V>>() {
            for index in self.full() {
                // SAFETY: a slot that holds an entry, dropped once, in a map that is not used again.
                unsafe { self.entry(index).drop_in_place() };
            }
        }
        journal::free_later(self.table_start());
    }
}

impl<'s, K: Persist<'s> + fmt::Debug, V: Persist<'s> + fmt::Debug> fmt::Debug
    for HashMap<'s, K, V>
{
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map().entries(self.iter()).finish()
    }
}

// SAFETY: a shared map gives shared access to keys and values. Not Send: its Drop belongs to the thread
// of the section.
unsafe impl<K: Sync, V: Sync> Sync for HashMap<'_, K, V> {}

// SAFETY: repr(C): five words, of which the first is an address in a container branded 's.
unsafe impl<'s, K: Persist<'s>, V: Persist<'s>> Persist<'s> for HashMap<'s, K, V> {
    const ID: u64 = combine_ids(combine_ids(name_id("HashMap"), K::ID), V::ID);
    const POINTERS: bool = true;
    const TAGGED: bool = false;
    fn name() -> String {
        format!("HashMap<{}, {}>", K::name(), V::name())
    }
    fn describe(d: &mut Describer) -> TypeDescription {
        let entry = d.refer::<Entry<K, V>>();
        d.shaped::<Self>(Shape::Map(entry))
    }
}
