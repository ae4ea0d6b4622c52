//! The nouns of Stead and their laws: addresses, pages, windows, containers, and the allocator that
//! gives each container a place of its own for life (catalogue D1).
//!
//! Nothing here touches memory, files, clocks or threads; the crate is `no_std` and forbids unsafe
//! code. Read [`Address`] first, then [`windows::WindowAllocator`].
#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;

pub mod address;
pub mod name;
pub mod windows;

pub use address::{
    ADDRESS_END, ADDRESS_START, Address, ContainerId, PAGE_SIZE, PAGES_PER_WINDOW, PageId, PageNo,
    PageRange, WINDOW_COUNT, WINDOW_SIZE,
};
pub use name::{ContainerName, NameError, SYSTEM_NAME, check_new_name};
