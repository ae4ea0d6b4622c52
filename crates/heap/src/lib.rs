//! The typed persistent heap: allocator, pointers, type descriptions, sections with undo, collections, locks, verify.
