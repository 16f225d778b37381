//! `cargo hv`: see `cargo hv --help`.

use qemu::cli::{Cli, Command};
use qemu::commands::{
    audit, bench, boards, completion, debug, doctor, linux, migrate, payload, quickstart, replay, report, resume,
    secure_partition, test, trees,
};
use qemu::ending::Status;
use qemu::interrupt;
use qemu::workspace::Workspace;
use std::process::ExitCode;

fn main() -> ExitCode {
    let cli = Cli::read();
    let result = interrupt::listen().and_then(|()| Workspace::locate()).and_then(|workspace| match &cli.command {
        Command::Linux(options) => linux::linux(&workspace, options),
        Command::Resume(options) => resume::resume(&workspace, options),
        Command::Migrate(options) => migrate::migrate(&workspace, options),
        Command::Payload(options) => payload::payload(&workspace, options),
        Command::SecurePartition(options) => secure_partition::secure_partition(&workspace, options),
        Command::Quickstart { cpu } => quickstart::quickstart(&workspace, cpu),
        Command::Audit(options) => audit::audit(&workspace, options),
        Command::Replay(options) => replay::replay(&options.file),
        Command::Report(options) => report::report(options),
        Command::Trees(options) => trees::trees(&workspace, options),
        Command::Debug(options) => debug::debug(&workspace, options),
        Command::Boards(options) => boards::boards(&workspace, options),
        Command::Bench(options) => bench::bench(&workspace, options),
        Command::Test(options) => test::test(&workspace, options),
        Command::Completion { shell } => Ok(completion::completion(*shell)),
        Command::Doctor(options) => Ok(doctor::doctor(&workspace, options.qemu.as_deref())),
    });
    match result {
        Ok(status) => status.into(),
        Err(error) => {
            eprintln!("hv: {error:#}");
            Status::SetUp.into()
        }
    }
}
