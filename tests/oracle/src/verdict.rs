//! What the oracle judges, and what it says when a judgement is bad.

use crate::event::Event;
use core::fmt;

macro_rules! verdicts {
    ($($(#[$doc:meta])* $name:ident = $number:literal: $says:literal,)*) => {
        /// One of the rules that a run is judged by.
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
        #[repr(u8)]
        pub enum Verdict {
            $($(#[$doc])* $name = $number,)*
        }

        impl Verdict {
            /// All verdicts, in the order of their numbers, from 1.
            pub const ALL: [Verdict; 11] = [$(Verdict::$name,)*];

            /// The rule, as a sentence.
            #[must_use]
            pub const fn rule(self) -> &'static str {
                match self {
                    $(Verdict::$name => $says,)*
                }
            }
        }
    };
}

verdicts! {
    /// Two entries of different size, or a contiguous and a plain one, for one address in one PE: forbidden at level 0,
    /// counted as a possible conflict abort at levels 1 and 2. A run that an operation leaves incomplete: forbidden at
    /// every level (D8.7.1).
    Size = 1: "no two entries of different size for one address",
    /// Two entries for one address that differ in output address, memory type, Shareability or Cacheability: forbidden at
    /// every level (R_WHZWS).
    Translation = 2: "no two entries of different output or memory type for one address",
    /// A walk that may end in a fault for an address that is mapped before and after the operation: forbidden at levels
    /// 2 and 3, and at 1 outside the nT sequence; counted at 0. Breaking an entry to write the same one again is
    /// forbidden everywhere, as is a hole that a failed operation leaves.
    Window = 3: "no fault for an address that stays mapped",
    /// When an operation has returned, no entry anywhere allows more than the table does.
    Stale = 4: "no entry that allows more than the table after the operation has returned",
    /// A freed frame that a walk cache or a visible descriptor leads to, or that software reads.
    Freed = 5: "no way into a freed frame",
    /// A table made reachable before all of its entries are guaranteed to be seen.
    Unfilled = 6: "a table is filled, and its entries ordered, before it is reachable",
    /// A write that no report covers, or a hardware dirty update that a change of the entry may lose (R_RTBRL).
    Dirty = 7: "no write is missed",
    /// A TLBI that does not cover what changed, whose hint can miss an entry that may exist (R_SQXYZ), or whose operand is
    /// malformed.
    Invalidation = 8: "an invalidation covers what changed",
    /// A new entry stored before the invalidation of the old one has completed, where the change needs
    /// break-before-make (R_KFLJB, R_KHRBC, R_WHZWS).
    EarlyMake = 9: "break, invalidate, complete, and only then make",
    /// The promises between the engine and its platform: no frame leaked, none freed twice, no plain store where another
    /// PE may write, nothing changed outside of the range that was asked for.
    Contract = 10: "the engine keeps its promises to the platform and to its caller",
    /// An access that the table allows, and that faults again although its fault was answered and nothing has changed since:
    /// what refuses it is held for ever.
    Progress = 11: "a fault that was answered does not come back for what a TLB has kept",
}

/// Which verdicts are given. All, unless a test wants to know what one of them is good for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Checks(u16);

impl Checks {
    /// Every verdict.
    pub const ALL: Checks = Checks(u16::MAX);

    /// All but `verdict`.
    #[must_use]
    pub const fn without(self, verdict: Verdict) -> Checks {
        Checks(self.0 & !(1 << verdict as u8))
    }

    /// Whether `verdict` is given.
    #[must_use]
    pub const fn includes(self, verdict: Verdict) -> bool {
        self.0 & 1 << verdict as u8 != 0
    }
}

/// A rule that was broken, and everything needed to see how.
#[derive(Clone, Debug)]
pub struct Violation {
    /// The rule.
    pub verdict: Verdict,
    /// The event that broke it.
    pub event: Event,
    /// First address concerned.
    pub start: u64,
    /// First address past those concerned.
    pub end: u64,
    /// What is wrong, with the entries in question.
    pub what: String,
    /// The recent events that have to do with the address, oldest first.
    pub history: Vec<Event>,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { verdict, event, start, end, what, history } = self;
        writeln!(f, "verdict {}: {}", *verdict as u8, verdict.rule())?;
        writeln!(f, "  at IPA {start:#x}-{end:#x}: {what}")?;
        writeln!(f, "  on event  {event}")?;
        writeln!(f, "  history of the address, oldest first:")?;
        for event in history {
            writeln!(f, "    {event}")?;
        }
        Ok(())
    }
}
