//! A cipher over a RAM disk: ChaCha20 over a file in memory, read and written back in pieces of 64 KiB.

use crate::marker;
use crate::system::File;
use chacha20::ChaCha20;
use chacha20::cipher::{KeyIvInit, StreamCipher};

const PIECE: usize = 64 << 10;
const WARM: u64 = 1 << 20;
const COUNTED: u64 = 4 << 20;

fn encrypt(disk: &File, cipher: &mut ChaCha20, piece: &mut [u8], from: u64, to: u64) -> Result<(), i64> {
    for offset in (from..to).step_by(PIECE) {
        disk.read_at(piece, offset)?;
        cipher.apply_keystream(piece);
        disk.write_at(piece, offset)?;
    }
    Ok(())
}

/// Makes the disk, and encrypts it.
pub fn run(window: u64) -> Result<(), i64> {
    let disk = File::create(c"/tmp/disk")?;
    let mut piece = [0; PIECE];
    for offset in (0..WARM + COUNTED).step_by(PIECE) {
        disk.write_at(&piece, offset)?;
    }
    let mut cipher = ChaCha20::new(&[7; 32].into(), &[1; 12].into());
    marker::watch();
    encrypt(&disk, &mut cipher, &mut piece, 0, WARM)?;
    marker::open(window);
    encrypt(&disk, &mut cipher, &mut piece, WARM, WARM + COUNTED)?;
    marker::close();
    Ok(())
}
