#![allow(unused)]
use stead_derive::Persist;
use stead_heap::*;

#[derive(Persist)]
#[persist(crate = stead_heap)]
#[repr(C)]
struct A {
    n: u64,
    b: u8,
}

fn main() {}
