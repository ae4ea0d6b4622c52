//! Stead itself: pages of an array in a container. A change is a store into each page.

use std::path::Path;

use stead::{Container, Options, Store};

use super::{Engine, Outcome};
use crate::stabilise::{Pages, filled, settled};

pub(super) struct Stead {
    store: Store,
    container: Container<Pages<'static>>,
    count: u64,
}

impl Stead {
    pub(super) fn new(dir: &Path, rows: u32) -> Outcome<Stead> {
        let store = Store::open_with(dir, &Options::new().interval(None))?;
        let container = filled(&store, u64::from(rows) / 256)?;
        settled(&store, &container)?;
        Ok(Stead { store, container, count: 0 })
    }
}

impl Engine for Stead {
    fn name(&self) -> &'static str {
        "stead"
    }

    fn settings(&self) -> &'static str {
        "as it comes; stabilised on request only"
    }

    fn change(&mut self, rows: &[u32]) -> Outcome<()> {
        self.count += 1;
        let count = self.count;
        self.container.exclusive(|root, tx| -> stead::Result<()> {
            for &row in rows {
                let page = root.pages.get_mut(tx, row as usize).expect("picked below the length");
                page[7] = count;
            }
            Ok(())
        })?;
        Ok(())
    }

    fn commit(&mut self) -> Outcome<()> {
        self.store.stabilise()?;
        Ok(())
    }
}
