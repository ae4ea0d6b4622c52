//! What kernel, user and container allow, said in words that help: the findings behind `stead
//! doctor`, and the error of an open that cannot work. Looking without changing anything is all that
//! happens here. Read [`Support`] first.

use std::fmt;
use std::io;

use rustix::io::Errno;
use stead_model::{ADDRESS_END, ADDRESS_START, PAGE_SIZE};

use crate::sys::linux::probe;
use crate::sys::linux::uffd::{Way, feature};

/// What may be used: everything, except in tests of refusals.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Allowed {
    /// Feature bits of userfaultfd.
    pub features: u64,
    /// The plain call, which serves faults of system calls too.
    pub full: bool,
    /// `/dev/userfaultfd`.
    pub device: bool,
    /// The call for ordinary users.
    pub user_mode: bool,
    /// The `PAGEMAP_SCAN` request.
    pub pagemap_scan: bool,
    /// The kernel's events of page faults.
    pub fault_events: bool,
}

impl Allowed {
    /// All that the kernel offers.
    pub const ALL: Allowed = Allowed {
        features: u64::MAX,
        full: true,
        device: true,
        user_mode: true,
        pagemap_scan: true,
        fault_events: true,
    };

    /// The feature bit of asynchronous write-protection (Linux 6.7).
    pub const WP_ASYNC: u64 = feature::WP_ASYNC;
    /// The feature bit of page faults in memory files (Linux 4.11).
    pub const MISSING_SHMEM: u64 = feature::MISSING_SHMEM;
    /// The feature bit of mapping pages that are in the memory file (Linux 5.14).
    pub const MINOR_SHMEM: u64 = feature::MINOR_SHMEM;
    /// The feature bit of write-protection of memory files (Linux 5.19).
    pub const WP_SHMEM: u64 = feature::WP_HUGETLBFS_SHMEM;
    /// The feature bit of pages that are fatal to touch (Linux 6.6).
    pub const POISON: u64 = feature::POISON;

    /// The same without these feature bits.
    #[must_use]
    pub const fn without_features(mut self, bits: u64) -> Allowed {
        self.features &= !bits;
        self
    }
}

/// A needed thing that is missing: a store cannot be opened here.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{what} is not available: {why}; {advice}")]
pub struct Unsupported {
    /// What is missing.
    pub what: String,
    /// How that was found.
    pub why: String,
    /// What the user can do about it.
    pub advice: String,
}

impl Unsupported {
    pub(crate) fn call(name: &str, errno: Errno) -> Unsupported {
        Unsupported {
            what: format!("the system call {name}"),
            why: errno.to_string(),
            advice: "look at the limits of this process".to_owned(),
        }
    }

    pub(crate) fn userfaultfd(errno: Errno) -> Unsupported {
        let filtered = probe::seccomp_mode().is_some_and(|mode| mode > 0);
        let (why, advice) = if errno == Errno::NOSYS && !filtered {
            (
                "this kernel is built without it (ENOSYS)".to_owned(),
                "use a kernel with CONFIG_USERFAULTFD=y",
            )
        } else if filtered {
            (
                format!("refused by a seccomp filter ({errno})"),
                "let the container's profile allow userfaultfd (Docker: --security-opt \
                 seccomp=profile.json with userfaultfd added, Kubernetes: a localhost seccomp profile)",
            )
        } else {
            (
                errno.to_string(),
                "set sysctl vm.unprivileged_userfaultfd=1, or give this user access to \
                 /dev/userfaultfd",
            )
        };
        Unsupported { what: "userfaultfd".to_owned(), why, advice: advice.to_owned() }
    }

    /// The first of these feature bits, which are missing.
    pub(crate) fn features(missing: u64) -> Unsupported {
        let feature = FEATURES.iter().find(|f| missing & f.bit != 0).expect("a wanted feature");
        Unsupported {
            what: format!("the userfaultfd feature {}", feature.name),
            why: format!(
                "kernel {} does not offer it; it came with Linux {}",
                probe::kernel_release(),
                feature.since
            ),
            advice: "use Linux 6.7 or newer on x86-64".to_owned(),
        }
    }

    pub(crate) fn pagemap(error: &io::Error) -> Unsupported {
        Unsupported {
            what: "/proc/self/pagemap".to_owned(),
            why: error.to_string(),
            advice: "mount /proc in this container".to_owned(),
        }
    }

    /// Refused by the kernel: one of its two gates, or a filter.
    pub(crate) fn fault_events(errno: Errno) -> Unsupported {
        let level = probe::number("/proc/sys/kernel/perf_event_paranoid")
            .map_or_else(String::new, |n| format!(", kernel.perf_event_paranoid={n}"));
        let advice = match errno {
            Errno::MFILE | Errno::NFILE => "raise the limit of open files (ulimit -n)",
            Errno::NOSYS => "use a kernel with CONFIG_PERF_EVENTS=y",
            _ if probe::seccomp_mode().is_some_and(|mode| mode > 0) => {
                "let the container's profile allow perf_event_open, and give the process CAP_PERFMON"
            }
            _ => "give the process CAP_PERFMON, or set sysctl kernel.perf_event_paranoid=1",
        };
        Unsupported { why: format!("{errno}{level}"), ..Unsupported::fault_log_as(advice) }
    }

    /// Not refused, but not possible.
    pub(crate) fn fault_log(why: String) -> Unsupported {
        Unsupported { why, ..Unsupported::fault_log_as("nothing: a scan does the same") }
    }

    fn fault_log_as(advice: &str) -> Unsupported {
        let what = "the kernel's log of page faults".to_owned();
        Unsupported { what, why: String::new(), advice: advice.to_owned() }
    }

    pub(crate) fn pagemap_scan() -> Unsupported {
        Unsupported {
            what: "the PAGEMAP_SCAN request".to_owned(),
            why: format!(
                "kernel {} does not know it; it came with Linux 6.7",
                probe::kernel_release()
            ),
            advice: "use Linux 6.7 or newer".to_owned(),
        }
    }
}

/// How a finding is to be read.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum State {
    /// As it should be.
    Ok,
    /// Works, with a restriction that the finding names.
    Limited,
    /// Is not there.
    Missing,
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            State::Ok => "ok",
            State::Limited => "limited",
            State::Missing => "missing",
        })
    }
}

/// One thing that was looked at.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Finding {
    /// What it is.
    pub name: &'static str,
    /// How it stands.
    pub state: State,
    /// Whether nothing works without it.
    pub needed: bool,
    /// What was found.
    pub found: String,
    /// What it is for.
    pub needed_for: &'static str,
    /// What to do about it; empty where nothing is to be done.
    pub advice: String,
}

/// Everything that was looked at, the most fundamental first.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Support {
    /// The findings.
    pub findings: Vec<Finding>,
}

impl Support {
    /// Looks at this kernel, user and container. Takes a few milliseconds and leaves nothing behind.
    #[must_use]
    pub fn probe() -> Support {
        Support::probe_allowed(Allowed::ALL)
    }

    /// As [`Support::probe`], as if only what `allowed` says were allowed.
    #[must_use]
    pub fn probe_allowed(allowed: Allowed) -> Support {
        let mut findings = vec![kernel(), page_size(), memory_files()];
        findings.extend(userfaultfd(allowed));
        findings.push(pagemap_scan(allowed));
        findings.push(address_range());
        findings.push(overcommit());
        findings.push(barrier());
        findings.push(swap());
        findings.push(huge_pages());
        findings.push(seccomp());
        findings.push(fault_events(allowed));
        Support { findings }
    }

    /// The first needed thing that is missing.
    #[must_use]
    pub fn missing(&self) -> Option<Unsupported> {
        let finding = self.findings.iter().find(|f| f.needed && f.state == State::Missing)?;
        Some(Unsupported {
            what: finding.name.to_owned(),
            why: finding.found.clone(),
            advice: finding.advice.clone(),
        })
    }
}

struct Feature {
    bit: u64,
    name: &'static str,
    since: &'static str,
    needed_for: &'static str,
}

/// The features a space asks for, the newest first: lacking that one says most about the kernel.
const FEATURES: [Feature; 7] = [
    Feature {
        bit: feature::WP_ASYNC,
        name: "WP_ASYNC",
        since: "6.7",
        needed_for: "finding written pages without stopping the writer",
    },
    Feature {
        bit: feature::POISON,
        name: "POISON",
        since: "6.6",
        needed_for: "ending a program that touches a damaged page",
    },
    Feature {
        bit: feature::WP_UNPOPULATED,
        name: "WP_UNPOPULATED",
        since: "6.4",
        needed_for: "asynchronous write-protection, which includes it",
    },
    Feature {
        bit: feature::WP_HUGETLBFS_SHMEM,
        name: "WP_HUGETLBFS_SHMEM",
        since: "5.19",
        needed_for: "write-protecting pages of memory files",
    },
    Feature {
        bit: feature::MINOR_SHMEM,
        name: "MINOR_SHMEM",
        since: "5.14",
        needed_for: "mapping pages that are in a memory file",
    },
    Feature {
        bit: feature::PAGEFAULT_FLAG_WP,
        name: "PAGEFAULT_FLAG_WP",
        since: "5.7",
        needed_for: "write-protecting pages",
    },
    Feature {
        bit: feature::MISSING_SHMEM,
        name: "MISSING_SHMEM",
        since: "4.11",
        needed_for: "bringing pages in when they are touched",
    },
];

fn finding(
    name: &'static str,
    needed: bool,
    needed_for: &'static str,
    (state, found, advice): (State, impl Into<String>, impl Into<String>),
) -> Finding {
    let (found, advice) = (found.into(), advice.into());
    Finding { name, state, needed, found, needed_for, advice }
}

fn kernel() -> Finding {
    let release = probe::kernel_release();
    let mut numbers = release.split(['.', '-']).map(|n| n.parse::<u32>().unwrap_or(0));
    let version = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
    // The features themselves decide; a distribution may have brought them to an older kernel.
    let judged = if version >= (6, 7) {
        (State::Ok, format!("Linux {release}"), "")
    } else {
        (State::Limited, format!("Linux {release}, older than 6.7"), "use Linux 6.7 or newer")
    };
    finding("kernel", false, "everything below", judged)
}

fn page_size() -> Finding {
    let found = rustix::param::page_size();
    let judged = if found == PAGE_SIZE {
        (State::Ok, format!("{found} bytes"), "")
    } else {
        (State::Missing, format!("{found} bytes"), "use a kernel with pages of 4096 bytes")
    };
    finding("page size", true, "pages as the store keeps them: 4096 bytes", judged)
}

fn memory_files() -> Finding {
    let judged = match probe::memory_file() {
        Ok(()) => (State::Ok, "works".to_owned(), ""),
        Err(errno) => {
            (State::Missing, errno.to_string(), "let the container's profile allow memfd_create")
        }
    };
    finding("memfd", true, "the memory of clusters", judged)
}

fn userfaultfd(allowed: Allowed) -> Vec<Finding> {
    let name = "userfaultfd";
    let purpose = "bringing pages in when they are touched";
    let (way, offered) = match probe::userfaultfd(allowed) {
        Ok(found) => found,
        Err(errno) => {
            let refusal = Unsupported::userfaultfd(errno);
            return vec![finding(
                name,
                true,
                purpose,
                (State::Missing, refusal.why, refusal.advice),
            )];
        }
    };
    let sysctl = probe::number("/proc/sys/vm/unprivileged_userfaultfd")
        .map_or_else(String::new, |n| format!(" (vm.unprivileged_userfaultfd={n})"));
    let judged = match way {
        Way::Call => (State::Ok, format!("full mode{sysctl}"), ""),
        Way::Device => (State::Ok, format!("full mode, by /dev/userfaultfd{sysctl}"), ""),
        Way::UserModeOnly => (
            State::Limited,
            format!(
                "for the program's own code only{sysctl}: a system call that touches a page which \
                 is not in memory fails with EFAULT"
            ),
            "set sysctl vm.unprivileged_userfaultfd=1, or give this user access to \
             /dev/userfaultfd",
        ),
    };
    let mut findings = vec![finding(name, true, purpose, judged)];
    findings.extend(FEATURES.iter().rev().map(|feature| {
        let judged = if offered & feature.bit != 0 {
            (State::Ok, "offered".to_owned(), String::new())
        } else {
            let refusal = Unsupported::features(feature.bit);
            (State::Missing, refusal.why, refusal.advice)
        };
        finding(feature.name, true, feature.needed_for, judged)
    }));
    findings
}

fn pagemap_scan(allowed: Allowed) -> Finding {
    let judged = match probe::pagemap_scan(allowed) {
        Ok(()) => (State::Ok, "works".to_owned(), String::new()),
        Err(refusal) => (State::Missing, refusal.why, refusal.advice),
    };
    finding("PAGEMAP_SCAN", true, "finding written pages", judged)
}

fn address_range() -> Finding {
    let occupants = probe::occupants(ADDRESS_START, ADDRESS_END);
    let judged = match occupants.first() {
        None => (State::Ok, format!("{ADDRESS_START:#x}..{ADDRESS_END:#x} is free"), ""),
        Some(first) => (
            State::Limited,
            format!("{} mappings, the first is `{first}`", occupants.len()),
            "containers whose addresses are taken cannot be opened beside what takes them",
        ),
    };
    finding("address range", false, "containers at the same address for life", judged)
}

fn overcommit() -> Finding {
    let judged = match probe::number("/proc/sys/vm/overcommit_memory") {
        Some(2) => (
            State::Limited,
            "vm.overcommit_memory=2",
            "set sysctl vm.overcommit_memory=0: large sparse mappings are refused with 2",
        ),
        Some(_) => (State::Ok, "large sparse mappings are allowed", ""),
        None => (State::Ok, "not known", ""),
    };
    finding("overcommit", false, "sparse mappings as large as a container", judged)
}

fn barrier() -> Finding {
    let judged = if crate::gate::barrier_works() {
        (State::Ok, "private expedited barriers work", "")
    } else {
        (
            State::Limited,
            "refused: entering a section takes a full memory barrier",
            "let the container's profile allow membarrier",
        )
    };
    finding("membarrier", false, "entering a section in a few nanoseconds", judged)
}

fn swap() -> Finding {
    let judged = if probe::swap_exists() {
        (
            State::Limited,
            "pages may be swapped out, and count as written again when they come back",
            "set memory.swap.max=0 for the control group of this process",
        )
    } else {
        (State::Ok, "none", "")
    };
    finding("swap", false, "pages of containers stay where they are", judged)
}

fn huge_pages() -> Finding {
    let judged = match probe::huge_memory_files() {
        Some(mode) if mode == "always" || mode == "force" => (
            State::Limited,
            format!("{mode}: a page of a container may cost 2 MiB of memory"),
            "write never or advise to /sys/kernel/mm/transparent_hugepage/shmem_enabled",
        ),
        Some(mode) => (State::Ok, mode, ""),
        None => (State::Ok, "not known".to_owned(), ""),
    };
    finding("huge pages for memory files", false, "memory for the pages touched alone", judged)
}

fn seccomp() -> Finding {
    let judged = match probe::seccomp_mode() {
        Some(0) => (State::Ok, "no filter".to_owned(), ""),
        Some(mode) => (
            State::Limited,
            format!("mode {mode}: a filter decides which system calls are allowed"),
            "where something above is refused, let the container's profile allow it",
        ),
        None => (State::Ok, "not known".to_owned(), ""),
    };
    finding("seccomp", false, "system calls that containers often refuse", judged)
}

fn fault_events(allowed: Allowed) -> Finding {
    let judged = match probe::fault_events(allowed) {
        Ok(()) => (
            State::Ok,
            "allowed: where much is in memory, the fault log names them".to_owned(),
            String::new(),
        ),
        Err(errno) => {
            let refusal = Unsupported::fault_events(errno);
            (
                State::Limited,
                format!("{}: found by a scan, which costs by what is in memory", refusal.why),
                refusal.advice,
            )
        }
    };
    finding("page-fault events", false, "finding written pages by what is written", judged)
}
