//! Writing the first pages of a large stabilisation while its last ones are still being copied: by the medium itself where
//! it can, else by a thread that lives as long as the round. Read [`Ahead::give`] first.

use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::{self, JoinHandle};

use stead_store::{Batch, CommitError, Committed, Store, Stream};

/// A stabilisation that is being written as it is copied.
pub(super) struct Ahead<'a> {
    stream: Stream<'a>,
    /// Started when there is something for it.
    writer: Option<Writer>,
}

struct Writer {
    chunks: Sender<stead_store::Ahead>,
    thread: JoinHandle<()>,
}

impl Writer {
    /// `None` if the system has no thread to spare.
    fn start() -> Option<Writer> {
        let (chunks, given) = channel();
        let thread = thread::Builder::new().name("stead-ahead".into()).spawn(|| write(given));
        thread.ok().map(|thread| Writer { chunks, thread })
    }

    fn end(self) {
        drop(self.chunks);
        // What it has not written its panic has dropped, and the stream knows.
        let _ = self.thread.join();
    }
}

/// Writes what has been given, and all that has come meanwhile with it.
fn write(given: Receiver<stead_store::Ahead>) {
    let mut chunks = Vec::new();
    while let Ok(chunk) = given.recv() {
        chunks.push(chunk);
        chunks.extend(given.try_iter());
        stead_store::Ahead::run(&mut chunks);
    }
}

impl<'a> Ahead<'a> {
    /// Begins a stabilisation of about so many pages, if writing it ahead is worth it.
    pub(super) fn begin(store: &'a Store, batch: &Batch, page_count: u64) -> Option<Self> {
        let stream = store.stream(batch, page_count)?;
        Some(Ahead { stream, writer: None })
    }

    /// Has written what the batch has enough of.
    pub(super) fn give(&mut self, batch: &mut Batch) {
        let mut chunks = self.stream.give(batch);
        if chunks.is_empty() {
            return;
        }
        self.writer = self.writer.take().or_else(Writer::start);
        let Some(writer) = &self.writer else {
            stead_store::Ahead::run(&mut chunks);
            return;
        };
        for chunk in chunks {
            // What cannot be sent is dropped, and the stream knows.
            let _ = writer.chunks.send(chunk);
        }
    }

    /// Makes it stable.
    pub(super) fn commit(self, batch: &mut Batch) -> Result<Committed, CommitError> {
        let committed = self.stream.commit(batch);
        if let Some(writer) = self.writer {
            writer.end();
        }
        committed
    }

    /// Ends it with nothing stable. The batch holds what it held.
    pub(super) fn give_up(self, batch: &mut Batch) {
        self.stream.give_up(batch);
        if let Some(writer) = self.writer {
            writer.end();
        }
    }
}
