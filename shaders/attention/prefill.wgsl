// out = softmax(scale q k' + bias, masked) v: grouped-query attention without the matrix of scores.
//
// q [batch, heads, q_len, D], k [batch, heads / group, kv_len, D], v [.., kv_len, DV], out [batch, heads, q_len,
// DV], each with strides of its own and adjacent elements in the last dimension; bias and mask broadcast by strides
// of zero; lse [batch, heads, q_len].
//
// A workgroup holds BQ = TY * RQ queries of one head and walks over tiles of BK = TX * 4 keys with the online softmax
// (FlashAttention-2: arXiv 2307.08691). Invocation (tx, ty) computes the scores of rows ty * RQ .. + RQ and keys
// tx * 4 .. + 4, and keeps the columns tx, tx + TX, .. (each four elements wide) of the same rows of the output in
// registers, so that a row's maximum and sum stay with it. Q and K pass through workgroup memory DC columns at a
// time, V by BV keys, the weights as a whole tile: values of 256 channels still take 16 KiB, those of 512 less, with
// half the queries. Only the row maxima are exchanged for each tile; sums are per invocation until the end. A mask by
// positions is decided for each tile: one that no row sees is not visited, one that all see is not masked. The longest
// rows of tiles start first.
//
// With TILES listed, only blocks of BLOCK keys are visited that are listed for the block of queries (lib/sparse.wgsl);
// both tiles divide a block.
//
// Staged rows are permuted, (row % RQ) * TY + row / RQ, and their columns XORed, so that neighbouring invocations
// read neighbouring 16 bytes and writes spread over the banks.
//
// On an H100 (f16, 16 heads, d128, 32768 tokens): causal 171.8 ms; a window of 1024, a sixteenth of its pairs, 11.2 ms
// (15.3 times as fast), with 4 first tokens kept 11.9 ms; a window of 4096 40.1 ms; 16 documents 11.7 ms. Over 8192
// tokens, causal, 11.3 ms a batch: a softcap adds 8%, ALiBi 2%, a learned sink 1%. Wide heads
// (576/512, 16 over 1, 4096 tokens): TX 32, TY 8, RQ 4 23.6 TFLOP/s; the others of the sweep, with more columns of the
// output an invocation or fewer queries, 2.8 to 9.1.
#import "lib/tensor.wgsl" as t
#import "lib/attention.wgsl" as attention
#import "lib/sparse.wgsl" as sparse
#set BQ = TY * RQ
#set BK = TX * 4
#set WG = TX * TY
#set D4 = (D + 3) // 4
#set DV4 = (DV + 3) // 4
#set RV = (DV4 + TX - 1) // TX
#set KSTAGE = DC * BQ
#set STAGE = [DC * (BQ + BK), BV * DV4] | max

${ attention.params() }
${ t.params(PARAMS) }
${ t.prelude() }
${ t.input(1, "q", Q, VEC) }
${ t.input(2, "k", K, VEC) }
${ t.input(3, "v", V, VEC) }
${ t.output(4, "out", O, VEC) }
${ attention.inputs(BIAS, MASK, SEEN, SLOPES, SINK) }
#if LSE == 1
${ t.words(7, "lse", "f32", "read_write") }
#endif
${ attention.functions(BIAS, MASK, SEEN, SOFTCAP, SLOPES, SINK) }
#if TILES == "listed"
${ sparse.lists(12) }
${ sparse.functions(BLOCK, SHARE, BQ) }
#endif

var<workgroup> stage: array<vec4<f32>, ${STAGE}>;
var<workgroup> weight_tile: array<vec4<f32>, ${BQ * TX}>;
var<workgroup> exchange: array<vec4<f32>, ${WG * RQ // 4}>;

@compute @workgroup_size(${WG})
fn main(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) grid: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let tx = lane % ${TX}u;
    let ty = lane / ${TX}u;
    #if TILES == "listed"
    let tile = tile_of(workgroup, grid);
    // The tile may begin before the call's first query: such rows wrap around to beyond the last.
    let first = tile.row - first_row();
    let head = tile.head;
    let heads = lists[1] * ${SHARE}u;
    let batch = tile.batch;
    #else
    let first = (grid.x - 1u - workgroup.x) * ${BQ}u;
    let head = workgroup.y;
    let heads = grid.y;
    let batch = workgroup.z;
    #endif
    let q_base = p.q_offset + batch * p.q_batch + head * p.q_head;
    let k_base = p.k_offset + batch * p.k_batch + (head / p.group) * p.k_head;
    let v_base = p.v_offset + batch * p.v_batch + (head / p.group) * p.v_head;
    let last_row = p.q_len - 1u;
    let row = first + ty * ${RQ}u;
    #for r in range(RQ)
    let row_${r} = min(row + ${r}u, last_row);
    let seen_${r} = seen_by(row_${r});
    #endfor
    // No row sees keys before the first one's, nor after the last one's.
    let top = seen_by(first);
    let bottom = seen_by(min(first + ${BQ - 1}u, last_row));

    let initial = start(head);
    #for h in range(RQ // 4)
    var m_${h} = vec4<f32>(initial.x);
    var l_${h} = vec4<f32>(select(0.0, initial.y, tx == 0u));
    #endfor
    #for r in range(RQ)
    #for j in range(RV)
    var o_${r}_${j} = vec4<f32>();
    #endfor
    #endfor

    #if TILES == "listed"
    for (var step = 0u; step < (tile.end - tile.begin) / 2u * ${BLOCK // BK}u; step += 1u) {
        let entry = tile.begin + step / ${BLOCK // BK}u * 2u;
        let inside = step % ${BLOCK // BK}u * ${BK}u;
        let k0 = (lists[entry] & ~PARTIAL) * ${BLOCK}u + inside;
        if k0 >= bottom.end { continue; }
        // Where the tile lies in memory.
        let place = lists[entry + 1u] * ${BLOCK}u + inside;
    #else
    for (var k0 = next_tile(0u, top, ${BK}u); k0 < bottom.end; k0 = next_tile(k0 + ${BK}u, top, ${BK}u)) {
        let place = k0;
    #endif
        let last_key = p.kv_len - 1u - k0;
        // Scores of this tile.
        #for r in range(RQ)
        var s_${r} = vec4<f32>();
        #endfor
        for (var c0 = 0u; c0 < ${D4}u; c0 += ${DC}u) {
            workgroupBarrier();
            #for i in range((BQ * DC + WG - 1) // WG)
            {
                let e = lane + ${i * WG}u;
                #if BQ * DC % WG != 0
                if e < ${BQ * DC}u {
                #endif
                let at = e / ${DC}u;
                let c = e % ${DC}u;
                let col = (c0 + c) * 4u;
                let source = q_base + min(first + at, last_row) * p.q_row + col;
                let pos = ((at % ${RQ}u) * ${TY}u + at / ${RQ}u) ^ (c * 2u);
                stage[c * ${BQ}u + pos] = load_some_q(source, ${D}u - min(col, ${D}u));
                #if BQ * DC % WG != 0
                }
                #endif
            }
            #endfor
            #for i in range((BK * DC + WG - 1) // WG)
            {
                let e = lane + ${i * WG}u;
                #if BK * DC % WG != 0
                if e < ${BK * DC}u {
                #endif
                let at = e / ${DC}u;
                let c = e % ${DC}u;
                let col = (c0 + c) * 4u;
                let source = k_base + (place + min(at, last_key)) * p.k_row + col;
                let pos = ((at % 4u) * ${TX}u + at / 4u) ^ (c * 2u);
                stage[${KSTAGE}u + c * ${BK}u + pos] = load_some_k(source, ${D}u - min(col, ${D}u));
                #if BK * DC % WG != 0
                }
                #endif
            }
            #endfor
            workgroupBarrier();
            #for c in range(DC)
            {
                #for j in range(4)
                let key_${j} = stage[${KSTAGE + c * BK}u + ((${j * TX}u + tx) ^ ${c * 2}u)];
                #endfor
                #for r in range(RQ)
                let query_${r} = stage[${c * BQ}u + ((${r * TY}u + ty) ^ ${c * 2}u)];
                s_${r} = fma(vec4<f32>(query_${r}.x), vec4<f32>(key_0.x, key_1.x, key_2.x, key_3.x), s_${r});
                s_${r} = fma(vec4<f32>(query_${r}.y), vec4<f32>(key_0.y, key_1.y, key_2.y, key_3.y), s_${r});
                s_${r} = fma(vec4<f32>(query_${r}.z), vec4<f32>(key_0.z, key_1.z, key_2.z, key_3.z), s_${r});
                s_${r} = fma(vec4<f32>(query_${r}.w), vec4<f32>(key_0.w, key_1.w, key_2.w, key_3.w), s_${r});
                #endfor
            }
            #endfor
        }
        #for r in range(RQ)
        s_${r} = open_scores(s_${r}, batch, head, row_${r}, k0 + tx * 4u, seen_${r}.at);
        #endfor
        if !open_tile(k0, ${BK}u, top, bottom) {
            #for r in range(RQ)
            s_${r} = hide(s_${r}, k0 + tx * 4u, seen_${r});
            #endfor
        }

        // Maxima over the invocations of a row.
        #for h in range(RQ // 4)
        exchange[${h * WG}u + lane] = vec4<f32>(
            largest(s_${4 * h}), largest(s_${4 * h + 1}), largest(s_${4 * h + 2}), largest(s_${4 * h + 3}));
        #endfor
        workgroupBarrier();
        #for h in range(RQ // 4)
        var top_${h} = m_${h};
        for (var i = 0u; i < ${TX}u; i += 1u) {
            top_${h} = max(top_${h}, exchange[${h * WG}u + ty * ${TX}u + i]);
        }
        let shrink_${h} = exp2(m_${h} - top_${h});
        m_${h} = top_${h};
        l_${h} *= shrink_${h};
        #endfor
        #for r in range(RQ)
        {
            let w = weights(s_${r}, top_${r // 4}[${r % 4}]);
            l_${r // 4}[${r % 4}] += sum_of(w);
            weight_tile[(ty * ${RQ}u + ${r}u) * ${TX}u + (tx ^ (ty % ${TX}u))] = w;
            #for j in range(RV)
            o_${r}_${j} *= shrink_${r // 4}[${r % 4}];
            #endfor
        }
        #endfor

        // The tile's share of the output.
        for (var v0 = 0u; v0 < min(${BK}u, bottom.end - k0); v0 += ${BV}u) {
            workgroupBarrier();
            #for i in range((BV * DV4 + WG - 1) // WG)
            {
                let e = lane + ${i * WG}u;
                #if BV * DV4 % WG != 0
                if e < ${BV * DV4}u {
                #endif
                let col = (e % ${DV4}u) * 4u;
                let source = v_base + (place + min(v0 + e / ${DV4}u, last_key)) * p.v_row + col;
                stage[e] = load_some_v(source, ${DV}u - col);
                #if BV * DV4 % WG != 0
                }
                #endif
            }
            #endfor
            workgroupBarrier();
            for (var k4 = 0u; k4 < ${BV // 4}u; k4 += 1u) {
                let keys = ((v0 >> 2u) + k4) ^ (ty % ${TX}u);
                #for r in range(RQ)
                let w_${r} = weight_tile[(ty * ${RQ}u + ${r}u) * ${TX}u + keys];
                #endfor
                #for j in range(RV)
                {
                    #if (j + 1) * TX > DV4
                    let col = min(tx + ${j * TX}u, ${DV4 - 1}u);
                    #else
                    let col = tx + ${j * TX}u;
                    #endif
                    #for u in range(4)
                    let value_${u} = stage[(k4 * 4u + ${u}u) * ${DV4}u + col];
                    #endfor
                    #for r in range(RQ)
                    #for u in range(4)
                    o_${r}_${j} = fma(vec4<f32>(w_${r}[${u}]), value_${u}, o_${r}_${j});
                    #endfor
                    #endfor
                }
                #endfor
            }
        }
    }

    // Sums over the invocations of a row.
    #for h in range(RQ // 4)
    exchange[${h * WG}u + lane] = l_${h};
    #endfor
    workgroupBarrier();
    #for h in range(RQ // 4)
    var sum_${h} = vec4<f32>();
    for (var i = 0u; i < ${TX}u; i += 1u) {
        sum_${h} += exchange[${h * WG}u + ty * ${TX}u + i];
    }
    #endfor
    let out_base = p.out_offset + batch * p.out_batch + head * p.out_head;
    #for r in range(RQ)
    if row + ${r}u < p.q_len {
        let l = sum_${r // 4}[${r % 4}];
        // A row that sees nothing is zero.
        let inverse = select(1.0 / l, 0.0, l == 0.0);
        #for j in range(RV)
        {
            let col = (tx + ${j * TX}u) * 4u;
            #if (j + 1) * TX > DV4
            if col < ${DV}u {
            #endif
            store_some_out(out_base + row_${r} * p.out_row + col, ${DV}u - col, o_${r}_${j} * inverse);
            #if (j + 1) * TX > DV4
            }
            #endif
        }
        #endfor
        #if LSE == 1
        if tx == 0u {
            lse[p.lse_offset + (batch * heads + head) * p.q_len + row_${r}] =
                log_sum(m_${r // 4}[${r % 4}], l);
        }
        #endif
    }
    #endfor
}
