//! Measurements instead of the suite: what the hypervisor costs its guest, in instructions, seen from the guest.
//!
//! For QEMU with `-icount shift=0` and a counter of 1 GHz, where one tick of CNTVCT_EL0 is one instruction of any
//! exception level: a difference of two readings is exact, and every run prints the same. The hypervisor must run with
//! `hypercalls=on` and without `icount=on`, which adds up the time at EL2 and so takes some.
//!
//! One line a row, in the order of the rows:
//!
//! ```text
//! bench: ROW n=COUNT mean=X.XX median=N max=N unit=call|page
//! count: NAME VALUE
//! bench: end
//! ```
//!
//! `filter=TEXT` measures the rows whose name contains TEXT, and counts of these alone; `filter=vcpus` first writes of all CPUs at
//! once, and nothing else.
//!
//! `call`: the instruction that exits to EL2 and all that is executed before the next one. `page`: the same for one or two
//! calls on many pages, by their number.

mod area;
mod bystander;
mod counts;
mod measure;
mod paths;
mod rows;
pub mod strategy;
mod vcpus;

use crate::calls::hypercall;
use crate::machine::{cpu, memory, smp};
use crate::options;

/// Measures everything. The last line is `bench: end`, unless something did not work.
pub fn run() {
    smp::init();
    let result = if !hypercall::present() {
        Err("there is no hypervisor")
    } else if smp::restore().is_err() {
        Err("a CPU did not start")
    } else {
        let mark = memory::mark();
        // An interrupt would be measured along.
        let together = options::get().filter == "vcpus";
        let rows = cpu::without_interrupts(if together { vcpus::print } else { rows::print });
        memory::release_to(&mark);
        // A filter is for rows.
        if options::get().filter.is_empty() { rows.and_then(|()| counts::print()) } else { rows }
    };
    match result {
        Ok(()) => println!("bench: end"),
        Err(why) => println!("bench: failed: {why}"),
    }
}
