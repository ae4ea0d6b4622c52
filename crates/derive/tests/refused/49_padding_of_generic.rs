#![allow(unused)]
use stead_derive::Persist;
use stead_heap::*;

#[derive(Persist)]
#[persist(crate = stead_heap)]
#[repr(C)]
struct Pair<A, B> {
    a: A,
    b: B,
}

fn f<'s>(tx: &Tx<'s>) {
    let _ = tx.alloc(Pair { a: 1u64, b: 2u8 });
}

fn main() {
    let _: for<'s> fn(&Tx<'s>) = f;
}
