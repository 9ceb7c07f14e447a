//! Elementwise kernels: `cargo bench --bench elementwise`.

mod common;

fn main() {
    common::main("elementwise");
}
