//! Tells AddressSanitizer which slots are free, in builds with `--cfg stead_asan`; otherwise nothing.
//!
//! Run, the programs that must not compile left out, as they are not run:
//!
//! ```text
//! RUSTC_BOOTSTRAP=1 RUSTFLAGS="-Zsanitizer=address --cfg stead_asan" cargo test -p stead-heap \
//!     --target x86_64-unknown-linux-gnu --lib --test basics --test properties --test threads --test damage
//! ```

#![allow(unexpected_cfgs, reason = "stead_asan is set by hand")]

#[cfg(stead_asan)]
mod sys {
    unsafe extern "C" {
        fn __asan_poison_memory_region(address: *const std::ffi::c_void, bytes: usize);
        fn __asan_unpoison_memory_region(address: *const std::ffi::c_void, bytes: usize);
    }

    pub(crate) fn poison(address: usize, bytes: usize) {
        // SAFETY: marks bytes only; the address is one of a mapped container.
        unsafe { __asan_poison_memory_region(std::ptr::without_provenance(address), bytes) };
    }

    pub(crate) fn unpoison(address: usize, bytes: usize) {
        // SAFETY: marks bytes only; the address is one of a mapped container.
        unsafe { __asan_unpoison_memory_region(std::ptr::without_provenance(address), bytes) };
    }
}

#[cfg(not(stead_asan))]
mod sys {
    #[inline(always)]
    pub(crate) fn poison(_: usize, _: usize) {}

    #[inline(always)]
    pub(crate) fn unpoison(_: usize, _: usize) {}
}

pub(crate) use sys::{poison, unpoison};
