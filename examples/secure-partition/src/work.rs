//! What the SPM has the partitions do, and what they have each other do: the words of their direct messages.

use crate::descriptor::Kind;

/// The registers x3 to x17 of a 64-bit direct message.
pub type Words = [u64; 15];

/// A direct request.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Order {
    /// SPM to partition: try everything that must be refused.
    TryRefusals,
    /// SPM to partition: move memory to the other one and back.
    Drive {
        /// How often.
        moves: u64,
        /// What the moves are made of.
        seed: u64,
    },
    /// Partition to partition: retrieve, check, change and give back.
    Borrow {
        /// The transaction.
        handle: u64,
        /// Its kind.
        kind: Kind,
        /// What the memory holds, unless it was zeroed; also the transaction's tag.
        seed: u64,
        /// It holds zeroes.
        zeroed: bool,
        /// Whether it may be written.
        writable: bool,
        /// Also try what is not allowed.
        probe: bool,
    },
}

impl Order {
    /// The message's words.
    #[must_use]
    pub fn encode(self) -> Words {
        let mut words = [0; 15];
        match self {
            Self::TryRefusals => words[0] = 1,
            Self::Drive { moves, seed } => words[..3].copy_from_slice(&[2, moves, seed]),
            Self::Borrow { handle, kind, seed, zeroed, writable, probe } => {
                let flags = u64::from(zeroed) | u64::from(writable) << 1 | u64::from(probe) << 2;
                words[..5].copy_from_slice(&[3, handle, kind as u64, seed, flags]);
            }
        }
        words
    }

    /// The order in a message.
    #[must_use]
    pub fn decode(words: &Words) -> Option<Self> {
        let kind = |word| [Kind::Donate, Kind::Lend, Kind::Share].into_iter().find(|kind| *kind as u64 == word);
        Some(match words[0] {
            1 => Self::TryRefusals,
            2 => Self::Drive { moves: words[1], seed: words[2] },
            3 => Self::Borrow {
                handle: words[1],
                kind: kind(words[2])?,
                seed: words[3],
                zeroed: words[4] & 1 != 0,
                writable: words[4] & 2 != 0,
                probe: words[4] & 4 != 0,
            },
            _ => return None,
        })
    }
}

/// What went wrong in a partition.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u64)]
pub enum Failure {
    /// An FF-A call failed; the detail is the call's function ID, with the error code in the upper half.
    Call = 1,
    /// Memory holds something else than it should; the detail is its address.
    Contents = 2,
    /// An access that must fault did not; the detail is its address.
    Permitted = 3,
    /// A descriptor from the SPM is not what it should be; the detail is the handle.
    Descriptor = 4,
    /// Something was refused with another error than the specification names, or not at all; the detail is the trial's
    /// number, with the error code in the upper half.
    Refusal = 5,
    /// The message made no sense.
    Order = 6,
}

/// The answer to an order: counts, or what went wrong and where.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Answer {
    /// All went well. To `TryRefusals`: the number of trials. To `Drive`: moves of each kind, and pages moved. To `Borrow`:
    /// the handle of the donation that brings the memory back.
    Done([u64; 4]),
    /// Something did not; the detail depends on what.
    Failed(Failure, u64),
}

impl Answer {
    /// The message's words.
    #[must_use]
    pub fn encode(self) -> Words {
        let mut words = [0; 15];
        match self {
            Self::Done(counts) => words[1..5].copy_from_slice(&counts),
            Self::Failed(failure, detail) => words[..2].copy_from_slice(&[failure as u64, detail]),
        }
        words
    }

    /// The answer in a message.
    #[must_use]
    pub fn decode(words: &Words) -> Self {
        use Failure::*;
        if words[0] == 0 {
            return Self::Done([words[1], words[2], words[3], words[4]]);
        }
        let all = [Call, Contents, Permitted, Descriptor, Refusal];
        let failure = all.into_iter().find(|failure| *failure as u64 == words[0]).unwrap_or(Failure::Order);
        Self::Failed(failure, words[1])
    }
}

/// A sequence of numbers, the same for the same seed (xorshift64*).
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    /// The sequence of `seed`.
    #[must_use]
    pub const fn new(seed: u64) -> Self {
        Self(seed | 1 << 63)
    }

    /// The next number.
    pub fn next_number(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// The next number, below `limit`, which is not 0.
    pub fn below(&mut self, limit: u64) -> u64 {
        (self.next_number() >> 16) % limit.max(1)
    }
}

/// What the word at `address` holds under `seed`.
#[must_use]
pub const fn pattern(seed: u64, address: u64) -> u64 {
    (address ^ seed).wrapping_mul(0x9e37_79b9_7f4a_7c15) ^ seed.rotate_left(17)
}

/// The seed of what a receiver writes in answer to `seed`.
#[must_use]
pub const fn answer_to(seed: u64) -> u64 {
    !seed
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_come_back_as_what_they_were() {
        let borrow =
            |kind, zeroed, writable, probe| Order::Borrow { handle: 5, kind, seed: u64::MAX, zeroed, writable, probe };
        for order in [
            Order::TryRefusals,
            Order::Drive { moves: 10, seed: 3 },
            borrow(Kind::Donate, true, false, false),
            borrow(Kind::Lend, false, true, false),
            borrow(Kind::Share, false, false, true),
        ] {
            assert_eq!(Order::decode(&order.encode()), Some(order));
        }
        assert_eq!(Order::decode(&[9; 15]), None);
        for answer in
            [Answer::Done([1, 2, 3, 4]), Answer::Failed(Failure::Refusal, 7), Answer::Failed(Failure::Order, 0)]
        {
            assert_eq!(Answer::decode(&answer.encode()), answer);
        }
    }
}
