//! Correctness cases of every kernel, shared by `cargo test` and `flashwave verify`.

pub mod grammar;
