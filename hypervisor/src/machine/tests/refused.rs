//! Every error from a tree that has just that wrong.

use super::*;

#[test]
fn memory_must_be_there_and_readable() {
    assert_eq!(
        error(GIC3, |tree| {
            tree.take("memory@40000000");
        }),
        MachineError::NoMemory
    );
    assert_eq!(
        error(GIC3, |tree| {
            tree.at("memory@40000000").set("status", *b"disabled\0");
        }),
        MachineError::NoMemory
    );
    assert_eq!(
        error(GIC3, |tree| {
            tree.at("memory@40000000").set_cells("reg", &[0, 0, 0, 0]);
        }),
        MachineError::NoMemory
    );
    let bad = MachineError::BadReg { path: "/memory@40000000".to_string() };
    for reg in [&[][..], &[0, 0x4000_0000, 0], &[u32::MAX, 0, 1, 0], &[0, 0x4000_0000, 0, 1, 0]] {
        assert_eq!(
            error(GIC3, |tree| {
                tree.at("memory@40000000").set_cells("reg", reg);
            }),
            bad
        );
    }
    assert_eq!(
        error(GIC3, |tree| {
            tree.at("memory@40000000").unset("reg");
        }),
        bad
    );
    let cells: Vec<u32> = (0..=MAX_REGIONS as u32).flat_map(|index| [0, index << 20, 0, 4096]).collect();
    assert!(matches!(
        error(GIC3, |tree| {
            tree.at("memory@40000000").set_cells("reg", &cells);
        }),
        MachineError::TooMany { what: "ranges of RAM", .. }
    ));
}

#[test]
fn cpus_must_be_there_and_startable() {
    assert_eq!(
        error(GIC3, |tree| {
            tree.take("cpus");
        }),
        MachineError::NoCpus
    );
    assert_eq!(error(GIC3, |tree| tree.at("cpus").children.clear()), MachineError::NoCpus);
    assert_eq!(
        error(GIC3, |tree| {
            tree.at("cpus/cpu@2").set_cells("reg", &[1]);
        }),
        MachineError::SameCpuTwice { mpidr: 1 }
    );
    let bad = MachineError::BadReg { path: "/cpus/cpu@1".to_string() };
    assert_eq!(
        error(GIC3, |tree| {
            tree.at("cpus/cpu@1").unset("reg");
        }),
        bad
    );
    // Bits of MPIDR_EL1 that are no affinity.
    assert_eq!(
        error(GIC3, |tree| {
            tree.at("cpus/cpu@1").set_cells("reg", &[0x8000_0001]);
        }),
        bad
    );
    for method in [&b"spin-table\0"[..], b""] {
        let machine = machine(GIC3, |tree| {
            tree.at("cpus/cpu@3").set("enable-method", method);
        });
        assert_eq!(machine.check_startable(0), Err(MachineError::NotPsci { cpu: "cpu@3".to_string() }));
    }
    assert!(matches!(
        error(GIC3, |tree| {
            let cpus = tree.at("cpus");
            let cpu = cpus.at("cpu@0").clone();
            (4..=MAX_CPUS as u32).for_each(|number| {
                let mut cpu = cpu.clone();
                cpu.name = alloc::format!("cpu@{number:x}");
                cpus.add(cpu.set_cells("reg", &[number]).clone());
            });
        }),
        MachineError::TooMany { what: "CPUs", .. }
    ));
    // A disabled CPU is none.
    assert_eq!(
        machine(GIC3, |tree| {
            tree.at("cpus/cpu@3").set("status", *b"disabled\0");
        })
        .cpus
        .len(),
        3
    );
}

#[test]
fn psci_must_be_there_and_callable() {
    assert_eq!(
        error(GIC3, |tree| {
            tree.take("psci");
        }),
        MachineError::NoPsci
    );
    assert_eq!(
        error(GIC3, |tree| {
            tree.at("psci").set("compatible", *b"arm,psci\0");
        }),
        MachineError::NoPsci
    );
    assert_eq!(
        error(GIC3, |tree| {
            tree.at("psci").set("method", *b"fax\0");
        }),
        MachineError::BadPsciMethod { found: "fax".to_string() }
    );
    assert_eq!(
        error(GIC3, |tree| {
            tree.at("psci").unset("method");
        }),
        MachineError::BadPsciMethod { found: "nothing".to_string() }
    );
    assert_eq!(
        machine(GIC3, |tree| {
            tree.at("psci").set("method", *b"hvc\0");
        })
        .psci,
        Conduit::Hvc
    );
    let below_firmware = machine(GIC3, |tree| {
        let psci = tree.take("psci");
        let mut firmware = TestNode::new("firmware");
        firmware.add(psci);
        tree.add(firmware);
    });
    assert_eq!(below_firmware.psci, Conduit::Smc);
}

#[test]
fn the_gic_must_be_a_known_and_whole_one() {
    assert_eq!(
        error(GIC3, |tree| {
            tree.take("intc@8000000");
        }),
        MachineError::NoGic
    );
    assert_eq!(
        error(GIC3, |tree| {
            tree.at("intc@8000000").set("compatible", *b"arm,gic-v5\0");
        }),
        MachineError::UnknownGic { compatible: "arm,gic-v5".to_string() }
    );
    let lacks = |tree, change: &dyn Fn(&mut TestNode)| match error(tree, |tree| change(tree.at("intc@8000000"))) {
        MachineError::BadGic { path, lacks } if path == "/intc@8000000" => lacks,
        other => panic!("{other}"),
    };
    assert_eq!(
        lacks(GIC3, &|gic| {
            gic.unset("reg");
        }),
        "readable registers"
    );
    assert_eq!(
        lacks(GIC3, &|gic| {
            gic.set_cells("reg", &[0, 0x800_0000, 0, 0]);
        }),
        "a distributor"
    );
    assert_eq!(
        lacks(GIC2, &|gic| {
            gic.set_cells("reg", &[0, 0x800_0000, 0, 0x1000]);
        }),
        "a CPU interface"
    );
    for regions in [0, 2, 64] {
        assert_eq!(
            lacks(GIC3, &|gic| {
                gic.set_cells("#redistributor-regions", &[regions]);
            }),
            "the redistributors that it counts"
        );
    }
    assert_eq!(
        lacks(GIC3, &|gic| {
            gic.set_cells("#interrupt-cells", &[1]);
        }),
        "#interrupt-cells = <3>"
    );
    // A node without this is no interrupt parent, to Linux either.
    assert_eq!(
        error(GIC3, |tree| {
            tree.at("intc@8000000").unset("#interrupt-cells");
        }),
        MachineError::NoTimerInterrupt { why: NoInterrupt::Endless }
    );
    assert!(matches!(
        error(GIC3, |tree| {
            tree.at("intc@8000000").set_cells("#redistributor-regions", &[1 << 31]);
        }),
        MachineError::TooMany { what: "GIC redistributor regions", .. }
    ));
}

#[test]
fn the_timer_must_be_there() {
    assert_eq!(
        error(GIC3, |tree| {
            tree.take("timer");
        }),
        MachineError::NoTimer
    );
    assert_eq!(
        error(GIC3, |tree| {
            tree.at("timer").set_cells("interrupts", &[1, 13, 4, 1, 14, 4]);
        }),
        MachineError::NoTimer
    );
}

#[test]
fn a_device_that_is_used_must_have_registers() {
    assert_eq!(
        error(GIC3, |tree| {
            tree.at("pl031@9010000").unset("reg");
        }),
        MachineError::BadReg { path: "/pl031@9010000".to_string() }
    );
}

#[test]
fn modules_must_be_one_kernel_and_at_most_one_ramdisk() {
    const KERNEL: &str = "module@0x48000000";
    const INITRD: &str = "module@0x4c000000";
    assert_eq!(
        machine(GIC3, |tree| {
            tree.take("chosen");
        })
        .kernel(),
        Err(MachineError::NoKernel)
    );
    assert_eq!(
        machine(GIC3, |tree| {
            tree.at("chosen").take(KERNEL);
        })
        .kernel(),
        Err(MachineError::NoKernel)
    );
    let compatible = |node: &'static str, names: &'static [u8]| {
        error(GIC3, |tree| {
            tree.at("chosen").at(node).set("compatible", names);
        })
    };
    assert_eq!(
        compatible(INITRD, b"multiboot,module\0multiboot,kernel\0"),
        MachineError::ModuleTwice { kind: "kernel" }
    );
    assert_eq!(
        compatible(KERNEL, b"multiboot,module\0multiboot,ramdisk\0"),
        MachineError::ModuleTwice { kind: "ramdisk" }
    );
    assert_eq!(
        compatible(INITRD, b"multiboot,module\0multiboot,microcode\0"),
        MachineError::UnknownModule { path: "/chosen/module@0x4c000000".to_string() }
    );
    for reg in [&[][..], &[0, 0x4800_0000], &[0, 0x4800_0000, 0, 0], &[0, 1, 0, 1, 0, 3, 0, 1], &[u32::MAX, 0, 2, 0]] {
        assert_eq!(
            error(GIC3, |tree| {
                tree.at("chosen").at(KERNEL).set_cells("reg", reg);
            }),
            MachineError::BadReg { path: "/chosen/module@0x48000000".to_string() }
        );
    }
}

#[test]
fn too_many_devices_are_refused() {
    let many = error(GIC3, |tree| {
        let device = tree.at("fw-cfg@9020000").clone();
        tree.children.extend(core::iter::repeat_n(device, 2048));
    });
    assert!(matches!(many, MachineError::TooMany { what: "devices", .. }));
}

/// Each sentence names what it is about and what to do; none is empty or a debug print.
#[test]
fn errors_are_sentences() {
    let name = || "/chosen/module@1".to_string();
    for (error, words) in [
        (MachineError::NoMemory, ["memory", "add"]),
        (MachineError::NoKernel, ["kernel", "guest-loader"]),
        (MachineError::NoPsci, ["PSCI", "arm,psci-0.2"]),
        (MachineError::NoGic, ["interrupt controller", "GICv3"]),
        (MachineError::UnknownGic { compatible: "x,y".to_string() }, ["x,y", "GICv2"]),
        (MachineError::ModuleTwice { kind: "kernel" }, ["two multiboot,kernel", "one guest"]),
        (MachineError::OutsideRam { what: name(), range: range(0x10, 0x10) }, ["0x10-0x20", "more memory"]),
        (
            MachineError::Overlap {
                what: name(),
                range: range(1, 1),
                other: "the hypervisor".into(),
                with: range(1, 2),
            },
            ["overlaps the hypervisor at 0x1-0x3", "load it elsewhere"],
        ),
        (
            MachineError::SharedPage {
                device: "the UART".into(),
                registers: range(1, 1),
                other: "dma@0".into(),
                range: range(1, 2),
            },
            ["the UART at 0x1-0x2 in the same pages as dma@0", "correct the tree"],
        ),
        (
            MachineError::PartOfPage { device: "the GIC's distributor".into(), registers: range(0, 0x800), page: 4096 },
            ["the GIC's distributor at 0x0-0x800", "correct the tree"],
        ),
        (MachineError::NoRedistributor { address: 0x80a_0000 }, ["0x80a0000", "correct the reg"]),
        (MachineError::TooMany { what: "CPUs", most: 64 }, ["more CPUs than the 64", "leave some out"]),
    ] {
        let sentence = error.to_string();
        assert!(words.iter().all(|word| sentence.contains(word)), "{sentence}");
    }
}
