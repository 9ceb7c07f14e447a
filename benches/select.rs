//! Arg-max and top-k: `cargo bench --bench select`.

mod common;

fn main() {
    common::main("select");
}
