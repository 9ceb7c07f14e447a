//! Normalisation: `cargo bench --bench norm`.

mod common;

fn main() {
    common::main("norm");
}
