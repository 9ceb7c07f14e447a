//! The command-line program `flashwave`.
fn main() {}
