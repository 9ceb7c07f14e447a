//! Rotary position embedding.

/// Which two channels of a head form a rotated pair.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum RopeLayout {
    /// Channels `i` and `i + dims/2` (GPT-NeoX, Hugging Face's Llama).
    HalfSplit,
    /// Channels `2i` and `2i + 1` (RoFormer's paper, llama2.c, GGUF's Llama).
    Interleaved,
}

/// How frequencies are changed for contexts longer than those trained on.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum RopeScaling {
    /// Frequencies as trained.
    None,
    /// Positions divided by `factor` (position interpolation, arXiv 2306.15595).
    Linear {
        /// The stretch, at least 1.
        factor: f64,
    },
    /// The base raised so that the lowest frequency stretches by `factor` ("NTK-aware").
    Ntk {
        /// The stretch, at least 1.
        factor: f64,
    },
    /// YaRN (arXiv 2309.00071).
    Yarn {
        /// The stretch, at least 1.
        factor: f64,
        /// Context length of training.
        original_max_positions: u32,
        /// Rotations above which a channel is not interpolated (paper: 32).
        beta_fast: f64,
        /// Rotations below which a channel is fully interpolated (paper: 1).
        beta_slow: f64,
        /// Multiplies cosine and sine; `None` for the paper's 0.1 ln(factor) + 1.
        attention_factor: Option<f64>,
    },
    /// Llama 3.1's piecewise scaling (Hugging Face's `rope_type: llama3`).
    Llama3 {
        /// The stretch of the low frequencies.
        factor: f64,
        /// Wavelengths over `original_max_positions / low_freq_factor` stretch fully.
        low_freq_factor: f64,
        /// Wavelengths under `original_max_positions / high_freq_factor` stay.
        high_freq_factor: f64,
        /// Context length of training.
        original_max_positions: u32,
    },
}

/// A rotary embedding: which channels, how fast, how scaled.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RopeConfig {
    /// Base of the geometric series of frequencies, 10000 in the paper.
    pub theta: f64,
    /// How many leading channels of each head rotate (even, at most head_dim); the rest pass through.
    pub dims: usize,
    /// Which channels pair.
    pub layout: RopeLayout,
    /// Scaling for long contexts.
    pub scaling: RopeScaling,
}
