//! Finding what the tool needs, and getting what is missing.

pub mod apt;
pub mod drivers;
pub mod emulator;
pub mod firmware;
pub mod guest;
pub mod rootfs;
pub mod rust;
pub mod u_boot;

/// What `cargo hv doctor` says about one thing that the tool needs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Finding {
    /// It is there; where, and which version.
    Found(String),
    /// It is not there, but the first command that needs it will get it this way.
    WillGet(String),
    /// It is not there, and the user has to do this.
    Missing(String),
}
