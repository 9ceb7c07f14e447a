// The products of lib/quantized.wgsl by matrix units: codes of int8 by int8 into i32, exact; anything else (f16, int8, FP8 on
// either side) converted to f16 on the way into the tile, exactly, and summed in f32.
//
// A is [m, k], B [n, k]: rows of adjacent codes, `stride` apart, all multiples of 16 bytes. out, residual: rows of adjacent
// elements. APART: the columns of A that are outliers come as f16 and are added: a_apart[m, o] b_apart[n, o], rows
// `outlier_stride` apart, as many of them as a whole tile, columns from `outliers[0]` on to the next multiple of 64 zero. They are
// more steps of the same loop, BK / 2 columns each, after the sums of integers have become scaled f32 in their registers: which
// invocation has which element is as in lib/fragments.wgsl.
//
// A workgroup computes a tile of BM x BN, walking along k in steps of BK; a subgroup of 32 has SM x SN sums in registers.
// Both tiles are in workgroup memory, rows padded by 16 bytes against bank conflicts; the next step's codes are fetched
// into registers during the arithmetic: gemm/cooperative.wgsl, which see for what was tried. An invocation's 16 codes become
// two vectors of eight f16, that lie half a row apart: the order along k does not matter where both operands agree.
//
// E4M3 becomes f16 by moving its bits, which divides by 2^8: FACTOR makes up for it, so that subnormals are right and nothing
// is multiplied here. EDGES as there: "none", "outer", "all".
//
// TOP/s at 8192^3 (and 4096x512x14336), f16 out, on an H100 (driver 580.159, 2026-11-25; benches/record/nvidia-h100); f16 by f16
// has 339 (299) and its matrix units 650:
//   int8 by int8, 128x160x64, 4 subgroups of 64x80          629 (412)
//   160x128x64, 4 of 80x64; 128x128x64, 4 of 64x64          605 (395); 591 (431)
//   192x128x128, 8 of 48x64; 128x128x128, 4 of 64x64        584 (435); 543 (550)
//   64x64x128, 4 of 32x32                                   378 (364)
//   f16 by E4M3, 128x128x32; 192x128x64                     269; 267
// Tried and dropped, int8: 128x256x64 512 to 532 (277); 192x192x64 520 to 562; 160x160x64 286 (spills); 32x64 or 64x32 a
// subgroup 516 (420); padding of 0 or 32 bytes 303, 426; fetch after the barrier at 128x128x64 596 (324); tiles walked 4, 8 or
// 16 rows together: within 1%; int8 converted to f16: 273 to 304. E4M3 by E4M3 has 237 to 243, in natural
// order too.
//
// LLM.int8() with 0.5% of columns apart, 8192^3, us, beside quantised int8 alone. Outliers' matrices straight from memory after the
// loop, a sum at a time, four steps under way together: 2590 to 1872 (H200; 2572 to 1957 on an H100), 2013 without these loads
// and products; all of a row of tiles together 2743. As steps of the loop, on an H100 (2026-11-26): sums changed on their
// way through workgroup memory, scales loaded for each: 2399 to 1856; in registers: 2244 to 1842, 2107 without the steps.
#if COOP == "units"
enable wgpu_cooperative_matrix;
enable f16;
#endif
#import "lib/tensor.wgsl" as t
#import "lib/activation.wgsl" as activation
#import "lib/code8.wgsl" as code8
#import "lib/matrices.wgsl" as matrices
#import "lib/product.wgsl" as product
#import "lib/quantized.wgsl" as quantized

#set SUBGROUPS = (BM // SM) * (BN // SN)
#set WG = SUBGROUPS * 32
#set KIND = "i8" if SUMS == "i32" else "f16"
<# Vectors of a tile's row, and of the same in memory. #>
#set COLS = BK // (16 if KIND == "i8" else 8)
#set COLS_A = BK // (8 if A == "f16" else 16)
#set COLS_B = BK // (8 if B == "f16" else 16)
#set PITCH = COLS + 1
#set SIZE_A = BM * PITCH
#set RESULT = 16 * 5
#set RESULTS = SUBGROUPS * RESULT
#set EARLY = COLS < 8
#set OPERANDS = [("a", A, COLS_A, BM * COLS_A // WG, "m"), ("b", B, COLS_B, BN * COLS_B // WG, "n")]

${ quantized.params(PARAMS) }
${ t.prelude() }
${ t.words(1, "a", "vec4<u32>") }
${ t.words(2, "b", "vec4<u32>") }
${ quantized.surroundings(OUT, OUT_VEC, BIAS, RESIDUAL, A_SCALES, B_SCALES, ZEROS) }
#if APART == 1
${ t.words(10, "outliers", "u32") }
${ t.words(11, "a_apart", "vec4<u32>") }
${ t.words(12, "b_apart", "vec4<u32>") }
#endif
${ activation.functions(F) }
#if APART == 1
${ quantized.finish("f32", EDGES, OUT, BIAS, RESIDUAL, "none", B_SCALES, ZEROS, 0, FACTOR) }
#else
${ quantized.finish(SUMS, EDGES, OUT, BIAS, RESIDUAL, A_SCALES, B_SCALES, ZEROS, 0, FACTOR) }
#endif
#if KIND == "f16"
#set ORDER = "natural" if A == "f16" or B == "f16" else "paired"
${ code8.halves(COOP, "a", A, ORDER) }
${ code8.halves(COOP, "b", B, ORDER) }
#endif

var<workgroup> memory: array<vec4<f32>, ${[SIZE_A + BN * PITCH, RESULTS]|max}>;
${ matrices.functions(COOP, KIND, "memory", "memory") }
#if APART == 1
${ matrices.functions(COOP, "f16", "memory", "memory") }
${ matrices.scaling(COOP) }
#endif

#macro held(index, last)
#if EDGES == "none"
${index}
#else
min(${index}, ${last})
#endif
#endmacro

<# The row of an invocation's first piece; where rows are of two or four vectors, those that eight invocations put together
   lie four apart, or they would share banks. #>
#macro first_row(cols)
#if cols == 4
(lane / 32u) * 8u + (lane % 32u) / 8u + (lane / 4u) % 2u * 4u
#elif cols == 2
(lane / 32u) * 16u + (lane % 32u) / 8u + (lane / 2u) % 4u * 4u
#else
lane / ${cols}u
#endif
#endmacro

#macro fetch()
#for (x, type, cols, pieces, size) in OPERANDS
{
    let vector = ${held("k0 / " ~ (8 if type == "f16" else 16) ~ "u + " ~ x ~ "_col", "p.k / " ~ (8 if type == "f16" else 16) ~ "u - 1u")};
    #for i in range(pieces)
    ${x}${i} = ${x}[${x}_base + (${held(size ~ "0 + " ~ x ~ "_row + " ~ (i * (WG // cols)) ~ "u", "p." ~ size ~ " - 1u")}) * ${x}_stride + vector];
    #endfor
}
#endfor
#endmacro

<# A piece, zero if it lies past k. #>
#macro kept(x, type, i)
#if EDGES == "all"
select(vec4<u32>(), ${x}${i}, k0 + ${x}_col * ${8 if type == "f16" else 16}u < p.k)
#else
${x}${i}
#endif
#endmacro

#macro put()
#for (x, type, cols, pieces, size) in OPERANDS
#for i in range(pieces)
{
    let codes = ${kept(x, type, i)};
    let at = put_${x} + ${i * (WG // cols) * PITCH}u;
    #if KIND == "i8" or type == "f16"
    memory[at] = bitcast<vec4<f32>>(codes);
    #else
    memory[at] = bitcast<vec4<f32>>(halves_${x}(codes.xy));
    memory[at + ${cols}u] = bitcast<vec4<f32>>(halves_${x}(codes.zw));
    #endif
}
#endfor
#endfor
#endmacro

#macro multiply(kind, sum)
#for s in range(COLS // 2)
{
    #for i in range(SM // 16)
    ${ matrices.load(COOP, kind, "left" ~ i, "A", "memory", "get_a + " ~ (i * 16 * PITCH + s * 2) ~ "u", PITCH ~ "u") }
    #endfor
    #for j in range(SN // 16)
    ${ matrices.load(COOP, kind, "right" ~ j, "B", "memory", "get_b + " ~ (j * 16 * PITCH + s * 2) ~ "u", PITCH ~ "u") }
    #for i in range(SM // 16)
    ${ matrices.add(COOP, kind, sum ~ i ~ "_" ~ j, "left" ~ i, "right" ~ j, "memory", "memory") }
    #endfor
    #endfor
}
#endfor
#endmacro

<# Steps of outliers: the tiles' shape is that of codes. #>
#macro fetch_apart()
#for (x, type, cols, pieces, size) in OPERANDS
#for i in range(pieces)
${x}${i} = ${x}_apart[(${size}0 + ${x}_row + ${i * (WG // cols)}u) * p.outlier_stride + o + ${x}_col];
#endfor
#endfor
#endmacro

#macro put_apart()
#for (x, type, cols, pieces, size) in OPERANDS
#for i in range(pieces)
memory[put_${x} + ${i * (WG // cols) * PITCH}u] = bitcast<vec4<f32>>(${x}${i});
#endfor
#endfor
#endmacro

@compute @workgroup_size(${WG})
fn main(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) grid: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
    ${ matrices.arguments(COOP) }
) {
    ${ matrices.begin(COOP) }
    ${ product.tile(GROUP, BM, BN) }
    #for (x, type, cols, pieces, size) in OPERANDS
    let ${x}_base = p.${x}_offset / ${8 if type == "f16" else 16}u;
    let ${x}_stride = p.${x}_stride / ${8 if type == "f16" else 16}u;
    let ${x}_row = ${first_row(cols)};
    let ${x}_col = lane % ${cols}u;
    #if KIND == "f16" and type == "f16" and (A != "f16" or B != "f16")
    // As codes of eight bits have it: even vectors, then odd ones.
    let put_${x} = ${SIZE_A if x == "b" else 0}u + ${x}_row * ${PITCH}u + ${x}_col / 2u + ${x}_col % 2u * ${COLS // 2}u;
    #else
    let put_${x} = ${SIZE_A if x == "b" else 0}u + ${x}_row * ${PITCH}u + ${x}_col;
    #endif
    #for i in range(pieces)
    var ${x}${i}: vec4<u32>;
    #endfor
    #endfor
    let sub_m = (subgroup / ${BN // SN}u) * ${SM}u;
    let sub_n = (subgroup % ${BN // SN}u) * ${SN}u;
    let get_a = sub_m * ${PITCH}u;
    let get_b = ${SIZE_A}u + sub_n * ${PITCH}u;
    #for i in range(SM // 16)
    #for j in range(SN // 16)
    ${ matrices.sum(COOP, KIND, "sum" ~ i ~ "_" ~ j) }
    #if APART == 1
    ${ matrices.sum(COOP, "f16", "apart" ~ i ~ "_" ~ j) }
    #endif
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
        ${multiply(KIND, "sum")}
        if k0 >= p.k { break; }
        workgroupBarrier();
    }

    #if APART == 1
    // Their first step is fetched during the change of sums.
    var o = 0u;
    ${fetch_apart()}
    #endif
    workgroupBarrier();
    let row = subgroup_lane / 4u;
    let col = subgroup_lane % 4u;
    #if APART == 1
    #for i in range(SM // 16)
    #for h in range(2)
    #if A_SCALES == "rows"
    let scale${i}_${h} = scale_a(${held("m0 + sub_m + " ~ (i * 16) ~ "u + " ~ matrices.row(COOP, h), "p.m - 1u")}, 0u);
    #else
    let scale${i}_${h} = 1.0;
    #endif
    #endfor
    #for j in range(SN // 16)
    ${ matrices.scale(COOP, "apart" ~ i ~ "_" ~ j, "sum" ~ i ~ "_" ~ j, "scale" ~ i ~ "_") }
    #endfor
    #endfor
    let vectors = min((outliers[0] + 63u) / 64u * 8u, p.outlier_stride);
    while o < vectors {
        workgroupBarrier();
        ${put_apart()}
        workgroupBarrier();
        o += ${COLS}u;
        if o < vectors {
            ${fetch_apart()}
        }
        ${multiply("f16", "apart")}
    }
    workgroupBarrier();
    #endif
    #set (SUM, SUM_KIND, SUM_TYPE) = ("apart", "f16", "f32") if APART == 1 else ("sum", KIND, SUMS)
    let result = subgroup * ${RESULT}u;
    #for i in range(SM // 16)
    #for j in range(SN // 16)
    ${ matrices.store(COOP, SUM_KIND, SUM ~ i ~ "_" ~ j, "memory", "result", 5) }
    ${ matrices.barrier(COOP) }
    for (var r = row; r < 16u; r += 8u) {
        let value = bitcast<vec4<${SUM_TYPE}>>(memory[result + r * 5u + col]);
        finish(m0 + sub_m + ${i * 16}u + r, n0 + sub_n + ${j * 16}u + col * 4u, value, vec4<f32>());
    }
    ${ matrices.barrier(COOP) }
    #endfor
    #endfor
}
