// Attention for few queries over many keys (flash-decoding: https://pytorch.org/blog/flash-decoding): the time is
// that of reading K and V once.
//
// Tensors as for prefill.wgsl. One workgroup handles R rows of one (batch, key head) and one split of its keys; the
// rows are all queries of all heads that share the key head, head by head, so that K and V are read once for the
// group. Teams of L invocations walk over the keys by themselves, U at a time, with an online softmax of their own:
// sub-lane s has the units s, s + L, .. of q, k, v and the result (a unit: KVEC or VVEC elements, one access). The
// dot products of R rows and U keys are summed across the team so that each invocation ends with those of one row and
// T = R U / L keys (a transposition costs fewer shuffles than R U sums, and the softmax is not computed L times);
// the weights are handed back one by one. Units stay packed until they are used: U units of K and of V are in flight
// together, and with AHEAD 1 the next step's of K as well. At the end the workgroup merges its teams, and writes the
// output (one split) or its maximum, sum and unnormalised result for combine.wgsl. Which of the two is a parameter,
// not a variant: a cache that grows past one split must not compile anything.
//
// Keys are visited by number, 0 to `visits()`; `position` is where a visited key stands in the sequence (masks),
// `place` where it lies in memory: in strided tensors (PAGE strided), or in a cache of pages (lib/pages.wgsl).
//
// With TILES listed, only the keys of listed blocks are visited (lib/sparse.wgsl), and a workgroup's rows are the queries of
// one block of queries of the heads that share both lists and key head.
//
// Formats with scales (lib/kv.wgsl): a row's scale multiplies the finished dot product and the weight, in the one
// invocation that owns them; a block's multiplies the shares of dot products that an invocation has of it.
// With ORDER 1, channel c of the keys' rows is channel order[head][c] of the queries.
//
// Rows change places with the lane (`q_at`), so that the sums over rows choose nothing; results are rescaled only in steps
// where some maximum of the subgroup moved.
//
// On an H100 (read 3.09 TB/s), f16, 131072 keys, 32 heads over 8 of 128 channels, 537 MB: 188 us, 92% of that (the
// change of places came after). The ladder: sums of every row and key in every lane and softmax in all of them, 186 us
// of an H200 (66%); transposing sums and packed units, 200 us; 528 workgroups for 1056, 191 us; keys a step ahead and
// rescaling on demand, 188 us. Formats of a byte are bound by instructions, not by memory: int8 146 us, E4M3 137,
// E5M2 126, block floating point 159; where there are matrix units, flash_decode.wgsl takes them.
//
// Dropped: the merge unrolled over rows (software compilers took twice as long, and it runs once); queries in
// registers (190 us with or without: compilers do it where there is room); workgroups of 256 (194 us).
#import "lib/tensor.wgsl" as t
#import "lib/kv.wgsl" as kv
#import "lib/attention.wgsl" as attention
#import "lib/reduce.wgsl" as reduce
#import "lib/pages.wgsl" as pages
#import "lib/sparse.wgsl" as sparse
#set GK = [KVEC // 4, 1] | max
#set GV = [VVEC // 4, 1] | max
#set UNITS = (D + GK * 4 - 1) // (GK * 4)
#set VUNITS = (DV + GV * 4 - 1) // (GV * 4)
#set J = (UNITS + L - 1) // L
#set JV = (VUNITS + L - 1) // L
#set DV4 = (DV + 3) // 4
#set QUADS = U // 4
<# Lanes of a row, and of those: lanes with keys of their own, lanes that share them, keys of one. #>
#set RL = L // R
#set KL = [U, RL] | min
#set DUP = RL // KL
#set T = U // KL
#set OWN = (T + 3) // 4
#set GROUPS = WG // L
#set STEP = GROUPS * U
#set QROW = J * GK * L
#set OROW = JV * GV
<# As many columns at a time as 8 KiB hold. #>
#set JB = [OROW, 512 // WG] | min
#set KSW = ((D + KB - 1) // KB + 3) // 4 if KB else 1
#set VSW = ((DV + VB - 1) // VB + 3) // 4 if VB else 1
<# Whether keys visited together lie together. #>
#set TOGETHER = TILES == "range" and SEEN in ["full", "causal"] and (PAGE in ["none", "whole", "strided"] or PAGE % U == 0)
#set POOL = [R * QROW, WG * JB] | max

${ attention.params() }
${ t.params(PARAMS) }
${ t.prelude() }
${ t.input(1, "q", Q, VEC) }
${ kv.prelude([K, V]) }
${ kv.input(2, "k", K, KVEC) }
${ kv.input(3, "v", V, VVEC) }
${ t.output(4, "out", O, VEC) }
${ attention.inputs(BIAS, MASK, SEEN, SLOPES, SINK) }
#if LSE == 1
${ t.words(7, "lse", "f32", "read_write") }
#endif
${ t.words(8, "partial", "vec4<f32>", "read_write") }
#if PAGE not in ["strided", "none"]
${ t.words(14, "table", "u32") }
#endif
#if ORDER == 1
${ t.words(15, "order", "u32") }
#endif
${ attention.functions(BIAS, MASK, SEEN, SOFTCAP, SLOPES, SINK, length="kv_length") }
#if TILES == "listed"
${ sparse.lists(12) }
${ sparse.entries() }
#endif
#if PAGE != "strided"
${ pages.functions(PAGE) }
#endif

// Keys of the sequence.
var<private> kv_length: u32;
#if TILES == "listed"
// Words of `lists` that are the entries of the workgroup's line.
var<private> line_entries: vec2<u32>;
#endif

// The queries; at the end the teams' results.
var<workgroup> pool: array<vec4<f32>, ${POOL}>;
// Maximum and sum of each row and team.
var<workgroup> states: array<vec2<f32>, ${R * GROUPS}>;
#if REDUCE == "workgroup"
// Each invocation's share of the dot products, and what it hands to its team.
var<workgroup> shares: array<f32, ${R * U * WG}>;
var<workgroup> given: array<f32, ${T * WG}>;
var<workgroup> given_row: array<f32, ${WG}>;
#else
// Of two values keeps the one that is this invocation's, with what its partner had of it.
fn fold4(a: vec4<f32>, b: vec4<f32>, second: bool, partner: u32) -> vec4<f32> {
    return select(a, b, second) + subgroupShuffleXor(select(b, a, second), partner);
}
fn fold2(a: vec2<f32>, b: vec2<f32>, second: bool, partner: u32) -> vec2<f32> {
    return select(a, b, second) + subgroupShuffleXor(select(b, a, second), partner);
}
fn fold1(a: f32, b: f32, second: bool, partner: u32) -> f32 {
    return select(a, b, second) + subgroupShuffleXor(select(b, a, second), partner);
}
#endif

#if KS == "block" or VS == "block"
// The scale of a block by the byte of a word.
fn exponent(word: u32, block: u32) -> f32 {
    return bitcast<f32>(((word >> (block % 4u * 8u)) & 0xffu) << 23u);
}
#endif

// The keys that some row sees: those from `first` on, and the first `sinks`, a multiple of four unless all are seen,
// so that four keys visited together are neighbours.
struct Visits {
    sinks: u32,
    first: u32,
    count: u32,
}

// Of so many keys, or of a line's entries: uniform, as barriers depend on it.
#if TILES == "listed"
fn visits(entries: vec2<u32>) -> Visits {
#else
fn visits(length: u32) -> Visits {
#endif
    #if TILES == "listed"
    return Visits(0u, 0u, (entries.y - entries.x) / 2u * ${BLOCK}u);
    #elif SEEN == "band"
    let end = seen_among(p.q_len - 1u, length).end;
    let first = min(seen_among(0u, length).begin, end);
    let sinks = min((p.sinks + 3u) & ~3u, first);
    return Visits(sinks, first, sinks + end - first);
    #elif SEEN == "rows"
    // Between the first document's first key and the last one's end.
    let first = seen_among(0u, length).first;
    return Visits(0u, first, max(seen_among(p.q_len - 1u, length).end, first) - first);
    #else
    return Visits(0u, 0u, length);
    #endif
}

fn position(x: u32, all: Visits) -> u32 {
    #if TILES == "listed"
    // Past the last key no query sees anything.
    if x >= all.count { return kv_length; }
    return (lists[line_entries.x + x / ${BLOCK}u * 2u] & ~PARTIAL) * ${BLOCK}u + x % ${BLOCK}u;
    #elif SEEN in ["band", "rows"]
    return select(x - all.sinks + all.first, x, x < all.sinks);
    #else
    return x;
    #endif
}

// The row of K and V, counted within the head (strided) or in the cache: in bounds whatever `x` is.
fn place(x: u32, all: Visits, batch: u32, kv_head: u32) -> u32 {
    #if TILES == "listed"
    if all.count == 0u { return 0u; }
    let last = min(x, all.count - 1u);
    let entry = line_entries.x + last / ${BLOCK}u * 2u;
    let first = (lists[entry] & ~PARTIAL) * ${BLOCK}u;
    if first >= kv_length { return 0u; }
    return lists[entry + 1u] * ${BLOCK}u + min(last % ${BLOCK}u, kv_length - 1u - first);
    #else
    let token = min(position(x, all), max(kv_length, 1u) - 1u);
    #if PAGE == "strided"
    return token;
    #else
    return stored_row(batch, kv_head, token);
    #endif
    #endif
}

<# row_0 to row_{U - 1} of the keys visited from `x` on. #>
#macro places(x, how)
#if TOGETHER
{
    let last = max(kv_length, 1u) - 1u;
    let first = min(${x}, last);
    row_0 = place(first, all, batch, kv_head);
    #for u in range(1, U)
    row_${u} = row_0 + min(${x} + ${u}u, last) - first;
    #endfor
}
#elif TILES == "listed" and BLOCK % U == 0
{
    let first = position(${x}, all);
    let more = max(kv_length, first + 1u) - 1u - first;
    row_0 = place(${x}, all, batch, kv_head);
    #for u in range(1, U)
    row_${u} = row_0 + min(${u}u, more);
    #endfor
}
#else
#for u in range(U)
row_${u} = place(${x} + ${u}u, all, batch, kv_head);
#endfor
#endif
#endmacro

#macro load(name, u, j, vec, units, d)
#if vec == 1
raw_some_${name}(${name}_base + row_${u} * p.${name}_row + ${j * L * 4}u + sub * 4u, ${d}u - min(${j * L * 4}u + sub * 4u, ${d}u))
#elif units % L == 0
raw_${name}(${name}_base + row_${u} * p.${name}_row + ${j * L * vec}u + sub * ${vec}u)
#else
raw_${name}(${name}_base + row_${u} * p.${name}_row + min(${j * L}u + sub, ${units - 1}u) * ${vec}u)
#endif
#endmacro

@compute @workgroup_size(${WG})
fn main(
    ${ reduce.group_arguments(REDUCE) }
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) grid: vec3<u32>,
) {
    let lane = ${ reduce.group_lane(REDUCE) };
    let sub = lane % ${L}u;
    let team = lane / ${L}u;
    #if TILES == "listed"
    // Heads that share both, and the lines of the call; a line has as many queries as the call or fewer.
    let alike = min(p.group, ${SHARE}u);
    let copies = p.group / alike;
    let first_query_row = first_row();
    let first_line = first_query_row / ${BLOCK}u;
    let lines = (first_query_row + p.q_len - 1u) / ${BLOCK}u + 1u - first_line;
    let row_tiles = (alike * p.q_len + ${R - 1}u) / ${R}u;
    let unit = workgroup.y / row_tiles;
    let line = first_line + unit % lines;
    let kv_head = unit / lines / copies;
    let first_head = unit / lines * alike;
    let heads = lists[1] * ${SHARE}u;
    let first_query = max(line * ${BLOCK}u, first_query_row) - first_query_row;
    let queries = min((line + 1u) * ${BLOCK}u - first_query_row, p.q_len) - first_query;
    let entries = entries_of(first_head / ${SHARE}u * lists[0] + line);
    line_entries = entries;
    #else
    let row_tiles = (p.group * p.q_len + ${R - 1}u) / ${R}u;
    let alike = p.group;
    let kv_head = workgroup.y / row_tiles;
    let first_head = kv_head * p.group;
    let heads = (grid.y / row_tiles) * p.group;
    let first_query = 0u;
    let queries = p.q_len;
    #endif
    let rows = alike * queries;
    let first_of_tile = (workgroup.y % row_tiles) * ${R}u;
    let batch = workgroup.z;
    #if TILES == "listed"
    if first_of_tile >= rows { return; }
    #endif
    #if PAGE == "strided"
    let k_base = p.k_offset + batch * p.k_batch + kv_head * p.k_head;
    let v_base = p.v_offset + batch * p.v_batch + kv_head * p.v_head;
    #else
    let k_base = 0u;
    let v_base = 0u;
    #endif
    #if PAGE in ["strided", "none"]
    let length = p.kv_len;
    #else
    let length = min(table[batch], p.kv_len);
    #endif
    kv_length = length;
    let all = visits(${"entries" if TILES == "listed" else "length"});
    let steps = (all.count + ${STEP - 1}u) / ${STEP}u;
    let split = (steps + p.splits - 1u) / p.splits * ${STEP}u;
    let begin = workgroup.x * split;
    let end = min(begin + split, all.count);

    // The row whose scores are this invocation's, and the first of its keys. Rows past the last repeat it and are
    // not stored.
    let row = min(first_of_tile + sub / ${RL}u, rows - 1u);
    let key = sub % ${RL}u / ${DUP}u * ${T}u;
    let query = first_query + row % queries;
    let head = first_head + row / queries;
    let seen = seen_by(query);
    // One team of one split has the row's start.
    let opening = start(head);
    let opens = workgroup.x == 0u && team == 0u && key == 0u;
    var m = select(LOWEST, opening.x, opens);
    var l = select(0.0, opening.y, opens);
    #if KS == "block"
    #for j in range(J)
    let k_block_${j} = min(${j * L}u + sub, ${UNITS - 1}u) * ${KVEC}u / ${KB}u;
    #endfor
    #endif
    #if VS == "block"
    #for j in range(JV)
    let v_block_${j} = min(${j * L}u + sub, ${VUNITS - 1}u) * ${VVEC}u / ${VB}u;
    #endfor
    #endif
    #for r in range(R)
    #for c in range(OROW)
    var o_${r}_${c} = vec4<f32>();
    #endfor
    #endfor

    // Where this invocation finds its r-th row. In the subgroup tier its own row comes first and the others in the order
    // in which they are handed over, so that sums across the team need no choice between rows.
    #for r in range(R)
    let q_at_${r} = (${r}u${" ^ (sub / " ~ RL ~ "u)" if REDUCE == "subgroup" else ""}) * ${QROW}u + sub;
    #endfor
    for (var e = lane; e < ${R * QROW}u; e += ${WG}u) {
        let r = min(first_of_tile + e / ${QROW}u, rows - 1u);
        let unit = (e % ${QROW}u) / ${GK * L}u * ${L}u + e % ${L}u;
        let col = (unit * ${GK}u + e / ${L}u % ${GK}u) * 4u;
        let source = p.q_offset + batch * p.q_batch + (first_head + r / queries) * p.q_head
            + (first_query + r % queries) * p.q_row + col;
        // Columns past the end are zero: whatever stands in K beside them does not count.
        #if ORDER == 1
        var q = vec4<f32>();
        for (var i = 0u; i < min(4u, ${D}u - min(col, ${D}u)); i += 1u) {
            q[i] = load_q(source - col + order[kv_head * ${D}u + col + i]);
        }
        pool[e] = q;
        #else
        pool[e] = load_some_q(source, ${D}u - min(col, ${D}u));
        #endif
    }
    workgroupBarrier();

    #for u in range(U)
    var row_${u}: u32;
    #endfor
    #if AHEAD == 1
    ${ places("begin + team * " ~ U ~ "u") }
    #for u in range(U)
    #for j in range(J)
    var k_${u}_${j} = ${ load("k", u, j, KVEC, UNITS, D) };
    #endfor
    #endfor
    #endif
    for (var x0 = begin; x0 < end; x0 += ${STEP}u) {
        let x = x0 + team * ${U}u;
        #if AHEAD == 0
        ${ places("x") }
        #for u in range(U)
        #for j in range(J)
        let k_${u}_${j} = ${ load("k", u, j, KVEC, UNITS, D) };
        #endfor
        #endfor
        #endif
        #for u in range(U)
        #for j in range(JV)
        let v_${u}_${j} = ${ load("v", u, j, VVEC, VUNITS, DV) };
        #endfor
        #endfor

        #if KS == "row" or VS == "row"
        #for t in range(T)
        let own_row_${t} = place(x + key + ${t}u, all, batch, kv_head);
        #if KS == "row"
        let k_scale_${t} = bitcast<f32>(word_k(p.k_scales + own_row_${t}));
        #endif
        #if VS == "row"
        let v_scale_${t} = bitcast<f32>(word_v(p.v_scales + own_row_${t}));
        #endif
        #endfor
        #endif
        #for u in range(U)
        #if KS == "block"
        #for j in range(J)
        let k_scale_${u}_${j} = exponent(word_k(p.k_scales + row_${u} * ${KSW}u + k_block_${j} / 4u), k_block_${j});
        #endfor
        #endif
        #if VS == "block"
        #for j in range(JV)
        let v_scale_${u}_${j} = exponent(word_v(p.v_scales + row_${u} * ${VSW}u + v_block_${j} / 4u), v_block_${j});
        #endfor
        #endif
        #endfor

        // This invocation's share of the dot products: four keys together.
        #for r in range(R)
        #for i in range(QUADS)
        var s_${r}_${i} = vec4<f32>();
        #endfor
        #endfor
        #for j in range(J)
        {
        #if KS == "block"
        #for r in range(R)
        #for i in range(QUADS)
        var block_${r}_${i} = vec4<f32>();
        #endfor
        #endfor
        #endif
        #set s = "block" if KS == "block" else "s"
        #for g in range(GK)
        {
            #for u in range(U)
            let a_${u} = ${ kv.four(K, KVEC, "k_" ~ u ~ "_" ~ j, g) };
            #endfor
            #for r in range(R)
            let q_${r} = pool[q_at_${r} + ${(j * GK + g) * L}u];
            #for i in range(QUADS)
            #for c in "xyzw"
            ${s}_${r}_${i} = fma(vec4<f32>(q_${r}.${c}), vec4<f32>(a_${i * 4}.${c}, a_${i * 4 + 1}.${c}, a_${i * 4 + 2}.${c}, a_${i * 4 + 3}.${c}), ${s}_${r}_${i});
            #endfor
            #endfor
            #endfor
        }
        #endfor
        #if KS == "block"
        #for r in range(R)
        #for i in range(QUADS)
        s_${r}_${i} = fma(block_${r}_${i}, vec4<f32>(k_scale_${i * 4}_${j}, k_scale_${i * 4 + 1}_${j}, k_scale_${i * 4 + 2}_${j}, k_scale_${i * 4 + 3}_${j}), s_${r}_${i});
        #endfor
        #endfor
        #endif
        }
        #endfor
        #if AHEAD == 1
        ${ places("x + " ~ STEP ~ "u") }
        #for u in range(U)
        #for j in range(J)
        k_${u}_${j} = ${ load("k", u, j, KVEC, UNITS, D) };
        #endfor
        #endfor
        #endif

        // Summed across the team: the scores of this invocation's row and keys, the first ${T} of `own_*`.
        #if REDUCE == "workgroup"
        #for r in range(R)
        #for u in range(U)
        shares[${(r * U + u) * WG}u + lane] = s_${r}_${u // 4}.${"xyzw"[u % 4]};
        #endfor
        #endfor
        workgroupBarrier();
        #for i in range(OWN)
        var own_${i} = vec4<f32>();
        #for c in range([T, 4] | min)
        for (var i = 0u; i < ${L}u; i += 1u) {
            own_${i}.${"xyzw"[c]} += shares[(sub / ${RL}u * ${U}u + key + ${i * 4 + c}u) * ${WG}u + team * ${L}u + i];
        }
        #endfor
        #endfor
        #else
        #for mask in [64, 32, 16, 8, 4, 2, 1] if mask < L
        #set half = R * mask // L
        #set half_keys = U * mask // RL
        #if half >= 1
        #for r in range(half)
        #for i in range(QUADS)
        s_${r}_${i} += subgroupShuffleXor(s_${r + half}_${i}, ${mask}u);
        #endfor
        #endfor
        #elif half_keys >= 4
        #for i in range(half_keys // 4)
        s_0_${i} = fold4(s_0_${i}, s_0_${i + half_keys // 4}, (sub & ${mask}u) != 0u, ${mask}u);
        #endfor
        #elif half_keys == 2
        let two = fold2(s_0_0.xy, s_0_0.zw, (sub & ${mask}u) != 0u, ${mask}u);
        #elif half_keys == 1
        var one = fold1(two.x, two.y, (sub & ${mask}u) != 0u, ${mask}u);
        #else
        one += subgroupShuffleXor(one, ${mask}u);
        #endif
        #endfor
        #for i in range(OWN)
        let own_${i} = ${ "vec4<f32>(one)" if T == 1 else "two.xyxy" if T == 2 else "s_0_" ~ i };
        #endfor
        #endif

        // One step of the online softmax.
        let own_key = position(x + key, all);
        #for i in range(OWN)
        #set scale = "own_" ~ i
        #if KS == "row"
        #set scale = scale ~ " * vec4<f32>(k_scale_" ~ (i * 4) ~ ", k_scale_" ~ ([i * 4 + 1, T - 1] | min) ~ ", k_scale_" ~ ([i * 4 + 2, T - 1] | min) ~ ", k_scale_" ~ ([i * 4 + 3, T - 1] | min) ~ ")"
        #elif K == "f8e4m3"
        #set scale = scale ~ " * 256.0"
        #endif
        let score_${i} = scores(${scale}, batch, head, query, own_key + ${i * 4}u, seen);
        #endfor
        var top = m;
        #for i in range(OWN)
        top = max(top, ${ "score_0.x" if T == 1 else "max(score_0.x, score_0.y)" if T == 2 else "largest(score_" ~ i ~ ")" });
        #endfor
        #if REDUCE == "workgroup"
        given_row[lane] = top;
        workgroupBarrier();
        for (var i = 0u; i < ${RL}u; i += 1u) {
            top = max(top, given_row[lane / ${RL}u * ${RL}u + i]);
        }
        #else
        #for mask in [64, 32, 16, 8, 4, 2, 1] if mask < RL and mask >= DUP
        top = max(top, subgroupShuffleXor(top, ${mask}u));
        #endfor
        #endif
        let shrink = exp2(m - top);
        #if REDUCE == "subgroup"
        let moved = subgroupAny(top > m);
        #else
        let moved = true;
        #endif
        m = top;
        #for i in range(OWN)
        let weight_${i} = weights(score_${i}, top);
        #endfor
        #for t in range(T)
        let gift_${t} = weight_${t // 4}.${"xyzw"[t % 4]}${" * v_scale_" ~ t if VS == "row" else " * 256.0" if V == "f8e4m3" else ""};
        #endfor
        l = l * shrink + ${ "weight_0.x" if T == 1 else "(weight_0.x + weight_0.y)" if T == 2 else "sum_of(weight_0)" };
        #for i in range(1, OWN)
        l += sum_of(weight_${i});
        #endfor

        // The weights of all rows and keys, back to the whole team.
        #if REDUCE == "workgroup"
        workgroupBarrier();
        given_row[lane] = shrink;
        #for t in range(T)
        given[${t * WG}u + lane] = gift_${t};
        #endfor
        workgroupBarrier();
        #else
        let home = group_invocation & ~${L - 1}u;
        #endif
        // Maxima seldom move: then nothing is rescaled.
        if moved {
            #for r in range(R)
            {
                #if REDUCE == "workgroup"
                let shrink_row = given_row[team * ${L}u + ${r * RL}u];
                #else
                let shrink_row = subgroupShuffle(shrink, home + ${r * RL}u);
                #endif
                #for c in range(OROW)
                o_${r}_${c} *= shrink_row;
                #endfor
            }
            #endfor
        }
        #for r in range(R)
        {
            #for u in range(U)
            #if REDUCE == "workgroup"
            let w_${u} = given[${u % T * WG}u + team * ${L}u + ${r * RL + u // T * DUP}u];
            #else
            let w_${u} = subgroupShuffle(gift_${u % T}, home + ${r * RL + u // T * DUP}u);
            #endif
            #endfor
            #for j in range(JV)
            #for g in range(GV)
            #set c = j * GV + g
            #for u in range(U)
            o_${r}_${c} = fma(vec4<f32>(w_${u}${" * v_scale_" ~ u ~ "_" ~ j if VS == "block" else ""}), ${ kv.four(V, VVEC, "v_" ~ u ~ "_" ~ j, g) }, o_${r}_${c});
            #endfor
            #endfor
            #endfor
        }
        #endfor
    }

    // Merge the teams, row by row: in a loop, so that compilers see it once.
    #if REDUCE == "workgroup"
    workgroupBarrier();
    given_row[lane] = l;
    workgroupBarrier();
    l = 0.0;
    for (var i = 0u; i < ${RL}u; i += ${DUP}u) {
        l += given_row[lane / ${RL}u * ${RL}u + i];
    }
    #else
    #for mask in [64, 32, 16, 8, 4, 2, 1] if mask < RL and mask >= DUP
    l += subgroupShuffleXor(l, ${mask}u);
    #endfor
    #endif
    if sub % ${RL}u == 0u {
        states[sub / ${RL}u * ${GROUPS}u + team] = vec2<f32>(m, l);
    }
    workgroupBarrier();
    for (var r = 0u; r < min(${R}u, rows - first_of_tile); r += 1u) {
        var m = LOWEST;
        for (var g = 0u; g < ${GROUPS}u; g += 1u) {
            m = max(m, states[r * ${GROUPS}u + g].x);
        }
        var l = 0.0;
        for (var g = 0u; g < ${GROUPS}u; g += 1u) {
            let state = states[r * ${GROUPS}u + g];
            l += state.y * exp2(state.x - m);
        }
        let shrink = exp2(states[r * ${GROUPS}u + team].x - m);
        let row = first_of_tile + r;
        let head = first_head + row / queries;
        let query = first_query + row % queries;
        let out_at = p.out_offset + batch * p.out_batch + head * p.out_head + query * p.out_row;
        // The row's place in [batch, heads, q_len].
        let place = (batch * heads + head) * p.q_len + query;
        let partial_at = (place * p.splits + workgroup.x) * ${DV4 + 1}u;
        #for jb in range(0, OROW, JB)
        #set COUNT = [JB, OROW - jb] | min
        workgroupBarrier();
        #for own in range(R)
        if r == ${own}u {
            #for j in range(COUNT)
            pool[${j * WG}u + lane] = o_${own}_${jb + j} * shrink;
            #endfor
        }
        #endfor
        workgroupBarrier();
        for (var e = lane; e < ${COUNT * L}u; e += ${WG}u) {
            let j = ${jb}u + e / ${L}u;
            let c = (j / ${GV}u * ${L}u + e % ${L}u) * ${GV}u + j % ${GV}u;
            if c < ${DV4}u {
                var total = vec4<f32>();
                for (var g = 0u; g < ${GROUPS}u; g += 1u) {
                    total += pool[(j - ${jb}u) * ${WG}u + g * ${L}u + e % ${L}u];
                }
                if p.splits == 1u {
                    // A row that sees nothing is zero.
                    let inverse = select(1.0 / l, 0.0, l == 0.0);
                    store_some_out(out_at + c * 4u, ${DV}u - c * 4u, total * inverse);
                } else {
                    partial[partial_at + 1u + c] = total;
                }
            }
        }
        #endfor
        if lane == 0u {
            if p.splits > 1u {
                partial[partial_at] = vec4<f32>(m, l, 0.0, 0.0);
            }
            #if LSE == 1
            else {
                lse[p.lse_offset + place] = log_sum(m, l);
            }
            #endif
        }
    }
}
