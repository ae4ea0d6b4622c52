//! Hands forged stores, sealed random blocks, damaged and forged backups, and containers that lie to what reads them,
//! for as long as it is told: no panic, no signal, no hang, no allocation out of proportion. A finding prints its seed,
//! and the command that shows it again. Read [`one`] first; the forgers live in `stead_store::sim::forge` and in
//! [`containers`].
#![forbid(unsafe_code)]

use std::alloc::System;
use std::collections::BTreeMap;
use std::panic::AssertUnwindSafe;
use std::path::PathBuf;
use std::process::{Command, ExitCode};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use clap::Parser;
use stats_alloc::{INSTRUMENTED_SYSTEM, Region, StatsAlloc};
use stead_fuzz::containers;
use stead_store::sim::forge::{Forger, Outcome, decode, forge_backup, try_everything, try_restore};
use stead_store::{CreateOptions, Store};

#[global_allocator]
static ALLOCATOR: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

/// Bytes that may be allocated while one input is handled, all allocations added up: a whole store is made, read
/// and changed in less than a tenth.
const BYTES_MOST: usize = 1 << 30;

/// After so long an input that is still being handled is taken for one that hangs.
const HANGS: Duration = Duration::from_secs(120);

#[derive(Parser)]
#[command(about = "Hands forged stores, blocks, backups and containers to what reads them")]
struct Arguments {
    /// How long to go on.
    #[arg(long, default_value_t = 60)]
    seconds: u64,
    /// Handle the input of this seed alone.
    #[arg(long)]
    seed: Option<u64>,
    /// Be the child that handles the store in this directory.
    #[arg(long, hide = true, requires = "seed")]
    child: Option<PathBuf>,
}

/// What the inputs are made from.
struct Material {
    forgers: Vec<Forger>,
    backup: Vec<u8>,
    /// Not where the system lacks what containers need.
    containers: Option<containers::Forger>,
    dir: tempfile::TempDir,
}

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    if let (Some(dir), Some(seed)) = (&arguments.child, arguments.seed) {
        containers::child(dir, seed);
        return ExitCode::SUCCESS;
    }
    let material = match material() {
        Ok(material) => material,
        Err(what) => {
            eprintln!("nothing to start from: {what}");
            return ExitCode::FAILURE;
        }
    };
    let first = arguments.seed.unwrap_or_else(|| fastrand::u64(..) >> 16);
    let end = Instant::now() + Duration::from_secs(arguments.seconds);
    let at_work = Arc::new((AtomicU64::new(first), AtomicU64::new(0)));
    watch(Arc::clone(&at_work));
    let mut seen: BTreeMap<&str, u64> = BTreeMap::new();
    let mut seed = first;
    let mut most = 0;
    loop {
        at_work.0.store(seed, Ordering::Relaxed);
        at_work.1.fetch_add(1, Ordering::Relaxed);
        let region = Region::new(ALLOCATOR);
        let handled = std::panic::catch_unwind(AssertUnwindSafe(|| one(&material, seed)));
        let allocated = region.change().bytes_allocated;
        most = most.max(allocated);
        let finding = match handled {
            Ok(_) if allocated > BYTES_MOST => Some(format!("{allocated} bytes allocated")),
            Ok(Ok(what)) => {
                *seen.entry(what).or_default() += 1;
                None
            }
            Ok(Err(what)) => Some(what),
            Err(_) => Some("a panic".to_owned()),
        };
        if let Some(finding) = finding {
            eprintln!(
                "seed {seed}: {finding}\nagain with: cargo run -p stead-fuzz -- --seed {seed}"
            );
            return ExitCode::FAILURE;
        }
        if arguments.seed.is_some() || Instant::now() >= end {
            break;
        }
        seed = seed.wrapping_add(1);
    }
    println!("seeds {first} to {seed}: {seen:?}, at most {most} bytes allocated for one");
    ExitCode::SUCCESS
}

/// Ends the process when one input takes for ever.
fn watch(at_work: Arc<(AtomicU64, AtomicU64)>) {
    std::thread::spawn(move || {
        loop {
            let before = at_work.1.load(Ordering::Relaxed);
            std::thread::sleep(HANGS);
            if at_work.1.load(Ordering::Relaxed) == before {
                let seed = at_work.0.load(Ordering::Relaxed);
                eprintln!(
                    "seed {seed}: it hangs\nagain with: cargo run -p stead-fuzz -- --seed {seed}"
                );
                std::process::exit(1);
            }
        }
    });
}

fn material() -> Result<Material, Box<dyn std::error::Error>> {
    let forgers = (0..Forger::KINDS).map(Forger::new).collect::<Result<_, _>>()?;
    let dir = containers::directory()?;
    let store = Store::create(&dir.path().join("store"), &CreateOptions::default())?;
    let mut batch = store.batch();
    for page in 0..20 {
        let id = stead_store_id(1, page * 3);
        batch.push(id, |bytes| bytes.fill(page as u8 + 1));
    }
    batch.push(stead_store_id(2, 1), |bytes| bytes.fill(77));
    store.commit(&mut batch)?;
    store.take_snapshot("one")?;
    let mut backup = Vec::new();
    let one = store.view_snapshot("one")?;
    one.backup(None, &mut backup, &mut |_| {})?;
    // What changed comes behind it: a container less, one more, and pages that are zero now.
    batch.drop_container(stead_store_id(2, 0).container);
    batch.push(stead_store_id(3, 5), |bytes| bytes.fill(99));
    batch.zero(stead_store_id(1, 3));
    store.commit(&mut batch)?;
    store.take_snapshot("two")?;
    store.view_snapshot("two")?.backup(Some(&one), &mut backup, &mut |_| {})?;
    let containers = match containers::missing() {
        None => Some(containers::Forger::new(dir.path())?),
        Some(missing) => {
            println!("NOT RUN: containers that lie: {missing}");
            None
        }
    };
    Ok(Material { forgers, backup, containers, dir })
}

fn stead_store_id(container: u32, page: u64) -> stead_model::PageId {
    stead_model::PageId {
        container: stead_model::ContainerId(container),
        page: stead_model::PageNo(page),
    }
}

/// Makes the input of a seed, hands it on, and tells what came of it; `Err`: what is wrong with that.
fn one(material: &Material, seed: u64) -> Result<&'static str, String> {
    Ok(match seed % 8 {
        0 => {
            (0..20).for_each(|i| decode(seed.wrapping_mul(31).wrapping_add(i)));
            "blocks decoded"
        }
        1 => restore(material, &spoilt(material, seed)),
        2 => restore(material, &forge_backup(&material.backup, seed)),
        3 if let Some(forger) = &material.containers => {
            let dir = material.dir.path().join("forged");
            let forged = forger.forge(seed, &dir);
            forged.map_err(|why| format!("the store cannot be forged: {why}"))?;
            let this = std::env::current_exe().map_err(|why| why.to_string())?;
            let mut child = Command::new(this);
            child.arg("--child").arg(&dir).args(["--seed", &seed.to_string()]);
            match containers::handle(&mut child)? {
                containers::Outcome::Refused => "containers refused",
                containers::Outcome::Found => "containers found to be wrong",
                containers::Outcome::Walked => "containers walked",
            }
        }
        _ => {
            let forger = &material.forgers[(seed / 8) as usize % material.forgers.len()];
            match try_everything(&forger.forge(seed), seed) {
                Outcome::Refused => "stores refused",
                Outcome::Opened => "stores opened",
                Outcome::Salvaged => "stores salvaged",
            }
        }
    })
}

/// A backup with bits turned, or cut: its checksums are wrong.
fn spoilt(material: &Material, seed: u64) -> Vec<u8> {
    let mut random = fastrand::Rng::with_seed(seed);
    let mut stream = material.backup.clone();
    if random.u8(..) < 64 {
        stream.truncate(random.usize(..stream.len()));
    }
    for _ in 0..random.usize(1..4) {
        if stream.is_empty() {
            break;
        }
        // What is not an image stands at the beginning and at the end.
        let at = match random.u8(..3) {
            0 => random.usize(..stream.len().min(400)),
            1 => stream.len() - 1 - random.usize(..stream.len().min(400)),
            _ => random.usize(..stream.len()),
        };
        stream[at] ^= 1 << random.u8(..8);
    }
    stream
}

fn restore(material: &Material, stream: &[u8]) -> &'static str {
    match try_restore(&material.dir.path().join("restored"), stream) {
        Outcome::Refused => "backups refused",
        Outcome::Opened | Outcome::Salvaged => "backups restored",
    }
}
