// dv = p' dout and dk = scale ds' q with ds = p (dout v' - delta), p = exp(s - lse), s = scale q k' + bias, masked:
// the gradients of grouped-query attention with respect to its keys and values, summed over the query heads that
// share them.
//
// q [batch, heads, q_len, D], k, dk [batch, heads / group, kv_len, D], v, dv [.., kv_len, DV], dout [batch, heads,
// q_len, DV], each with strides of its own and adjacent elements in the last dimension; rows [batch, heads, q_len] of
// two: lse and delta, from backward_rows.wgsl; bias and mask broadcast by strides of zero.
//
// The first half of FlashAttention-2's backward pass (arXiv 2307.08691). A workgroup holds TY * R keys of one key
// head and walks, head by head of those that share it, over tiles of TX * 4 queries that see them: every sum has one
// owner and one order. For a tile, the invocation (tx, ty) computes s and dp of keys ty * R .. + R and queries tx *
// 4 .. + 4; p, then ds, go through the same workgroup memory, transposed, and are multiplied by dout and q, read
// again by BV rows. dk and dv stay in registers.
//
// With TILES listed, only blocks of BLOCK queries are visited that are listed for the block of keys (lib/sparse.wgsl);
// both tiles divide a block.
//
// What was tried, as in backward_q.wgsl (there 16x8, 8, 8), TX x TY, R, DC: 16x16, 4, 8: 20.1; 8x32, 4, 8: 21.5; 8x32, 4,
// 4: 22.4; 16x8, 4, 8: 22.6; 16x8, 4, 4: 24.0; 8x16, 4, 4: 24.7; 8x8, 4, 4: 25.0.
#import "lib/tensor.wgsl" as t
#import "lib/attention.wgsl" as attention
#import "lib/attention_backward.wgsl" as backward
#import "lib/sparse.wgsl" as sparse
<# Held key r's values for the four queries. #>
#macro column(of, r)
vec4<f32>(${of}_0_${r // 4}[${r % 4}], ${of}_1_${r // 4}[${r % 4}], ${of}_2_${r // 4}[${r % 4}], ${of}_3_${r // 4}[${r % 4}])
#endmacro
#set BQ = TX * 4
#set BK = TY * R
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
${ t.output(8, "dk", GK, VEC) }
${ t.output(13, "dv", GV, VEC) }
${ attention.functions(BIAS, MASK, SEEN, SOFTCAP, SLOPES) }
${ attention.inverse(SEEN) }
#if TILES == "listed"
${ sparse.lists(12) }
${ sparse.functions(BLOCK, SHARE, BK) }
#endif

var<workgroup> stage: array<vec4<f32>, ${[DC * (BQ + BK), BV * ((([D, DV] | max) + 3) // 4)] | max}>;
var<workgroup> tile: array<vec4<f32>, ${BK * TX}>;

@compute @workgroup_size(${WG})
fn main(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) grid: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let tx = lane % ${TX}u;
    let ty = lane / ${TX}u;
    // The first keys are seen by most under a causal mask: they start first.
    let k0 = workgroup.x * ${BK}u;
    let key_head = workgroup.y;
    let batch = workgroup.z;
    let k_base = p.k_offset + batch * p.k_batch + key_head * p.k_head;
    let v_base = p.v_offset + batch * p.v_batch + key_head * p.v_head;
    let q_stride = p.q_row;
    let k_stride = p.k_row;
    let v_stride = p.v_row;
    let dout_stride = p.out_row;
    let last_query = p.q_len - 1u;
    let last_key = p.kv_len - 1u;
    let key = k0 + ty * ${R}u;
    let seen_from = seeing(k0, min(k0 + ${BK - 1}u, last_key));

    ${ backward.accumulators("dk", D, R, TX) }
    ${ backward.accumulators("dv", DV, R, TX) }
    for (var head = key_head * p.group; head < (key_head + 1u) * p.group; head += 1u) {
    let q_base = p.q_offset + batch * p.q_batch + head * p.q_head;
    let dout_base = p.out_offset + batch * p.out_batch + head * p.out_head;
    let rows_base = (batch * grid.y * p.group + head) * p.q_len;
    #if TILES == "listed"
    // The queries of each block that is listed for these keys.
    let entries = entries_of(head / ${SHARE}u * lists[0] + k0 / ${BLOCK}u);
    for (var e = entries.x; e < entries.y; e += 2u) {
    let first_query = (lists[e] & ~PARTIAL) * ${BLOCK}u;
    let range = vec2<u32>(max(first_query, seen_from.x), min(first_query + ${BLOCK}u, seen_from.y));
    #else
    let range = seen_from;
    #endif
    for (var q0 = range.x / ${BQ}u * ${BQ}u; q0 < range.y; q0 += ${BQ}u) {
        ${ backward.dots("s", "q", "k", D, 4, TX, R, TY, "tx", "ty", DC, WG) }
        ${ backward.dots("dp", "dout", "v", DV, 4, TX, R, TY, "tx", "ty", DC, WG) }
        let last = q0 + ${BQ - 1}u;
        let open = last < p.q_len && open_tile(k0, ${BK}u, seen_by(q0), seen_by(min(last, last_query)));
        #for u in range(4)
        {
            let row = min(q0 + tx * 4u + ${u}u, last_query);
            let known = rows[rows_base + row];
            // Rows that are not there see nothing.
            let seen = until(seen_by(row), select(0u, p.kv_len, q0 + tx * 4u + ${u}u < p.q_len));
            #for g in range(R // 4)
            {
                ${ backward.weights("w", "s_" ~ u ~ "_" ~ g, "row", "key + " ~ 4 * g ~ "u", "seen", "known.x", PLAIN) }
                dp_${u}_${g} = w * (dp_${u}_${g} - known.y);
                #if SOFTCAP == 1
                dp_${u}_${g} *= softcap_slope(s_${u}_${g});
                #endif
                s_${u}_${g} = w;
            }
            #endfor
        }
        #endfor
        #for r in range(R)
        ${ backward.put(r, R, TX, column("s", r)) }
        #endfor
        ${ backward.accumulate("dv", "dout", "q0", "last_query", "min(" ~ BQ ~ "u, range.y - q0)", DV, R, TX, BV, WG) }
        workgroupBarrier();
        #for r in range(R)
        ${ backward.put(r, R, TX, column("dp", r)) }
        #endfor
        ${ backward.accumulate("dk", "q", "q0", "last_query", "min(" ~ BQ ~ "u, range.y - q0)", D, R, TX, BV, WG) }
    }
    #if TILES == "listed"
    }
    #endif
    }

    let dk_base = p.dk_offset + batch * p.dk_batch + key_head * p.dk_head;
    let dv_base = p.dv_offset + batch * p.dv_batch + key_head * p.dv_head;
    #for r in range(R)
    if key + ${r}u < p.kv_len {
        ${ backward.store_row("dk", "dk", r, "dk_base", "key + " ~ r ~ "u", D, TX, "p.gradient_scale") }
        ${ backward.store_row("dv", "dv", r, "dv_base", "key + " ~ r ~ "u", DV, TX) }
    }
    #endfor
}
