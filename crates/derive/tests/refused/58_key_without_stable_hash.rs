#![allow(unused)]
use stead_derive::Persist;
use stead_heap::*;

#[derive(Persist, PartialEq, Eq, Hash)]
#[persist(crate = stead_heap)]
#[repr(C)]
struct Key {
    n: u64,
}

fn f<'s>(tx: &Tx<'s>, map: &mut HashMap<'s, Key, u64>) {
    let _ = map.insert(tx, Key { n: 1 }, 2);
}

fn main() {}
