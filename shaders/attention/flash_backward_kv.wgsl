// dk = scale ds' q and dv = p' dout on matrix units: backward_kv.wgsl with everything in f16, products accumulated in f32.
//
// Tensors as backward_kv.wgsl has them, but f16, rows that begin at multiples of eight elements, at most 128 channels;
// masks by position alone.
//
// A workgroup holds SUBS * R keys of one key head, each of its SUBS subgroups R of them: k, v, dk and dv stay in
// registers. It walks, head by head of those that share it, over tiles of WALK queries, PART at a time, as
// flash_backward_q.wgsl does over keys. q and dout each pass through workgroup memory twice, by rows for the scores and
// by pairs of rows for dk and dv.
//
// With TILES listed, only blocks of BLOCK queries are visited that are listed for the block of keys (lib/sparse.wgsl);
// both tiles divide a block.
//
// What was tried, on an H100 (8192 keys, 2 batches of 16 heads of 128 channels or 32 of 64, full; TFLOP/s of its four
// products), R x SUBS, WALK, PART:
//   d128: 16x8, 32, 16: 244; 16x4, 16, 16: 206; 16x4, 32, 16: 164; 16x8, 16, 16: 156
//   d64: 16x8, 64, 32: 263; 32x4, 32, 16: 254; 16x8, 64, 16: 248; 16x8, 32, 16: 212; 16x4, 32, 32: 213
//   the next tile fetched to registers during this one's products: 242 for 244; k and v read again for each tile,
//     their registers free: 185 for 244 (d128), 216 for 254 (d64, 32x4)
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
${ t.words(8, "dk", "vec4<u32>", "read_write") }
${ t.words(13, "dv", "vec4<u32>", "read_write") }
${ attention.inputs("none", 0, SEEN, 0, 0) }
${ attention.functions("none", 0, SEEN) }
${ attention.inverse(SEEN) }
#if TILES == "listed"
${ sparse.lists(12) }
${ sparse.functions(BLOCK, SHARE, SUBS * R) }
#endif
${ fragments.functions(COOP) }

var<workgroup> q_rows: array<vec4<u32>, ${WALK * C}>;
var<workgroup> q_pairs: array<vec4<u32>, ${WALK * C}>;
var<workgroup> dout_rows: array<vec4<u32>, ${WALK * CV}>;
var<workgroup> dout_pairs: array<vec4<u32>, ${WALK * CV}>;
// Logarithms and deltas of two queries.
var<workgroup> known: array<vec4<f32>, ${WALK // 2}>;

#macro fetch()
${ flash.fetch("q", "q0", "last_query", WALK, D, C, WG) }
${ flash.fetch("dout", "q0", "last_query", WALK, DV, CV, WG) }
if lane < ${WALK // 2}u {
    // Rows that are not there weigh nothing.
    next_known = vec4<f32>(-LOWEST, 0.0, -LOWEST, 0.0);
    let row = q0 + 2u * lane;
    if row < p.q_len { let own = rows[rows_base + row]; next_known.x = own.x * LOG2E; next_known.y = own.y; }
    if row + 1u < p.q_len { let own = rows[rows_base + row + 1u]; next_known.z = own.x * LOG2E; next_known.w = own.y; }
}
#endmacro

@compute @workgroup_size(${WG})
fn main(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) grid: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
    ${ fragments.arguments(COOP) }
) {
    ${ fragments.begin(COOP) }
    let first = workgroup.x * ${SUBS * R}u;
    let key_head = workgroup.y;
    let batch = workgroup.z;
    let last_query = p.q_len - 1u;
    let last_key = p.kv_len - 1u;
    let q_stride = p.q_row >> 3u;
    let dout_stride = p.out_row >> 3u;
    let sub_first = first + subgroup * ${R}u;
    #for r in range(RB * 2)
    let key_${r} = sub_first + ${r * 8}u + line;
    let k_at_${r} = ((p.k_offset + batch * p.k_batch + key_head * p.k_head + min(key_${r}, last_key) * p.k_row) >> 3u) + quad;
    let v_at_${r} = ((p.v_offset + batch * p.v_batch + key_head * p.v_head + min(key_${r}, last_key) * p.v_row) >> 3u) + quad;
    #endfor
    let seen_from = seeing(first, min(first + ${SUBS * R - 1}u, last_key));
    let sub_range = seeing(min(sub_first, last_key), min(sub_first + ${R - 1}u, last_key));
    // Where this invocation's parts of the tiles lie.
    ${ flash.parts("even", "odd", C) }
    ${ flash.parts("v_even", "v_odd", CV) }
    let q_pair = quad * ${4 * C}u + (line ^ (quad * 2u));
    let dout_pair = quad * ${4 * CV}u + (line ^ (quad * 2u));

    ${ flash.held("k", RB, D, C) }
    ${ flash.held("v", RB, DV, CV) }
    ${ flash.accumulators("dk", RB, C) }
    ${ flash.accumulators("dv", RB, CV) }
    ${ flash.registers("q", WALK, C, WG) }
    ${ flash.registers("dout", WALK, CV, WG) }
    var next_known: vec4<f32>;

    for (var head = key_head * p.group; head < (key_head + 1u) * p.group; head += 1u) {
    let q_base = (p.q_offset + batch * p.q_batch + head * p.q_head) >> 3u;
    let dout_base = (p.out_offset + batch * p.out_batch + head * p.out_head) >> 3u;
    let rows_base = (batch * grid.y * p.group + head) * p.q_len;
    #if TILES == "listed"
    // The queries of each block that is listed for these keys.
    let entries = entries_of(head / ${SHARE}u * lists[0] + first / ${BLOCK}u);
    for (var e = entries.x; e < entries.y; e += 2u) {
    let first_query = (lists[e] & ~PARTIAL) * ${BLOCK}u;
    let range = vec2<u32>(max(first_query, seen_from.x), min(first_query + ${BLOCK}u, seen_from.y));
    #else
    let range = seen_from;
    #endif
    for (var q0 = range.x / ${WALK}u * ${WALK}u; q0 < range.y; q0 += ${WALK}u) {
        ${ fetch() }
        workgroupBarrier();
        ${ flash.put_rows("q", WALK, C, WG) }
        ${ flash.put_pairs("q", WALK, C, WG) }
        ${ flash.put_rows("dout", WALK, CV, WG) }
        ${ flash.put_pairs("dout", WALK, CV, WG) }
        if lane < ${WALK // 2}u { known[lane] = next_known; }
        workgroupBarrier();
        // Not an `if`: naga takes its condition for divergent, where cooperative matrices are forbidden.
        let stop = min(q0 + ${WALK}u, sub_range.y);
        var row = max(q0, sub_range.x / ${PART}u * ${PART}u);
        while row < stop {
            let shift = row - q0;
            #for b in range(RB)
            #for j in range(J)
            var s_${b}_${j}: Accumulator;
            var dp_${b}_${j}: Accumulator;
            #endfor
            #endfor
            ${ flash.over_channels("s", "k", "q", "shift * " ~ C ~ "u", RB, J, C) }
            {
            let even = v_even;
            let odd = v_odd;
            ${ flash.over_channels("dp", "v", "dout", "shift * " ~ CV ~ "u", RB, J, CV) }
            }
            let open = open_tile(sub_first, ${R}u, seen_by(min(row, last_query)), seen_by(min(row + ${PART - 1}u, last_query)));
            #for r in range(RB * 2)
            #for j in range(J)
            var x_${r}_${j} = ${ flash.four("s", r, j) } * p.scale;
            #endfor
            #endfor
            if !open {
                #for j in range(J)
                #for i in range(4)
                {
                let seen = seen_by(min(row + ${j * 16 + i}u + quad * 4u, last_query));
                #for r in range(RB * 2)
                x_${r}_${j}[${i}] = hide(vec4<f32>(x_${r}_${j}[${i}]), key_${r}, seen).x;
                #endfor
                }
                #endfor
                #endfor
            }
            #for r in range(RB * 2)
            #for j in range(J)
            var ds_${r}_${j}: vec4<f32>;
            #endfor
            #endfor
            #for j in range(J)
            {
            let low = known[shift / 2u + ${j * 8}u + quad * 2u];
            let high = known[shift / 2u + ${j * 8 + 1}u + quad * 2u];
            let logs = vec4<f32>(low.x, low.z, high.x, high.z);
            let deltas = vec4<f32>(low.y, low.w, high.y, high.w);
            #for r in range(RB * 2)
            x_${r}_${j} = exp2(x_${r}_${j} - logs);
            ds_${r}_${j} = x_${r}_${j} * (${ flash.four("dp", r, j) } - deltas);
            #endfor
            }
            #endfor
            ${ flash.weights("w", "x", RB, J) }
            ${ flash.weights("a", "ds", RB, J) }
            {
            let pair_at = dout_pair;
            ${ flash.over_rows("dv", "w", "dout", "shift * " ~ CV ~ "u", RB, J, CV) }
            }
            {
            let pair_at = q_pair;
            ${ flash.over_rows("dk", "a", "q", "shift * " ~ C ~ "u", RB, J, C) }
            }
            row += ${PART}u;
        }
    }
    #if TILES == "listed"
    }
    #endif
    }

    let dk_base = p.dk_offset + batch * p.dk_batch + key_head * p.dk_head;
    let dv_base = p.dv_offset + batch * p.dv_batch + key_head * p.dv_head;
    #for r in range(RB * 2)
    if key_${r} <= last_key {
        let dk_at = (dk_base + key_${r} * p.dk_row) >> 3u;
        ${ flash.store("dk", "dk", r, "dk_at", D, C, "p.gradient_scale") }
        let dv_at = (dv_base + key_${r} * p.dv_row) >> 3u;
        ${ flash.store("dv", "dv", r, "dv_at", DV, CV, "1.0") }
    }
    #endfor
}
