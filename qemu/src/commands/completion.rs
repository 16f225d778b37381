//! `cargo hv completion`: what a shell is to know of the command line.

use crate::cli::Cli;
use crate::ending::Status;
use clap::CommandFactory;
use clap_complete::Shell;

/// With bash, Cargo's own completion (`_cargo`) goes on for all other subcommands.
const BASH: &str = r#"
_cargo_hv() {
    if [[ $COMP_CWORD -gt 1 && ${COMP_WORDS[1]} == hv ]]; then
        COMP_WORDS=("${COMP_WORDS[@]:1}")
        COMP_CWORD=$((COMP_CWORD - 1))
        _hv hv "${COMP_WORDS[COMP_CWORD]}" "${COMP_WORDS[COMP_CWORD - 1]}"
    elif declare -F _cargo >/dev/null; then
        _cargo "$@"
    fi
}
complete -F _cargo_hv -o bashdefault -o default cargo
"#;

/// Runs the command.
pub fn completion(shell: Shell) -> Status {
    let mut script = Vec::new();
    // In the script, the name is that of the program that is typed.
    let mut command = Cli::command().bin_name("hv");
    clap_complete::generate(shell, &mut command, "hv", &mut script);
    print!("{}", String::from_utf8_lossy(&script));
    if shell == Shell::Bash {
        print!("{BASH}");
    }
    Status::Success
}
