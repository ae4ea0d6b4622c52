//! Generates `Persist`, and `Root` where the type can be one. Read [`expand`] first.

use proc_macro2::TokenStream;
use quote::{format_ident, quote, quote_spanned};
use syn::spanned::Spanned;
use syn::{
    Data, DataEnum, DataStruct, DeriveInput, Error, Fields, Index, Lifetime, Member, Result, Type,
    parse_quote,
};

use crate::attributes::Attributes;
use crate::refuse;

/// A field: its name as text, how it is named in code, its type.
struct Field<'a> {
    name: String,
    member: Member,
    ty: &'a Type,
}

fn fields(fields: &Fields) -> Result<Vec<Field<'_>>> {
    let mut all = Vec::new();
    for (i, field) in fields.iter().enumerate() {
        let member = match &field.ident {
            Some(ident) => Member::Named(ident.clone()),
            None => Member::Unnamed(Index::from(i)),
        };
        let name = match &field.ident {
            Some(ident) => ident.to_string(),
            None => i.to_string(),
        };
        refuse::field_type(&name, &field.ty)?;
        all.push(Field { name, member, ty: &field.ty });
    }
    Ok(all)
}

/// The parts of an implementation that depend on whether it is a struct or an enum.
struct Body {
    pointers: TokenStream,
    tagged: TokenStream,
    check: TokenStream,
    shape: TokenStream,
}

pub(crate) fn expand(input: &DeriveInput) -> Result<TokenStream> {
    let attributes = Attributes::of(input)?;
    let name = &input.ident;
    let lifetimes: Vec<_> = input.generics.lifetimes().collect();
    if let Some(second) = lifetimes.get(1) {
        return Err(Error::new(
            second.lifetime.span(),
            format!(
                "`{name}` has more than one lifetime: a persistent type has at most one, the section's, which all its fields share"
            ),
        ));
    }
    if let Some(what) = &attributes.packed_or_aligned {
        return Err(Error::new(
            what.span(),
            format!(
                "`{name}` cannot live in a container with repr({what}): its fields stand at their natural alignment"
            ),
        ));
    }
    let brand = match lifetimes.first() {
        Some(l) => l.lifetime.clone(),
        None => Lifetime::new("'stead", name.span()),
    };
    let body = match &input.data {
        Data::Struct(data) => structure(input, &attributes, data, &brand)?,
        Data::Enum(data) => enumeration(input, &attributes, data, &brand)?,
        Data::Union(data) => {
            return Err(Error::new(
                data.union_token.span,
                format!(
                    "`{name}` cannot live in a container: what a union holds cannot be described. Use an enum with #[repr(C, u32)]"
                ),
            ));
        }
    };
    Ok(implementation(input, &attributes, &brand, body))
}

fn implementation(
    input: &DeriveInput,
    attributes: &Attributes,
    brand: &Lifetime,
    body: Body,
) -> TokenStream {
    let name = &input.ident;
    let rt = &attributes.runtime;
    let type_params: Vec<_> = input.generics.type_params().map(|t| t.ident.clone()).collect();
    let const_params: Vec<_> = input.generics.const_params().map(|c| c.ident.clone()).collect();
    let has_brand = input.generics.lifetimes().next().is_some();

    let mut generics = input.generics.clone();
    let where_clause = generics.make_where_clause();
    for t in &type_params {
        where_clause.predicates.push(parse_quote!(#t: #rt::Persist<#brand>));
    }
    let (_, type_generics, where_clause) = generics.split_for_impl();
    let mut impl_generics = input.generics.clone();
    if !has_brand {
        impl_generics.params.insert(0, parse_quote!(#brand));
    }
    let (impl_generics, _, _) = impl_generics.split_for_impl();
    let (own_generics, own_types, own_where) = input.generics.split_for_impl();

    let declared = &attributes.name;
    let mut id = quote!(#rt::name_id(#declared));
    for t in &type_params {
        id = quote!(#rt::combine_ids(#id, <#t as #rt::Persist<#brand>>::ID));
    }
    for c in &const_params {
        id = quote!(#rt::combine_ids(#id, #c as u64));
    }
    let full_name = if type_params.is_empty() && const_params.is_empty() {
        quote!(::std::string::String::from(#declared))
    } else {
        quote!({
            let arguments: ::std::vec::Vec<::std::string::String> = ::std::vec![
                #(<#type_params as #rt::Persist<#brand>>::name(),)*
                #(::std::string::ToString::to_string(&#const_params),)*
            ];
            ::std::format!("{}<{}>", #declared, arguments.join(", "))
        })
    };

    let root = if !type_params.is_empty() || !const_params.is_empty() {
        quote!()
    } else if has_brand {
        quote! {
            impl #rt::Root for #name<'static> {
                type At<'stead> = #name<'stead>;
            }
        }
    } else {
        quote! {
            impl #rt::Root for #name {
                type At<'stead> = #name;
            }
        }
    };
    // Where nothing is generic the layout is checked here and now, else where a value is placed.
    let checked_now = if type_params.is_empty() && const_params.is_empty() {
        let this = if has_brand { quote!(#name<'static>) } else { quote!(#name) };
        quote!(const _: () = <#this as #rt::Persist<'static>>::CHECK;)
    } else {
        quote!()
    };
    let Body { pointers, tagged, check, shape } = body;
    quote! {
        #[automatically_derived]
        unsafe impl #impl_generics #rt::Persist<#brand> for #name #type_generics #where_clause {
            const ID: u64 = #id;
            const POINTERS: bool = #pointers;
            const TAGGED: bool = #tagged;
            const CHECK: () = { #check };
            fn name() -> ::std::string::String {
                #full_name
            }
            fn describe(describer: &mut #rt::Describer) -> #rt::TypeDescription {
                let shape = #shape;
                describer.shaped::<Self>(shape)
            }
        }
        #root
        #checked_now
        const _: () = {
            trait PersistentTypesMayNotImplementDrop {}
            #[allow(clippy::drop_bounds, drop_bounds)]
            impl<T: ?Sized + ::core::ops::Drop> PersistentTypesMayNotImplementDrop for T {}
            impl #own_generics PersistentTypesMayNotImplementDrop for #name #own_types #own_where {}
        };
    }
}

/// The descriptions of fields whose offsets are given as expressions.
fn descriptions(rt: &syn::Path, fields: &[Field<'_>], offsets: &[TokenStream]) -> TokenStream {
    let all = fields.iter().zip(offsets).map(|(field, offset)| {
        let (name, ty) = (&field.name, field.ty);
        quote_spanned! { ty.span() =>
            #rt::FieldDescription {
                name: ::std::string::String::from(#name),
                offset: (#offset) as u64,
                ty: describer.refer::<#ty>(),
            }
        }
    });
    quote!(::std::vec![#(#all),*])
}

fn structure(
    input: &DeriveInput,
    attributes: &Attributes,
    data: &DataStruct,
    brand: &Lifetime,
) -> Result<Body> {
    let name = &input.ident;
    if !attributes.c {
        let found = if attributes.transparent { "repr(transparent)" } else { "no #[repr(C)]" };
        return Err(Error::new(
            name.span(),
            format!(
                "`{name}` has {found}: what lives in a container outlives this build, so its layout is a format. Add #[repr(C)]"
            ),
        ));
    }
    let rt = &attributes.runtime;
    let fields = fields(&data.fields)?;
    if fields.is_empty() {
        return Err(Error::new(
            name.span(),
            format!("`{name}` has no fields: a value without size has no place in a container"),
        ));
    }
    let types: Vec<_> = fields.iter().map(|f| f.ty).collect();
    let offsets: Vec<_> = fields
        .iter()
        .map(|f| {
            let member = &f.member;
            quote!(::core::mem::offset_of!(Self, #member))
        })
        .collect();
    let described = descriptions(rt, &fields, &offsets);
    let padding = format!(
        "`{name}` has padding between or behind its fields, whose bytes would be undefined: order the fields by alignment, or add explicit fields such as `_pad: [u8; 4]`"
    );
    Ok(Body {
        pointers: quote!(false #(|| <#types as #rt::Persist<#brand>>::POINTERS)*),
        tagged: quote!(false #(|| <#types as #rt::Persist<#brand>>::TAGGED)*),
        check: quote! {
            #(let () = <#types as #rt::Persist<#brand>>::CHECK;)*
            ::core::assert!(
                ::core::mem::size_of::<Self>() == 0 #(+ ::core::mem::size_of::<#types>())*,
                #padding
            );
        },
        shape: quote!(#rt::Shape::Struct(#described)),
    })
}

fn enumeration(
    input: &DeriveInput,
    attributes: &Attributes,
    data: &DataEnum,
    brand: &Lifetime,
) -> Result<Body> {
    let name = &input.ident;
    let rt = &attributes.runtime;
    let has_data = data.variants.iter().any(|v| !v.fields.is_empty());
    let integer = attributes.integer.as_ref().map(ToString::to_string);
    let tag_bytes = match (has_data, attributes.c, integer.as_deref()) {
        (true, true, Some("u32")) => 4u8,
        (true, ..) => {
            return Err(Error::new(
                name.span(),
                format!(
                    "`{name}` has variants with data: its layout is fixed by #[repr(C, u32)]. Add it"
                ),
            ));
        }
        (false, _, Some("u8")) => 1,
        (false, _, Some("u16")) => 2,
        (false, _, Some("u32")) => 4,
        (false, ..) => {
            return Err(Error::new(
                name.span(),
                format!(
                    "`{name}` has no fixed layout: add #[repr(u8)], #[repr(u16)] or #[repr(u32)]"
                ),
            ));
        }
    };
    if data.variants.is_empty() {
        return Err(Error::new(
            name.span(),
            format!("`{name}` has no variants, so no value to store"),
        ));
    }
    // By its full path: a program may have a type called `u32`.
    let tag = format_ident!("u{}", u32::from(tag_bytes) * 8);
    let tag = quote!(::core::primitive::#tag);

    let mut all_types: Vec<&Type> = Vec::new();
    let mut variants = Vec::new();
    for variant in &data.variants {
        let fields = fields(&variant.fields)?;
        all_types.extend(fields.iter().map(|f| f.ty));
        variants.push((variant, fields));
    }
    // repr(C, u32): the tag, then a union of repr(C) structs at the alignment of the largest.
    let payload = quote! {{
        let mut align = 1usize;
        #(if ::core::mem::align_of::<#all_types>() > align {
            align = ::core::mem::align_of::<#all_types>();
        })*
        ::core::mem::size_of::<#tag>().next_multiple_of(align)
    }};
    let mut previous = quote!(0 as #tag);
    let mut tags = Vec::new();
    let mut described = Vec::new();
    let mut ends = Vec::new();
    for (i, (variant, fields)) in variants.iter().enumerate() {
        let value = match &variant.discriminant {
            Some((_, expression)) => quote!((#expression) as #tag),
            None if i == 0 => quote!(0 as #tag),
            None => quote!(#previous + 1),
        };
        previous = quote!((#value));
        let types: Vec<_> = fields.iter().map(|f| f.ty).collect();
        let offsets: Vec<_> = (0..fields.len())
            .map(|n| {
                let before = &types[..n];
                let this = types[n];
                quote! {{
                    let mut at = #payload;
                    #(at = at.next_multiple_of(::core::mem::align_of::<#before>())
                        + ::core::mem::size_of::<#before>();)*
                    at.next_multiple_of(::core::mem::align_of::<#this>())
                }}
            })
            .collect();
        if let (Some(last), Some(ty)) = (offsets.last(), types.last()) {
            ends.push(quote!(#last + ::core::mem::size_of::<#ty>()));
        }
        let fields = descriptions(rt, fields, &offsets);
        let variant_name = variant.ident.to_string();
        described.push(quote! {
            #rt::VariantDescription {
                name: ::std::string::String::from(#variant_name),
                tag: (#value) as u64,
                fields: #fields,
            }
        });
        tags.push(value);
    }
    let size = format!("`{name}` does not have the size that repr(C, u32) gives it");
    let check = quote! {
        #(let () = <#all_types as #rt::Persist<#brand>>::CHECK;)*
        let mut end = ::core::mem::size_of::<#tag>();
        #(if #ends > end { end = #ends; })*
        ::core::assert!(
            ::core::mem::size_of::<Self>()
                == end.next_multiple_of(::core::mem::align_of::<Self>()),
            #size
        );
    };
    let pointers = quote!(false #(|| <#all_types as #rt::Persist<#brand>>::POINTERS)*);
    Ok(Body {
        tagged: pointers.clone(),
        pointers,
        check,
        shape: quote!(#rt::Shape::Enum {
            tag_bytes: #tag_bytes,
            variants: ::std::vec![#(#described),*],
        }),
    })
}
