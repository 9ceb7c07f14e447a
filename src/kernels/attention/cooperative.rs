//! Plans the kernel for matrix units: many queries, everything in f16, products by cooperative matrices.

use super::problem::{Problem, multiple_of};
use super::{AttentionLayouts, AttentionPlan, CooperativeTuning, most_bindings};
use crate::capabilities::Capabilities;
use crate::dtype::DType;
use crate::error::Result;
use crate::recipe::Launch;

/// Most channels of a head, for its output to stay in registers.
const MOST_CHANNELS: usize = 256;

impl Problem<'_> {
    /// Whether the kernel takes the call: f16 all over, rows that start at multiples of 16 bytes, heads of at most
    /// [`MOST_CHANNELS`] channels, a positive scale (maxima are taken before scaling).
    pub(super) fn suits_cooperative(&self, caps: &Capabilities) -> bool {
        let AttentionLayouts { q, k, v, out, .. } = self.layouts;
        [q, k, v, out]
            .iter()
            .all(|l| l.dtype() == DType::F16 && multiple_of(l, 8))
            && self.head_dim.max(self.v_dim) <= MOST_CHANNELS
            && self.scale > 0.0
            && self.bindings() <= most_bindings(caps)
    }

    pub(super) fn cooperative(
        &self,
        caps: &Capabilities,
        tuning: &CooperativeTuning,
    ) -> Result<AttentionPlan> {
        let tuning = &self.listed.map_or(*tuning, |listed| {
            tuning.within(listed.layout.block() as u32)
        });
        tuning.check(caps, self.head_dim, self.v_dim)?;
        let recipe = self
            .recipe("attention/flash")
            .with("COOP", tuning.units.name())
            .with("SUBS", tuning.subgroups)
            .with("RQ", tuning.rows)
            .with("BK", tuning.keys);
        let queries = (tuning.subgroups * tuning.rows) as usize;
        let grid = match &self.listed {
            // Heads first: long rows of tiles of all heads run before short ones.
            None => [self.heads, self.batch, self.q_len.div_ceil(queries)],
            Some(listed) => listed.grid(queries, self.batch),
        };
        Ok(AttentionPlan {
            main: Launch::new(caps, recipe, grid, &self.params(0, 1))?,
            combine: None,
            partial: 0,
        })
    }
}
