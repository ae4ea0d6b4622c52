//! What a site knows of each page, in 14 bytes, and the table that holds it: chunks of 64 pages.
//! Copysets above two sites spill. Read [`Page`] and [`Table`] first.

use alloc::boxed::Box;
use alloc::collections::BTreeMap;

use crate::ids::{Access, ChunkKey, ClusterId, PageKey, SiteId, Version};
use crate::site_set::SiteSet;
use crate::sorted_map::SortedMap;

/// A page as one site sees it.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(crate) struct Page {
    /// Owner: the version of the contents. Otherwise: the highest version with which some site is
    /// known to have come to own the page, which a valid copy has too.
    pub(crate) version: Version,
    /// The site that came to own the page with `version`, as far as known (I7).
    pub(crate) owner: SiteId,
    pub(crate) access: Access,
    /// This site owns the page.
    pub(crate) own: bool,
    /// The contents differ from the stable ones, or may. For a copy: did when it was given.
    pub(crate) modified: bool,
    /// The cut has been, the page is to be captured as it is now (before it is written or given).
    pub(crate) due: bool,
    /// The contents are captured in the round under way.
    pub(crate) captured: bool,
    /// Came to be written a short while ago: not to be given away (I6).
    pub(crate) held: bool,
    /// A lock that a thread here has.
    pub(crate) locked: bool,
    /// Owner without frame: the contents are in the stable store.
    pub(crate) stored: bool,
    /// Not the owner: the version before this one was granted to this site, which refused it, so that
    /// the giver has the page again with this version.
    pub(crate) refused: bool,
    /// The copyset has more than two sites and stands in the spill.
    pub(crate) spilled: bool,
    /// Read through [`Table::readers`] alone, like `spilled`.
    pub(crate) readers: [SiteId; 2],
}

impl Page {
    /// The highest version that its owner is known to have had. What was refused is with its giver, who
    /// may still be giving it with the version before.
    pub(crate) fn version_seen(&self) -> Version {
        if self.refused { self.version.before() } else { self.version }
    }
}

impl Default for Page {
    fn default() -> Self {
        Page {
            version: Version::ZERO,
            owner: SiteId::NONE,
            access: Access::None,
            own: false,
            modified: false,
            due: false,
            captured: false,
            held: false,
            locked: false,
            stored: false,
            refused: false,
            spilled: false,
            readers: [SiteId::NONE; 2],
        }
    }
}

/// [`Page`] in 112 bits: version 56, owner and two readers 14 each, flags 11, 3 to spare.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
struct Packed([u16; 7]);

impl core::fmt::Debug for Packed {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        self.unpack().fmt(f)
    }
}

impl Packed {
    fn pack(page: &Page) -> Packed {
        let flag = |on: bool, bit: u32| u64::from(on) << bit;
        let high = u64::from(page.owner.get())
            | u64::from(page.readers[0].get()) << 14
            | u64::from(page.readers[1].get()) << 28
            | (page.access as u64) << 42
            | flag(page.own, 44)
            | flag(page.modified, 45)
            | flag(page.due, 46)
            | flag(page.captured, 47)
            | flag(page.held, 48)
            | flag(page.locked, 49)
            | flag(page.stored, 50)
            | flag(page.spilled, 51)
            | flag(page.refused, 52);
        let bits = u128::from(page.version.bits()) | u128::from(high) << Version::BITS;
        Packed(core::array::from_fn(|i| (bits >> (16 * i)) as u16))
    }

    fn unpack(self) -> Page {
        let bits = (0..7).fold(0u128, |bits, i| bits | u128::from(self.0[i]) << (16 * i));
        let high = (bits >> Version::BITS) as u64;
        let flag = |bit: u32| high >> bit & 1 == 1;
        Page {
            version: Version::from_bits(bits as u64 & ((1 << Version::BITS) - 1)),
            owner: SiteId::from_bits(high),
            readers: [SiteId::from_bits(high >> 14), SiteId::from_bits(high >> 28)],
            access: match high >> 42 & 3 {
                0 => Access::None,
                1 => Access::Read,
                _ => Access::Write,
            },
            own: flag(44),
            modified: flag(45),
            due: flag(46),
            captured: flag(47),
            held: flag(48),
            locked: flag(49),
            stored: flag(50),
            spilled: flag(51),
            refused: flag(52),
        }
    }
}

#[derive(Clone, PartialEq, Eq, Hash, Debug)]
struct Chunk {
    /// One bit for each page that is owned here and modified, so that a cut finds them by chunks.
    modified: u64,
    pages: [Packed; PageKey::CHUNK_PAGES as usize],
}

impl Chunk {
    fn put(&mut self, slot: usize, page: &Page) {
        self.pages[slot] = Packed::pack(page);
        let bit = 1 << slot;
        self.modified =
            if page.own && page.modified { self.modified | bit } else { self.modified & !bit };
    }
}

/// The places of the bits that are set, from the lowest.
pub(crate) fn bits(mut mask: u64) -> impl Iterator<Item = usize> {
    core::iter::from_fn(move || {
        let at = mask.trailing_zeros() as usize;
        mask &= mask.wrapping_sub(1);
        (at < 64).then_some(at)
    })
}

/// All pages that a site knows anything of.
#[derive(Clone, PartialEq, Eq, Hash, Default, Debug)]
pub(crate) struct Table {
    chunks: BTreeMap<ChunkKey, Box<Chunk>>,
    spill: SortedMap<PageKey, SiteSet>,
}

impl Table {
    /// The page; as unknown if nothing is known.
    pub(crate) fn get(&self, key: PageKey) -> Page {
        match self.chunks.get(&key.chunk()) {
            Some(chunk) => chunk.pages[key.slot()].unpack(),
            None => Page::default(),
        }
    }

    pub(crate) fn set(&mut self, key: PageKey, page: &Page) {
        let chunk = self.chunks.entry(key.chunk()).or_insert_with(|| {
            let unknown = Packed::pack(&Page::default());
            Box::new(Chunk { modified: 0, pages: [unknown; PageKey::CHUNK_PAGES as usize] })
        });
        chunk.put(key.slot(), page);
    }

    /// Pages owned here and modified, of clusters for which `wanted` holds.
    pub(crate) fn modified(
        &self,
        wanted: impl Fn(ClusterId) -> bool,
    ) -> impl Iterator<Item = PageKey> {
        self.chunks
            .iter()
            .filter(move |(key, chunk)| chunk.modified != 0 && wanted(key.cluster))
            .flat_map(|(key, chunk)| bits(chunk.modified).map(|slot| key.page(slot)))
    }

    /// Every page that is not unknown, in order, through `change`; chunks left without any go.
    pub(crate) fn for_each(&mut self, mut change: impl FnMut(PageKey, &mut Page)) {
        let unknown = Packed::pack(&Page::default());
        self.chunks.retain(|key, chunk| {
            let mut known = false;
            for slot in 0..PageKey::CHUNK_PAGES as usize {
                if chunk.pages[slot] != unknown {
                    let mut page = chunk.pages[slot].unpack();
                    change(key.page(slot), &mut page);
                    chunk.put(slot, &page);
                    known |= chunk.pages[slot] != unknown;
                }
            }
            known
        });
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (PageKey, Page)> {
        let unknown = Packed::pack(&Page::default());
        self.chunks.iter().flat_map(move |(key, chunk)| {
            chunk
                .pages
                .iter()
                .enumerate()
                .filter(move |(_, packed)| **packed != unknown)
                .map(|(slot, packed)| (key.page(slot), packed.unpack()))
        })
    }

    /// The sites that may have copies of a page owned here.
    pub(crate) fn readers(&self, key: PageKey, page: &Page) -> SiteSet {
        if page.spilled {
            self.spill.get(key).cloned().unwrap_or_default()
        } else {
            page.readers.iter().copied().filter(|s| *s != SiteId::NONE).collect()
        }
    }

    pub(crate) fn add_reader(&mut self, key: PageKey, page: &mut Page, reader: SiteId) {
        if page.spilled {
            self.spill.entry(key).insert(reader);
        } else if !page.readers.contains(&reader) {
            match page.readers.iter().position(|s| *s == SiteId::NONE) {
                Some(free) => {
                    page.readers[free] = reader;
                    page.readers.sort_unstable();
                }
                None => {
                    let mut readers: SiteSet = page.readers.iter().copied().collect();
                    readers.insert(reader);
                    self.spill.insert(key, readers);
                    page.readers = [SiteId::NONE; 2];
                    page.spilled = true;
                }
            }
        }
    }

    /// Empties the copyset and says who was in it.
    pub(crate) fn take_readers(&mut self, key: PageKey, page: &mut Page) -> SiteSet {
        let readers = self.readers(key, page);
        if page.spilled {
            self.spill.remove(key);
        }
        page.spilled = false;
        page.readers = [SiteId::NONE; 2];
        readers
    }

    /// Bytes of chunks, of the map's entries for them, and of copysets that spilled.
    pub(crate) fn bytes(&self) -> usize {
        let chunk = size_of::<Chunk>() + size_of::<(ChunkKey, Box<Chunk>)>();
        let spilled: usize =
            self.spill.iter().map(|(_, set)| set.len() * size_of::<SiteId>()).sum();
        self.chunks.len() * chunk + self.spill.bytes() + spilled
    }

    pub(crate) fn copysets_spilled(&self) -> usize {
        self.spill.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_survives_packing() {
        let page = Page {
            version: Version::first_of((1 << 17) - 1).next(),
            owner: SiteId::MAX,
            access: Access::Write,
            own: true,
            due: true,
            held: true,
            stored: true,
            readers: [SiteId::new(1), SiteId::NONE],
            ..Page::default()
        };
        assert_eq!(Packed::pack(&page).unpack(), page);
        assert_eq!(Packed::pack(&Page::default()).unpack(), Page::default());
        assert_eq!(size_of::<Packed>(), 14);
    }

    #[test]
    fn copysets_spill_and_come_back() {
        let key = PageKey::new(1, 70);
        let mut table = Table::default();
        let mut page = Page::default();
        for i in [5, 3, 9, 3] {
            table.add_reader(key, &mut page, SiteId::new(i));
        }
        let expect: SiteSet = [3, 5, 9].map(SiteId::new).into_iter().collect();
        assert_eq!(table.readers(key, &page), expect);
        assert_eq!(table.copysets_spilled(), 1);
        assert_eq!(table.take_readers(key, &mut page), expect);
        assert_eq!(table.copysets_spilled(), 0);
        assert!(table.readers(key, &page).is_empty());
    }
}
