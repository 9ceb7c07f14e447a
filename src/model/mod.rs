//! Models assembled from the kernels.

pub mod config;

pub use config::LlamaConfig;
