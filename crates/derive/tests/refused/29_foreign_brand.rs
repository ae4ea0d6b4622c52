#![allow(unused)]
use stead_derive::Persist;
use stead_heap::*;

#[derive(Persist)]
#[persist(crate = stead_heap)]
#[repr(C)]
struct A<'s> {
    v: Vec<'s, u64>,
}

#[derive(Persist)]
#[persist(crate = stead_heap)]
#[repr(C)]
struct B<'s> {
    a: A<'static>,
    n: Counter<'s>,
}

fn main() {}
