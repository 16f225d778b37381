//! What the Arm ARM fixes: addresses, levels, descriptors, features, errors that name them. It knows no table.

/// Functions that set one field of a `#[non_exhaustive]` struct, for users, who can't write it down whole.
macro_rules! setters {
    ($($(#[$doc:meta])* pub const fn $name:ident(mut self, $field:ident: $type:ty) -> Self;)*) => {
        $(
            $(#[$doc])*
            #[must_use]
            #[inline(always)]
            pub const fn $name(mut self, $field: $type) -> Self {
                self.$field = $field;
                self
            }
        )*
    };
}
pub(crate) use setters;

pub mod address;
mod attributes;
pub mod bits;
pub mod descriptor;
mod errata;
pub mod error;
pub mod features;
pub mod geometry;
pub mod granule;
mod range;
pub mod secure;
pub mod syndrome;
