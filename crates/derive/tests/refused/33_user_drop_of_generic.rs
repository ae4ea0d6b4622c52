#![allow(unused)]
use stead_derive::Persist;
use stead_heap::*;

#[derive(Persist)]
#[persist(crate = stead_heap)]
#[repr(C)]
struct A<T> {
    t: T,
}

impl<T> Drop for A<T> {
    fn drop(&mut self) {}
}

fn main() {}
