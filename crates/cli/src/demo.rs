//! `stead demo`: threads move money between accounts in a container, their process is killed at random
//! moments, and what is found afterwards is held against what was promised (A6, B1). Read [`Demo::run`]
//! first; [`work`] is the program that is killed.

use std::io::{BufRead, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::{Duration, Instant};

use serde::Serialize;
use stead::{Container, Mutex, Persist, Result, Store, Vec};

use crate::output::{Failure, Outcome, Report};

const ACCOUNTS: usize = 1000;
const START_BALANCE: i64 = 1000;
const THREADS: usize = 4;

/// How long a worker has until its first acknowledgement.
const PATIENCE: Duration = Duration::from_secs(60);

/// Options of the demo.
#[derive(clap::Args)]
pub(crate) struct Demo {
    /// How often to kill the process
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..))]
    kills: u32,
    /// Where to keep the store (default: a new directory that is removed at the end)
    #[arg(long)]
    store: Option<PathBuf>,
    /// Be the process that is killed
    #[arg(long, hide = true, requires = "store")]
    work: bool,
}

#[derive(Persist)]
#[repr(C)]
struct Account {
    balance: i64,
    transfers: u64,
}

#[derive(Persist)]
#[repr(C)]
struct Bank<'s> {
    accounts: Vec<'s, Mutex<'s, Account>>,
    /// Transfers that each thread has made: counted in the section that makes them.
    made: Vec<'s, Mutex<'s, u64>>,
}

fn bank(store: &Store) -> Result<Container<Bank<'static>>> {
    store.container("bank", |tx| {
        let mut accounts = Vec::with_capacity(tx, ACCOUNTS)?;
        for _ in 0..ACCOUNTS {
            accounts.push(tx, Mutex::new(Account { balance: START_BALANCE, transfers: 0 }))?;
        }
        let mut made = Vec::with_capacity(tx, THREADS)?;
        for _ in 0..THREADS {
            made.push(tx, Mutex::new(0))?;
        }
        Ok(Bank { accounts, made })
    })
}

/// Moves some money from one account to another, in a section of its own. The thread's count after
/// it.
fn transfer(bank: &Container<Bank<'static>>, thread: usize) -> Result<u64> {
    let from = fastrand::usize(..ACCOUNTS);
    let to = (from + fastrand::usize(1..ACCOUNTS)) % ACCOUNTS;
    let amount = fastrand::i64(1..=100);
    bank.write(|root, tx| -> Result<_> {
        // Locks are taken in any order: who would close a circle is undone and tried again.
        let mut a = root.accounts[from].lock(tx)?;
        a.balance -= amount;
        a.transfers += 1;
        let mut b = root.accounts[to].lock(tx)?;
        b.balance += amount;
        b.transfers += 1;
        let mut made = root.made[thread].lock(tx)?;
        *made += 1;
        Ok(*made)
    })
}

/// What a bank holds, seen at one moment.
struct Books {
    total: i64,
    /// Sum of the accounts' own counts: two for each transfer.
    ends: u64,
    made: std::vec::Vec<u64>,
}

fn books(bank: &Container<Bank<'static>>) -> Result<Books> {
    bank.exclusive(|root, tx| -> Result<_> {
        let mut books = Books { total: 0, ends: 0, made: std::vec::Vec::new() };
        for account in root.accounts.iter() {
            let account = account.lock(tx)?;
            books.total += account.balance;
            books.ends += account.transfers;
        }
        for made in root.made.iter() {
            books.made.push(*made.lock(tx)?);
        }
        Ok(books)
    })
}

/// The program that is killed: moves money for ever, and says on standard output what stabilise() has
/// acknowledged.
fn work(dir: &Path) -> Result<()> {
    let store = stead::open(dir)?;
    let bank = bank(&store)?;
    std::thread::scope(|scope| -> Result<()> {
        let threads: std::vec::Vec<_> = (0..THREADS)
            .map(|thread| {
                let (store, bank) = (&store, &bank);
                scope.spawn(move || -> Result<()> {
                    loop {
                        let mut made = 0;
                        for _ in 0..fastrand::u32(1..2000) {
                            made = transfer(bank, thread)?;
                        }
                        store.stabilise()?;
                        // A line is written in one piece; the parent may be gone.
                        if std::io::stdout()
                            .write_all(format!("{thread} {made}\n").as_bytes())
                            .is_err()
                        {
                            return Ok(());
                        }
                    }
                })
            })
            .collect();
        for thread in threads {
            thread.join().expect("a worker does not panic")?;
        }
        Ok(())
    })
}

/// What all kills together showed.
#[derive(Default, Serialize)]
pub(crate) struct Tally {
    #[serde(serialize_with = "crate::output::path")]
    dir: PathBuf,
    kills: u32,
    time_ms: u128,
    /// In the books at the end.
    transfers: u64,
    /// Times that stabilise() returned.
    acknowledgements: u64,
    /// Transfers found beyond what was acknowledged.
    survived_unasked: u64,
    open_us_median: u128,
    open_us_max: u128,
    wrong: std::vec::Vec<String>,
    #[serde(skip)]
    open_us: std::vec::Vec<u128>,
}

impl Demo {
    /// Kills, opens, checks, again and again.
    pub(crate) fn run(self) -> Outcome<Tally> {
        if self.work {
            work(&self.store.expect("clap requires --store"))?;
            return Err(Failure::not_done("nobody reads the worker's words any more"));
        }
        let started = Instant::now();
        let (dir, is_ours) = match self.store {
            Some(dir) => (dir, false),
            None => {
                let name = format!("stead-demo-{}", std::process::id());
                (std::env::temp_dir().join(name), true)
            }
        };
        if !is_ours {
            check_ours(&dir)?;
        }
        let mut tally = Tally { dir: dir.clone(), kills: self.kills, ..Tally::default() };
        let mut acknowledged = std::vec![0; THREADS];
        let bar = indicatif::ProgressBar::new(self.kills.into());
        for kill in 1..=self.kills {
            let mut worker = Command::new(std::env::current_exe()?);
            worker.args(["demo", "--work", "--store"]).arg(&dir);
            // Each other one may be killed before it has begun: while it makes the store, or opens it.
            let patience = (kill % 2 == 1).then_some(PATIENCE);
            for (thread, made) in run_and_kill(worker, &dir, patience)? {
                acknowledged[thread] = acknowledged[thread].max(made);
                tally.acknowledgements += 1;
            }
            check(&dir, kill, &mut acknowledged, &mut tally)?;
            bar.inc(1);
        }
        bar.finish_and_clear();
        tally.time_ms = started.elapsed().as_millis();
        tally.open_us.sort_unstable();
        let open = |q: usize| tally.open_us[(tally.open_us.len() - 1) * q / 100];
        (tally.open_us_median, tally.open_us_max) = (open(50), open(100));
        if is_ours && tally.wrong.is_empty() {
            std::fs::remove_dir_all(&dir)?;
        }
        Ok(tally)
    }
}

/// Refuses a directory with something in it that is not from a demo.
fn check_ours(dir: &Path) -> Outcome<()> {
    let is_vacant = match std::fs::read_dir(dir) {
        Ok(mut entries) => entries.next().is_none(),
        Err(error) => error.kind() == std::io::ErrorKind::NotFound,
    };
    if is_vacant {
        return Ok(());
    }
    let names = crate::open(dir)?.names();
    if names.iter().any(|name| name != "bank") {
        let why = "this store has containers of others: give the demo a directory of its own";
        return Err(Failure::not_done(format_args!("{}: {why}", dir.display())));
    }
    Ok(())
}

/// Starts the worker, kills it at a random moment, behind its first acknowledgement if there is patience for that, and
/// returns what it said.
fn run_and_kill(
    mut worker: Command,
    dir: &Path,
    patience: Option<Duration>,
) -> Outcome<std::vec::Vec<(usize, u64)>> {
    let mut worker: Child = worker.stdout(Stdio::piped()).spawn()?;
    let stdout = worker.stdout.take().expect("stdout is piped");
    let (say, said) = mpsc::channel();
    let reader = std::thread::spawn(move || {
        for line in BufReader::new(stdout).lines().map_while(|line| line.ok()) {
            if say.send(line).is_err() {
                return;
            }
        }
    });
    let first = patience.map(|patience| said.recv_timeout(patience));
    match first {
        // It says nothing any more because it ends.
        Some(Err(RecvTimeoutError::Disconnected)) => {
            worker.wait()?;
        }
        Some(Err(RecvTimeoutError::Timeout)) => {}
        _ => std::thread::sleep(Duration::from_micros(fastrand::u64(0..200_000))),
    }
    // It may have ended by itself, which is an error that its status shows.
    let ended = worker.try_wait()?;
    worker.kill()?;
    worker.wait()?;
    if let Some(status) = ended {
        // The store may say better why.
        stead::open(dir)?;
        return Err(Failure::not_done(format_args!("the worker ended by itself: {status}")));
    }
    reader.join().expect("the reader does not panic");
    if let (Some(Err(_)), Some(patience)) = (&first, patience) {
        let why = format!("the worker acknowledged nothing in {patience:?}: nothing was tested");
        return Err(Failure::not_done(why));
    }
    let first = first.and_then(Result::ok);
    Ok(first.into_iter().chain(said).filter_map(|line| parse(&line)).collect())
}

/// A whole line of the worker; a line that the kill cut off acknowledges nothing.
fn parse(line: &str) -> Option<(usize, u64)> {
    let (thread, made) = line.split_once(' ')?;
    Some((thread.parse().ok()?, made.parse().ok()?))
}

/// Opens the store as a killed worker left it, and holds it against what was promised.
fn check(dir: &Path, kill: u32, acknowledged: &mut [u64], tally: &mut Tally) -> Outcome<()> {
    let opening = Instant::now();
    let store = stead::open(dir)?;
    let bank = bank(&store)?;
    bank.read(|root, _| root.accounts.len()).map_err(stead::Error::from)?;
    tally.open_us.push(opening.elapsed().as_micros());
    let Books { total, ends, made } = books(&bank)?;
    let whole = ACCOUNTS as i64 * START_BALANCE;
    if total != whole {
        tally.wrong.push(format!("kill {kill}: the accounts hold {total} instead of {whole}"));
    }
    let transfers: u64 = made.iter().sum();
    if ends != 2 * transfers {
        tally.wrong.push(format!(
            "kill {kill}: the accounts saw {ends} ends of {transfers} transfers, not two of each"
        ));
    }
    for (thread, (&made, known)) in made.iter().zip(&mut *acknowledged).enumerate() {
        if made < *known {
            tally.wrong.push(format!(
                "kill {kill}: thread {thread} was told that {known} transfers are stable; {made} are left"
            ));
        }
        tally.survived_unasked += made.saturating_sub(*known);
        // What was found after a restart is stable, so it is to stay from now on.
        *known = made;
    }
    let report = store.site().verify_container(&*store.site().existing("bank")?)?;
    if let Some(bad) = &report.first_bad {
        tally.wrong.push(format!("kill {kill}: {bad}"));
    }
    tally.transfers = transfers;
    Ok(())
}

impl Report for Tally {
    fn is_well(&self) -> bool {
        self.wrong.is_empty()
    }

    fn print(&self) {
        let ms = |us: u128| us as f64 / 1000.0;
        crate::say!(
            "{ACCOUNTS} accounts of {START_BALANCE}, {THREADS} threads; store in {}",
            self.dir.display()
        );
        crate::say!("{} kills in {:.1} s", self.kills, self.time_ms as f64 / 1000.0);
        crate::say!("  transfers in the books        {}", self.transfers);
        crate::say!("  acknowledgements checked      {}", self.acknowledgements);
        crate::say!(
            "  found beyond those            {} (stable already when the kill came)",
            self.survived_unasked
        );
        crate::say!(
            "  opening after the kill        median {:.1} ms, worst {:.1} ms",
            ms(self.open_us_median),
            ms(self.open_us_max)
        );
        if self.wrong.is_empty() {
            crate::say!(
                "no money lost, no section by half, nothing acknowledged gone, every pointer sound"
            );
        }
        for wrong in &self.wrong {
            crate::say!("WRONG: {wrong}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_worker_that_does_nothing_is_no_test() {
        let mut idle = Command::new("sleep");
        idle.arg("600");
        let dir = std::env::temp_dir().join("stead-demo-that-is-not-there");
        let failure = run_and_kill(idle, &dir, Some(Duration::from_millis(10))).unwrap_err();
        assert!(failure.to_string().ends_with("nothing was tested"), "{failure}");
        assert!(!dir.exists());
    }
}
