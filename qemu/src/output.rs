//! Lines to standard output and standard error. Nobody may read them any more (`cargo hv doctor | head -1`), and that is no
//! reason to panic.

use crate::temporary;
use std::fmt::Arguments;
use std::io::{self, ErrorKind, Write};

/// The exit status that a program has which SIGPIPE ends.
const NOBODY_READS: i32 = 141;

/// Writes to standard output, with the colours that it can show. Where nobody reads it, the process ends.
pub fn write(text: Arguments<'_>) {
    let mut out = anstream::stdout().lock();
    if let Err(error) = out.write_fmt(text).and_then(|()| out.flush()) {
        temporary::remove_all();
        if error.kind() != ErrorKind::BrokenPipe {
            complain(format_args!("hv: can't write to standard output: {error}\n"));
        }
        std::process::exit(NOBODY_READS);
    }
}

/// Writes to standard error. Where nobody reads it, the work goes on.
pub fn complain(text: Arguments<'_>) {
    let mut out = anstream::stderr().lock();
    let _: io::Result<()> = out.write_fmt(text).and_then(|()| out.flush());
}
