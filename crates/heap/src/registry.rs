//! The container's type descriptions: looked up by number and by name, checked against the program's,
//! appended when a type is met for the first time. Storing the bytes is the arena's business. Read
//! [`Registry`] first.

use std::collections::HashMap;

use crate::error::OtherType;
use crate::types::{Describer, TypeDescription, TypeRef};

/// A type that the container does not know yet.
pub(crate) struct Fresh {
    key: u64,
    pub(crate) description: TypeDescription,
}

/// All types of a container.
#[derive(Default)]
pub(crate) struct Registry {
    types: Vec<TypeDescription>,
    numbers: HashMap<u64, u32>,
    /// Types of this program that are known to be as the container has them, by [`TypeRef::key`].
    checked: HashMap<u64, u32>,
}

impl Registry {
    /// Reads the type table: each record its length in four bytes, then the description.
    pub(crate) fn parse(mut bytes: &[u8], count: u32) -> Option<Registry> {
        let mut registry = Registry::default();
        for _ in 0..count {
            let (length, rest) = bytes.split_first_chunk::<4>()?;
            let length = u32::from_le_bytes(*length) as usize;
            let description = TypeDescription::decode(rest.get(..length)?)?;
            bytes = &rest[length..];
            registry.push(description)?;
        }
        bytes.is_empty().then_some(registry)
    }

    fn push(&mut self, description: TypeDescription) -> Option<u32> {
        let number = u32::try_from(self.types.len()).ok()?;
        if self.numbers.insert(description.id, number).is_some() {
            return None;
        }
        self.types.push(description);
        Some(number)
    }

    /// The type with this number.
    pub(crate) fn get(&self, number: u32) -> Option<&TypeDescription> {
        self.types.get(number as usize)
    }

    /// The number of the type with this identity.
    pub(crate) fn number(&self, id: u64) -> Option<u32> {
        self.numbers.get(&id).copied()
    }

    pub(crate) fn len(&self) -> u32 {
        self.types.len() as u32
    }

    /// The number of a type that was checked before.
    pub(crate) fn checked(&self, ty: TypeRef) -> Option<u32> {
        self.checked.get(&ty.key()).copied()
    }

    /// Compares `ty` and all types reachable from it with those of the container.
    ///
    /// Returns those that the container does not know yet, for [`Registry::adopt`].
    pub(crate) fn compare(&mut self, ty: TypeRef) -> Result<Vec<Fresh>, OtherType> {
        let mut queue = vec![ty];
        let mut fresh: Vec<Fresh> = Vec::new();
        let mut seen = std::collections::HashSet::new();
        let mut same = Vec::new();
        while let Some(ty) = queue.pop() {
            if self.checked.contains_key(&ty.key()) || !seen.insert(ty.key()) {
                continue;
            }
            let mut describer = Describer::default();
            let description = (ty.describe)(&mut describer);
            debug_assert_eq!(description.id, ty.id);
            match self.number(ty.id) {
                Some(number) if self.types[number as usize] == description => {
                    same.push((ty.key(), number));
                }
                Some(number) => {
                    return Err(self.other_type(
                        &self.types[number as usize],
                        &description,
                        &describer,
                    ));
                }
                None => match fresh.iter().find(|f| f.description.id == ty.id) {
                    Some(twin) if twin.description != description => {
                        return Err(self.other_type(&twin.description, &description, &describer));
                    }
                    Some(_) => {}
                    None => fresh.push(Fresh { key: ty.key(), description }),
                },
            }
            queue.extend(describer.mentioned);
        }
        self.checked.extend(same);
        Ok(fresh)
    }

    /// The record of a description in the type table.
    pub(crate) fn record(description: &TypeDescription) -> Vec<u8> {
        let body = description.encode();
        let mut record = (body.len() as u32).to_le_bytes().to_vec();
        record.extend(body);
        record
    }

    /// Takes in a description whose record was appended to the type table.
    pub(crate) fn adopt(&mut self, fresh: Fresh) {
        let number = self.push(fresh.description).expect("compared before");
        self.checked.insert(fresh.key, number);
    }

    fn other_type(
        &self,
        stored: &TypeDescription,
        program: &TypeDescription,
        describer: &Describer,
    ) -> OtherType {
        let show = |d: &TypeDescription, name_of: &dyn Fn(u64) -> String| {
            let mut s = String::new();
            d.show(&mut s, name_of).expect("writing to a string");
            s
        };
        let known = |id| self.number(id).map(|n| self.types[n as usize].name.clone());
        let in_program = |id| {
            let mentioned = describer.mentioned.iter().find(|m| m.id == id);
            mentioned.map(|m| (m.describe)(&mut Describer::default()).name)
        };
        OtherType {
            name: program.name.clone(),
            stored: show(stored, &|id| known(id).unwrap_or_else(|| format!("type {id:016x}"))),
            program: show(program, &|id| {
                in_program(id).unwrap_or_else(|| format!("type {id:016x}"))
            }),
        }
    }
}
