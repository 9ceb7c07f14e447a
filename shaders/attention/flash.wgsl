// out = softmax(scale q k' + bias, masked) v on matrix units: everything in f16, products accumulated in f32.
//
// Tensors as prefill.wgsl has them, but f16, rows that begin at multiples of eight elements, at most 256 channels.
//
// A workgroup holds BQ = SUBS * RQ queries of one head, each of its SUBS subgroups RQ of them, and walks over tiles of BK
// keys with the online softmax (FlashAttention-2: arXiv 2307.08691). Queries, scores, weights and output never leave
// registers: an invocation reaches the elements that it holds of a matrix (lib/fragments.wgsl), the four invocations of
// a row exchange its maximum by shuffles, and the scores' layout is that of the next product's left operand. The output
// is rescaled only when a weight would pass 2^8, not for every new maximum (as FlashAttention-4 does): weights fit f16 and sums f32
// either way. A mask by positions is decided for each tile and subgroup: skipped, open, or masked key by key.
//
// K and V alone pass through workgroup memory, in the order in which products want them, so that every access is one of 16
// bytes, free of bank conflicts by an XOR instead of padding. Products do not mind in which order channels or keys are
// summed up, as long as both operands agree, and columns of the output may be permuted until they are stored:
// - The scores' product of depth 16 takes channels 8 quad + 0 .. 4 of 32, the next one 8 quad + 4 .. 8: an
//   invocation's 16 bytes of a row of K, or of Q straight from memory, are its elements of two products.
// - Column n of the scores is key 4 (n / 2) + n % 2, and two more for the second half of 16 columns: an invocation
//   holds four neighbouring keys of a row, and their weights meet the rows of V that it loads.
// - V is staged as pairs of rows, word (pair, column), made while copying; four neighbouring words are columns of four
//   products, so that an invocation ends up with eight neighbouring channels of a row of the output: one store.
//
// With TILES listed, only blocks of BLOCK keys are visited that are listed for the block of queries (lib/sparse.wgsl);
// both tiles divide a block. Entries are read one ahead, so that a tile's address is there when its loads begin. LOADS
// "ahead" asks for a tile while the one before is multiplied.
//
// What was tried, on an H100 (8192 keys, 2 batches of 16 heads of 128 channels or 32 of 64, full unless said; TFLOP/s), with
// this kernel's forerunners, one warmed-up run each (benches/record/nvidia-h100/2026-11-25-flash-variants.txt):
//   d128, RQ x SUBS, BK: 32x4, 32: 237; 16x8, 64: 244; 32x4, 64: 157; 32x8, 64: 230; 16x4, 64: 176; 16x4, 48: 220;
//     32x4, 48: 202; 32x4, 16: 214; 16x8, 32: 197. Tiles of 32 KiB by 128 invocations seem to leave one workgroup a processor.
//   d64: 32x4, 64: 270; 32x4, 32: 217; 32x4, 96: 265; 32x4, 128: 167; 32x8, 64: 252; 16x4, 64: 226; 16x8, 64: 235
//   with a tile asked for ahead only where there is one, `flashwave tune attention` (benches/record/nvidia-h100/2026-11-26-tune.txt): d128 full
//     16x8, 64, ahead: 270, 32x4, 32, together: 233; causal 263, 232; d64 full 32x8, 64, ahead 270, together 245; causal 32x4, 64, ahead 253, 237
//   d256: 16x8, 32: 224; d192: 16x4, 32: 210; d96: 32x4, 64: 263
//   causal d128 (32x4, 32), tiles of rows along x of the grid, heads along y: 217; heads along x: 231
//   the next tile's K, or K and V, fetched to registers before this one's products: 208, 229 (d128, 32x4, 32)
//   Q loaded from memory again for each tile, its registers free: 211
//   K and V staged in turn, each while the other is multiplied: 181 (32x4, 32), 230 (16x8, 64)
//   rescaling at every new maximum: 233; half a tile's scores at a time: 226
//   listed, 32768 keys, 8 heads, blocks of 128, S2 of 1/4.4, 1/8.4, 1/16.5, 1/32.7 of the pairs (32x4, 32; dense 8.96 ms), in us:
//     each entry read when its tile begins, longest lists of all heads first: 2366, 1264, 686, 396
//     entries one ahead: 2150, 1160, 635, 365; head by head: 2108, 1135, 620, 358
//     16x8, 64, loads ahead as well (dense so: 8.69 ms): 2001, 1080, 597, 351; Q to its matrices after those loads: 2092 .. 364
//     16x8, 64, Q so: 2116 .. 362; 32x4, 32, loads ahead: 2257 .. 384; longest first: 32x4, 16: 2378 .. 403
//     1, 2, 4, 8 blocks a line: 136, 205, 341, 625: 68 to 71 a block (dense: 70), and 66 for the lines themselves, a tenth of 1/16.5
//     and a fifth of 1/32.7. Half a line's own block is hidden and visited all the same.
//   blocks of 64, 1/32.5: 32x2, 16: 386; 32x2, 32: 452; 16x4, 16: 419; 16x4, 64: 500 (1/4.4: 2448, 2817, 2693, 2920)
//   on an H200 (dense 9.09 ms; benches/record/nvidia-h200/2026-11-26-attention.txt), 16x8, 64, loads ahead, for 1/4.4, 1/8.4, 1/16.5, 1/32.7:
//     a tile asked for after the last one, too: 2032, 1101, 604, 352; only where there is one: 336 (K and V before Q as well: 2037,
//     1090, 591, 337). Several lines a workgroup, the next one's first tile asked for during the last of the one before, 1, 2, 4 lines:
//     352, 349, 374 (1/4.4: 2129, 2166, and 2664, 2995 with blocks of 64)
#import "lib/tensor.wgsl" as t
#import "lib/attention.wgsl" as attention
#import "lib/fragments.wgsl" as fragments
#import "lib/sparse.wgsl" as sparse
#set BQ = SUBS * RQ
#set WG = SUBS * 32
#set DP = (D + 31) // 32 * 32
#set DVP = (DV + 31) // 32 * 32
#set KC = DP // 8
#set VC = DVP // 4
#set K_COPIES = BK * KC
#set V_COPIES = BK * VC // 4
#set ROWS = RQ // 8
#set SWIZZLED = KC % 8 == 0
#set POSITIONS_ALONE = BIAS == "none" and MASK == 0 and SOFTCAP == 0 and SLOPES == 0
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
#if TILES == "listed"
${ sparse.lists(12) }
${ sparse.functions(BLOCK, SHARE, BQ) }
#endif
${ fragments.functions(COOP) }

<# The tile from key k0 on, `stored` in memory, to registers; rows after the last key repeat it. #>
#macro fetch()
{
    #if LOADS == "ahead"
    // If there is none, some rows that there are.
    let place = select(0u, stored, more);
    let last = p.kv_len - 1u - select(0u, k0, more);
    #else
    let place = stored;
    let last = p.kv_len - 1u - k0;
    #endif
    #for i in range((K_COPIES + WG - 1) // WG)
    {
        let e = lane + ${i * WG}u;
        let c = e % ${KC}u;
        #if DP != D
        if c < ${D // 8}u {
        #endif
        k_${i} = k[k_base + (place + min(e / ${KC}u, last)) * k_row + c];
        #if DP != D
        }
        #endif
    }
    #endfor
    #for i in range((V_COPIES + WG - 1) // WG)
    {
        let e = lane + ${i * WG}u;
        let c = e % ${VC // 2}u;
        let r = e / ${VC // 2}u * 2u;
        #if DVP != DV
        if c < ${DV // 8}u {
        #endif
        v_${i}_0 = v[v_base + (place + min(r, last)) * v_row + c];
        v_${i}_1 = v[v_base + (place + min(r + 1u, last)) * v_row + c];
        #if DVP != DV
        }
        #endif
    }
    #endfor
}
#endmacro

// Rows of KC groups of eight channels; pairs of rows of VC groups of four columns.
var<workgroup> k_tile: array<vec4<u32>, ${BK * KC}>;
var<workgroup> v_tile: array<vec4<u32>, ${BK // 2 * VC}>;

@compute @workgroup_size(${WG})
fn main(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) grid: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
    ${ fragments.arguments(COOP) }
) {
    ${ fragments.begin(COOP) }
    #if TILES == "listed"
    let tile = tile_of(workgroup, grid);
    // The tile may begin before the call's first query: such rows wrap around to beyond the last.
    let first = tile.row - first_row();
    let head = tile.head;
    let heads = lists[1] * ${SHARE}u;
    let batch = tile.batch;
    #else
    let first = (grid.z - 1u - workgroup.z) * ${BQ}u;
    let head = workgroup.x;
    let heads = grid.x;
    let batch = workgroup.y;
    #endif
    let last_row = p.q_len - 1u;
    let k_base = (p.k_offset + batch * p.k_batch + (head / p.group) * p.k_head) / 8u;
    let v_base = (p.v_offset + batch * p.v_batch + (head / p.group) * p.v_head) / 8u;
    let k_row = p.k_row / 8u;
    let v_row = p.v_row / 8u;
    // No row sees keys before the first one's, nor after the last one's; the same of a subgroup's.
    let top = seen_by(first);
    let end = seen_by(u32(min(i32(first) + ${BQ - 1}, i32(last_row)))).end;
    let own_row = first + subgroup * ${RQ}u;
    let own_top = seen_by(u32(min(i32(own_row), i32(last_row))));
    let own_bottom = seen_by(u32(min(i32(own_row) + ${RQ - 1}, i32(last_row))));

    let initial = start(head);
    #for r in range(ROWS)
    let row_${r} = own_row + ${r * 8}u + line;
    var m_${r} = initial.x;
    var l_${r} = select(0.0, initial.y, quad == 0u);
    #endfor
    #for b in range(RQ // 16)
    #for c in range(DVP // 16)
    var o_${b}_${c}: Accumulator;
    #endfor
    #for r in range(b * 2, b * 2 + 2)
    let q_at_${r} =
        (p.q_offset + batch * p.q_batch + head * p.q_head + min(row_${r}, last_row) * p.q_row) / 8u + quad;
    #endfor
    #for s in range(DP // 32)
    #for r in range(b * 2, b * 2 + 2)
    #if (s + 1) * 32 > D
    var q_${r}_${s} = vec4<u32>();
    if ${s * 4}u + quad < ${D // 8}u { q_${r}_${s} = q[q_at_${r} + ${s * 4}u]; }
    #else
    let q_${r}_${s} = q[q_at_${r} + ${s * 4}u];
    #endif
    #endfor
    let queries_${b}_${2 * s} = matrix_a(vec4<u32>(q_${2 * b}_${s}.xy, q_${2 * b + 1}_${s}.xy));
    let queries_${b}_${2 * s + 1} = matrix_a(vec4<u32>(q_${2 * b}_${s}.zw, q_${2 * b + 1}_${s}.zw));
    #endfor
    #endfor

    // Where this invocation's parts of K and V lie in the tiles.
    #if SWIZZLED
    let k_even = (line / 2u * 4u + line % 2u) * ${KC}u + quad + line % 2u * 4u;
    let k_odd = (line / 2u * 4u + line % 2u) * ${KC}u + quad - line % 2u * 4u;
    #else
    let k_even = (line / 2u * 4u + line % 2u) * ${KC}u + quad;
    let k_odd = k_even;
    #endif
    let v_at = quad * ${2 * VC}u + (line ^ (quad * 2u));

    // The tile at hand: its first key, where that lies in memory, whether there is one.
    #if TILES == "listed"
    // Entries are read one ahead: the last one again, and what stands before it for an empty list.
    let last_entry = tile.end - 2u;
    var entry = tile.begin;
    var block = block_at(min(entry, last_entry));
    var k0 = block.key;
    var stored = block.place;
    var more = entry < tile.end && k0 < end;
    block = block_at(min(entry + 2u, last_entry));
    #else
    var k0 = next_tile(0u, top, ${BK}u);
    var stored = k0;
    var more = k0 < end;
    #endif
    #for i in range((K_COPIES + WG - 1) // WG)
    var k_${i} = vec4<u32>();
    #endfor
    #for i in range((V_COPIES + WG - 1) // WG)
    var v_${i}_0 = vec4<u32>();
    var v_${i}_1 = vec4<u32>();
    #endfor
    #if LOADS == "ahead"
    ${ fetch() }
    #endif
    while more {
        #if LOADS == "together"
        ${ fetch() }
        #endif
        workgroupBarrier();
        #for i in range((K_COPIES + WG - 1) // WG)
        {
            let e = lane + ${i * WG}u;
            #if (i + 1) * WG > K_COPIES
            if e < ${K_COPIES}u {
            #endif
            #if SWIZZLED
            k_tile[e ^ (e / ${KC}u % 2u * 4u)] = k_${i};
            #else
            k_tile[e] = k_${i};
            #endif
            #if (i + 1) * WG > K_COPIES
            }
            #endif
        }
        #endfor
        #for i in range((V_COPIES + WG - 1) // WG)
        {
            let e = lane + ${i * WG}u;
            #if (i + 1) * WG > V_COPIES
            if e < ${V_COPIES}u {
            #endif
            let at = (e * 2u) ^ ((e / ${VC // 2}u) & 6u);
            let low = (v_${i}_0 & vec4<u32>(0xffffu)) | (v_${i}_1 << vec4<u32>(16u));
            let high = (v_${i}_0 >> vec4<u32>(16u)) | (v_${i}_1 & vec4<u32>(0xffff0000u));
            v_tile[at] = vec4<u32>(low.x, high.x, low.y, high.y);
            v_tile[at + 1u] = vec4<u32>(low.z, high.z, low.w, high.w);
            #if (i + 1) * WG > V_COPIES
            }
            #endif
        }
        #endfor
        workgroupBarrier();

        let key = k0;
        #if TILES == "listed"
        k0 += ${BK}u;
        stored += ${BK}u;
        if k0 % ${BLOCK}u == 0u {
            entry += 2u;
            k0 = block.key;
            stored = block.place;
            block = block_at(min(entry + 2u, last_entry));
        }
        more = entry < tile.end && k0 < end;
        #else
        k0 = next_tile(k0 + ${BK}u, top, ${BK}u);
        stored = k0;
        more = k0 < end;
        #endif
        #if LOADS == "ahead"
        if more ${ fetch() }
        #endif

        // A loop of one round instead of an `if`, whose condition naga takes for divergent.
        loop {
            if key >= own_bottom.end || next_tile(key, own_top, ${BK}u) > key { break; }
            #for b in range(RQ // 16)
            #for j in range(BK // 16)
            var s_${b}_${j}: Accumulator;
            #endfor
            #endfor
            #for s in range(DP // 32)
            #for j in range(BK // 16)
            {
                #for h in range(2)
                let x${h} = k_tile[${"k_odd" if s % 2 else "k_even"} + ${(j * 16 + 2 * h) * KC + s * 4}u];
                #endfor
                let keys_0 = matrix_b(vec4<u32>(x0.xy, x1.xy));
                let keys_1 = matrix_b(vec4<u32>(x0.zw, x1.zw));
                #for h in range(2)
                #for b in range(RQ // 16)
                s_${b}_${j} = multiply_add(queries_${b}_${s * 2 + h}, keys_${h}, s_${b}_${j});
                #endfor
                #endfor
            }
            #endfor
            #endfor

            // Four neighbouring keys of a row at a time.
            #for r in range(ROWS)
            #for j in range(BK // 16)
            var x_${r}_${j} = vec4<f32>(
                #for i in range(4)
                element(&s_${r // 2}_${j}, ${r % 2 * 4 + i}u),
                #endfor
            );
            #endfor
            #endfor
            var factor = p.scale;
            #if POSITIONS_ALONE
            if !open_tile(key, ${BK}u, own_top, own_bottom) {
            #else
            {
            #endif
                factor = 1.0;
                #for r in range(ROWS)
                {
                    let row = min(row_${r}, last_row);
                    let seen = seen_by(row);
                    #for j in range(BK // 16)
                    x_${r}_${j} = scores(x_${r}_${j}, batch, head, row, key + ${j * 16}u + quad * 4u, seen);
                    #endfor
                }
                #endfor
            }
            #for r in range(ROWS)
            var most_${r} = largest(x_${r}_0);
            #for j in range(1, BK // 16)
            most_${r} = max(most_${r}, largest(x_${r}_${j}));
            #endfor
            most_${r} *= factor;
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
                #for b in range(RQ // 16)
                #for c in range(DVP // 16)
                #for i in range(8)
                set_element(&o_${b}_${c}, ${i}u, element(&o_${b}_${c}, ${i}u) * shrink_${b * 2 + i // 4});
                #endfor
                #endfor
                #endfor
            }
            #for b in range(RQ // 16)
            #for j in range(BK // 16)
            #for r in range(b * 2, b * 2 + 2)
            let w_${r}_${j} = exp2(fma(x_${r}_${j}, vec4<f32>(factor), vec4<f32>(-m_${r})));
            l_${r} += sum_of(w_${r}_${j});
            #endfor
            let weights_${b}_${j} = matrix_a(vec4<u32>(
                #for r in range(b * 2, b * 2 + 2)
                pack2x16float(w_${r}_${j}.xy), pack2x16float(w_${r}_${j}.zw),
                #endfor
            ));
            #endfor
            #endfor

            #for j in range(BK // 16)
            #for g in range(DVP // 32)
            {
                #for u in range(2)
                let x${u} = v_tile[v_at + ${(j * 8 + u) * VC + g * 8}u];
                #endfor
                let values_0 = matrix_b(vec4<u32>(x0.x, x1.x, x0.y, x1.y));
                let values_1 = matrix_b(vec4<u32>(x0.z, x1.z, x0.w, x1.w));
                #for h in range(2)
                #for b in range(RQ // 16)
                o_${b}_${g * 2 + h} = multiply_add(weights_${b}_${j}, values_${h}, o_${b}_${g * 2 + h});
                #endfor
                #endfor
            }
            #endfor
            #endfor
            break;
        }
    }

    let out_base = p.out_offset + batch * p.out_batch + head * p.out_head;
    #for r in range(ROWS)
    {
        let l = sum_of_quad(l_${r});
        // A row that sees nothing is zero.
        let inverse = select(1.0 / l, 0.0, l == 0.0);
        if row_${r} <= last_row {
            let at = (out_base + row_${r} * p.out_row) / 8u + quad;
            #for g in range(DVP // 32)
            {
                #if (g + 1) * 32 > DV
                if ${g * 4}u + quad < ${DV // 8}u {
                #endif
                #for e in range(2)
                #for t in range(4)
                let x${e * 4 + t} = inverse
                    * element(&o_${r // 2}_${g * 2 + t // 2}, ${r % 2 * 4 + t % 2 * 2 + e}u);
                #endfor
                #endfor
                out[at + ${g * 4}u] = vec4<u32>(
                    pack2x16float(vec2<f32>(x0, x1)), pack2x16float(vec2<f32>(x2, x3)),
                    pack2x16float(vec2<f32>(x4, x5)), pack2x16float(vec2<f32>(x6, x7)),
                );
                #if (g + 1) * 32 > DV
                }
                #endif
            }
            #endfor
            #if LSE == 1
            if quad == 0u { lse[p.lse_offset + (batch * heads + head) * p.q_len + row_${r}] = log_sum(m_${r}, l); }
            #endif
        }
    }
    #endfor
}
