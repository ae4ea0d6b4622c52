//! Locks: pages without a body that are not given away while a thread has them (C8). Requests, grants and
//! loss are those of pages. Read [`Site::lock`] first.

use crate::config::Policy;
use crate::effect::Effect;
use crate::ids::{PageKey, Version};
use crate::message::Request;
use crate::site::{Site, Turn};

impl Site {
    pub(crate) fn lock(&mut self, key: PageKey, with: Option<PageKey>, turn: &mut Turn) {
        if self.policy(key) != Some(Policy::Lock) {
            return;
        }
        let page = self.load(key);
        if page.own {
            self.wait_for_own_lock(key, with);
            self.pump(key, turn);
        } else if let Some(busy) = self.busy.get_mut(key)
            && busy.want.is_some()
        {
            busy.lock_waiters += 1;
        } else {
            self.want(key, true, 0, with, turn);
        }
    }

    pub(crate) fn unlock(&mut self, key: PageKey, turn: &mut Turn) {
        let mut page = self.load(key);
        if self.policy(key) != Some(Policy::Lock) || !page.locked {
            return;
        }
        page.locked = false;
        self.table.set(key, &page);
        self.pump(key, turn);
    }

    pub(crate) fn have_lock(&mut self, key: PageKey, turn: &mut Turn) {
        let mut page = self.load(key);
        page.locked = true;
        self.table.set(key, &page);
        turn.out.push(Effect::Locked { lock: key });
    }

    /// Threads that waited for another site wait here now.
    pub(crate) fn wait_in_own_line(&mut self, key: PageKey) {
        let busy = self.busy.entry(key);
        let with = busy.want.take().and_then(|w| w.with);
        let waiters = core::mem::take(&mut busy.lock_waiters);
        self.wait_for_own_lock(key, with);
        for _ in 0..waiters {
            self.wait_for_own_lock(key, None);
        }
    }

    /// A thread here waits in line with the requests of other sites (I17).
    pub(crate) fn wait_for_own_lock(&mut self, key: PageKey, with: Option<PageKey>) {
        let (from, number) = (self.me, self.next_number());
        self.busy.entry(key).queue.push(Request {
            page: key,
            run: 0,
            from,
            number,
            write: true,
            have: Version::ZERO,
            expect: Version::ZERO,
            hops: 0,
            sure: false,
            with,
        });
    }
}
