//! Damage anywhere: one store's image, changed in one place in every way, opened and read. Right bytes or an error
//! that says what and where; containers whose blocks were not hit are whole. Read [`Subject`] first.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use stead_model::{ContainerId, PAGE_SIZE, PageId, PageNo};

use super::audit::needed;
use super::model::{Model, image, number_of, some_of};
use super::{CrashMedium, SplitMix};
use crate::directory::CreateOptions;
use crate::error::{OpenError, ReadError};
use crate::format::{BLOCK, Chunk, Entry, HEADER_BLOCKS};
use crate::store::Store;

/// A store's image, what it holds, and other images to take wrong blocks from.
#[derive(Debug)]
pub struct Subject {
    bytes: Vec<u8>,
    /// The same store some stabilisations earlier.
    older: Vec<u8>,
    /// Another store of the same shape.
    stranger: Vec<u8>,
    live: Model,
    /// As it was before the last stabilisation: the last one of all cannot be told from one cut off.
    before: Model,
    before_that: Model,
    snapshot: Model,
    /// Whose a block is, image or part of a map, as either root has it.
    owners: BTreeMap<usize, BTreeSet<ContainerId>>,
    /// Images of the last stabilisation.
    last: BTreeSet<usize>,
}

/// One change of an image.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Change {
    /// A byte is xored with this.
    Flip { offset: usize, with: u8 },
    /// The file ends here.
    Cut { len: usize },
    /// A block holds what another one of the same image holds.
    Copied { block: usize, from: usize },
    /// Two blocks have changed places.
    Swapped { block: usize, with: usize },
    /// A block is as it was earlier.
    Older { block: usize },
    /// A block is that of another store.
    Strange { block: usize },
    /// A block is all zero.
    Zeroed { block: usize },
}

/// How a damaged store showed itself.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Seen {
    /// It does not open, and says what is damaged where.
    Refused,
    /// It opens, and something is withheld, by name.
    Withheld,
    /// It opens and all is right.
    Right,
}

const NAME: &str = "earlier";

impl Subject {
    /// A store with three containers and a snapshot.
    ///
    /// # Errors
    /// If it cannot be made.
    pub fn new(seed: u64) -> Result<Self, String> {
        let (bytes, older, models) = make(seed)?;
        let (stranger, ..) = make(seed ^ 1)?;
        let [before_that, before, live, snapshot] = models;
        let medium = CrashMedium::with_bytes(0, &bytes);
        let (store, _) = Store::open_on(Arc::new(medium.clone())).map_err(|e| e.to_string())?;
        let owner = |entry| match entry {
            Entry::Image(page) => Some(page.container),
            Entry::Node(node) => Some(node.container),
            Entry::Zero(_) | Entry::Drop(_) | Entry::Table(_) => None,
        };
        let owners = needed(&store, &medium)?
            .into_iter()
            .filter_map(|(place, entry)| Some((place.0 as usize, owner(entry)?)))
            .fold(BTreeMap::new(), |mut owners: BTreeMap<_, BTreeSet<_>>, (block, owner)| {
                owners.entry(block).or_default().insert(owner);
                owners
            });
        let blocks = bytes.chunks_exact(BLOCK).enumerate();
        let last = blocks
            .filter_map(|(i, block)| {
                let (chunk, _) = Chunk::decode(block, store.header.store_id)?;
                (chunk.sequence == COMMITS).then_some((i, chunk))
            })
            .flat_map(|(i, chunk)| i + 1..=i + chunk.payload_blocks())
            .collect();
        Ok(Subject { bytes, older, stranger, live, before, before_that, snapshot, owners, last })
    }

    pub(super) fn image(&self) -> &[u8] {
        &self.bytes
    }

    /// Bytes of the image.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.bytes.len()
    }

    /// Blocks of the image that are not all zero.
    #[must_use]
    pub fn written_blocks(&self) -> Vec<usize> {
        let blocks = self.bytes.chunks(BLOCK).enumerate();
        blocks.filter(|(_, block)| block.iter().any(|&byte| byte != 0)).map(|(i, _)| i).collect()
    }

    /// A change by chance.
    pub fn any_change(&self, random: &mut SplitMix) -> Change {
        let written = self.written_blocks();
        let block = written[random.below(written.len() as u64) as usize];
        let other = written[random.below(written.len() as u64) as usize];
        match random.below(12) {
            0 => Change::Cut { len: random.below(self.bytes.len() as u64) as usize },
            1 => Change::Copied { block, from: other },
            2 => Change::Swapped { block, with: other },
            3 => Change::Older { block },
            4 => Change::Strange { block },
            5 => Change::Zeroed { block },
            _ => {
                let offset = block * BLOCK + random.below(BLOCK as u64) as usize;
                Change::Flip { offset, with: 1 << random.below(8) }
            }
        }
    }

    fn changed(&self, change: Change) -> Vec<u8> {
        let mut bytes = self.bytes.clone();
        let range = |block: usize| block * BLOCK..(block + 1) * BLOCK;
        let block_of = |image: &[u8], block: usize| -> Vec<u8> {
            image.get(range(block)).map_or(vec![0; BLOCK], <[u8]>::to_vec)
        };
        match change {
            Change::Flip { offset, with } => bytes[offset] ^= with,
            Change::Cut { len } => bytes.truncate(len),
            Change::Copied { block, from } => bytes.copy_within(range(from), block * BLOCK),
            Change::Swapped { block, with } => {
                bytes.copy_within(range(with), block * BLOCK);
                bytes[range(with)].copy_from_slice(&self.bytes[range(block)]);
            }
            Change::Older { block } => {
                bytes[range(block)].copy_from_slice(&block_of(&self.older, block));
            }
            Change::Strange { block } => {
                bytes[range(block)].copy_from_slice(&block_of(&self.stranger, block));
            }
            Change::Zeroed { block } => bytes[range(block)].fill(0),
        }
        bytes
    }

    /// Changes the image, opens it and reads everything in it.
    ///
    /// # Errors
    /// If anything is wrong without a word, a word is missing, or more is withheld than was hit.
    pub fn check(&self, change: Change) -> Result<Seen, String> {
        self.look(change).map_err(|what| format!("{change:?}: {what}"))
    }

    fn look(&self, change: Change) -> Result<Seen, String> {
        let bytes = self.changed(change);
        let same = bytes == self.bytes;
        let medium = CrashMedium::with_bytes(0, &bytes);
        let store = match Store::open_on(Arc::new(medium)) {
            Ok((store, _)) => store,
            // One damaged block is not enough for that, whichever it is.
            Err(OpenError::Damaged { damage, .. })
                if change.block().is_none() && !same && !damage.what.is_empty() =>
            {
                return Ok(Seen::Refused);
            }
            Err(OpenError::NotAStore { .. }) if bytes.len() < HEADER_BLOCKS as usize * BLOCK => {
                return Ok(Seen::Refused);
            }
            Err(error) => return Err(format!("refused: {error}")),
        };
        // An image of the last stabilisation, damaged, looks as if that had been cut off.
        let may_be_cut_off = change.block().is_none_or(|block| self.last.contains(&block));
        let (live, cut_off) = match withheld(&store, None, &self.live) {
            Ok(live) => (live, false),
            Err(_) if may_be_cut_off => {
                // Two blocks of the last two records may be hit by one change.
                let two = matches!(change, Change::Swapped { .. });
                let before = withheld(&store, None, &self.before);
                let before = before.or_else(|wrong| match two {
                    true => withheld(&store, None, &self.before_that),
                    false => Err(wrong),
                });
                (before?, true)
            }
            Err(wrong) => return Err(wrong),
        };
        let snapshot = withheld(&store, Some(NAME), &self.snapshot)?;
        let hit = self.hit(change);
        // If the last record is gone, a second block that was hit may have been replaced by it.
        let swapped_and_cut = cut_off && matches!(change, Change::Swapped { .. });
        if !(live.is_subset(&hit) || swapped_and_cut) {
            return Err(format!("{live:?} are withheld, {hit:?} were hit"));
        }
        if same && !(live.is_empty() && snapshot.is_empty()) {
            return Err("withheld, though nothing was hit".into());
        }
        let verified = store.verify(&mut |_| {}).map_err(|error| error.to_string())?;
        if verified.damages.is_empty() && !(live.is_empty() && snapshot.is_empty()) {
            return Err("withheld, and verification finds nothing".into());
        }
        let some = !live.is_empty() || !snapshot.is_empty() || !verified.damages.is_empty();
        Ok(if some { Seen::Withheld } else { Seen::Right })
    }

    /// The containers whose blocks a change has touched.
    fn hit(&self, change: Change) -> BTreeSet<ContainerId> {
        let blocks = match (change, change.block()) {
            (_, Some(block)) => vec![block],
            (Change::Swapped { block, with }, None) => vec![block, with],
            (_, None) => (0..self.bytes.len() / BLOCK).collect(),
        };
        blocks.iter().filter_map(|block| self.owners.get(block)).flatten().copied().collect()
    }
}

impl Change {
    /// The block that is changed, if it is only one.
    fn block(self) -> Option<usize> {
        match self {
            Change::Flip { offset, .. } => Some(offset / BLOCK),
            Change::Cut { .. } | Change::Swapped { .. } => None,
            Change::Copied { block, .. }
            | Change::Older { block }
            | Change::Strange { block }
            | Change::Zeroed { block } => Some(block),
        }
    }
}

/// Stabilisations of a subject.
const COMMITS: u64 = 9;

type Made = (Vec<u8>, Vec<u8>, [Model; 4]);

/// A store with a snapshot in its middle, records behind its last root, and something of every structure.
fn make(seed: u64) -> Result<Made, String> {
    let mut random = SplitMix(seed);
    let medium = CrashMedium::new(seed);
    let options = CreateOptions {
        segment_blocks: Some(16),
        store_id: Some(u128::from(seed) << 32 | 0xDA),
        base_window: Some(0),
        created: Some(0),
        quota: None,
        space_percent: None,
    };
    let store = Store::create_on(Arc::new(medium.clone()), &options).map_err(|e| e.to_string())?;
    let [mut before_that, mut before, mut live, mut snapshot]: [Model; 4] = Default::default();
    let mut older = Vec::new();
    let mut batch = store.batch();
    for round in 1..=COMMITS {
        before_that = std::mem::replace(&mut before, live.clone());
        for _ in 0..if round == 3 { 24 } else { 5 } {
            let container = ContainerId(random.below(3) as u32);
            let page =
                PageNo(if random.below(4) == 0 { random.below(900) } else { random.below(9) });
            let (id, number) = (PageId { container, page }, random.next_u64());
            batch.push(id, |bytes| image(number, bytes));
            live.insert(id, number);
        }
        store.commit(&mut batch).map_err(|error| error.to_string())?;
        match round {
            4 => {
                store.take_snapshot(NAME).map_err(|error| error.to_string())?;
                snapshot = live.clone();
            }
            5 => older = medium.bytes(),
            6 => store.checkpoint().map_err(|error| error.to_string())?,
            _ => {}
        }
    }
    drop(store);
    Ok((medium.bytes(), older, [before_that, before, live, snapshot]))
}

/// The containers of which something is withheld.
fn withheld(
    store: &Store,
    snapshot: Option<&str>,
    want: &Model,
) -> Result<BTreeSet<ContainerId>, String> {
    let view = match snapshot {
        Some(name) => store.view_snapshot(name).map_err(|error| error.to_string())?,
        None => store.view(),
    };
    let mut withheld = BTreeSet::new();
    let mut ids: Vec<PageId> = want.keys().copied().collect();
    for container in view.containers() {
        match view.stored_pages(container) {
            Ok(ranges) => ids.extend(some_of(container, &ranges)),
            Err(ReadError::Damaged(damage)) if !damage.what.is_empty() => {
                withheld.insert(container);
            }
            Err(error) => return Err(error.to_string()),
        }
    }
    let mut page = [0; PAGE_SIZE];
    for id in ids {
        match view.read_page(id, &mut page) {
            Ok(stored) => {
                if number_of(stored, &page) != Some(want.get(&id).copied()) {
                    return Err(format!("{id} is wrong, snapshot {snapshot:?}"));
                }
            }
            Err(ReadError::Damaged(damage)) if damage.page.is_none_or(|page| page == id) => {
                withheld.insert(id.container);
            }
            Err(error) => return Err(format!("{id}: {error}")),
        }
    }
    Ok(withheld)
}
