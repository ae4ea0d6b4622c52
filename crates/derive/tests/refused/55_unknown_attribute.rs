#![allow(unused)]
use stead_derive::Persist;
use stead_heap::*;

#[derive(Persist)]
#[persist(crate = stead_heap)]
#[persist(nmae = "x")]
#[repr(C)]
struct A {
    n: u64,
}

fn main() {}
