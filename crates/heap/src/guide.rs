//! Says what is on a page of a container that is not mapped, from the container's own descriptions: for naming
//! what damage hit (B12). Trusts nothing that it reads; touches no memory of the container. Read
//! [`PageGuide`] first.

use std::fmt;
use std::mem::offset_of;

use stead_model::{Address, PAGE_SIZE, PAGES_PER_WINDOW, PageNo};

use crate::directory::{Directory, directory};
use crate::layout::{DESCRIPTOR_PAGES, DESCRIPTOR_SIZE, Descriptor, FIRST_PAGE, kind};
use crate::registry::Registry;

/// Fills in a page, and says whether it could be read; a page that was never stored is zero.
pub type PageSource<'a> = dyn FnMut(PageNo, &mut [u8; PAGE_SIZE]) -> bool + 'a;

/// Type descriptions take less than this, unless they are damaged.
const TYPES_BYTES_MAX: u64 = 64 << 20;

/// What a container says about its pages.
#[derive(Default)]
pub struct PageGuide {
    directory: Option<Directory>,
    registry: Option<Registry>,
}

/// What a page is used for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum PageKind {
    /// The first page of a window.
    Header,
    /// What the container knows of its pages.
    Descriptors,
    /// Nothing.
    Free,
    /// Objects that pointers and boxes name.
    Objects,
    /// Elements of vectors, bytes of texts.
    Elements,
    /// Hash tables.
    Table,
    /// Descriptions of types.
    Types,
    /// It cannot be said: what describes the page cannot be read.
    Unknown,
}

/// What is on a page.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PageUse {
    /// What it is used for.
    pub kind: PageKind,
    /// The type of its objects, elements or entries, where that is known.
    pub ty: Option<String>,
}

impl fmt::Debug for PageGuide {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PageGuide").field("directory", &self.directory).finish_non_exhaustive()
    }
}

impl PageGuide {
    /// Reads the container's first page and its type descriptions, as far as they can be read.
    #[must_use]
    pub fn read(source: &mut PageSource<'_>) -> PageGuide {
        let mut page = [0; PAGE_SIZE];
        if !source(PageNo(0), &mut page) {
            return PageGuide::default();
        }
        let Ok(directory) = directory(&page) else { return PageGuide::default() };
        let registry = read_types(&directory, source);
        PageGuide { directory: Some(directory), registry }
    }

    /// The name of the root's type; `None` while there is no root, or if that cannot be read.
    #[must_use]
    pub fn root_type(&self) -> Option<&str> {
        let number = self.directory.as_ref()?.root_type?;
        Some(&self.registry.as_ref()?.get(number)?.name)
    }

    /// What is on a page.
    #[must_use]
    pub fn use_of(&self, page: PageNo, source: &mut PageSource<'_>) -> PageUse {
        let in_window = page.0 % PAGES_PER_WINDOW;
        if in_window == 0 {
            return PageUse { kind: PageKind::Header, ty: None };
        }
        if in_window <= u64::from(DESCRIPTOR_PAGES) {
            return PageUse { kind: PageKind::Descriptors, ty: None };
        }
        let at = in_window as usize * DESCRIPTOR_SIZE;
        let described_by = page.0 - in_window + 1 + (at / PAGE_SIZE) as u64;
        let mut bytes = [0; PAGE_SIZE];
        if !source(PageNo(described_by), &mut bytes) {
            return PageUse { kind: PageKind::Unknown, ty: None };
        }
        let descriptor = &bytes[at % PAGE_SIZE..][..DESCRIPTOR_SIZE];
        let kind = match descriptor[offset_of!(Descriptor, kind)] {
            kind::FREE => return PageUse { kind: PageKind::Free, ty: None },
            kind::TYPES => return PageUse { kind: PageKind::Types, ty: None },
            kind::OBJECTS => PageKind::Objects,
            kind::ARRAY => PageKind::Elements,
            kind::TABLE => PageKind::Table,
            _ => return PageUse { kind: PageKind::Unknown, ty: None },
        };
        let number = &descriptor[offset_of!(Descriptor, type_number)..][..4];
        let number = u32::from_le_bytes(number.try_into().expect("four bytes"));
        let ty = self.registry.as_ref().and_then(|registry| registry.get(number));
        PageUse { kind, ty: ty.map(|ty| ty.name.clone()) }
    }
}

fn read_types(directory: &Directory, source: &mut PageSource<'_>) -> Option<Registry> {
    let types = directory.types?;
    if types.bytes > TYPES_BYTES_MAX {
        return None;
    }
    let mut table = Vec::new();
    let mut page = [0; PAGE_SIZE];
    for at in types.pages(directory.base)? {
        if !source(PageNo(at), &mut page) {
            return None;
        }
        table.extend_from_slice(&page);
    }
    Registry::parse(table.get(..types.bytes as usize)?, types.count)
}

/// Where the first page says the type descriptions are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TypeTable {
    /// Its first byte.
    pub address: Address,
    /// How long it is.
    pub bytes: u64,
    /// How many types it describes.
    pub count: u32,
}

impl TypeTable {
    /// Its pages in a container that begins at `base`; `None` if that cannot be.
    fn pages(&self, base: Address) -> Option<std::ops::Range<u64>> {
        let offset = (self.address.0 as u64).checked_sub(base.0 as u64)?;
        let first = offset / PAGE_SIZE as u64;
        let in_window = first % PAGES_PER_WINDOW;
        let pages = self.bytes.div_ceil(PAGE_SIZE as u64);
        let fits = offset.is_multiple_of(PAGE_SIZE as u64)
            && in_window >= u64::from(FIRST_PAGE)
            && in_window.checked_add(pages)? <= PAGES_PER_WINDOW;
        fits.then(|| first..first + pages)
    }
}

impl Directory {
    /// The pages that opening the container reads: headers of windows, type descriptions, and what
    /// describes their page. Someone who looks at them before, by other ways, finds damage without touching it.
    #[must_use]
    pub fn pages_to_open(&self) -> Vec<u64> {
        let windows = self.clusters.iter().enumerate().filter(|(_, cluster)| cluster.is_some());
        let mut pages: Vec<u64> = windows.map(|(w, _)| w as u64 * PAGES_PER_WINDOW).collect();
        if let Some(types) = self.types.and_then(|types| types.pages(self.base)) {
            let in_window = types.start % PAGES_PER_WINDOW;
            let described_by = 1 + in_window * DESCRIPTOR_SIZE as u64 / PAGE_SIZE as u64;
            pages.push(types.start - in_window + described_by);
            if types.end - types.start <= TYPES_BYTES_MAX / PAGE_SIZE as u64 {
                pages.extend(types);
            }
        }
        pages
    }
}

impl PageKind {
    /// One word for it, which stays the same from version to version.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            PageKind::Header => "header",
            PageKind::Descriptors => "descriptors",
            PageKind::Free => "free",
            PageKind::Objects => "objects",
            PageKind::Elements => "elements",
            PageKind::Table => "table",
            PageKind::Types => "types",
            PageKind::Unknown => "unknown",
        }
    }
}

impl fmt::Display for PageUse {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let what = match self.kind {
            PageKind::Header => "the header of a window",
            PageKind::Descriptors => "descriptors of pages",
            PageKind::Free => "free memory",
            PageKind::Objects => "objects",
            PageKind::Elements => "elements of vectors or texts",
            PageKind::Table => "a hash table",
            PageKind::Types => "descriptions of types",
            PageKind::Unknown => "something unknown (what describes it cannot be read)",
        };
        f.write_str(what)?;
        match &self.ty {
            Some(ty) => write!(f, " of type {ty}"),
            None => Ok(()),
        }
    }
}
