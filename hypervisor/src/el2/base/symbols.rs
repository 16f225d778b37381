//! Names of the image's own functions.

use crate::el2::base::own_map;
use core::fmt;
use hypervisor::symbol_table::SymbolTable;

const BYTES: usize = 96 << 10;

/// Room that the host tool fills in after linking; see [`hypervisor::symbol_table`].
#[repr(C, align(8))]
struct Room([u8; BYTES]);

#[used]
// SAFETY: the linker script puts the section among the read-only data.
#[unsafe(link_section = ".symbols")]
static ROOM: Room = Room([0; BYTES]);

/// An address, displayed with the name of the function that it lies in.
pub struct Address(pub u64);

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}", self.0)?;
        let Some(offset) = self.0.checked_sub(own_map::image_start()).and_then(|offset| u32::try_from(offset).ok())
        else {
            return Ok(());
        };
        // The compiler sees zeros; what is there was put there later.
        let room = core::hint::black_box(&ROOM);
        match SymbolTable::new(&room.0).find(offset) {
            Some((name, behind)) => write!(f, " {name}+{behind:#x}"),
            None => write!(f, " image+{offset:#x}"),
        }
    }
}
