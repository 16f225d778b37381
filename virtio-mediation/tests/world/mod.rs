//! A machine for the mediation: the guest's memory, and a device that does what its rings say and checks that they may.
#![allow(dead_code, reason = "each test uses a part")]

mod driver;
pub mod hostile;

pub use driver::Driver;

use std::cell::{Cell, RefCell};
use std::collections::{BTreeSet, VecDeque};
use std::ops::Range;
use std::sync::atomic::{AtomicU16, AtomicU32, AtomicU64, Ordering::Relaxed};
use virtio_mediation::registers::{offset, status};
use virtio_mediation::{Device, Environment, Rings};

/// The guest's memory.
pub const RAM: Range<u64> = 0x4000_0000..0x4002_0000;
/// Where the device finds the rings that are not the guest's.
const PRIVATE: u64 = 0xf000_0000;
const PAGE: u64 = 4096;
/// QueueNumMax of the device.
pub const QUEUE_MAX: u32 = 1024;

/// The two pages of a queue.
#[derive(Clone, Copy)]
struct Private {
    descriptors: &'static [AtomicU64],
    available: &'static [AtomicU16],
    used: &'static [AtomicU32],
}

/// A segment, as the device read it.
#[derive(Clone, Copy, Debug)]
pub struct Segment {
    pub address: u64,
    pub bytes: u32,
    pub written: bool,
}

/// A chain that the device has.
#[derive(Clone, Debug)]
pub struct Chain {
    pub queue: usize,
    pub head: u16,
    pub segments: Vec<Segment>,
}

#[derive(Clone, Copy, Default)]
struct RealQueue {
    size: u32,
    ready: u32,
    rings: [u64; 3],
    available: u16,
    used: u16,
}

/// The device's own state.
#[derive(Default)]
struct Real {
    status: u32,
    interrupt: u32,
    features_select: u32,
    driver_select: u32,
    driver_features: [u32; 2],
    queue_select: u32,
    queues: [RealQueue; 2],
    chains: VecDeque<Chain>,
    /// It was told to reset, and is still at work.
    resetting: bool,
}

/// Called before each load of the guest's memory.
type Hook = Box<dyn FnMut(&World, u64)>;

pub struct World {
    ram: RefCell<Vec<u8>>,
    /// Bytes that the guest may not write.
    pub denied: RefCell<Vec<Range<u64>>>,
    /// Pages that were marked, and pages that were written by others than the guest, since they were last compared.
    marked: RefCell<BTreeSet<u64>>,
    changed: RefCell<BTreeSet<u64>>,
    real: RefCell<Real>,
    private: RefCell<Vec<Private>>,
    hook: RefCell<Option<Hook>>,
    pub raised: Cell<u32>,
    /// Loads of the guest's memory since this was set to 0.
    pub loads: Cell<u64>,
    /// The device does not say that it is quiet.
    pub busy: Cell<bool>,
    pub device_id: Cell<u32>,
    pub version: Cell<u32>,
    pub features: Cell<u64>,
    /// The device does not take the features that its driver wants.
    pub refuses_features: Cell<bool>,
    /// The configuration space.
    pub config: RefCell<[u8; 64]>,
}

impl World {
    pub fn new(device_id: u32) -> Self {
        Self {
            ram: RefCell::new(vec![0; (RAM.end - RAM.start) as usize]),
            denied: RefCell::default(),
            marked: RefCell::default(),
            changed: RefCell::default(),
            real: RefCell::default(),
            private: RefCell::default(),
            hook: RefCell::default(),
            raised: Cell::new(0),
            loads: Cell::new(0),
            busy: Cell::new(false),
            device_id: Cell::new(device_id),
            version: Cell::new(2),
            features: Cell::new(u64::MAX),
            refuses_features: Cell::new(false),
            config: RefCell::new([0; 64]),
        }
    }

    /// The device, taken over.
    pub fn device(&self) -> Device<'static> {
        Device::new(self, || self.rings()).expect("the device can be mediated")
    }

    pub fn rings(&self) -> Option<Rings<'static>> {
        fn leak<T: Default>(count: usize) -> &'static [T] {
            Box::leak((0..count).map(|_| T::default()).collect::<Vec<T>>().into_boxed_slice())
        }
        let private = Private {
            descriptors: leak(Rings::DESCRIPTOR_WORDS),
            available: leak(Rings::AVAILABLE_WORDS),
            used: leak(Rings::USED_WORDS),
        };
        let mut all = self.private.borrow_mut();
        let address = PRIVATE + 2 * PAGE * all.len() as u64;
        all.push(private);
        Rings::new(private.descriptors, private.available, private.used, address)
    }

    /// Has `hook` called before each load.
    pub fn on_load(&self, hook: impl FnMut(&Self, u64) + 'static) {
        *self.hook.borrow_mut() = Some(Box::new(hook));
    }

    fn loading(&self, address: u64) {
        self.loads.set(self.loads.get() + 1);
        let hook = self.hook.borrow_mut().take();
        if let Some(mut hook) = hook {
            hook(self, address);
            *self.hook.borrow_mut() = Some(hook);
        }
    }

    pub fn peek<const N: usize>(&self, address: u64) -> [u8; N] {
        let at = (address - RAM.start) as usize;
        self.ram.borrow()[at..at + N].try_into().unwrap()
    }

    /// A store of the guest's.
    pub fn poke(&self, address: u64, bytes: &[u8]) {
        let at = (address - RAM.start) as usize;
        self.ram.borrow_mut()[at..at + bytes.len()].copy_from_slice(bytes);
    }

    fn write_by_others(&self, address: u64, bytes: u64) {
        assert!(self.is_ram(address, bytes), "{bytes:#x} bytes at {address:#x} are written, which are not the guest's");
        self.changed.borrow_mut().extend((address / PAGE..=(address + bytes - 1) / PAGE).map(|page| page * PAGE));
    }

    /// The device looks at its rings, and checks what they say.
    pub fn fetch(&self) {
        let mut real = self.real.borrow_mut();
        if real.status & status::DRIVER_OK == 0 || real.resetting {
            return;
        }
        let Real { queues, chains, .. } = &mut *real;
        for (number, queue) in queues.iter_mut().enumerate().filter(|(_, queue)| queue.ready != 0) {
            let private = self.private.borrow()[((queue.rings[0] - PRIVATE) / (2 * PAGE)) as usize];
            assert_eq!(queue.rings[1], queue.rings[0] + PAGE);
            assert!(queue.size.is_power_of_two() && queue.size <= 256);
            assert_eq!(private.available[0].load(Relaxed), 0, "the flags that the device sees");
            let index = private.available[1].load(Relaxed);
            assert!(u32::from(index.wrapping_sub(queue.available)) <= queue.size, "the device's index jumps");
            while queue.available != index {
                let slot = usize::from(queue.available) % queue.size as usize;
                let head = private.available[2 + slot].load(Relaxed);
                let segments = self.chain(&private, queue.size, head);
                chains.push_back(Chain { queue: number, head, segments });
                queue.available = queue.available.wrapping_add(1);
            }
        }
    }

    fn chain(&self, private: &Private, size: u32, head: u16) -> Vec<Segment> {
        let (mut segments, mut number) = (Vec::new(), head);
        loop {
            assert!(u32::from(number) < size, "a descriptor out of the device's table");
            assert!(segments.len() < size as usize, "a chain that does not end");
            let words = [0, 1].map(|word| private.descriptors[2 * usize::from(number) + word].load(Relaxed));
            let (address, bytes, flags) = (words[0], words[1] as u32, words[1] >> 32 & 0xffff);
            let written = flags & 2 != 0;
            assert!(bytes != 0 && self.is_ram(address, bytes.into()), "{bytes:#x} bytes at {address:#x}: no RAM");
            assert!(!written || self.is_writable(address, bytes.into()), "{bytes:#x} bytes at {address:#x}: denied");
            assert_eq!(flags & !3, 0, "flags");
            segments.push(Segment { address, bytes, written });
            if flags & 1 == 0 {
                return segments;
            }
            number = (words[1] >> 48) as u16;
        }
    }

    pub fn chains(&self) -> Vec<Chain> {
        self.real.borrow().chains.iter().cloned().collect()
    }

    /// The device writes all that chain `index` lets it write.
    pub fn write_chain(&self, index: usize) {
        let chain = self.real.borrow().chains.get(index).cloned();
        for segment in chain.iter().flat_map(|chain| &chain.segments).filter(|segment| segment.written) {
            self.write_by_others(segment.address, segment.bytes.into());
            self.poke(segment.address, &vec![0xaa; segment.bytes as usize]);
        }
    }

    /// The device is done with chain `index`.
    pub fn complete(&self, index: usize) {
        self.write_chain(index);
        let mut real = self.real.borrow_mut();
        let Some(chain) = real.chains.remove(index) else { return };
        let queue = &mut real.queues[chain.queue];
        let private = self.private.borrow()[((queue.rings[0] - PRIVATE) / (2 * PAGE)) as usize];
        let slot = usize::from(queue.used) % queue.size as usize;
        private.used[1 + 2 * slot].store(chain.head.into(), Relaxed);
        private.used[2 + 2 * slot].store(1, Relaxed);
        queue.used = queue.used.wrapping_add(1);
        private.used[0].store(u32::from(queue.used) << 16, Relaxed);
        real.interrupt |= 1;
    }

    /// The configuration changes.
    pub fn change_configuration(&self) {
        self.real.borrow_mut().interrupt |= 2;
    }

    /// Marks and writes since this was last called, as an audit compares them: what was written and not marked.
    pub fn missed(&self) -> Vec<u64> {
        let (marked, changed) = (self.marked.take(), self.changed.take());
        changed.difference(&marked).copied().collect()
    }

    pub fn take_marked(&self) -> BTreeSet<u64> {
        self.marked.take()
    }

    pub fn real_status(&self) -> u32 {
        self.real.borrow().status
    }

    pub fn real_interrupt(&self) -> u32 {
        self.real.borrow().interrupt
    }

    pub fn real_features(&self) -> u64 {
        let [low, high] = self.real.borrow().driver_features;
        u64::from(low) | u64::from(high) << 32
    }
}

impl Environment for World {
    fn is_ram(&self, start: u64, bytes: u64) -> bool {
        assert_ne!(bytes, 0);
        start >= RAM.start && start.checked_add(bytes).is_some_and(|end| end <= RAM.end)
    }

    fn ram_bytes(&self) -> u64 {
        RAM.end - RAM.start
    }

    fn is_writable(&self, start: u64, bytes: u64) -> bool {
        assert!(self.is_ram(start, bytes));
        !self.denied.borrow().iter().any(|range| range.start < start + bytes && start < range.end)
    }

    fn load_u16(&self, address: u64) -> u16 {
        assert!(address.is_multiple_of(2) && self.is_ram(address, 2));
        self.loading(address);
        u16::from_le_bytes(self.peek(address))
    }

    fn load_u64(&self, address: u64) -> u64 {
        assert!(address.is_multiple_of(8) && self.is_ram(address, 8));
        self.loading(address);
        u64::from_le_bytes(self.peek(address))
    }

    fn store_u32(&self, address: u64, value: u32) {
        assert!(address.is_multiple_of(4));
        self.write_by_others(address, 4);
        self.poke(address, &value.to_le_bytes());
    }

    fn mark_written(&self, start: u64, bytes: u64) {
        assert_ne!(bytes, 0);
        self.marked.borrow_mut().extend((start / PAGE..=(start + bytes - 1) / PAGE).map(|page| page * PAGE));
    }

    fn read_register(&self, at: u64, bytes: u8) -> u32 {
        assert!(at.is_multiple_of(bytes.into()) && at + u64::from(bytes) <= 0x200);
        if at == offset::STATUS && !self.busy.get() && self.real.borrow().resetting {
            *self.real.borrow_mut() = Real::default();
        }
        let real = self.real.borrow();
        let queue = real.queues.get(real.queue_select as usize);
        let features = self.features.get();
        match at {
            offset::MAGIC_VALUE => 0x7472_6976,
            offset::VERSION => self.version.get(),
            offset::DEVICE_ID => self.device_id.get(),
            offset::VENDOR_ID => 0x554d_4551,
            offset::DEVICE_FEATURES => (features >> (32 * real.features_select.min(1))) as u32,
            offset::QUEUE_NUM_MAX => queue.map_or(0, |_| QUEUE_MAX),
            offset::QUEUE_READY => queue.map_or(0, |queue| queue.ready),
            offset::INTERRUPT_STATUS => real.interrupt,
            offset::STATUS if self.busy.get() => real.status | 1,
            offset::STATUS => real.status,
            offset::CONFIG.. => {
                let at = (at - offset::CONFIG) as usize;
                let config = self.config.borrow();
                (0..usize::from(bytes))
                    .rev()
                    .fold(0, |word, byte| word << 8 | config.get(at + byte).map_or(0, |&byte| byte.into()))
            }
            _ => 0,
        }
    }

    fn write_register(&self, at: u64, bytes: u8, value: u32) {
        assert!(at.is_multiple_of(bytes.into()) && at + u64::from(bytes) <= 0x200);
        let mut real = self.real.borrow_mut();
        let select = real.queue_select as usize;
        match at {
            offset::DEVICE_FEATURES_SEL => real.features_select = value,
            offset::DRIVER_FEATURES_SEL => real.driver_select = value,
            offset::DRIVER_FEATURES => {
                let select = real.driver_select as usize;
                real.driver_features[select] = value;
            }
            offset::QUEUE_SEL => real.queue_select = value,
            offset::INTERRUPT_ACK => real.interrupt &= !value,
            // A device at work goes on until it has done: what it had may still be written, and used.
            offset::STATUS if value == 0 && self.busy.get() => real.resetting = true,
            offset::STATUS if value == 0 => *real = Real::default(),
            _ if real.resetting => {}
            offset::STATUS if self.refuses_features.get() => real.status = value & !status::FEATURES_OK,
            offset::STATUS => real.status = value,
            offset::CONFIG.. => self.config.borrow_mut()[(at - offset::CONFIG) as usize] = value as u8,
            offset::QUEUE_NOTIFY => {}
            _ => {
                let queue = &mut real.queues[select];
                match at {
                    offset::QUEUE_NUM => queue.size = value,
                    offset::QUEUE_READY => queue.ready = value,
                    offset::QUEUE_DESC_LOW => queue.rings[0] = value.into(),
                    offset::QUEUE_DRIVER_LOW => queue.rings[1] = value.into(),
                    offset::QUEUE_DEVICE_LOW => queue.rings[2] = value.into(),
                    offset::QUEUE_DESC_HIGH | offset::QUEUE_DRIVER_HIGH | offset::QUEUE_DEVICE_HIGH => {
                        assert_eq!(value, 0)
                    }
                    _ => panic!("a store of {value:#x} to the device's register {at:#x}"),
                }
            }
        }
    }

    fn raise_interrupt(&self) {
        self.raised.set(self.raised.get() + 1);
    }

    fn order_loads(&self) {}

    fn order_stores(&self) {}
}
