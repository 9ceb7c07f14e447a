//! The kernels: for each family its problem, plan, recipe and public operator.

pub mod attention;
pub mod elementwise;
pub mod rope;
