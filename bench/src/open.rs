//! How soon a store answers after its process was killed.

use std::io::{BufRead, BufReader, Write as _};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Instant;

use stead::{Options, Persist, Result, Store};

use crate::stabilise::{Pages, filled};
use crate::{Row, median};

const ROUNDS: u64 = 7;

#[derive(Persist)]
#[repr(C)]
struct Tick {
    n: u64,
}

/// The process that is killed: fills a store, then makes a small change stable again and again.
pub(crate) fn fill(dir: &Path, mib: u64) -> Result<(), Box<dyn std::error::Error>> {
    let store = Store::open_with(dir, &Options::new())?;
    let pages =
        store.container::<Pages<'_>>("pages", |tx| Ok(Pages { pages: stead::Vec::new(tx) }))?;
    if pages.read(|root, _| root.pages.is_empty())? {
        filled(&store, mib)?;
    }
    let tick = store.container::<Tick>("tick", |_| Ok(Tick { n: 0 }))?;
    println!("ready");
    std::io::stdout().flush()?;
    loop {
        tick.exclusive(|root, _| -> Result<()> {
            root.n += 1;
            Ok(())
        })?;
        store.stabilise()?;
    }
}

pub(crate) fn measure(dir: &Path, mib: u64) -> Result<Vec<Row>, Box<dyn std::error::Error>> {
    let path = dir.join("open");
    let (mut times, mut read) = (Vec::new(), 0);
    for round in 0..ROUNDS {
        let mut child = Command::new(std::env::current_exe()?)
            .args(["--resident-mib", &mib.to_string(), "--fill"])
            .arg(&path)
            .stdout(Stdio::piped())
            .spawn()?;
        let out = child.stdout.take().expect("stdout is piped");
        let mut line = String::new();
        BufReader::new(out).read_line(&mut line)?;
        std::thread::sleep(std::time::Duration::from_millis(30 + 37 * round));
        child.kill()?;
        child.wait()?;
        let began = Instant::now();
        let store = Store::open_with(&path, &Options::new().interval(None))?;
        let pages = store.container::<Pages<'_>>("pages", |_| unreachable!("it was filled"))?;
        let middle = pages.read(|root, _| root.pages[root.pages.len() / 2][9])?;
        times.push(began.elapsed().as_secs_f64() * 1e3);
        assert_ne!(middle, 0, "the page holds what it was filled with");
        read = store.site().report().bytes_read;
    }
    let what = format!("first answer after SIGKILL, {mib} MiB");
    Ok(vec![Row::new(what, median(times), "ms").note(format!("recovery read {read} bytes"))])
}
