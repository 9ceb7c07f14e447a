//! Softmax: `cargo bench --bench softmax`.

mod common;

fn main() {
    common::main("softmax");
}
