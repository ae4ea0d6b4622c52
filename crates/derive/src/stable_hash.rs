//! Generates `StableHash`. Read [`expand`] first.

use proc_macro2::TokenStream;
use quote::{format_ident, quote};
use syn::{Data, DeriveInput, Error, Fields, Ident, Result, parse_quote};

use crate::attributes::Attributes;

pub(crate) fn expand(input: &DeriveInput) -> Result<TokenStream> {
    let attributes = Attributes::of(input)?;
    let name = &input.ident;
    let rt = &attributes.runtime;
    let body = match &input.data {
        Data::Struct(data) => {
            let (pattern, bound) = pattern(&data.fields);
            quote! {
                let Self #pattern = self;
                #(#rt::StableHash::stable_hash(#bound, hasher);)*
            }
        }
        Data::Enum(data) => {
            let arms = data.variants.iter().enumerate().map(|(i, variant)| {
                let variant_name = &variant.ident;
                let (pattern, bound) = pattern(&variant.fields);
                let i = i as u64;
                quote! {
                    Self::#variant_name #pattern => {
                        hasher.write_u64(#i);
                        #(#rt::StableHash::stable_hash(#bound, hasher);)*
                    }
                }
            });
            quote!(match self { #(#arms)* })
        }
        Data::Union(_) => {
            return Err(Error::new(
                name.span(),
                "a union cannot be hashed: what it holds is not known",
            ));
        }
    };
    let mut generics = input.generics.clone();
    let params: Vec<_> = generics.type_params().map(|t| t.ident.clone()).collect();
    let where_clause = generics.make_where_clause();
    for t in params {
        where_clause.predicates.push(parse_quote!(#t: #rt::StableHash));
    }
    let (impl_generics, type_generics, where_clause) = generics.split_for_impl();
    Ok(quote! {
        #[automatically_derived]
        impl #impl_generics #rt::StableHash for #name #type_generics #where_clause {
            fn stable_hash(&self, hasher: &mut #rt::StableHasher) {
                #body
            }
        }
    })
}

/// A pattern that binds all fields, and the names bound.
fn pattern(fields: &Fields) -> (TokenStream, Vec<Ident>) {
    let bound: Vec<Ident> = (0..fields.len()).map(|i| format_ident!("field_{i}")).collect();
    let pattern = match fields {
        Fields::Named(named) => {
            let names = named.named.iter().map(|f| &f.ident);
            quote!({ #(#names: #bound),* })
        }
        Fields::Unnamed(_) => quote!((#(#bound),*)),
        Fields::Unit => quote!(),
    };
    (pattern, bound)
}
