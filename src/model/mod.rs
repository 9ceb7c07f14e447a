//! Models assembled from the kernels.

mod cache;
mod config;
#[cfg(feature = "embedded-model")]
pub mod embedded;
mod generate;
mod llama;
mod sampling;
mod weights;

pub use cache::KvCache;
pub use config::{LayerAttention, LlamaConfig};
pub use generate::Generation;
pub use llama::{Llama, LlamaOptions, Logits, Session};
pub use sampling::{Sampler, Sampling};
pub use weights::Progress;
