//! Matrix products: `cargo bench --bench gemm`.

mod common;

fn main() {
    common::main("gemm");
}
