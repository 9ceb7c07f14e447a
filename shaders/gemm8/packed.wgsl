// The products of lib/quantized.wgsl within WebGPU's limits: int8 by int8 by packed products of four into i32, exact; anything
// else (f16, int8, FP8 on either side) as f32, in sums of f32.
//
// A is [m, k], B [n, k]: rows of adjacent elements from any one on, `stride` apart. VEC 16: rows, offsets and strides are
// multiples of 16 elements; 4: of four; 1: anything. GROUPS: scales change every `group` steps along k, a multiple of BK:
// sums of a group are scaled and added up in f32. APART: columns of A that are outliers come as f16 and are added:
// a_apart[m, o] b_apart[n, o] for o below `outliers[0]`, rows `outlier_stride` vectors of eight apart.
//
// A workgroup computes a tile of BM x BN, walking along k in steps of BK. Operands are brought into workgroup memory as units
// of four elements along k, [k / 4][row], transposed 4 x 4 in registers, so that an invocation multiplies columns by rows
// there. It has TM x TN sums, in blocks of 4 x 4, after gemm/gemm.wgsl. A unit is a word, of f16 two words, in two tiles.
//
// EDGES "none": all sizes are multiples of the tile's; "all": rows are held within the matrix when they are read, and what lies
// past k counts as zero.
#import "lib/tensor.wgsl" as t
#import "lib/activation.wgsl" as activation
#import "lib/code8.wgsl" as code8
#import "lib/product.wgsl" as product
#import "lib/quantized.wgsl" as quantized

#set WG = (BM // TM) * (BN // TN)
#set LN = [8, BN // TN]|min
#set LM = [4, BM // TM]|min
<# A piece: four rows of four units. #>
#set QUADS = BK // 16
#set OPERANDS = [("a", A, BM, "m"), ("b", B, BN, "n")]

${ quantized.params(PARAMS) }
${ t.prelude() }
#for (x, type, width, size) in OPERANDS
${ t.words(1 if x == "a" else 2, x, "vec4<u32>" if VEC == 16 else "u32") }
#endfor
${ quantized.surroundings(OUT, OUT_VEC, BIAS, RESIDUAL, A_SCALES, B_SCALES, ZEROS) }
#if APART == 1
${ t.words(10, "outliers", "u32") }
${ t.words(11, "a_apart", "vec4<u32>") }
${ t.words(12, "b_apart", "vec4<u32>") }
#endif
${ activation.functions(F) }
${ quantized.finish("f32" if GROUPS else SUMS, EDGES, OUT, BIAS, RESIDUAL, A_SCALES, B_SCALES, ZEROS, APART, FACTOR) }
#for (x, type, width, size) in OPERANDS
#if type != "f16" and SUMS == "f32"
${ code8.floats(x, type) }
#endif
var<workgroup> tile_${x}: array<vec4<u32>, ${BK * width // 16}>;
#if type == "f16"
var<workgroup> upper_${x}: array<vec4<u32>, ${BK * width // 16}>;
#endif

#if VEC != 16
// Word i of those that begin with element `first`, whatever is before it in its own word.
fn word_${x}(first: u32, i: u32) -> u32 {
    #set PER = 2 if type == "f16" else 4
    #if VEC == 4
    return ${x}[first / ${PER}u + i];
    #else
    let at = first / ${PER}u + i;
    let shift = first % ${PER}u * ${32 // PER}u;
    let last = arrayLength(&${x}) - 1u;
    // A shift by 32 is one by none.
    return select((${x}[min(at, last)] >> shift) | (${x}[min(at + 1u, last)] << (32u - shift)), ${x}[min(at, last)], shift == 0u);
    #endif
}
#endif
// Four units of 16 elements, those at `k` and beyond zero; upper halves of units of f16 are the second four words.
fn fetch_${x}(first: u32, k: u32) -> array<vec4<u32>, ${2 if type == "f16" else 1}> {
    #set HALVES = 2 if type == "f16" else 1
    #if VEC == 16
    #if EDGES == "all"
    if k == 0u { return array<vec4<u32>, ${HALVES}>(); }
    #endif
    #for h in range(HALVES)
    let v${h} = ${x}[first / ${16 // HALVES}u + ${h}u];
    #endfor
    #if HALVES == 2
    return array<vec4<u32>, 2>(vec4<u32>(v0.xz, v1.xz), vec4<u32>(v0.yw, v1.yw));
    #else
    return array<vec4<u32>, 1>(v0);
    #endif
    #else
    var found: array<vec4<u32>, ${HALVES}>;
    #for u in range(4)
    #for h in range(HALVES)
    #set START = 4 * u + 2 * h
    #set COUNT = 4 // HALVES
    #if EDGES == "all"
    if k > ${START}u {
        let word = word_${x}(first, ${u * HALVES + h}u);
        let kept = min(k - ${START}u, ${COUNT}u) * ${32 // COUNT}u;
        found[${h}][${u}] = word & (0xffffffffu >> (32u - kept));
    }
    #else
    found[${h}][${u}] = word_${x}(first, ${u * HALVES + h}u);
    #endif
    #endfor
    #endfor
    return found;
    #endif
}
#endfor

#macro held(index, size)
#if EDGES == "none"
${index}
#else
min(${index}, ${size} - 1u)
#endif
#endmacro

<# Where a unit's vector of rows lies: spread over the banks by its quad. #>
#macro place(quad, unit, block, width)
(${quad} * 4u + ${unit}) * ${width // 4}u + ((${block}) ^ ((${quad} * 2u) & ${[width // 4 - 1, 7]|min}u))
#endmacro

<# Four units of a block of four rows, as vectors of elements (f32), or as they are. #>
#macro unit(to, x, type, at)
#if SUMS == "i32"
let ${to} = tile_${x}[${at}];
#else
#for i in range(4)
#if type == "f16"
let ${to}_${i} = vec4<f32>(unpack2x16float(tile_${x}[${at}][${i}]), unpack2x16float(upper_${x}[${at}][${i}]));
#else
let ${to}_${i} = floats_${x}(tile_${x}[${at}][${i}]);
#endif
#endfor
#endif
#endmacro

@compute @workgroup_size(${WG})
fn main(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) grid: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    ${ product.tile(GROUP, BM, BN) }
    let in_n = lane % ${LN}u + (lane / ${LN * LM}u) % ${BN // TN // LN}u * ${LN}u;
    let in_m = (lane / ${LN}u) % ${LM}u + lane / ${LM * (BN // TN)}u * ${LM}u;
    #for i in range(TM // 4)
    #for r in range(4)
    #for j in range(TN // 4)
    var sum${i * 4 + r}_${j} = vec4<${SUMS}>();
    #if GROUPS
    var total${i * 4 + r}_${j} = vec4<f32>();
    #endif
    #endfor
    #endfor
    #endfor
    for (var k0 = 0u; k0 < p.k; k0 += ${BK}u) {
        workgroupBarrier();
        #for (x, type, width, size) in OPERANDS
        for (var piece = lane; piece < ${width // 4 * QUADS}u; piece += ${WG}u) {
            let quad = piece % ${QUADS}u;
            let block = piece / ${QUADS}u;
            let k = k0 + quad * 16u;
            #for r in range(4)
            let row${r} = ${held(size ~ "0 + block * 4u + " ~ r ~ "u", "p." ~ size)};
            let v${r} = fetch_${x}(p.${x}_offset + row${r} * p.${x}_stride + k, max(p.k, k) - k);
            #endfor
            #for u in range(4)
            {
                let at = ${place("quad", u ~ "u", "block", width)};
                tile_${x}[at] = vec4<u32>(v0[0][${u}], v1[0][${u}], v2[0][${u}], v3[0][${u}]);
                #if type == "f16"
                upper_${x}[at] = vec4<u32>(v0[1][${u}], v1[1][${u}], v2[1][${u}], v3[1][${u}]);
                #endif
            }
            #endfor
        }
        #endfor
        workgroupBarrier();
        for (var quad = 0u; quad < ${QUADS}u; quad += 1u) {
            for (var u = 0u; u < 4u; u += 1u) {
                #for j in range(TN // 4)
                let at_b${j} = ${place("quad", "u", "in_n + " ~ (j * (BN // TN)) ~ "u", BN)};
                ${unit("b" ~ j, "b", B, "at_b" ~ j)}
                #endfor
                #for i in range(TM // 4)
                {
                    let at_a = ${place("quad", "u", "in_m + " ~ (i * (BM // TM)) ~ "u", BM)};
                    ${unit("a", "a", A, "at_a")}
                    #for r in range(4)
                    #for j in range(TN // 4)
                    sum${i * 4 + r}_${j} += vec4<${SUMS}>(
                        #for c in range(4)
                        #if SUMS == "i32"
                        dot4I8Packed(a[${r}], b${j}[${c}]),
                        #else
                        dot(a_${r}, b${j}_${c}),
                        #endif
                        #endfor
                    );
                    #endfor
                    #endfor
                }
                #endfor
            }
        }
        #if GROUPS
        if (k0 + ${BK}u) % p.group == 0u || k0 + ${BK}u >= p.k {
            let group = k0 / p.group;
            #for j in range(TN // 4)
            let col${j} = n0 + ${j * (BN // TN) * 4}u + in_n * 4u;
            let by${j} = vec4<f32>(
                #for c in range(4)
                #if B_SCALES == "groups"
                scale_b(${held("col" ~ j ~ " + " ~ c ~ "u", "p.n")}, group),
                #else
                1.0,
                #endif
                #endfor
            );
            #endfor
            #for i in range(TM // 4)
            #for r in range(4)
            {
                #if A_SCALES == "groups"
                let scale = scale_a(${held("m0 + " ~ (i * (BM // TM) * 4 + r) ~ "u + in_m * 4u", "p.m")}, group);
                #else
                let scale = 1.0;
                #endif
                #for j in range(TN // 4)
                total${i * 4 + r}_${j} += vec4<f32>(sum${i * 4 + r}_${j}) * (scale * by${j});
                sum${i * 4 + r}_${j} = vec4<${SUMS}>();
                #endfor
            }
            #endfor
            #endfor
        }
        #endif
    }
    #for i in range(TM // 4)
    #for r in range(4)
    {
        let row = m0 + ${i * (BM // TM) * 4 + r}u + in_m * 4u;
        #for j in range(TN // 4)
        {
            let col = n0 + ${j * (BN // TN) * 4}u + in_n * 4u;
            #if APART == 1
            let apart = apart_of(${held("row", "p.m")}, col);
            #else
            let apart = vec4<f32>();
            #endif
            finish(row, col, ${"total" if GROUPS else "sum"}${i * 4 + r}_${j}, apart);
        }
        #endfor
    }
    #endfor
    #endfor
}
#if APART == 1

fn apart_of(row: u32, col: u32) -> vec4<f32> {
    var sum = vec4<f32>();
    let vectors = min((outliers[0] + 7u) / 8u, p.outlier_stride);
    for (var v = 0u; v < vectors; v += 1u) {
        let x = a_apart[row * p.outlier_stride + v];
        for (var c = 0u; c < 4u; c += 1u) {
            let y = b_apart[${held("(col + c)", "p.n")} * p.outlier_stride + v];
            for (var w = 0u; w < 4u; w += 1u) { sum[c] += dot(unpack2x16float(x[w]), unpack2x16float(y[w])); }
        }
    }
    return sum;
}
#endif
