//! What stands above a type: `repr` and `persist`. Read [`Attributes`] first.

use syn::spanned::Spanned;
use syn::{DeriveInput, Error, Ident, LitStr, Path, Result, parse_quote};

/// The attributes that matter here.
pub(crate) struct Attributes {
    pub(crate) c: bool,
    pub(crate) packed_or_aligned: Option<Ident>,
    /// `u8` and the like.
    pub(crate) integer: Option<Ident>,
    pub(crate) transparent: bool,
    pub(crate) name: String,
    /// Where the runtime is.
    pub(crate) runtime: Path,
}

impl Attributes {
    pub(crate) fn of(input: &DeriveInput) -> Result<Attributes> {
        let mut found = Attributes {
            c: false,
            packed_or_aligned: None,
            integer: None,
            transparent: false,
            name: input.ident.to_string(),
            runtime: parse_quote!(::stead::__private),
        };
        for attribute in &input.attrs {
            if attribute.path().is_ident("repr") {
                attribute.parse_nested_meta(|meta| {
                    let Some(ident) = meta.path.get_ident() else { return Ok(()) };
                    match ident.to_string().as_str() {
                        "C" => found.c = true,
                        "transparent" => found.transparent = true,
                        "packed" | "align" => {
                            found.packed_or_aligned = Some(ident.clone());
                            if meta.input.peek(syn::token::Paren) {
                                let inside;
                                syn::parenthesized!(inside in meta.input);
                                inside.parse::<syn::LitInt>()?;
                            }
                        }
                        _ => found.integer = Some(ident.clone()),
                    }
                    Ok(())
                })?;
            } else if attribute.path().is_ident("persist") {
                attribute.parse_nested_meta(|meta| {
                    if meta.path.is_ident("name") {
                        let name: LitStr = meta.value()?.parse()?;
                        if name.value().is_empty() {
                            return Err(Error::new(name.span(), "a type's name may not be empty"));
                        }
                        found.name = name.value();
                        Ok(())
                    } else if meta.path.is_ident("crate") {
                        let mut path: Path = meta.value()?.call(Path::parse_mod_style)?;
                        path.segments.push(parse_quote!(__private));
                        found.runtime = path;
                        Ok(())
                    } else {
                        Err(Error::new(
                            meta.path.span(),
                            "expected `name = \"...\"` or `crate = path`",
                        ))
                    }
                })?;
            }
        }
        Ok(found)
    }
}
