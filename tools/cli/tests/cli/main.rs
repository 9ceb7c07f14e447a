//! The program, called as a user calls it.

mod attention;
mod attention_backward;
mod common;
mod dense;
mod elementwise;
mod gemm8;
mod generate;
mod mlp;
mod program;
mod rows;
mod sequences;
mod sparse_attention;
mod tokens;
mod tune;
