//! What types look like in memory, as data: descriptions that are stored in the container and outlive
//! the program that made them (catalogue A3, A8, D3). Plain values, no memory is touched. Read
//! [`Persist`] first, then [`TypeDescription`].

use std::fmt;
use std::num::NonZero;

/// May live in a container: its layout is fixed, described, and holds no address of this program.
/// Implemented by `#[derive(Persist)]`; `'s` is the section's brand.
///
/// # Safety
/// Layout: `describe` tells the truth about size, alignment (at most 16) and every field, and the
/// layout does not depend on the compiler. Contents: no address other than that of persistent objects
/// branded `'s`; no drop glue but that of the heap's own types; and, as what one thread stores others
/// read in later sections, the type is fit to be sent to and shared with other threads, whatever its
/// auto traits say. `ID` is built from the name alone, `POINTERS` and `TAGGED` are true if in doubt.
#[diagnostic::on_unimplemented(
    message = "`{Self}` cannot live in a container",
    label = "is an address in this program, or has no layout of its own",
    note = "use stead's own types: `Ptr` or `Box` for references and std's Box, Rc and Arc; `Text` for `String` and `&str`; `Vec`, `HashMap`, `Mutex`, `RwLock`, `Counter` of stead for those of std; an enum for `dyn` and function pointers",
    note = "for a type of your own: #[derive(Persist)] #[repr(C)]; all its fields take the same lifetime `'s`"
)]
pub unsafe trait Persist<'s>: Sized {
    /// A hash of the declared name and the names of generic arguments.
    const ID: u64;
    /// Whether a value holds an address.
    const POINTERS: bool;
    /// Whether it holds an enum of which a variant holds an address.
    const TAGGED: bool;
    /// Evaluated wherever a value is placed into a container: fails to compile if the layout is not
    /// sound.
    const CHECK: () = ();

    /// The declared name with generic arguments.
    fn name() -> String;

    /// The layout, with [`Describer::refer`] called for each type that it mentions.
    fn describe(describer: &mut Describer) -> TypeDescription;
}

/// A type that can be the root of a container: `At` is the same type in every section.
#[diagnostic::on_unimplemented(
    message = "`{Self}` cannot be the root of a container",
    note = "the root is a type with #[derive(Persist)] and no type parameters, named with 'static: `Index<'static>`"
)]
pub trait Root: 'static {
    /// The type with the brand `'s`.
    type At<'s>: Persist<'s>;
}

/// How a scalar is written.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
#[allow(missing_docs)]
pub enum Scalar {
    Unsigned = 1,
    Signed = 2,
    Float = 3,
    Bool = 4,
    Char = 5,
    /// An unsigned or signed integer that is never zero.
    NonZero = 6,
}

/// The layout of a type. Other types are mentioned by their number `ID`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct TypeDescription {
    /// See [`Persist::ID`].
    pub id: u64,
    /// See [`Persist::name`].
    pub name: String,
    /// In bytes.
    pub size: u64,
    /// In bytes.
    pub align: u64,
    /// What the bytes mean.
    pub shape: Shape,
}

/// What the bytes of a value mean.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Shape {
    /// A number, truth value or character of the type's size.
    Scalar(Scalar),
    /// Fields at fixed offsets.
    Struct(Vec<FieldDescription>),
    /// A tag of `tag_bytes` at offset 0 and the fields of the variant that it names.
    Enum {
        /// 1, 2 or 4.
        tag_bytes: u8,
        /// All of them.
        variants: Vec<VariantDescription>,
    },
    /// `count` elements, one after the other.
    Array {
        /// Their type.
        element: u64,
        /// How many.
        count: u64,
    },
    /// An address: of an object that is shared.
    Ptr(u64),
    /// An address: of an object that this one owns.
    Box(u64),
    /// The type mentioned, or zeros for nothing.
    Maybe(u64),
    /// Address, length, capacity: elements that this one owns.
    Vec(u64),
    /// As a vector of bytes; they are UTF-8.
    Text(u64),
    /// Address of the control bytes, mask, items, room left, seed. Mentions the type of the entries.
    Map(u64),
    /// As the type mentioned.
    Slot(u64),
    /// Eight zero bytes that are the lock's identity, and the type mentioned at `offset`.
    Lock {
        /// What the lock protects.
        value: u64,
        /// Where it is.
        offset: u64,
    },
    /// Eight bytes that change atomically.
    Counter,
}

/// A field of a struct or variant.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct FieldDescription {
    /// As declared; a number in a tuple struct.
    pub name: String,
    /// In bytes from the start of the whole value.
    pub offset: u64,
    /// Its type.
    pub ty: u64,
}

/// A variant of an enum.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct VariantDescription {
    /// As declared.
    pub name: String,
    /// Value of the tag.
    pub tag: u64,
    /// Its fields.
    pub fields: Vec<FieldDescription>,
}

/// A type that a description mentions, ready to be described in turn.
#[derive(Clone, Copy)]
pub(crate) struct TypeRef {
    pub(crate) id: u64,
    pub(crate) describe: fn(&mut Describer) -> TypeDescription,
}

impl TypeRef {
    pub(crate) fn of<'s, T: Persist<'s>>() -> TypeRef {
        TypeRef { id: T::ID, describe: T::describe }
    }

    /// Tells types of this program apart, also those that share a name: two types whose `describe` are
    /// one function have one description.
    #[inline(always)]
    pub(crate) fn key(self) -> u64 {
        self.id ^ (self.describe as usize as u64).rotate_left(32)
    }
}

/// Collects the types that a description mentions.
#[derive(Default)]
pub struct Describer {
    pub(crate) mentioned: Vec<TypeRef>,
}

impl fmt::Debug for Describer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Describer").field("mentioned", &self.mentioned.len()).finish()
    }
}

impl Describer {
    /// Mentions a type.
    pub fn refer<'s, T: Persist<'s>>(&mut self) -> u64 {
        self.mentioned.push(TypeRef::of::<T>());
        T::ID
    }

    /// Describes `T` with the shape given.
    #[must_use]
    pub fn shaped<'s, T: Persist<'s>>(&self, shape: Shape) -> TypeDescription {
        TypeDescription {
            id: T::ID,
            name: T::name(),
            size: size_of::<T>() as u64,
            align: align_of::<T>() as u64,
            shape,
        }
    }
}

/// Hash of a declared name, for [`Persist::ID`]; 64-bit FNV-1a.
#[must_use]
pub const fn name_id(name: &str) -> u64 {
    let bytes = name.as_bytes();
    let mut hash = 0xcbf2_9ce4_8422_2325_u64;
    let mut i = 0;
    while i < bytes.len() {
        hash = (hash ^ bytes[i] as u64).wrapping_mul(0x0100_0000_01b3);
        i += 1;
    }
    hash
}

/// The identity of a generic type with one more argument.
#[must_use]
pub const fn combine_ids(generic: u64, argument: u64) -> u64 {
    let x = (generic.rotate_left(5) ^ argument).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    x ^ (x >> 29)
}

macro_rules! scalars {
    ($($t:ty = $scalar:ident),* $(,)?) => { $(
        // SAFETY: fixed layout on the platforms that Stead has (64-bit, little-endian); no addresses.
        unsafe impl<'s> Persist<'s> for $t {
            const ID: u64 = name_id(stringify!($t));
            const POINTERS: bool = false;
            const TAGGED: bool = false;
            fn name() -> String {
                stringify!($t).into()
            }
            fn describe(d: &mut Describer) -> TypeDescription {
                d.shaped::<Self>(Shape::Scalar(Scalar::$scalar))
            }
        }
    )* };
}
scalars! {
    u8 = Unsigned, u16 = Unsigned, u32 = Unsigned, u64 = Unsigned, u128 = Unsigned, usize = Unsigned,
    i8 = Signed, i16 = Signed, i32 = Signed, i64 = Signed, i128 = Signed, isize = Signed,
    f32 = Float, f64 = Float, bool = Bool, char = Char,
    NonZero<u8> = NonZero, NonZero<u16> = NonZero, NonZero<u32> = NonZero, NonZero<u64> = NonZero,
    NonZero<u128> = NonZero, NonZero<usize> = NonZero, NonZero<i8> = NonZero, NonZero<i16> = NonZero,
    NonZero<i32> = NonZero, NonZero<i64> = NonZero, NonZero<i128> = NonZero, NonZero<isize> = NonZero,
}

// SAFETY: an array is its elements one after the other.
unsafe impl<'s, T: Persist<'s>, const N: usize> Persist<'s> for [T; N] {
    const ID: u64 = combine_ids(combine_ids(name_id("[]"), T::ID), N as u64);
    const POINTERS: bool = T::POINTERS;
    const TAGGED: bool = T::TAGGED;
    const CHECK: () = T::CHECK;
    fn name() -> String {
        format!("[{}; {N}]", T::name())
    }
    fn describe(d: &mut Describer) -> TypeDescription {
        let element = d.refer::<T>();
        d.shaped::<Self>(Shape::Array { element, count: N as u64 })
    }
}

/// A type of which the all-zero pattern is no value, so that `Option` of it needs no room of its own.
///
/// # Safety
/// `Option<Self>` has Self's size, and `None` is all zeros: as the language guarantees for `NonZero`
/// and for transparent wrappers of `NonNull`.
#[diagnostic::on_unimplemented(
    message = "`Option<{Self}>` cannot live in a container: where the compiler keeps `None` is not fixed",
    note = "only `Ptr`, `Box` and the NonZero integers may stand in an Option; otherwise declare an enum with #[derive(Persist)] #[repr(C, u32)]"
)]
pub unsafe trait Niche {}

macro_rules! niches {
    ($($t:ty)*) => { $(
        // SAFETY: std documents the representation of Option<NonZero>.
        unsafe impl Niche for NonZero<$t> {}
    )* };
}
niches! { u8 u16 u32 u64 u128 usize i8 i16 i32 i64 i128 isize }

// SAFETY: by Niche the layout is that of T, with zeros for None.
unsafe impl<'s, T: Persist<'s> + Niche> Persist<'s> for Option<T> {
    const ID: u64 = combine_ids(name_id("Option"), T::ID);
    const POINTERS: bool = T::POINTERS;
    const TAGGED: bool = T::TAGGED;
    const CHECK: () = {
        let () = T::CHECK;
        assert!(size_of::<Self>() == size_of::<T>());
    };
    fn name() -> String {
        format!("Option<{}>", T::name())
    }
    fn describe(d: &mut Describer) -> TypeDescription {
        let inner = d.refer::<T>();
        d.shaped::<Self>(Shape::Maybe(inner))
    }
}

impl fmt::Display for TypeDescription {
    /// The declaration as one would write it, with offsets; mentioned types by number.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.show(f, &|id| format!("type {id:016x}"))
    }
}

impl TypeDescription {
    /// Displays the description, with mentioned types shown by `name_of`.
    pub(crate) fn show(
        &self,
        f: &mut dyn fmt::Write,
        name_of: &dyn Fn(u64) -> String,
    ) -> fmt::Result {
        write!(f, "{} ({} bytes, aligned to {})", self.name, self.size, self.align)?;
        let fields = |f: &mut dyn fmt::Write, fields: &[FieldDescription], indent| {
            for field in fields {
                write!(f, "\n{indent}{:4}  {}: {}", field.offset, field.name, name_of(field.ty))?;
            }
            Ok(())
        };
        match &self.shape {
            Shape::Struct(all) => fields(f, all, "  "),
            Shape::Enum { tag_bytes, variants } => {
                write!(f, ", tag of {tag_bytes} bytes")?;
                for v in variants {
                    write!(f, "\n  {} = {}", v.name, v.tag)?;
                    fields(f, &v.fields, "    ")?;
                }
                Ok(())
            }
            _ => Ok(()),
        }
    }

    /// The bytes that stand in the container; equal exactly for equal descriptions.
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut out = Vec::new();
        put_u64(&mut out, self.id);
        put_str(&mut out, &self.name);
        put_u64(&mut out, self.size);
        put_u64(&mut out, self.align);
        match &self.shape {
            Shape::Scalar(s) => out.extend([1, *s as u8]),
            Shape::Struct(fields) => {
                out.push(2);
                put_fields(&mut out, fields);
            }
            Shape::Enum { tag_bytes, variants } => {
                out.extend([3, *tag_bytes]);
                put_u64(&mut out, variants.len() as u64);
                for v in variants {
                    put_str(&mut out, &v.name);
                    put_u64(&mut out, v.tag);
                    put_fields(&mut out, &v.fields);
                }
            }
            Shape::Array { element, count } => {
                out.push(4);
                put_u64(&mut out, *element);
                put_u64(&mut out, *count);
            }
            Shape::Ptr(t) => put_one(&mut out, 5, *t),
            Shape::Box(t) => put_one(&mut out, 6, *t),
            Shape::Maybe(t) => put_one(&mut out, 7, *t),
            Shape::Vec(t) => put_one(&mut out, 8, *t),
            Shape::Text(t) => put_one(&mut out, 9, *t),
            Shape::Map(t) => put_one(&mut out, 10, *t),
            Shape::Slot(t) => put_one(&mut out, 11, *t),
            Shape::Lock { value, offset } => {
                put_one(&mut out, 12, *value);
                put_u64(&mut out, *offset);
            }
            Shape::Counter => out.push(13),
        }
        out
    }

    /// Reads what [`TypeDescription::encode`] wrote; `None` if these bytes are not that.
    pub(crate) fn decode(bytes: &[u8]) -> Option<TypeDescription> {
        let mut r = Reader(bytes);
        let id = r.u64()?;
        let name = r.str()?;
        let size = r.u64()?;
        let align = r.u64()?;
        let shape = match r.u8()? {
            1 => Shape::Scalar(match r.u8()? {
                1 => Scalar::Unsigned,
                2 => Scalar::Signed,
                3 => Scalar::Float,
                4 => Scalar::Bool,
                5 => Scalar::Char,
                6 => Scalar::NonZero,
                _ => return None,
            }),
            2 => Shape::Struct(r.fields()?),
            3 => {
                let tag_bytes = r.u8()?;
                let count = r.count()?;
                let variants = (0..count)
                    .map(|_| {
                        Some(VariantDescription {
                            name: r.str()?,
                            tag: r.u64()?,
                            fields: r.fields()?,
                        })
                    })
                    .collect::<Option<_>>()?;
                Shape::Enum { tag_bytes, variants }
            }
            4 => Shape::Array { element: r.u64()?, count: r.u64()? },
            5 => Shape::Ptr(r.u64()?),
            6 => Shape::Box(r.u64()?),
            7 => Shape::Maybe(r.u64()?),
            8 => Shape::Vec(r.u64()?),
            9 => Shape::Text(r.u64()?),
            10 => Shape::Map(r.u64()?),
            11 => Shape::Slot(r.u64()?),
            12 => Shape::Lock { value: r.u64()?, offset: r.u64()? },
            13 => Shape::Counter,
            _ => return None,
        };
        r.0.is_empty().then_some(TypeDescription { id, name, size, align, shape })
    }
}

fn put_u64(out: &mut Vec<u8>, n: u64) {
    out.extend(n.to_le_bytes());
}

fn put_one(out: &mut Vec<u8>, tag: u8, ty: u64) {
    out.push(tag);
    put_u64(out, ty);
}

fn put_str(out: &mut Vec<u8>, s: &str) {
    put_u64(out, s.len() as u64);
    out.extend(s.as_bytes());
}

fn put_fields(out: &mut Vec<u8>, fields: &[FieldDescription]) {
    put_u64(out, fields.len() as u64);
    for field in fields {
        put_str(out, &field.name);
        put_u64(out, field.offset);
        put_u64(out, field.ty);
    }
}

struct Reader<'a>(&'a [u8]);

impl Reader<'_> {
    fn u8(&mut self) -> Option<u8> {
        let (first, rest) = self.0.split_first()?;
        self.0 = rest;
        Some(*first)
    }

    fn u64(&mut self) -> Option<u64> {
        let (first, rest) = self.0.split_first_chunk::<8>()?;
        self.0 = rest;
        Some(u64::from_le_bytes(*first))
    }

    /// A count of things that take at least a byte each, so that a damaged one cannot ask for more
    /// memory than there are bytes.
    fn count(&mut self) -> Option<usize> {
        let n = usize::try_from(self.u64()?).ok()?;
        (n <= self.0.len()).then_some(n)
    }

    fn str(&mut self) -> Option<String> {
        let n = self.count()?;
        let (s, rest) = self.0.split_at(n);
        self.0 = rest;
        Some(std::str::from_utf8(s).ok()?.to_owned())
    }

    fn fields(&mut self) -> Option<Vec<FieldDescription>> {
        let n = self.count()?;
        (0..n)
            .map(|_| {
                Some(FieldDescription { name: self.str()?, offset: self.u64()?, ty: self.u64()? })
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_encoded_decodes_and_no_prefix_does() {
        let field = |name: &str, ty| FieldDescription { name: name.into(), offset: 8, ty };
        let d = TypeDescription {
            id: 7,
            name: "Shape".into(),
            size: 24,
            align: 8,
            shape: Shape::Enum {
                tag_bytes: 4,
                variants: vec![
                    VariantDescription { name: "None".into(), tag: 0, fields: vec![] },
                    VariantDescription { name: "Some".into(), tag: 5, fields: vec![field("0", 9)] },
                ],
            },
        };
        let bytes = d.encode();
        assert_eq!(TypeDescription::decode(&bytes), Some(d));
        for n in 0..bytes.len() {
            assert_eq!(TypeDescription::decode(&bytes[..n]), None);
        }
    }
}
