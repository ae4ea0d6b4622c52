//! Who may read or write which page: events in, effects out.
