// Attention for few queries over many keys (flash-decoding: https://pytorch.org/blog/flash-decoding): the time is
// that of reading K and V once.
//
// Tensors as for prefill.wgsl. One workgroup handles R rows of one (batch, key head) and one split of its keys; the
// rows are all queries of all heads that share the key head, head by head, so that K and V are read once for the
// group. Every L adjacent invocations walk over the keys by themselves, four at a time, with an online softmax of
// their own: sub-lane s has the columns s, s + L, .. of q, k, v and the result (KVEC / 4 columns of four elements
// together, so that a load is KVEC elements wide), and only the dot products are summed across. K and V of a step
// are asked for together, without a barrier in the subgroup tier. At the end the workgroup merges its groups, and
// writes the output (one split) or its maximum, sum and unnormalised result for combine.wgsl. Which of the two is a
// parameter, not a variant: a cache that grows past one split must not compile anything.
//
// Dropped: the merge unrolled over rows (software compilers took twice as long, and it runs once).
#import "lib/tensor.wgsl" as t
#import "lib/attention.wgsl" as attention
#import "lib/reduce.wgsl" as reduce
#set D4 = (D + 3) // 4
#set DV4 = (DV + 3) // 4
#set W = 2 if KVEC == 8 else 1
#set J = ((D4 + L * W - 1) // (L * W)) * W
#set JV = ((DV4 + L * W - 1) // (L * W)) * W
#set GROUPS = WG // L
#set STEP = GROUPS * 4
<# As many columns at a time as 8 KiB hold. #>
#set JB = [JV, 512 // WG] | min
#set POOL = [R * J * L, WG * JB] | max

${ attention.params() }
${ t.params(PARAMS) }
${ t.prelude() }
${ t.input(1, "q", Q, VEC) }
#if KVEC == 8
${ t.input8(2, "k", K) }
${ t.input8(3, "v", V) }
#else
${ t.input(2, "k", K, KVEC) }
${ t.input(3, "v", V, KVEC) }
#endif
${ t.output(4, "out", O, VEC) }
${ attention.inputs(BIAS, MASK, SEEN, SLOPES, SINK) }
#if LSE == 1
${ t.words(7, "lse", "f32", "read_write") }
#endif
${ t.words(8, "partial", "vec4<f32>", "read_write") }
${ attention.functions(BIAS, MASK, SEEN, SOFTCAP, SLOPES, SINK) }
${ reduce.group_sum(REDUCE, WG, L) }

// The queries; at the end the groups' results.
var<workgroup> pool: array<vec4<f32>, ${POOL}>;
// Maximum and sum of each row and group.
var<workgroup> states: array<vec2<f32>, ${R * GROUPS}>;

// The place in a row, in groups of four elements, of a sub-lane's j-th column.
fn column(j: u32, sub: u32) -> u32 {
    #if W == 2
    return ((j >> 1u) * ${L}u + sub) * 2u + (j & 1u);
    #else
    return j * ${L}u + sub;
    #endif
}

#macro load(name, u, columns, d)
#for j in range(0, columns, W)
    #if W == 2
    let ${name}_pair_${u}_${j} = load8_${name}(${name}_at_${u} + min(column(${j}u, sub), ${(d + 3) // 4 - 2}u) * 4u);
    let ${name}_${u}_${j} = ${name}_pair_${u}_${j}.low;
    let ${name}_${u}_${j + 1} = ${name}_pair_${u}_${j}.high;
    #elif KVEC == 4
    let ${name}_${u}_${j} = load4_${name}(${name}_at_${u} + min(column(${j}u, sub), ${(d + 3) // 4 - 1}u) * 4u);
    #else
    let ${name}_${u}_${j} = load_some_${name}(
        ${name}_at_${u} + column(${j}u, sub) * 4u, ${d}u - min(column(${j}u, sub) * 4u, ${d}u));
    #endif
#endfor
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
    let rows = p.group * p.q_len;
    let row_tiles = (rows + ${R - 1}u) / ${R}u;
    let kv_head = workgroup.y / row_tiles;
    let first_row = (workgroup.y % row_tiles) * ${R}u;
    let heads = (grid.y / row_tiles) * p.group;
    let batch = workgroup.z;
    let k_base = p.k_offset + batch * p.k_batch + kv_head * p.k_head;
    let v_base = p.v_offset + batch * p.v_batch + kv_head * p.v_head;
    #for r in range(R)
    // Rows past the last repeat it and are not stored.
    let row_${r} = min(first_row + ${r}u, rows - 1u);
    let query_${r} = row_${r} % p.q_len;
    let head_${r} = kv_head * p.group + row_${r} / p.q_len;
    let seen_${r} = seen_by(query_${r});
    let start_${r} = start(head_${r});
    // One group of one split has the row's start.
    var m_${r} = select(LOWEST, start_${r}.x, workgroup.x == 0u && team == 0u);
    var l_${r} = select(0.0, start_${r}.y, workgroup.x == 0u && team == 0u);
    #for j in range(JV)
    var o_${r}_${j} = vec4<f32>();
    #endfor
    #endfor

    for (var e = lane; e < ${R * J * L}u; e += ${WG}u) {
        let row = min(first_row + e / ${J * L}u, rows - 1u);
        let col = (e % ${J * L}u) * 4u;
        let source = p.q_offset + batch * p.q_batch + (kv_head * p.group + row / p.q_len) * p.q_head
            + (row % p.q_len) * p.q_row + col;
        // Columns past the end are zero: whatever stands in K beside them does not count.
        pool[e] = load_some_q(source, ${D}u - min(col, ${D}u));
    }
    workgroupBarrier();

    let begin = workgroup.x * p.split_keys;
    let end = min(begin + p.split_keys, p.kv_len);
    for (var k0 = begin; k0 < end; k0 += ${STEP}u) {
        let key = k0 + team * 4u;
        #for u in range(4)
        let place_${u} = min(key + ${u}u, p.kv_len - 1u);
        let k_at_${u} = k_base + place_${u} * p.k_row;
        ${ load("k", u, J, D) }
        #endfor
        #for u in range(4)
        let v_at_${u} = v_base + place_${u} * p.v_row;
        ${ load("v", u, JV, DV) }
        #endfor
        #for r in range(R)
        {
            var s = vec4<f32>();
            #for j in range(J)
            {
                let q = pool[${r * J * L}u + column(${j}u, sub)];
                #for i in range(4)
                s = fma(vec4<f32>(q[${i}]), vec4<f32>(k_0_${j}[${i}], k_1_${j}[${i}], k_2_${j}[${i}], k_3_${j}[${i}]), s);
                #endfor
            }
            #endfor
            s = scores(group_sum(s, lane), batch, head_${r}, query_${r}, key, until(seen_${r}, end));
            let m = max(m_${r}, largest(s));
            let shrink = exp2(m_${r} - m);
            let w = weights(s, m);
            m_${r} = m;
            l_${r} = l_${r} * shrink + sum_of(w);
            #for j in range(JV)
            o_${r}_${j} *= shrink;
            #for u in range(4)
            o_${r}_${j} = fma(vec4<f32>(w[${u}]), v_${u}_${j}, o_${r}_${j});
            #endfor
            #endfor
        }
        #endfor
    }

    // Merge the groups, row by row: in a loop, so that compilers see it once.
    if sub == 0u {
        #for r in range(R)
        states[${r * GROUPS}u + team] = vec2<f32>(m_${r}, l_${r});
        #endfor
    }
    workgroupBarrier();
    for (var r = 0u; r < min(${R}u, rows - first_row); r += 1u) {
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
        let row = first_row + r;
        let head = kv_head * p.group + row / p.q_len;
        let query = row % p.q_len;
        let out_at = p.out_offset + batch * p.out_batch + head * p.out_head + query * p.out_row;
        // The row's place in [batch, heads, q_len].
        let place = (batch * heads + head) * p.q_len + query;
        let partial_at = (place * p.splits + workgroup.x) * ${DV4 + 1}u;
        #for jb in range(0, JV, JB)
        #set COUNT = [JB, JV - jb] | min
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
            let j = e / ${L}u;
            let c = column(${jb}u + j, e % ${L}u);
            if c < ${DV4}u {
                var total = vec4<f32>();
                for (var g = 0u; g < ${GROUPS}u; g += 1u) {
                    total += pool[j * ${WG}u + g * ${L}u + e % ${L}u];
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
