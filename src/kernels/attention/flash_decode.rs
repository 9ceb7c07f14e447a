//! Plans the decode kernel for matrix units: few queries over caches whose numbers are bytes.

use super::cached::Caches;
use super::problem::Problem;
use super::{AttentionPlan, FlashDecodeTuning};
use crate::capabilities::Capabilities;
use crate::dtype::DType;
use crate::error::Result;

impl Problem<'_> {
    /// Whether the kernel takes the call: caches of bytes, heads of at most
    /// [`FlashDecodeTuning::MOST_CHANNELS`].
    pub(super) fn suits_flash_decode(&self, caches: &Caches) -> bool {
        [caches.keys, caches.values]
            .iter()
            .all(|rows| rows.code.size() == 1)
            && self.head_dim.max(self.v_dim) <= FlashDecodeTuning::MOST_CHANNELS
    }

    pub(super) fn flash_decode(
        &self,
        caps: &Capabilities,
        caches: &Caches,
        tuning: &FlashDecodeTuning,
    ) -> Result<AttentionPlan> {
        tuning.check(caps)?;
        let rows = self.heads / self.kv_heads * self.q_len;
        // What f16 leaves of queries and weights has rows of its own, unless many of f16 queries need them.
        let parts = if self.layouts.q.dtype() == DType::F16 && rows > 8 {
            1
        } else {
            2
        };
        let units = self.kv_heads * rows.div_ceil(16 / parts);
        let most = (tuning.workgroups as usize / (self.batch * units)).max(1);
        let visits = self.mask_kind.band().visits(self.q_len, self.kv_len);
        let splits = visits.div_ceil(tuning.split_keys as usize).clamp(1, most);
        let recipe = self
            .recipe("attention/flash_decode")
            .with("COOP", tuning.units.name())
            .with("VEC", self.row_vector())
            .with("VVEC", unit(self.v_dim))
            .with("PARTS", parts as u32)
            .with("SUBS", tuning.subgroups)
            .with("BK", tuning.keys)
            .with("KS", caches.keys.scaling.name())
            .with("KB", caches.keys.scaling.block())
            .with("VS", caches.values.scaling.name())
            .with("VB", caches.values.scaling.block())
            .with("PAGE", caches.page)
            .with("ALIGNED", u32::from(caches.page_size.is_multiple_of(4)))
            .with("ORDER", u32::from(caches.ordered));
        self.in_splits(caps, recipe, [splits, units, self.batch], most)
    }
}

/// Channels of the values that an invocation loads at a time: eight lines of the subgroup share a row.
fn unit(v_dim: usize) -> u32 {
    match v_dim {
        0..=32 => 4,
        33..=64 => 8,
        _ => 16,
    }
}

#[cfg(test)]
mod tests {
    use super::super::tuning::card;
    use super::super::{Attention, CacheLayouts, KvFormat, KvLayout, Mask, TokenLayout};
    use super::*;
    use crate::layout::Layout;

    fn planned(
        caps: &Capabilities,
        format: KvFormat,
        q: DType,
        [heads, dim]: [usize; 2],
    ) -> String {
        let q = Layout::contiguous(q, [1, heads, 1, dim]).expect("a layout");
        let cache = KvLayout::new(format, 1, 1, 1000, dim).expect("a layout");
        let layouts = CacheLayouts {
            q: &q,
            keys: cache,
            values: cache,
            tokens: TokenLayout::Contiguous(900),
            ordered: false,
            slopes: None,
            sink_logits: None,
            out: &q,
            lse: None,
        };
        let plan = Attention::new(Mask::Causal).plan_cached(caps, layouts);
        plan.expect("valid").to_string()
    }

    #[test]
    fn bytes_take_the_matrix_units() {
        let flash = |caps: &Capabilities, format, dim| {
            planned(caps, format, DType::F32, [4, dim]).starts_with("attention/flash_decode")
        };
        for format in KvFormat::ALL {
            assert_eq!(flash(&card(), format, 64), format.code().size() == 1);
            assert!(!flash(&Capabilities::webgpu_default(), format, 64));
            assert!(!flash(&card(), format, 264));
        }
    }

    #[test]
    fn what_f16_leaves_has_rows_where_there_are_some() {
        for (q, heads, parts) in [
            (DType::F16, 8, 2),
            (DType::F16, 9, 1),
            (DType::F32, 8, 2),
            (DType::F32, 9, 2),
            (DType::BF16, 16, 2),
        ] {
            let plan = planned(&card(), KvFormat::Int8, q, [heads, 64]);
            assert!(plan.contains(&format!("PARTS={parts}")), "{plan}");
        }
    }
}
