//! Stable pages: a log that is its own shadow, its map, its roots, and recovery.
