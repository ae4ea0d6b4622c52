//! The typed persistent heap: allocator, plain pointers, type descriptions, sections with undo,
//! collections, locks and `verify` (catalogue A1 to A8), on memory that someone else maps.
//!
//! What it does not know: files, pages faults, stable states, the gate that keeps sections out while a
//! stable state is taken, and who else uses the container. Read [`Arena`] for the side of the site,
//! [`Tx`] for the side of programs, and `docs/heap-format.md` for the bytes.

mod alloc;
mod arena;
mod asan;
mod boxed;
mod counter;
mod directory;
mod error;
pub mod ground;
mod group;
mod guide;
mod hash;
mod journal;
mod layout;
mod lock;
mod map;
#[doc(hidden)]
pub mod planted;
mod ptr;
mod registry;
mod section;
mod slot;
mod sync;
mod text;
mod types;
mod vec;
mod verify;

pub use arena::{Arena, Attempt, Ended, FormatError, InitRootError, OpenArenaError, RootError};
pub use boxed::Box;
pub use counter::Counter;
pub use directory::{Directory, DirectoryError, directory, renumber};
pub use error::{AllocError, Damaged, Error, LockError, OtherType};
pub use ground::{Ground, GroundError};
pub use guide::{PageGuide, PageKind, PageSource, PageUse, TypeTable};
pub use hash::{StableHash, StableHasher};
pub use journal::{Open, section_open};
pub use lock::BusyLock;
pub use map::HashMap;
pub use ptr::Ptr;
pub use section::{Cluster, Exclusive, Read, ReadSlots, TakeReadLocks, Tx, Write};
pub use slot::Slot;
pub use sync::{Mutex, MutexGuard, ReadGuard, RwLock, WriteGuard};
pub use text::Text;
pub use types::{Persist, Root, TypeDescription};
pub use vec::Vec;
pub use verify::{Finding, Leak, Report};

/// What generated code names. No interface for people.
#[doc(hidden)]
pub mod __private {
    pub use crate::hash::{StableHash, StableHasher};
    pub use crate::types::{
        Describer, FieldDescription, Persist, Root, Shape, TypeDescription, VariantDescription,
        combine_ids, name_id,
    };
}
