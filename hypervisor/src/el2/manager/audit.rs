//! The proof that no dirty page is missed: with the guest frozen, every page is hashed and compared with what it was.

use crate::el2::manager::dirty::Region;
use hypervisor_abi::manager::Findings;
use hypervisor_abi::page_hash::{WORDS, page_hash};
use stage2::{Ipa, PAGE_SIZE};

/// Hashes all pages of a region, compares them with the last time, and adds to `findings`. What was reported since is
/// forgotten.
///
/// # Safety
///
/// The guest is frozen: nobody writes its memory meanwhile.
pub unsafe fn compare(region: &mut Region, findings: &mut Findings) {
    let mut page = region.range.start();
    for index in 0..region.hashes.len() {
        // SAFETY: the page is the guest's RAM, mapped where it lies, and by the caller's promise nobody writes it.
        let hash = page_hash(unsafe { &*(page.0 as *const [u64; WORDS]) });
        let reported = region.was_reported(page);
        if let Some(before) = region.hashes.get_mut(index) {
            count(findings, page, core::mem::replace(before, hash) != hash, reported);
        }
        page = page.offset(PAGE_SIZE);
    }
    region.since.fill(0);
}

fn count(findings: &mut Findings, page: Ipa, changed: bool, reported: bool) {
    findings.changed += u64::from(changed);
    findings.reported += u64::from(reported);
    match (changed, reported) {
        (true, false) => {
            findings.missed += 1;
            findings.first_missed = findings.first_missed.or(Some(page.0));
        }
        (false, true) => findings.over_reported += 1,
        _ => {}
    }
}
