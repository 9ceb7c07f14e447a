//! Plans the decode kernel: few queries, the keys split over the device.

use super::problem::{Problem, multiple_of};
use super::{AttentionLayouts, AttentionPlan, DecodeTuning};
use crate::capabilities::{Capabilities, ReduceTier};
use crate::dtype::DType;
use crate::error::Result;
use crate::recipe::{Launch, Recipe};

impl Problem<'_> {
    pub(super) fn decode(
        &self,
        caps: &Capabilities,
        tuning: &DecodeTuning,
    ) -> Result<AttentionPlan> {
        tuning.check(caps)?;
        let AttentionLayouts { q, k, v, out, .. } = self.layouts;
        let wide = multiple_of(q, 4) && multiple_of(out, 4);
        let halves = k.dtype() != DType::F32 || v.dtype() != DType::F32;
        let kv_vec = [8, 4, 1]
            .into_iter()
            // Eight f32 are two accesses: no gain over four.
            .filter(|&n| n != 8 || halves)
            .find(|&n| multiple_of(k, n) && multiple_of(v, n))
            .unwrap_or(1);
        let rows = self.heads / self.kv_heads * self.q_len;
        let columns = self.head_dim.max(self.v_dim).div_ceil(4.max(kv_vec)) as u32;
        let team = Team::new(caps, tuning, rows, columns, if kv_vec == 8 { 2 } else { 1 });
        let row_tiles = rows.div_ceil(team.rows as usize);

        let step = (tuning.workgroup / team.lanes * 4) as usize;
        let alike = self.batch * self.kv_heads * row_tiles;
        let most = (tuning.workgroups as usize / alike).max(1);
        let split_keys = self
            .kv_len
            .div_ceil(most)
            .max(tuning.split_keys as usize)
            .next_multiple_of(step);
        let splits = self.kv_len.div_ceil(split_keys);
        let params = self.params(split_keys, splits);

        let vec = if wide { 4 } else { 1 };
        let recipe = self
            .recipe("attention/decode")
            .with("VEC", vec)
            .with("KVEC", kv_vec as u32)
            .with("R", team.rows)
            .with("L", team.lanes)
            .with("WG", tuning.workgroup)
            .with("REDUCE", team.reduce);
        let grid = [splits, self.kv_heads * row_tiles, self.batch];
        let groups = self.v_dim.div_ceil(4) as u32;
        let combine = Recipe::new("attention/combine")
            .with("O", out.dtype())
            .with("DV", self.v_dim as u32)
            .with("LSE", u32::from(self.layouts.lse.is_some()))
            .with("VEC", vec)
            .with("WG", COMBINE_WORKGROUP)
            .with("CP", groups.next_power_of_two())
            .with("REDUCE", caps.reduce_tier());
        let combine_grid = [self.q_len, self.heads, self.batch];
        Ok(AttentionPlan {
            main: Launch::new(caps, recipe, grid, &params)?,
            combine: (splits > 1)
                .then(|| Launch::new(caps, combine, combine_grid, &params))
                .transpose()?,
            // For as many splits as any number of keys can have, so that it never grows with the cache.
            partial: self.batch * self.heads * self.q_len * most * (groups as usize + 1) * 4,
        })
    }
}

/// Invocations of a workgroup of the combining kernel.
const COMBINE_WORKGROUP: u32 = 128;

/// Groups of four values that an invocation of the decode kernel accumulates, at most: beyond, registers spill.
const ACCUMULATORS: u32 = 32;

/// How the decode kernel's invocations share rows and keys.
struct Team {
    rows: u32,
    lanes: u32,
    reduce: ReduceTier,
}

impl Team {
    /// For `rows` rows of `columns` loads, each `width` groups of four elements wide.
    fn new(
        caps: &Capabilities,
        tuning: &DecodeTuning,
        rows: usize,
        columns: u32,
        width: u32,
    ) -> Self {
        let mut rows = rows.min(tuning.rows as usize).next_power_of_two() as u32;
        rows = rows.min(tuning.rows);
        let held = |rows: u32, lanes: u32| rows * width * columns.div_ceil(lanes);
        let mut lanes = tuning.lanes;
        while lanes < 32 && held(rows, lanes) > ACCUMULATORS / 2 {
            lanes *= 2;
        }
        lanes = lanes.min(columns.next_power_of_two());
        let reduce = match caps.subgroups {
            // No subgroup may be larger than the workgroup, nor so small that sums across it save nothing.
            Some(s) if s.max <= tuning.workgroup && (s.min >= lanes || s.min >= 8) => {
                lanes = lanes.min(s.min);
                ReduceTier::Subgroup
            }
            _ => ReduceTier::Workgroup,
        };
        while rows > 1 && held(rows, lanes) > ACCUMULATORS {
            rows /= 2;
        }
        Self {
            rows,
            lanes,
            reduce,
        }
    }
}
