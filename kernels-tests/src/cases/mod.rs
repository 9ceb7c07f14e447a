//! The cases, a module for every module of `flashwave::kernels`.

pub mod attention;
pub mod attention_backward;
pub mod cache;
pub mod ceilings;
pub mod elementwise;
pub mod embedding;
pub mod fft;
pub mod fftconv;
mod fftconv_backward;
pub mod gemm;
pub mod gemm8;
pub mod hyena;
pub mod mlp;
pub mod norm;
pub mod quant;
pub mod random;
pub mod rope;
pub mod select;
pub mod shortconv;
pub mod softmax;
pub mod spacetime;
pub mod sparse_attention;

use crate::{Case, Effort};
use flashwave::{Capabilities, Launch};

/// A family: its cases, and the launches its planner makes for a device.
pub struct Family {
    /// Name of its module.
    pub name: &'static str,
    /// Its correctness matrix.
    pub cases: fn() -> Vec<Case>,
    /// A launch of every kind that its planner makes for such a device: naga validates their shaders, and
    /// their limits are checked, without a GPU.
    pub launches: fn(&Capabilities) -> Vec<Launch>,
}

/// All families.
pub const FAMILIES: &[Family] = &[
    Family {
        name: "attention",
        cases: attention::cases,
        launches: attention::launches,
    },
    Family {
        name: "attention_backward",
        cases: attention_backward::cases,
        launches: attention_backward::launches,
    },
    Family {
        name: "cache",
        cases: cache::cases,
        launches: cache::launches,
    },
    Family {
        name: "ceilings",
        cases: ceilings::cases,
        launches: ceilings::launches,
    },
    Family {
        name: "elementwise",
        cases: elementwise::cases,
        launches: elementwise::launches,
    },
    Family {
        name: "embedding",
        cases: embedding::cases,
        launches: embedding::launches,
    },
    Family {
        name: "fft",
        cases: fft::cases,
        launches: fft::launches,
    },
    Family {
        name: "fftconv",
        cases: fftconv::cases,
        launches: fftconv::launches,
    },
    Family {
        name: "gemm",
        cases: gemm::cases,
        launches: gemm::launches,
    },
    Family {
        name: "gemm8",
        cases: gemm8::cases,
        launches: gemm8::launches,
    },
    Family {
        name: "hyena",
        cases: hyena::cases,
        launches: hyena::launches,
    },
    Family {
        name: "mlp",
        cases: mlp::cases,
        launches: mlp::launches,
    },
    Family {
        name: "norm",
        cases: norm::cases,
        launches: norm::launches,
    },
    Family {
        name: "quant",
        cases: quant::cases,
        launches: quant::launches,
    },
    Family {
        name: "random",
        cases: random::cases,
        launches: random::launches,
    },
    Family {
        name: "rope",
        cases: rope::cases,
        launches: rope::launches,
    },
    Family {
        name: "select",
        cases: select::cases,
        launches: select::launches,
    },
    Family {
        name: "shortconv",
        cases: shortconv::cases,
        launches: shortconv::launches,
    },
    Family {
        name: "softmax",
        cases: softmax::cases,
        launches: softmax::launches,
    },
    Family {
        name: "spacetime",
        cases: spacetime::cases,
        launches: spacetime::launches,
    },
    Family {
        name: "sparse_attention",
        cases: sparse_attention::cases,
        launches: sparse_attention::launches,
    },
];

/// The cases of the family called `filter`, or else of those whose names contain it.
pub fn all(filter: &str, effort: Effort) -> Vec<Case> {
    let exact = FAMILIES.iter().any(|f| f.name == filter);
    let families = FAMILIES.iter().filter(|f| match exact {
        true => f.name == filter,
        false => f.name.contains(filter),
    });
    let cases: Vec<Case> = families.flat_map(|f| (f.cases)()).collect();
    match effort {
        Effort::Full => cases,
        Effort::Quick => {
            let mut seen = std::collections::HashSet::new();
            cases
                .into_iter()
                .filter(|c| seen.insert((c.family, c.group.clone())))
                .collect()
        }
    }
}
