//! What the tests of the disk share.

use crate::calls::{hypercall, services};
use crate::machine::disk::{self, Disk, SECTOR, load};
use crate::machine::memory::{self, PAGE};
use crate::machine::report::{Outcome, Stop};
use hypervisor_abi::function;

/// Sectors that the tool has filled, each 64-bit word with its own number.
pub const FILLED: u64 = 64;
/// A sector behind these, to write to.
pub const SPARE: u64 = FILLED;

/// What a test returns early with where there is no disk by way of the hypervisor.
///
/// # Errors
///
/// As [`services::required`]; skipped also without a disk.
pub fn required() -> Outcome {
    hypercall::required()?;
    services::required()?;
    if disk::place().is_none() {
        skip!("no mediated disk");
    }
    Ok(())
}

/// A page of zeros for data.
pub fn page() -> Result<u64, Stop> {
    match memory::allocate_zeroed_page() {
        Some(page) => Ok(page),
        None => fail!("no memory for data"),
    }
}

/// Checks what was read of sectors that the tool has filled.
pub fn check_filled(buffer: u64, sector: u64, bytes: u64) {
    for word in 0..bytes / 8 {
        let (found, expected) = (load::<u64>(buffer + 8 * word), sector * SECTOR / 8 + word);
        if found != expected {
            return crate::machine::report::failure(format_args!(
                "word {word} from sector {sector} on: expected {expected:#x}, found {found:#x}"
            ));
        }
    }
}

/// Hashes of what is EL2's.
pub fn integrity() -> [u64; 2] {
    let [_, constants, control, _] = services::hvc(function::INTEGRITY, [0; 3]);
    [constants, control]
}

/// Checks that a disk works, from a reset on.
pub fn works() -> Outcome {
    let buffer = page()?;
    let mut disk = Disk::open(8)?;
    disk.request(false, 3, buffer, PAGE as u32)?;
    check_filled(buffer, 3, PAGE);
    Ok(())
}
