//! What the logic needs of the machine that it runs on.

/// The guest's memory, the device's registers, and the barriers between them.
///
/// Addresses are the guest's, which are the device's too. No load may be repeated or torn: what a `load_` returns was in memory
/// at one moment. The guest may change its memory at any moment, so two loads of one address may differ.
pub trait Environment {
    /// Whether all `bytes` bytes from `start` on are memory of the guest's. `bytes` is not 0; the range may wrap, and then it
    /// is not.
    fn is_ram(&self, start: u64, bytes: u64) -> bool;

    /// Bytes of the guest's memory, all of it.
    fn ram_bytes(&self) -> u64;

    /// Whether the guest may write all of these bytes, which are its memory.
    fn is_writable(&self, start: u64, bytes: u64) -> bool;

    /// Loads 2 bytes of the guest's memory, which are aligned.
    fn load_u16(&self, address: u64) -> u16;

    /// Loads 8 bytes of the guest's memory, which are aligned.
    fn load_u64(&self, address: u64) -> u64;

    /// Stores 4 bytes to the guest's memory, which are aligned.
    fn store_u32(&self, address: u64, value: u32);

    /// These bytes of the guest's memory, which are not none, have been written or may have been.
    fn mark_written(&self, start: u64, bytes: u64);

    /// Loads a register of the device's, of 1, 2 or 4 bytes; aligned.
    fn read_register(&self, offset: u64, bytes: u8) -> u32;

    /// Stores to a register of the device's, of 1, 2 or 4 bytes; aligned.
    fn write_register(&self, offset: u64, bytes: u8, value: u32);

    /// Makes the device's interrupt pending, for what the device itself does not tell.
    fn raise_interrupt(&self);

    /// Loads before this are made before loads after it.
    fn order_loads(&self);

    /// Loads and stores before this are seen by the device, and by the guest's CPUs, before stores after it.
    fn order_stores(&self);
}
