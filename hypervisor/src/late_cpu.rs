//! CPUs that come to EL2 when the guest runs already, and have less than the ones that were compared before it started.

use crate::granule::Granule;
use stage2::Features;

/// What is to happen to a CPU that has less: the option `late-cpu`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Choice {
    /// It stays off.
    Refuse,
    /// All of the guest's memory is split to pages, so that no size has to change any more, and the CPU may join.
    Repaint,
}

/// What happens to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// It has all that is in use.
    Join,
    /// It may join once the table does what its errata ask for.
    Admit,
    /// The table is repainted first.
    Repaint,
    /// It stays off, for this reason.
    Refuse(&'static str),
}

/// Compares what a CPU has with what is in use.
pub fn answer(choice: Choice, in_use: Features, found: Features) -> Answer {
    let (in_use, found) = (in_use.used_by::<Granule>(), found.used_by::<Granule>());
    let common = in_use.weakest(found);
    if common == in_use {
        return Answer::Join;
    }
    if common.with_errata(in_use.errata) == in_use {
        return Answer::Admit;
    }
    // What the table's registers, or code that was chosen at boot, rely on can't be taken back from the other CPUs.
    if common.with_bbm(in_use.bbm).with_tlbi_range(in_use.tlbi_range).with_errata(in_use.errata) != in_use {
        return Answer::Refuse(
            "it lacks address bits, the granule, VMID bits, FEAT_LSE or hardware dirty state that are in use",
        );
    }
    match choice {
        Choice::Repaint => Answer::Repaint,
        Choice::Refuse => Answer::Refuse(
            "it has a lower FEAT_BBM level, or no FEAT_TLBIRANGE; late-cpu=repaint would split the guest's memory to pages \
             and let it join",
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use stage2::features::{BbmLevel, Errata, HardwareUpdate};
    use stage2::{Granule4KLpa2, Granule16K};

    const IN_USE: Features = Features::MINIMAL
        .with_pa_bits(40)
        .with_bbm(BbmLevel::Level2)
        .with_hardware_update(HardwareUpdate::AccessFlag)
        .with_tlbi_range(true)
        .with_lse(true);

    #[test]
    fn who_has_all_that_is_in_use_joins() {
        let more = IN_USE.with_bbm(BbmLevel::Level3).with_pa_bits(48).with_vmid_bits(16);
        for choice in [Choice::Refuse, Choice::Repaint] {
            assert_eq!(answer(choice, IN_USE, IN_USE), Answer::Join);
            assert_eq!(answer(choice, IN_USE, more), Answer::Join);
            let wide = more.with_pa_bits(52).with_granule::<Granule4KLpa2>(true).with_granule::<Granule16K>(true);
            assert_eq!(answer(choice, wide, more), Answer::Join, "nobody uses 52-bit addresses, or another granule");
        }
    }

    #[test]
    fn who_has_an_erratum_joins_once_the_table_works_around_it() {
        for choice in [Choice::Refuse, Choice::Repaint] {
            let found = IN_USE.with_errata(Errata::NONE.with_repeat_tlbi(true));
            assert_eq!(answer(choice, IN_USE, found), Answer::Admit);
            // The table does already.
            assert_eq!(answer(choice, found, IN_USE), Answer::Join);
            let less = found.with_pa_bits(36);
            assert!(matches!(answer(choice, IN_USE, less), Answer::Refuse(why) if why.contains("in use")));
        }
        let both = IN_USE.with_bbm(BbmLevel::Level0).with_errata(Errata::NONE.with_repeat_tlbi(true));
        assert_eq!(answer(Choice::Repaint, IN_USE, both), Answer::Repaint);
    }

    #[test]
    fn who_splits_by_other_means_joins_after_a_repaint_or_not_at_all() {
        for weak in [IN_USE.with_bbm(BbmLevel::Level0), IN_USE.with_tlbi_range(false)] {
            assert_eq!(answer(Choice::Repaint, IN_USE, weak), Answer::Repaint);
            assert!(matches!(answer(Choice::Refuse, IN_USE, weak), Answer::Refuse(why) if why.contains("FEAT_BBM")));
        }
    }

    #[test]
    fn who_lacks_what_is_built_in_never_joins() {
        for weak in [
            IN_USE.with_pa_bits(36),
            IN_USE.with_hardware_update(HardwareUpdate::None),
            IN_USE.with_lse(false).with_bbm(BbmLevel::Level0),
        ] {
            assert!(matches!(answer(Choice::Repaint, IN_USE, weak), Answer::Refuse(why) if why.contains("in use")));
        }
    }
}
