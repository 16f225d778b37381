//! Why there is no guest.

use alloc::string::{String, ToString};

/// Why the hypervisor will not run: a sentence for people.
pub struct Refusal(pub String);

impl<E: core::error::Error> From<E> for Refusal {
    fn from(error: E) -> Self {
        Self(error.to_string())
    }
}
