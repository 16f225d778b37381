//! The hypervisor on boards that QEMU models, with Linux's own device trees, and started by U-Boot: to a Linux that prints on
//! the board's own UART. A board with no UART that is known runs in silence, and says so in memory.

use qemu::boards::{BOARDS, LEAST_QEMU, Ran};
use qemu::commands::trees;
use qemu::machine::Machine;
use qemu::setup::emulator::Emulator;
use qemu::setup::guest::board_trees;
use qemu::size::Size;
use std::path::Path;
use std::time::Duration;
use system_tests::tree::{pack, replace, tree_of};
use system_tests::{bytes, emulator, hypervisor, machine, run, scratch, turn, turn_alone, workspace};

/// Seconds that a machine gets: a board's kernel has all drivers, and four emulated CPUs.
const LIMIT: Duration = Duration::from_secs(400);

fn boot(name: &str, emulator: &Emulator) -> Ran {
    let scratch = scratch();
    std::fs::create_dir_all(scratch.path("")).unwrap();
    let board = BOARDS.into_iter().find(|board| board.name == name).unwrap();
    let ran = board.boot(workspace(), emulator, hypervisor(), &scratch.path(""), LIMIT).unwrap();
    if let Err(why) = ran.judge(&board) {
        panic!("{why}:\n{}\n{}", ran.outcome.console.tail(40), ran.outcome.complaints);
    }
    ran
}

/// On a board, where there is a QEMU that has it.
fn boots(name: &str, gic: &str, console: &str) {
    let chosen = std::env::var_os("HV_QEMU");
    let found = Emulator::at_least(workspace(), chosen.as_deref().map(Path::new), LEAST_QEMU);
    match found {
        Ok(emulator) => {
            let _turn = turn_alone();
            let said = boot(name, &emulator).said.unwrap();
            assert_eq!((&*said.gic, &*said.console), (gic, console));
        }
        Err(why) => eprintln!("skipped: {name}: {why:#}"),
    }
}

#[test]
fn u_boot_starts_it() {
    let _turn = turn();
    let ran = boot("u-boot", emulator());
    let said = ran.said.unwrap();
    assert_eq!((&*said.gic, &*said.console), ("arm,gic-v3", "ttyAMA0"));
    let lines = ran.outcome.console.lines();
    assert!(lines.iter().any(|line| line.starts_with("U-Boot 20")), "{}", ran.outcome.console.tail(60));
}

#[test]
#[ignore = "long"]
fn a_versal_boots() {
    boots("xlnx-versal-virt", "arm,gic-v3", "ttyAMA0");
}

#[test]
#[ignore = "long"]
fn a_zynqmp_boots_and_prints_on_cadences_uart() {
    boots("xlnx-zcu102", "arm,gic-400", "ttyPS0");
}

#[test]
#[ignore = "long"]
fn an_imx8mp_boots_and_prints_on_nxps_uart() {
    boots("imx8mp-evk", "arm,gic-v3", "ttymxc1");
}

/// Where the text of the memory log lies behind its first eight bytes: behind the count of what was written.
const TEXT: usize = 16;

/// The log that EL2 keeps in memory, found in a machine's RAM.
fn memory_log(ram: &[u8]) -> String {
    const MAGIC: &[u8] = b"UNBRKLOG";
    let places = (0..ram.len() - TEXT).step_by(8).filter(|&at| ram[at..].starts_with(MAGIC));
    let texts = places.map(|at| {
        let written = u64::from_le_bytes(ram[at + 8..at + TEXT].try_into().unwrap());
        let written = usize::try_from(written).unwrap_or(0).min(16 << 10);
        String::from_utf8_lossy(ram.get(at + TEXT..at + TEXT + written).unwrap_or_default()).into_owned()
    });
    // The code that writes the first eight bytes has them, too.
    { texts }.find(|text| text.contains("[unbroken] ")).expect("there is a log in memory")
}

#[test]
fn a_board_with_no_uart_that_is_known_says_so_in_memory() {
    let scratch = scratch();
    let mut machine = Machine { memory: Size::mib(256), ..machine() };
    machine.load_guest(&scratch.file("guest", &bytes::guest()), None, "").unwrap();
    let mut tree = tree_of(&scratch, &machine);
    replace(&mut tree, b"arm,pl011\0", b"some,uart\0");
    pack(&mut tree);
    let ram = scratch.path("ram");
    let backend = format!("memory-backend-file,id=ram,size=256M,share=on,mem-path={}", ram.display());
    machine.extra.extend(["-object".into(), backend.into(), "-machine".into(), "memory-backend=ram".into()]);
    machine.extra.extend(["-dtb".into(), scratch.file("tree.dtb", &tree).into()]);
    let outcome = run(&machine);
    assert_eq!(outcome.console.bytes(), b"", "{}", outcome.console.tail(40));
    let log = memory_log(&std::fs::read(ram).unwrap());
    let line = |words: &[&str]| log.lines().any(|line| words.iter().all(|word| line.contains(word)));
    assert!(line(&["[unbroken] no console: /pl011@9000000", "some,uart"]), "{log}");
    assert!(line(&["[unbroken] end: power-off"]), "it went on, and the guest ran: {log}");
}

#[test]
#[ignore = "long"]
fn the_interrupts_of_named_boards_are_what_another_program_reads() {
    let trees = trees::read_all(&board_trees(workspace()).unwrap()).unwrap();
    let wrong = trees::differences(&trees::listed(), &trees);
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
