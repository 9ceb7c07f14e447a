#import "lib/tensor.wgsl" as t
#import "lib/attention.wgsl" as attention
#import "lib/fragments.wgsl" as fragments
#set BQ = SUBS * RQ
#set WG = SUBS * 32
#set DP = (D + 31) // 32 * 32
#set DVP = (DV + 31) // 32 * 32
#set KC = DP // 8
#set VC = DVP // 4
#set RB = RQ // 16
#set SJ = SK // 16
#set SWIZZLED = KC % 8 == 0
#set NK = BK * KC // WG
#set NV = BK * VC // 4 // WG
#if COOP == "elements"
enable f16;
enable wgpu_cooperative_matrix;
#endif

${ attention.params() }
${ t.params(PARAMS) }
${ t.prelude() }
${ t.words(1, "q", "vec4<u32>") }
${ t.words(2, "k", "vec4<u32>") }
${ t.words(3, "v", "vec4<u32>") }
${ t.words(4, "out", "vec4<u32>", "read_write") }
${ attention.inputs(BIAS, MASK, SEEN, SLOPES, SINK) }
#if LSE == 1
${ t.words(7, "lse", "f32", "read_write") }
#endif
${ attention.functions(BIAS, MASK, SEEN, SOFTCAP, SLOPES, SINK) }
${ fragments.functions(COOP) }

// K by rows of KC groups of eight channels, V by pairs of rows: word (pair, column) has both rows' elements.
var<workgroup> k_tile: array<vec4<u32>, ${BK * KC}>;
var<workgroup> v_tile: array<vec4<u32>, ${BK // 2 * VC}>;

#macro fetch_k()
#for i in range(NK)
{
    let e = lane + ${i * WG}u;
    let c = e % ${KC}u;
    #if DP != D
    k_${i} = vec4<u32>();
    if c < ${D // 8}u {
    #endif
    k_${i} = k[k_base + min(k0 + e / ${KC}u, last_key) * k_row + c];
    #if DP != D
    }
    #endif
}
#endfor
#endmacro

#macro fetch_v()
#for i in range(NV)
{
    let e = lane + ${i * WG}u;
    let c = e % ${DVP // 8}u;
    let r = k0 + e / ${DVP // 8}u * 2u;
    #if DVP != DV
    v_${i}_0 = vec4<u32>();
    v_${i}_1 = vec4<u32>();
    if c < ${DV // 8}u {
    #endif
    v_${i}_0 = v[v_base + min(r, last_key) * v_row + c];
    v_${i}_1 = v[v_base + min(r + 1u, last_key) * v_row + c];
    #if DVP != DV
    }
    #endif
}
#endfor
#endmacro

#macro put_k()
#for i in range(NK)
{
    let e = lane + ${i * WG}u;
    let r = e / ${KC}u;
    let c = e % ${KC}u;
    k_tile[r * ${KC}u + ${"(c ^ ((r & 1u) * 4u))" if SWIZZLED else "c"}] = k_${i};
}
#endfor
#endmacro

#macro put_v()
#for i in range(NV)
{
    let e = lane + ${i * WG}u;
    let r = e / ${DVP // 8}u;
    let at = r * ${VC}u + (((e % ${DVP // 8}u) * 2u) ^ ((r & 6u)));
    let low = (v_${i}_0 & vec4<u32>(0xffffu)) | (v_${i}_1 << vec4<u32>(16u));
    let high = (v_${i}_0 >> vec4<u32>(16u)) | (v_${i}_1 & vec4<u32>(0xffff0000u));
    v_tile[at] = vec4<u32>(low.x, high.x, low.y, high.y);
    v_tile[at + 1u] = vec4<u32>(low.z, high.z, low.w, high.w);
}
#endfor
#endmacro

<# Sixteen rows by 32 channels of Q are two matrices. #>
#macro load_q(s2)
#for b in range(RB)
{
    #for r in range(2)
    #if (s2 + 1) * 32 > D
    var x${r} = vec4<u32>();
    if ${s2 * 4}u + quad < ${D // 8}u { x${r} = q[q_at_${b * 2 + r} + ${s2 * 4}u]; }
    #else
    let x${r} = q[q_at_${b * 2 + r} + ${s2 * 4}u];
    #endif
    #endfor
    q_${b}_${s2 * 2} = matrix_a(vec4<u32>(x0.xy, x1.xy));
    q_${b}_${s2 * 2 + 1} = matrix_a(vec4<u32>(x0.zw, x1.zw));
}
#endfor
#endmacro

<# SK keys of a tile: their scores, their weights, their share of the output. #>
#macro scores_part(ko)
        #for b in range(RB)
        #for j in range(SJ)
        var s_${b}_${j}: Accumulator;
        #endfor
        #endfor
        #for s2 in range(DP // 32)
        {
        #if QREG == 0
        ${load_q(s2)}
        #endif
        #for j in range(SJ)
        {
            #for h in range(2)
            let x${h} = k_tile[${"k_odd" if s2 % 2 else "k_even"} + ${ko} + ${(j * 16 + 2 * h) * KC + s2 * 4}u];
            #endfor
            let keys_0 = matrix_b(vec4<u32>(x0.xy, x1.xy));
            let keys_1 = matrix_b(vec4<u32>(x0.zw, x1.zw));
            #for h in range(2)
            #for b in range(RB)
            s_${b}_${j} = multiply_add(q_${b}_${s2 * 2 + h}, keys_${h}, s_${b}_${j});
            #endfor
            #endfor
        }
        #endfor
        }
        #endfor
        // Scores, four neighbouring keys of a row at a time.
        #for r in range(RB * 2)
        #for j in range(SJ)
        var x_${r}_${j} = vec4<f32>(
            #for i in range(4)
            element(&s_${r // 2}_${j}, ${r % 2 * 4 + i}u),
            #endfor
        );
        #endfor
        #endfor
        var factor = p.scale;
        if ${ "true" if BIAS != "none" or MASK == 1 or SOFTCAP == 1 or SLOPES == 1 else "!open_tile(key, " ~ SK ~ "u, sub_top, sub_bottom)" } {
            factor = 1.0;
            #for r in range(RB * 2)
            {
            let row = min(row_${r}, last_row);
            let seen = seen_by(row);
            #for j in range(SJ)
            x_${r}_${j} = scores(x_${r}_${j}, batch, head, row, key + ${j * 16}u + quad * 4u, seen);
            #endfor
            }
            #endfor
        }
        #for r in range(RB * 2)
        var top_${r} = largest(x_${r}_0);
        #for j in range(1, SJ)
        top_${r} = max(top_${r}, largest(x_${r}_${j}));
        #endfor
        top_${r} *= factor;
        #endfor
        // Rescale only where a weight would pass 2^${LAZY}.
        ${WHEN} any_of_subgroup(
            #for r in range(RB * 2)
            ${"|| " if r else ""}top_${r} > m_${r} + ${LAZY}.0
            #endfor
        ) {
            #for r in range(RB * 2)
            top_${r} = max(largest_of_quad(top_${r}), m_${r});
            let shrink_${r} = exp2(m_${r} - top_${r});
            m_${r} = top_${r};
            l_${r} *= shrink_${r};
            #endfor
            #for b in range(RB)
            #for c in range(DVP // 16)
            #for i in range(8)
            set_element(&o_${b}_${c}, ${i}u, element(&o_${b}_${c}, ${i}u) * shrink_${b * 2 + i // 4});
            #endfor
            #endfor
            #endfor
        }
        #for b in range(RB)
        #for j in range(SJ)
        #for r in range(2)
        let w_${b}_${j}_${r} = exp2(fma(x_${b * 2 + r}_${j}, vec4<f32>(factor), vec4<f32>(-m_${b * 2 + r})));
        l_${b * 2 + r} += sum_of(w_${b}_${j}_${r});
        #endfor
        let w_${b}_${j} = matrix_a(vec4<u32>(
            #for r in range(2)
            pack2x16float(w_${b}_${j}_${r}.xy), pack2x16float(w_${b}_${j}_${r}.zw),
            #endfor
        ));
        #endfor
        #endfor
#endmacro

#macro values_part(vo)
        #for j in range(SJ)
        #for g in range(DVP // 32)
        {
            #for u in range(2)
            let x${u} = v_tile[v_at + ${vo} + ${(j * 8 + u) * VC + g * 8}u];
            #endfor
            let values_0 = matrix_b(vec4<u32>(x0.x, x1.x, x0.y, x1.y));
            let values_1 = matrix_b(vec4<u32>(x0.z, x1.z, x0.w, x1.w));
            #for h in range(2)
            #for b in range(RB)
            o_${b}_${g * 2 + h} = multiply_add(w_${b}_${j}, values_${h}, o_${b}_${g * 2 + h});
            #endfor
            #endfor
        }
        #endfor
        #endfor
#endmacro

@compute @workgroup_size(${WG})
fn main(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) grid: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
    #if COOP == "elements"
    @builtin(subgroup_id) subgroup: u32,
    @builtin(subgroup_invocation_id) place: u32,
    #endif
) {
    ${ fragments.begin(COOP) }
    #if COOP != "elements"
    let subgroup = lane / 32u;
    let place = lane % 32u;
    #endif
    #if ORDER == "x"
    let first = (grid.x - 1u - workgroup.x) * ${BQ}u;
    let head = workgroup.y;
    let batch = workgroup.z;
    #else
    let first = (grid.z - 1u - workgroup.z) * ${BQ}u;
    let head = workgroup.x;
    let batch = workgroup.y;
    #endif
    let quad = place % 4u;
    let line = place / 4u;
    let last_row = p.q_len - 1u;
    let last_key = p.kv_len - 1u;
    let k_base = (p.k_offset + batch * p.k_batch + (head / p.group) * p.k_head) >> 3u;
    let v_base = (p.v_offset + batch * p.v_batch + (head / p.group) * p.v_head) >> 3u;
    let k_row = p.k_row >> 3u;
    let v_row = p.v_row >> 3u;
    let sub_first = first + subgroup * ${RQ}u;
    let sub_top = seen_by(min(sub_first, last_row));
    let sub_bottom = seen_by(min(sub_first + ${RQ - 1}u, last_row));
    let start_of_row = start(head);
    #for r in range(RB * 2)
    let row_${r} = sub_first + ${r * 8}u + line;
    let q_at_${r} = ((p.q_offset + batch * p.q_batch + head * p.q_head + min(row_${r}, last_row) * p.q_row) >> 3u) + quad;
    var m_${r} = start_of_row.x;
    var l_${r} = select(0.0, start_of_row.y, quad == 0u);
    #endfor
    // No row sees keys before the first one's, nor after the last one's.
    let top = seen_by(min(first, last_row));
    let end = seen_by(min(first + ${BQ - 1}u, last_row)).end;

    // Where this invocation's parts of K and V lie in the tiles.
    let k_even = (line / 2u * 4u + line % 2u) * ${KC}u + quad ${"+ (line & 1u) * 4u" if SWIZZLED else ""};
    let k_odd = (line / 2u * 4u + line % 2u) * ${KC}u + quad ${"- (line & 1u) * 4u" if SWIZZLED else ""};
    let v_at = quad * ${2 * VC}u + (line ^ (quad * 2u));

    #for b in range(RB)
    #for s in range(DP // 16)
    var q_${b}_${s}: MatrixA;
    #endfor
    #for c in range(DVP // 16)
    var o_${b}_${c}: Accumulator;
    #endfor
    #endfor
    #if QREG == 1
    #for s2 in range(DP // 32)
    ${load_q(s2)}
    #endfor
    #endif
    #for i in range(NK)
    var k_${i}: vec4<u32>;
    #endfor
    #for i in range(NV)
    var v_${i}_0: vec4<u32>;
    var v_${i}_1: vec4<u32>;
    #endfor

    #if STAGE == "split"
    var k0 = next_tile(0u, top, ${BK}u);
    ${fetch_k()}
    loop {
        if k0 >= end { break; }
        let key = k0;
        ${put_k()}
        ${fetch_v()}
        workgroupBarrier();
        ${scores_part("0u")}
        ${put_v()}
        k0 = next_tile(k0 + ${BK}u, top, ${BK}u);
        ${fetch_k()}
        workgroupBarrier();
        ${values_part("0u")}
    }
    #else
    var k0 = next_tile(0u, top, ${BK}u);
    #if PFK == 1
    ${fetch_k()}
    #endif
    #if PFV == 1
    ${fetch_v()}
    #endif
    loop {
        if k0 >= end { break; }
        let tile_key = k0;
        #if PFK == 0
        ${fetch_k()}
        #endif
        #if PFV == 0
        ${fetch_v()}
        #endif
        workgroupBarrier();
        ${put_k()}
        ${put_v()}
        workgroupBarrier();
        k0 = next_tile(k0 + ${BK}u, top, ${BK}u);
        #if PFK == 1
        ${fetch_k()}
        #endif
        #if PFV == 1
        ${fetch_v()}
        #endif
        // Not an `if`: naga takes its condition for divergent, where cooperative matrices are forbidden.
        let stop = min(tile_key + ${BK}u, sub_bottom.end);
        var key = tile_key;
        #if UNROLL == 1
        loop {
            #for half in range(BK // SK)
            if key >= stop { break; }
            {
            ${scores_part(half * SK * KC ~ "u")}
            ${values_part(half * SK // 2 * VC ~ "u")}
            }
            key += ${SK}u;
            #endfor
            break;
        }
        #else
        while key < stop {
            let shift = key - tile_key;
            ${scores_part("shift * " ~ KC ~ "u")}
            ${values_part("shift / 2u * " ~ VC ~ "u")}
            key += ${SK}u;
        }
        #endif
    }
    #endif

    let out_base = p.out_offset + batch * p.out_batch + head * p.out_head;
    #for r in range(RB * 2)
    {
        let l = sum_of_quad(l_${r});
        // A row that sees nothing is zero.
        let inverse = select(1.0 / l, 0.0, l == 0.0);
        if row_${r} <= last_row {
            let at = ((out_base + row_${r} * p.out_row) >> 3u) + quad;
            #for g in range(DVP // 32)
            {
                #if (g + 1) * 32 > DV
                if ${g * 4}u + quad < ${DV // 8}u {
                #endif
                #for e in range(2)
                #for t in range(4)
                let x${e * 4 + t} = element(&o_${r // 2}_${g * 2 + t // 2}, ${r % 2 * 4 + t % 2 * 2 + e}u) * inverse;
                #endfor
                #endfor
                out[at + ${g * 4}u] = vec4<u32>(
                    pack2x16float(vec2<f32>(x0, x1)), pack2x16float(vec2<f32>(x2, x3)),
                    pack2x16float(vec2<f32>(x4, x5)), pack2x16float(vec2<f32>(x6, x7)));
                #if (g + 1) * 32 > DV
                }
                #endif
            }
            #endfor
            #if LSE == 1
            if quad == 0u {
                lse[p.lse_offset + (batch * ${"grid.y" if ORDER == "x" else "grid.x"} + head) * p.q_len + row_${r}] = log_sum(m_${r}, l);
            }
            #endif
        }
    }
    #endfor
}
