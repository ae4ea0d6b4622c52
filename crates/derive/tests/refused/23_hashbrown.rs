#![allow(unused)]
use stead_derive::Persist;
use stead_heap::*;

#[derive(Persist)]
#[persist(crate = stead_heap)]
#[repr(C)]
struct A {
    m: hashbrown::HashMap<u64, u64>,
}

fn main() {}
