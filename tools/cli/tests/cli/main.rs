//! The program, called as a user calls it.

mod common;
mod elementwise;
mod program;
