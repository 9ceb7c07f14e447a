//! Models assembled from the kernels.

mod any;
mod attend;
mod cache;
mod config;
#[cfg(feature = "embedded-model")]
pub mod embedded;
mod generate;
mod hyena;
mod llama;
mod matrix;
mod offload;
mod random;
mod sampling;
mod spacetime;
mod sparse;
mod sparsity;
mod weights;

pub use any::Model;
pub use cache::KvCache;
pub use config::{FilterConfig, HyenaConfig, LayerAttention, LlamaConfig, ModelConfig};
pub use generate::{Decode, Generation, Then};
pub use hyena::{Hyena, HyenaSession};
pub use llama::{Llama, LlamaOptions, Logits, Session};
pub use offload::Streamed;
pub use sampling::{Sampler, Sampling};
pub use spacetime::SpaceTime;
pub use sparsity::{InputThresholds, LayerSparsity, SparseMethod, Thresholds};
pub use weights::Progress;
