//! Attention: `cargo bench --bench attention`.

mod common;

fn main() {
    common::main("attention");
}
