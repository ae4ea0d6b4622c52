//! Lists of document numbers as bytes: for each document the distance from the one before, seven
//! bits to a byte, low bits first. A list grows at its end only. Read [`append`] first.

/// Appends ascending document numbers to a list. `next` is one more than the last number that the
/// list holds already (0 for an empty list); returns it for the list as it is then.
pub fn append(list: &mut Vec<u8>, mut next: u32, documents: impl Iterator<Item = u32>) -> u32 {
    for document in documents {
        let mut distance = document - next;
        while distance >= 0x80 {
            list.push(distance as u8 | 0x80);
            distance >>= 7;
        }
        list.push(distance as u8);
        next = document + 1;
    }
    next
}

/// The document numbers of a list.
pub fn documents(list: &[u8]) -> impl Iterator<Item = u32> {
    let mut next = 0;
    let mut bytes = list.iter();
    std::iter::from_fn(move || {
        let mut distance = 0;
        let mut shift = 0;
        loop {
            let byte = *bytes.next()?;
            distance |= u32::from(byte & 0x7f) << shift;
            if byte < 0x80 {
                break;
            }
            shift += 7;
        }
        let document = next + distance;
        next = document + 1;
        Some(document)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_goes_in_comes_out() {
        let numbers = [0, 1, 2, 130, 131, 259, 260, 20_000, 3_000_000, u32::MAX - 1];
        let mut list = Vec::new();
        let mut next = 0;
        for part in numbers.chunks(3) {
            next = append(&mut list, next, part.iter().copied());
        }
        assert_eq!(next, u32::MAX);
        assert_eq!(documents(&list).collect::<Vec<_>>(), numbers);
        assert_eq!(list[..3], [0, 0, 0], "neighbours cost a byte each");
        assert_eq!(documents(&[]).count(), 0);
    }
}
