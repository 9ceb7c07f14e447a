// out[z, m, n] = F(alpha * sum_k A[z, m, k] B[z, k, n] + bias[n]) + residual[z, m, n]; GATED: F(gate) * up, where
// B's rows are n gate rows, then n up rows. A and B are f16, products are exact, sums f32 in cooperative matrices.
//
// A, B, out, residual: rows of adjacent elements, `stride` apart, batches `batch` apart (0: the same for all). A_MAJOR "k":
// rows of A are its m, along k; "m": A is stored transposed, rows are its k. B_MAJOR "k": rows of B are its n (the weights of
// a linear layer); "n": rows are its k. Rows, offsets and batches of A and B are multiples of eight elements.
//
// A workgroup computes a tile of BM x BN, walking along k in steps of BK. Both operands' tiles are copied into
// workgroup memory as they lie, 16 bytes an access, each row padded by 16 bytes against bank conflicts. A subgroup of 32
// has SM x SN sums, as cooperative matrices of 16 x 16 in registers. The next step's elements are fetched into registers
// during the arithmetic. In a gated product half of a subgroup's columns are gates, half the ups of the same columns.
// Results pass through workgroup memory, a matrix at a time, to reach `finish` as rows.
//
// EDGES "none": all sizes are multiples of the tile's. "outer": m and n are not: rows are held within the
// matrix when they are read. "all": k neither: what lies past it is zeroed on its way into the tile.
//
// After NVIDIA's vk_cooperative_matrix_perf (shmem.comp). The ladder, TFLOP/s at 8192^3 (and 4096x512x14336), f16 -> f16, on an
// H100 (driver 580.159, 2026-11-25; benches/record/nvidia-h100 has every line), B as [k, n] unless [n, k] is said:
//   128x128x32, 4 subgroups of 64x64, loads that point at f16             126 (80)
//   the same, loads that point at vec4<f16>                               205 (110)
//   the same, loads of 16 bytes (lib/cooperative.wgsl)                    319 (178), [n, k] 284 (162)
//   rows put four apart, no bank conflicts (first_row)                    340 (182), [n, k] 317 (171)
//   fetch before the barrier (EARLY)                                      345 (202), [n, k] 316 (190)
//   160x128x32, 4 of 80x64                                                347 (190), [n, k] 328 (160)
//   128x160x32, 4 of 64x80                                                [n, k] 339 (173)
//   128x128x64, 4 of 64x64: whole lines of 128 bytes, one workgroup       306 (305), [n, k] 306 (297)
//   192x128x64, 8 of 48x64                                                325 (212), [n, k] 325 (212)
// Without the fetch 128x128x32 has 418, without fetch and put 574 (the ceiling is 620): what is left to win is there, not
// in the loads of matrices. Where fetches read one and the same tile, 353: it is not the L2 cache's bandwidth.
// Tried and dropped: fetch without `if k0 < p.k` (the driver then sinks it to the put) 246; a fetch spread over the
// arithmetic 255; guards inside the fetch 218; two stages in workgroup memory 132 to 192, at 128x192x32 294; 128x256x32
// 312 (155); 96x64 or 64x96 a subgroup (spills) 104 to 122; 32x64 a subgroup 304; eight neighbours reading eight rows 134; B's or
// A's matrices straight from memory 86; the next matrices loaded during the arithmetic: the same; neighbouring tiles on one
// multiprocessor 336; volatile loads 224; nontemporal ones the same; padding of 0 or 32 bytes 125 to 165, 217 to 246; tiles
// walked 1 to 32 rows together: within 3%.
enable wgpu_cooperative_matrix;
#import "lib/tensor.wgsl" as t
#import "lib/activation.wgsl" as activation
#import "lib/cooperative.wgsl" as cooperative
#import "lib/product.wgsl" as product

#set SUBGROUPS = (BM // SM) * (BN // SN)
#set WG = SUBGROUPS * 32
<# Of each operand's tile: rows, vectors of eight elements in a row, vectors from row to row, pieces for an invocation. #>
#set ROWS_A = BM if A_MAJOR == "k" else BK
#set ROWS_B = BN if B_MAJOR == "k" else BK
#set COLS_A = (BK if A_MAJOR == "k" else BM) // 8
#set COLS_B = (BK if B_MAJOR == "k" else BN) // 8
#set PITCH_A = COLS_A + 1
#set PITCH_B = COLS_B + 1
#set PIECES_A = ROWS_A * COLS_A // WG
#set PIECES_B = ROWS_B * COLS_B // WG
#set SIZE_A = ROWS_A * PITCH_A
#set SIZE_B = ROWS_B * PITCH_B
<# A result on its way out: 16 rows of 16 f32, padded; gate and up are two. #>
#set RESULT = 16 * 5
#set RESULTS = SUBGROUPS * RESULT * (1 + GATED)
#set MATRICES_M = SM // 16
<# Short steps hide less of the memory's latency: their fetch begins before the barrier. #>
#set EARLY = BK < 64
#set MATRICES_N = SN // 16

${ product.params(PARAMS) }
${ t.prelude() }
${ t.words(1, "a", "vec4<u32>") }
${ t.words(2, "b", "vec4<u32>") }
${ product.surroundings(OUT, OUT_VEC, BIAS, RESIDUAL) }
${ activation.functions(F) }
${ product.finish(EDGES, GATED, BIAS, RESIDUAL) }

var<workgroup> memory: array<vec4<f32>, ${[SIZE_A + SIZE_B, RESULTS]|max}>;

#macro held(index, last)
#if EDGES == "none"
${index}
#else
min(${index}, ${last})
#endif
#endmacro

<# The row of an invocation's first piece. Of rows of four vectors (and one of padding) two that eight invocations put
   together lie four apart: neighbouring ones would share banks. #>
#macro first_row(cols)
#if cols == 4
(lane / 32u) * 8u + (lane % 32u) / 8u + (lane / 4u) % 2u * 4u
#else
lane / ${cols}u
#endif
#endmacro

<# Where piece i of an operand is in memory, in vectors; `row` and `col` are those of the invocation's first piece. #>
#macro place(operand, major, i, rows, cols, first, size)
#set row = operand ~ "_row + " ~ (i * (WG // cols)) ~ "u"
#if major == "k"
#if operand == "b" and GATED == 1
b_base + gated_row(n0, ${row}) * b_stride + ${held("k_vector + b_col", "last_k")}
#else
${operand}_base + (${held(first ~ " + " ~ row, size ~ " - 1u")}) * ${operand}_stride + ${held("k_vector + " ~ operand ~ "_col", "last_k")}
#endif
#else
${operand}_base + (${held("k0 + " ~ row, "p.k - 1u")}) * ${operand}_stride + ${held("(" ~ first ~ " >> 3u) + " ~ operand ~ "_col", "(" ~ size ~ " >> 3u) - 1u")}
#endif
#endmacro

#macro fetch()
{
    let k_vector = k0 >> 3u;
    #for i in range(PIECES_A)
    a${i} = a[${place("a", A_MAJOR, i, ROWS_A, COLS_A, "m0", "p.m")}];
    #endfor
    #for i in range(PIECES_B)
    b${i} = b[${place("b", B_MAJOR, i, ROWS_B, COLS_B, "n0", "p.n")}];
    #endfor
}
#endmacro

<# A piece, zero if it lies past k. #>
#macro kept(operand, major, i, cols)
#if EDGES != "all"
${operand}${i}
#elif major == "k"
select(vec4<u32>(), ${operand}${i}, k0 + ${operand}_col * 8u < p.k)
#else
select(vec4<u32>(), ${operand}${i}, k0 + ${operand}_row + ${i * (WG // cols)}u < p.k)
#endif
#endmacro

#macro put()
    #for i in range(PIECES_A)
    memory[put_a + ${i * (WG // COLS_A) * PITCH_A}u] = bitcast<vec4<f32>>(${kept("a", A_MAJOR, i, COLS_A)});
    #endfor
    #for i in range(PIECES_B)
    memory[put_b + ${i * (WG // COLS_B) * PITCH_B}u] = bitcast<vec4<f32>>(${kept("b", B_MAJOR, i, COLS_B)});
    #endfor
#endmacro

<# Matrix i of an operand, 16 deep, at k = 16 s of the step. #>
#macro matrix(to, role, major, s, i, base, pitch)
#if major == "k"
${cooperative.load(to, role, "memory", base ~ " + " ~ (i * 16 * pitch + s * 2) ~ "u", pitch, "rows" if role == "A" else "columns")}
#else
${cooperative.load(to, role, "memory", base ~ " + " ~ (s * 16 * pitch + i * 2) ~ "u", pitch, "columns" if role == "A" else "rows")}
#endif
#endmacro

#if GATED == 1
// Of a subgroup's SN rows of B the first half are gates, the others the ups of the same columns.
fn gated_row(n0: u32, row: u32) -> u32 {
    let within = row % ${SN}u;
    let col = (n0 + (row - within)) / 2u + within % ${SN // 2}u;
    return ${held("col", "p.n - 1u")} + (within / ${SN // 2}u) * p.n;
}
#endif

@compute @workgroup_size(${WG})
fn main(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) grid: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
    @builtin(subgroup_id) subgroup: u32,
    @builtin(subgroup_invocation_id) subgroup_lane: u32,
) {
    ${ product.tile(GROUP, BM, BN) }
    let a_base = (p.a_offset + batch * p.a_batch) >> 3u;
    let b_base = (p.b_offset + batch * p.b_batch) >> 3u;
    let a_stride = p.a_stride >> 3u;
    let b_stride = p.b_stride >> 3u;
    let last_k = (p.k >> 3u) - 1u;
    let a_row = ${first_row(COLS_A)};
    let a_col = lane % ${COLS_A}u;
    let b_row = ${first_row(COLS_B)};
    let b_col = lane % ${COLS_B}u;
    let put_a = a_row * ${PITCH_A}u + a_col;
    let put_b = ${SIZE_A}u + b_row * ${PITCH_B}u + b_col;
    let sub_m = (subgroup / ${BN // SN}u) * ${SM}u;
    let sub_n = (subgroup % ${BN // SN}u) * ${SN}u;
    let get_a = ${"sub_m * " ~ PITCH_A ~ "u" if A_MAJOR == "k" else "sub_m / 8u"};
    let get_b = ${SIZE_A}u + ${"sub_n * " ~ PITCH_B ~ "u" if B_MAJOR == "k" else "sub_n / 8u"};

    #for i in range(PIECES_A)
    var a${i}: vec4<u32>;
    #endfor
    #for i in range(PIECES_B)
    var b${i}: vec4<u32>;
    #endfor
    #for i in range(MATRICES_M)
    #for j in range(MATRICES_N)
    ${cooperative.sum("sum" ~ i ~ "_" ~ j)}
    #endfor
    #endfor

    var k0 = 0u;
    ${fetch()}
    loop {
        ${put()}
        #if not EARLY
        workgroupBarrier();
        #endif
        k0 += ${BK}u;
        if k0 < p.k {
            ${fetch()}
        }
        #if EARLY
        workgroupBarrier();
        #endif
        #for s in range(BK // 16)
        {
            #for i in range(MATRICES_M)
            ${matrix("left" ~ i, "A", A_MAJOR, s, i, "get_a", PITCH_A)}
            #endfor
            #for j in range(MATRICES_N)
            ${matrix("right" ~ j, "B", B_MAJOR, s, j, "get_b", PITCH_B)}
            #for i in range(MATRICES_M)
            ${cooperative.add("sum" ~ i ~ "_" ~ j, "left" ~ i, "right" ~ j)}
            #endfor
            #endfor
        }
        #endfor
        if k0 >= p.k { break; }
        workgroupBarrier();
    }

    workgroupBarrier();
    let result = subgroup * ${RESULT * (1 + GATED)}u;
    let row = subgroup_lane / 4u;
    let col = subgroup_lane % 4u;
    #for i in range(MATRICES_M)
    #for j in range(MATRICES_N // (1 + GATED))
    {
        ${cooperative.store("sum" ~ i ~ "_" ~ j, "memory", "result", 5)}
        #if GATED == 1
        ${cooperative.store("sum" ~ i ~ "_" ~ (j + MATRICES_N // 2), "memory", "result + " ~ RESULT ~ "u", 5)}
        #endif
        subgroupBarrier();
        for (var r = row; r < 16u; r += 8u) {
            let value = memory[result + r * 5u + col];
            #if GATED == 1
            let up = memory[result + ${RESULT}u + r * 5u + col];
            finish(m0 + sub_m + ${i * 16}u + r, (n0 + sub_n) / 2u + ${j * 16}u + col * 4u, batch, value, up);
            #else
            finish(m0 + sub_m + ${i * 16}u + r, n0 + sub_n + ${j * 16}u + col * 4u, batch, value, vec4<f32>());
            #endif
        }
        subgroupBarrier();
    }
    #endfor
    #endfor
}
