//! Whole models: `cargo bench --bench model`.

mod common;

fn main() {
    common::main("model");
}
