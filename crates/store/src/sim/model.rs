//! What a tortured store must hold: a map of numbers, from which the images follow; and the comparison of a store
//! with it. Read [`contents`] first.

use std::collections::BTreeMap;

use stead_model::{ContainerId, PAGE_SIZE, PageId, PageRange};

use crate::error::ReadError;
use crate::read::Stored;
use crate::store::Store;

/// Each page's number, from which its image follows.
pub(super) type Model = BTreeMap<PageId, u64>;

/// The image of a page with this number.
pub(super) fn image(number: u64, bytes: &mut [u8]) {
    for (i, word) in bytes.chunks_exact_mut(8).enumerate() {
        word.copy_from_slice(&number.wrapping_mul(2 * i as u64 + 1).to_le_bytes());
    }
}

/// The number that a page was stored with; `Some(None)` if it was not stored, `None` if it is no image.
pub(super) fn number_of(stored: Stored, page: &[u8; PAGE_SIZE]) -> Option<Option<u64>> {
    if stored == Stored::Never {
        return Some(None);
    }
    let number = u64::from_le_bytes(*page.first_chunk().expect("a page has eight bytes"));
    let whole = page
        .chunks_exact(8)
        .enumerate()
        .all(|(i, word)| *word == number.wrapping_mul(2 * i as u64 + 1).to_le_bytes());
    whole.then_some(Some(number))
}

/// Everything that the store holds.
pub(super) fn contents(store: &Store) -> Result<Model, String> {
    let mut found = Model::new();
    let mut page = [0; PAGE_SIZE];
    for container in store.containers() {
        for range in store.stored_pages(container).map_err(|error| error.to_string())? {
            for page_no in range.pages() {
                let id = PageId { container, page: page_no };
                let stored = store.read_page(id, &mut page).map_err(|error| error.to_string())?;
                match number_of(stored, &page) {
                    Some(Some(number)) => drop(found.insert(id, number)),
                    _ => return Err(format!("{id} has wrong bytes")),
                }
            }
        }
    }
    Ok(found)
}

/// The pages of these ranges; of one that is as long as only what is lost can be here, its beginning.
pub(super) fn some_of(
    container: ContainerId,
    ranges: &[PageRange],
) -> impl Iterator<Item = PageId> {
    /// As many as two levels of a map lead to.
    const MOST: usize = 1 << 16;
    let pages = ranges.iter().flat_map(|range| range.pages().take(MOST));
    pages.map(move |page| PageId { container, page })
}

/// Whether something is withheld; an error if something is wrong.
pub(super) fn agrees_but_for_damage(store: &Store, want: &Model) -> Result<bool, String> {
    let mut withheld = false;
    let mut page = [0; PAGE_SIZE];
    let mut ids: Vec<PageId> = want.keys().copied().collect();
    for container in store.containers() {
        match store.stored_pages(container) {
            Ok(ranges) => ids.extend(some_of(container, &ranges)),
            Err(ReadError::Damaged(_)) => withheld = true,
            Err(error) => return Err(error.to_string()),
        }
    }
    for id in ids {
        match store.read_page(id, &mut page) {
            Ok(stored) => {
                if number_of(stored, &page) != Some(want.get(&id).copied()) {
                    return Err(format!("{id} is wrong"));
                }
            }
            Err(ReadError::Damaged(damage)) if damage.page.is_none_or(|page| page == id) => {
                withheld = true;
            }
            Err(error) => return Err(format!("{id}: {error}")),
        }
    }
    Ok(withheld)
}
