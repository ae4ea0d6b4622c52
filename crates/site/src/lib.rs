//! One site: serves page faults from the store, runs stabilisations, keeps the directory of containers.
