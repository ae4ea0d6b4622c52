//! What can go wrong, an enum for each verb. Each message says what, where, and what to do. Read the
//! one of the verb at hand.

use std::fmt;
use std::path::PathBuf;

use stead_heap::{
    AllocError, Damaged, DirectoryError, FormatError, OpenArenaError, OtherType, RootError,
};
use stead_memory::{EnterError, Held, MapError, ReserveError, ScanError, Unsupported};
use stead_model::windows::OutOfAddresses;
use stead_model::{Address, ContainerId, NameError};
use stead_store::{CommitError, CreateError, Damage, ReadError};

use crate::scrub::SnapshotNames;

/// A store could not be opened.
#[derive(thiserror::Error, Debug)]
pub enum OpenError {
    /// The directory or the log in it.
    #[error(transparent)]
    Store(#[from] stead_store::OpenError),
    /// A new store could not be made.
    #[error(transparent)]
    Create(#[from] CreateError),
    /// The kernel, the user or the container this runs in do not allow what is needed.
    #[error(transparent)]
    Unsupported(#[from] Unsupported),
    /// The system container is not where or what it should be.
    #[error(
        "store {}{}: the directory of its containers cannot be used: {why}", dir.display(),
        snapshot.as_ref().map_or(String::new(), |name| format!(", snapshot {name:?}"))
    )]
    Directory {
        /// The store.
        dir: PathBuf,
        /// The snapshot that was to be opened, if it was one.
        snapshot: Option<String>,
        /// What was found.
        why: Box<ContainerError>,
    },
    /// There is no such snapshot.
    #[error("store {}: {why}", dir.display())]
    Snapshot {
        /// The store.
        dir: PathBuf,
        /// Why not.
        why: Box<stead_store::SnapshotError>,
    },
    /// What a branch that was cut short has left could not be removed.
    #[error("store {}: what an unfinished branch has left cannot be removed: {why}", dir.display())]
    Unfinished {
        /// The store.
        dir: PathBuf,
        /// Why not.
        why: Box<CommitError>,
    },
    /// Two containers in the directory claim the same addresses.
    #[error(
        "store {}: container {id} claims addresses at {base} that are outside the range or another's; that is how \
         it was stored: what an earlier snapshot or a backup of the store has may be sound", dir.display()
    )]
    Overlap {
        /// The store.
        dir: PathBuf,
        /// Which container.
        id: ContainerId,
        /// Where it says it lies.
        base: Address,
    },
    /// A thread could not be started.
    #[error("a thread of the site could not be started: {0}")]
    Thread(std::io::Error),
}

/// In which way a store could not be opened, for programs that decide by it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum OpenErrorKind {
    /// There is none.
    Missing,
    /// The store has no such snapshot.
    NoSnapshot,
    /// Something else is there.
    NotAStore,
    /// This process or another has it open.
    InUse,
    /// The user may not.
    NotPermitted,
    /// A later version wrote it.
    Newer,
    /// What is needed for opening is damaged.
    Damaged,
    /// The addresses of its containers are taken in this process.
    AddressesTaken,
    /// Kernel, user or container lack what is needed.
    Unsupported,
    /// The system refused for another reason.
    System,
}

impl OpenErrorKind {
    /// One word for it, which stays the same from version to version.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            OpenErrorKind::Missing => "missing",
            OpenErrorKind::NoSnapshot => "no_snapshot",
            OpenErrorKind::NotAStore => "not_a_store",
            OpenErrorKind::InUse => "in_use",
            OpenErrorKind::NotPermitted => "not_permitted",
            OpenErrorKind::Newer => "newer",
            OpenErrorKind::Damaged => "damaged",
            OpenErrorKind::AddressesTaken => "addresses_taken",
            OpenErrorKind::Unsupported => "unsupported",
            OpenErrorKind::System => "system",
        }
    }
}

fn refused(error: &std::io::Error) -> OpenErrorKind {
    match stead_store::word_of(error) {
        "not_permitted" => OpenErrorKind::NotPermitted,
        _ => OpenErrorKind::System,
    }
}

impl OpenError {
    /// In which way it could not be opened.
    #[must_use]
    pub fn kind(&self) -> OpenErrorKind {
        match self {
            OpenError::Store(e) => OpenError::kind_of_store(e),
            OpenError::Create(e) => match e {
                CreateError::Exists { .. }
                | CreateError::NotEmpty { .. }
                | CreateError::NotADirectory { .. } => OpenErrorKind::NotAStore,
                CreateError::NotWritable { .. } => OpenErrorKind::NotPermitted,
                CreateError::Held(_) => OpenErrorKind::InUse,
                CreateError::NoSpace { .. } | CreateError::BadOptions(_) => OpenErrorKind::System,
                CreateError::Io { source, .. } => refused(source),
            },
            OpenError::Unsupported(_) => OpenErrorKind::Unsupported,
            OpenError::Directory { why, .. } if why.is_damage() => OpenErrorKind::Damaged,
            OpenError::Directory { why, .. } => match **why {
                ContainerError::Reserve { .. } => OpenErrorKind::AddressesTaken,
                _ => OpenErrorKind::System,
            },
            OpenError::Overlap { .. } => OpenErrorKind::Damaged,
            OpenError::Snapshot { .. } => OpenErrorKind::NoSnapshot,
            OpenError::Unfinished { .. } => OpenErrorKind::System,
            OpenError::Thread(_) => OpenErrorKind::System,
        }
    }

    pub(crate) fn kind_of_store(error: &stead_store::OpenError) -> OpenErrorKind {
        use stead_store::OpenError as Store;
        match error {
            Store::Missing { .. } => OpenErrorKind::Missing,
            Store::NotADirectory { .. } | Store::NotAStore { .. } => OpenErrorKind::NotAStore,
            Store::NewerFormat { .. } | Store::UnknownFeatures { .. } => OpenErrorKind::Newer,
            Store::NotWritable { .. } => OpenErrorKind::NotPermitted,
            Store::Held(_) => OpenErrorKind::InUse,
            Store::Damaged { .. } => OpenErrorKind::Damaged,
            Store::Io { source, .. } => refused(source),
        }
    }

    /// Whether another process, or this one, has the store open: trying again later may help.
    #[must_use]
    pub fn is_held(&self) -> bool {
        matches!(
            self,
            OpenError::Store(stead_store::OpenError::Held { .. })
                | OpenError::Create(CreateError::Held { .. })
        )
    }
}

/// A container could not be opened or made.
#[derive(thiserror::Error, Debug)]
pub enum ContainerError {
    /// Not a name.
    #[error(transparent)]
    Name(#[from] NameError),
    /// There is none of this name, and none was to be made.
    #[error("there is no container named {name:?} in this store")]
    Missing {
        /// The name.
        name: String,
    },
    /// No windows are left.
    #[error(transparent)]
    OutOfAddresses(#[from] OutOfAddresses),
    /// Something else lies at its addresses in this process.
    #[error("container {name:?}: {source}")]
    Reserve {
        /// The container.
        name: String,
        /// What lies there.
        source: ReserveError,
    },
    /// The process may not have so many addresses.
    #[error(
        "container {name:?}: this process cannot have addresses for it beside the {open} containers that it has open: \
         it takes {address_bytes} bytes of them twice, once for locks; give fewer `ContainerOptions::address_bytes` \
         when containers are made, or drop those that are not in use ({why})"
    )]
    AddressSpace {
        /// The container.
        name: String,
        /// Containers open in this process, those of other stores not counted.
        open: usize,
        /// Addresses that it is to have.
        address_bytes: u64,
        /// What the system said, and which limits there are.
        why: String,
    },
    /// It could not be mapped.
    #[error("container {name:?} could not be mapped: {source}")]
    Map {
        /// The container.
        name: String,
        /// Why.
        source: MapError,
    },
    /// Its first page could not be read.
    #[error("container {name:?}: {source}")]
    Read {
        /// The container.
        name: String,
        /// Why.
        source: ReadError,
    },
    /// A page that opening it needs is damaged.
    #[error(transparent)]
    Damaged(#[from] Box<Damaged>),
    /// Its first page is not a container's.
    #[error("container {name:?}: {source}")]
    Header {
        /// The container.
        name: String,
        /// What was found.
        source: DirectoryError,
    },
    /// Its pages could not be brought into memory.
    #[error("container {name:?} could not be brought into memory: {source}")]
    Fill {
        /// The container.
        name: String,
        /// Why.
        source: stead_memory::FrameError,
    },
    /// Its first page says it is another one, or lies elsewhere.
    #[error(
        "container {name:?}: the directory says it is {} at {} with {} windows, its first page says {} at {} with {}; \
         the store is damaged", here.0, here.1, here.2, found.0, found.1, found.2
    )]
    Mismatch {
        /// The container.
        name: String,
        /// Number, base and windows as the directory has them.
        here: (ContainerId, Address, u32),
        /// The same as its first page has them.
        found: (ContainerId, Address, u32),
    },
    /// Its heap could not be opened.
    #[error("container {name:?}: {source}")]
    Arena {
        /// The container.
        name: String,
        /// Why.
        source: OpenArenaError,
    },
    /// Something in it is wrong, although its pages are as they were written.
    #[error(
        "{found}; that is how it was stored: what an earlier snapshot or a backup of the store has may be sound"
    )]
    Unsound {
        /// The first thing that is wrong.
        found: Box<stead_heap::Finding>,
    },
    /// What the directory of containers says of one cannot be.
    #[error(
        "its entry {name:?} {what}; that is how it was stored: what an earlier snapshot or a backup of the store has may \
         be sound"
    )]
    Entry {
        /// The name of the container.
        name: String,
        /// What is wrong with it.
        what: &'static str,
    },
    /// Every number that a container can have has been given; numbers are not given twice.
    #[error(
        "container {name:?} cannot be made: this store has given all {} numbers of containers, and none is given twice",
         ContainerId::MAX.0
    )]
    OutOfNumbers {
        /// The container.
        name: String,
    },
    /// Its heap could not be laid out.
    #[error("container {name:?}: {source}")]
    Format {
        /// The container.
        name: String,
        /// Why.
        source: FormatError,
    },
    /// Its root is of another type.
    #[error("container {name:?}: {source}")]
    OtherType {
        /// The container.
        name: String,
        /// Both types.
        source: Box<OtherType>,
    },
    /// Its root could not be checked.
    #[error("container {name:?}: {source}")]
    Root {
        /// The container.
        name: String,
        /// Why.
        source: RootError,
    },
    /// The first value of its root could not be allocated.
    #[error("container {name:?}: its root could not be made: {source}")]
    Init {
        /// The container.
        name: String,
        /// Why.
        source: AllocError,
    },
    /// It has no root yet, and none can be made where the store is only read.
    #[error("container {name:?} has no root yet: the program that makes it has not stabilised one")]
    NoRoot {
        /// The container.
        name: String,
    },
    /// A branch, or what it was branched from, is open: they have the same addresses.
    #[error(
        "container {name:?} has the same addresses as container {other:?}, which is open in this process: drop what holds \
         that one first, or open this one in another process"
    )]
    SharesAddresses {
        /// The container.
        name: String,
        /// The one that is open.
        other: String,
    },
    /// The one that has the same addresses could not be made stable before it was unmapped.
    #[error(
        "container {name:?} has the addresses of container {other:?}, which cannot be unmapped now: {source}"
    )]
    Unmap {
        /// The container.
        name: String,
        /// The one that is to be unmapped.
        other: String,
        /// Why its changes are not stable.
        source: Box<StabiliseError>,
    },
    /// The directory of containers was lost on the way back to a snapshot.
    #[error(
        "the directory of containers is not there since the store went back: drop the store, and open it again"
    )]
    NoDirectory,
    /// Its quota could not be laid down, so that it was not made.
    #[error("container {name:?} was not made, since its quota cannot be kept: {source}")]
    Quota {
        /// The container.
        name: String,
        /// Why.
        source: Box<CommitError>,
    },
    /// This thread has a section open.
    #[error("a container cannot be opened inside a section: open it before")]
    InSection,
    /// The directory of containers could not be read or changed.
    #[error("the directory of containers: {0}")]
    Directory(AllocError),
    /// It is open already, in this process, and not to be opened twice in this way.
    #[error("the gate of container {name:?}: {source}")]
    Gate {
        /// The container.
        name: String,
        /// Why.
        source: EnterError,
    },
}

/// Nothing came of what was asked about snapshots.
#[derive(thiserror::Error, Debug)]
pub enum SnapshotError {
    /// The name is none, is taken, or is not there; or the disk refused.
    #[error(transparent)]
    Store(#[from] stead_store::SnapshotError),
    /// What sections have done before could not be made stable.
    #[error("everything is made stable first, and that failed: {0}")]
    Stabilise(#[from] StabiliseError),
    /// The container, or the name for the branch.
    #[error(transparent)]
    Container(#[from] ContainerError),
    /// The branch's name is taken.
    #[error("there is a container named {name:?} already: choose another name for the branch")]
    Taken {
        /// The name.
        name: String,
    },
    /// Another container has come to lie at the origin's addresses.
    #[error(
        "the addresses of the branch, which are those of its origin at {base}, now partly belong to container {other:?}: \
         remove that one first"
    )]
    AddressesTaken {
        /// The first address.
        base: Address,
        /// Who has some of them.
        other: String,
    },
    /// The branch is there, but that is not stable yet: the next stabilisation that succeeds makes it so.
    #[error("container {name:?} is branched in memory only: {source}")]
    NotStable {
        /// The branch.
        name: String,
        /// Why.
        source: Box<StabiliseError>,
    },
    /// The store is in use in this process.
    #[error(
        "the store cannot go back while it is in use in this process ({what}): drop containers and other handles of it first"
    )]
    InUse {
        /// What is open.
        what: String,
    },
    /// The snapshot's pages cannot all be read.
    #[error("the snapshot's directory of containers cannot be read: {0}")]
    Read(#[from] ReadError),
}

impl SnapshotError {
    /// Whether there is no such snapshot.
    #[must_use]
    pub fn is_unknown(&self) -> bool {
        matches!(self, SnapshotError::Store(stead_store::SnapshotError::Unknown { .. }))
    }
}

/// A quota was not laid down. All is as before.
#[derive(thiserror::Error, Debug)]
pub enum QuotaError {
    /// There is no such container, or this thread has a section open.
    #[error(transparent)]
    Container(#[from] ContainerError),
    /// It is too small, the store is open for reading only, or the disk refuses.
    #[error(transparent)]
    Store(#[from] CommitError),
    /// The store was opened before this process was forked off.
    #[error("this process was forked from the one that opened the store; open it here after fork")]
    Forked,
}

/// No backup was written, or not to its end.
#[derive(thiserror::Error, Debug)]
pub enum BackupError {
    /// The store could not be opened for reading.
    #[error(transparent)]
    Open(#[from] stead_store::OpenError),
    /// There is no such snapshot.
    #[error(transparent)]
    Snapshot(#[from] stead_store::SnapshotError),
    /// What was to be copied is damaged.
    #[error("{damage}; nothing that is damaged is backed up: {}", Instead { live: *live, snapshots })]
    Damaged {
        /// What.
        damage: Box<Damage>,
        /// Whether the live state has it.
        live: bool,
        /// The snapshots that have it.
        snapshots: Vec<String>,
    },
    /// It could not be copied.
    #[error(transparent)]
    Copy(#[from] stead_store::BackupError),
}

/// What to do about damage that keeps a state from being copied.
struct Instead<'a> {
    live: bool,
    snapshots: &'a [String],
}

impl fmt::Display for Instead<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names = SnapshotNames(self.snapshots);
        match (self.live, self.snapshots) {
            (true, []) => {
                f.write_str("restore the store from an earlier backup, or back up a snapshot")
            }
            (true, _) => write!(
                f,
                "the live state has it, and {names}; restore the store from an earlier backup"
            ),
            (false, _) => write!(f, "only {names} has it; drop that, and back up another state"),
        }
    }
}

impl BackupError {
    /// Whether there is no such snapshot.
    #[must_use]
    pub fn is_unknown(&self) -> bool {
        matches!(self, BackupError::Snapshot(stead_store::SnapshotError::Unknown { .. }))
    }

    /// Whether it was not written to its end because nobody reads any more.
    #[must_use]
    pub fn is_unread(&self) -> bool {
        use stead_store::BackupError::Write;
        matches!(self, BackupError::Copy(Write(error)) if error.kind() == std::io::ErrorKind::BrokenPipe)
    }

    /// Whether something in the store is damaged.
    #[must_use]
    pub fn is_damage(&self) -> bool {
        matches!(
            self,
            BackupError::Damaged { .. }
                | BackupError::Copy(stead_store::BackupError::Read(ReadError::Damaged(_)))
        )
    }
}

/// A container was not removed, or not yet for good.
#[derive(thiserror::Error, Debug)]
pub enum RemoveError {
    /// The name is none, or no container has it.
    #[error(transparent)]
    Container(#[from] ContainerError),
    /// Somebody in this process has it open.
    #[error("container {name:?} is open in this process: drop what holds it before removing it")]
    Open {
        /// The container.
        name: String,
    },
    /// It is out of the directory, but that is not stable yet: the next stabilisation that succeeds makes it so.
    #[error("container {name:?} is removed in memory only: {source}")]
    NotStable {
        /// The container.
        name: String,
        /// Why.
        source: StabiliseError,
    },
}

impl ContainerError {
    /// Whether its bytes on the disk are not as they were written.
    #[must_use]
    pub fn is_damage(&self) -> bool {
        match self {
            ContainerError::Damaged(_) => true,
            ContainerError::Read { source, .. } => matches!(source, ReadError::Damaged(_)),
            ContainerError::Header { source, .. } => {
                !matches!(source, DirectoryError::OtherFormat { .. })
            }
            ContainerError::Mismatch { .. }
            | ContainerError::Unsound { .. }
            | ContainerError::Entry { .. } => true,
            ContainerError::Arena { source, .. } => {
                matches!(source, OpenArenaError::Window { .. } | OpenArenaError::Types { .. })
            }
            _ => false,
        }
    }
}

/// A section could not be entered. Nothing was done.
#[derive(thiserror::Error, Clone, PartialEq, Eq, Debug)]
pub enum SectionError {
    /// Another section of this thread is open.
    #[error("a section that changes things cannot be opened inside another section")]
    Nested,
    /// This thread is in an exclusive section.
    #[error("no section can be opened inside an exclusive section")]
    InExclusive,
    /// Too many reading sections inside each other.
    #[error("reading sections are nested too deep (8 at most)")]
    TooDeep,
    /// The store is open for reading only.
    #[error(
        "a section that changes things cannot be opened: this store is open for reading only; open it with \
         `stead::open` while no other process has it"
    )]
    ReadOnly,
    /// The root, which every section is lent, is damaged on the disk.
    #[error(transparent)]
    Damaged(Box<Damaged>),
}

/// Addresses could not be checked, or are damaged.
#[derive(thiserror::Error, Clone, PartialEq, Eq, Debug)]
pub enum CheckError {
    /// A page is damaged.
    #[error(transparent)]
    Damaged(#[from] Damaged),
    /// They are not the container's.
    #[error(
        "container {name:?} has the addresses {} to {}, and was asked to check {} to {}",
        is.start, is.end, asked.start, asked.end
    )]
    Outside {
        /// The container.
        name: String,
        /// What was to be checked.
        asked: std::ops::Range<Address>,
        /// What it has.
        is: std::ops::Range<Address>,
    },
    /// This thread is in a section that holds the container alone.
    #[error("{0}; inside a section, check with its token")]
    Section(#[from] SectionError),
}

impl From<EnterError> for SectionError {
    fn from(e: EnterError) -> Self {
        match e {
            EnterError::Nested => SectionError::Nested,
            EnterError::InExclusive => SectionError::InExclusive,
            EnterError::TooDeep => SectionError::TooDeep,
            EnterError::Held(_) => unreachable!("sections are entered without a deadline"),
        }
    }
}

/// Nothing new became stable. Memory is as it was, and nothing is lost: a later stabilisation takes
/// up what this one did not write.
#[derive(thiserror::Error, Debug)]
pub enum StabiliseError {
    /// This thread has a section open, which the stabilisation would wait for.
    #[error("stabilise() inside a section: it would wait for that section to end; call it after")]
    InSection,
    /// Sections stayed open longer than the stabilisation was to wait.
    #[error("{0}")]
    Held(Held),
    /// The record could not be written: disk full, or an error of the disk.
    #[error(transparent)]
    Commit(#[from] CommitError),
    /// A container holds more in memory than it may hold when it is stable.
    #[error(
        "nothing was stabilised: container {name:?} holds {held_bytes} bytes of its quota of {quota_bytes} and would hold \
         {asked_bytes}; free something in it, or raise its quota (`Container::set_quota`, `stead quota`), and stabilise again"
    )]
    ContainerFull {
        /// The container.
        name: String,
        /// What it may hold.
        quota_bytes: u64,
        /// What is stable of it.
        held_bytes: u64,
        /// What would have been.
        asked_bytes: u64,
    },
    /// Which pages are dirty could not be found.
    #[error("dirty pages could not be found: {0}")]
    Scan(#[from] ScanError),
    /// The store is open for reading only.
    #[error("stabilise(): this store is open for reading only, so there is nothing to make stable")]
    ReadOnly,
    /// The store was opened before this process was forked off.
    #[error("this process was forked from the one that opened the store; open it here after fork")]
    Forked,
}
