//! What the image is told on its command line: `bbm=auto|break|direct moves=N seed=N`.

use crate::console::say;
use crate::semihosting;
use stage2::{BbmLevel, Features};

/// The words of the command line.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    bbm: Bbm,
    /// Moves, of both CPUs together.
    pub moves: u64,
    /// What the moves are made of.
    pub seed: u64,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Bbm {
    Auto,
    Break,
    Direct,
}

impl Bbm {
    fn named(name: &str) -> Option<Self> {
        match name {
            "auto" => Some(Self::Auto),
            "break" => Some(Self::Break),
            "direct" => Some(Self::Direct),
            _ => None,
        }
    }
}

impl Options {
    /// Reads the command line. A word that makes no sense ends the machine, with a sentence that names it.
    pub fn read() -> Self {
        let mut buffer = [0; 256];
        let mut options = Self { bbm: Bbm::Auto, moves: 10_000, seed: 1 };
        for word in semihosting::command_line(&mut buffer).split_ascii_whitespace() {
            let understood = match word.split_once('=') {
                Some(("bbm", name)) => Bbm::named(name).map(|bbm| options.bbm = bbm),
                Some(("moves", number)) => number.parse().ok().map(|number| options.moves = number),
                Some(("seed", number)) => number.parse().ok().map(|number| options.seed = number),
                // The image's own name comes first.
                None => Some(()),
                Some(_) => None,
            };
            if understood.is_none() {
                refuse(format_args!("`{word}` is no option; there are bbm=auto|break|direct, moves=N and seed=N"));
            }
        }
        options
    }

    /// The features that the tables are made with.
    pub fn apply(&self, features: Features) -> Features {
        let bbm = match self.bbm {
            Bbm::Auto => features.bbm,
            Bbm::Break => BbmLevel::Level0,
            Bbm::Direct if features.bbm >= BbmLevel::Level2 => features.bbm,
            Bbm::Direct => {
                refuse(format_args!("bbm=direct needs FEAT_BBM level 2, and the CPUs have {:?}", features.bbm))
            }
        };
        features.with_bbm(bbm)
    }
}

/// How sizes change, in words.
pub fn describe(bbm: BbmLevel) -> &'static str {
    match bbm {
        BbmLevel::Level0 => "by break-before-make",
        BbmLevel::Level1 => "by the nT sequence (FEAT_BBM level 1)",
        BbmLevel::Level2 => "directly (FEAT_BBM level 2)",
        BbmLevel::Level3 => "directly (FEAT_BBM level 3)",
    }
}

fn refuse(reason: core::fmt::Arguments<'_>) -> ! {
    say!("{reason}");
    say!("end: refused");
    semihosting::exit(3);
}
