//! A hostile guest, at random: see `world/hostile.rs`.

mod world;

use proptest::prelude::*;

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn no_script_breaks_a_rule(bytes in proptest::collection::vec(any::<u8>(), 0..600)) {
        world::hostile::run(&bytes);
    }
}
