//! What is done by token: embedding and rotary positions.

use anyhow::{Context as _, Result, anyhow, bail};
use flashwave::Tensor;
use flashwave::kernels::embedding;
use flashwave::kernels::rope::{
    FusedQkv, FusedQkvArgs, Positions, RopeConfig, RopeLayout, RopeOut, RopeScaling, RopeTable,
};

use super::call::Call;
use super::entry::{DTYPE, Default, Entry, IDS, Input, Kind, Need, Output, Param, float};

const fn number(name: &'static str, default: &'static str, about: &'static str) -> Param {
    Param {
        name,
        kind: Kind::Number,
        default: Default::Value(default),
        about,
    }
}

/// Parameters of every kernel that rotates.
const ROPE: &[Param] = &[
    Param {
        name: "layout",
        kind: Kind::Choice(&["half", "interleaved"]),
        default: Default::Value("half"),
        about: "which channels pair",
    },
    Param {
        name: "position",
        kind: Kind::Count,
        default: Default::Value("0"),
        about: "of the first token",
    },
    Param {
        name: "dims",
        kind: Kind::Count,
        default: Default::Derived("head_dim"),
        about: "leading channels that rotate",
    },
    number("theta", "10000", "base of the frequencies"),
    Param {
        name: "scaling",
        kind: Kind::Choice(&["none", "linear", "ntk", "yarn", "llama3"]),
        default: Default::Value("none"),
        about: "for contexts longer than trained on",
    },
    number("factor", "1", "the stretch, for every scaling"),
    Param {
        name: "original_max_positions",
        kind: Kind::Count,
        default: Default::Derived("has to be set for yarn and llama3"),
        about: "context length of training",
    },
    number("beta_fast", "32", "yarn"),
    number("beta_slow", "1", "yarn"),
    Param {
        name: "attention_factor",
        kind: Kind::Number,
        default: Default::Derived("0.1 ln(factor) + 1"),
        about: "yarn",
    },
    number("low_freq_factor", "1", "llama3"),
    number("high_freq_factor", "4", "llama3"),
    DTYPE,
];

/// The kernels.
pub const ENTRIES: &[Entry] = &[
    Entry {
        name: "embedding",
        about: "rows of a table by id",
        inputs: &[
            float("table", "[vocab, width]"),
            Input {
                name: "ids",
                dtypes: IDS,
                shape: "any shape, at most 5 dimensions; each below vocab",
                need: Need::Required,
            },
        ],
        params: &[DTYPE],
        outputs: &[Output {
            name: "out",
            shape: "[ids.., width]",
        }],
        run: embed,
    },
    Entry {
        name: "rope",
        about: "rotary position embedding",
        inputs: &[
            float("x", "[tokens, heads, head_dim]"),
            Input {
                name: "positions",
                dtypes: IDS,
                shape: "[tokens], instead of the parameter position",
                need: Need::Optional,
            },
        ],
        params: ROPE,
        outputs: &[Output {
            name: "out",
            shape: "[tokens, heads, head_dim]",
        }],
        run: rope,
    },
    Entry {
        name: "rope_qkv",
        about: "splits a fused projection: rotates the queries, puts rotated keys and the values into their caches",
        inputs: &[
            float("qkv", "[tokens, (heads + 2 kv_heads) head_dim]"),
            float("k_cache", "[kv_heads, max_length, head_dim]"),
            float("v_cache", "[kv_heads, max_length, head_dim]"),
        ],
        params: ROPE,
        outputs: &[
            Output {
                name: "q",
                shape: "[tokens, heads, head_dim]",
            },
            Output {
                name: "k_cache",
                shape: "with the tokens' keys at their positions",
            },
            Output {
                name: "v_cache",
                shape: "with the tokens' values at their positions",
            },
        ],
        run: rope_qkv,
    },
];

fn embed(call: &mut Call<'_>) -> Result<()> {
    let table = call.tensor("table")?;
    let (ids, mut shape) = call
        .ids("ids")?
        .ok_or_else(|| anyhow!("input ids: missing"))?;
    let out = embedding::lookup(&table, &ids, call.dtype(&table)?)?;
    shape.extend(table.shape().last());
    let out = out.reshape(&shape).context("input ids")?;
    call.output("out", out)
}

fn scaling(call: &Call<'_>) -> Result<RopeScaling> {
    // Each has a default; 0 is refused by the library where it makes no sense.
    let number = |name: &str| Ok::<_, anyhow::Error>(call.number(name)?.unwrap_or(0.0));
    let factor = number("factor")?;
    let original = || -> Result<u32> {
        let Some(count) = call.count("original_max_positions")? else {
            bail!("original_max_positions: not set; allowed: the context length of training");
        };
        u32::try_from(count)
            .map_err(|_| anyhow!("original_max_positions: {count}; allowed: below 2^32"))
    };
    Ok(match call.choice("scaling")? {
        Some("linear") => RopeScaling::Linear { factor },
        Some("ntk") => RopeScaling::Ntk { factor },
        Some("yarn") => RopeScaling::Yarn {
            factor,
            original_max_positions: original()?,
            beta_fast: number("beta_fast")?,
            beta_slow: number("beta_slow")?,
            attention_factor: call.number("attention_factor")?,
        },
        Some("llama3") => RopeScaling::Llama3 {
            factor,
            low_freq_factor: number("low_freq_factor")?,
            high_freq_factor: number("high_freq_factor")?,
            original_max_positions: original()?,
        },
        _ => RopeScaling::None,
    })
}

/// The table of rotations up to position `last`.
fn table(call: &Call<'_>, head_dim: usize, last: usize) -> Result<RopeTable> {
    let config = RopeConfig {
        theta: call.number("theta")?.unwrap_or(0.0),
        dims: call.count("dims")?.unwrap_or(head_dim),
        layout: match call.choice("layout")? {
            Some("interleaved") => RopeLayout::Interleaved,
            _ => RopeLayout::HalfSplit,
        },
        scaling: scaling(call)?,
    };
    RopeTable::new(call.ctx(), &config, head_dim, last.saturating_add(1))
        .with_context(|| format!("a table for positions up to {last}"))
}

fn rope(call: &mut Call<'_>) -> Result<()> {
    let x = call.tensor("x")?;
    let &[tokens, _, head_dim] = x.shape() else {
        bail!(
            "input x: shape {:?}; allowed: [tokens, heads, head_dim]",
            x.shape()
        );
    };
    let start = call.count("position")?.unwrap_or(0);
    let given = match call.ids("positions")? {
        Some((ids, shape)) => Some((Tensor::from_slice(call.ctx(), &ids, shape)?, ids)),
        None => None,
    };
    // The table ends with the last position that is asked for.
    let last = match &given {
        Some((_, ids)) => ids.iter().max().map_or(0, |&last| last as usize),
        None => start.saturating_add(tokens - 1),
    };
    let table = table(call, head_dim, last)?;
    let positions = match &given {
        Some((tensor, _)) => Positions::Tensor(tensor),
        None => Positions::From(start),
    };
    let out = Tensor::empty(call.ctx(), call.dtype(&x)?, x.shape())?;
    call.ctx()
        .record(|pass| table.run(pass, &x, positions, RopeOut::Into(&out)))?;
    call.output("out", out)
}

fn rope_qkv(call: &mut Call<'_>) -> Result<()> {
    let [qkv, k, v] = ["qkv", "k_cache", "v_cache"].map(|name| call.tensor(name));
    let (qkv, k, v) = (qkv?, k?, v?);
    let (&[tokens, width], &[kv_heads, _, head_dim]) = (qkv.shape(), k.shape()) else {
        let (qkv, k) = (qkv.shape(), k.shape());
        bail!(
            "inputs qkv and k_cache: shapes {qkv:?} and {k:?}; allowed: [tokens, channels] and \
             [kv_heads, max_length, head_dim]"
        );
    };
    let heads = (width / head_dim).saturating_sub(2 * kv_heads);
    let start = call.count("position")?.unwrap_or(0);
    let table = table(call, head_dim, start.saturating_add(tokens - 1))?;
    // Without room for any query head the planner says what the width should be.
    let q = Tensor::empty(
        call.ctx(),
        call.dtype(&qkv)?,
        [tokens, heads.max(1), head_dim],
    )?;
    let op = FusedQkv {
        heads: heads.max(1),
        kv_heads,
        start,
    };
    let args = FusedQkvArgs {
        qkv: &qkv,
        q_out: RopeOut::Into(&q),
        k_cache: &k,
        v_cache: &v,
    };
    call.ctx().record(|pass| op.run(pass, &table, args))?;
    call.output("q", q)?;
    call.output("k_cache", k)?;
    call.output("v_cache", v)
}
