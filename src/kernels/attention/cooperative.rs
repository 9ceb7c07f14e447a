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
            .with("BK", tuning.keys)
            .with("LOADS", tuning.loads.name());
        let queries = (tuning.subgroups * tuning.rows) as usize;
        let grid = match &self.listed {
            // Heads first: long rows of tiles of all heads run before short ones.
            None => [self.heads, self.batch, self.q_len.div_ceil(queries)],
            Some(listed) => listed.grid(queries, self.batch),
        };
        Ok(AttentionPlan {
            main: Launch::new(caps, recipe, grid, &self.params(1))?,
            combine: None,
            partial: 0,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::super::tuning::card;
    use super::super::{Attention, Mask, MatrixUnits, Tuning};
    use super::*;
    use crate::layout::Layout;

    fn planned(
        operator: Attention,
        caps: &Capabilities,
        dtype: DType,
        [q_len, dim]: [usize; 2],
    ) -> Result<String> {
        let layout = Layout::contiguous(dtype, [1, 2, q_len, dim])?;
        let plan = operator.plan(
            caps,
            AttentionLayouts::new(&layout, &layout, &layout, &layout),
        )?;
        Ok(plan.to_string())
    }

    #[test]
    fn what_suits_takes_the_matrix_units() {
        let causal = Attention::new(Mask::Causal);
        let flash = |operator, caps: &Capabilities, dtype, sizes| {
            let plan = planned(operator, caps, dtype, sizes).expect("valid");
            plan.starts_with("attention/flash")
        };
        for dim in [8, 16, 40, 64, 128, 192, 256] {
            assert!(flash(causal, &card(), DType::F16, [100, dim]), "{dim}");
        }
        assert!(!flash(causal, &card(), DType::F16, [100, 264]));
        assert!(!flash(causal, &card(), DType::F16, [100, 60]));
        assert!(!flash(causal, &card(), DType::F16, [4, 64]));
        assert!(!flash(causal, &card(), DType::BF16, [100, 64]));
        assert!(!flash(causal, &card(), DType::F32, [100, 64]));
        assert!(!flash(causal.scale(-1.0), &card(), DType::F16, [100, 64]));
        let without = Capabilities::webgpu_default();
        assert!(!flash(causal, &without, DType::F16, [100, 64]));
    }

    #[test]
    fn sizes_that_do_not_fit_are_refused() {
        let caps = card();
        let refused = |sizes: CooperativeTuning| {
            let mut tuning = Tuning::new(&caps, 128, 128);
            tuning.cooperative = Some(sizes);
            let operator = Attention::new(Mask::Full).tuning(tuning);
            let error = planned(operator, &caps, DType::F16, [100, 128]).expect_err("refused");
            assert!(
                error.to_string().starts_with("tuning.cooperative"),
                "{error}"
            );
        };
        let good = CooperativeTuning::new(&caps, 128, 128).expect("a default");
        refused(CooperativeTuning { keys: 128, ..good });
        refused(CooperativeTuning { keys: 8, ..good });
        refused(CooperativeTuning { rows: 8, ..good });
        refused(CooperativeTuning {
            subgroups: 0,
            ..good
        });
        refused(CooperativeTuning {
            units: MatrixUnits::Emulated,
            ..good
        });
    }
}
