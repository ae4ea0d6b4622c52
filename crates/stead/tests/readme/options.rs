//! As the README has it.

use std::time::Duration;

use stead::{Options, Persist, Result, Store, Vec};

#[derive(Persist)]
#[repr(C)]
pub(crate) struct Totals<'s> {
    pub(crate) of_day: Vec<'s, u64>,
}

pub(crate) fn main() -> Result<()> {
    // Only a store that is there, stabilised every ten seconds or when 64 MiB are new.
    let options = Options::new()
        .create(false)
        .interval(Some(Duration::from_secs(10)))
        .new_bytes_max(64 << 20);
    let store = Store::open_with("./totals", &options)?;
    let totals = store.container::<Totals>("totals", |tx| Ok(Totals { of_day: Vec::new(tx) }))?;
    totals.exclusive(|root, tx| -> Result<_> {
        root.of_day.push(tx, 1)?;
        root.of_day.as_mut_slice(tx)[0] += 10;
        if let Some(day) = root.of_day.get_mut(tx, 7) {
            *day = 0;
        }
        Ok(())
    })?;
    store.snapshot("evening")?;
    Ok(())
}
