//! Mistakes that a test makes on purpose, one at a time, to show that the proof catches it. Without
//! the feature `planted` none of them is compiled. Read [`Bug`] first.

/// A mistake.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum Bug {
    /// A request that arrives before the page it was sent for is bounced to the home (I1).
    Bounce,
    /// A copy that an invalidation overtook is installed (I2).
    InstallStale,
    /// An invalidation waits for a local fault on the same page (I3).
    WaitForFault,
    /// A grant goes without body to whoever said that it had a copy (I4).
    TrustCopy,
    /// A page granted twice is taken twice (I5).
    TakeTwice,
    /// Nothing is held, and requests are served youngest first (I6).
    Unfair,
    /// A site that passes a read request on takes the reader for the owner (I7).
    HintFromRead,
    /// Messages of older views are heard (I8).
    NoFence,
    /// A page is not given while a neighbour is waited for (I9).
    HoldAndWait,
    /// Pages are not served while the gate is closed (I10).
    ServeOnlyAwake,
    /// Given modified pages are not reported (R1).
    ForgetGave,
    /// Taken modified pages are not reported (R2).
    ForgetTook,
    /// A quiet site gives a page that it did not capture (R3).
    GiveUncaptured,
    /// A site is quiet although mutating sections are open (the gate).
    NoDrain,
    /// What was given and taken before Close is forgotten.
    ForgetHistory,
    /// One invalidation of several is not sent, nor waited for.
    SkipInvalidation,
    /// The page is writable before all copies are gone.
    WriteEarly,
    /// What was known of a dead site's pages is forgotten when a second view comes before homes are
    /// whole (I21).
    ForgetMissing,
    /// A site with a copy does not say that its owner is gone (I21).
    ForgetReaders,
    /// A home expects what it took before and has in the store since (I14).
    TakeBackDropped,
    /// That a site died is forgotten with the view that told it, though no home heard of the page (I21).
    ForgetDeath,
    /// A home takes an old grant of a page that it gave up in a view whose homes never were whole (I14).
    TakeOldGrant,
    /// It is not said that a dead site was home to pages (I21).
    HomeUnnamed,
    /// Sections may begin between the caller's word to go back and the end of the round that it waits
    /// for (I19).
    OpenWhileDoomed,
    /// A site that went back takes part in rounds as if what it had given before were stable (I18).
    ForgetVoid,
    /// A site that goes back keeps copies of what was not stable (I18).
    KeepVoidCopies,
    /// A page that goes back keeps its version (I14).
    SameVersion,
    /// A page that tells of the cut is taken over the frame that the cut is to capture (I19).
    ForgetLeavingCapture,
    /// Homes are whole, and read from the store, while a round is being committed (I20).
    ReadBeforeCommit,
    /// What went back is read from the store while a round of others moves it (I20).
    ReadBeforeOver,
    /// Any answer will do for the last word to go back (I18).
    ForgetWhichBack,
    /// A site that leaves keeps its pages to itself.
    KeepOnLeaving,
    /// A site keeps answers that came before a grant that it then refused, and never has done (I22).
    KeepEarly,
    /// A site leaves before what it shared is stable (I18).
    LeaveUnsettled,
    /// The frame is dropped when the page is sent, not when it arrived (I15).
    DropFrame,
}
