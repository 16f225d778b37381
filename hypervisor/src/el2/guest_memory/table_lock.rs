//! The guest's table, behind the lock that faults take: [`hypervisor::reader_lock`] with each CPU's own flag.

use crate::el2::base::cpu::{self, this_cpu};
use crate::el2::base::firmware;
use crate::el2::base::registers::read_register;
use crate::el2::guest_memory::{events::InUse, platform::Platform};
use core::cell::UnsafeCell;
use core::ops::{Deref, DerefMut};
use hypervisor::granule::Granule;
use hypervisor::not_frozen::NotFrozen;
use hypervisor::reader_lock::{Flag, ReaderLock};
use stage2::{Maintenance, Stage2};

/// The engine's table, on the platform in use.
pub type Table = Stage2<InUse, Granule>;

/// The guest's table behind its lock. There is one: the CPUs' flags are this lock's.
#[repr(C)]
pub struct TableLock {
    lock: ReaderLock,
    table: UnsafeCell<Table>,
}

// SAFETY: the table is reached through the guards below only: by many CPUs to read, or by one to write. EL2 is not
// interrupted and stays on its CPU, so a CPU's flag has one user.
unsafe impl Sync for TableLock {}

impl TableLock {
    /// The lock around the only table.
    pub fn new(table: Table) -> Self {
        Self { lock: ReaderLock::default(), table: UnsafeCell::new(table) }
    }

    /// The table, for what only grows it or changes permissions. Writers wait meanwhile.
    #[inline(always)]
    pub fn read(&self) -> Reading<'_> {
        let own = &this_cpu().reading;
        let nested = self.lock.begin_read(own, wait);
        // SAFETY: no writer comes in before `end_read`, which drops the reference.
        Reading { lock: &self.lock, table: unsafe { &*self.table.get() }, own, nested }
    }

    /// [`TableLock::read`], once the table is not frozen. A holder of a [`Reading`] must not wait for that.
    #[inline(always)]
    pub fn read_not_frozen(&self) -> NotFrozen<Reading<'_>> {
        NotFrozen::read(|| self.read(), |table| table.is_frozen(), || self.wait_for_thaw(|| false))
    }

    /// [`TableLock::read`], or nothing if the table is frozen.
    #[inline(always)]
    pub fn read_if_not_frozen(&self) -> Option<NotFrozen<Reading<'_>>> {
        NotFrozen::of(self.read(), |table| table.is_frozen())
    }

    /// Waits at EL2 while the table is frozen, and until something `else_` is to be done. The pauses leave the lock to the CPU that is to thaw it.
    #[cold]
    pub fn wait_for_thaw(&self, else_: impl Fn() -> bool) {
        const PAUSE: usize = 1000;
        while self.read().is_frozen() && !else_() {
            firmware::park_if_stopped();
            (0..PAUSE).for_each(|_| core::hint::spin_loop());
        }
    }

    /// [`TableLock::read`], or nothing while there is a writer.
    #[inline(always)]
    pub fn try_read(&self) -> Option<Reading<'_>> {
        let own = &this_cpu().reading;
        let nested = self.lock.try_begin_read(own)?;
        // SAFETY: as in `read`.
        Some(Reading { lock: &self.lock, table: unsafe { &*self.table.get() }, own, nested })
    }

    /// The table, for what frees tables or starts and ends logs: waits for faults in flight, and lets no new ones
    /// overtake. The caller holds no [`Reading`].
    pub fn write(&self) -> Writing<'_> {
        self.lock.begin_write(cpu::all().map(|area| &area.cpu.reading), wait);
        // Once another CPU has crashed, nothing that needs the table for itself begins: a thaw would put back what was
        // revoked.
        firmware::park_if_stopped();
        Writing(self)
    }

    /// Keeps all others from the table, for good: for crashes. Those that are at work in it may end, for a moment.
    pub fn close(&self) {
        const MILLISECONDS: u64 = 200;
        let own = &this_cpu().reading;
        let others = cpu::all().map(|area| &area.cpu.reading).filter(|&flag| !core::ptr::eq(flag, own));
        let (start, ticks) = (read_register!("cntpct_el0"), read_register!("cntfrq_el0") / 1000 * MILLISECONDS);
        self.lock.close(others, || {
            core::hint::spin_loop();
            read_register!("cntpct_el0").wrapping_sub(start) < ticks
        });
    }
}

fn wait() {
    Platform.wait();
}

/// The table, read.
pub struct Reading<'l> {
    lock: &'l ReaderLock,
    table: &'l Table,
    own: &'static Flag,
    nested: usize,
}

impl Deref for Reading<'_> {
    type Target = Table;

    #[inline(always)]
    fn deref(&self) -> &Self::Target {
        self.table
    }
}

impl Drop for Reading<'_> {
    #[inline(always)]
    fn drop(&mut self) {
        self.lock.end_read(self.own, self.nested);
    }
}

/// The table, written.
pub struct Writing<'l>(&'l TableLock);

impl Deref for Writing<'_> {
    type Target = Table;

    fn deref(&self) -> &Self::Target {
        // SAFETY: the lock is held for writing; `&self` lets nobody change it meanwhile.
        unsafe { &*self.0.table.get() }
    }
}

impl DerefMut for Writing<'_> {
    fn deref_mut(&mut self) -> &mut Self::Target {
        // SAFETY: the lock is held for writing, by this guard alone.
        unsafe { &mut *self.0.table.get() }
    }
}

impl Drop for Writing<'_> {
    fn drop(&mut self) {
        self.0.lock.end_write();
    }
}
