//! Memory that stays: plain pointers into persistent containers.
