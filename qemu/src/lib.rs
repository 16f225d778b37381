//! The host tool's parts.
