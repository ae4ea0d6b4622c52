#![allow(unused)]
use stead_derive::Persist;
use stead_heap::*;

#[derive(Persist)]
#[persist(crate = stead_heap)]
#[repr(C)]
struct A {
    r: std::rc::Rc<u64>,
}

fn main() {}
