//! Search in source trees by regular expression, from a trigram index that lives in a Stead
//! container. The index is a vector, a hash table and what they point at; nothing here writes a
//! file or reads one back. Start at [`index`], which is all there is to persistence.
//!
//! | Module | What it knows |
//! | --- | --- |
//! | [`pattern`], [`query`] | expressions, and which trigrams they require; no file, no index |
//! | [`trigrams`], [`postings`] | trigrams of a text, lists of document numbers; no file, no index |
//! | [`text`] | which bytes of a file are text and which lines match; opens no file |
//! | [`walk`], [`file`] | the tree on disk; no index |
//! | [`pipeline`] | reads files on all processors and groups their trigrams; no index |
//! | [`index`] | the persistent index; no file |
//! | [`ordinary`] | its twin in ordinary memory, for comparison |
//! | [`update`] | brings an index up to date with its tree |
//! | [`search`], [`output`] | from pattern to printed lines |

#![forbid(unsafe_code)]

pub mod file;
pub mod index;
pub mod ordinary;
pub mod output;
pub mod pattern;
pub mod pipeline;
pub mod postings;
pub mod query;
pub mod search;
pub mod text;
pub mod trigrams;
pub mod update;
pub mod walk;
