//! A table of the embedder's, from the first mapping to the last frame; and how little the traits take.

use embedder::{POOL, Platform};
use stage2::features::HardwareUpdate;
use stage2::*;

#[test]
fn a_table_lives_and_gives_everything_back() {
    let free = POOL.available();
    let bbm = BbmLevel::Level2;
    let hardware_update = HardwareUpdate::None;
    let features = Features::MINIMAL.with_pa_bits(36).with_bbm(bbm).with_hardware_update(hardware_update);
    let mut table = Stage2::new(Mapped::new(Platform), Config::new(Vmid::new(1).unwrap(), features)).unwrap();
    let ram = IpaRange::from_size(Ipa(0x4000_0000), 1 << 30).unwrap();
    table.map(ram, PhysAddr(0x8000_0000), Attributes::RAM).unwrap();

    let secret = IpaRange::from_size(Ipa(0x4012_3000), 0x2000).unwrap();
    table.protect(secret, Permissions::NONE).unwrap();
    let leaf = table.walk(Ipa(0x4012_4000)).unwrap();
    assert_eq!(leaf.output, PhysAddr(0x8012_4000));
    assert_eq!((leaf.size, leaf.attributes.permissions), (LeafSize::Page, Permissions::NONE));
    assert!(table.walk(Ipa(0x4012_5000)).unwrap().attributes.permissions.write);
    assert_eq!(table.platform().counters().get(Event::InvalidWindow), 0);

    table.protect(secret, Permissions::ALL).unwrap();
    table.collapse(ram).unwrap();
    assert_eq!(table.walk(Ipa(0x4012_4000)).unwrap().size, LeafSize::Block1G);
    // SAFETY: no hardware ever walked the table.
    unsafe { table.release() };
    assert_eq!(POOL.available(), free);
}

#[test]
fn the_traits_take_fewer_than_sixty_lines() {
    let source = include_str!("../src/lib.rs");
    assert!(source.contains("impl FrameAllocator for") && source.contains("impl Maintenance for"));
    let lines = source.lines().filter(|line| !line.trim().is_empty()).count();
    assert!(lines < 60, "{lines} lines");
}
