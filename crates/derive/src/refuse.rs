//! Field types that can be seen to be addresses of the program, refused by name with what to use
//! instead. What cannot be seen here, such as a `Vec` that turns out to be std's, is refused by the
//! compiler, as it does not implement `Persist`. Read [`field_type`] first.

use proc_macro2::Span;
use syn::spanned::Spanned;
use syn::{Error, GenericArgument, Lifetime, PathArguments, Type, TypePath};

/// Refuses a field of this type, if it can be seen that it may not persist.
pub(crate) fn field_type(field: &str, ty: &Type) -> Result<(), Error> {
    let refuse = |span: Span, what: &str, instead: &str| {
        Err(Error::new(
            span,
            format!("field `{field}` cannot live in a container: {what}. {instead}"),
        ))
    };
    match ty {
        Type::Reference(r) => {
            if matches!(&*r.elem, Type::Path(p) if p.path.is_ident("str")) {
                return refuse(
                    ty.span(),
                    "a string slice is an address in this program",
                    "Use `Text<'s>`, which owns its characters",
                );
            }
            refuse(
                ty.span(),
                "a reference is an address in this program",
                "Use `Ptr<'s, T>` for an object that is shared, `Box<'s, T>` for one that is owned",
            )
        }
        Type::BareFn(_) => refuse(
            ty.span(),
            "a function pointer is an address in this program, and another one in its next build",
            "Use an enum that says which function is meant",
        ),
        Type::Ptr(_) => refuse(
            ty.span(),
            "a raw pointer is an address in this program",
            "Use `Ptr<'s, T>`, or `Option<Ptr<'s, T>>` where it may be null",
        ),
        Type::TraitObject(_) | Type::ImplTrait(_) => refuse(
            ty.span(),
            "a trait object holds the address of a table in this program",
            "Use an enum of the types that it can be",
        ),
        Type::Tuple(_) => refuse(
            ty.span(),
            "the layout of a tuple is not fixed",
            "Use a struct with #[derive(Persist)] #[repr(C)]",
        ),
        Type::Slice(_) => {
            refuse(ty.span(), "its size is not known", "Use `Vec<'s, T>` or an array")
        }
        Type::Never(_) | Type::Infer(_) | Type::Macro(_) => {
            refuse(ty.span(), "its layout cannot be seen here", "Name a type")
        }
        Type::Array(a) => field_type(field, &a.elem),
        Type::Paren(p) => field_type(field, &p.elem),
        Type::Group(g) => field_type(field, &g.elem),
        Type::Path(p) => path(field, p),
        _ => Ok(()),
    }
}

fn path(field: &str, ty: &TypePath) -> Result<(), Error> {
    let names: Vec<String> = ty.path.segments.iter().map(|s| s.ident.to_string()).collect();
    let Some(last) = ty.path.segments.last() else { return Ok(()) };
    let of_std = names.len() > 1 && matches!(names[0].as_str(), "std" | "alloc" | "core");
    let instead = match (last.ident.to_string().as_str(), of_std) {
        ("String" | "str" | "OsString" | "PathBuf" | "CString", _) => Some("Use `Text<'s>`"),
        ("Rc" | "Arc", _) => Some("Use `Ptr<'s, T>`: pointers may be copied, nothing is counted"),
        ("Weak", _) => Some("Use `Ptr<'s, T>`"),
        ("Cell" | "RefCell" | "OnceCell" | "UnsafeCell", _) => {
            Some("Use `Slot<'s, T>`, or `Mutex<'s, T>`")
        }
        ("BTreeMap" | "BTreeSet" | "HashSet" | "VecDeque" | "LinkedList" | "BinaryHeap", _) => {
            Some("Use `Vec<'s, T>` or `HashMap<'s, K, V>`")
        }
        ("Instant" | "SystemTime" | "Duration", _) => Some("Use a number of nanoseconds, `u64`"),
        (
            "AtomicU64" | "AtomicU32" | "AtomicUsize" | "AtomicI64" | "AtomicI32" | "AtomicBool",
            _,
        ) => Some("Use `Counter<'s>`"),
        ("AtomicPtr" | "NonNull", _) => Some("Use `Ptr<'s, T>`"),
        ("Box", true) => Some("Use stead's `Box<'s, T>`, or `Ptr<'s, T>`"),
        ("Vec", true) => Some("Use stead's `Vec<'s, T>`"),
        ("HashMap", _) if of_std || names[0] == "hashbrown" => {
            Some("Use stead's `HashMap<'s, K, V>`: an empty one of theirs points into this program")
        }
        ("Mutex", true) => Some("Use stead's `Mutex<'s, T>`"),
        ("RwLock", true) => Some("Use stead's `RwLock<'s, T>`"),
        _ => None,
    };
    if let Some(instead) = instead {
        let name = names.join("::");
        return Err(Error::new(
            ty.span(),
            format!(
                "field `{field}` cannot live in a container: `{name}` keeps addresses of this program, or has no fixed layout. {instead}"
            ),
        ));
    }
    if let PathArguments::AngleBracketed(arguments) = &last.arguments {
        for argument in &arguments.args {
            match argument {
                GenericArgument::Type(ty) => field_type(field, ty)?,
                GenericArgument::Lifetime(l) => lifetime(field, l)?,
                _ => {}
            }
        }
    }
    Ok(())
}

fn lifetime(field: &str, lifetime: &Lifetime) -> Result<(), Error> {
    if lifetime.ident == "static" {
        return Err(Error::new(
            lifetime.span(),
            format!(
                "field `{field}` cannot live in a container: `'static` is not the lifetime of this type. Use the type's own lifetime, so that what is stored belongs to the container"
            ),
        ));
    }
    Ok(())
}
