//! Rotary embedding: `cargo bench --bench rope`.

mod common;

fn main() {
    common::main("rope");
}
