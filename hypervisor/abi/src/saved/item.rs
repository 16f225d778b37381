//! The parts of a machine's state: bytes that only what has saved them understands.
//!
//! Each begins at a multiple of 8 bytes: its tag (2 bytes), zero (2 bytes), its length (4 bytes), then its bytes.

/// Bytes before those of an item.
pub const ITEM_HEADER: usize = 8;

/// Adds an item behind the first `used` bytes. Says whether there was room; if not, nothing has changed.
#[must_use]
pub fn push_item(payload: &mut [u8], used: &mut usize, tag: u16, bytes: &[u8]) -> bool {
    let start = *used + ITEM_HEADER;
    let end = start.saturating_add(bytes.len().next_multiple_of(ITEM_HEADER));
    let (Ok(length), Some(place)) = (u32::try_from(bytes.len()), payload.get_mut(*used..end)) else { return false };
    let (header, body) = place.split_at_mut(ITEM_HEADER);
    header.copy_from_slice(&(u64::from(tag) | u64::from(length) << 32).to_le_bytes());
    let (body, rest) = body.split_at_mut(bytes.len());
    body.copy_from_slice(bytes);
    rest.fill(0);
    *used = end;
    true
}

/// The items of a payload.
#[must_use]
pub const fn items(payload: &[u8]) -> Items<'_> {
    Items(payload)
}

/// See [`items`].
#[derive(Clone, Debug)]
pub struct Items<'p>(&'p [u8]);

impl<'p> Iterator for Items<'p> {
    /// The tag and the bytes; nothing where the payload has no item.
    type Item = Option<(u16, &'p [u8])>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.0.is_empty() {
            return None;
        }
        let item = split(self.0);
        self.0 = item.map_or(&[], |(_, _, rest)| rest);
        Some(item.map(|(tag, bytes, _)| (tag, bytes)))
    }
}

/// The first item, and what follows it.
fn split(payload: &[u8]) -> Option<(u16, &[u8], &[u8])> {
    let (header, rest) = payload.split_first_chunk()?;
    let header = u64::from_le_bytes(*header);
    let (tag, zero, length) = (header as u16, (header >> 16) as u16, (header >> 32) as usize);
    let (body, rest) = rest.split_at_checked(length.checked_next_multiple_of(ITEM_HEADER)?)?;
    let (bytes, padding) = body.split_at_checked(length)?;
    let clean = zero == 0 && padding.iter().all(|&byte| byte == 0);
    clean.then_some((tag, bytes, rest))
}
