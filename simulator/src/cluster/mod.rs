//! A simulated cluster: sites, frames, threads, and the one queue of what happens next. It takes
//! steps; whether they were right is for the checkers. Read [`Cluster`] and [`Cluster::step`] first.

mod rounds;

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap, HashMap};
use std::sync::Arc;

use fastrand::Rng;
use stead_coherence::{
    Access, Config, Effect, Effects, Event, Message, Micros, PageKey, Policy, RoundId, RoundWord,
    Site, SiteId, Version, View,
};

use rounds::Task;
pub use rounds::{DOMAIN, Moved, RoundsDone, RoundsSeen, Section, SectionState, Stable};

use crate::program::{Op, Place, Program, Surroundings, WORDS};

/// Contents of a page.
pub type Body = [u64; WORDS];

/// How bad the network and the machines are.
#[derive(Clone, Copy, Debug)]
pub struct Weather {
    /// Latency of a message is between these.
    pub latency_us: (Micros, Micros),
    /// Of a thousand messages so many are lost.
    pub lost_per_mille: u32,
    /// And so many are doubled.
    pub doubled_per_mille: u32,
    /// A site that is slow takes so much longer for each message.
    pub slow_us: Micros,
    /// Time between a page's arrival and the instruction that waited for it, at most.
    pub retire_us: Micros,
    /// Time that a thread thinks between two operations, at most.
    pub think_us: Micros,
    /// Time that a capture, or anything else asked of the store, takes at most.
    pub disk_us: Micros,
}

impl Weather {
    /// Nothing is lost, and every message takes 100 us.
    pub const CALM: Weather = Weather {
        latency_us: (100, 100),
        lost_per_mille: 0,
        doubled_per_mille: 0,
        slow_us: 0,
        retire_us: 0,
        think_us: 50,
        disk_us: 0,
    };
}

/// One thread.
#[derive(Clone, Debug)]
pub struct Thread {
    /// What it does.
    pub program: Program,
    /// What it is at.
    pub state: ThreadState,
    /// The section that it is in.
    pub section: Option<usize>,
    /// Locks that it has.
    locks: Vec<PageKey>,
}

/// What a thread is at.
#[derive(Clone, Copy, PartialEq, Debug)]
pub enum ThreadState {
    /// Between operations.
    Thinking,
    /// It wants to do this and has been waiting since then.
    Waiting(Op, Micros),
    /// Its program is over.
    Over,
}

/// A frame of memory.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Frame {
    /// What programs may do.
    pub access: Access,
    /// The contents, if the site has them.
    pub body: Option<Body>,
}

/// A machine.
#[derive(Debug)]
pub struct Node {
    /// The protocol; `None` while the machine is dead.
    pub site: Option<Site>,
    /// Its memory.
    pub frames: BTreeMap<PageKey, Frame>,
    /// Its threads.
    pub threads: Vec<Thread>,
    /// Threads that wait for locks, first come first.
    lock_line: Vec<(PageKey, usize)>,
    /// No mutating section may begin.
    gate_closed: bool,
    /// It has to go back, and has not yet.
    doomed: bool,
    /// Locks that were asked for in sections since undone, and that come all the same.
    pub locks_unwanted: usize,
    /// Captures under way.
    capturing: BTreeSet<(PageKey, Version, RoundId)>,
    /// A stabilisation was asked for and has not ended.
    pub stabilising: bool,
    /// Its threads end, and then it leaves.
    pub leaving: bool,
    ticks_at: Option<Micros>,
    /// Counts lives, so that what was meant for an earlier one is not delivered.
    life: u32,
    /// Messages take longer to it.
    pub slow: bool,
    /// No message reaches it or leaves it before then.
    pub cut_off_until: Micros,
}

/// Something that will happen.
#[derive(Clone, Debug)]
enum Happening {
    Arrives { to: usize, life: u32, from: SiteId, view: u32, message: Message, bodies: Vec<Body> },
    Ticks { site: usize, life: u32 },
    Runs { site: usize, life: u32, thread: usize },
    LearnsView { site: usize, life: u32, view: Arc<View> },
    Restarts { site: usize },
    Leaves { site: usize, life: u32, view: u32 },
    Works { site: usize, life: u32, task: Task },
}

/// What a step did, for the checkers.
#[derive(Clone, Debug, Default)]
pub struct Done {
    /// Pages whose access, owner or contents may have changed.
    pub pages: Vec<PageKey>,
    /// The site that acted.
    pub site: usize,
    /// Words loaded and what was read.
    pub loads: Vec<(Place, u64)>,
    /// Words stored and what was written.
    pub stores: Vec<(Place, u64)>,
    /// A lock that a thread got.
    pub locked: Option<PageKey>,
    /// A thread began or ended to wait.
    pub waits: Vec<Wait>,
    /// Pages named as lost.
    pub lost: Vec<PageKey>,
    /// A site was named as the home of pages that are lost.
    pub lost_home: Option<SiteId>,
    /// About sections and rounds.
    pub rounds: RoundsDone,
}

/// A thread began or ended to wait.
#[derive(Clone, Copy, Debug)]
pub enum Wait {
    /// It began.
    Begins {
        /// The site.
        site: usize,
        /// The thread there.
        thread: usize,
        /// For what.
        page: PageKey,
        /// To own it.
        write: bool,
    },
    /// It ended.
    Ends {
        /// The site.
        site: usize,
        /// The thread there.
        thread: usize,
        /// For what it waited.
        page: PageKey,
        /// It waited to own it.
        write: bool,
    },
}

/// Messages and bytes, counted when they are sent.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Traffic {
    /// Messages that a program waits for.
    pub waited_for: u64,
    /// Messages that follow.
    pub after: u64,
    /// Bytes of both, bodies included.
    pub bytes: u64,
    /// Faults that went to the network.
    pub faults: u64,
    /// Longest way of a request, in sites that passed it on.
    pub hops_max: u8,
}

/// The cluster.
#[derive(Debug)]
pub struct Cluster {
    /// Microseconds since the start.
    pub now: Micros,
    /// The machines.
    pub nodes: Vec<Node>,
    /// What the authority issued last.
    pub view: Arc<View>,
    /// Pages and locks.
    pub around: Surroundings,
    /// The network.
    pub weather: Weather,
    /// What was sent.
    pub traffic: Traffic,
    /// When the last machine died, came or was cut off.
    pub disturbed_at: Micros,
    /// Every message that was sent, if wanted.
    pub log: Option<Vec<(usize, SiteId, Message)>>,
    /// Print what happens to each site and what it does.
    pub trace: bool,
    /// Faults ask for runs.
    pub runs: bool,
    /// Machines that died come back at once.
    pub returns_soon: bool,
    /// Messages under way.
    pub in_flight: usize,
    /// Threads whose programs are not over.
    pub threads_left: usize,
    /// Every mutating section that ever began.
    pub sections: Vec<Section>,
    /// For each value stored the value that it took the place of.
    pub replaced: HashMap<u64, u64>,
    /// The store, and the authority.
    pub stable: Stable,
    /// What rounds came to.
    pub rounds_seen: RoundsSeen,
    /// Machines that died.
    pub crashes: u32,
    /// Machines that left in order.
    pub departures: u32,
    /// Work for rounds that is not done yet.
    tasks_pending: usize,
    config: Arc<Config>,
    rng: Rng,
    queue: BinaryHeap<Reverse<(Micros, u64, Slot)>>,
    happenings: Vec<Option<Happening>>,
    free: Vec<usize>,
    sequence: u64,
    last_value: u64,
    effects: Effects,
    done: Done,
}

/// Index of a happening; all compare equal, the sequence before it decides.
#[derive(Clone, Copy, Debug)]
struct Slot(usize);

impl PartialEq for Slot {
    fn eq(&self, _: &Slot) -> bool {
        true
    }
}
impl Eq for Slot {}
impl PartialOrd for Slot {
    fn partial_cmp(&self, other: &Slot) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for Slot {
    fn cmp(&self, _: &Slot) -> std::cmp::Ordering {
        std::cmp::Ordering::Equal
    }
}

impl Cluster {
    /// `count` machines without threads.
    #[must_use]
    pub fn new(
        seed: u64,
        count: u16,
        config: Config,
        around: Surroundings,
        weather: Weather,
    ) -> Cluster {
        let config = Arc::new(config);
        let view = Arc::new(View::first(count));
        let node = |i| Node {
            site: Some(Site::new(SiteId::new(i), config.clone(), view.clone())),
            frames: BTreeMap::new(),
            threads: Vec::new(),
            lock_line: Vec::new(),
            gate_closed: false,
            doomed: false,
            locks_unwanted: 0,
            capturing: BTreeSet::new(),
            stabilising: false,
            leaving: false,
            ticks_at: None,
            life: 0,
            slow: false,
            cut_off_until: 0,
        };
        Cluster {
            now: 0,
            nodes: (0..count).map(node).collect(),
            view,
            around,
            weather,
            traffic: Traffic::default(),
            disturbed_at: 0,
            log: None,
            trace: false,
            runs: false,
            returns_soon: false,
            in_flight: 0,
            threads_left: 0,
            sections: Vec::new(),
            replaced: HashMap::new(),
            stable: Stable::default(),
            rounds_seen: RoundsSeen::default(),
            crashes: 0,
            departures: 0,
            tasks_pending: 0,
            config,
            rng: Rng::with_seed(seed),
            queue: BinaryHeap::new(),
            happenings: Vec::new(),
            free: Vec::new(),
            sequence: 0,
            last_value: 0,
            effects: Effects::new(),
            done: Done::default(),
        }
    }

    /// Adds a thread at a site, which begins soon.
    pub fn spawn(&mut self, site: usize, program: Program) {
        let threads = &mut self.nodes[site].threads;
        let state = ThreadState::Thinking;
        threads.push(Thread { program, state, section: None, locks: Vec::new() });
        let thread = threads.len() - 1;
        self.threads_left += 1;
        self.run_later(site, thread);
    }

    /// Whether no thread of a living machine has anything left to do.
    #[must_use]
    pub fn is_over(&self) -> bool {
        let over = |node: &Node| node.threads.iter().all(|t| t.state == ThreadState::Over);
        self.nodes.iter().all(|node| node.site.is_none() || over(node))
    }

    /// Whether no message is under way and nothing is unfinished.
    #[must_use]
    pub fn is_quiet(&self) -> bool {
        let view = self.view.number();
        let quiet =
            |site: &Site| site.busy_count() == 0 && site.is_ready() && site.view().number() == view;
        let idle = self.in_flight == 0 && self.tasks_pending == 0 && !self.round_is_on();
        let stays = self.nodes.iter().all(|node| !node.leaving);
        idle && stays && self.nodes.iter().filter_map(|n| n.site.as_ref()).all(quiet)
    }

    /// Why nothing happens any more although not all is over.
    #[must_use]
    pub fn unfinished(&self) -> String {
        let sites = self.nodes.iter().enumerate().map(|(i, node)| {
            let threads: Vec<_> = node.threads.iter().map(|t| t.state).collect();
            let site = node.site.as_ref();
            let state = site.map(|s| (s.view().number(), s.is_ready(), s.busy_count()));
            format!("\n  site {i}: {state:?}, {threads:?}")
        });
        format!(
            "nothing happens any more in view {}, {} under way, {} pending:{}",
            self.view.number(),
            self.in_flight,
            self.tasks_pending,
            sites.collect::<String>()
        )
    }

    /// The machine's random numbers, for whoever plans disturbances.
    pub fn rng(&mut self) -> &mut Rng {
        &mut self.rng
    }

    /// Lets the next thing happen; `None` if nothing will.
    pub fn step(&mut self) -> Option<Done> {
        let Reverse((time, _, Slot(slot))) = self.queue.pop()?;
        self.now = time;
        self.done = Done::default();
        self.free.push(slot);
        match self.happenings[slot].take()? {
            Happening::Arrives { to, life, from, view, message, bodies } => {
                self.in_flight -= 1;
                if self.nodes[to].life == life && self.nodes[to].cut_off_until <= self.now {
                    self.handle(to, Event::Message { from, view, message }, &bodies);
                }
            }
            Happening::Ticks { site, life } => {
                let node = &mut self.nodes[site];
                if node.life == life && node.ticks_at == Some(self.now) {
                    node.ticks_at = None;
                    self.handle(site, Event::Tick, &[]);
                }
            }
            Happening::Runs { site, life, thread } => {
                if self.nodes[site].life == life {
                    self.run(site, thread);
                }
            }
            Happening::LearnsView { site, life, view } => {
                if self.nodes[site].life == life {
                    self.handle(site, Event::View(view), &[]);
                }
            }
            Happening::Restarts { site } => self.restart(site),
            Happening::Leaves { site, life, view } => {
                if self.nodes[site].life == life && self.view.number() == view {
                    self.depart(site);
                }
            }
            Happening::Works { site, life, task } => {
                self.tasks_pending -= 1;
                if self.nodes[site].life == life {
                    self.done.site = site;
                    self.work(site, task);
                }
            }
        }
        Some(std::mem::take(&mut self.done))
    }

    /// Asks for a stabilisation from outside.
    pub fn stabilise(&mut self, site: usize) -> Done {
        self.done = Done::default();
        self.done.site = site;
        self.ask_for_stabilisation(site);
        std::mem::take(&mut self.done)
    }

    /// Gives an event to a site from outside.
    pub fn inject(&mut self, site: usize, event: Event) -> Done {
        self.done = Done::default();
        self.handle(site, event, &[]);
        std::mem::take(&mut self.done)
    }

    // Disturbances.

    /// The machine dies now, the authority notices later, and it returns later still.
    pub fn crash(&mut self, site: usize) {
        self.crashes += 1;
        self.remove(site);
        self.view = Arc::new(self.view.without(SiteId::new(site as u16)));
        self.announce(20_000);
        let after = if self.returns_soon {
            self.rng.u64(1_000..60_000)
        } else {
            200_000 + self.rng.u64(..400_000)
        };
        self.push(self.now + after, Happening::Restarts { site });
    }

    fn remove(&mut self, site: usize) {
        let node = &mut self.nodes[site];
        node.site = None;
        node.leaving = false;
        node.life += 1;
        node.frames.clear();
        node.lock_line.clear();
        node.ticks_at = None;
        self.forget_sections(site);
        self.disturbed_at = self.now;
    }

    /// The machine is to leave when its threads have come to where they may end.
    pub fn send_away(&mut self, site: usize) {
        self.nodes[site].leaving = true;
        for thread in 0..self.nodes[site].threads.len() {
            self.run_later(site, thread);
        }
    }

    /// It has nothing more, and the authority counts it out.
    fn depart(&mut self, site: usize) {
        self.departures += 1;
        self.remove(site);
        self.view = Arc::new(self.view.left_by(SiteId::new(site as u16)));
        self.announce(1_000);
        if self.rng.bool() {
            let back = self.now + self.rng.u64(1_000..100_000);
            self.push(back, Happening::Restarts { site });
        }
    }

    fn end_to_leave(&mut self, site: usize, thread: usize) {
        let threads = &mut self.nodes[site].threads;
        if threads[thread].state != ThreadState::Over {
            threads[thread].state = ThreadState::Over;
            self.threads_left = self.threads_left.saturating_sub(1);
        }
        if threads.iter().all(|t| t.state == ThreadState::Over) {
            self.handle(site, Event::Leave, &[]);
        }
    }

    fn restart(&mut self, i: usize) {
        let id = SiteId::new(i as u16);
        self.view = Arc::new(self.view.with(id));
        self.disturbed_at = self.now;
        self.nodes[i].site = Some(Site::new(id, self.config.clone(), self.view.clone()));
        self.handle(i, Event::View(self.view.clone()), &[]);
        self.announce(5_000);
        for thread in 0..self.nodes[i].threads.len() {
            // A program starts anew: what it was in the middle of is gone with its memory.
            let thread_now = &mut self.nodes[i].threads[thread];
            thread_now.state = ThreadState::Thinking;
            if let Program::Workload { drawn, .. } = &mut thread_now.program {
                drawn.clear();
            }
            self.run_later(i, thread);
        }
    }

    fn announce(&mut self, after_us: Micros) {
        for site in 0..self.nodes.len() {
            if self.nodes[site].site.is_some() {
                let time = self.now + after_us + self.rng.u64(..10_000);
                let (life, view) = (self.nodes[site].life, self.view.clone());
                self.push(time, Happening::LearnsView { site, life, view });
            }
        }
    }

    /// Nothing reaches the site or leaves it for a while.
    pub fn cut_off(&mut self, site: usize, for_us: Micros) {
        self.nodes[site].cut_off_until = self.now + for_us;
        self.disturbed_at = self.now + for_us;
    }

    // Threads.

    fn run_later(&mut self, site: usize, thread: usize) {
        let time = self.now + self.rng.u64(..=self.weather.think_us);
        let life = self.nodes[site].life;
        self.push(time, Happening::Runs { site, life, thread });
    }

    fn run(&mut self, site: usize, thread: usize) {
        let node = &mut self.nodes[site];
        let state = node.threads[thread].state;
        let may_end = state == ThreadState::Thinking
            && node.threads[thread].section.is_none()
            && node.threads[thread].locks.is_empty();
        if node.leaving && (may_end || state == ThreadState::Over) {
            self.end_to_leave(site, thread);
            return;
        }
        let op = match state {
            ThreadState::Over => return,
            // Until it goes back, nothing in a section goes on.
            _ if node.doomed && node.threads[thread].section.is_some() => return,
            ThreadState::Waiting(op, _) => Some(op),
            ThreadState::Thinking => node.threads[thread].program.next(&self.around, &mut self.rng),
        };
        let Some(op) = op else {
            self.nodes[site].threads[thread].state = ThreadState::Over;
            self.threads_left = self.threads_left.saturating_sub(1);
            return;
        };
        if state == ThreadState::Thinking {
            self.nodes[site].threads[thread].state = ThreadState::Waiting(op, self.now);
        }
        match op {
            Op::Load(place) => self.load(site, thread, place, state == ThreadState::Thinking),
            Op::Store(place) => {
                self.last_value += 1;
                let value = self.last_value;
                self.store(site, thread, place, value, state == ThreadState::Thinking);
            }
            Op::StoreValue(place, value) => {
                self.store(site, thread, place, value, state == ThreadState::Thinking);
            }
            Op::Lock(lock, with) => {
                if state == ThreadState::Thinking {
                    self.nodes[site].lock_line.push((lock, thread));
                    self.done.waits.push(Wait::Begins { site, thread, page: lock, write: true });
                    self.handle(site, Event::Lock { lock, with }, &[]);
                }
            }
            Op::Unlock(lock) => {
                self.nodes[site].threads[thread].locks.retain(|l| *l != lock);
                self.handle(site, Event::Unlock { lock }, &[]);
                self.go_on(site, thread);
            }
            Op::Enter => self.enter(site, thread),
            Op::Leave => self.leave(site, thread),
            Op::Stabilise => {
                self.ask_for_stabilisation(site);
                self.go_on(site, thread);
            }
            Op::GiveUp => {
                self.handle(site, Event::GiveUp { domain: DOMAIN }, &[]);
                self.go_on(site, thread);
            }
        }
    }

    fn go_on(&mut self, site: usize, thread: usize) {
        self.nodes[site].threads[thread].state = ThreadState::Thinking;
        self.run_later(site, thread);
    }

    fn load(&mut self, site: usize, thread: usize, place: Place, first_try: bool) {
        let frame = self.nodes[site].frames.get(&place.page).copied().unwrap_or_default();
        if frame.access == Access::None {
            self.fault(site, thread, place.page, false, first_try);
            return;
        }
        let value = frame.body.map_or(0, |body| body[place.word]);
        if let Program::Script { loaded, .. } = &mut self.nodes[site].threads[thread].program {
            loaded.push(value);
        }
        if self.trace {
            println!("{} us, site {site}: thread {thread} loads {value} from {place:?}", self.now);
        }
        self.done.loads.push((place, value));
        if let Some(section) = self.nodes[site].threads[thread].section {
            self.sections[section].loads.push((place, value));
        }
        self.end_wait(site, thread, place.page, false, first_try);
    }

    fn store(&mut self, site: usize, thread: usize, place: Place, value: u64, first_try: bool) {
        let frame = self.nodes[site].frames.entry(place.page).or_default();
        if frame.access != Access::Write {
            self.fault(site, thread, place.page, true, first_try);
            return;
        }
        if let Some(body) = &mut frame.body {
            let replaced = std::mem::replace(&mut body[place.word], value);
            self.replaced.insert(value, replaced);
        }
        if let Some(section) = self.nodes[site].threads[thread].section {
            self.sections[section].stores.push((place, value));
        }
        if self.trace {
            println!("{} us, site {site}: thread {thread} stores {value} at {place:?}", self.now);
        }
        self.done.stores.push((place, value));
        self.end_wait(site, thread, place.page, true, first_try);
    }

    fn end_wait(
        &mut self,
        site: usize,
        thread: usize,
        page: PageKey,
        write: bool,
        first_try: bool,
    ) {
        if !first_try {
            self.done.waits.push(Wait::Ends { site, thread, page, write });
        }
        self.go_on(site, thread);
    }

    fn fault(&mut self, site: usize, thread: usize, page: PageKey, write: bool, first_try: bool) {
        if first_try {
            self.done.waits.push(Wait::Begins { site, thread, page, write });
        }
        let run = if self.runs { self.run_from(page) } else { 0 };
        self.handle(site, Event::Fault { page, run, write }, &[]);
    }

    /// The shared pages among the sixteen from `page` on.
    fn run_from(&self, page: PageKey) -> u64 {
        let behind = |p: &PageKey| p.page.0.checked_sub(page.page.0).filter(|n| *n < 16);
        self.around.pages.iter().filter_map(behind).fold(0, |run, n| run | 1 << n)
    }

    // Sites.

    fn handle(&mut self, i: usize, event: Event, bodies: &[Body]) {
        self.done.site = i;
        let Some(mut site) = self.nodes[i].site.take() else { return };
        let places = body_places(&event);
        if let Some(page) = page_of(&event) {
            self.done.pages.push(page);
        }
        let is_fault = matches!(event, Event::Fault { .. } | Event::Lock { .. });
        let mut effects = std::mem::take(&mut self.effects);
        let seen = self.trace.then(|| format!("{event:?}"));
        site.handle(self.now, event, &mut effects);
        if let Some(event) = seen {
            println!("{} us, site {i}: {event}", self.now);
            effects.as_slice().iter().for_each(|effect| println!("    {effect:?}"));
        }
        let next_tick = site.next_tick();
        self.nodes[i].site = Some(site);
        let asks = |e: &Effect| matches!(e, Effect::Send { .. });
        self.traffic.faults += u64::from(is_fault && effects.as_slice().iter().any(asks));
        for effect in effects.drain() {
            self.perform(i, effect, &places, bodies);
        }
        self.effects = effects;
        if let Some(time) = next_tick
            && self.nodes[i].ticks_at.is_none_or(|at| at > time)
        {
            let time = time.max(self.now + 1);
            self.nodes[i].ticks_at = Some(time);
            let life = self.nodes[i].life;
            self.push(time, Happening::Ticks { site: i, life });
        }
    }

    fn perform(&mut self, i: usize, effect: Effect, places: &[PageKey], bodies: &[Body]) {
        match effect {
            Effect::Send { to, view, message } => self.post(i, to, view, message),
            Effect::Fill { page, source } => {
                let at = places.iter().position(|p| *p == page);
                let body = self.filled(page, source, at.and_then(|at| bodies.get(at)).copied());
                self.nodes[i].frames.entry(page).or_default().body = body;
                self.done.pages.push(page);
            }
            Effect::Map { page, access } => {
                self.nodes[i].frames.entry(page).or_default().access = access;
                self.done.pages.push(page);
                self.wake(i, page);
            }
            Effect::Protect { page } => {
                self.nodes[i].frames.entry(page).or_default().access = Access::Read;
                self.done.pages.push(page);
            }
            Effect::Revoke { page, keep } => {
                let frame = self.nodes[i].frames.entry(page).or_default();
                frame.access = Access::None;
                if !keep {
                    frame.body = None;
                }
                self.done.pages.push(page);
            }
            Effect::Release { page } => {
                self.nodes[i].frames.remove(&page);
            }
            Effect::Locked { lock } => {
                self.done.locked = Some(lock);
                let line = &mut self.nodes[i].lock_line;
                if let Some(at) = line.iter().position(|(l, _)| *l == lock) {
                    let (_, thread) = line.remove(at);
                    self.nodes[i].threads[thread].locks.push(lock);
                    let ends = Wait::Ends { site: i, thread, page: lock, write: true };
                    self.done.waits.push(ends);
                    self.go_on(i, thread);
                } else {
                    // The section that wanted it is undone.
                    let unwanted = &mut self.nodes[i].locks_unwanted;
                    *unwanted = unwanted.saturating_sub(1);
                    self.handle(i, Event::Unlock { lock }, &[]);
                }
            }
            Effect::Lost { page, .. } => {
                self.done.pages.push(page);
                self.done.lost.push(page);
            }
            Effect::LostHome { site, .. } => self.done.lost_home = Some(site),
            Effect::Rebuilt { .. } => {}
            Effect::MayLeave { view } => {
                // Who does not know it yet goes on asking.
                let time = self.now + self.rng.u64(..2_000);
                let life = self.nodes[i].life;
                self.push(time, Happening::Leaves { site: i, life, view });
            }
            other => self.perform_for_rounds(i, other),
        }
    }

    fn wake(&mut self, site: usize, page: PageKey) {
        for thread in 0..self.nodes[site].threads.len() {
            let waits = match self.nodes[site].threads[thread].state {
                ThreadState::Waiting(
                    Op::Load(place) | Op::Store(place) | Op::StoreValue(place, _),
                    _,
                ) => place.page == page,
                _ => false,
            };
            if waits {
                let time = self.now + self.rng.u64(..=self.weather.retire_us);
                let life = self.nodes[site].life;
                self.push(time, Happening::Runs { site, life, thread });
            }
        }
    }

    fn post(&mut self, from: usize, to: SiteId, view: u32, message: Message) {
        let body = |page: PageKey| {
            let frame = self.nodes[from].frames.get(&page);
            frame.and_then(|f| f.body).unwrap_or_else(|| self.stable.body(page))
        };
        let bodies: Vec<Body> = message.bodies().map(body).collect();
        self.note_sent(from, &message, &bodies);
        self.count(&message);
        if let Some(log) = &mut self.log {
            log.push((from, to, message.clone()));
        }
        let times = match self.rng.u32(..1000) {
            dice if dice < self.weather.lost_per_mille => 0,
            dice if dice < self.weather.lost_per_mille + self.weather.doubled_per_mille => 2,
            _ => 1,
        };
        let from_id = SiteId::new(from as u16);
        let to = usize::from(to.get());
        if self.nodes[from].cut_off_until > self.now {
            return;
        }
        for _ in 0..times {
            let (least, most) = self.weather.latency_us;
            let mut time = self.now + self.rng.u64(least..=most);
            if self.nodes[to].slow {
                time += self.weather.slow_us;
            }
            self.in_flight += 1;
            let (life, message, bodies) = (self.nodes[to].life, message.clone(), bodies.clone());
            self.push(time, Happening::Arrives { to, life, from: from_id, view, message, bodies });
        }
    }

    /// What went out of a frame. What is read from the store is repeated only after it was taken, and
    /// may be newer then.
    fn note_sent(&mut self, from: usize, message: &Message, bodies: &[Body]) {
        let frames = &self.nodes[from].frames;
        let has_frame = |page: PageKey| frames.get(&page).is_some_and(|f| f.body.is_some());
        match message {
            Message::Copies { first, more, .. } => {
                let copies = std::iter::once(first).chain(more).zip(bodies);
                let sent = copies
                    .filter(|(c, _)| has_frame(c.page))
                    .map(|(c, body)| (c.page, c.version, false, *body));
                self.done.rounds.sent.extend(sent);
            }
            Message::Grants { first, more } => {
                let grants = std::iter::once(first).chain(more).filter(|g| g.body);
                let sent = grants
                    .zip(bodies)
                    .filter(|(g, _)| has_frame(g.page))
                    .map(|(g, body)| (g.page, g.version, true, *body));
                self.done.rounds.sent.extend(sent);
            }
            Message::Round { word: RoundWord::Meets { .. }, .. } => self.rounds_seen.met += 1,
            _ => {}
        }
    }

    fn count(&mut self, message: &Message) {
        if message.is_waited_for() {
            self.traffic.waited_for += 1;
        } else {
            self.traffic.after += 1;
        }
        self.traffic.bytes += byte_count(message);
        if let Message::Request(request) = message {
            self.traffic.hops_max = self.traffic.hops_max.max(request.hops);
        }
    }

    fn push(&mut self, time: Micros, happening: Happening) {
        let slot = self.free.pop().unwrap_or_else(|| {
            self.happenings.push(None);
            self.happenings.len() - 1
        });
        self.happenings[slot] = Some(happening);
        self.sequence += 1;
        self.queue.push(Reverse((time, self.sequence, Slot(slot))));
    }

    /// Whether the key is a lock and no page.
    #[must_use]
    pub fn is_lock(&self, key: PageKey) -> bool {
        let of_key = |c: &&stead_coherence::ClusterConfig| c.id == key.cluster;
        self.config.clusters.iter().find(of_key).is_some_and(|c| c.policy == Policy::Lock)
    }
}

/// Bytes of a message as a plain encoding of its fields would have them: 32 for addressing and
/// kind, 32 for a request, 24 for each page, 2 for each site, 4096 for each body.
#[must_use]
pub fn byte_count(message: &Message) -> u64 {
    let parts = match message {
        Message::Request(_) => 32,
        Message::Copies { more, .. } => 24 * (1 + more.len()),
        Message::Grants { first, more } => std::iter::once(first)
            .chain(more)
            .map(|g| 24 + 2 * g.copies.len() + 32 * g.waiting.len())
            .sum(),
        Message::Took { pages } => 24 * (1 + pages.more.len()),
        Message::Owner { pages, .. } => 24 * (1 + pages.more.len()),
        Message::Report { pages } => 24 * pages.len(),
        _ => 24,
    };
    (32 + parts + 4096 * message.bodies().count()) as u64
}

fn body_places(event: &Event) -> Vec<PageKey> {
    match event {
        Event::Message { message, .. } => message.bodies().collect(),
        _ => Vec::new(),
    }
}

fn page_of(event: &Event) -> Option<PageKey> {
    match event {
        Event::Fault { page, .. } => Some(*page),
        Event::Message { message: Message::Request(request), .. } => Some(request.page),
        Event::Lock { lock, .. } | Event::Unlock { lock } => Some(*lock),
        _ => None,
    }
}
