#![allow(unused)]
use stead_derive::Persist;
use stead_heap::*;

#[derive(Persist)]
#[persist(crate = stead_heap)]
#[repr(C)]
struct A<'a, 'b> {
    v: Vec<'a, u64>,
    w: Vec<'b, u64>,
}

fn main() {}
