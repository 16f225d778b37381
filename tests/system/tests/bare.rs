//! The launcher on its own: the same guest without the hypervisor. If this fails, look here before anywhere else.

use qemu::console::Extract;
use qemu::initramfs::{self, Command};
use qemu::machine::Machine;
use qemu::run::{self, Flow, Stop};
use std::time::Duration;
use system_tests::{emulator, guest};

#[test]
fn linux_runs_a_command_without_the_hypervisor() {
    let command = Command::new("printf 'a\\nb'; exit 7");
    let folder = system_tests::scratch();
    let initrd = folder.file("run.cpio", &initramfs::archive(&guest().busybox, Some(&command)).unwrap());
    let machine = Machine {
        append: "console=ttyAMA0 quiet loglevel=1 rdinit=/hv/init".into(),
        initrd: Some(initrd),
        ..Machine::new(&guest().kernel)
    };
    let mut extract = Extract::new(&command.nonce);
    let mut output = Vec::new();
    let _turn = system_tests::turn();
    let outcome = run::capture(emulator(), &machine, Duration::from_secs(120), |bytes, _| {
        extract.push(bytes, |_, bytes| output.extend_from_slice(bytes));
        Flow::Continue
    })
    .unwrap();
    assert!(
        matches!(outcome.stop, Stop::Exited(status) if status.success()),
        "{:?}\n{}",
        outcome.stop,
        outcome.console.tail(20)
    );
    assert_eq!((output.as_slice(), extract.status()), (&b"a\nb"[..], Some(7)), "{}", outcome.console.tail(20));
}
