//! The cases, a module for every module of `flashwave::kernels`.

pub mod attention;
pub mod elementwise;

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
        name: "elementwise",
        cases: elementwise::cases,
        launches: elementwise::launches,
    },
];

/// The cases of the families whose name contains `filter`.
pub fn all(filter: &str, effort: Effort) -> Vec<Case> {
    let families = FAMILIES.iter().filter(|f| f.name.contains(filter));
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
