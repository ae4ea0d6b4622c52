//! What `--stats` says. Read [`Statistics`] first.

use std::io::Write;
use std::time::Instant;

use codesearch::index::Size;
use codesearch::{search, update};
use stead::Store;

const PAGE_BYTES: u64 = 4096;

/// Figures gathered on the way.
#[derive(Debug)]
pub(crate) struct Statistics {
    started: Instant,
    opened_at: Option<Instant>,
    indexed_at: Option<Instant>,
    already_there: u64,
    update: Option<update::Tally>,
    size: Option<Size>,
    search: search::Tally,
}

impl Statistics {
    pub(crate) fn new(started: Instant) -> Statistics {
        Statistics {
            started,
            opened_at: None,
            indexed_at: None,
            already_there: 0,
            update: None,
            size: None,
            search: search::Tally::default(),
        }
    }

    /// The store is open.
    pub(crate) fn opened(&mut self) {
        self.opened_at.get_or_insert_with(Instant::now);
    }

    /// A tree's index is as large as this, and was brought up to date, or taken as it is.
    pub(crate) fn indexed(&mut self, size: Size, update: Option<update::Tally>) {
        self.indexed_at.get_or_insert_with(Instant::now);
        let sum = self.size.get_or_insert_default();
        sum.documents += size.documents;
        sum.gone += size.gone;
        sum.unreadable += size.unreadable;
        sum.text_bytes += size.text_bytes;
        sum.trigrams += size.trigrams;
        sum.list_bytes += size.list_bytes;
        self.already_there += update.map_or(size.documents, |update| update.already_there);
        if let Some(tally) = update {
            let sum = self.update.get_or_insert_default();
            sum.new += tally.new;
            sum.changed += tally.changed;
            sum.gone += tally.gone;
            sum.text_bytes += tally.text_bytes;
        }
    }

    /// A path was searched.
    pub(crate) fn searched(&mut self, tally: search::Tally) {
        self.search.candidates += tally.candidates;
        self.search.files += tally.files;
        self.search.lines += tally.lines;
        self.search.stale += tally.stale;
    }

    /// Says it all on standard error.
    pub(crate) fn say(&self, store: Option<&Store>, first_line_at: Option<Instant>) {
        let mut text = String::new();
        let mut line = |name: &str, value: String| text.push_str(&format!("{name:<24}{value}\n"));
        if let Some(size) = &self.size {
            line("already there", format!("{} documents", self.already_there));
            if let Some(update) = &self.update {
                line(
                    "indexed now",
                    format!(
                        "{} new, {} changed, {} gone; {}",
                        update.new,
                        update.changed,
                        update.gone,
                        mebibytes(update.text_bytes)
                    ),
                );
            }
            line(
                "index",
                format!(
                    "{} documents, {} of text, {} trigrams, {} of lists",
                    size.documents,
                    mebibytes(size.text_bytes),
                    size.trigrams,
                    mebibytes(size.list_bytes)
                ),
            );
            if size.gone + size.unreadable > 0 {
                let Size { gone, unreadable, .. } = size;
                line("of no use", format!("{gone} gone, {unreadable} unreadable"));
            }
        }
        let search::Tally { candidates, files, lines, stale } = self.search;
        line("searched", format!("{candidates} files; {lines} lines in {files} of them match"));
        if stale > 0 {
            line("out of date", format!("{stale} of these files; --refresh helps"));
        }
        if let Some(stat) = store.map(Store::stat) {
            let stored = stat.containers.iter().map(|container| container.stored_bytes).sum();
            let resident = stat.containers.iter().filter_map(|container| container.resident_bytes);
            let resident: u64 = resident.sum();
            line(
                "store",
                format!(
                    "{} stable in {} containers; {} pages in memory, {}",
                    mebibytes(stored),
                    stat.containers.len(),
                    resident / PAGE_BYTES,
                    mebibytes(resident)
                ),
            );
            let memory = stat.counters.memory;
            line(
                "faults",
                format!(
                    "{} missing, {} minor; {} pages asked for, {} ahead",
                    memory.faults_missing,
                    memory.faults_minor,
                    memory.pages_asked,
                    memory.pages_ahead
                ),
            );
            line(
                "stabilised",
                format!(
                    "{} times, {} pages, {} written, longest pause {:.1} ms",
                    stat.counters.rounds,
                    stat.counters.pages_stabilised,
                    mebibytes(stat.counters.bytes_written),
                    stat.counters.pause_us_max as f64 / 1e3
                ),
            );
        }
        for (name, at) in [
            ("store open after", self.opened_at),
            ("index ready after", self.indexed_at),
            ("first line after", first_line_at),
            ("all done after", Some(Instant::now())),
        ] {
            if let Some(at) = at {
                let ms = (at - self.started).as_secs_f64() * 1e3;
                line(name, format!("{ms:.1} ms"));
            }
        }
        // Nobody is left to be told if this fails.
        let _ = std::io::stderr().write_all(text.as_bytes());
    }
}

fn mebibytes(bytes: u64) -> String {
    format!("{:.1} MiB", bytes as f64 / f64::from(1 << 20))
}
