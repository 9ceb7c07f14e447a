<#
What the attention kernels share: parameters, visibility, bias and mask.

Scores are kept as base-2 logarithms (scale * log2 e is one factor, so that exp2 serves), and they are finite:
LOWEST is the least score a visible key can have, HIDDEN marks a key that is not seen. A row's maximum starts at
HIDDEN, so that differences never are inf - inf and a row that sees nothing ends with a sum of zero.
#>
#macro params()
struct Params {
    q_offset: u32,
    q_batch: u32,
    q_head: u32,
    q_row: u32,
    k_offset: u32,
    k_batch: u32,
    k_head: u32,
    k_row: u32,
    v_offset: u32,
    v_batch: u32,
    v_head: u32,
    v_row: u32,
    out_offset: u32,
    out_batch: u32,
    out_head: u32,
    out_row: u32,
    bias_offset: u32,
    bias_batch: u32,
    bias_head: u32,
    bias_row: u32,
    mask_offset: u32,
    mask_batch: u32,
    mask_head: u32,
    mask_row: u32,
    // Which keys a query at position p sees, for the variant "band": p - left <= j < max(p + right + 1, prefix), and
    // j < sinks of those before.
    left: u32,
    right: u32,
    sinks: u32,
    prefix: u32,
    // Bit 0: neighbouring keys have different biases (else one for all). Bit 1: the same of the mask.
    key_strides: u32,
    lse_offset: u32,
    // Scale times log2(e).
    scale: f32,
    // Query heads of a key head.
    group: u32,
    q_len: u32,
    kv_len: u32,
    // Workgroups that the decode kernel's keys are split for.
    splits: u32,
    // Caches: the words of the first scales, and what lib/pages.wgsl takes.
    k_scales: u32,
    v_scales: u32,
    page_size: u32,
    pages: u32,
    blocks: u32,
    batches: u32,
    heads: u32,
}
#endmacro

<# `length`: the number of keys. #>
#macro functions(bias, mask, seen, length="p.kv_len")
const LOWEST: f32 = -3.0e38;
const HIDDEN: f32 = -3.4e38;
const SEEN: f32 = -3.2e38;
const LOG2E: f32 = 1.4426950408889634;
const LN2: f32 = 0.6931471805599453;

// The keys that a query sees: begin <= key < end, and key < min(p.sinks, end) of those before.
struct Seen {
    begin: u32,
    end: u32,
}

// Those of query `row`. Neither end moves back from a row to the next.
fn seen_by(row: u32) -> Seen {
    #if seen == "full"
    return Seen(0u, ${length});
    #else
    // The last query stands at the last key.
    let at = i32(row) + i32(${length}) - i32(p.q_len);
    #if seen == "causal"
    return Seen(0u, u32(clamp(at + 1, 0, i32(${length}))));
    #else
    let end = max(clamp(at + i32(p.right) + 1, 0, i32(${length})), i32(min(p.prefix, ${length})));
    return Seen(u32(max(at - i32(p.left), 0)), u32(end));
    #endif
    #endif
}

// A tile of keys from `key` on, or the next that rows which see keys from `begin` on have to visit.
fn next_tile(key: u32, begin: u32, tile: u32) -> u32 {
    #if seen == "band"
    if key >= p.sinks { return max(key, begin / tile * tile); }
    #endif
    return key;
}

// The scores of four keys from `key` on out of their dot products.
fn scores(dots: vec4<f32>, batch: u32, head: u32, row: u32, key: u32, seen: Seen) -> vec4<f32> {
    let keys = vec4<u32>(key) + vec4<u32>(0u, 1u, 2u, 3u);
    let none = vec4<f32>(HIDDEN);
    var s = dots * p.scale;
    #if bias != "none" or mask == 1
    let at = min(keys, vec4<u32>(p.kv_len - 1u));
    #endif
    #if bias != "none"
    let bias_at = p.bias_offset + batch * p.bias_batch + head * p.bias_head + row * p.bias_row
        + at * (p.key_strides & 1u);
    let b = vec4<f32>(load_bias(bias_at.x), load_bias(bias_at.y), load_bias(bias_at.z), load_bias(bias_at.w));
    // Minus infinity by its bits: devices may assume that there is none.
    s = select(max(s + b * LOG2E, vec4<f32>(LOWEST)), none, bitcast<vec4<u32>>(b) == vec4<u32>(0xff800000u));
    #else
    s = max(s, vec4<f32>(LOWEST));
    #endif
    #if mask == 1
    let mask_at = p.mask_offset + batch * p.mask_batch + head * p.mask_head + row * p.mask_row
        + at * (p.key_strides >> 1u);
    s = select(s, none, vec4<bool>(masked(mask_at.x), masked(mask_at.y), masked(mask_at.z), masked(mask_at.w)));
    #endif
    #if seen == "band"
    s = select(s, none, (keys < vec4<u32>(seen.begin)) & (keys >= vec4<u32>(p.sinks)));
    #endif
    return select(s, none, keys >= vec4<u32>(seen.end));
}

#if mask == 1
// A byte a key; zero hides it.
fn masked(i: u32) -> bool { return ((mask[i >> 2u] >> ((i & 3u) * 8u)) & 0xffu) == 0u; }
#endif

// The weights of keys with scores `s` under the maximum `m`.
fn weights(s: vec4<f32>, m: f32) -> vec4<f32> {
    return select(exp2(s - m), vec4<f32>(), s < vec4<f32>(SEEN));
}

fn largest(v: vec4<f32>) -> f32 { return max(max(v.x, v.y), max(v.z, v.w)); }

fn sum_of(v: vec4<f32>) -> f32 { return (v.x + v.y) + (v.z + v.w); }

// The natural logarithm of a row's sum of exponentials; minus infinity for a row that sees nothing.
fn log_sum(m: f32, l: f32) -> f32 {
    // Not a constant expression: WGSL refuses constants that are not finite.
    var minus_infinity = 0xff800000u;
    if l == 0.0 { return bitcast<f32>(minus_infinity); }
    return (m + log2(l)) * LN2;
}
#endmacro
