//! As the README has it.

use stead::{Container, HashMap, Mutex, Persist, Result, Text, Vec};

#[derive(Persist)]
#[repr(C)]
pub(crate) struct Account {
    pub(crate) balance: i64,
}

#[derive(Persist)]
#[repr(C)]
pub(crate) struct Bank<'s> {
    pub(crate) accounts: Vec<'s, Mutex<'s, Account>>,
    pub(crate) by_name: HashMap<'s, Text<'s>, u64>,
}

/// Alone in the container, with `&mut` to its root.
pub(crate) fn open_account(bank: &Container<Bank<'static>>, name: &str) -> Result<u64> {
    bank.exclusive(|root, tx| -> Result<_> {
        let number = root.accounts.len() as u64;
        root.accounts.push(tx, Mutex::new(Account { balance: 0 }))?;
        root.by_name.insert(tx, Text::from_str(tx, name)?, number)?;
        Ok(number)
    })
}

/// Side by side with other threads; locks are held to the end of the section.
pub(crate) fn transfer(
    bank: &Container<Bank<'static>>,
    from: usize,
    to: usize,
    amount: i64,
) -> Result<()> {
    bank.write(|root, tx| -> Result<_> {
        root.accounts[from].lock(tx)?.balance -= amount;
        root.accounts[to].lock(tx)?.balance += amount;
        Ok(())
    })
}

/// Shared references, for as long as the closure runs.
pub(crate) fn number_of(bank: &Container<Bank<'static>>, name: &str) -> Result<Option<u64>> {
    Ok(bank.read(|root, _| root.by_name.get(name).copied())?)
}
