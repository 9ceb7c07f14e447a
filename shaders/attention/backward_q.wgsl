// dq = scale ds k with ds = p (dout v' - delta), p = exp(s - lse), s = scale q k' + bias, masked: the gradient of
// grouped-query attention with respect to its queries.
//
// q, dq [batch, heads, q_len, D], k [batch, heads / group, kv_len, D], v [.., kv_len, DV], dout [batch, heads, q_len,
// DV], each with strides of its own and adjacent elements in the last dimension; rows [batch, heads, q_len] of two:
// lse and delta, from backward_rows.wgsl; bias and mask broadcast by strides of zero.
//
// The second half of FlashAttention-2's backward pass (arXiv 2307.08691) as a kernel of its own: weights are computed
// once more instead of adding to dq from many workgroups, so every sum has one owner and one order. A workgroup
// holds TY * R queries of one head and walks over tiles of TX * 4 keys that they see. For a tile, the invocation (tx,
// ty) computes s and dp of queries ty * R .. + R and keys tx * 4 .. + 4; ds goes through workgroup memory and is
// multiplied by the keys, read again by BV rows. dq stays in registers. Nothing is exchanged between invocations
// besides: the logarithms make weights final at once.
//
// With TILES listed, only blocks of BLOCK keys are visited that are listed for the block of queries (lib/sparse.wgsl);
// both tiles divide a block.
//
// What was tried, on an H100 (f16, 8 batches of 16 heads of 128 channels, 2048 long, causal; ms of the whole backward
// pass), TX x TY, R, DC: 8x16, 4, 8: 18.65; 16x16, 8, 4: 18.77; 32x8, 8, 4: 18.93; 16x16, 4, 8: 19.3; 8x32, 4, 8: 19.5;
// 8x16, 4, 4: 19.6; 16x8, 8, 8: 20.1. Weights as 2^(s log2 e - lse log2 e) round twice more than naive arithmetic does,
// and were 1.3 times over the bound of their errors in a case (f32, 129 keys).
#import "lib/tensor.wgsl" as t
#import "lib/attention.wgsl" as attention
#import "lib/attention_backward.wgsl" as backward
#import "lib/sparse.wgsl" as sparse
#set BQ = TY * R
#set BK = TX * 4
#set WG = TX * TY
#set PLAIN = BIAS == "none" and MASK == 0 and SOFTCAP == 0 and SLOPES == 0

${ attention.params(gradients=1) }
${ t.params(PARAMS) }
${ t.prelude() }
${ t.input(1, "q", Q, VEC) }
${ t.input(2, "k", K, VEC) }
${ t.input(3, "v", V, VEC) }
${ t.input(4, "dout", O, VEC) }
${ attention.inputs(BIAS, MASK, SEEN, SLOPES, 0) }
${ t.words(7, "rows", "vec2<f32>") }
${ t.output(8, "dq", GQ, VEC) }
${ attention.functions(BIAS, MASK, SEEN, SOFTCAP, SLOPES) }
#if TILES == "listed"
${ sparse.lists(12) }
${ sparse.functions(BLOCK, SHARE, BQ) }
#endif

var<workgroup> stage: array<vec4<f32>, ${[DC * (BQ + BK), BV * ((D + 3) // 4)] | max}>;
var<workgroup> tile: array<vec4<f32>, ${BQ * TX}>;

@compute @workgroup_size(${WG})
fn main(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) grid: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let tx = lane % ${TX}u;
    let ty = lane / ${TX}u;
    // The last rows see most under a causal mask: they start first.
    let q0 = (grid.x - 1u - workgroup.x) * ${BQ}u;
    let head = workgroup.y;
    let batch = workgroup.z;
    let q_base = p.q_offset + batch * p.q_batch + head * p.q_head;
    let k_base = p.k_offset + batch * p.k_batch + (head / p.group) * p.k_head;
    let v_base = p.v_offset + batch * p.v_batch + (head / p.group) * p.v_head;
    let dout_base = p.out_offset + batch * p.out_batch + head * p.out_head;
    let q_stride = p.q_row;
    let k_stride = p.k_row;
    let v_stride = p.v_row;
    let dout_stride = p.out_row;
    let last_query = p.q_len - 1u;
    let last_key = p.kv_len - 1u;
    let row = q0 + ty * ${R}u;
    #for r in range(R)
    let row_${r} = min(row + ${r}u, last_query);
    let seen_${r} = seen_by(row_${r});
    let known_${r} = rows[(batch * grid.y + head) * p.q_len + row_${r}];
    #endfor
    // No row sees keys before the first one's, nor after the last one's.
    let top = seen_by(q0);
    let bottom = seen_by(min(q0 + ${BQ - 1}u, last_query));

    ${ backward.accumulators("dq", D, R, TX) }
    #if TILES == "listed"
    // The keys of each block that is listed for these rows.
    let entries = entries_of(head / ${SHARE}u * lists[0] + q0 / ${BLOCK}u);
    for (var e = entries.x; e < entries.y; e += 2u) {
    let first_key = (lists[e] & ~PARTIAL) * ${BLOCK}u;
    let end = min(bottom.end, first_key + ${BLOCK}u);
    for (var k0 = first_key; k0 < end; k0 += ${BK}u) {
    #else
    let end = bottom.end;
    for (var k0 = next_tile(0u, top, ${BK}u); k0 < end; k0 = next_tile(k0 + ${BK}u, top, ${BK}u)) {
    #endif
        ${ backward.dots("s", "q", "k", D, R, TY, 4, TX, "ty", "tx", DC, WG) }
        ${ backward.dots("dp", "dout", "v", DV, R, TY, 4, TX, "ty", "tx", DC, WG) }
        let open = open_tile(k0, ${BK}u, top, bottom);
        #for r in range(R)
        {
            ${ backward.weights("w", "s_" ~ r ~ "_0", "row_" ~ r, "k0 + tx * 4u", "seen_" ~ r, "known_" ~ r ~ ".x", PLAIN) }
            var ds = w * (dp_${r}_0 - known_${r}.y);
            #if SOFTCAP == 1
            ds *= softcap_slope(s_${r}_0);
            #endif
            ${ backward.put(r, R, TX, "ds") }
        }
        #endfor
        ${ backward.accumulate("dq", "k", "k0", "last_key", "min(" ~ BK ~ "u, end - k0)", D, R, TX, BV, WG) }
    }
    #if TILES == "listed"
    }
    #endif

    let dq_base = p.dq_offset + batch * p.dq_batch + head * p.dq_head;
    #for r in range(R)
    if row + ${r}u < p.q_len {
        ${ backward.store_row("dq", "dq", r, "dq_base", "row_" ~ r, D, TX, "p.gradient_scale") }
    }
    #endfor
}
