//! Changing the size of what translates an address: block to table and back, runs with the Contiguous bit.

mod bbm;
mod collapse;
mod runs;
mod split;
