//! `#[derive(Persist)]` describes a type that lives in a container, and refuses with advice what may
//! not (catalogue A8); `#[derive(StableHash)]` makes it a key of maps. Layouts are checked by the
//! compiler, through constants in the generated code. Read [`persist`] first.
#![forbid(unsafe_code)]

mod attributes;
mod persist;
mod refuse;
mod stable_hash;

use proc_macro::TokenStream;
use syn::{DeriveInput, parse_macro_input};

/// Makes a struct or enum fit to live in a container.
///
/// What it asks: `#[repr(C)]` for structs, `#[repr(C, u32)]` for enums with data, `#[repr(u8)]`,
/// `#[repr(u16)]` or `#[repr(u32)]` for enums without; at most one lifetime, the section's, which all
/// fields share; no padding between fields; no `Drop` of its own. A type without type parameters can be
/// a container's root.
///
/// `#[persist(name = "...")]` gives the type another name in containers than its identifier;
/// `#[persist(crate = path)]` names the crate that has the runtime.
#[proc_macro_derive(Persist, attributes(persist))]
pub fn persist(input: TokenStream) -> TokenStream {
    let input = parse_macro_input!(input as DeriveInput);
    persist::expand(&input).unwrap_or_else(|e| e.to_compile_error()).into()
}

/// Makes a type a key of maps: feeds all fields, of an enum also which variant it is.
#[proc_macro_derive(StableHash, attributes(persist))]
pub fn stable_hash(input: TokenStream) -> TokenStream {
    let input = parse_macro_input!(input as DeriveInput);
    stable_hash::expand(&input).unwrap_or_else(|e| e.to_compile_error()).into()
}
