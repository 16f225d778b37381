//! Every error once, then tens of thousands of damaged trees: whatever passes must be readable to the end.

use super::*;
use crate::guest_tree;
use crate::image::{self, Request};
use crate::machine::{self, Machine, Needs};
use crate::options::Options;
use crate::range::{PhysRange, without};
use crate::tree::testing::{GIC2, GIC3, MACHINES, SECURE_NUMA, TestNode};
use alloc::string::ToString;
use alloc::vec;

fn check(bytes: &[u8]) -> Result<(), TreeError> {
    CheckedTree::new(bytes).map(|_| ())
}

/// Header fields by their place.
const TOTAL_SIZE: usize = 1;
const STRUCTURE: usize = 2;
const STRINGS: usize = 3;
const RESERVATIONS: usize = 4;
const STRINGS_SIZE: usize = 8;
const STRUCTURE_SIZE: usize = 9;

fn field(bytes: &[u8], index: usize) -> usize {
    word(bytes, index * 4).unwrap() as usize
}

fn with_field(bytes: &[u8], index: usize, value: usize) -> Vec<u8> {
    with_word(bytes, index * 4, value as u32)
}

fn with_word(bytes: &[u8], offset: usize, value: u32) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    bytes[offset..offset + 4].copy_from_slice(&value.to_be_bytes());
    bytes
}

/// A tree with this structure block and one string, "name".
fn tree_of(structure: &[u32]) -> Vec<u8> {
    let structure: Vec<u8> = structure.iter().flat_map(|word| word.to_be_bytes()).collect();
    assemble(&[0; 16], &structure, b"name\0", 0)
}

/// Where the structure block of [`tree_of`] starts.
const ORIGIN: usize = 56;
/// A node name of up to three letters.
const ROOT: u32 = 0;
const CHILD: u32 = u32::from_be_bytes(*b"abc\0");

#[test]
fn qemus_trees_pass_unchanged() {
    for (.., bytes) in MACHINES.iter().chain(&[(3, 20, 1 << 30, SECURE_NUMA)]) {
        let checked = CheckedTree::new(bytes).unwrap();
        assert_eq!(CheckedTree::new(checked.bytes()).unwrap().bytes(), checked.bytes());
        // QEMU writes no FDT_NOP into these, so the original can be read directly, to compare.
        let original = CheckedTree { blob: bytes.to_vec() };
        assert_eq!(TestNode::of(&checked), TestNode::of(&original));
    }
}

#[test]
fn bytes_behind_the_tree_are_left_alone() {
    let mut padded = GIC3.to_vec();
    padded.resize(1 << 20, 0xff);
    assert_eq!(CheckedTree::new(&padded).unwrap().bytes(), CheckedTree::new(GIC3).unwrap().bytes());
    // As QEMU hands it over: the padding is part of the tree.
    let padded = with_field(&padded, TOTAL_SIZE, 1 << 20);
    assert_eq!(CheckedTree::new(&padded).unwrap().bytes(), CheckedTree::new(GIC3).unwrap().bytes());
}

#[test]
fn nops_are_taken_out() {
    let plain = [1, ROOT, 3, 4, 0, 7, 1, CHILD, 2, 1, CHILD, 2, 2, 9];
    let nops = [4, 4, 1, ROOT, 4, 3, 4, 0, 7, 4, 1, CHILD, 4, 2, 4, 1, CHILD, 4, 4, 2, 4, 2, 4, 9];
    let checked = CheckedTree::new(&tree_of(&nops)).unwrap();
    assert_eq!(checked.bytes(), tree_of(&plain));
}

#[test]
fn the_first_bytes_say_how_long_the_tree_is() {
    assert_eq!(total_size(*GIC3.first_chunk().unwrap()), Ok(GIC3.len()));
    assert_eq!(total_size([0; 8]), Err(TreeError::Magic { found: 0 }));
    let huge = with_field(GIC3, TOTAL_SIZE, MAX_TREE_SIZE + 1);
    assert!(matches!(total_size(*huge.first_chunk().unwrap()), Err(TreeError::Size { .. })));
    let tiny = with_field(GIC3, TOTAL_SIZE, HEADER_SIZE - 1);
    assert!(matches!(total_size(*tiny.first_chunk().unwrap()), Err(TreeError::Size { .. })));
}

#[test]
fn every_truncation_is_refused() {
    for length in 0..GIC3.len() {
        assert!(check(&GIC3[..length]).is_err(), "{length} bytes of {} passed", GIC3.len());
    }
}

#[test]
fn a_bad_header_is_refused() {
    assert_eq!(check(&with_field(GIC3, 0, 0xedfe_0dd0)), Err(TreeError::Magic { found: 0xedfe_0dd0 }));
    assert_eq!(
        check(&with_field(GIC3, TOTAL_SIZE, GIC3.len() + 1)),
        Err(TreeError::Size { stated: GIC3.len() + 1, available: GIC3.len() })
    );
    assert_eq!(check(&with_field(GIC3, 5, 16)), Err(TreeError::Version { found: 16 }));
    assert_eq!(check(&with_field(GIC3, 6, 18)), Err(TreeError::Version { found: 17 }));
    let refused = |index, value, name| {
        let result = check(&with_field(GIC3, index, value));
        assert!(matches!(result, Err(TreeError::Block { name: block, .. }) if block == name), "{name}: {result:?}");
    };
    for outside in [0, 36, GIC3.len() + 8, 0xffff_fff8] {
        refused(STRUCTURE, outside, "structure");
        refused(STRINGS, outside, "strings");
        refused(RESERVATIONS, outside, "memory reservation");
    }
    refused(STRUCTURE, field(GIC3, STRUCTURE) + 2, "structure");
    refused(RESERVATIONS, field(GIC3, RESERVATIONS) + 4, "memory reservation");
    refused(STRUCTURE_SIZE, 0xffff_ffff, "structure");
    refused(STRINGS_SIZE, GIC3.len(), "strings");
}

#[test]
fn the_content_is_limited() {
    let mut root = TestNode::new("");
    root.set("padding", vec![0; MAX_CONTENT_SIZE]);
    assert!(matches!(check(&root.bytes()), Err(TreeError::TooLarge { .. })));
    // Without what 16 properties and the root take beside their values.
    let values = MAX_CONTENT_SIZE - 16 * 12 - 200;
    for name in ["padding", "a", "b", "c", "d", "e", "f", "g", "h", "i", "j", "k", "l", "m", "n", "o"] {
        root.set(name, vec![0; values / 16]);
    }
    assert_eq!(check(&root.bytes()), Ok(()));
}

#[test]
fn reservations_must_end() {
    let mut bytes = tree_of(&[1, ROOT, 2, 9]);
    bytes[40..].fill(1);
    assert_eq!(check(&with_field(&bytes, STRUCTURE, 56)), Err(TreeError::Reservations));
}

#[test]
fn the_token_stream_must_be_well_formed() {
    assert_eq!(check(&tree_of(&[1, ROOT, 2, 9])), Ok(()));
    let token = |index: usize, token| Err(TreeError::Token { offset: ORIGIN + index * 4, token });
    // Not a token; nothing but a token; an end without a beginning; two roots; the end too early.
    assert_eq!(check(&tree_of(&[5])), token(0, 5));
    assert_eq!(check(&tree_of(&[9])), token(0, 9));
    assert_eq!(check(&tree_of(&[2, 9])), token(0, 2));
    assert_eq!(check(&tree_of(&[1, ROOT, 2, 2, 9])), token(3, 2));
    assert_eq!(check(&tree_of(&[1, ROOT, 2, 1, ROOT, 2, 9])), token(3, 1));
    assert_eq!(check(&tree_of(&[1, ROOT, 9])), token(2, 9));
    // A property outside a node, and one behind a child.
    assert_eq!(check(&tree_of(&[3, 0, 0, 1, ROOT, 2, 9])), token(0, 3));
    assert_eq!(check(&tree_of(&[1, ROOT, 1, CHILD, 2, 3, 0, 0, 2, 9])), token(5, 3));
}

#[test]
fn the_structure_block_must_not_break_off() {
    let ends = |index: usize| Err(TreeError::Ends { offset: ORIGIN + index * 4 });
    assert_eq!(check(&tree_of(&[])), ends(0));
    assert_eq!(check(&tree_of(&[1, ROOT])), ends(2));
    assert_eq!(check(&tree_of(&[1, ROOT, 2])), ends(3));
    assert_eq!(check(&tree_of(&[1, ROOT, 3])), ends(2));
    assert_eq!(check(&tree_of(&[1, ROOT, 3, 0])), ends(2));
}

#[test]
fn nesting_is_limited() {
    let nested = |depth: usize| {
        let mut structure = vec![1, ROOT];
        (1..depth).for_each(|_| structure.extend([1, CHILD]));
        structure.extend((0..depth).map(|_| 2));
        structure.push(9);
        check(&tree_of(&structure))
    };
    assert_eq!(nested(MAX_DEPTH), Ok(()));
    assert!(matches!(nested(MAX_DEPTH + 1), Err(TreeError::Depth { .. })));
}

#[test]
fn names_must_be_legal() {
    let at = |index: usize| Err(TreeError::NodeName { offset: ORIGIN + index * 4 });
    // A root with a name, a child without one, one that does not end, one that is no ASCII, one that is too long.
    assert_eq!(check(&tree_of(&[1, CHILD, 2, 9])), at(1));
    assert_eq!(check(&tree_of(&[1, ROOT, 1, ROOT, 2, 2, 9])), at(3));
    assert_eq!(check(&tree_of(&[1, ROOT, 1, 0x6161_6161])), at(3));
    assert_eq!(check(&tree_of(&[1, ROOT, 1, 0x61ff_6100, 2, 2, 9])), at(3));
    let mut long = vec![1, ROOT, 1];
    long.extend([0x6161_6161; 40]);
    long.extend([0, 2, 2, 9]);
    assert_eq!(check(&tree_of(&long)), at(3));
}

#[test]
fn properties_must_lie_inside() {
    assert_eq!(check(&tree_of(&[1, ROOT, 3, 4, 0, 7, 2, 9])), Ok(()));
    for length in [12, 13, 100, 0x7fff_ffff, 0xffff_ffff] {
        let result = check(&tree_of(&[1, ROOT, 3, length, 0, 2, 9]));
        assert_eq!(result, Err(TreeError::PropertyValue { offset: ORIGIN + 8 }), "{length}");
    }
    // A name outside the strings, an empty one, one that does not end.
    for name in [4, 5, 0xffff_ffff] {
        let result = check(&tree_of(&[1, ROOT, 3, 0, name, 2, 9]));
        assert_eq!(result, Err(TreeError::PropertyName { offset: ORIGIN + 8 }), "{name}");
    }
    let mut unterminated = tree_of(&[1, ROOT, 3, 0, 0, 2, 9]);
    unterminated.pop();
    let unterminated = with_field(&unterminated, STRINGS_SIZE, 4);
    let unterminated = with_field(&unterminated, TOTAL_SIZE, unterminated.len());
    assert_eq!(check(&unterminated), Err(TreeError::PropertyName { offset: ORIGIN + 8 }));
}

#[test]
fn errors_say_where() {
    let sentence = check(&tree_of(&[1, ROOT, 5])).unwrap_err().to_string();
    assert_eq!(sentence, "at 0x40 stands 0x5, which may not stand there");
}

/// Does with a tree all that the hypervisor does with it. Says whether it passed the check, and was a whole machine.
fn read_to_the_end(bytes: &[u8]) -> (bool, bool) {
    let Ok(tree) = CheckedTree::new(bytes) else { return (false, false) };
    let _ = machine::find_uart(&tree);
    let machine = match Machine::read(&tree) {
        Ok(machine) => machine,
        Err(error) => {
            assert!(!error.to_string().is_empty());
            return (true, false);
        }
    };
    let hypervisor = PhysRange::with_size(0x4020_0000, 16 << 20).unwrap();
    let _ = machine.check_placement(hypervisor, PhysRange::with_size(0x4000_0000, 1 << 20).unwrap());
    let _ = Options::parse(&machine.bootargs);
    let tree = PhysRange::with_size(0x4000_0000, 1 << 20).unwrap();
    let needs = Needs { image: hypervisor.at_most(5 << 20), pool: machine.pool_bytes(true, 0), tree, pa_bits: 48 };
    if let Ok(place) = machine.better_place(&needs) {
        assert!(machine.check_placement(place, tree).is_ok() || machine.check_placement(hypervisor, tree).is_err());
    }
    let mut holes = machine.reserved.clone();
    holes.push(hypervisor);
    let memory = without(&machine.ram, &holes);
    // A tree without a kernel is one for a guest that was saved.
    let Ok(kernel) = machine.kernel() else { return (true, true) };
    let request = Request {
        kernel: image::examine(bytes).unwrap_or(image::Kernel::Raw),
        kernel_file: kernel.range,
        initrd: machine.initrd.as_ref().map(|initrd| initrd.range),
        guest_ram: &memory,
    };
    let plan = image::plan(&request);
    let cpus: Vec<u64> = machine.cpus.iter().map(|cpu| cpu.mpidr).collect();
    let granted: Vec<u64> = machine.virtio.iter().map(|device| device.registers.start()).collect();
    let guest = guest_tree::Guest {
        memory: &memory,
        cpus: &cpus,
        bootargs: kernel.bootargs.as_deref(),
        initrd: plan.ok().and_then(|plan| plan.initrd),
        pmu: true,
        granted: &granted,
    };
    // What the hypervisor writes must itself be well-formed.
    if let Ok(guest) = guest_tree::write(&machine, &guest) {
        CheckedTree::new(&guest).unwrap();
    }
    (true, true)
}

/// A generator that needs no state but a number (xorshift64*).
struct Random(u64);

impl Random {
    fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 33) as usize % limit
    }
}

/// Damages a tree in one to four places.
fn damage(bytes: &[u8], random: &mut Random) -> Vec<u8> {
    // Tokens, cell counts, edges of the number ranges, lengths of about a tree.
    const WORDS: [u32; 16] =
        [0, 1, 2, 3, 4, 5, 8, 9, 0x80, 0xff, 0x1000, 0x2000, 0x7fff_ffff, 0x8000_0000, 0xffff_fffc, 0xffff_ffff];
    let mut bytes = bytes.to_vec();
    for _ in 0..=random.below(4) {
        if bytes.len() < 8 {
            return bytes;
        }
        let at = random.below(bytes.len());
        let aligned = random.below(bytes.len() / 4 - 1) * 4;
        match random.below(8) {
            0 => bytes[at] ^= 1 << random.below(8),
            1 => bytes[at] = random.below(256) as u8,
            2 => bytes = with_word(&bytes, aligned, WORDS[random.below(WORDS.len())]),
            3 => bytes = with_word(&bytes, aligned, random.below(1 << 31) as u32),
            // Header fields.
            4 if random.below(8) == 0 => bytes = with_field(&bytes, random.below(10), random.below(16384)),
            // A string's end moved.
            4 => bytes[at] = 0,
            // A word taken out, or put in twice, of which the structure block's size knows nothing.
            5 => drop(bytes.drain(aligned..aligned + 4)),
            6 => (0..4).for_each(|index| bytes.insert(aligned + index, bytes[aligned + index])),
            _ if random.below(8) == 0 => bytes.truncate(at),
            // A node or property name swapped for another's letters.
            _ => bytes.swap(at, aligned),
        }
    }
    bytes
}

#[test]
fn damaged_trees_are_refused_or_read_to_the_end() {
    const ROUNDS: usize = 40_000;
    let mut random = Random(0x5eed_0fa1_17ed_7ee5);
    let (mut passed, mut whole) = (0, 0);
    for round in 0..ROUNDS {
        let original = [GIC2, GIC3, SECURE_NUMA][round % 3];
        let (pass, machine) = read_to_the_end(&damage(original, &mut random));
        passed += usize::from(pass);
        whole += usize::from(machine);
    }
    // The check must leave something to the reader, and the reader something to the writer: else nothing is tested.
    assert!(passed > ROUNDS / 10 && whole > ROUNDS / 10 && whole < passed && passed < ROUNDS, "{passed} {whole}");
}

/// Values changed but the structure kept, so that every round gets past the check.
#[test]
fn trees_with_odd_values_are_read_to_the_end() {
    fn distort(node: &mut TestNode, random: &mut Random, left: &mut usize) {
        for (_, value) in &mut node.properties {
            if *left == 0 {
                let length = random.below(value.len() + 9);
                value.resize(length, random.below(256) as u8);
                (0..length.min(4)).for_each(|index| value[index] = random.below(256) as u8 & random.below(256) as u8);
            }
            *left = left.wrapping_sub(1);
        }
        node.children.iter_mut().for_each(|child| distort(child, random, left));
    }
    let mut random = Random(0x0dd_5eed);
    let mut whole = 0;
    for round in 0..10_000 {
        let mut tree = TestNode::parse([GIC2, GIC3][round % 2]);
        for _ in 0..=random.below(3) {
            let mut properties_before = random.below(250);
            distort(&mut tree, &mut random, &mut properties_before);
        }
        let (passed, machine) = read_to_the_end(&tree.bytes());
        assert!(passed);
        whole += usize::from(machine);
    }
    assert!((1_000..9_999).contains(&whole), "{whole}");
}
