//! Block-sparse attention patterns: which blocks of keys each block of queries meets.
//!
//! A [`Pattern`] says it as data (`s2:stride=16,window=4`), a closure, a matrix or lists say it block by block; a
//! [`Builder`] compiles either, for heads and lengths, into a [`SparseLayout`]: sorted lists in host memory for the
//! planner, and once on the device for the kernels. Layouts are shared: clones are the same lists.

mod builder;
mod geometry;
mod layout;
mod lists;
mod pattern;
mod picture;
mod residency;
mod spec;

pub use builder::Builder;
pub use geometry::{BLOCK_SIZES, Causality};
pub use layout::SparseLayout;
pub use lists::{Entry, PARTIAL};
pub use pattern::Pattern;
pub use residency::Residency;
