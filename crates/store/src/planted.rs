//! Bugs to order, for showing that the crash checker would find them. Without the feature `planted` there
//! is nothing here but a constant `false`. Read [`Bug`] first.

/// A mistake that stores of this kind make.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Bug {
    /// The root is written without a flush after what it names.
    NoFlushBeforeRoot,
    /// Recovery believes the last record's header without looking at its pages.
    ChecksumSkipped,
    /// A segment is used again as soon as nothing in memory points into it.
    EarlyReuse,
    /// The commit chunk of a large record is written together with its body, behind one flush.
    CommitBeforeBody,
    /// That a chunk could not be written ahead of its record is not looked at.
    AheadUnheeded,
    /// Chunks of a large record are written ahead of it no more, but behind the flush that is to cover them.
    ChunksBehindFlush,
    /// A flush does not wait for the writes that it is to cover.
    FlushUnderWay,
    /// A failed flush counts as done.
    SwallowedEio,
    /// A failed flush is tried again, and believed.
    RetriedFlush,
    /// A new epoch is begun behind one new root; the other stays as it was.
    OneRoot,
    /// The first superblock that is whole is believed, though no root belongs to it.
    OneSuperblock,
    /// Two roots that are written one behind the other name one table.
    OneTable,
    /// Whoever shares another's flush is told so before it has come to pass.
    FollowersUnflushed,
    /// Recovery takes a record for flushed because another follows it, though both shared a flush.
    GroupBelieved,
    /// The file is cut when only one of the roots names no more than what stays.
    CutTooEarly,
    /// The first unreadable chunk is taken for the end of the log.
    BlindTail,
    /// The twin of a header is believed whatever its checksum.
    TwinUnchecked,
    /// The twin of any header is believed, whichever chunk of the chain it belongs to.
    TwinOfAnother,
    /// What could be read by its twin is taken for unreadable.
    TwinIgnored,
    /// After opening by the older root, the other one stays as it was while what it refers to is written over.
    UnusableRootKept,
    /// Restoring does not look at the checksums of a backup.
    StreamUnchecked,
    /// Restoring takes what a backup says of its pages as it is, if the checksum is right.
    StreamBelieved,
    /// Segments are used again although a reader of another process needs them.
    PinsIgnored,
    /// A block that the live state lets go of is freed although a snapshot has it.
    SharedBlockFreed,
    /// Going back to a snapshot is begun behind one new root.
    GoBackWithOneRoot,
    /// Cleaning moves blocks in the live map only.
    MovedInLiveOnly,
    /// What was read of a segment is moved although it has been emptied and written anew since.
    StaleGathered,
    /// A root that has been written over the other one is taken for none.
    AstrayRootIgnored,
    /// Opening by the older root does not ask whether anything was stabilised behind the newer one.
    EpochForgotten,
    /// Dropping a snapshot keeps what nobody else has.
    DroppedButKept,
    /// A damaged part of the map that must be changed is taken for an empty one.
    LostReadsZero,
    /// What only a lost part of the map referred to stays counted.
    LostNotRecounted,
    /// A checkpoint that changes no quota forgets them all.
    QuotaForgotten,
    /// Recovery keeps the quota of a container that was given up behind the root.
    QuotaOutlives,
    /// Roots do not say what has been written so far.
    WrittenForgotten,
    /// What has been read of maps is never forgotten.
    MapKept,
    /// A salvage does not look for what it gives up.
    GivenUpUntold,
    /// A scrub reads images and does not look at them.
    ScrubLooksAway,
    /// What only the older root refers to is not looked at.
    OlderRootUnread,
}

#[cfg(feature = "planted")]
mod switch {
    use super::Bug;
    use std::cell::Cell;

    thread_local! {
        static PLANTED: Cell<Option<Bug>> = const { Cell::new(None) };
    }

    /// Plants a bug, or none, for this thread.
    pub fn set(bug: Option<Bug>) {
        PLANTED.set(bug);
    }

    pub(crate) fn is(bug: Bug) -> bool {
        PLANTED.get() == Some(bug)
    }
}

#[cfg(not(feature = "planted"))]
mod switch {
    use super::Bug;

    pub(crate) const fn is(_: Bug) -> bool {
        false
    }
}

#[cfg(feature = "planted")]
pub use switch::set;

pub(crate) use switch::is;
