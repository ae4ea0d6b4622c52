//! As the README has it.

use stead::{Persist, Result};

#[derive(Persist)]
#[repr(C)]
pub(crate) struct ClassVar {
    pub(crate) runs: u64,
}

pub(crate) fn main() -> Result<()> {
    let store = stead::open("./classvar")?;
    let container = store.container::<ClassVar>("classvar", |_tx| Ok(ClassVar { runs: 0 }))?;
    let runs = container.exclusive(|root, _tx| -> Result<_> {
        root.runs += 1;
        Ok(root.runs)
    })?;
    println!("run {runs}");
    Ok(())
}
