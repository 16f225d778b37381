//! Sets of pages: those that are handed out, the dirty bitmap of a log, and what the table knows of its logs.

pub(crate) mod dirty_bitmap;
pub(crate) mod logs;
pub mod page_set;
pub(crate) mod sink;
pub(crate) mod sync;
