//! What happened, and whether that is what had to.

use crate::baseline::Baseline;
use crate::console::say;
use crate::platform::{FRAMES, count};
use crate::runner::{DENIED, WINDOWS_SEEN};
use crate::shared::{MOVED, Spm};
use core::sync::atomic::{AtomicBool, Ordering};
use secure_partition::Partition;
use secure_partition::layout::MEMORY;
use stage2::{BbmLevel, Event};

static FAILED: AtomicBool = AtomicBool::new(false);

/// A partition reported a failure.
pub fn fail() {
    FAILED.store(true, Ordering::Release);
}

/// Prints the counts and checks them. Says whether all is well.
pub fn print(spm: &Spm) -> bool {
    let [donated, lent, shared, pages] = MOVED.each_ref().map(|count| count.load(Ordering::Acquire));
    let moves = donated + lent + shared;
    say!("{moves} moves: {donated} donations there and back, {lent} loans, {shared} shares; {pages} pages");
    say!(
        "splits {} (runs {}), collapses {} (runs {}), TLBI by IPA or range {}, TLBI by VMID {}",
        count(Event::Split2M),
        count(Event::SplitRun),
        count(Event::Collapse2M),
        count(Event::CollapseRun),
        count(Event::TlbiIpaBroadcast) + count(Event::TlbiRangeBroadcast),
        count(Event::TlbiVmallE1Broadcast) + count(Event::TlbiVmallS12E1Broadcast),
    );
    let windows = count(Event::InvalidWindow);
    let seen = WINDOWS_SEEN.load(Ordering::Acquire);
    say!(
        "invalid windows {windows}, seen by the partitions {seen}; accesses denied {}",
        DENIED.load(Ordering::Acquire)
    );
    let tables = &spm.service.world().tables;
    let now = Baseline::of(tables);
    say!("table frames in use {} at first, {} now", FRAMES - spm.baseline.frames, FRAMES - now.frames);
    let (pending, owned) = spm.service.with_relayer(|relayer| {
        (relayer.pending(), Partition::ALL.map(|partition| relayer.ledger().pages_of(partition) as u64))
    });
    let bbm = tables.of(Partition::First).read().bbm_level();

    let mut passed = !FAILED.load(Ordering::Acquire);
    let mut check = |what: &str, holds: bool| {
        if !holds {
            say!("wrong: {what}");
        }
        passed &= holds;
    };
    check("not as many moves as were asked for", moves == spm.options.moves / 2 * 2);
    check("transactions are left over", pending == 0);
    check("memory did not go back to its owner", owned == [MEMORY.pages() / 2; 2]);
    check("table frames were lost", now.frames == spm.baseline.frames);
    check("the tables are not what they were", now.census == spm.baseline.census);
    if bbm == BbmLevel::Level0 {
        check("break-before-make opened no window", windows > 0 || moves == 0);
    } else {
        check("there were invalid windows", windows == 0 && seen == 0);
    }
    passed
}
