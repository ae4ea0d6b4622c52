//! A simulated twin of the system. Empty so far.
