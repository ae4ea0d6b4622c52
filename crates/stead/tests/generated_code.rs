//! A dereference is one load (A5): shown on the code that the compiler made of this very file, optimised and
//! without its checks of our own assumptions: `cargo test --release -p stead --test generated_code`.

#![cfg(all(target_arch = "x86_64", not(debug_assertions)))]

use stead::{Persist, Ptr};

#[derive(Persist)]
#[repr(C)]
struct Node<'s> {
    value: u64,
    next: Option<Ptr<'s, Node<'s>>>,
}

/// Follows one pointer.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn stead_probe_one(p: Ptr<'_, Node<'_>>) -> u64 {
    p.value
}

/// Follows a pointer to a pointer: two loads.
#[inline(never)]
#[unsafe(no_mangle)]
extern "C" fn stead_probe_two(p: Ptr<'_, Node<'_>>) -> usize {
    match p.next {
        Some(next) => next.value as usize,
        None => 0,
    }
}

/// The bytes of a function up to its return.
fn code(function: *const u8) -> Vec<u8> {
    let mut code = Vec::new();
    loop {
        // SAFETY: reads the code of a function of this program, which ends with a return.
        let byte = unsafe { *function.add(code.len()) };
        code.push(byte);
        if byte == 0xc3 || code.len() == 64 {
            return code;
        }
    }
}

#[test]
fn a_dereference_is_one_load() {
    // mov rax, [rdi]; ret
    assert_eq!(code(stead_probe_one as *const u8), [0x48, 0x8b, 0x07, 0xc3]);
    // A load of the pointer, a test for none, a load of the value: two loads of memory in all.
    let two = code(stead_probe_two as *const u8);
    let loads = two.windows(2).filter(|w| *w == [0x48, 0x8b]).count();
    assert_eq!(loads, 2, "{two:02x?}");
    assert_eq!(size_of::<Option<Ptr<'_, Node<'_>>>>(), 8);
}
