//! Few rows times a weight matrix: `cargo bench --bench gemv`.

mod common;

fn main() {
    common::main("gemv");
}
