//! LMDB by heed. The only unsafe code of the benchmarks: opening its file.
#![allow(unsafe_code, reason = "heed maps a file")]

use std::path::Path;

use heed::byteorder::NativeEndian;
use heed::types::{Bytes, U32};
use heed::{
    CommitOrAbort, Database, Env, EnvFlags, EnvOpenOptions, IntegerComparator, PutFlags, RwTxn,
};

use super::{Contents, Engine, Outcome, filling};

pub(super) struct Lmdb {
    env: &'static Env,
    rows: Database<'static, U32<NativeEndian>, Bytes, IntegerComparator>,
    change: Option<RwTxn<'static>>,
    contents: Contents,
    map: bool,
}

impl Lmdb {
    /// Written by calls, or through its map.
    pub(super) fn new(dir: &Path, rows: u32, map: bool) -> Outcome<Lmdb> {
        let mut options = EnvOpenOptions::new();
        options.map_size((rows as usize * 4096).max(1 << 26) * 4);
        if map {
            // SAFETY: nothing else in this process has the map, and nothing writes into it at random.
            unsafe { options.flags(EnvFlags::WRITE_MAP) };
        }
        // SAFETY: the file is new, in a directory of this run alone, and nobody else changes it.
        let env: &'static Env = Box::leak(Box::new(unsafe { options.open(dir)? }));
        let table = env
            .create_databases_and_commit(env.write_txn()?, |opener, txn| {
                opener
                    .database_options()
                    .types::<U32<NativeEndian>, Bytes>()
                    .key_comparator::<IntegerComparator>()
                    .create(txn)
                    .map(CommitOrAbort::<_, ()>::Commit)
            })?
            .unwrap_commit();
        let mut contents = Contents::new();
        for some in filling(rows) {
            let mut txn = env.write_txn()?;
            for row in some {
                table.put_with_flags(&mut txn, PutFlags::APPEND, &row, contents.next())?;
            }
            txn.commit()?;
        }
        Ok(Lmdb { env, rows: table, change: None, contents, map })
    }
}

impl Engine for Lmdb {
    fn name(&self) -> &'static str {
        if self.map { "LMDB, write map" } else { "LMDB" }
    }

    fn settings(&self) -> &'static str {
        if self.map {
            "heed; integer keys, durable commits (the default), MDB_WRITEMAP"
        } else {
            "heed; integer keys, durable commits (the default)"
        }
    }

    fn change(&mut self, rows: &[u32]) -> Outcome<()> {
        let mut txn = self.env.write_txn()?;
        for row in rows {
            self.rows.put(&mut txn, row, self.contents.next())?;
        }
        self.change = Some(txn);
        Ok(())
    }

    fn commit(&mut self) -> Outcome<()> {
        self.change.take().expect("a change was made").commit()?;
        Ok(())
    }
}
