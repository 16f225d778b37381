//! What firmware says, good and bad: memory maps, load options, trees.

use super::EfiError;
use super::leave::{ATTEMPTS, BootServices, ReadMap, leave};
use super::load_options::LoadOptions;
use super::memory_map::{Memory, MemoryMap};
use super::tree::{Loaded, has_modules, write};
use crate::machine::{Machine, MachineError};
use crate::range::PhysRange;
use crate::tree::Tree;
use crate::tree::testing::{GIC3, TestNode};
use crate::tree_check::CheckedTree;
use alloc::string::ToString;
use alloc::vec::Vec;
use proptest::prelude::*;
use r_efi::system::{
    ACPI_MEMORY_NVS, ACPI_RECLAIM_MEMORY, BOOT_SERVICES_CODE, BOOT_SERVICES_DATA, CONVENTIONAL_MEMORY, LOADER_CODE,
    LOADER_DATA, MEMORY_MAPPED_IO, MEMORY_UC, MEMORY_WB, RESERVED_MEMORY_TYPE, RUNTIME_SERVICES_CODE,
    RUNTIME_SERVICES_DATA, UNUSABLE_MEMORY,
};

/// Bytes of a descriptor in the tests, as EDK2 has them: longer than version 1's.
const STRIDE: usize = 48;

fn range(start: u64, size: u64) -> PhysRange {
    PhysRange::with_size(start, size).unwrap()
}

/// A descriptor: type, start, pages, attributes.
fn descriptor(kind: u32, start: u64, pages: u64, attributes: u64) -> [u64; 6] {
    // The upper half of the first word is padding, with anything in it.
    [u64::from(kind) | 0xdead << 32, start, 0, pages, attributes, u64::MAX]
}

fn memory(descriptors: &[[u64; 6]]) -> Result<Memory, EfiError> {
    MemoryMap::new(&descriptors.concat(), STRIDE).unwrap().memory()
}

#[test]
fn what_boot_services_use_is_free_and_what_firmware_needs_later_is_kept() {
    let kinds = [
        (LOADER_CODE, false),
        (LOADER_DATA, false),
        (BOOT_SERVICES_CODE, false),
        (BOOT_SERVICES_DATA, false),
        (CONVENTIONAL_MEMORY, false),
        (RUNTIME_SERVICES_CODE, true),
        (RUNTIME_SERVICES_DATA, true),
        (ACPI_RECLAIM_MEMORY, true),
        (ACPI_MEMORY_NVS, true),
        (RESERVED_MEMORY_TYPE, true),
    ];
    for (kind, kept) in kinds {
        let found = memory(&[descriptor(kind, 0x4000_0000, 16, MEMORY_WB | MEMORY_UC)]).unwrap();
        let all = [range(0x4000_0000, 0x1_0000)];
        assert_eq!((&found.ram[..], &found.kept[..]), (&all[..], if kept { &all[..] } else { &[] }), "{kind}");
    }
}

#[test]
fn what_is_no_ram_is_left_out() {
    for (kind, attributes) in [
        (MEMORY_MAPPED_IO, MEMORY_UC),
        (MEMORY_MAPPED_IO, MEMORY_WB),
        (UNUSABLE_MEMORY, MEMORY_WB),
        (RESERVED_MEMORY_TYPE, MEMORY_UC),
        (CONVENTIONAL_MEMORY, MEMORY_UC),
        (99, MEMORY_WB),
    ] {
        let other = descriptor(kind, 0x5000_0000, 16, attributes);
        assert_eq!(memory(&[other]), Err(EfiError::NoRam), "{kind}");
        let found = memory(&[other, descriptor(CONVENTIONAL_MEMORY, 0x4000_0000, 1, MEMORY_WB)]).unwrap();
        assert_eq!((found.ram, found.kept), (Vec::from([range(0x4000_0000, 0x1000)]), Vec::new()));
    }
}

#[test]
fn neighbours_are_joined_in_any_order() {
    let map = [
        descriptor(CONVENTIONAL_MEMORY, 0x4800_0000, 0x8000, MEMORY_WB),
        descriptor(RUNTIME_SERVICES_DATA, 0x4700_1000, 0xfff, MEMORY_WB),
        descriptor(RUNTIME_SERVICES_CODE, 0x4700_0000, 1, MEMORY_WB),
        descriptor(LOADER_DATA, 0x4000_0000, 0x7000, MEMORY_WB),
        descriptor(BOOT_SERVICES_DATA, 0x9000_0000, 0, MEMORY_WB),
    ];
    let found = memory(&map).unwrap();
    assert_eq!(found.ram, [range(0x4000_0000, 0x1000_0000)]);
    assert_eq!(found.kept, [range(0x4700_0000, 0x100_0000)]);
    let words = map.concat();
    assert_eq!(MemoryMap::new(&words, STRIDE).unwrap().ram_bytes(), 0x1000_0000);
}

#[test]
fn a_damaged_memory_map_is_refused() {
    let good = descriptor(CONVENTIONAL_MEMORY, 0x4000_0000, 1, MEMORY_WB);
    for (start, pages) in [(0x4000_0800, 1), (0x4000_0000, 1 << 52), (u64::MAX - 0xfff, 1), (0, u64::MAX)] {
        let bad = descriptor(MEMORY_MAPPED_IO, start, pages, 0);
        assert_eq!(memory(&[good, bad]), Err(EfiError::Descriptor { index: 1 }), "{start:#x}");
        let words = [good, bad].concat();
        assert_eq!(MemoryMap::new(&words, STRIDE).unwrap().ram_bytes(), 4096);
    }
    for size in [0, 8, 32, 39, 44, usize::MAX] {
        assert_eq!(MemoryMap::new(&[], size).err(), Some(EfiError::DescriptorSize { size }), "{size}");
    }
    assert_eq!(memory(&[]), Err(EfiError::NoRam));
}

/// Firmware whose map changes: so many times ExitBootServices fails.
struct Changing {
    stale: usize,
    key: usize,
    map: Vec<u64>,
}

impl BootServices for Changing {
    fn memory_map(&mut self, buffer: &mut [u64]) -> Option<ReadMap> {
        buffer.get_mut(..self.map.len())?.copy_from_slice(&self.map);
        Some(ReadMap { bytes: self.map.len() * 8, key: self.key, descriptor_size: STRIDE })
    }

    fn exit(&mut self, key: usize) -> bool {
        assert_eq!(key, self.key, "not the newest map's key");
        if self.stale == 0 {
            return true;
        }
        self.stale -= 1;
        self.key += 1;
        // Somebody has allocated a page at the end of the memory.
        self.map[3] -= 1;
        false
    }
}

fn changing(stale: usize) -> Changing {
    let map = descriptor(CONVENTIONAL_MEMORY, 0x4000_0000, 100, MEMORY_WB);
    Changing { stale, key: 7, map: map.to_vec() }
}

#[test]
fn a_stale_map_is_read_again_and_what_was_made_of_it_made_anew() {
    for stale in [0, 1, ATTEMPTS - 1] {
        let mut made = 0;
        let ram = leave(&mut changing(stale), &mut [0; 60], |map| {
            made += 1;
            map.memory().map(|memory| memory.ram)
        });
        assert_eq!(ram, Ok(Vec::from([range(0x4000_0000, (100 - stale as u64) * 4096)])));
        assert_eq!(made, stale + 1);
    }
    let tired = leave(&mut changing(ATTEMPTS), &mut [0; 60], |_| Ok::<_, EfiError>(()));
    assert_eq!(tired, Err(EfiError::StillThere { attempts: ATTEMPTS }));
}

#[test]
fn boot_services_go_on_where_nothing_can_be_made_of_the_map() {
    let mut firmware = changing(3);
    let error = leave(&mut firmware, &mut [0; 60], |_| Err::<(), _>(EfiError::NoRam));
    assert_eq!((error, firmware.stale), (Err(EfiError::NoRam), 3));
    let small = leave(&mut firmware, &mut [0; 2], |_| Ok::<_, EfiError>(()));
    assert_eq!((small, firmware.stale), (Err(EfiError::NoMemoryMap), 3));
    // A size that is larger than the buffer.
    let lie = ReadMap { bytes: 4096, key: 0, descriptor_size: STRIDE };
    assert_eq!(lie.view(&[0; 60]).err(), Some(EfiError::NoMemoryMap));
}

fn options(text: &str) -> Result<LoadOptions, EfiError> {
    LoadOptions::parse(&text.encode_utf16().collect::<Vec<u16>>())
}

#[test]
fn load_options_of_the_shell_and_of_a_boot_option_are_the_same() {
    let expected = LoadOptions {
        kernel: Some("/boot/vmlinuz".to_string()),
        initrd: Some("\\initrd".to_string()),
        hypervisor: "log=info bbm=auto".to_string(),
        guest: "root=/dev/vda kernel=x -- y".to_string(),
    };
    let line = "kernel=/boot/vmlinuz log=info initrd=\\initrd  bbm=auto -- root=/dev/vda kernel=x -- y";
    for name in ["", "fs0:\\unbroken.efi ", "unbroken ", "\"fs0:\\my files\\a=b.efi\" ", "  x\t"] {
        assert_eq!(options(&alloc::format!("{name}{line}")), Ok(expected.clone()), "{name}");
    }
    assert_eq!(options(&alloc::format!("{line}\0kernel=other")), Ok(expected));
    for nothing in ["", "unbroken.efi", "\"unbroken.efi", "-- ", "\0rubbish \u{1}"] {
        assert_eq!(options(nothing), Ok(LoadOptions::default()), "{nothing}");
    }
}

#[test]
fn load_options_that_are_no_text_are_refused() {
    assert_eq!(LoadOptions::parse(&[0x20, 0xd800, 0x20]), Err(EfiError::LoadOptions));
    assert_eq!(options("log=info \u{1b}[2J"), Err(EfiError::LoadOptions));
}

/// 1 GiB, with a part that firmware keeps.
fn gibibyte() -> Memory {
    Memory { ram: Vec::from([range(0x4000_0000, 1 << 30)]), kept: Vec::from([range(0x7c44_0000, 0x2f_0000)]) }
}

/// QEMU's tree without the modules of its guest-loader.
fn bare() -> TestNode {
    let mut tree = TestNode::parse(GIC3);
    tree.at("chosen").children.clear();
    tree
}

fn read(tree: &[u8]) -> Result<Machine, MachineError> {
    Machine::read(&CheckedTree::new(tree).unwrap())
}

#[test]
fn memory_comes_from_the_map_and_all_else_stays() {
    let mut tree = TestNode::parse(GIC3);
    let numa = tree.at("memory@40000000").clone();
    tree.add(TestNode { name: "memory@8000000000".to_string(), ..numa });
    let machine = read(&write(&tree.checked(), &gibibyte(), None).unwrap()).unwrap();
    assert_eq!((&machine.ram, &machine.reserved), (&gibibyte().ram, &gibibyte().kept));
    let before = read(&tree.bytes()).unwrap();
    let same = |machine: &Machine| {
        let rest = Machine { ram: Vec::new(), reserved: Vec::new(), ..machine.clone() };
        alloc::format!("{rest:?}")
    };
    assert_eq!(same(&machine), same(&before));

    // Node by node: only memory has changed.
    let mut after = TestNode::of(&CheckedTree::new(&write(&tree.checked(), &gibibyte(), None).unwrap()).unwrap());
    let memory = after.take("memory@40000000");
    assert_eq!(memory.cells("reg"), [0, 0x4000_0000, 0, 0x4000_0000]);
    tree.take("memory@40000000");
    tree.take("memory@8000000000");
    assert_eq!(after, tree);
}

#[test]
fn reservations_add_up() {
    let reservation = vm_fdt::FdtReserveEntry::new(0x4400_0000, 0x2000).unwrap();
    let mut fdt = vm_fdt::FdtWriter::new_with_mem_reserv(&[reservation]).unwrap();
    let root = fdt.begin_node("").unwrap();
    let cpus = fdt.begin_node("cpus").unwrap();
    fdt.end_node(cpus).unwrap();
    fdt.end_node(root).unwrap();
    let written = write(&CheckedTree::new(&fdt.finish().unwrap()).unwrap(), &gibibyte(), None).unwrap();
    let checked = CheckedTree::new(&written).unwrap();
    let entries: Vec<_> = Tree::open(&checked).memory_reservations().collect();
    assert_eq!(entries, [Some(range(0x4400_0000, 0x2000)), Some(range(0x7c44_0000, 0x2f_0000))]);
}

const LOADED: Loaded<'static> = Loaded {
    options: "log=info",
    kernel: PhysRange::with_size(0x5000_0000, 12345).unwrap(),
    arguments: "console=ttyAMA0 quiet",
    initrd: PhysRange::with_size(0x5800_0000, 999),
};

#[test]
fn modules_by_either_name_are_modules() {
    let names = [
        &b"multiboot,kernel\0multiboot,module\0"[..],
        b"xen,linux-zimage\0xen,multiboot-module\0",
        b"xen,linux-zimage\0",
        b"xen,linux-initrd\0",
    ];
    for (name, below) in names.into_iter().flat_map(|name| [(name, false), (name, true)]) {
        let mut tree = bare();
        let mut module = TestNode::new("module@50000000");
        module.set("compatible", name);
        let chosen = tree.at("chosen");
        if below {
            chosen.add(TestNode::new("modules")).at("modules").add(module);
        } else {
            chosen.add(module);
        }
        assert!(has_modules(&Tree::open(&tree.checked())), "{} {below}", name.escape_ascii());
    }
}

#[test]
fn what_the_image_loaded_stands_in_chosen() {
    let mut without = bare();
    without.take("chosen");
    let mut with_rest = bare();
    let old = with_rest.at("chosen").set("bootargs", *b"bbm=break\0").set_cells("#address-cells", &[1]);
    old.set("xen,dom0-bootargs", *b"quiet\0").set("xen,xen-bootargs", *b"bbm=break\0");
    old.add(TestNode::new("framebuffer"));
    for tree in [bare(), without, with_rest] {
        let checked = tree.checked();
        assert!(!has_modules(&Tree::open(&checked)));
        let written = write(&checked, &gibibyte(), Some(&LOADED)).unwrap();
        let machine = read(&written).unwrap();
        assert_eq!((machine.bootargs.as_str(), machine.kernel.as_ref().unwrap().range), ("log=info", LOADED.kernel));
        assert_eq!(machine.kernel.as_ref().unwrap().bootargs.as_deref(), Some(&b"console=ttyAMA0 quiet"[..]));
        assert_eq!(machine.initrd.map(|initrd| initrd.range), LOADED.initrd);
        let written = CheckedTree::new(&written).unwrap();
        assert!(has_modules(&Tree::open(&written)));
        // What stood there before still does, but for what was written anew.
        let mut chosen = TestNode::of(&written).at("chosen").clone();
        chosen.children.retain(|child| !child.name.starts_with("module@"));
        for name in ["bootargs", "#address-cells", "#size-cells"] {
            assert_eq!(chosen.properties.iter().filter(|(other, _)| other == name).count(), 1, "{name}");
            chosen.unset(name);
        }
        let mut expected = tree.children.iter().find(|node| node.name == "chosen").cloned();
        let expected = expected.get_or_insert(TestNode::new("chosen"));
        for name in ["bootargs", "#address-cells", "#size-cells", "xen,dom0-bootargs", "xen,xen-bootargs"] {
            expected.unset(name);
        }
        assert_eq!(chosen, *expected);
    }
    let only_kernel = Loaded { initrd: None, ..LOADED };
    let machine = read(&write(&bare().checked(), &gibibyte(), Some(&only_kernel)).unwrap()).unwrap();
    assert_eq!(machine.initrd, None);
}

#[test]
fn memory_is_told_in_the_cells_of_the_root() {
    let tree_with = |cells: [u32; 2]| {
        let mut tree = TestNode::new("");
        tree.set_cells("#address-cells", &cells[..1]).set_cells("#size-cells", &cells[1..]).add(TestNode::new("cpus"));
        tree.checked()
    };
    let told = |cells, ram: PhysRange| {
        let memory = Memory { ram: Vec::from([ram]), kept: Vec::new() };
        let written = CheckedTree::new(&write(&tree_with(cells), &memory, None)?).unwrap();
        Ok(TestNode::of(&written).children.pop().unwrap().cells("reg"))
    };
    assert_eq!(told([2, 1], range(0x80_4000_0000, 0x1000)), Ok(Vec::from([0x80, 0x4000_0000, 0x1000])));
    assert_eq!(told([3, 4], range(0x4000_0000, 1 << 32)), Ok(Vec::from([0, 0, 0x4000_0000, 0, 0, 1, 0])));
    // 5 GiB in one cell: three entries.
    assert_eq!(
        told([1, 1], range(0, 5 << 30)),
        Err(EfiError::RootCells { address: 1 << 32 }),
        "the last entry's address has more than one cell"
    );
    assert_eq!(told([2, 1], range(0, 5 << 30)), Ok(Vec::from([0, 0, 1 << 31, 0, 1 << 31, 1 << 31, 1, 0, 1 << 30])));
    assert_eq!(told([0, 1], range(0, 4096)), Err(EfiError::RootCells { address: 0 }));
    assert_eq!(told([1, 0], range(0, 4096)), Err(EfiError::RootCells { address: 0 }));
}

#[test]
fn a_tree_of_grubs_own_is_no_tree_of_the_machine() {
    let mut tree = TestNode::new("");
    tree.add(TestNode::new("chosen"));
    assert_eq!(write(&tree.checked(), &gibibyte(), Some(&LOADED)), Err(EfiError::NoTree));
}

#[test]
fn every_error_is_a_sentence_with_a_next_step() {
    for (error, words) in [
        (EfiError::Truncated, ["cut short", "copy it again"]),
        (EfiError::ExceptionLevel { level: 1 }, ["EL1", "virtualization"]),
        (EfiError::DescriptorSize { size: 44 }, ["44 bytes", "update"]),
        (EfiError::Descriptor { index: 3 }, ["descriptor 3", "update"]),
        (EfiError::NoMemoryMap, ["memory map", "update"]),
        (EfiError::NoRam, ["no RAM", "update"]),
        (EfiError::NoMemory { what: "hypervisor", bytes: 8 << 20 }, ["8192 KiB", "hypervisor: give more memory"]),
        (EfiError::NoTree, ["only ACPI", "acpi=off"]),
        (EfiError::RootCells { address: 0x1234 }, ["0x1234", "#address-cells"]),
        (EfiError::TreeGrew { bytes: 77 }, ["77 bytes", "again"]),
        (EfiError::LoadOptions, ["no text", "write them anew"]),
        (EfiError::NoKernel, ["kernel=PATH", "xen_module"]),
        (EfiError::File { what: "kernel" }, ["the kernel cannot be read", "path"]),
        (EfiError::StillThere { attempts: 8 }, ["8 attempts", "again"]),
    ] {
        let sentence = error.to_string();
        assert!(words.iter().all(|word| sentence.contains(word)), "{sentence}");
    }
}

proptest! {
    #[test]
    fn no_memory_map_panics(words in proptest::collection::vec(any::<u64>(), 0..40), size in 0_usize..80) {
        if let Ok(map) = MemoryMap::new(&words, size) {
            map.ram_bytes();
            let _ = map.memory();
        }
    }

    #[test]
    fn no_load_options_panic(units in proptest::collection::vec(any::<u16>(), 0..60), line in "[a-z=\" \\-\\\\]{0,40}") {
        let _ = LoadOptions::parse(&units);
        let _ = options(&line);
    }

    /// What can be written of a damaged tree that passes the check can be read again.
    #[test]
    fn a_tree_with_changed_words_is_written_whole(changes in proptest::collection::vec((0_usize..2000, any::<u32>()), 1..4)) {
        let mut bytes = bare().bytes();
        for (at, word) in changes {
            if let Some(place) = bytes.get_mut(at * 4..at * 4 + 4) {
                place.copy_from_slice(&word.to_be_bytes());
            }
        }
        if let Ok(tree) = CheckedTree::new(&bytes)
            && let Ok(written) = write(&tree, &gibibyte(), Some(&LOADED))
        {
            let again = CheckedTree::new(&written).unwrap();
            prop_assert!(has_modules(&Tree::open(&again)));
        }
    }
}
