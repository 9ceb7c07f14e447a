// dq = scale ds k on matrix units: backward_q.wgsl with everything in f16, products accumulated in f32.
//
// Tensors as backward_q.wgsl has them, but f16, rows that begin at multiples of eight elements, at most 128 channels;
// masks by position alone.
//
// A workgroup holds SUBS * R queries of one head, each of its SUBS subgroups R of them: q, dout and dq stay in registers. It
// walks over tiles of WALK keys, PART at a time. Scores and weights never leave registers either: an invocation
// reaches the elements that it holds of a matrix (lib/fragments.wgsl), and the layout of ds is that of the left operand that
// it is next. K passes through workgroup memory twice, by rows for the scores and by pairs of rows for dq, V by rows
// (flash.wgsl tells the order).
//
// With TILES listed, only blocks of BLOCK keys are visited that are listed for the block of queries (lib/sparse.wgsl);
// both tiles divide a block.
//
// What was tried, on an H100 (8192 keys, 2 batches of 16 heads of 128 channels or 32 of 64, full; TFLOP/s of its three
// products), R x SUBS, WALK, PART:
//   d128: 16x8, 64, 64: 294; 16x8, 64, 32: 278; 16x8, 64, 16: 273; 16x8, 32, 16: 247; 16x4, 32, 32: 251; 32x4 (q and
//     dout read again for each tile), 32, 32: 251
//   d64: 32x4, 64, 32: 323; 32x4, 64, 16: 302; 16x8, 64, 32: 299; 32x4, 32, 16: 289; 16x4, 64, 32: 237
//   the next tile fetched to registers during this one's products: 261 for 247 (d128, 16x8, 32, 16): less than tiles
//     of 64 give; q and dout read again for each tile, their registers free: 190 for 247
#import "lib/tensor.wgsl" as t
#import "lib/attention.wgsl" as attention
#import "lib/fragments.wgsl" as fragments
#import "lib/flash_backward.wgsl" as flash
#import "lib/sparse.wgsl" as sparse
#set WG = SUBS * 32
#set RB = R // 16
#set J = PART // 16
#set C = (D + 31) // 32 * 4
#set CV = (DV + 31) // 32 * 4
#if COOP == "elements"
enable f16;
enable wgpu_cooperative_matrix;
#endif

${ attention.params(gradients=1) }
${ t.params(PARAMS) }
${ t.prelude() }
${ t.words(1, "q", "vec4<u32>") }
${ t.words(2, "k", "vec4<u32>") }
${ t.words(3, "v", "vec4<u32>") }
${ t.words(4, "dout", "vec4<u32>") }
${ t.words(7, "rows", "vec2<f32>") }
${ t.words(8, "dq", "vec4<u32>", "read_write") }
${ attention.inputs("none", 0, SEEN, 0, 0) }
${ attention.functions("none", 0, SEEN) }
#if TILES == "listed"
${ sparse.lists(12) }
${ sparse.functions(BLOCK, SHARE, SUBS * R) }
#endif
${ fragments.functions(COOP) }

var<workgroup> k_rows: array<vec4<u32>, ${WALK * C}>;
var<workgroup> k_pairs: array<vec4<u32>, ${WALK * C}>;
var<workgroup> v_rows: array<vec4<u32>, ${WALK * CV}>;

@compute @workgroup_size(${WG})
fn main(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) grid: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
    ${ fragments.arguments(COOP) }
) {
    ${ fragments.begin(COOP) }
    let first = (grid.x - 1u - workgroup.x) * ${SUBS * R}u;
    let head = workgroup.y;
    let batch = workgroup.z;
    let last_query = p.q_len - 1u;
    let last_key = p.kv_len - 1u;
    let k_base = (p.k_offset + batch * p.k_batch + (head / p.group) * p.k_head) >> 3u;
    let v_base = (p.v_offset + batch * p.v_batch + (head / p.group) * p.v_head) >> 3u;
    let k_stride = p.k_row >> 3u;
    let v_stride = p.v_row >> 3u;
    let sub_first = first + subgroup * ${R}u;
    let sub_top = seen_by(min(sub_first, last_query));
    let sub_bottom = seen_by(min(sub_first + ${R - 1}u, last_query));
    #for r in range(RB * 2)
    let row_${r} = sub_first + ${r * 8}u + line;
    let known_${r} = rows[(batch * grid.y + head) * p.q_len + min(row_${r}, last_query)] * vec2<f32>(LOG2E, 1.0);
    let q_at_${r} = ((p.q_offset + batch * p.q_batch + head * p.q_head + min(row_${r}, last_query) * p.q_row) >> 3u) + quad;
    let dout_at_${r} = ((p.out_offset + batch * p.out_batch + head * p.out_head + min(row_${r}, last_query) * p.out_row) >> 3u) + quad;
    #endfor
    // No row sees keys before the first one's, nor after the last one's.
    let top = seen_by(min(first, last_query));
    let last_end = seen_by(min(first + ${SUBS * R - 1}u, last_query)).end;
    // Where this invocation's parts of the tiles lie.
    ${ flash.parts("even", "odd", C) }
    ${ flash.parts("v_even", "v_odd", CV) }
    let pair_at = quad * ${4 * C}u + (line ^ (quad * 2u));

    ${ flash.held("q", RB, D, C) }
    ${ flash.held("dout", RB, DV, CV) }
    ${ flash.accumulators("dq", RB, C) }
    ${ flash.registers("k", WALK, C, WG) }
    ${ flash.registers("v", WALK, CV, WG) }

    #if TILES == "listed"
    // The keys of each block that is listed for these rows.
    let entries = entries_of(head / ${SHARE}u * lists[0] + first / ${BLOCK}u);
    for (var e = entries.x; e < entries.y; e += 2u) {
    let first_key = (lists[e] & ~PARTIAL) * ${BLOCK}u;
    let end = min(last_end, first_key + ${BLOCK}u);
    for (var k0 = first_key; k0 < end; k0 += ${WALK}u) {
    #else
    let end = last_end;
    for (var k0 = next_tile(0u, top, ${WALK}u); k0 < end; k0 = next_tile(k0 + ${WALK}u, top, ${WALK}u)) {
    #endif
        ${ flash.fetch("k", "k0", "last_key", WALK, D, C, WG) }
        ${ flash.fetch("v", "k0", "last_key", WALK, DV, CV, WG) }
        workgroupBarrier();
        ${ flash.put_rows("k", WALK, C, WG) }
        ${ flash.put_pairs("k", WALK, C, WG) }
        ${ flash.put_rows("v", WALK, CV, WG) }
        workgroupBarrier();
        // Not an `if`: naga takes its condition for divergent, where cooperative matrices are forbidden.
        let stop = min(k0 + ${WALK}u, sub_bottom.end);
        var key = k0;
        while key < stop {
            let shift = key - k0;
            #for b in range(RB)
            #for j in range(J)
            var s_${b}_${j}: Accumulator;
            var dp_${b}_${j}: Accumulator;
            #endfor
            #endfor
            ${ flash.over_channels("s", "q", "k", "shift * " ~ C ~ "u", RB, J, C) }
            {
            let even = v_even;
            let odd = v_odd;
            ${ flash.over_channels("dp", "dout", "v", "shift * " ~ CV ~ "u", RB, J, CV) }
            }
            let open = open_tile(key, ${PART}u, sub_top, sub_bottom);
            #for r in range(RB * 2)
            #for j in range(J)
            var x_${r}_${j} = ${ flash.four("s", r, j) } * p.scale;
            #endfor
            #endfor
            if !open {
                #for r in range(RB * 2)
                {
                let seen = seen_by(min(row_${r}, last_query));
                #for j in range(J)
                x_${r}_${j} = hide(x_${r}_${j}, key + ${j * 16}u + quad * 4u, seen);
                #endfor
                }
                #endfor
            }
            #for r in range(RB * 2)
            #for j in range(J)
            let ds_${r}_${j} = exp2(x_${r}_${j} - known_${r}.x) * (${ flash.four("dp", r, j) } - known_${r}.y);
            #endfor
            #endfor
            ${ flash.weights("a", "ds", RB, J) }
            ${ flash.over_rows("dq", "a", "k", "shift * " ~ C ~ "u", RB, J, C) }
            key += ${PART}u;
        }
    }
    #if TILES == "listed"
    }
    #endif

    let dq_base = p.dq_offset + batch * p.dq_batch + head * p.dq_head;
    #for r in range(RB * 2)
    if row_${r} <= last_query {
        let at = (dq_base + row_${r} * p.dq_row) >> 3u;
        ${ flash.store("dq", "dq", r, "at", D, C, "p.gradient_scale") }
    }
    #endfor
}
