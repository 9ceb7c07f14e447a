//! Products of a few rows with a weight matrix: what decoding a token is made of.
//!
//! Bound by reading the weights: [m, k] x [n, k]^T moves n k elements for m n k products.

use bytemuck::{Pod, Zeroable};

use super::elementwise::Activation;
use super::gemm::{Gating, Residual, require_bias};
use super::linear::LinearArgs;
use super::quant::{QuantParams, constants};
use crate::capabilities::{Capabilities, DeviceClass, ReduceTier};
use crate::error::{Error, Result};
use crate::layout::{Layout, Rows};
use crate::quant::{Code, QuantLayout};
use crate::recipe::{Constant, Launch, Recipe, linear_grid};
use crate::recorder::Pass;
use crate::tensor::Tensor;
use crate::tuned::{Question, Work, rounded};

/// Rows of x that one reading of the weights serves; more are read for again.
pub const MAX_ROWS: usize = 8;

/// The table that NF4 is decoded with.
const NF4_BYTES: usize = 64;

/// Who works on the same rows of the weights.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Team {
    /// A subgroup, whatever its size: no barriers, no workgroup memory for its sums.
    Subgroup,
    /// The workgroup.
    Workgroup,
    /// The workgroup, for one row of x, which it keeps in registers, and quantised weights. Steps are rows of the weights.
    Resident(Sums),
}

/// Where the sums of a resident team's invocations meet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Sums {
    /// In subgroups, after every row.
    Subgroup,
    /// In workgroup memory, after all rows.
    Memory,
}

/// How the work is cut: one row of a tuning table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct GemvTuning {
    /// Who works on the same rows of the weights.
    pub team: Team,
    /// Columns of the output that a team works on at a time: 1 to 8.
    pub per_team: u32,
    /// Columns of the output for a workgroup: a multiple of 4 and of `per_team`.
    pub per_workgroup: u32,
    /// Steps along k that are loaded before they are used: 1 to 16.
    pub unroll: u32,
    /// Invocations of a workgroup: a power of two; of a resident team whole subgroups.
    pub workgroup: u32,
}

/// `y[m, n] = F(norm(x)[m, k] W[n, k] + bias[n]) + residual[m, n]`, or `F(gate) * up + residual`.
///
/// The kernel of [`Linear`](super::linear::Linear) and [`GatedLinear`](super::linear::GatedLinear) for few rows,
/// and the way to run it with a given tuning. Any mixture of f32, f16 and bf16; sums are f32.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gemv {
    /// F.
    pub activation: Activation,
    /// Whether the weights are gate and up rows; then there is no bias.
    pub gating: Gating,
}

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct Params {
    rows: u32,
    n: u32,
    k: u32,
    x_offset: u32,
    x_stride: u32,
    w_offset: u32,
    w_stride: u32,
    y_offset: u32,
    y_stride: u32,
    bias_offset: u32,
    residual_offset: u32,
    residual_stride: u32,
    norm_offset: u32,
    eps: f32,
}

#[repr(C)]
#[derive(Clone, Copy, Pod, Zeroable)]
struct ParamsOfQuant {
    own: Params,
    w: QuantParams,
}

/// A problem that has been checked.
struct Checked {
    x: Rows,
    w: Rows,
    y: Rows,
    residual: Option<Rows>,
    quant: Option<QuantLayout>,
    /// Rows of x for a workgroup: all of them, or even parts of at most [`MAX_ROWS`].
    per_pass: usize,
}

impl Gemv {
    /// What a sweep should try on this device for `rows` rows: 4 to 16 loads of W in flight an invocation, as long
    /// as the sums stay in registers.
    pub fn candidates(&self, caps: &Capabilities, rows: usize) -> Vec<GemvTuning> {
        let rows = even_parts(rows);
        let mut found = Vec::new();
        for (per_team, unroll) in [1, 2, 4]
            .into_iter()
            .flat_map(|r| [1, 2, 4, 8].map(|u| (r, u)))
        {
            let loads = per_team as usize * self.gating.factor() * unroll as usize;
            let sums = rows * per_team as usize * self.gating.factor();
            // With many rows of x, its elements are loads in flight too.
            if !(4..=16).contains(&(loads * rows.min(4))) || sums > 64 {
                continue;
            }
            for invocations in [128, 256] {
                if let Some(size) = caps.subgroups.map(|s| s.min) {
                    let teams = (invocations / size).max(1);
                    found.push(GemvTuning {
                        team: Team::Subgroup,
                        per_team,
                        per_workgroup: (teams * per_team).next_multiple_of(4),
                        unroll,
                        workgroup: teams * size,
                    });
                }
                found.push(GemvTuning {
                    team: Team::Workgroup,
                    per_team,
                    per_workgroup: 4,
                    unroll,
                    workgroup: invocations,
                });
            }
        }
        found.retain(|t| self.check_tuning(caps, rows, false, t).is_ok());
        found
    }

    /// As [`candidates`](Self::candidates) for quantised weights, whose units of 16 bytes are many elements.
    pub fn quant_candidates(
        &self,
        caps: &Capabilities,
        rows: usize,
        weight: &QuantLayout,
    ) -> Vec<GemvTuning> {
        let mut found = Vec::new();
        // R, rows of the weights in flight beside them.
        let resident_cuts = [(4, 1), (1, 2), (2, 2), (4, 2)];
        for (cut, per_workgroup) in resident_cuts
            .into_iter()
            .flat_map(|cut| [8, 16, 32].map(|n| (cut, n)))
        {
            for (sums, span) in [Sums::Subgroup, Sums::Memory]
                .into_iter()
                .flat_map(|sums| (1..=4).map(move |span| (sums, span)))
            {
                let tuning = resident(caps, weight, span).map(|workgroup| GemvTuning {
                    team: Team::Resident(sums),
                    per_team: cut.0,
                    per_workgroup,
                    unroll: cut.1,
                    workgroup,
                });
                found.extend(tuning.filter(|t| rows == 1 && t.workgroup >= 64));
            }
        }
        // Codes of less than a byte are always decoded faster than x comes out of the caches.
        if !found.is_empty() && weight.unit() > 16 {
            found.retain(|t| self.check_tuning(caps, rows, false, t).is_ok());
            return found;
        }
        let rows = even_parts(rows);
        let cuts = [
            (1, 1),
            (1, 2),
            (1, 4),
            (2, 1),
            (2, 2),
            (4, 1),
            (4, 2),
            (8, 1),
        ];
        for ((per_team, unroll), workgroup) in cuts
            .into_iter()
            .flat_map(|cut| [64, 128, 256].map(|w| (cut, w)))
        {
            if rows * per_team as usize * self.gating.factor() > 64 {
                continue;
            }
            let tuning = |team, per_workgroup| GemvTuning {
                team,
                per_team,
                per_workgroup,
                unroll,
                workgroup,
            };
            if let Some(size) = caps.subgroups.map(|s| s.min) {
                let once = ((workgroup / size).max(1) * per_team).next_multiple_of(4);
                found.push(tuning(Team::Subgroup, once));
            }
            found.push(tuning(Team::Workgroup, per_team.max(4)));
            found.push(tuning(Team::Workgroup, 16));
        }
        found.retain(|t| self.check_tuning(caps, rows, false, t).is_ok());
        found
    }

    /// Plans the dispatch, choosing how to cut it.
    pub fn plan(&self, caps: &Capabilities, args: &LinearArgs<'_, Layout>) -> Result<Launch> {
        let problem = self.check(args)?;
        let normed = args.norm.is_some();
        let class = || {
            let Checked { x, y, per_pass, .. } = &problem;
            let class = Recipe::new("gemm/gemv")
                .with("X", args.x.dtype())
                .with("W", args.weight.dtype().name())
                .with("Y", args.out.dtype());
            let class = match &problem.quant {
                Some(quant) => constants(class, quant),
                None => class,
            };
            class
                .with("NORM", u32::from(normed))
                .with("GATED", self.gating.constant())
                .with("M", *per_pass as u32)
                .with("PASSES", rounded(x.rows.div_ceil(*per_pass)))
                .with("N", rounded(y.cols))
                .with("K", x.cols as u32)
        };
        let question = Question {
            default: self.choose(caps, &problem, normed),
            candidates: &|| match &problem.quant {
                Some(quant) => self.quant_candidates(caps, problem.per_pass, quant),
                None => self.candidates(caps, problem.per_pass),
            },
            admits: &|t| self.admit(caps, args, &problem, t).is_ok(),
            work: &|_| Work::bytes(args.weight.bytes()),
        };
        let picked = caps.tuned.pick(class, &question);
        let launch = self.launch(caps, args, &problem, &picked.tuning)?;
        Ok(launch.of_class(picked.class))
    }

    /// Plans the dispatch with a given tuning.
    pub fn plan_with(
        &self,
        caps: &Capabilities,
        args: &LinearArgs<'_, Layout>,
        tuning: &GemvTuning,
    ) -> Result<Launch> {
        let problem = self.check(args)?;
        self.admit(caps, args, &problem, tuning)?;
        self.launch(caps, args, &problem, tuning)
    }

    /// Errors unless the tuning suits the device and the problem.
    fn admit(
        &self,
        caps: &Capabilities,
        args: &LinearArgs<'_, Layout>,
        problem: &Checked,
        tuning: &GemvTuning,
    ) -> Result<()> {
        self.check_tuning(caps, problem.per_pass, args.norm.is_some(), tuning)?;
        if let Team::Resident(_) = tuning.team {
            let kept = problem
                .quant
                .map(|q| units(&q).div_ceil(tuning.workgroup) * q.unit() as u32);
            if kept.is_none_or(|kept| kept > 2 * KEPT) {
                let was = format!("{tuning:?} for {:?}", args.weight);
                let allowed = "quantised weights of which a workgroup's registers hold a row of x";
                return Err(Error::argument("tuning", was, allowed));
            }
        }
        Ok(())
    }

    /// Records the product.
    pub fn run(&self, pass: &mut Pass<'_>, args: &LinearArgs<'_, Tensor>) -> Result<()> {
        let launch = self.plan(pass.capabilities(), &args.layouts())?;
        args.bind(pass, &launch)
    }

    /// Records the product with a given tuning.
    pub fn run_with(
        &self,
        pass: &mut Pass<'_>,
        args: &LinearArgs<'_, Tensor>,
        tuning: &GemvTuning,
    ) -> Result<()> {
        let launch = self.plan_with(pass.capabilities(), &args.layouts(), tuning)?;
        args.bind(pass, &launch)
    }

    fn check(&self, args: &LinearArgs<'_, Layout>) -> Result<Checked> {
        args.check(self.gating)?;
        let x = args.x.as_rows("x")?;
        let w = args.weight.as_rows("weight")?;
        let y = args.out.as_rows("out")?;
        if let Some(bias) = args.bias {
            require_bias(bias, y.cols)?;
        }
        let residual = match args.residual {
            Residual::From(layout) => Some(layout.as_rows("residual")?),
            Residual::None | Residual::InOut => None,
        };
        // Steps along k pass its end by less than this many elements.
        const PAST: usize = 1 << 20;
        if x.cols.max(w.rows) > u32::MAX as usize - PAST {
            let was = format!("{} x {}", w.rows, x.cols);
            return Err(Error::argument("weight", was, "sizes below 2^32 - 2^20"));
        }
        Ok(Checked {
            per_pass: even_parts(x.rows),
            quant: args.weight.quant(),
            x,
            w,
            y,
            residual,
        })
    }

    /// Sums that a team makes at a time.
    fn sums(&self, rows: usize, normed: bool, tuning: &GemvTuning) -> usize {
        rows * (tuning.per_team as usize * self.gating.factor() + usize::from(normed))
    }

    fn workgroup_bytes(
        &self,
        caps: &Capabilities,
        rows: usize,
        normed: bool,
        tuning: &GemvTuning,
    ) -> usize {
        let slots = match (tuning.team, caps.reduce_tier()) {
            (Team::Subgroup | Team::Resident(_), _) => 0,
            (Team::Workgroup, ReduceTier::Subgroup) => tuning.workgroup as usize / 4,
            (Team::Workgroup, ReduceTier::Workgroup) => tuning.workgroup as usize,
        };
        // What each subgroup or invocation has of a sum, too.
        let parts = match (tuning.team, caps.subgroups) {
            (Team::Resident(Sums::Subgroup), Some(s)) => tuning.workgroup.div_ceil(s.min),
            (Team::Resident(Sums::Memory), _) => tuning.workgroup,
            _ => 0,
        };
        let columns = tuning.per_workgroup as usize * (1 + parts as usize);
        let results = self.gating.factor() * rows * columns;
        // Each array is rounded up to 16 bytes.
        (self.sums(rows, normed, tuning) * slots + results + rows) * 4 + 48 + NF4_BYTES
    }

    fn check_tuning(
        &self,
        caps: &Capabilities,
        rows: usize,
        normed: bool,
        tuning: &GemvTuning,
    ) -> Result<()> {
        let whole = match tuning.team {
            Team::Resident(_) => caps.subgroups.is_some_and(|s| {
                rows == 1 && tuning.unroll <= 2 && tuning.workgroup.is_multiple_of(s.max)
            }),
            _ => tuning.workgroup.is_power_of_two(),
        };
        let fits = whole
            && (4..=caps.invocations).contains(&tuning.workgroup)
            && (1..=8).contains(&tuning.per_team)
            && (1..=16).contains(&tuning.unroll)
            && (4..=1024).contains(&tuning.per_workgroup)
            && tuning.per_workgroup.is_multiple_of(4)
            && tuning.per_workgroup.is_multiple_of(tuning.per_team)
            && (tuning.team != Team::Subgroup || caps.subgroups.is_some())
            && (tuning.team != Team::Workgroup
                || self.sums(rows, normed, tuning) <= tuning.workgroup as usize)
            && self.workgroup_bytes(caps, rows, normed, tuning) <= caps.workgroup_bytes as usize;
        if fits {
            return Ok(());
        }
        Err(Error::argument(
            "tuning",
            format!("{tuning:?} for {rows} rows"),
            format!(
                "what fits {} invocations, {} bytes and subgroups {:?}",
                caps.invocations, caps.workgroup_bytes, caps.subgroups
            ),
        ))
    }

    fn choose(&self, caps: &Capabilities, problem: &Checked, normed: bool) -> GemvTuning {
        let rows = problem.per_pass;
        let factor = self.gating.factor() as u32;
        // Every row of W shares what is read of x, and has loads of its own in flight: the more rows of x, the
        // more of W, until the sums need too many registers.
        // f16 14336x4096 on an H100, 2026-11-26, us: 4 rows 44.8, with (4, 2) and 256 invocations 58.6; 8 rows 60.2, with (4, 1) 105.7.
        let (columns, unroll, invocations) = match rows {
            1 | 2 => (2, 4, 256),
            3 | 4 => (4, 1, 128),
            _ => (2, 2, 256),
        };
        let per_team = (columns / factor).max(1);
        let subgroup = caps
            .subgroups
            .map(|s| s.min)
            .filter(|&s| s >= 16 && caps.class != DeviceClass::Software);
        if let (Some(quant), Some(size)) = (&problem.quant, subgroup) {
            // H200, int4, us: 32768x8192 52.3 with 32 columns of 256 invocations (16: 61.1); 4096x14336 17.7 with 16 of 448, 24.8
            // with 8 of 224; 12288x4096 16.4 with 16 of 128. int8: 4096x14336 20.2 with 16 of 448, two units each, where 26.4 was
            // without x in registers (H100); 12288x4096 17.5 with 16 of 128. E4M3, H100, 4096x14336: 41% of read, 74% without.
            // Of narrow matrices fewer, so that there are a few hundred workgroups.
            let most = if problem.y.cols < 16384 { 16 } else { 32 };
            let columns = 1 << (problem.y.cols / 256).clamp(4, most).ilog2();
            let (least, most) = match quant.format.code {
                Code::Int(8) => (2, 4),
                _ if quant.unit() > 16 => (1, 4),
                _ => (1, 0),
            };
            let found = (least..=most)
                .filter_map(|span| {
                    Some(GemvTuning {
                        team: Team::Resident(Sums::Subgroup),
                        per_team: (4 / factor).max(1),
                        per_workgroup: columns,
                        unroll: 1,
                        workgroup: resident(caps, quant, span)?,
                    })
                })
                .find(|t| self.check_tuning(caps, rows, normed, t).is_ok());
            if let Some(tuning) = found {
                return tuning;
            }
            // Long rows of few columns: H100, 4096x14336, E4M3 24.5 us, 39.3 with a subgroup for a column.
            let whole = GemvTuning {
                team: Team::Workgroup,
                per_team: 4,
                per_workgroup: 4,
                unroll: 1,
                workgroup: 128,
            };
            let long = rows == 1 && factor == 1 && problem.y.cols < 8192;
            if long && self.check_tuning(caps, rows, normed, &whole).is_ok() {
                return whole;
            }
            let teams = (128.min(caps.invocations) / size).max(1);
            let per_team = (4 / factor / (rows as u32).div_ceil(4)).max(1);
            return GemvTuning {
                team: Team::Subgroup,
                per_team,
                per_workgroup: (teams * per_team).next_multiple_of(4),
                unroll: 1,
                workgroup: teams * size,
            };
        }
        if rows == 1 && subgroup.is_some() && caps.invocations >= 256 {
            // H200, 2026-11-24, us for f16 4096x4096, 4096x14336, 11008x4096: this 11.2, 30.1, 23.8; teams of a
            // subgroup with 2 columns and 4 steps 13.4, 37.6, 24.2.
            return GemvTuning {
                team: Team::Workgroup,
                per_team: per_team.max(2 / factor),
                per_workgroup: 4,
                unroll: 1,
                workgroup: 256,
            };
        }
        if let Some(size) = subgroup {
            let teams = (invocations.min(caps.invocations) / size).max(1);
            return GemvTuning {
                team: Team::Subgroup,
                per_team,
                per_workgroup: (teams * per_team).next_multiple_of(4),
                unroll,
                workgroup: teams * size,
            };
        }
        let mut tuning = GemvTuning {
            team: Team::Workgroup,
            per_team: per_team.max(4 / factor),
            per_workgroup: 4,
            unroll,
            workgroup: 128,
        };
        while self.check_tuning(caps, rows, normed, &tuning).is_err() && tuning.per_team > 1 {
            tuning.per_team /= 2;
        }
        tuning
    }

    fn launch(
        &self,
        caps: &Capabilities,
        args: &LinearArgs<'_, Layout>,
        problem: &Checked,
        tuning: &GemvTuning,
    ) -> Result<Launch> {
        let Checked {
            x,
            w,
            y,
            residual,
            per_pass,
            quant,
        } = problem;
        let norm = args.norm;
        let along_k = |n: usize| {
            x.multiple_of(n)
                && (quant.is_some() || w.multiple_of(n))
                && norm.is_none_or(|(weight, _)| weight.offset().is_multiple_of(n))
        };
        let resident = matches!(tuning.team, Team::Resident(_));
        let chunk = if (quant.is_none() || resident) && along_k(8) {
            8u32
        } else if along_k(4) {
            4
        } else {
            1
        };
        let wide = y.multiple_of(4)
            && residual.is_none_or(|r| r.multiple_of(4))
            && args.bias.is_none_or(|b| b.offset().is_multiple_of(4));
        let params = Params {
            rows: x.rows as u32,
            n: y.cols as u32,
            k: x.cols as u32,
            x_offset: x.offset as u32,
            x_stride: x.stride as u32,
            w_offset: w.offset as u32,
            w_stride: w.stride as u32,
            y_offset: y.offset as u32,
            y_stride: y.stride as u32,
            bias_offset: args.bias.map_or(0, |b| b.offset() as u32),
            residual_offset: residual.map_or(0, |r| r.offset as u32),
            residual_stride: residual.map_or(0, |r| r.stride as u32),
            norm_offset: norm.map_or(0, |(weight, _)| weight.offset() as u32),
            eps: norm.map_or(0.0, |(_, eps)| eps),
        };
        let shader = match tuning.team {
            Team::Resident(_) => "gemm/gemv_resident",
            _ => "gemm/gemv",
        };
        let recipe = Recipe::new(shader)
            .with("X", args.x.dtype())
            .with("W", args.weight.dtype().name())
            .with("Y", args.out.dtype())
            .with("BIAS", args.bias.map(Layout::dtype))
            .with("RESIDUAL", args.residual.constant())
            .with("NORM", norm.map(|(weight, _)| weight.dtype()))
            .with("F", self.activation.name())
            .with("GATED", self.gating.constant())
            .with("CHUNK", chunk)
            .with("Y_VEC", if wide { 4 } else { 1 })
            .with("M", *per_pass as u32)
            .with("R", tuning.per_team)
            .with("ROWS", tuning.per_workgroup)
            .with("UNROLL", tuning.unroll)
            .with("WG", tuning.workgroup)
            .with(
                "TEAM",
                match tuning.team {
                    Team::Subgroup => "subgroup",
                    Team::Workgroup => "workgroup",
                    Team::Resident(_) => "resident",
                },
            )
            .with("REDUCE", caps.reduce_tier());
        let [across, down, _] = linear_grid(caps, y.cols.div_ceil(tuning.per_workgroup as usize));
        let grid = [across, down, x.rows.div_ceil(*per_pass)];
        match quant {
            None => Launch::new(caps, recipe, grid, &params),
            Some(quant) => {
                let w = QuantParams::of(quant);
                let tail = !quant.cols.is_multiple_of(quant.unit());
                let mut recipe = constants(recipe, quant).with("TAIL", u32::from(tail));
                if let Team::Resident(sums) = tuning.team {
                    let subgroups = caps
                        .subgroups
                        .map_or(1, |s| tuning.workgroup.div_ceil(s.min));
                    let sums = match sums {
                        Sums::Subgroup => "subgroup",
                        Sums::Memory => "memory",
                    };
                    recipe = recipe
                        .with("SUBGROUPS", subgroups)
                        .with("SPAN", units(quant).div_ceil(tuning.workgroup))
                        .with("SUMS", Constant::Name(sums));
                }
                Launch::new(caps, recipe, grid, &ParamsOfQuant { own: params, w })
            }
        }
    }
}

/// Units of a row.
fn units(weight: &QuantLayout) -> u32 {
    (weight.padded_cols() / weight.unit()) as u32
}

/// Elements of x that an invocation keeps at most.
const KEPT: u32 = 64;

/// Invocations that keep x, `span` units each; `None` where they would be too many or keep too much.
fn resident(caps: &Capabilities, weight: &QuantLayout, span: u32) -> Option<u32> {
    let size = caps.subgroups?.max;
    let workgroup = units(weight).div_ceil(span).next_multiple_of(size);
    let fits = workgroup <= caps.invocations.min(512)
        && span * weight.unit() as u32 <= KEPT.max(weight.unit() as u32);
    fits.then_some(workgroup)
}

/// `rows` in even parts of at most [`MAX_ROWS`].
fn even_parts(rows: usize) -> usize {
    rows.div_ceil(rows.div_ceil(MAX_ROWS).max(1)).max(1)
}
