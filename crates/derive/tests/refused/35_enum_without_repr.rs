#![allow(unused)]
use stead_derive::Persist;
use stead_heap::*;

#[derive(Persist)]
#[persist(crate = stead_heap)]
enum A {
    One(u64),
    Two,
}

fn main() {}
