//! The end of `cargo hv --help`.

/// What follows the list of commands. No line is longer than 79 characters: a terminal that is narrower than a line would break its columns.
pub const AFTER: &str = "\
Examples:
  cargo hv linux                              a shell in Linux; Ctrl-A X leaves
  cargo hv linux --run 'nproc; free'          one command, and its status
  cargo hv linux --cpu cortex-a72 --gic 2 --smp 4 --memory 4G
  cargo hv linux --kernel Image --initrd rootfs.cpio.gz --append 'loglevel=8'
  cargo hv linux --kernel debian-6.12         a newer kernel: 52-bit addresses
  cargo hv linux --add prog:/bin/ --run prog  a file of yours in the guest
  cargo hv linux --rootfs debian --net        Debian with systemd, a network
  cargo hv linux --firmware uefi              started by UEFI and GRUB
  cargo hv linux --dirty auto --out dirty     what is written? dirty.png
  cargo hv report dirty                       the same as a page: report.html
  cargo hv linux --churn 1 --oracle --run 'sha256sum /hv/busybox'
  cargo hv linux --audit --run 'sha256sum /hv/busybox'
  cargo hv payload                            the EL1 test suite
  cargo hv payload --matrix --junit out.xml   the same on every kind of CPU
  cargo hv payload --image FILE               a guest that you bring
  cargo hv bench                              instructions of the hot paths
  cargo hv secure-partition                   the engine in a manager at S-EL2
  cargo hv quickstart                         the engine at EL2 in 300 lines
  cargo hv test                               all that CI checks; --quick: less
  cargo hv doctor                             what is there, what is missing

What is missing is fetched the first time, and its size told. The guest's
kernel and programs, firmware and GRUB are kept below target/hv. The Rust
target and QEMU are installed on this system: by rustup, or, unasked, by
apt-get as root.

Environment:
  HV_QEMU         the QEMU to use, as --qemu; empty is as good as not set
  HV_APT_SOURCES  a sources.list to fetch the guest's arm64 packages from,
                  where the system's own archives have none
  HV_SHOW_QEMU    if set, QEMU's command line is shown

Exit status: 0 the guest powered off or rebooted; with --run, the command's own
status; 128 and a signal's number if that ended the run. Otherwise:
  1    a test, a check or an audit failed
  2    the arguments cannot be parsed
  120  the hypervisor refused to start
  121  the hypervisor crashed
  122  QEMU ended unexpectedly
  123  the run ended without a result
  124  the time limit was reached
  125  the arguments cannot work together or on this machine (a file that is
       missing, a CPU model that QEMU does not have, too many CPUs), or
       something could not be set up or built";

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::Cli;
    use clap::CommandFactory;

    #[test]
    fn columns_of_the_help_hold_on_a_terminal_of_80() {
        for line in AFTER.lines() {
            assert!(line.chars().count() < 80, "{line}");
            // An example and what it is for.
            if let Some((example, _)) = line.strip_prefix("  cargo").and_then(|rest| rest.split_once("  ")) {
                assert!(
                    example.len() + 7 <= 46 && line.get(45..46) == Some(" ") && line.get(46..47) != Some(" "),
                    "{line}"
                );
            }
        }
        for command in Cli::command().get_subcommands_mut() {
            let help = command.render_long_help().to_string();
            assert!(!help.contains("[default: ]") && !help.contains("[default: \"\"]"), "{help}");
        }
    }
}
