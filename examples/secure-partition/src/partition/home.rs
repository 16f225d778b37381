//! What both contexts of a partition use: its buffers, and things in its first block that must never fail it.

use crate::ffa;
use arm_ffa::Interface;
use arm_ffa::interface_args::{RxTxAddr, SuccessArgs};
use arm_ffa::partition_info::PartitionInfoGetFlags;
use arm_ffa::{Uuid, Version};
use core::arch::asm;
use core::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use secure_partition::work::{Answer, Failure};
use secure_partition::{Partition, layout, service};
use stage2::PAGE_SIZE;

/// A page that both contexts use all the time, in the block whose pages are moved away and come back.
#[repr(C)]
struct Shared {
    buffers_taken: AtomicBool,
    steps: [AtomicU64; layout::CPUS],
    /// A function: it adds one to its argument.
    code: [u32; 2],
}

/// A partition, from inside.
#[derive(Clone, Copy, Debug)]
pub struct Home {
    /// Which.
    pub partition: Partition,
}

/// The partition's RX and TX buffers, while no other context uses them.
pub struct Buffers<'h>(&'h Shared, Partition);

impl Home {
    /// The partition's.
    pub const fn of(partition: Partition) -> Self {
        Self { partition }
    }

    fn shared(&self) -> &'static Shared {
        let page = core::ptr::with_exposed_provenance::<Shared>(layout::shared(self.partition).0 as usize);
        // SAFETY: the page is the partition's own, zero at first, and used for nothing else; what changes is atomic, and
        // the code is written once, before anybody calls it.
        unsafe { &*page }
    }

    /// First words with the SPM: agrees on a version, asks who is there, and registers the buffers.
    pub fn introduce(&self) -> Result<(), Answer> {
        let mut registers = [0; service::REGISTERS];
        registers[0] = arm_ffa::FuncId::Version as u64;
        registers[1] = u32::from(service::VERSION).into();
        ffa::raw(&mut registers);
        if Version::try_from(registers[0] as u32) != Ok(service::VERSION) {
            return Err(Answer::Failed(Failure::Call, registers[0]));
        }
        let failed = |_| Answer::Failed(Failure::Call, arm_ffa::FuncId::IdGet as u64);
        match ffa::call(&Interface::IdGet).map_err(failed)? {
            Interface::Success { args: SuccessArgs::Args32([id, ..]), .. } if id == self.partition.id().into() => {}
            _ => return Err(failed(arm_ffa::FfaError::InvalidParameters)),
        }
        let addr =
            RxTxAddr::Addr64 { rx: layout::rx_buffer(self.partition).0, tx: layout::tx_buffer(self.partition).0 };
        checked(ffa::call(&Interface::RxTxMap { addr, page_cnt: 1 }), arm_ffa::FuncId::RxTxMap64)?;
        let flags = PartitionInfoGetFlags { count_only: false };
        let info = ffa::call(&Interface::PartitionInfoGet { uuid: Uuid::nil(), flags });
        match checked(info, arm_ffa::FuncId::PartitionInfoGet)? {
            Interface::Success { args: SuccessArgs::Args32([2, ..]), .. } => {}
            _ => return Err(Answer::Failed(Failure::Call, arm_ffa::FuncId::PartitionInfoGet as u64)),
        }
        // A partition's descriptor begins with its ID.
        let first_id = u16::from_le_bytes([0, 1].map(|n| self.buffers().rx()[n]));
        checked(ffa::call(&Interface::RxRelease { vm_id: 0 }), arm_ffa::FuncId::RxRelease)?;
        if first_id != Partition::First.id() {
            return Err(Answer::Failed(Failure::Descriptor, first_id.into()));
        }
        self.write_code();
        Ok(())
    }

    /// Writes the function, so that this block is executed from as well.
    fn write_code(&self) {
        const ADD_X0_1: u32 = 0x9100_0400;
        const RET: u32 = 0xd65f_03c0;
        let code = (&raw const self.shared().code).cast_mut();
        // SAFETY: inside the partition's own page; nobody reads or calls it yet.
        unsafe { code.write_volatile([ADD_X0_1, RET]) };
        // The function must be in memory where fetches find it (DC, which the first DSB completes), and no older instruction
        // may be found (IC, which the second one completes; the ISB drops what was fetched).
        // SAFETY: maintenance of a line of this page.
        unsafe { asm!("dc cvau, {0}", "dsb ish", "ic ivau, {0}", "dsb ish", "isb", in(reg) code, options(nostack)) };
    }

    /// Uses the first block: its data (the stack anyway), its code. What a transaction that splits the block must not
    /// disturb.
    pub fn step(&self, context: usize) -> Result<(), Answer> {
        let shared = self.shared();
        // Several times, so that the other CPU's splits and collapses find somebody at home.
        for _ in 0..16 {
            let before = shared.steps[context].fetch_add(1, Ordering::Relaxed);
            let address = &raw const shared.code;
            // SAFETY: the two instructions of `write_code`, which follow the C calling convention.
            let add_one: extern "C" fn(u64) -> u64 = unsafe { core::mem::transmute(address) };
            if add_one(before) != shared.steps[context].load(Ordering::Relaxed) {
                return Err(Answer::Failed(Failure::Contents, address as u64));
            }
        }
        Ok(())
    }

    /// The buffers, when the other context does not use them.
    pub fn buffers(&self) -> Buffers<'static> {
        let shared = self.shared();
        while shared.buffers_taken.swap(true, Ordering::Acquire) {
            core::hint::spin_loop();
        }
        Buffers(shared, self.partition)
    }
}

impl Buffers<'_> {
    /// Where descriptors for the SPM are written.
    pub fn tx(&mut self) -> &mut [u8] {
        let page = core::ptr::with_exposed_provenance_mut(layout::tx_buffer(self.1).0 as usize);
        // SAFETY: the page is the partition's own; this context has it to itself, and the SPM reads it in calls only.
        unsafe { core::slice::from_raw_parts_mut(page, PAGE_SIZE as usize) }
    }

    /// What the SPM wrote last.
    pub fn rx(&self) -> &[u8] {
        let page = core::ptr::with_exposed_provenance(layout::rx_buffer(self.1).0 as usize);
        // SAFETY: the page is the partition's own, and the SPM writes it in calls only.
        unsafe { core::slice::from_raw_parts(page, PAGE_SIZE as usize) }
    }
}

impl Drop for Buffers<'_> {
    fn drop(&mut self) {
        self.0.buffers_taken.store(false, Ordering::Release);
    }
}

/// A call's result, or which call failed and how.
pub fn checked<T>(result: Result<T, arm_ffa::FfaError>, call: arm_ffa::FuncId) -> Result<T, Answer> {
    result.map_err(|error| {
        let code = error as i32;
        Answer::Failed(Failure::Call, u64::from(call as u32) | u64::from(code as u32) << 32)
    })
}
