//! SQLite by rusqlite, the version that it brings along.

use std::path::Path;

use rusqlite::Connection;

use super::{Contents, Engine, Outcome, filling};

pub(super) struct Sqlite {
    connection: Connection,
    contents: Contents,
}

impl Sqlite {
    pub(super) fn new(dir: &Path, rows: u32) -> Outcome<Sqlite> {
        let connection = Connection::open(dir.join("rows.sqlite"))?;
        connection.execute_batch(
            "PRAGMA page_size = 4096;
             PRAGMA journal_mode = WAL;
             PRAGMA synchronous = FULL;
             PRAGMA locking_mode = EXCLUSIVE;
             PRAGMA cache_size = -2000000;
             CREATE TABLE rows (id INTEGER PRIMARY KEY, bytes BLOB NOT NULL);",
        )?;
        let mut contents = Contents::new();
        for some in filling(rows) {
            connection.execute_batch("BEGIN IMMEDIATE")?;
            let mut insert =
                connection.prepare_cached("INSERT INTO rows (id, bytes) VALUES (?1, ?2)")?;
            for row in some {
                insert.execute((row, contents.next()))?;
            }
            connection.execute_batch("COMMIT")?;
        }
        Ok(Sqlite { connection, contents })
    }
}

impl Engine for Sqlite {
    fn name(&self) -> &'static str {
        "SQLite"
    }

    fn settings(&self) -> &'static str {
        "rusqlite, bundled; WAL, synchronous = FULL, locking_mode = EXCLUSIVE, all of it in its cache"
    }

    fn change(&mut self, rows: &[u32]) -> Outcome<()> {
        self.connection.execute_batch("BEGIN IMMEDIATE")?;
        let mut update =
            self.connection.prepare_cached("UPDATE rows SET bytes = ?2 WHERE id = ?1")?;
        for row in rows {
            update.execute((row, self.contents.next()))?;
        }
        Ok(())
    }

    fn commit(&mut self) -> Outcome<()> {
        self.connection.execute_batch("COMMIT")?;
        Ok(())
    }
}
