//! What a device can do at most: kernels that do nothing but read, copy, multiply and add, and the measured
//! [`Ceilings`] that benches report shares of.

#[cfg(not(target_arch = "wasm32"))]
mod measure;

use bytemuck::{Pod, Zeroable};

use crate::capabilities::{Capabilities, CooperativeShape, DeviceClass};
use crate::error::{Error, Result};
use crate::recipe::{Launch, Params, Recipe, linear_grid};

#[cfg(not(target_arch = "wasm32"))]
pub use measure::{Ceilings, Timer, time};

/// A measurement.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Probe {
    /// Reading a storage buffer, in bytes.
    Read,
    /// Copying one, in bytes read plus bytes written.
    Copy,
    /// f32 multiply-adds, two operations each.
    F32,
    /// f16 multiply-adds; needs the feature SHADER_F16.
    F16,
    /// `dot4I8Packed` and an addition, eight operations.
    Int8,
    /// 16 x 16 cooperative matrices, f16 into f32; needs wgpu's experimental feature.
    Cooperative,
    /// A dispatch that does nothing.
    Empty,
}

/// How a probe's work is laid out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Tuning {
    /// Invocations of a workgroup.
    pub workgroup: u32,
    /// Loads in flight, or steps of the inner loop written out.
    pub unroll: u32,
    /// Independent chains, or tiles of the left and of the right operand.
    pub chains: [u32; 2],
    /// Workgroups of a dispatch.
    pub groups: u32,
}

/// A planned probe.
#[derive(Clone, Debug)]
pub struct Plan {
    /// The dispatch.
    pub launch: Launch,
    /// Bytes moved, or operations done, by one dispatch.
    pub work: f64,
    /// Elements (32 bits) of the input, 16 bits for [`Probe::Cooperative`]; 0 without one.
    pub input: usize,
    /// Elements (32 bits) of the output.
    pub output: usize,
}

/// The factor and the summand of the chains of multiply-adds: they neither grow nor vanish.
pub const FMA_FACTORS: [f32; 2] = [0.9375, 0.5];
/// The packed factor of the chains of int8 products, combined with the lane by exclusive or.
pub const INT8_FACTOR: u32 = 0x3d05_c3a7;

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct FmaParams {
    steps: u32,
    m: f32,
    b: f32,
}

impl Probe {
    /// All of them.
    pub const ALL: [Self; 7] = [
        Self::Read,
        Self::Copy,
        Self::F32,
        Self::F16,
        Self::Int8,
        Self::Cooperative,
        Self::Empty,
    ];

    /// What a report calls it.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Copy => "copy",
            Self::F32 => "f32 multiply-add",
            Self::F16 => "f16 multiply-add",
            Self::Int8 => "packed int8 dot product",
            Self::Cooperative => "cooperative matrix f16",
            Self::Empty => "empty dispatch",
        }
    }

    /// Why a device cannot run it, if it cannot.
    pub fn missing(self, caps: &Capabilities) -> Option<&'static str> {
        match self {
            Self::F16 if !caps.shader_f16 => Some("the device has no SHADER_F16"),
            Self::Cooperative if cooperative_subgroup(caps).is_none() => {
                Some("the device has no 16 x 16 cooperative matrices of f16 into f32")
            }
            _ => None,
        }
    }

    /// The layouts worth trying on a device: the fastest of them is its ceiling.
    pub fn candidates(self, caps: &Capabilities) -> Vec<Tuning> {
        let software = caps.class == DeviceClass::Software;
        let tuning = |workgroup, unroll, chains, groups| Tuning {
            workgroup,
            unroll,
            chains,
            groups: if software { 64 } else { groups },
        };
        let all = match self {
            // A processor runs a subgroup to its end before the next: without loops it goes through memory in order.
            Self::Read | Self::Copy if software => vec![Tuning {
                groups: 16384,
                ..tuning(256, 1, [1, 1], 1)
            }],
            Self::Read => [(8, 4096), (8, 16384), (16, 8192), (4, 16384)]
                .map(|(unroll, groups)| tuning(256, unroll, [1, 1], groups))
                .to_vec(),
            Self::Copy => [(4, 32768), (8, 16384), (2, 65535), (4, 8192)]
                .map(|(unroll, groups)| tuning(256, unroll, [1, 1], groups))
                .to_vec(),
            // The second number is the width of the vectors.
            Self::F32 => [[8, 4], [4, 4], [12, 2]]
                .map(|chains| tuning(256, 4, chains, 8192))
                .to_vec(),
            Self::F16 => [[8, 4], [16, 2], [4, 4]]
                .map(|chains| tuning(256, 4, chains, 8192))
                .to_vec(),
            Self::Int8 => [[16, 1], [8, 1]]
                .map(|chains| tuning(256, 4, chains, 8192))
                .to_vec(),
            Self::Cooperative => [(128, [4, 4]), (128, [2, 4]), (128, [2, 2]), (256, [4, 4])]
                .map(|(workgroup, tiles)| tuning(workgroup, 2, tiles, 4224))
                .to_vec(),
            Self::Empty => vec![tuning(1, 1, [1, 1], 1)],
        };
        if software { all[..1].to_vec() } else { all }
    }

    /// Plans one dispatch: `amount` is the number of chunks (of `workgroup * unroll` vectors of 16 bytes) that
    /// [`Read`](Self::Read) and [`Copy`](Self::Copy) go through, or the rounds of the others' loop.
    pub fn plan(self, caps: &Capabilities, tuning: Tuning, amount: u32) -> Result<Plan> {
        if let Some(why) = self.missing(caps) {
            return Err(Error::argument("probe", self.name(), why));
        }
        let Tuning {
            workgroup,
            unroll,
            chains,
            groups,
        } = tuning;
        if !workgroup.is_power_of_two() || workgroup > caps.invocations {
            let allowed = format!("a power of two up to {}", caps.invocations);
            return Err(Error::argument("workgroup", workgroup, allowed));
        }
        if [unroll, chains[0], chains[1]]
            .iter()
            .any(|n| !(1..=64).contains(n))
        {
            let was = format!("unroll {unroll}, chains {chains:?}");
            return Err(Error::argument("tuning", was, "1 to 64 each"));
        }
        let lanes = u64::from(workgroup) * u64::from(groups);
        let chunk = u64::from(workgroup) * u64::from(unroll) * 4;
        let rounds = f64::from(amount) * f64::from(unroll);
        let recipe = |shader| {
            Recipe::new(shader)
                .with("WG", workgroup)
                .with("UNROLL", unroll)
        };
        let steps = Params::new(&amount);
        let (recipe, params, input, output, work) = match self {
            Self::Read => {
                let words = u64::from(amount) * chunk;
                (
                    recipe("ceilings/read"),
                    steps,
                    words,
                    lanes,
                    words as f64 * 4.0,
                )
            }
            Self::Copy => {
                let words = u64::from(amount) * chunk;
                (
                    recipe("ceilings/copy"),
                    steps,
                    words,
                    words,
                    words as f64 * 8.0,
                )
            }
            Self::F32 | Self::F16 => {
                let [chains, width] = chains;
                if width != 2 && width != 4 {
                    return Err(Error::argument("width", width, "2 or 4"));
                }
                let [m, b] = FMA_FACTORS;
                let recipe = recipe("ceilings/fma")
                    .with("T", if self == Self::F32 { "f32" } else { "f16" })
                    .with("CHAINS", chains)
                    .with("WIDTH", width);
                let work = 2.0 * f64::from(chains * width) * rounds * lanes as f64;
                let params = Params::new(&FmaParams {
                    steps: amount,
                    m,
                    b,
                });
                (recipe, params, 0, lanes, work)
            }
            Self::Int8 => {
                let recipe = recipe("ceilings/dot4").with("CHAINS", chains[0]);
                let work = 8.0 * f64::from(chains[0]) * rounds * lanes as f64;
                (recipe, Params::new(&[amount, INT8_FACTOR]), 0, lanes, work)
            }
            Self::Cooperative => {
                let [a, b] = chains;
                let size = cooperative_subgroup(caps).unwrap_or(workgroup);
                if workgroup % size != 0 {
                    let allowed = format!("a multiple of the subgroup's {size}");
                    return Err(Error::argument("workgroup", workgroup, allowed));
                }
                let subgroups = workgroup / size;
                let recipe = recipe("ceilings/cooperative")
                    .with("TILES_A", a)
                    .with("TILES_B", b)
                    .with("SUBGROUPS", subgroups);
                let each = 2.0 * 16.0f64.powi(3) * f64::from(a * b) * rounds;
                let outputs = u64::from(subgroups * 256) * u64::from(groups);
                let work = each * f64::from(subgroups) * f64::from(groups);
                (recipe, steps, u64::from((a + b) * 256), outputs, work)
            }
            Self::Empty => (Recipe::new("ceilings/empty"), Params::new(&0u32), 0, 1, 1.0),
        };
        let grid = match self {
            // These share their chunks out among as many workgroups as there are.
            Self::Read | Self::Copy => [groups as usize, 1, 1],
            _ => linear_grid(caps, groups as usize),
        };
        if groups == 0 || grid[0] * grid[1] != groups as usize {
            let allowed = format!("1 to {}, or a multiple of what is over", caps.workgroups);
            return Err(Error::argument("groups", groups, allowed));
        }
        let mut launch = Launch::new(caps, recipe, grid, &0u32)?;
        launch.params = params;
        Ok(Plan {
            launch,
            work,
            input: input as usize,
            output: output as usize,
        })
    }
}

/// Invocations of a subgroup that multiplies 16 x 16 matrices, if there is such a thing: of one size only, as the
/// work is cut by subgroups.
fn cooperative_subgroup(caps: &Capabilities) -> Option<u32> {
    let fixed = caps.subgroups.filter(|s| s.min == s.max)?;
    (caps.shader_f16 && caps.cooperative.contains(&CooperativeShape::F16)).then_some(fixed.max)
}
