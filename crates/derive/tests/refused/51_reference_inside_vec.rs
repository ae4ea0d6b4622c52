#![allow(unused)]
use stead_derive::Persist;
use stead_heap::*;

#[derive(Persist)]
#[persist(crate = stead_heap)]
#[repr(C)]
struct A<'s> {
    v: Vec<'s, &'s u64>,
}

fn main() {}
