//! A page's contents in one number, to tell whether it has changed.

/// 64-bit words in a page.
pub const WORDS: usize = 512;
/// Chains that do not wait for each other's multiplications.
const LANES: usize = 8;
/// Odd, so that a multiplication loses nothing.
const FACTOR: u64 = 0x9e37_79b9_7f4a_7c15;

/// The hash of a page. A change of one word, or of words of one lane alone, always changes it: each step is a bijection of
/// the word and of the lane. For any other change the chance to miss it is about 2^-64; this is no defence against a
/// guest that means to deceive.
#[inline]
pub fn page_hash(page: &[u64; WORDS]) -> u64 {
    let mut lanes = [FACTOR; LANES];
    for words in page.as_chunks::<LANES>().0 {
        for (lane, word) in lanes.iter_mut().zip(words) {
            *lane = (*lane ^ word).wrapping_mul(FACTOR);
            // Carries go up only; this brings them down again.
            *lane ^= *lane >> 32;
        }
    }
    lanes.iter().fold(0, |hash: u64, lane| (hash ^ lane).wrapping_mul(FACTOR).rotate_left(29))
}

#[cfg(test)]
mod tests {
    extern crate std;

    use super::*;
    use proptest::prelude::*;

    #[test]
    fn every_bit_counts() {
        let page: [u64; WORDS] = core::array::from_fn(|n| (n as u64).wrapping_mul(0x1234_5678_9abc_def1));
        let before = page_hash(&page);
        for word in 0..WORDS {
            for bit in 0..64 {
                let mut other = page;
                other[word] ^= 1 << bit;
                assert_ne!(page_hash(&other), before, "bit {bit} of word {word}");
            }
        }
    }

    proptest! {
        #[test]
        fn changes_of_several_words_count(changes in proptest::collection::btree_map(0..WORDS, 1u64.., 1..20)) {
            let zero = [0; WORDS];
            let mut page = zero;
            for (word, value) in &changes {
                page[*word] = *value;
            }
            prop_assert_ne!(page_hash(&page), page_hash(&zero));
            // The same words elsewhere are other contents.
            if let Some((&word, &value)) = changes.first_key_value() {
                let mut moved = page;
                moved[word] = 0;
                moved[(word + 1) % WORDS] = value;
                if moved != page {
                    prop_assert_ne!(page_hash(&moved), page_hash(&page));
                }
            }
        }
    }
}
