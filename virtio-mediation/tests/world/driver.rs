//! A driver of the mediated device.

use super::{PAGE, RAM, World};
use virtio_mediation::registers::offset;
use virtio_mediation::{Device, Written, feature};

/// A driver: what a guest does with the frame and with its memory.
pub struct Driver<'w> {
    pub world: &'w World,
    pub device: Device<'static>,
    pub size: u16,
    available: [u16; 2],
}

impl<'w> Driver<'w> {
    /// Bytes from the rings of one queue to those of the next.
    pub const STRIDE: u64 = 0x3000;

    pub fn new(world: &'w World) -> Self {
        Self { world, device: world.device(), size: 8, available: [0; 2] }
    }

    /// A driver whose device works.
    pub fn started(world: &'w World) -> Self {
        let mut driver = Self::new(world);
        driver.start();
        driver
    }

    pub fn write(&mut self, at: u64, value: u32) -> Written {
        self.device.write(self.world, at, 4, value.into())
    }

    pub fn read(&mut self, at: u64) -> u32 {
        self.device.read(self.world, at, 4) as u32
    }

    /// Descriptors, available and used ring of a queue.
    pub fn rings(queue: u64) -> [u64; 3] {
        [0, PAGE, 2 * PAGE].map(|part| RAM.start + queue * Self::STRIDE + part)
    }

    pub fn start(&mut self) {
        let _ = self.write(offset::STATUS, 0);
        self.agree(feature::VERSION_1);
        for queue in 0..2 {
            if self.select(queue) {
                let _ = self.place(self.size.into(), Self::rings(queue.into()));
                assert_eq!(self.read(offset::QUEUE_READY), 1);
            }
        }
        let _ = self.write(offset::STATUS, 15);
        assert_eq!(self.read(offset::STATUS), 15);
    }

    pub fn agree(&mut self, features: u64) {
        let _ = self.write(offset::STATUS, 3);
        for (select, half) in [(0, features as u32), (1, (features >> 32) as u32)] {
            let _ = self.write(offset::DRIVER_FEATURES_SEL, select);
            let _ = self.write(offset::DRIVER_FEATURES, half);
        }
        let _ = self.write(offset::STATUS, 11);
    }

    /// Selects a queue; false if there is none.
    pub fn select(&mut self, queue: u32) -> bool {
        let _ = self.write(offset::QUEUE_SEL, queue);
        self.read(offset::QUEUE_NUM_MAX) != 0
    }

    /// Places the selected queue, in fresh memory, and makes it ready.
    pub fn place(&mut self, size: u32, rings: [u64; 3]) -> Written {
        for ring in rings.into_iter().filter(|ring| RAM.contains(ring) && RAM.end - ring >= PAGE) {
            self.world.poke(ring, &[0; PAGE as usize]);
        }
        self.available = [0; 2];
        let _ = self.write(offset::QUEUE_NUM, size);
        for (place, ring) in
            [offset::QUEUE_DESC_LOW, offset::QUEUE_DRIVER_LOW, offset::QUEUE_DEVICE_LOW].iter().zip(rings)
        {
            let _ = self.write(*place, ring as u32);
            let _ = self.write(place + 4, (ring >> 32) as u32);
        }
        self.write(offset::QUEUE_READY, 1)
    }

    pub fn set(&self, queue: u64, number: u16, address: u64, bytes: u32, flags: u16, next: u16) {
        let at = Self::rings(queue)[0] + 16 * u64::from(number);
        self.world.poke(at, &address.to_le_bytes());
        let rest = u64::from(bytes) | u64::from(flags) << 32 | u64::from(next) << 48;
        self.world.poke(at + 8, &rest.to_le_bytes());
    }

    pub fn offer(&mut self, queue: u64, head: u16) {
        let slot = self.available[queue as usize] % self.size;
        self.world.poke(Self::rings(queue)[1] + 4 + 2 * u64::from(slot), &head.to_le_bytes());
        self.jump(queue, 1);
    }

    pub fn jump(&mut self, queue: u64, by: u16) {
        let available = &mut self.available[queue as usize];
        *available = available.wrapping_add(by);
        self.world.poke(Self::rings(queue)[1] + 2, &available.to_le_bytes());
    }

    pub fn notify(&mut self, queue: u32) -> Written {
        self.write(offset::QUEUE_NOTIFY, queue)
    }

    pub fn acknowledge(&mut self) -> Written {
        let pending = self.read(offset::INTERRUPT_STATUS);
        self.write(offset::INTERRUPT_ACK, pending)
    }

    /// The guest's used ring: its index, and what it has in a slot.
    pub fn used_index(&self, queue: u64) -> u16 {
        u16::from_le_bytes(self.world.peek(Self::rings(queue)[2] + 2))
    }

    pub fn used(&self, queue: u64, slot: u16) -> u32 {
        u32::from_le_bytes(self.world.peek(Self::rings(queue)[2] + 4 + 8 * u64::from(slot)))
    }

    /// What an audit finds.
    pub fn missed(&mut self) -> Vec<u64> {
        let _ = self.device.report_in_flight(self.world);
        self.world.missed()
    }
}
