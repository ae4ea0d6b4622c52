//! One word for each way in which something is refused, for programs that decide by it and for the answers of the command.
//! The words stay the same from version to version; `docs/command.md` lists them. Read [`SnapshotError::word`] first.

use stead_store::{
    BackupError as CopyError, CommitError, ReadError, RestoreError, SalvageError, word_of,
};

use crate::error::{
    BackupError, ContainerError, OpenError, QuotaError, SnapshotError, StabiliseError,
};

impl SnapshotError {
    /// In which way it was refused: `no_snapshot`, `exists`, `bad_name`, `in_use` or another of those in `docs/command.md`.
    #[must_use]
    pub fn word(&self) -> &'static str {
        use stead_store::SnapshotError as Store;
        match self {
            SnapshotError::Store(Store::Unknown { .. }) => "no_snapshot",
            SnapshotError::Store(Store::BadName { .. }) => "bad_name",
            SnapshotError::Store(Store::Exists { .. }) | SnapshotError::Taken { .. } => "exists",
            SnapshotError::Store(Store::InUse { .. }) | SnapshotError::InUse { .. } => "in_use",
            SnapshotError::Store(Store::NoContainer { .. }) => "no_container",
            SnapshotError::Store(Store::Failed(error)) => error.word(),
            SnapshotError::Container(error) => error.word(),
            SnapshotError::Stabilise(error) => error.word(),
            SnapshotError::NotStable { source, .. } => source.word(),
            SnapshotError::AddressesTaken { .. } => "addresses_taken",
            SnapshotError::Read(error) => read_word(error),
            SnapshotError::Store(_) => "system",
        }
    }
}

impl StabiliseError {
    /// In which way it was refused: `no_space`, `quota`, `not_permitted`, `damaged` or `system`.
    #[must_use]
    pub fn word(&self) -> &'static str {
        match self {
            StabiliseError::Commit(error) => error.word(),
            StabiliseError::ContainerFull { .. } => "quota",
            _ => "system",
        }
    }
}

impl QuotaError {
    /// In which way it was refused: `no_container`, `no_space`, `quota` or another of those in `docs/command.md`.
    #[must_use]
    pub fn word(&self) -> &'static str {
        match self {
            QuotaError::Container(error) => error.word(),
            QuotaError::Store(error) => error.word(),
            QuotaError::Forked => "system",
        }
    }
}

impl ContainerError {
    /// In which way it was refused: `no_container`, `bad_name`, `damaged`, `addresses_taken`, `no_addresses` or `system`.
    #[must_use]
    pub fn word(&self) -> &'static str {
        match self {
            error if error.is_damage() => "damaged",
            ContainerError::Missing { .. } => "no_container",
            ContainerError::Name(_) => "bad_name",
            ContainerError::Quota { source, .. } => source.word(),
            ContainerError::Reserve { .. } => "addresses_taken",
            ContainerError::AddressSpace { .. } | ContainerError::OutOfAddresses(_) => {
                "no_addresses"
            }
            _ => "system",
        }
    }
}

impl BackupError {
    /// In which way it was refused: `no_snapshot`, `damaged`, `no_space`, or as [`OpenError::kind`] says.
    #[must_use]
    pub fn word(&self) -> &'static str {
        match self {
            BackupError::Open(error) => OpenError::kind_of_store(error).word(),
            error if error.is_unknown() => "no_snapshot",
            error if error.is_damage() => "damaged",
            BackupError::Copy(CopyError::Write(error)) => word_of(error),
            _ => "system",
        }
    }
}

fn read_word(error: &ReadError) -> &'static str {
    match error {
        ReadError::Damaged(_) => "damaged",
        ReadError::Io { source, .. } => word_of(source),
    }
}

/// In which way a restoration was refused: `bad_backup`, `wrong_base`, `exists`, `in_use`, `newer`, `no_space`,
/// `not_permitted` or `system`.
#[must_use]
pub fn restore_word(error: &RestoreError) -> &'static str {
    match error {
        RestoreError::UnderWay { .. } => "in_use",
        RestoreError::NotABackup
        | RestoreError::Cut { .. }
        | RestoreError::Damaged { .. }
        | RestoreError::Nothing => "bad_backup",
        RestoreError::WrongBase { .. } | RestoreError::NotFirst { .. } => "wrong_base",
        RestoreError::Exists { .. } | RestoreError::MountPoint { .. } => "exists",
        RestoreError::Newer { .. } => "newer",
        RestoreError::Create(error) => create_word(error),
        RestoreError::Write(error) => CommitError::word(error),
        RestoreError::Io { source, .. } | RestoreError::Input(source) => word_of(source),
        RestoreError::Unsound(_) => "system",
    }
}

/// In which way a salvage was refused: `exists`, `no_space`, or as [`OpenError::kind`] says.
#[must_use]
pub fn salvage_word(error: &SalvageError) -> &'static str {
    match error {
        SalvageError::Open(error) => OpenError::kind_of_store(error).word(),
        SalvageError::InTheWay { .. } => "exists",
        SalvageError::Write(error) => error.word(),
        SalvageError::Io { source, .. } => word_of(source),
    }
}

fn create_word(error: &stead_store::CreateError) -> &'static str {
    use stead_store::CreateError as Create;
    match error {
        Create::Exists { .. } | Create::NotEmpty { .. } | Create::NotADirectory { .. } => "exists",
        Create::NotWritable { .. } => "not_permitted",
        Create::Held(_) => "in_use",
        Create::NoSpace { .. } => "no_space",
        Create::BadOptions(_) => "system",
        Create::Io { source, .. } => word_of(source),
    }
}
