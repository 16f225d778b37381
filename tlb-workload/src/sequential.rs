//! A sequential read of a file in the page cache, in pieces of 64 KiB.

use crate::marker;
use crate::system::File;

const PIECE: usize = 64 << 10;
const WARM: u64 = 8 << 20;
const COUNTED: u64 = 64 << 20;

fn read(file: &File, piece: &mut [u8], bytes: u64) -> Result<(), i64> {
    let mut left = bytes;
    while left > 0 {
        match file.read(piece)? {
            0 => return Err(-1),
            count => left = left.saturating_sub(count),
        }
    }
    Ok(())
}

/// Makes the file, and reads it.
pub fn run(window: u64) -> Result<(), i64> {
    let file = File::create(c"/tmp/file")?;
    let mut piece = [0; PIECE];
    for offset in (0..WARM + COUNTED).step_by(PIECE) {
        file.write_at(&piece, offset)?;
    }
    marker::watch();
    read(&file, &mut piece, WARM)?;
    marker::open(window);
    read(&file, &mut piece, COUNTED)?;
    marker::close();
    Ok(())
}
