//! Reads a container's first page without mapping the container: what a site must know before it maps.
//! Changes nothing. Read [`directory`] first.

use std::mem::offset_of;

use stead_model::{Address, ContainerId, PAGE_SIZE, WINDOW_COUNT, WINDOW_SIZE};
use thiserror::Error;

use crate::guide::TypeTable;
use crate::layout::{FORMAT_VERSION, Header, MAGIC, UNASSIGNED};

/// What the first page of a container says about it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Directory {
    /// Of the layout of everything in the container.
    pub format_version: u32,
    /// Whose page it is.
    pub container: ContainerId,
    /// Address of its first byte, as its pointers have it.
    pub base: Address,
    /// Windows that it may use.
    pub window_count: u32,
    /// The cluster of each window; `None` for a window that is not used yet.
    pub clusters: Vec<Option<u16>>,
    /// The root object, once there is one.
    pub root: Option<Address>,
    /// Number of the root's type among the container's type descriptions.
    pub root_type: Option<u32>,
    /// Where its type descriptions are, once there are some.
    pub types: Option<TypeTable>,
}

/// Why a page is not the first page of a container.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum DirectoryError {
    /// It does not begin like one.
    #[error("not a container: its first page begins with {found:02x?}, not with \"STEADHP1\"")]
    NotAContainer {
        /// Its first bytes.
        found: [u8; 8],
    },
    /// It was written by another release.
    #[error(
        "the container has heap format {found}; this program reads format {FORMAT_VERSION}: open it with the release that wrote it"
    )]
    OtherFormat {
        /// The format that it has.
        found: u32,
    },
    /// A field holds what no container has.
    #[error("the container's first page is damaged: {field} is {value:#x}")]
    Damaged {
        /// Which field.
        field: &'static str,
        /// What it holds.
        value: u64,
    },
}

fn u16_at(page: &[u8; PAGE_SIZE], at: usize) -> u16 {
    u16::from_le_bytes(page[at..at + 2].try_into().expect("two bytes"))
}

fn u32_at(page: &[u8; PAGE_SIZE], at: usize) -> u32 {
    u32::from_le_bytes(page[at..at + 4].try_into().expect("four bytes"))
}

fn u64_at(page: &[u8; PAGE_SIZE], at: usize) -> u64 {
    u64::from_le_bytes(page[at..at + 8].try_into().expect("eight bytes"))
}

/// Gives the first page of a container, or of one of its windows, another container's number: that of a branch, whose
/// pages are otherwise those of its origin.
///
/// # Errors
/// If it is no such page.
pub fn renumber(page: &mut [u8; PAGE_SIZE], container: ContainerId) -> Result<(), DirectoryError> {
    let magic = u64_at(page, 0);
    if magic != MAGIC {
        return Err(DirectoryError::NotAContainer { found: magic.to_le_bytes() });
    }
    let at = offset_of!(Header, container);
    page[at..at + 4].copy_from_slice(&container.0.to_le_bytes());
    Ok(())
}

/// Parses the first page of a container.
///
/// # Errors
/// If it is not one, is of another format, or is damaged.
pub fn directory(page: &[u8; PAGE_SIZE]) -> Result<Directory, DirectoryError> {
    let magic = u64_at(page, 0);
    if magic != MAGIC {
        return Err(DirectoryError::NotAContainer { found: magic.to_le_bytes() });
    }
    let format_version = u32_at(page, offset_of!(Header, format_version));
    if format_version != FORMAT_VERSION {
        return Err(DirectoryError::OtherFormat { found: format_version });
    }
    let damaged = |field, value| Err(DirectoryError::Damaged { field, value });
    let window = u32_at(page, offset_of!(Header, window));
    if window != 0 {
        return damaged("the window number", u64::from(window));
    }
    let container = u32_at(page, offset_of!(Header, container));
    if container > ContainerId::MAX.0 {
        return damaged("the container number", u64::from(container));
    }
    let window_count = u32_at(page, offset_of!(Header, window_count));
    if window_count == 0 || window_count > WINDOW_COUNT {
        return damaged("the number of windows", u64::from(window_count));
    }
    let base = u64_at(page, offset_of!(Header, canonical_base));
    let bytes = u64::from(window_count) * WINDOW_SIZE as u64;
    if !base.is_multiple_of(WINDOW_SIZE as u64)
        || base.checked_add(bytes).is_none_or(|e| e >> 47 != 0)
    {
        return damaged("the base address", base);
    }
    let clusters: Vec<Option<u16>> = (0..window_count as usize)
        .map(|w| match u16_at(page, offset_of!(Header, clusters) + 2 * w) {
            UNASSIGNED => None,
            n => Some(n - 1),
        })
        .collect();
    if clusters[0] != Some(0) {
        return damaged(
            "the cluster of the first window",
            u64::from(clusters[0].unwrap_or(u16::MAX)),
        );
    }
    if let Some(c) = clusters.iter().flatten().find(|c| u32::from(**c) >= window_count) {
        return damaged("the cluster of a window", u64::from(*c));
    }
    let root = u64_at(page, offset_of!(Header, root));
    if root != 0 && !(base..base + bytes).contains(&root) {
        return damaged("the root's address", root);
    }
    let has_root = root != 0;
    let types = TypeTable {
        address: Address(u64_at(page, offset_of!(Header, types_address)) as usize),
        bytes: u64_at(page, offset_of!(Header, types_bytes)),
        count: u32_at(page, offset_of!(Header, type_count)),
    };
    Ok(Directory {
        format_version,
        container: ContainerId(container),
        base: Address(base as usize),
        window_count,
        clusters,
        root: has_root.then_some(Address(root as usize)),
        root_type: has_root.then_some(u32_at(page, offset_of!(Header, root_type))),
        types: (types.address.0 != 0).then_some(types),
    })
}
