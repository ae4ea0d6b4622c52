//! The simulated processor: one load or store at a time, resolved as hardware and kernel would, or
//! turned into a fault event. Read [`Touch`] first.

use stead_model::PAGE_SIZE;

use super::{Entry, Machine, Sim, lock, page_of};
use crate::sys::{Mode, RawFault};

/// How a touch of memory ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Touch {
    /// Done; this is the word at the address, after a store the one stored.
    Done(u64),
    /// The thread waits, and an event says so. To be tried again once it is woken.
    Waits,
    /// Nothing is mapped there: the process dies.
    NoAccess,
    /// The page is damaged: the process dies.
    Poisoned,
}

impl Sim {
    /// Loads the 8-byte word at `address`.
    ///
    /// # Panics
    /// If the address is not a multiple of 8.
    #[must_use]
    pub fn load(&self, address: usize) -> Touch {
        self.touch(address, None, true)
    }

    /// Stores an 8-byte word at `address`.
    ///
    /// # Panics
    /// If the address is not a multiple of 8.
    #[must_use]
    pub fn store(&self, address: usize, word: u64) -> Touch {
        self.touch(address, Some(word), true)
    }

    /// Stores an 8-byte word as direct input does: the kernel resolves the fault without one, so that it is
    /// counted but not recorded.
    ///
    /// # Panics
    /// If the address is not a multiple of 8.
    #[must_use]
    pub fn store_directly(&self, address: usize, word: u64) -> Touch {
        self.touch(address, Some(word), false)
    }

    fn touch(&self, address: usize, word: Option<u64>, recorded: bool) -> Touch {
        assert!(address.is_multiple_of(8), "aligned words only");
        let mut machine = self.lock();
        let page = page_of(address);
        if let Err(touch) = machine.resolve(page, word.is_some(), recorded) {
            return touch;
        }
        let (map, frame) = machine.map_at(page).expect("a page in the table is mapped");
        let mut frames = lock(&map.frames);
        let image = frames.get_mut(&frame).expect("a page in the table has a frame");
        let bytes = &mut image[address - page..][..8];
        if let Some(word) = word {
            bytes.copy_from_slice(&word.to_ne_bytes());
        }
        Touch::Done(u64::from_ne_bytes((&*bytes).try_into().expect("eight bytes")))
    }
}

impl Machine {
    /// Makes a page ready to be touched, or says why it is not.
    fn resolve(&mut self, page: usize, write: bool, recorded: bool) -> Result<(), Touch> {
        let Some((map, frame)) = self.map_at(page) else { return Err(Touch::NoAccess) };
        let has_frame = lock(&map.frames).contains_key(&frame);
        let was_protected = match self.entries.get(&page) {
            Some(Entry::Poisoned) => return Err(Touch::Poisoned),
            Some(Entry::Present { protected }) => {
                if *protected && write {
                    // Resolved by the kernel alone: asynchronous write-protection.
                    self.entries.insert(page, Entry::Present { protected: false });
                    self.log_fault(page, recorded);
                }
                return Ok(());
            }
            Some(Entry::Marker) => true,
            None => false,
        };
        match map.mode {
            Mode::Faulted => {
                self.awaited.insert(page);
                let minor = has_frame;
                self.events.push_back(RawFault { address: page, write, minor, protected: false });
                Err(Touch::Waits)
            }
            Mode::Resident => {
                if !has_frame {
                    lock(&map.frames).insert(frame, vec![0; PAGE_SIZE].into());
                }
                self.entries.insert(page, Entry::Present { protected: was_protected && !write });
                Ok(())
            }
        }
    }
}
