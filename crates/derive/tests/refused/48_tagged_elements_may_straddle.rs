#![allow(unused)]
use stead_derive::Persist;
use stead_heap::*;

#[derive(Persist)]
#[persist(crate = stead_heap)]
#[repr(C, u32)]
enum Thing<'s> {
    Number([u64; 2]),
    Name(Box<'s, u64>),
}

fn f<'s>(tx: &Tx<'s>) {
    let v: Vec<'s, Thing<'s>> = Vec::new(tx);
}

fn main() {
    let _: for<'s> fn(&Tx<'s>) = f;
}
