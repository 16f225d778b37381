//! The command line, read and refused.

use super::*;
use proptest::prelude::*;

#[test]
fn an_empty_line_leaves_the_defaults() {
    assert_eq!(Options::parse(" \t "), Ok(Options::default()));
}

#[test]
fn every_option_is_read() {
    let line = "log=debug bbm=break leaves=pages grant-dma=0xa003e00 grant-dma=A003C00 mediate=virtio_mmio@a000000,0xa000200 \
                mediate=a000000 store=a003200 icount=on crash=overflow manager=off \
                hypercalls=on late-cpu=repaint weaken=0x1 drop-dirty=1000 resume=on leave-out=VBAR_EL1 unmarked=completed";
    assert_eq!(
        Options::parse(line),
        Ok(Options {
            log: LevelFilter::Debug,
            bbm: SizeChangeChoice::BreakBeforeMake,
            leaves: Leaves::Pages,
            grant_dma: Vec::from([0xa00_3e00, 0xa00_3c00]),
            mediate: Vec::from([0xa00_0000, 0xa00_0200]),
            store: Some(0xa00_3200),
            icount: true,
            crash: Some(Crash::Overflow),
            manager: Some(false),
            hypercalls: true,
            late_cpu: late_cpu::Choice::Repaint,
            weaken: Some(1),
            drop_dirty: Some(1000),
            resume: true,
            leave_out: Some("VBAR_EL1".to_string()),
            unmarked: Some(Unmarked::Completed),
        })
    );
}

/// Goes through the lists that users are shown: each value in them is taken, and changes something or is the
/// default.
#[test]
fn the_listed_values_are_the_legal_ones() {
    for key in &KEYS {
        let mut seen = Vec::new();
        for value in key.values.split('|').filter(|value| !value.contains(' ')) {
            let options = Options::parse(&alloc::format!("{}={value}", key.name)).unwrap();
            assert!(!seen.contains(&options), "{}={value} does what another value does", key.name);
            seen.push(options);
        }
    }
}

#[test]
fn the_last_of_two_counts() {
    assert_eq!(Options::parse("bbm=nt bbm=direct").unwrap().bbm, SizeChangeChoice::Direct);
}

#[test]
fn an_unknown_key_is_named_and_the_known_ones_are_listed() {
    let sentence = Options::parse("log=info lgo=info").unwrap_err().to_string();
    assert!(sentence.contains("no option lgo=info"), "{sentence}");
    assert!(KEYS.iter().all(|key| sentence.contains(key.name) && sentence.contains(key.values)), "{sentence}");
}

#[test]
fn a_bad_value_is_named_and_the_legal_ones_are_listed() {
    for word in [
        "log=loud",
        "log",
        "log=",
        "bbm=2",
        "leaves=4k",
        "mediate=",
        "mediate=a000000,",
        "mediate=virtio_mmio@",
        "mediate=virtio@a000000",
        "icount=yes",
        "crash=off",
        "manager=1",
        "weaken=x",
        "drop-dirty=0",
    ] {
        let error = Options::parse(word).unwrap_err();
        let name = word.split('=').next();
        let values = KEYS.iter().find(|key| Some(key.name) == name).unwrap().values;
        assert_eq!(error, OptionError::BadValue { word: word.to_string(), values });
        assert!(error.to_string().contains(word) && error.to_string().contains(values));
    }
}

#[test]
fn an_address_is_unsigned_and_has_64_bits() {
    for word in ["grant-dma=", "grant-dma=0x", "grant-dma=+1", "grant-dma=-1", "grant-dma=10000000000000000"] {
        assert!(matches!(Options::parse(word), Err(OptionError::BadValue { .. })), "{word}");
    }
    assert_eq!(Options::parse("grant-dma=ffffffffffffffff").unwrap().grant_dma, [u64::MAX]);
}

proptest! {
    #[test]
    fn no_line_panics(line in "\\PC*", words in "((log|bbm|grant-dma|crash)=?[a-z0-9x+-]{0,18} ?){0,8}") {
        let _ = Options::parse(&line);
        let _ = Options::parse(&words);
    }
}
