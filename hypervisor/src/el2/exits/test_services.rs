//! More calls for the payload, off unless `hypercalls=on`: what the tables look like, memory that runs out, stores that
//! are watched, and whether anything has changed that must not.

use crate::el2::base::{frames::FRAMES, own_map, registers::read_register};
use crate::el2::exits::arguments::{done, range};
use crate::el2::guest_memory::table_lock::{Table, TableLock};
use crate::el2::guest_memory::{self, watch, watch::Set};
use crate::el2::{mediation, saving};
use hypervisor::policy::Policy;
use hypervisor::range::PhysRange;
use hypervisor_abi::{function, permissions, status, watch as wanted};
use stage2::{Attributes, Ipa, PhysAddr};

/// How many there are.
pub const COUNT: i64 = 8;

/// Does call `id` with the arguments in `x`, and puts the results there.
pub fn call(id: u32, table: &TableLock, x: &mut [u64; 19]) -> Result<(), i64> {
    match id {
        function::LEAF => leaf(&table.read(), x),
        function::INTEGRITY => {
            (x[1], x[2], x[3]) = (own_map::integrity(), control_registers(), leaves(&table.read()));
            Ok(())
        }
        function::REFUSE_FRAMES => {
            x[1] = FRAMES.refuse(x[1], x[2]);
            Ok(())
        }
        function::RESUMED => {
            (x[1], x[2]) = (saving::times_resumed(), saving::times_stopped());
            Ok(())
        }
        function::REMAP => remap(table, x),
        function::WATCH => watch_range(x),
        function::WATCH_REARM => done(watch::rearm()),
        function::WATCH_TAKE => {
            let store = watch::take().ok_or(status::NOT_FOUND)?;
            (x[1], x[2], x[3], x[4], x[5]) = (store.ipa, store.va, store.pc, store.cpu, store.denied.into());
            Ok(())
        }
        _ => Err(status::NOT_SUPPORTED),
    }
}

fn leaf(table: &Table, x: &mut [u64; 19]) -> Result<(), i64> {
    let ipa = Ipa(x[1]);
    if !table.geometry().range().contains(ipa) {
        return Err(status::NOT_FOUND);
    }
    let leaf = table.walk(ipa).ok_or(status::NOT_FOUND)?;
    (x[1], x[2], x[3]) = (leaf.ipa.0, leaf.size as u64, allowed(&leaf));
    Ok(())
}

/// Where memory for tables runs out in between, the range stays away.
fn remap(table: &TableLock, x: &mut [u64; 19]) -> Result<(), i64> {
    let range = range(x[1], x[2])?;
    if !guest_memory::guest_memory().is_some_and(|memory| memory.is_ram_range(range)) {
        return Err(status::INVALID_PARAMETERS);
    }
    let now = || read_register!("cntpct_el0");
    let mut table = table.write();
    let begin = now();
    done(table.unmap(range))?;
    let between = now();
    done(table.map(range, PhysAddr(range.start().0), Attributes::RAM))?;
    (x[1], x[2]) = (between - begin, now() - between);
    Ok(())
}

/// A leaf's attributes, as the guest is told them.
fn allowed(leaf: &stage2::Leaf) -> u64 {
    let may = leaf.attributes.permissions;
    let bits = [
        (may.read, permissions::READ),
        (may.write, permissions::WRITE),
        (may.execute.at(false), permissions::EXECUTE),
        (leaf.attributes.memory.is_device(), permissions::DEVICE),
    ];
    bits.into_iter().filter(|(set, _)| *set).map(|(_, bit)| bit).sum()
}

/// One step of a hash: a bijection of the word, and of the hash so far.
fn add(hash: u64, word: u64) -> u64 {
    (hash.rotate_left(23) ^ word).wrapping_mul(0x9e37_79b9_7f4a_7c15)
}

fn leaves(table: &Table) -> u64 {
    table
        .leaves(table.geometry().range())
        .fold(0, |hash, leaf| [leaf.ipa.0, leaf.output.0, leaf.size as u64, allowed(&leaf)].into_iter().fold(hash, add))
}

/// What the calling CPU's EL2 and stage 2 are controlled by.
fn control_registers() -> u64 {
    let values = [
        read_register!("hcr_el2"),
        read_register!("cptr_el2"),
        read_register!("hstr_el2"),
        read_register!("mdcr_el2"),
        read_register!("cnthctl_el2"),
        read_register!("cntvoff_el2"),
        read_register!("vtcr_el2"),
        read_register!("vttbr_el2"),
        read_register!("sctlr_el2"),
        read_register!("tcr_el2"),
        read_register!("ttbr0_el2"),
        read_register!("mair_el2"),
        read_register!("vbar_el2"),
        read_register!("tpidr_el2"),
        read_register!("vpidr_el2"),
        read_register!("vmpidr_el2"),
    ];
    values.into_iter().fold(0, add)
}

fn watch_range(x: &[u64; 19]) -> Result<(), i64> {
    let policy = match x[3] {
        wanted::NONE => None,
        wanted::REPORT => Some(Policy::Report),
        wanted::DENY => Some(Policy::Deny),
        _ => return Err(status::INVALID_PARAMETERS),
    };
    let range = range(x[1], x[2])?;
    if !guest_memory::guest_memory().is_some_and(|memory| memory.is_ram_range(range)) {
        return Err(status::INVALID_PARAMETERS);
    }
    let range = PhysRange::new(range.start().0, range.end().0).ok_or(status::INVALID_PARAMETERS)?;
    // The lock of the policies is taken before the table's.
    match done(mediation::set_policy(range, policy))? {
        Set::Done => Ok(()),
        Set::NoRoom | Set::InFlight => Err(status::BUSY),
    }
}
