//! Which auto traits each public type has, asked of the compiler: they follow from private fields, and a change of one is a
//! change of the API all the same.
#![allow(dead_code, reason = "of the two constants that `has!` declares, the type decides which is used")]

use stage2::address::{Ipa, IpaRange, PhysAddr};
use stage2::descriptor::Kind;
use stage2::fault::Status;
use stage2::features::{ConflictAborts, HardwareUpdate, IdRegisters};
use stage2::pool::{FramePool, StaticPool};
use stage2::secure::{PhysicalSpace, SecureControl, Spaces};
use stage2::vmid::{Lease, Vmids};
use stage2::*;
use std::collections::BTreeSet;
use std::marker::PhantomData;
use std::panic::{RefUnwindSafe, UnwindSafe};

/// Whether a type has a trait: the inherent constant is found first, where its bound holds.
macro_rules! has {
    ($type:ty, $trait:ident) => {{
        trait Otherwise {
            const HAS: bool = false;
        }
        impl<T: ?Sized> Otherwise for T {}
        struct Ask<T: ?Sized>(PhantomData<T>);
        impl<T: ?Sized + $trait> Ask<T> {
            const HAS: bool = true;
        }
        if <Ask<$type>>::HAS { concat!(" ", stringify!($trait)) } else { "" }
    }};
}

macro_rules! lines {
    ($($type:ty,)*) => {
        [$((
            stringify!($type),
            [
                has!($type, Copy),
                has!($type, Send),
                has!($type, Sync),
                has!($type, Unpin),
                has!($type, UnwindSafe),
                has!($type, RefUnwindSafe),
            ]
            .concat(),
        ),)*]
    };
}

/// A platform that only one thread may use; nothing is ever made of it.
pub struct OneThread(PhantomData<*const ()>);
/// One that all threads may use.
pub struct AllThreads;

macro_rules! platform {
    ($name:ident) => {
        // SAFETY: it has no frames.
        unsafe impl FrameAllocator for $name {
            fn allocate(&self, _: usize) -> Option<PhysAddr> {
                None
            }
            unsafe fn free(&self, _: PhysAddr, _: usize) {}
        }
        // SAFETY: it has no tables.
        unsafe impl Maintenance for $name {
            fn dsb(&self, _: Dsb) {}
            fn isb(&self) {}
            fn tlbi(&self, _: Vmid, _: Tlbi) {}
            fn counters(&self) -> &Counters {
                unreachable!("nothing is counted")
            }
        }
    };
}
platform!(OneThread);
platform!(AllThreads);

/// Types that a host can't name: they come with the instructions of the CPU.
const OF_THE_CPU: [&str; 4] = ["El2", "NonSecure", "Secure", "SecureNonSecureIpa"];

/// A line for each of `types`.
pub fn listing(types: &BTreeSet<String>) -> String {
    let lines = lines! {
        Abort, AccessKind, Attributes, BbmLevel, Batch<'_, Mapped<AllThreads>>, Batch<'_, Mapped<OneThread>>, Census, Config,
        ConflictAborts, Counters, Descriptor, Dsb, Dump<'_, Mapped<AllThreads>>, Dump<'_, Mapped<OneThread>>, Errata, Error,
        Event, Execute, FaultHistory, Features, FramePool<1>, Geometry, Granule4K, Granule4KLpa2, Granule16K, Granule16KLpa2, Granule64K, Granule64KLpa, HardwareUpdate, IdRegisters, Ipa, IpaRange, Kind, Layout, Leaf,
        LeafSize, Lease, Leaves<'_, Mapped<AllThreads>>, Leaves<'_, Mapped<OneThread>>, Level, Log, LogOptions,
        Mapped<AllThreads>, Mapped<OneThread>, Mechanism, MemoryType, Outcome, PageSet<'_>, Permissions, PhysAddr,
        PhysicalSpace, Scope, SecureControl, Slot, Spaces, Stage2<Mapped<AllThreads>>, Stage2<Mapped<OneThread>>,
        StaticPool<1>, Status, Syndrome, Taken, Tlbi, Untranslated, Vmid, Vmids<1, 1>,
    };
    let name = |line: &str| line.split(['<', ' ']).next().unwrap_or("").to_owned();
    let listed: BTreeSet<String> =
        lines.iter().map(|(line, _)| name(line)).chain(OF_THE_CPU.map(str::to_owned)).collect();
    assert_eq!(&listed, types, "each public type is to be listed in tests/api/auto_traits.rs, and no other");
    lines.map(|(line, traits)| format!("{line}:{traits}")).join("\n")
}
