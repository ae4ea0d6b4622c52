//! Images of stores as text: the length, then every 16 bytes that are not all zero, behind their offset. And stores to
//! make such images of, whose pages hold a number each.
#![allow(dead_code, reason = "each test file uses some of it")]

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::IoSlice;
use std::path::Path;
use std::sync::Arc;

use stead_model::{ContainerId, PAGE_SIZE, PageId, PageNo};
use stead_store::sim::CrashMedium;
use stead_store::{CreateOptions, Medium, ReadError, Store, Stored, View};

/// Pages and the numbers in them.
pub(crate) type Pages = BTreeMap<PageId, u64>;

pub(crate) fn id(container: u32, page: u64) -> PageId {
    PageId { container: ContainerId(container), page: PageNo(page) }
}

/// Mostly zero, so that the text stays short.
pub(crate) fn image(value: u64) -> [u8; PAGE_SIZE] {
    let mut bytes = [0; PAGE_SIZE];
    bytes[..8].copy_from_slice(&value.to_le_bytes());
    bytes[PAGE_SIZE - 1] = 1;
    bytes
}

/// An empty store that is the same each time.
pub(crate) fn new_store() -> (Store, CrashMedium) {
    let medium = CrashMedium::new(0);
    let options = CreateOptions {
        segment_blocks: Some(32),
        store_id: Some(0x0123_4567_89AB_CDEF_0011_2233_4455_6677),
        base_window: Some(11),
        created: Some(1_763_000_000),
        ..CreateOptions::default()
    };
    (Store::create_on(Arc::new(medium.clone()), &options).unwrap(), medium)
}

/// The number in a page.
pub(crate) fn read_page(view: &View<'_>, id: PageId) -> Result<Option<u64>, ReadError> {
    let mut page = [0; PAGE_SIZE];
    Ok(match view.read_page(id, &mut page)? {
        Stored::Never => None,
        Stored::Image => {
            let value = u64::from_le_bytes(*page.first_chunk().unwrap());
            assert!(page == image(value));
            Some(value)
        }
    })
}

/// All pages of a state.
pub(crate) fn pages(view: &View<'_>) -> Pages {
    let mut found = Pages::new();
    for container in view.containers() {
        for range in view.stored_pages(container).unwrap() {
            for page in range.pages() {
                let id = PageId { container, page };
                found.insert(id, read_page(view, id).unwrap().expect("it is stored"));
            }
        }
    }
    found
}

/// Writes what is on a medium to a file.
pub(crate) fn write(medium: &CrashMedium, path: &Path) {
    let mut bytes = vec![0; medium.len().unwrap() as usize];
    medium.read(0, &mut bytes).unwrap();
    write_bytes(&bytes, path);
}

pub(crate) fn write_bytes(bytes: &[u8], path: &Path) {
    let mut text = format!("{:#x}\n", bytes.len());
    for (row, offset) in bytes.chunks(16).zip((0..).step_by(16)) {
        if row.iter().any(|&byte| byte != 0) {
            let hex: String = row.iter().map(|byte| format!("{byte:02x}")).collect();
            writeln!(text, "{offset:x} {hex}").unwrap();
        }
    }
    std::fs::write(path, text).unwrap();
}

/// A medium with an image on it.
pub(crate) fn read(text: &str) -> CrashMedium {
    let bytes = read_bytes(text);
    let medium = CrashMedium::new(0);
    medium.set_len(bytes.len() as u64).unwrap();
    medium.write(0, &[IoSlice::new(&bytes)]).unwrap();
    medium.sync().unwrap();
    medium
}

pub(crate) fn read_bytes(text: &str) -> Vec<u8> {
    let mut lines = text.lines();
    let hex = |text: &str| u64::from_str_radix(text.trim_start_matches("0x"), 16).unwrap();
    let mut bytes = vec![0; hex(lines.next().unwrap()) as usize];
    for line in lines {
        let (offset, row) = line.split_once(' ').unwrap();
        for i in 0..row.len() / 2 {
            bytes[hex(offset) as usize + i] = hex(&row[2 * i..2 * i + 2]) as u8;
        }
    }
    bytes
}
