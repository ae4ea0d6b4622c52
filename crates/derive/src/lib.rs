//! Derive macros that describe a persistent type, and refuse what may not persist.
