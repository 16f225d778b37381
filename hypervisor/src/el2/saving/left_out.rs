//! What a test leaves out of a resume, to see that it is missed.

use alloc::string::String;
use spin::Once;

static LEFT_OUT: Once<Option<String>> = Once::new();

/// What is left out, from now on.
pub fn leave_out(name: Option<String>) {
    LEFT_OUT.call_once(|| name);
}

/// Whether this is left out.
pub fn left_out(name: &str) -> bool {
    let left_out = LEFT_OUT.get().is_some_and(|left_out| left_out.as_deref() == Some(name));
    if left_out {
        log::warn!("saving: {name} is left out, as leave-out says");
    }
    left_out
}
