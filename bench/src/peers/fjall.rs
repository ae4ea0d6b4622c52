//! fjall.

use std::path::Path;

use fjall::{Database, Keyspace, KeyspaceCreateOptions, KvSeparationOptions, PersistMode};

use super::{Contents, Engine, Outcome, filling};

pub(super) struct Fjall {
    database: Database,
    rows: Keyspace,
    contents: Contents,
}

impl Fjall {
    pub(super) fn new(dir: &Path, rows: u32) -> Outcome<Fjall> {
        let database = Database::builder(dir)
            .cache_size((u64::from(rows) * 4096).max(1 << 26))
            .manual_journal_persist(true)
            .open()?;
        let table = database.keyspace("rows", || {
            KeyspaceCreateOptions::default()
                .with_kv_separation(Some(KvSeparationOptions::default()))
        })?;
        let mut new = Fjall { database, rows: table, contents: Contents::new() };
        for some in filling(rows) {
            new.change(&some.collect::<Vec<u32>>())?;
            new.commit()?;
        }
        Ok(new)
    }
}

impl Engine for Fjall {
    fn name(&self) -> &'static str {
        "fjall"
    }

    fn settings(&self) -> &'static str {
        "a batch, then PersistMode::SyncData; values apart from keys, no compression"
    }

    fn change(&mut self, rows: &[u32]) -> Outcome<()> {
        let mut batch = self.database.batch();
        for row in rows {
            batch.insert(&self.rows, row.to_be_bytes(), self.contents.next());
        }
        batch.commit()?;
        Ok(())
    }

    fn commit(&mut self) -> Outcome<()> {
        self.database.persist(PersistMode::SyncData)?;
        Ok(())
    }
}
