#![allow(unused)]
use stead_derive::Persist;
use stead_heap::*;

#[derive(Persist)]
#[persist(crate = stead_heap)]
#[repr(C)]
struct A<'s> {
    p: Ptr<'static, u64>,
    n: Counter<'s>,
}

fn main() {}
