//! The kernels: for each family its problem, plan, recipe and public operator.

pub mod elementwise;
pub mod embedding;
pub mod norm;
pub mod rope;
pub mod rows;
pub mod select;
pub mod softmax;
