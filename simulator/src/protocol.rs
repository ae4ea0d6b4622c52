//! One seed: a cluster drawn from it, disturbed, checked after every step, and brought to rest. Read
//! [`run`] first.

use stead_coherence::{ClusterConfig, ClusterId, Config, Manager, PageKey, Policy, SiteId};

use crate::check::{self, Checker};
use crate::cluster::{Cluster, DOMAIN, Done, RoundsSeen, Weather};
use crate::program::{Program, Surroundings, Workload};

/// What a seed drew, and what it cost.
#[derive(Clone, Debug)]
pub struct Report {
    /// What was run, in words.
    pub what: String,
    /// Steps taken.
    pub steps: u64,
    /// Machines that died and came back.
    pub crashes: u32,
    /// Machines that left in order.
    pub departures: u32,
    /// Messages sent.
    pub messages: u64,
    /// What rounds of stabilisation came to.
    pub rounds: RoundsSeen,
}

/// What is drawn from a seed, before anything is simulated.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The seed.
    pub seed: u64,
    /// What threads do.
    pub workload: Workload,
    /// Where faults ask.
    pub manager: Manager,
    /// What becomes of copies.
    pub policy: Policy,
    /// Machines.
    pub sites: u16,
    /// Threads on each.
    pub threads: usize,
    /// Pages shared.
    pub pages: u64,
    /// Operations of each thread.
    pub ops: u32,
    /// The network.
    pub weather: Weather,
    /// Machines that die.
    pub crashes: u32,
    /// Times that a machine is cut off.
    pub cuts: u32,
    /// Machines that died come back at once, perhaps before anyone has heard that they died.
    pub returns_soon: bool,
    /// Machines that leave in order.
    pub leaves: u32,
    /// All that happens is printed.
    pub trace: bool,
}

impl Plan {
    /// Draws a plan. Neighbouring seeds differ in workload and manager, so that any few seeds cover
    /// them all.
    #[must_use]
    pub fn draw(seed: u64) -> Plan {
        let mut rng = fastrand::Rng::with_seed(seed ^ 0x5EED);
        let sites = rng.u16(2..=6);
        let managers =
            [Manager::Central(SiteId::new(rng.u16(..sites))), Manager::Fixed, Manager::Dynamic];
        let bad = rng.u8(..3) > 0;
        let weather = Weather {
            latency_us: (20, 20 + rng.u64(1..300)),
            lost_per_mille: if bad { rng.u32(..40) } else { 0 },
            doubled_per_mille: if bad { rng.u32(..40) } else { 0 },
            slow_us: rng.u64(..5_000),
            retire_us: rng.u64(..100),
            think_us: rng.u64(1..500),
            disk_us: rng.u64(..3_000),
        };
        let mut plan = Plan {
            seed,
            // One seed in three has rounds.
            workload: Workload::ALL[(seed % 12).min(8) as usize],
            manager: managers[(seed / 12 % 3) as usize],
            policy: if rng.u8(..4) == 0 { Policy::SingleCopy } else { Policy::Invalidate },
            sites,
            threads: rng.usize(1..=3),
            pages: rng.u64(1..=8),
            ops: rng.u32(20..60),
            weather,
            crashes: if bad && sites > 2 { rng.u32(..3) } else { 0 },
            cuts: if bad { rng.u32(..3) } else { 0 },
            returns_soon: false,
            leaves: 0,
            trace: false,
        };
        if plan.crashes > 0 && rng.bool() {
            plan.returns_soon = true;
            plan.crashes += rng.u32(..4);
        }
        if rng.u8(..4) == 0 {
            plan.leaves = rng.u32(1..3);
        }
        plan
    }

    /// The configuration that the plan has.
    #[must_use]
    pub fn config(&self) -> Config {
        let cluster = |id, policy| ClusterConfig {
            id: ClusterId(id),
            manager: self.manager,
            policy,
            domain: (self.has_rounds() && policy != Policy::Lock).then_some(DOMAIN),
        };
        Config::new(vec![cluster(1, self.policy), cluster(2, Policy::Lock)])
    }

    /// Whether its pages persist.
    #[must_use]
    pub fn has_rounds(&self) -> bool {
        self.workload == Workload::Sections
    }

    fn cluster(&self, config: Config) -> Cluster {
        let around = Surroundings {
            pages: (0..self.pages).map(|p| PageKey::new(1, self.page_number(p))).collect(),
            locks: (0..2).map(|l| PageKey::new(2, l * 64)).collect(),
        };
        let mut cluster = Cluster::new(self.seed, self.sites, config, around, self.weather);
        cluster.runs = self.workload.asks_runs();
        cluster.trace = self.trace;
        cluster.returns_soon = self.returns_soon;
        for thread in 0..self.threads * self.sites as usize {
            let program = Program::new(self.workload, thread, self.ops);
            cluster.spawn(thread % self.sites as usize, program);
        }
        if self.weather.slow_us > 2_500 {
            cluster.nodes[0].slow = true;
        }
        cluster
    }

    /// Streams need neighbours; others get pages of several homes.
    fn page_number(&self, page: u64) -> u64 {
        if self.workload.asks_runs() { page } else { page * 37 }
    }
}

/// Runs a seed.
///
/// # Errors
/// What a checker found, with the plan and the step.
pub fn run(seed: u64) -> Result<Report, String> {
    let plan = Plan::draw(seed);
    let config = plan.config();
    run_plan(&plan, config)
}

/// Runs a seed, and prints all that happens.
///
/// # Errors
/// What a checker found, with the plan and the step.
pub fn trace(seed: u64) -> Result<Report, String> {
    let plan = Plan { trace: true, ..Plan::draw(seed) };
    let config = plan.config();
    run_plan(&plan, config)
}

/// Runs a plan with another configuration than its own (for mistakes made on purpose).
///
/// # Errors
/// What a checker found, with the plan and the step.
pub fn run_plan(plan: &Plan, config: Config) -> Result<Report, String> {
    let cluster = plan.cluster(config);
    let mut run = Run { cluster, checkers: check::all(), steps: 0 };
    let done = run.all(plan);
    let Run { cluster, steps, .. } = run;
    let crashes =
        done.map_err(|what| format!("{what}\n  at step {steps}, {} us, of {plan:?}", cluster.now))?;
    let what = format!("{:?}, {:?}, {:?}", plan.workload, plan.manager, plan.policy);
    let messages = cluster.traffic.waited_for + cluster.traffic.after;
    let (departures, rounds) = (cluster.departures, cluster.rounds_seen);
    Ok(Report { what, steps, crashes, departures, messages, rounds })
}

const STEPS_MAX: u64 = 400_000;
/// Stabilisations that a site may ask for at the end until one is stable. Messages are lost then too.
const TRIES_MAX: u32 = 100;

struct Run {
    cluster: Cluster,
    checkers: Vec<Box<dyn Checker>>,
    steps: u64,
}

impl Run {
    /// To the end of all programs, and to rest; how many machines died.
    fn all(&mut self, plan: &Plan) -> Result<u32, String> {
        let (mut crashes, mut cuts, mut leaves) = (0, 0, 0);
        while !(self.cluster.is_over() && self.cluster.is_quiet()) {
            self.step()?;
            // Deaths are wanted most where a round is on.
            let round = plan.has_rounds() && self.cluster.round_is_on();
            let one_in = if round { 100 } else { 400 };
            if crashes < plan.crashes && self.cluster.rng().u32(..one_in) == 0 {
                crashes += u32::from(crash_one(&mut self.cluster, &mut self.checkers));
            }
            if leaves < plan.leaves && self.cluster.rng().u32(..300) == 0 {
                leaves += u32::from(leave_one(&mut self.cluster));
            }
            if cuts < plan.cuts && self.cluster.rng().u32(..400) == 0 {
                cuts += 1;
                let site = self.cluster.rng().usize(..plan.sites as usize);
                let for_us = self.cluster.rng().u64(1_000..300_000);
                self.cluster.cut_off(site, for_us);
            }
        }
        if plan.has_rounds() {
            for site in 0..self.cluster.nodes.len() {
                self.stabilise(site)?;
            }
            // A machine may have come back meanwhile.
            while !(self.cluster.is_over() && self.cluster.is_quiet()) {
                self.step()?;
            }
        }
        for checker in &mut self.checkers {
            checker.at_rest(&self.cluster)?;
        }
        Ok(crashes)
    }

    fn step(&mut self) -> Result<Done, String> {
        self.steps += 1;
        if self.steps + 30 == STEPS_MAX {
            self.cluster.log = Some(Vec::new());
        }
        if self.steps > STEPS_MAX {
            let last = self.cluster.log.take().unwrap_or_default();
            let last: Vec<String> = last.iter().map(|entry| format!("\n  {entry:?}")).collect();
            return Err(format!("it does not come to rest; the last messages:{}", last.concat()));
        }
        let done = self.cluster.step().ok_or_else(|| self.cluster.unfinished())?;
        self.check(&done)?;
        Ok(done)
    }

    fn check(&mut self, done: &Done) -> Result<(), String> {
        self.checkers.iter_mut().try_for_each(|checker| checker.after_step(&self.cluster, done))
    }

    /// I19: when nothing else happens, a stabilisation that is asked for again and again succeeds.
    fn stabilise(&mut self, site: usize) -> Result<(), String> {
        for _ in 0..TRIES_MAX {
            if self.cluster.nodes[site].site.is_none() {
                return Ok(());
            }
            while self.cluster.nodes[site].stabilising {
                self.step()?;
            }
            let done = self.cluster.stabilise(site);
            self.check(&done)?;
            let mut ended = done.rounds.ended;
            while self.cluster.nodes[site].stabilising && ended.is_none() {
                let done = self.step()?;
                if done.site == site {
                    ended = done.rounds.ended;
                }
            }
            if ended == Some(true) {
                return Ok(());
            }
        }
        Err(format!("site {site} cannot stabilise"))
    }
}

/// Lets a machine leave, unless another one is about to or too few would be left.
fn leave_one(cluster: &mut Cluster) -> bool {
    let alive: Vec<usize> =
        (0..cluster.nodes.len()).filter(|i| cluster.nodes[*i].site.is_some()).collect();
    if alive.len() < 2 || cluster.nodes.iter().any(|node| node.leaving) {
        return false;
    }
    let site = alive[cluster.rng().usize(..alive.len())];
    cluster.send_away(site);
    true
}

/// Kills a machine unless fewer than two would be left.
fn crash_one(cluster: &mut Cluster, checkers: &mut [Box<dyn Checker>]) -> bool {
    let alive: Vec<usize> =
        (0..cluster.nodes.len()).filter(|i| cluster.nodes[*i].site.is_some()).collect();
    if alive.len() < 3 {
        return false;
    }
    let site = alive[cluster.rng().usize(..alive.len())];
    for checker in checkers {
        checker.before_crash(cluster, site);
    }
    cluster.crash(site);
    true
}
