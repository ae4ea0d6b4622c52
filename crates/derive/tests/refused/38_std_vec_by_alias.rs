#![allow(unused)]
use stead_derive::Persist;
use stead_heap::*;

#[derive(Persist)]
#[persist(crate = stead_heap)]
#[repr(C)]
struct A {
    v: Elsewhere,
}

type Elsewhere = std::vec::Vec<u64>;

fn main() {}
