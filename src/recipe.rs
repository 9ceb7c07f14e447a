//! A planned dispatch as data: which shader variant, over which grid, with which parameters.

use std::fmt;
use std::hash::{Hash, Hasher};

use bytemuck::Pod;

use crate::capabilities::{Capabilities, ReduceTier};
use crate::dtype::DType;
use crate::error::{Error, Result};

/// Parameters of one dispatch are at most this many bytes. Devices with fewer bytes of immediates take them from a
/// uniform buffer.
pub const MAX_PARAM_BYTES: usize = 256;

/// The value of a variant's constant.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Constant {
    /// A tile size, a vector width, a flag.
    Int(u32),
    /// One of an enumeration: an element type, an activation, a mask.
    Name(&'static str),
}

impl fmt::Display for Constant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Int(i) => write!(f, "{i}"),
            Self::Name(n) => f.write_str(n),
        }
    }
}

impl From<u32> for Constant {
    fn from(value: u32) -> Self {
        Self::Int(value)
    }
}

impl From<&'static str> for Constant {
    fn from(value: &'static str) -> Self {
        Self::Name(value)
    }
}

impl From<DType> for Constant {
    fn from(value: DType) -> Self {
        Self::Name(value.name())
    }
}

/// Of a tensor that need not be there: "none" if it is not.
impl From<Option<DType>> for Constant {
    fn from(value: Option<DType>) -> Self {
        value.map_or(Self::Name("none"), Self::from)
    }
}

impl From<ReduceTier> for Constant {
    fn from(value: ReduceTier) -> Self {
        Self::Name(match value {
            ReduceTier::Subgroup => "subgroup",
            ReduceTier::Workgroup => "workgroup",
        })
    }
}

/// A kernel variant: a shader file and the constants that it is linked with. The key of the pipeline
/// cache, the log line, a benchmark's label and the autotuner's row.
#[derive(Clone, Debug)]
pub struct Recipe {
    shader: &'static str,
    constants: Vec<(&'static str, Constant)>,
    /// Of all the above, kept up to date: recipes are looked up at every dispatch.
    hash: u64,
}

impl Recipe {
    /// A variant of `shaders/<shader>.wgsl`.
    pub fn new(shader: &'static str) -> Self {
        Self {
            shader,
            constants: Vec::with_capacity(16),
            hash: mix_str(0, shader),
        }
    }

    /// With the template constant `name` set.
    pub fn with(mut self, name: &'static str, value: impl Into<Constant>) -> Self {
        let value = value.into();
        // The names are the same for every recipe of a shader in practice: hashing values suffices, Eq decides.
        self.hash = match value {
            Constant::Int(i) => mix(self.hash, i.into()),
            Constant::Name(n) => mix_str(self.hash, n),
        };
        self.constants.push((name, value));
        self
    }

    /// The shader's path below `shaders/`, without its extension.
    pub fn shader(&self) -> &'static str {
        self.shader
    }

    /// A constant, if the shader has one of this name.
    pub fn constant(&self, name: &str) -> Option<Constant> {
        let found = self.constants.iter().find(|(n, _)| *n == name);
        found.map(|&(_, value)| value)
    }

    /// The constants in the order they were set.
    pub fn constants(&self) -> &[(&'static str, Constant)] {
        &self.constants
    }
}

fn mix(hash: u64, value: u64) -> u64 {
    (hash.rotate_left(5) ^ value).wrapping_mul(0x517c_c1b7_2722_0a95)
}

/// The ends of a short name tell most of them apart.
fn mix_str(hash: u64, text: &str) -> u64 {
    let ends =
        [text.as_bytes().first(), text.as_bytes().last()].map(|b| b.map_or(0, |&b| u64::from(b)));
    mix(hash, text.len() as u64 ^ (ends[0] << 8) ^ (ends[1] << 16))
}

/// Whether two names are the same: mostly the same literal, which takes one comparison to see.
fn same(a: &'static str, b: &'static str) -> bool {
    std::ptr::eq(a, b) || a == b
}

impl PartialEq for Recipe {
    fn eq(&self, other: &Self) -> bool {
        let equal = |(a, b): (&(&'static str, Constant), &(&'static str, Constant))| {
            let values = match (a.1, b.1) {
                (Constant::Int(a), Constant::Int(b)) => a == b,
                (Constant::Name(a), Constant::Name(b)) => same(a, b),
                _ => false,
            };
            values && same(a.0, b.0)
        };
        self.hash == other.hash
            && same(self.shader, other.shader)
            && self.constants.len() == other.constants.len()
            && self.constants.iter().zip(&other.constants).all(equal)
    }
}

impl Eq for Recipe {}

impl Hash for Recipe {
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write_u64(self.hash);
    }
}

impl fmt::Display for Recipe {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.shader)?;
        for (name, value) in &self.constants {
            match value {
                Constant::Int(i) => write!(f, " {name}={i}")?,
                Constant::Name(n) => write!(f, " {name}={n}")?,
            }
        }
        Ok(())
    }
}

/// The bytes of a shader's `Params` struct.
#[derive(Clone, Copy)]
pub struct Params {
    bytes: [u8; MAX_PARAM_BYTES],
    len: u16,
}

impl Params {
    /// The bytes of a `repr(C)` struct that mirrors the shader's `Params` field by field (a test compares
    /// the sizes over every variant).
    pub fn new<T: Pod>(value: &T) -> Self {
        const { assert!(size_of::<T>() <= MAX_PARAM_BYTES && size_of::<T>().is_multiple_of(4)) };
        let mut bytes = [0; MAX_PARAM_BYTES];
        let source = bytemuck::bytes_of(value);
        bytes[..source.len()].copy_from_slice(source);
        Self {
            bytes,
            len: source.len() as u16,
        }
    }

    /// With another 32-bit value at this byte: what differs between layers that share a plan.
    pub(crate) fn with_word(mut self, at: usize, word: u32) -> Self {
        self.bytes[at..at + 4].copy_from_slice(&word.to_ne_bytes());
        self
    }

    /// The bytes.
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes[..self.len as usize]
    }
}

impl fmt::Debug for Params {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Params({} bytes)", self.len)
    }
}

/// One dispatch, planned.
#[derive(Clone, Debug)]
pub struct Launch {
    /// The variant.
    pub recipe: Recipe,
    /// Workgroups in x, y and z.
    pub grid: [u32; 3],
    /// Parameters.
    pub params: Params,
    /// The class of problems that it was planned for, while candidates for the class are tried ([`crate::tuned`]).
    pub class: Option<Recipe>,
}

impl Launch {
    /// A dispatch of `grid` workgroups. Errors if the grid is over the device's limit.
    pub fn new<T: Pod>(
        caps: &Capabilities,
        recipe: Recipe,
        grid: [usize; 3],
        params: &T,
    ) -> Result<Self> {
        if let Some(over) = grid.iter().find(|&&n| n > caps.workgroups as usize) {
            return Err(Error::argument(
                "grid",
                format!("{over} workgroups along one dimension for {recipe}"),
                format!("at most {}", caps.workgroups),
            ));
        }
        Ok(Self {
            recipe,
            grid: grid.map(|n| n as u32),
            params: Params::new(params),
            class: None,
        })
    }

    /// With what planners were told of its class.
    pub(crate) fn of_class(mut self, class: Option<Recipe>) -> Self {
        self.class = class;
        self
    }
}

/// Spreads `count` workgroups over two dimensions where one does not suffice. The kernel numbers them
/// `workgroup_id.y * num_workgroups.x + workgroup_id.x` and ignores those at `count` and beyond.
pub fn linear_grid(caps: &Capabilities, count: usize) -> [usize; 3] {
    let limit = caps.workgroups as usize;
    if count <= limit {
        return [count, 1, 1];
    }
    let rows = count.div_ceil(limit);
    [count.div_ceil(rows), rows, 1]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_recipe_prints_as_its_label() {
        let recipe = Recipe::new("norm/rms_norm")
            .with("X", DType::F16)
            .with("WG", 256);
        assert_eq!(recipe.to_string(), "norm/rms_norm X=f16 WG=256");
    }

    #[test]
    fn recipes_differ_by_every_constant_and_by_the_shader() {
        let base = || {
            Recipe::new("norm/rms_norm")
                .with("X", DType::F16)
                .with("WG", 256)
        };
        assert_eq!(base(), base());
        let others = [
            base().with("Y", 1),
            Recipe::new("norm/rms_norm")
                .with("X", DType::F32)
                .with("WG", 256),
            Recipe::new("norm/rms_norm")
                .with("X", DType::F16)
                .with("WG", 128),
            Recipe::new("norm/rms_norm")
                .with("Z", DType::F16)
                .with("WG", 256),
            Recipe::new("norm/max_norm")
                .with("X", DType::F16)
                .with("WG", 256),
        ];
        for other in others {
            assert_ne!(base(), other);
        }
    }

    #[test]
    fn linear_grids_cover_and_stay_within_limits() {
        let caps = Capabilities::webgpu_default();
        for count in [1, 2, 65535, 65536, 65537, 1 << 20, 123_456_789] {
            let [x, y, z] = linear_grid(&caps, count);
            assert!(x * y * z >= count && x <= 65535 && y <= 65535);
            assert!(x * y * z - count < x, "less than one row to spare");
        }
    }
}
