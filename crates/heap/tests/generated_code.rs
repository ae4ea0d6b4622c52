//! A pointer is followed by one load and nothing else (catalogue A5): shown on the machine code of two
//! functions of this very program, read back byte by byte. Only of a build without debug assertions, which
//! would check the alignment of each pointer: `cargo test --release -p stead-heap --test generated_code`.
#![cfg(all(target_arch = "x86_64", not(debug_assertions)))]

use stead_derive::Persist;
use stead_heap::Ptr;

#[derive(Persist)]
#[persist(crate = stead_heap)]
#[repr(C)]
struct Node<'s> {
    value: u64,
    next: Option<Ptr<'s, Node<'s>>>,
}

/// `mov rax, [rdi]; ret`: the pointer comes in a register, the value goes out in one.
#[inline(never)]
#[unsafe(no_mangle)]
fn stead_probe_follow(p: Ptr<'_, Node<'_>>) -> u64 {
    p.value
}

/// The same with a plain reference, for comparison.
#[inline(never)]
#[unsafe(no_mangle)]
fn stead_probe_reference(p: &Node<'_>) -> u64 {
    std::hint::black_box(());
    p.value
}

#[test]
fn a_pointer_is_followed_by_one_load() {
    assert_eq!(size_of::<Ptr<'_, Node<'_>>>(), 8);
    assert_eq!(size_of::<Option<Ptr<'_, Node<'_>>>>(), 8);
    let function: fn(Ptr<'_, Node<'_>>) -> u64 = stead_probe_follow;
    // SAFETY: reads the first bytes of a function, which lie in the program's mapped code.
    let code = unsafe { std::slice::from_raw_parts(function as *const () as *const u8, 8) };
    // Development builds keep a frame pointer: push rbp; mov rbp, rsp around it.
    let code = code.strip_prefix(&[0x55, 0x48, 0x89, 0xe5]).unwrap_or(code);
    assert_eq!(code[..3], [0x48, 0x8b, 0x07], "not `mov rax, [rdi]`: {code:02x?}");
    assert!(matches!(code[3], 0xc3 | 0x5d), "more than one load: {code:02x?}");
    let node = Node { value: 5, next: None };
    assert_eq!(stead_probe_reference(&node), 5);
}
