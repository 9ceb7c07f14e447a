<#
What the attention kernels share: parameters, visibility, and what happens to a score between dot product and softmax.

Scores are kept as base-2 logarithms (scale * log2 e is one factor, so that exp2 serves), and they are finite:
LOWEST is the least score a visible key can have, HIDDEN marks a key that is not seen. A row's maximum starts at
LOWEST, so that differences never are inf - inf, the weight of a hidden key, exp2(HIDDEN - LOWEST) or less, is zero
without being asked for, and a row that sees nothing ends with a sum of zero.

A score is cap * tanh(scale q k / cap) - slope |p - j| + bias: softcap, ALiBi (arXiv 2108.12409: the distance between
the query's position p and the key's j) and an additive mask in this order, as FlashAttention has them. A learned sink
(StreamingLLM, GPT-OSS) is a key of each head that all queries see, with a logit of its own and the value zero: rows
start with it.
#>
#import "lib/tensor.wgsl" as t
#macro params(gradients=0)
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
    // Which keys a query at position p sees, for the variants "band" and "rows": p - left <= j < max(p + right + 1, prefix), and
    // j < sinks of those before.
    left: u32,
    right: u32,
    sinks: u32,
    prefix: u32,
    // Bit 0: neighbouring keys have different biases (else one for all). Bit 1: the same of the mask.
    key_strides: u32,
    lse_offset: u32,
    // Scale times log2(e); with a softcap, scale over the cap.
    scale: f32,
    // The softcap times log2(e).
    cap: f32,
    slopes_offset: u32,
    sink_offset: u32,
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
    #if gradients
    dq_offset: u32,
    dq_batch: u32,
    dq_head: u32,
    dq_row: u32,
    dk_offset: u32,
    dk_batch: u32,
    dk_head: u32,
    dk_row: u32,
    dv_offset: u32,
    dv_batch: u32,
    dv_head: u32,
    dv_row: u32,
    // The scale, as dq and dk have it. `out` above is the output's gradient.
    gradient_scale: f32,
    #endif
}
#endmacro

<# The tensors of a call that are there on demand, but for those written. #>
#macro inputs(bias, mask, seen, slopes, sink)
#if bias != "none"
${ t.input(5, "bias", bias) }
#endif
#if mask == 1
${ t.words(6, "mask", "u32") }
#endif
#if seen == "rows"
${ t.words(9, "documents", "vec4<u32>") }
#endif
#if slopes == 1
${ t.words(10, "slopes", "f32") }
#endif
#if sink == 1
${ t.words(11, "sink_logits", "f32") }
#endif
#endmacro

<# `length`: the number of keys. #>
#macro functions(bias, mask, seen, softcap=0, slopes=0, sink=0, length="p.kv_len")
const LOWEST: f32 = -3.0e38;
const HIDDEN: f32 = -3.4e38;
const LOG2E: f32 = 1.4426950408889634;
const LN2: f32 = 0.6931471805599453;

// The keys that a query sees: begin <= key < end, and of those before begin first <= key < sinks.
struct Seen {
    begin: u32,
    end: u32,
    first: u32,
    sinks: u32,
    // The key that the query stands at, negative before the first.
    at: i32,
}

// Those of query `row`. Neither begin, end nor first moves back from a row to the next.
fn seen_by(row: u32) -> Seen { return seen_among(row, ${length}); }

// The same of so many keys: uniform where they are, which a private variable never is.
fn seen_among(row: u32, length: u32) -> Seen {
    #if seen == "rows"
    // Keys are counted from the start of the row's document.
    let document = documents[row];
    let first = document.x;
    let keys = i32(document.y - first);
    let at = i32(row + document.z - first);
    #else
    let first = 0u;
    let keys = i32(length);
    // The last query stands at the last key.
    let at = i32(row) + keys - i32(p.q_len);
    #endif
    #if seen == "full"
    return Seen(0u, length, 0u, 0u, at);
    #elif seen == "causal"
    return Seen(0u, u32(clamp(at + 1, 0, keys)), 0u, 0u, at);
    #else
    let end = max(clamp(at + i32(p.right) + 1, 0, keys), min(i32(p.prefix), keys));
    let begin = clamp(at - i32(p.left), 0, end);
    return Seen(first + u32(begin), first + u32(end), first, first + p.sinks, i32(first) + at);
    #endif
}

// Those of them before `end`.
fn until(seen: Seen, end: u32) -> Seen {
    return Seen(seen.begin, min(seen.end, end), seen.first, seen.sinks, seen.at);
}

// A tile of keys from `key` on, or the next that rows have to visit of which the first sees `top`.
fn next_tile(key: u32, top: Seen, tile: u32) -> u32 {
    #if seen == "rows"
    let next = max(key, top.first / tile * tile);
    #else
    let next = key;
    #endif
    #if seen == "band" or seen == "rows"
    if next >= top.sinks { return max(next, top.begin / tile * tile); }
    #endif
    return next;
}

// Whether every row from one that sees `top` to one that sees `bottom` sees the keys of a tile: nothing to hide.
fn open_tile(key: u32, tile: u32, top: Seen, bottom: Seen) -> bool {
    return bottom.begin <= key && key + tile <= top.end;
}

// A row's maximum and sum before its first key. To be given to one of those who share a row: the others start at
// (LOWEST, 0).
fn start(head: u32) -> vec2<f32> {
    #if sink == 1
    let sink = sink_logits[p.sink_offset + head];
    // Minus infinity by its bits: devices may assume that there is none.
    if bitcast<u32>(sink) != 0xff800000u { return vec2<f32>(clamp(sink * LOG2E, LOWEST, -LOWEST), 1.0); }
    #endif
    return vec2<f32>(LOWEST, 0.0);
}

// The scores of four keys from `key` on out of their dot products, as far as positions hide none.
fn open_scores(dots: vec4<f32>, batch: u32, head: u32, row: u32, key: u32, at: i32) -> vec4<f32> {
    let keys = vec4<u32>(key) + vec4<u32>(0u, 1u, 2u, 3u);
    #if softcap == 1
    var s = p.cap * tanh4(dots * p.scale);
    #else
    var s = dots * p.scale;
    #endif
    #if slopes == 1
    let distance = vec4<f32>(abs(vec4<i32>(keys) - at));
    s -= (slopes[p.slopes_offset + head] * LOG2E) * distance;
    #endif
    #if bias != "none" or mask == 1
    let place = min(keys, vec4<u32>(p.kv_len - 1u));
    #endif
    #if bias != "none"
    let bias_at = p.bias_offset + batch * p.bias_batch + head * p.bias_head + row * p.bias_row
        + place * (p.key_strides & 1u);
    let b = vec4<f32>(load_bias(bias_at.x), load_bias(bias_at.y), load_bias(bias_at.z), load_bias(bias_at.w));
    s = clamp(s + b * LOG2E, vec4<f32>(LOWEST), vec4<f32>(-LOWEST));
    s = select(s, vec4<f32>(HIDDEN), bitcast<vec4<u32>>(b) == vec4<u32>(0xff800000u));
    #else
    s = clamp(s, vec4<f32>(LOWEST), vec4<f32>(-LOWEST));
    #endif
    #if mask == 1
    let mask_at = p.mask_offset + batch * p.mask_batch + head * p.mask_head + row * p.mask_row
        + place * (p.key_strides >> 1u);
    s = select(s, vec4<f32>(HIDDEN),
        vec4<bool>(masked(mask_at.x), masked(mask_at.y), masked(mask_at.z), masked(mask_at.w)));
    #endif
    return s;
}

// Four scores from `key` on, without those that a query does not see.
fn hide(s: vec4<f32>, key: u32, seen: Seen) -> vec4<f32> {
    let keys = vec4<u32>(key) + vec4<u32>(0u, 1u, 2u, 3u);
    var hidden = keys >= vec4<u32>(seen.end);
    #if seen == "band" or seen == "rows"
    hidden |= (keys < vec4<u32>(seen.begin)) & (keys >= vec4<u32>(seen.sinks));
    #endif
    #if seen == "rows"
    hidden |= keys < vec4<u32>(seen.first);
    #endif
    return select(s, vec4<f32>(HIDDEN), hidden);
}

fn scores(dots: vec4<f32>, batch: u32, head: u32, row: u32, key: u32, seen: Seen) -> vec4<f32> {
    return hide(open_scores(dots, batch, head, row, key, seen.at), key, seen);
}

#if mask == 1
// A byte a key; zero hides it.
fn masked(i: u32) -> bool { return ((mask[i >> 2u] >> ((i & 3u) * 8u)) & 0xffu) == 0u; }
#endif

#if softcap == 1
// Near zero by a polynomial (Cephes, tanhf), where the difference of exponentials would lose its digits. WGSL's own
// may be off by 1e-5.
fn tanh4(x: vec4<f32>) -> vec4<f32> {
    let a = min(abs(x), vec4<f32>(10.0));
    let z = a * a;
    let low = a + a * z * (-0.333332819422 + z * (0.133314422036 + z * (-0.0537397155531 + z * (0.0206390887954
        - z * 0.00570498872745))));
    let high = 1.0 - 2.0 / (exp2(a * (2.0 * LOG2E)) + 1.0);
    return sign(x) * select(high, low, a < vec4<f32>(0.625));
}

// The derivative of the softcap for four dot products.
fn softcap_slope(dots: vec4<f32>) -> vec4<f32> {
    let bent = tanh4(dots * p.scale);
    return 1.0 - bent * bent;
}
#endif

// The weights of keys with scores `s` under a maximum of LOWEST or more.
fn weights(s: vec4<f32>, m: f32) -> vec4<f32> { return exp2(s - m); }

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

<# For kernels that hold keys and walk over queries. #>
#macro inverse(seen)
// The queries that see any of the keys first .. last: x <= query < y.
fn seeing(first: u32, last: u32) -> vec2<u32> {
    #if seen == "full"
    return vec2<u32>(0u, p.q_len);
    #elif seen == "rows"
    // Neither end of what rows see moves back: halving finds the first row that sees beyond the first key, and the
    // first whose keys begin after the last.
    var low = 0u;
    var high = p.q_len;
    while low < high {
        let middle = (low + high) / 2u;
        if seen_by(middle).end > first { high = middle; } else { low = middle + 1u; }
    }
    let begin = low;
    high = p.q_len;
    while low < high {
        let middle = (low + high) / 2u;
        let seen = seen_by(middle);
        if select(seen.begin, seen.first, first < seen.sinks) > last { high = middle; } else { low = middle + 1u; }
    }
    return vec2<u32>(begin, low);
    #else
    let queries = i32(p.q_len);
    // The queries that stand at the first key and at the last.
    let a = i32(first) - (i32(p.kv_len) - queries);
    let b = i32(last) - (i32(p.kv_len) - queries);
    #if seen == "causal"
    return vec2<u32>(u32(clamp(a, 0, queries)), p.q_len);
    #else
    return vec2<u32>(
        select(u32(clamp(a - i32(p.right), 0, queries)), 0u, first < p.prefix),
        select(u32(clamp(b + i32(p.left) + 1, 0, queries)), p.q_len, first < p.sinks),
    );
    #endif
    #endif
}
#endmacro
