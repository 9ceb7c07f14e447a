//! Plans the prefill kernel: many queries, tiled both ways.

use super::problem::{Problem, multiple_of};
use super::{AttentionLayouts, AttentionPlan, PrefillTuning, most_bindings};
use crate::capabilities::Capabilities;
use crate::error::Result;
use crate::recipe::Launch;

impl Problem<'_> {
    pub(super) fn prefill(
        &self,
        caps: &Capabilities,
        tuning: &PrefillTuning,
    ) -> Result<AttentionPlan> {
        let tuning = &self.listed.map_or(*tuning, |listed| listed.fit(*tuning));
        tuning.check(caps, self.v_dim)?;
        self.require_bindings(most_bindings(caps))?;
        let AttentionLayouts { q, k, v, out, .. } = self.layouts;
        let wide = [q, k, v, out].iter().all(|l| multiple_of(l, 4));
        let recipe = self
            .recipe("attention/prefill")
            .with("VEC", if wide { 4 } else { 1 })
            .with("TX", tuning.key_threads)
            .with("TY", tuning.query_threads)
            .with("RQ", tuning.rows)
            .with("DC", tuning.depth)
            .with("BV", tuning.value_keys);
        let queries = (tuning.query_threads * tuning.rows) as usize;
        let grid = match &self.listed {
            None => [self.q_len.div_ceil(queries), self.heads, self.batch],
            Some(listed) => listed.grid(queries, self.batch),
        };
        Ok(AttentionPlan {
            main: Launch::new(caps, recipe, grid, &self.params(1))?,
            combine: None,
            partial: 0,
        })
    }
}
