//! The kernels: for each family its problem, plan, recipe and public operator.

pub mod attention;
pub mod ceilings;
pub mod elementwise;
pub mod embedding;
pub mod fft;
pub mod fftconv;
pub mod fragments;
pub mod gemm;
pub mod gemm8;
pub mod gemv;
pub mod hyena;
pub mod linear;
pub mod norm;
pub mod quant;
pub mod random;
pub mod rope;
pub mod rows;
pub mod select;
pub mod shortconv;
pub mod softmax;
pub mod spacetime;
pub mod sparse;
