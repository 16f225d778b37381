//! Sentences that are made while the guest runs: they take no memory of the heap's, which may be used up then.

use core::fmt::{self, Display, Write};
use core::ops::Deref;

/// Bytes that a sentence may have; what is longer ends with dots.
const MOST: usize = 512;
const DOTS: &str = "...";

/// A text of limited length.
#[derive(Clone)]
pub struct Sentence {
    bytes: [u8; MOST],
    used: usize,
}

impl Sentence {
    /// What `text` is shown as.
    pub fn of(text: impl Display) -> Self {
        let mut sentence = Self { bytes: [0; MOST], used: 0 };
        if write!(sentence, "{text}").is_err() {
            // The rest has no room: the dots have, as `write_str` leaves so much.
            let end = sentence.used + DOTS.len();
            if let Some(room) = sentence.bytes.get_mut(sentence.used..end) {
                room.copy_from_slice(DOTS.as_bytes());
                sentence.used = end;
            }
        }
        sentence
    }
}

impl Write for Sentence {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let room = MOST - DOTS.len() - self.used;
        let fits = (0..=room.min(text.len())).rev().find(|&end| text.is_char_boundary(end)).unwrap_or(0);
        let (start, end) = (self.used, self.used + fits);
        if let (Some(to), Some(from)) = (self.bytes.get_mut(start..end), text.as_bytes().get(..fits)) {
            to.copy_from_slice(from);
            self.used = end;
        }
        if fits == text.len() { Ok(()) } else { Err(fmt::Error) }
    }
}

impl Deref for Sentence {
    type Target = str;

    fn deref(&self) -> &str {
        // Whole characters only have been copied, so it is text.
        self.bytes.get(..self.used).and_then(|bytes| core::str::from_utf8(bytes).ok()).unwrap_or(DOTS)
    }
}

impl Display for Sentence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self)
    }
}

impl fmt::Debug for Sentence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&**self, f)
    }
}

impl From<&str> for Sentence {
    fn from(text: &str) -> Self {
        Self::of(text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sentence_is_what_it_says() {
        assert_eq!(&*Sentence::of(format_args!("{} of {:#x}", 1, 2)), "1 of 0x2");
        let error = stage2::Error::OutOfMemory { ipa: stage2::Ipa(0x1000) };
        assert_eq!(*Sentence::of(error), *error.to_string());
    }

    #[test]
    fn one_that_is_too_long_ends_with_dots_and_whole_characters() {
        for padding in 0..4 {
            let long = "x".repeat(padding) + &"€".repeat(MOST);
            let sentence = Sentence::from(long.as_str());
            let kept = sentence.strip_suffix(DOTS).unwrap();
            assert!(long.starts_with(kept) && (MOST - 6..=MOST).contains(&sentence.len()), "{}", sentence.len());
        }
        assert_eq!(Sentence::of("y".repeat(MOST - DOTS.len())).len(), MOST - DOTS.len());
    }
}
