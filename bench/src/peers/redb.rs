//! redb.

use std::path::Path;

use redb::{Builder, Database, Durability, TableDefinition, WriteTransaction};

use super::{Contents, Engine, Outcome, filling};

const ROWS: TableDefinition<'_, u32, &[u8]> = TableDefinition::new("rows");

pub(super) struct Redb {
    database: Database,
    change: Option<WriteTransaction>,
    contents: Contents,
}

impl Redb {
    pub(super) fn new(dir: &Path, rows: u32) -> Outcome<Redb> {
        let database = Builder::new()
            .set_cache_size((rows as usize * 4096).max(1 << 26) * 2)
            .create(dir.join("rows"))?;
        let mut new = Redb { database, change: None, contents: Contents::new() };
        for some in filling(rows) {
            new.change(&some.collect::<Vec<u32>>())?;
            new.commit()?;
        }
        Ok(new)
    }
}

impl Engine for Redb {
    fn name(&self) -> &'static str {
        "redb"
    }

    fn settings(&self) -> &'static str {
        "Durability::Immediate, one-phase commit (the default), all of it in its cache"
    }

    fn change(&mut self, rows: &[u32]) -> Outcome<()> {
        let mut txn = self.database.begin_write()?;
        txn.set_durability(Durability::Immediate)?;
        {
            let mut table = txn.open_table(ROWS)?;
            for row in rows {
                table.insert(row, self.contents.next())?;
            }
        }
        self.change = Some(txn);
        Ok(())
    }

    fn commit(&mut self) -> Outcome<()> {
        self.change.take().expect("a change was made").commit()?;
        Ok(())
    }
}
