#![allow(unused)]
use stead_derive::Persist;
use stead_heap::*;

#[derive(Persist)]
#[persist(crate = stead_heap)]
#[repr(C)]
struct A {
    d: std::boxed::Box<dyn Fn()>,
}

fn main() {}
