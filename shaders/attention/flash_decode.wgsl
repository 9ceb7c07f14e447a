// Attention for few queries over caches whose numbers are bytes, on matrix units: decode.wgsl is bound there by the
// instructions that decode and multiply, not by the memory that it reads.
//
// Tensors and splits as for decode.wgsl. A workgroup handles a tile of rows (queries of the heads that share a key head) of
// one sequence and one split of its keys. Each of its SUBS subgroups walks over the keys by itself, BK a step, with an online
// softmax of its own, and they are merged at the end. Queries, in workgroup memory, are read for each product: else they take
// the registers that let loads and products overlap. Keys and the scales of rows are loaded a step ahead.
//
// Rows are the 16 rows of a product's left operand (lib/fragments.wgsl), keys and channels the right one, made of what
// 16-byte loads of the cache bring. Products do not mind in which order channels or keys are summed up:
// - Scores: of the 64 channels of a load, invocation quad has 16 of two keys, a word of four for each product. Column n is key
//   4 (n / 2) + n % 2, two more for the second half of 16 columns: an invocation holds scores of four neighbouring keys.
// - Output: the invocations of a line hold the same VVEC channels, each those of four keys, the keys whose weights it has.
//   Words of two keys are mixed, so that a pair of halves is a channel of both.
//
// A byte becomes f16 in pairs (lib/kv.wgsl), exactly. A row's scale multiplies finished dot products and weights; the
// exponents of blocks as far as they differ from their row's largest multiply the halves (exactly, up to 2^-24).
//
// With PARTS 2, tiles have 8 rows, and the products' other 8 hold what f16 leaves of them: of queries, lifted by a power of
// two such that their largest is 2^14 or more, and of weights. Results are then those of f32, for free: nothing else would
// use these rows. With PARTS 1 (queries of f16), tiles have 16 rows.
//
// The maximum that weights are relative to is that of a score times its value's scale, as far as powers of two go: f16 holds their
// product. It moves only when a weight would pass 2^8 (flash.wgsl).
//
// On an H100 (read 3.09 TB/s; 32 heads over 8 of 128 channels, q f16; benches/record/nvidia-h100/2026-11-25-flash-decode.txt),
// 131072 keys, us, in brackets decode.wgsl: int8 106 (140), E4M3 105 (137), E5M2 100 (124), block8 113 (168); f16 there 188.
// 8192 keys: int8 17.4 (19.6). Floors by bytes: int8 and block8 90, E4M3 and E5M2 87. The ladder of int8, by SUBS x workgroups:
//   16 keys a step, all loads together: 4x528 141, 4x264 128; keys a step ahead: 4x264 111, 2x528 113; 32 keys: 125
//   32 keys, keys ahead: 4x264 104, 2x528 105, 8x264 110, 4x528 110, 2x264 117, 4x1056 121
//   scales of four keys by one load in place of four: 106 (another machine)
//   values and scales a step ahead as well: 32 keys 106, 16 keys 114 (keys alone: 106, 110)
// More workgroups than run at a time cost more than they hide; registers seem to hold two of 128 invocations a processor.
//
// On an H200 (read 4.3 TB/s; f16 134; benches/record/nvidia-h200/2026-11-26-attention.txt), 131072 keys, us, queries in registers
// before: int8 85.0, E4M3 88.5, E5M2 72.8, block8 104.5. Bounds of int8, with wrong results: no scales 77.2, bytes taken for halves
// 76.5, nothing taken away from halves 83.5. The ladder (4x264, 32 keys):
//   queries in workgroup memory: 78.5 (E4M3 76.4, E5M2 72.1, block8 93.2); scales of rows a step ahead: 83.2; both: 76.2
//   both, and one exponent for the scales of four values in place of their logarithms: 76.1; fewer factors of scores, too: 76.4
//   with the first: values a step ahead as well 81.9; two sums of products a score 79.5; rows in bounds without being asked 78.3
//   with the first, other sizes: 4x396 100, 4x528 86.4, 2x528 80.5, 2x792 103; 16 keys: 4x264 88.6, 4x396 80.1
//   four rows a tile, the other twelve of a product for what halves leave and for every other channel, so that no words are mixed,
//     softmax has half as much to do and the output half as many registers: 87.9; with all of the above 83.2, 4x396 78.3
#import "lib/tensor.wgsl" as t
#import "lib/kv.wgsl" as kv
#import "lib/attention.wgsl" as attention
#import "lib/fragments.wgsl" as fragments
#import "lib/pages.wgsl" as pages
#set WG = SUBS * 32
#set STEP = SUBS * BK
#set TILE = 16 // PARTS
#set ROWS = 2 // PARTS
#set J = BK // 16
#set KT = (D + 63) // 64
#set VG = (DV + VVEC * 8 - 1) // (VVEC * 8)
#set DV4 = (DV + 3) // 4
<# Loads of a row of keys, and of values. #>
#set K_ROW = (D + 15) // 16
#set V_ROW = (DV + 15) // 16 * 16 // VVEC
#set KSW = ((D + KB - 1) // KB + 3) // 4 if KB else 1
#set VSW = ((DV + VB - 1) // VB + 3) // 4 if VB else 1
<# Whether 16 neighbouring tokens lie together. #>
#set TOGETHER = PAGE in ["none", "whole"] or PAGE % 16 == 0
<# Whether the scales of four of them are 16 bytes of memory. #>
#set QUADS = TOGETHER and ALIGNED == 1
#set LIFT = 6 if K == "f8e4m3" else 14
#if COOP == "elements"
enable f16;
enable wgpu_cooperative_matrix;
#endif

${ attention.params() }
${ t.params(PARAMS) }
${ t.prelude() }
${ t.input(1, "q", Q, VEC) }
${ kv.input(2, "k", K, 16) }
${ kv.input(3, "v", V, VVEC) }
${ t.output(4, "out", O, VEC) }
${ attention.inputs("none", 0, SEEN, SLOPES, SINK) }
#if LSE == 1
${ t.words(7, "lse", "f32", "read_write") }
#endif
${ t.words(8, "partial", "vec4<f32>", "read_write") }
#if PAGE != "none"
${ t.words(14, "table", "u32") }
#endif
#if ORDER == 1
${ t.words(15, "order", "u32") }
#endif
${ attention.functions("none", 0, SEEN, SOFTCAP, SLOPES, SINK, length="kv_length") }
${ pages.functions(PAGE) }
${ fragments.functions(COOP) }
${ fragments.halves(COOP) }
${ kv.pairs([K, V], KS == "block" or VS == "block") }

// Keys of the sequence.
var<private> kv_length: u32;

// The queries as left operands, the same for all subgroups.
var<workgroup> queries: array<vec4<u32>, ${KT * 4 * 32}>;
// What a subgroup at a time adds to the result; maximum and sum of each row and subgroup.
var<workgroup> pool: array<vec4<f32>, ${2 * WG}>;
var<workgroup> states: array<vec2<f32>, ${TILE * SUBS}>;

#if KS == "block" or VS == "block"
fn largest_byte(w: u32) -> u32 {
    return max(max(w >> 24u, (w >> 16u) & 0xffu), max((w >> 8u) & 0xffu, w & 0xffu));
}
// The power of two by which a block's exponent differs from the largest of its row.
fn share_of(word: u32, block: u32, most: u32) -> f32 {
    return bitcast<f32>((max(127u + ((word >> (block % 4u * 8u)) & 0xffu), most) - most) << 23u);
}
#endif

#if PARTS == 2
// As many bits as f16 has. (Compilers take unpack2x16float(pack2x16float(x)) for x.)
fn first_bits(x: vec2<f32>) -> vec2<f32> { return bitcast<vec2<f32>>(bitcast<vec2<u32>>(x) & vec2<u32>(0xffffe000u)); }
#endif

// The tokens that some row sees: those from `first` on, and the first `sinks`. Both are multiples of 16, so that 16 visited
// together are neighbours.
struct Visits {
    sinks: u32,
    first: u32,
    count: u32,
}

fn visits(length: u32) -> Visits {
    #if SEEN == "band"
    let end = seen_among(p.q_len - 1u, length).end;
    let first = min(seen_among(0u, length).begin, end) / 16u * 16u;
    let sinks = min((p.sinks + 15u) & ~15u, first);
    return Visits(sinks, first, sinks + end - first);
    #else
    return Visits(0u, 0u, length);
    #endif
}

fn position(x: u32, all: Visits) -> u32 {
    #if SEEN == "band"
    return select(x - all.sinks + all.first, x, x < all.sinks);
    #else
    return x;
    #endif
}

// Of 16 neighbouring tokens, where the first lies and how many follow it.
struct Sixteen {
    first: u32,
    row: u32,
    more: u32,
}

fn sixteen(token: u32, batch: u32, kv_head: u32) -> Sixteen {
    let last = max(kv_length, 1u) - 1u;
    let first = min(token, last);
    return Sixteen(first, ${"stored_row(batch, kv_head, first)" if TOGETHER else "0u"}, last - first);
}

// The row in the cache of the i-th, in bounds whatever i is.
fn row_of(tokens: Sixteen, i: u32, batch: u32, kv_head: u32) -> u32 {
    #if TOGETHER
    return tokens.row + min(i, tokens.more);
    #else
    return stored_row(batch, kv_head, tokens.first + min(i, tokens.more));
    #endif
}

// A row's maximum and sum over the subgroups, and its start if this is the first split.
fn merged(row: u32, head: u32, split: u32) -> vec2<f32> {
    let opening = start(head);
    var m = select(LOWEST, opening.x, split == 0u);
    var l = select(0.0, opening.y, split == 0u);
    for (var s = 0u; s < ${SUBS}u; s += 1u) {
        let state = states[row * ${SUBS}u + s];
        let most = max(m, state.x);
        l = l * exp2(m - most) + state.y * exp2(state.x - most);
        m = most;
    }
    return vec2<f32>(m, l);
}

#macro word(unit, w, vec)
${unit}${"." ~ "xyzw"[w] if vec > 4 else ""}
#endmacro

<# Two numbers as halves: with PARTS 2 their first bits, then the rest. #>
#macro half(part, x)
#if PARTS == 1
pack2x16float(${x})
#elif part == 0
pack2x16float(first_bits(${x}))
#else
pack2x16float(${x} - first_bits(${x}))
#endif
#endmacro

<# Of a row's exponents the word that has a block's. #>
#macro pick(name, words, block)
#if words == 1
${name}_0
#elif words == 2
select(${name}_0, ${name}_1, ${block} >= 4u)
#else
vec4<u32>(${name}_0, ${name}_1, ${name}_2, ${name}_${words - 1})[${block} / 4u]
#endif
#endmacro

<# Of 4 t + quad, or 8 g + line, what a row has: past its end the last again, which meets zeros or is not stored. #>
#macro within(first, at, count, all)
${first ~ "u + " ~ at if first + count <= all else "min(" ~ first ~ "u + " ~ at ~ ", " ~ (all - 1) ~ "u)"}
#endmacro

<# This invocation's keys of the step from x on, two for each of J matrices. #>
#macro load_keys(x)
#for j in range(J)
{
    let tokens = sixteen(position(${x} + ${j * 16}u, all), batch, kv_head);
    #for h in range(2)
    let row_${h} = row_of(tokens, line / 2u * 4u + line % 2u + ${2 * h}u, batch, kv_head);
    #for t in range(KT)
    k_${j}_${h}_${t} = k[row_${h} * ${K_ROW}u + ${within(t * 4, "quad", 4, K_ROW)}];
    #endfor
    #if KS == "block"
    #for i in range(KSW)
    e_${j}_${h}_${i} = word_k(p.k_scales + row_${h} * ${KSW}u + ${i}u);
    #endfor
    #endif
    #endfor
}
#endfor
#endmacro

<# The scales of its four keys' rows. #>
#macro load_scales(x)
#if "row" in [KS, VS]
#for j in range(J)
{
    let tokens = sixteen(position(${x} + ${j * 16}u, all), batch, kv_head);
    #for side, scaling in [["k", KS], ["v", VS]] if scaling == "row"
    #if QUADS
    ${side}_next_${j} = bitcast<vec4<f32>>(${vector(side, "(p." ~ side ~ "_scales + tokens.row) / 4u + min(quad, tokens.more / 4u)")});
    #else
    ${side}_next_${j} = bitcast<vec4<f32>>(vec4<u32>(
        #for i in range(4)
        word_${side}(p.${side}_scales + row_of(tokens, quad * 4u + ${i}u, batch, kv_head)),
        #endfor
    ));
    #endif
    #endfor
}
#endfor
#endif
#endmacro

<# Its four keys' values, and the scales of blocks. #>
#macro load_values(x)
#for j in range(J)
#for i in range(4)
#for g in range(VG)
var v_${j}_${i}_${g}: ${"vec4<u32>" if VVEC == 16 else "vec2<u32>" if VVEC == 8 else "u32"};
#endfor
#endfor
#for side, scaling, words in [["k", KS, KSW], ["v", VS, VSW]]
#if scaling == "block"
#for i in range(4)
#for e in range(words)
var ${side}_word_${j}_${i}_${e}: u32;
#endfor
#endfor
#endif
#endfor
{
    let tokens = sixteen(position(${x} + ${j * 16}u, all), batch, kv_head);
    #for i in range(4)
    let row_${i} = row_of(tokens, quad * 4u + ${i}u, batch, kv_head);
    #for g in range(VG)
    v_${j}_${i}_${g} = v[row_${i} * ${V_ROW}u + ${within(g * 8, "line", 8, V_ROW)}];
    #endfor
    #endfor
    #for side, scaling, words in [["k", KS, KSW], ["v", VS, VSW]]
    #if scaling == "block"
    #for i in range(4)
    #for e in range(words)
    ${side}_word_${j}_${i}_${e} = word_${side}(p.${side}_scales + row_${i} * ${words}u + ${e}u);
    #endfor
    #endfor
    #endif
    #endfor
}
#endfor
#endmacro

<# Four words by the number of a group of four. #>
#macro vector(side, at)
#if side == "k" or VVEC == 16
${side}[${at}]
#elif VVEC == 8
vec4<u32>(${side}[(${at}) * 2u], ${side}[(${at}) * 2u + 1u])
#else
vec4<u32>(${side}[(${at}) * 4u], ${side}[(${at}) * 4u + 1u], ${side}[(${at}) * 4u + 2u], ${side}[(${at}) * 4u + 3u])
#endif
#endmacro

@compute @workgroup_size(${WG})
fn main(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) grid: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
    ${ fragments.arguments(COOP) }
) {
    ${ fragments.begin(COOP) }
    let rows = p.group * p.q_len;
    let row_tiles = (rows + ${TILE - 1}u) / ${TILE}u;
    let kv_head = workgroup.y / row_tiles;
    let first_head = kv_head * p.group;
    let heads = grid.y / row_tiles * p.group;
    let first_of_tile = workgroup.y % row_tiles * ${TILE}u;
    let batch = workgroup.z;
    #if PAGE == "none"
    let length = p.kv_len;
    #else
    let length = min(table[batch], p.kv_len);
    #endif
    kv_length = length;
    let all = visits(length);
    let steps = (all.count + ${STEP - 1}u) / ${STEP}u;
    let split = (steps + p.splits - 1u) / p.splits * ${STEP}u;
    let begin = workgroup.x * split;
    let end = min(begin + split, all.count);
    let top = seen_among(0u, length);
    let bottom = seen_among(p.q_len - 1u, length);

    // Rows past the last repeat it and are not stored.
    #for r in range(ROWS)
    let row_${r} = min(first_of_tile + line + ${8 * r}u, rows - 1u);
    let query_${r} = row_${r} % p.q_len;
    let head_${r} = first_head + row_${r} / p.q_len;
    let seen_${r} = seen_by(query_${r});
    var m_${r} = LOWEST;
    var l_${r} = 0.0;
    let q_at_${r} = p.q_offset + batch * p.q_batch + head_${r} * p.q_head + query_${r} * p.q_row;
    var largest_${r} = 0.0;
    #for t in range(KT)
    #for w in range(4)
    #if ORDER == 1
    var q_${r}_${t}_${w} = vec4<f32>();
    #for c in range(4)
    {
        let c = ${t * 64 + w * 4 + c}u + quad * 16u;
        if c < ${D}u { q_${r}_${t}_${w}.${"xyzw"[c]} = load_q(q_at_${r} + order[kv_head * ${D}u + c]); }
    }
    #endfor
    #else
    let c_${r}_${t}_${w} = min(${t * 64 + w * 4}u + quad * 16u, ${D}u);
    let q_${r}_${t}_${w} = load_some_q(q_at_${r} + c_${r}_${t}_${w}, ${D}u - c_${r}_${t}_${w});
    #endif
    largest_${r} = max(largest_${r}, largest(abs(q_${r}_${t}_${w})));
    #endfor
    #endfor
    // The largest becomes 2^14 or more: a half, and so does what halves leave.
    let exponent_${r} = clamp(bitcast<u32>(largest_of_quad(largest_${r})) >> 23u, 16u, 254u);
    let lift_${r} = bitcast<f32>((268u - exponent_${r}) << 23u);
    let unlift_${r} = bitcast<f32>((exponent_${r} - ${LIFT}u) << 23u);
    #endfor
    #for t in range(KT)
    #for w in range(4)
    #for r in range(ROWS)
    #for side in ["xz", "yw"]
    let x_${r}_${t}_${w}_${side} = q_${r}_${t}_${w}.${side} * lift_${r};
    #endfor
    #endfor
    if subgroup == 0u {
        queries[${(t * 4 + w) * 32}u + place] = vec4<u32>(
            #for part in range(2)
            #for side in ["xz", "yw"]
            ${half(part, "x_" ~ (0 if PARTS == 2 else part) ~ "_" ~ t ~ "_" ~ w ~ "_" ~ side)},
            #endfor
            #endfor
        );
    }
    #endfor
    #endfor
    workgroupBarrier();
    #for g in range(VG)
    #for c in range(VVEC // 2)
    var o_${g}_${c}: Accumulator;
    #endfor
    #endfor

    #for j in range(J)
    #for h in range(2)
    #for t in range(KT)
    var k_${j}_${h}_${t}: vec4<u32>;
    #endfor
    #if KS == "block"
    #for i in range(KSW)
    var e_${j}_${h}_${i}: u32;
    #endfor
    #endif
    #endfor
    #endfor
    #for side, scaling in [["k", KS], ["v", VS]] if scaling == "row"
    #for j in range(J)
    var ${side}_next_${j}: vec4<f32>;
    #endfor
    #endfor
    ${ load_keys("begin + subgroup * " ~ BK ~ "u") }
    ${ load_scales("begin + subgroup * " ~ BK ~ "u") }
    for (var x0 = begin + subgroup * ${BK}u; x0 < end; x0 += ${STEP}u) {
        #for side, scaling in [["k", KS], ["v", VS]] if scaling != "none"
        #for j in range(J)
        var ${side}_scale_${j}${" = " ~ side ~ "_next_" ~ j if scaling == "row" else ": vec4<f32>"};
        #endfor
        #endfor
        ${ load_values("x0") }
        // Compilers are not to know that this is the invocation's number, or they keep the queries in registers.
        let own = place + (x0 >> 31u);
        #for j in range(J)
        var s_${j}: Accumulator;
        #if KS == "block"
        #for h in range(2)
        var most_${j}_${h} = 0u;
        #for i in range(KSW)
        most_${j}_${h} = max(most_${j}_${h}, largest_byte(e_${j}_${h}_${i}));
        #endfor
        #endfor
        #endif
        #for t in range(KT)
        #if KS == "block"
        #for h in range(2)
        let block_${j}_${h}_${t} = (${within(t * 4, "quad", 4, K_ROW)}) * 16u / ${KB}u;
        let share_${j}_${h}_${t} = share_of(
            ${pick("e_" ~ j ~ "_" ~ h, KSW, "block_" ~ j ~ "_" ~ h ~ "_" ~ t)},
            block_${j}_${h}_${t}, most_${j}_${h});
        let factor_${j}_${h}_${t} = pack2x16float(vec2<f32>(share_${j}_${h}_${t}));
        let offset_${j}_${h}_${t} = pack2x16float(vec2<f32>(share_${j}_${h}_${t} * -1152.0));
        #endfor
        #endif
        #for w in range(4)
        s_${j} = multiply_add(matrix_a(queries[own + ${(t * 4 + w) * 32}u]), matrix_b(vec4<u32>(
            #for h in range(2)
            #for side in ["even", "odd"]
            ${kv.pair(K, side, "k_" ~ j ~ "_" ~ h ~ "_" ~ t ~ "." ~ "xyzw"[w], ["factor_" ~ j ~ "_" ~ h ~ "_" ~ t, "offset_" ~ j ~ "_" ~ h ~ "_" ~ t] if KS == "block" else [])},
            #endfor
            #endfor
        )), s_${j});
        #endfor
        #endfor
        #endfor
        ${ load_keys("x0 + " ~ STEP ~ "u") }
        ${ load_scales("x0 + " ~ STEP ~ "u") }

        // Scores of four neighbouring keys at a time.
        #for j in range(J)
        let key_${j} = position(x0 + ${j * 16}u, all) + quad * 4u;
        let closed_${j} = !open_tile(key_${j} - quad * 4u, 16u, top, bottom);
        #for side, scaling, words in [["k", KS, KSW], ["v", VS, VSW]]
        #if scaling == "block"
        #for i in range(4)
        var ${side}_most_${j}_${i} = 0u;
        #for e in range(words)
        ${side}_most_${j}_${i} = max(${side}_most_${j}_${i}, largest_byte(${side}_word_${j}_${i}_${e}));
        #endfor
        #endfor
        ${side}_scale_${j} = bitcast<vec4<f32>>(
            vec4<u32>(${side}_most_${j}_0, ${side}_most_${j}_1, ${side}_most_${j}_2, ${side}_most_${j}_3) << vec4<u32>(23u));
        #endif
        #endfor
        #if VS != "none"
        #if VS == "row" and QUADS
        // Past the last key anything may stand.
        if closed_${j} {
            let past = vec4<u32>(key_${j}) + vec4<u32>(0u, 1u, 2u, 3u) >= vec4<u32>(kv_length);
            v_scale_${j} = select(v_scale_${j}, vec4<f32>(1.0), past);
        }
        #endif
        let weight_${j} = log2(v_scale_${j});
        #endif
        #endfor
        #for r in range(ROWS)
        var most_${r} = HIDDEN;
        #for j in range(J)
        var x_${r}_${j} = unlift_${r} * vec4<f32>(
            #for i in range(4)
            element(&s_${j}, ${r * 4 + i}u)${" + element(&s_" ~ j ~ ", " ~ (4 + i) ~ "u)" if PARTS == 2 else ""},
            #endfor
        );
        #if KS != "none"
        x_${r}_${j} *= k_scale_${j};
        #endif
        x_${r}_${j} = open_scores(x_${r}_${j}, batch, head_${r}, query_${r}, key_${j}, seen_${r}.at);
        if closed_${j} { x_${r}_${j} = hide(x_${r}_${j}, key_${j}, seen_${r}); }
        most_${r} = max(most_${r}, largest(x_${r}_${j}${" + weight_" ~ j if VS != "none" else ""}));
        #endfor
        #endfor
        // Once: then no score is above the maximum.
        while any_of_subgroup(
            #for r in range(ROWS)
            ${"|| " if r else ""}most_${r} > m_${r} + 8.0
            #endfor
        ) {
            #for r in range(ROWS)
            most_${r} = max(largest_of_quad(most_${r}), m_${r});
            let shrink_${r} = exp2(m_${r} - most_${r});
            m_${r} = most_${r};
            l_${r} *= shrink_${r};
            #endfor
            #for g in range(VG)
            #for c in range(VVEC // 2)
            #for i in range(8)
            set_element(&o_${g}_${c}, ${i}u, element(&o_${g}_${c}, ${i}u) * shrink_${i // 4 if PARTS == 1 else 0});
            #endfor
            #endfor
            #endfor
        }
        #for j in range(J)
        #for r in range(ROWS)
        let p_${r}_${j} = exp2(x_${r}_${j} - m_${r});
        l_${r} += sum_of(p_${r}_${j});
        let w_${r}_${j} = p_${r}_${j}${" * v_scale_" ~ j if VS != "none" else ""};
        #endfor
        let weights_${j} = matrix_a(vec4<u32>(
            #for part in range(2)
            #for side in ["xy", "zw"]
            ${half(part, "w_" ~ (0 if PARTS == 2 else part) ~ "_" ~ j ~ "." ~ side)},
            #endfor
            #endfor
        ));
        #endfor

        #for j in range(J)
        #for g in range(VG)
        #if VS == "block"
        let v_block_${j}_${g} = (${within(g * 8, "line", 8, V_ROW)}) * ${VVEC}u / ${VB}u;
        #for i in range(4)
        let v_share_${j}_${g}_${i} = share_of(
            ${pick("v_word_" ~ j ~ "_" ~ i, VSW, "v_block_" ~ j ~ "_" ~ g)},
            v_block_${j}_${g}, v_most_${j}_${i});
        #endfor
        #for i in range(2)
        let v_shares_${j}_${g}_${i} = vec2<f32>(v_share_${j}_${g}_${2 * i}, v_share_${j}_${g}_${2 * i + 1});
        let v_factor_${j}_${g}_${i} = pack2x16float(v_shares_${j}_${g}_${i});
        let v_offset_${j}_${g}_${i} = pack2x16float(v_shares_${j}_${g}_${i} * -1152.0);
        #endfor
        #endif
        #for w in range(VVEC // 4)
        {
            // The lower halves of two keys' words, and the upper ones.
            #for i in range(2)
            let a_${i} = ${word("v_" ~ j ~ "_" ~ 2 * i ~ "_" ~ g, w, VVEC)};
            let b_${i} = ${word("v_" ~ j ~ "_" ~ (2 * i + 1) ~ "_" ~ g, w, VVEC)};
            let low_${i} = (a_${i} & 0xffffu) | (b_${i} << 16u);
            let high_${i} = (a_${i} >> 16u) | (b_${i} & 0xffff0000u);
            #endfor
            #for half in ["low", "high"]
            #set c = 2 * w + loop.index0
            o_${g}_${c} = multiply_add(weights_${j}, matrix_b(vec4<u32>(
                #for side in ["even", "odd"]
                #for i in range(2)
                ${kv.pair(V, side, half ~ "_" ~ i, ["v_factor_" ~ j ~ "_" ~ g ~ "_" ~ i, "v_offset_" ~ j ~ "_" ~ g ~ "_" ~ i] if VS == "block" else [])},
                #endfor
                #endfor
            )), o_${g}_${c});
            #endfor
        }
        #endfor
        #endfor
        #endfor
    }

    #for r in range(ROWS)
    l_${r} = sum_of_quad(l_${r});
    if quad == 0u { states[(line + ${8 * r}u) * ${SUBS}u + subgroup] = vec2<f32>(m_${r}, l_${r}); }
    #endfor
    workgroupBarrier();
    #for r in range(ROWS)
    let shrink_${r} = exp2(m_${r} - merged(line + ${8 * r}u, head_${r}, workgroup.x).x)${" * 256.0" if V == "f8e4m3" else ""};
    #endfor
    #for g in range(VG)
    #for w in range(VVEC // 4)
    #for r in range(ROWS)
    // Four neighbouring channels of a row, and VVEC further on four more.
    workgroupBarrier();
    #for e in range(2)
    pool[${e * WG}u + lane] = shrink_${r} * vec4<f32>(
        #for c in range(4)
        #set matrix = "&o_" ~ g ~ "_" ~ (2 * w + c // 2)
        #set i = e + c % 2 * 2
        element(${matrix}, ${r * 4 + i}u)${" + element(" ~ matrix ~ ", " ~ (4 + i) ~ "u)" if PARTS == 2 else ""},
        #endfor
    );
    #endfor
    workgroupBarrier();
    for (var e = lane; e < 64u; e += ${WG}u) {
        let tile_row = e % 32u / 4u + ${8 * r}u;
        let c = ${g * VVEC * 2 + w}u + e % 4u * ${VVEC // 2}u + e / 32u * ${VVEC // 4}u;
        let row = first_of_tile + tile_row;
        if row < rows && c < ${DV4}u {
            var total = vec4<f32>();
            for (var s = 0u; s < ${SUBS}u; s += 1u) { total += pool[e / 32u * ${WG}u + s * 32u + e % 32u]; }
            let head = first_head + row / p.q_len;
            let query = row % p.q_len;
            let state = merged(tile_row, head, workgroup.x);
            // The row's place in [batch, heads, q_len].
            let place = (batch * heads + head) * p.q_len + query;
            if p.splits == 1u {
                // A row that sees nothing is zero.
                let inverse = select(1.0 / state.y, 0.0, state.y == 0.0);
                let out_at = p.out_offset + batch * p.out_batch + head * p.out_head + query * p.out_row;
                store_some_out(out_at + c * 4u, ${DV}u - c * 4u, total * inverse);
                #if LSE == 1
                if c == 0u { lse[p.lse_offset + place] = log_sum(state.x, state.y); }
                #endif
            } else {
                let partial_at = (place * p.splits + workgroup.x) * ${DV4 + 1}u;
                partial[partial_at + 1u + c] = total;
                if c == 0u { partial[partial_at] = vec4<f32>(state, 0.0, 0.0); }
            }
        }
    }
    #endfor
    #endfor
    #endfor
}
