//! Linux boots under the hypervisor: on every kind of CPU and interrupt controller, with few and many CPUs, with little
//! and much memory; and it ends as it wants to.

use qemu::console::{Console, End};
use qemu::initramfs;
use qemu::machine::{Gic, Machine};
use qemu::run::{Flow, Stop};
use qemu::setup::guest::Installer;
use qemu::size::Size;
use system_tests::{assert_end, guest, linux, machine, observe, scratch, workspace};

/// Boots Linux, and compares what it sees with what the machine has.
fn boots(cpu: &str, gic: Gic, smp: u32, mib: u64) {
    let machine = Machine { cpu: cpu.into(), gic, smp, memory: Size::mib(mib), ..machine() };
    let ran =
        linux(machine, "nproc; awk '/^MemTotal/ { print $2 }' /proc/meminfo; grep -c arch_timer /proc/interrupts");
    assert_end!(ran.outcome, End::PowerOff);
    let lines: Vec<u64> = ran.output.lines().map(|line| line.parse().unwrap()).collect();
    let [cpus, kib, timers] = lines[..] else { panic!("unexpected output: {}", ran.output) };
    assert_eq!(cpus, u64::from(smp));
    // The kernel keeps its own image and a 64th for its page structures; the hypervisor's share is to be small.
    let (total, least) = (mib << 10, (mib << 10) * 31 / 32 - (96 << 10));
    assert!((least..=total).contains(&kib), "{kib} KiB of {total} KiB");
    assert_eq!((timers, ran.status), (1, Some(0)));
}

#[test]
fn max_gicv3_1_cpu_512_mib() {
    boots("max", Gic::V3, 1, 512);
}

#[test]
fn max_gicv2_4_cpus_4_gib() {
    boots("max", Gic::V2, 4, 4096);
}

#[test]
fn max_gicv3_4_cpus_4_gib() {
    boots("max", Gic::V3, 4, 4096);
}

#[test]
fn cortex_a72_gicv2_2_cpus_512_mib() {
    boots("cortex-a72", Gic::V2, 2, 512);
}

#[test]
fn cortex_a72_gicv3_4_cpus_4_gib() {
    boots("cortex-a72", Gic::V3, 4, 4096);
}

#[test]
fn cortex_a76_gicv3_2_cpus_4_gib() {
    boots("cortex-a76", Gic::V3, 2, 4096);
}

#[test]
fn cortex_a76_gicv2_1_cpu_512_mib() {
    boots("cortex-a76", Gic::V2, 1, 512);
}

#[test]
fn reboot_ends_the_run() {
    let ran = linux(machine(), "reboot -f; sleep 1000");
    assert_end!(ran.outcome, End::Reset);
}

/// Names of the nodes at the root of the guest's device tree that stand for devices able to write to memory.
fn dma_devices(machine: Machine) -> Vec<String> {
    let ran = linux(machine, "ls -1 /proc/device-tree");
    assert_end!(ran.outcome, End::PowerOff);
    assert!(ran.output.lines().any(|node| node.starts_with("pl011")), "{}", ran.output);
    let is_master = |node: &&str| ["virtio_mmio", "fw-cfg", "pcie", "smmu"].iter().any(|name| node.starts_with(name));
    ran.output.lines().filter(is_master).map(str::to_owned).collect()
}

#[test]
fn no_device_that_could_write_to_memory_is_there() {
    assert_eq!(dma_devices(machine()), [""; 0]);
}

#[test]
fn a_granted_device_is_there_and_no_other() {
    let mut machine = machine();
    let addresses = machine.add_virtio(&["virtio-rng-device".to_owned()]).unwrap();
    machine.append += &format!(" grant-dma={:#x}", addresses[0]);
    assert_eq!(dma_devices(machine), [format!("virtio_mmio@{:x}", addresses[0])]);
}

/// Each transport has a part of a page: EL2 forwards to the one that is granted.
#[test]
fn a_granted_device_answers_and_its_neighbours_do_not() {
    let mut machine = machine();
    let address = machine.add_virtio(&["virtio-rng-device".to_owned()]).unwrap()[0];
    machine.append += &format!(" grant-dma={address:#x}");
    // The magic number; a status that is written; the magic number of the one behind, whose reading is a bus error.
    let shell = format!(
        "/hv/busybox devmem {address:#x} 32; /hv/busybox devmem {0:#x} 32 3; /hv/busybox devmem {0:#x} 32; \
         /hv/busybox devmem {1:#x} 32 || echo $?",
        address + 0x70,
        address + 0x200
    );
    let ran = linux(machine, &shell);
    assert_end!(ran.outcome, End::PowerOff);
    let lines: Vec<_> = ran.output.lines().filter(|line| !line.contains("Bus error")).collect();
    assert_eq!(lines, ["0x74726976", "0x00000003", "135"]);
}

#[test]
fn instructions_at_el2_are_few() {
    let machine = Machine { icount: true, append: "log=info icount=on".into(), ..machine() };
    let ran = linux(machine, "true");
    assert_end!(ran.outcome, End::PowerOff);
    let lines = ran.outcome.console.hypervisor();
    let line = lines.iter().find(|line| line.contains("instructions at EL2")).expect("the hypervisor counts");
    let percent = line.split(['(', ' ', '%']).filter_map(|word| word.parse::<f64>().ok()).next_back();
    assert!(percent.is_some_and(|percent| percent <= 0.7), "{line}");
    // The parts of the boot are told, and add up to what they are said to be in all.
    let line = lines.iter().find(|line| line.contains("instructions before the guest")).expect("the boot is told");
    let numbers: Vec<u64> = line.split([' ', ':', ',']).filter_map(|word| word.parse().ok()).collect();
    let (all, parts) = numbers.split_first().expect("a sum and its parts");
    assert!(parts.len() >= 7 && parts.iter().sum::<u64>() == *all, "{line}");
    assert!(*all <= 5_500_000, "{line}");
}

/// What the hypervisor says of leaves and of exits, with these options, when the same instructions run.
fn leaves_and_exits(append: &str) -> [String; 2] {
    let machine = Machine { icount: true, append: format!("log=info {append}"), ..machine() };
    let ran = linux(machine, "sha256sum /hv/busybox >/dev/null");
    assert_end!(ran.outcome, End::PowerOff);
    let said = ran.outcome.console.hypervisor();
    ["stage 2: ", "exits: "].map(|word| {
        said.iter()
            .find(|line| line.contains(word))
            .unwrap_or_else(|| panic!("no line with {word}: {said:?}"))
            .to_string()
    })
}

#[test]
fn services_that_nobody_uses_cost_no_exit_and_no_leaf() {
    assert_eq!(leaves_and_exits("hypercalls=on"), leaves_and_exits("hypercalls=off"));
}

#[test]
fn the_shell_ends_with_the_machine() {
    for (keys, end) in [("poweroff -f\r", End::PowerOff), ("reboot -f\r", End::Reset), ("exit\r", End::PowerOff)] {
        let scratch = scratch();
        let initrd = scratch.file("initrd", &initramfs::archive(&guest().busybox, None).unwrap());
        let mut machine = machine();
        machine.load_guest(&guest().kernel, Some(&initrd), "console=ttyAMA0 quiet rdinit=/hv/init").unwrap();
        let mut typed = false;
        let outcome = observe(&machine, |_, console: &Console| {
            // Behind the prompt the shell may ask the terminal where the cursor is.
            if typed || !console.lines().last().is_some_and(|line| line.contains("/ # ")) {
                return Flow::Continue;
            }
            typed = true;
            Flow::Send(keys.into())
        });
        assert_end!(outcome, end);
    }
}

#[test]
fn the_installer_reaches_its_userspace() {
    let installer = Installer::get(workspace()).unwrap();
    let mut machine = machine();
    machine.load_guest(&installer.kernel, Some(&installer.initrd), "console=ttyAMA0 quiet").unwrap();
    let outcome = observe(&machine, |_, console| {
        // Its init's first words; the questions come a minute later.
        if console.lines().iter().any(|line| line.starts_with("Starting system log daemon")) {
            Flow::Stop
        } else {
            Flow::Continue
        }
    });
    assert_eq!(outcome.stop, Stop::Satisfied, "{}", outcome.console.tail(40));
}

/// A machine whose second CPU has no FEAT_BBM when the guest turns it on.
fn late_cpu(choice: &str) -> (String, Console) {
    let append = format!("log=info weaken=1 late-cpu={choice}");
    let ran = linux(Machine { smp: 2, append, ..machine() }, "nproc; sha256sum /hv/busybox >/dev/null && echo runs");
    assert_end!(ran.outcome, End::PowerOff);
    (ran.output, ran.outcome.console)
}

#[test]
fn a_weaker_cpu_that_comes_late_is_refused() {
    let (output, console) = late_cpu("refuse");
    assert_eq!(output, "1\nruns\n");
    let said = console.hypervisor();
    assert!(said.iter().any(|line| line.contains("CPU 0x1 is not let in: it has a lower FEAT_BBM level")), "{said:?}");
}

#[test]
fn a_weaker_cpu_that_comes_late_joins_once_all_is_pages() {
    let (output, console) = late_cpu("repaint");
    assert_eq!(output, "2\nruns\n");
    let said = console.hypervisor();
    let last = said.iter().rfind(|line| line.contains("stage 2: ")).unwrap_or_else(|| panic!("{said:?}"));
    let none = ["0 of 1 GiB", "0 of 32 MiB", "0 of 2 MiB", "0 of 64 KiB"];
    assert!(none.iter().all(|size| last.contains(size)) && last.contains("level 0"), "{last}");
}
