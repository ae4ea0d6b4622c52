//! A cell in a shared object, read in any section and changed in exclusive ones. It has no state of its
//! own: that the changes are alone is proven when compiling, as GhostCell does. Read [`Slot`] first.

use std::cell::UnsafeCell;
use std::fmt;
use std::marker::PhantomData;

use crate::section::{Brand, Exclusive, ReadSlots, Tx};
use crate::types::{Describer, Persist, Shape, TypeDescription, combine_ids, name_id};

/// A value that sections read and exclusive sections change. As large as the value.
///
/// The token stands for the contents of all slots at once: `&` of a token borrows them for reading,
/// `&mut` of the one [`Exclusive`] for change. While the content of one slot is borrowed for change no
/// other can be read, and the bare [`Tx`], which can be had meanwhile by [`Slot::with_mut`], opens none.
#[repr(transparent)]
pub struct Slot<'s, T>(UnsafeCell<T>, Brand<'s>);

impl<'s, T> Slot<'s, T> {
    /// A slot that holds `value`.
    #[inline]
    pub const fn new(value: T) -> Self {
        Slot(UnsafeCell::new(value), PhantomData)
    }

    /// The content, for as long as the token is not borrowed for change.
    #[inline(always)]
    pub fn get<'a, K: ReadSlots<'s>>(&'a self, _token: &'a K) -> &'a T {
        // SAFETY: a `&mut` to the content exists only while the `Exclusive` of this brand is borrowed
        // for change, or this slot is (`content_mut`): both exclude this call. Sections of other brands on
        // other threads change slots only when alone in the container.
        unsafe { &*self.0.get() }
    }

    /// The content, to be changed. No other slot can be opened while it is borrowed.
    #[inline]
    pub fn get_mut<'a>(&'a self, token: &'a mut Exclusive<'s>) -> &'a mut T {
        token.note(self.0.get());
        // SAFETY: the one token of the only section in the container is borrowed for 'a, so nobody else
        // refers to the content of any slot.
        unsafe { &mut *self.0.get() }
    }

    /// Puts `value` in, and drops what was there.
    #[inline]
    pub fn set(&self, token: &mut Exclusive<'s>, value: T) {
        *self.get_mut(token) = value;
    }

    /// Puts `value` in, and returns what was there.
    #[inline]
    pub fn replace(&self, token: &mut Exclusive<'s>, value: T) -> T {
        std::mem::replace(self.get_mut(token), value)
    }

    /// Changes the content by `f`, which gets what it needs to allocate and change beside it.
    pub fn with_mut<U>(
        &self,
        token: &mut Exclusive<'s>,
        f: impl FnOnce(&mut T, &Tx<'s>) -> U,
    ) -> U {
        token.note(self.0.get());
        let token: &Exclusive<'s> = token;
        // SAFETY: the token is borrowed for change until `f` is done; `f` gets only a Tx of it, with
        // which no slot can be opened, so nobody else refers to this content.
        f(unsafe { &mut *self.0.get() }, token)
    }

    /// The content of a slot that is held for change itself.
    #[inline]
    pub fn content_mut(&mut self) -> &mut T {
        self.0.get_mut()
    }

    /// The content of a slot that is not in the container.
    #[inline]
    pub fn into_inner(self) -> T {
        self.0.into_inner()
    }
}

impl<T> fmt::Debug for Slot<'_, T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Slot(..)")
    }
}

// SAFETY: the content is reached with a token only, and tokens stay on their thread; between sections
// values of persistent types may be handed from thread to thread (condition of Persist). A reference
// that was got with a token may be shared with scoped threads if T allows.
unsafe impl<T: Sync> Sync for Slot<'_, T> {}

// SAFETY: transparent around T.
unsafe impl<'s, T: Persist<'s>> Persist<'s> for Slot<'s, T> {
    const ID: u64 = combine_ids(name_id("Slot"), T::ID);
    const POINTERS: bool = T::POINTERS;
    const TAGGED: bool = T::TAGGED;
    const CHECK: () = T::CHECK;
    fn name() -> String {
        format!("Slot<{}>", T::name())
    }
    fn describe(d: &mut Describer) -> TypeDescription {
        let inner = d.refer::<T>();
        d.shaped::<Self>(Shape::Slot(inner))
    }
}
