// out[z, m, n] = F(alpha * sum_k A[z, m, k] B[z, k, n] + bias[n]) + residual[z, m, n]; GATED: F(gate) * up, where
// B's rows are n gate rows, then n up rows.
//
// A, B, out, residual: rows of adjacent elements, `stride` apart, batches `batch` apart (0: the same for all).
// A_MAJOR "k": rows of A are its m, along k; "m": A is stored transposed, rows are its k. B_MAJOR "k": rows of
// B are its n (the weights of a linear layer); "n": rows are its k. Any element types; sums are f32.
//
// A workgroup computes a tile of BM x BN, walking along k in steps of BK: both tiles are brought into workgroup
// memory as f32, [k][m] and [k][n], so that an invocation multiplies columns by rows there. An invocation has
// TM x TN sums in registers, in blocks of 4 x 4 that lie BM / (TM / 4) and BN / (TN / 4) apart: neighbours then
// read neighbouring vectors of four (no bank conflicts) and write whole lines of `out`. In a gated product the
// two blocks of a row are gate and up of the same columns. Eight by four invocations of a subgroup share
// what they read. PREFETCH 1: the next step's elements are fetched into registers during the arithmetic.
//
// An operand along k is transposed on its way in, in blocks of 4 x 4 in registers, so that all accesses to
// workgroup memory are whole vectors; the exclusive or with a multiple of the block's place along k spreads
// these writes over the banks (the reads permute among themselves).
//
// EDGES "none": all sizes are multiples of the tile's. "outer": m and n are not: rows and columns are held
// within the matrix when they are read (what comes of the repeated ones is not written). "all": k
// neither: what lies past it counts as zero.
//
// After CUTLASS's SIMT GEMM (github.com/NVIDIA/cutlass, "efficient GEMM"). Dropped: padding the tiles' rows
// instead of the exclusive or (needs more than 16 KiB at 128 x 128 x 16).
#import "lib/tensor.wgsl" as t
#import "lib/activation.wgsl" as activation
#import "lib/product.wgsl" as product

#set WG = (BM // TM) * (BN // TN)
<# Invocations of a subgroup lie eight along n and four along m, where the tile has room. #>
#set ACROSS_N = BN // TN
#set ACROSS_M = BM // TM
#set LN = [8, ACROSS_N]|min
#set LM = [4, ACROSS_M]|min
#set BLOCKS_M = TM // 4
#set BLOCKS_N = TN // 4
<# Pieces that an operand's tile is fetched in: blocks of 4 x 4, or vectors of four where no transposing is needed. #>
#set PIECES_A = BM * BK // (16 if A_MAJOR == "k" else 4)
#set PIECES_B = BN * BK // (16 if B_MAJOR == "k" else 4)
<# Both tiles in one go, some invocations fetching A and others B, if that leaves no work for a second round. #>
#set TOGETHER = A_MAJOR == "k" and B_MAJOR == "k" and PIECES_A + PIECES_B <= WG
#set ROUNDS_A = (PIECES_A + WG - 1) // WG
#set ROUNDS_B = (PIECES_B + WG - 1) // WG

${ product.params(PARAMS) }
${ t.prelude() }
${ t.input(1, "a", A, A_VEC) }
${ t.input(2, "b", B, B_VEC) }
${ product.surroundings(OUT, OUT_VEC, BIAS, RESIDUAL) }
${ activation.functions(F) }

var<workgroup> tile_a: array<vec4<f32>, ${BK * BM // 4}>;
var<workgroup> tile_b: array<vec4<f32>, ${BK * BN // 4}>;

<# What of the vector's place along k goes into its column. #>
#macro swizzle(kq, width)
((${kq}) * ${[32 // BK, 1]|max}u) & ${[width // 4 - 1, 7]|min}u
#endmacro

<# Where a piece of an operand starts: sets `${name}_i` to element indices (four rows of a block, or one),
   `${name}_to` to its place in the tile and, along k, `${name}_k` to its first k within the step. #>
#macro locate(name, piece, operand, major, vec, width, first, size, base)
#if major == "k"
    ${name}_k = (${piece} % ${BK // 4}u) * 4u;
    let column = ${piece} / ${BK // 4}u;
    ${name}_to = ${name}_k * ${width // 4}u + (column ^ (${swizzle(name ~ "_k / 4u", width)}));
    #for i in range(4)
    {
        #if operand == "b" and GATED == 1
        let within = column * 4u + ${i}u;
        let row = ${held("(" ~ first ~ " / 2u) + within % " ~ (width // 2) ~ "u", size)} + (within / ${width // 2}u) * ${size};
        #else
        let row = ${held(first ~ " + column * 4u + " ~ i ~ "u", size)};
        #endif
        ${name}_i[${i}] = ${base} + row * p.${operand}_stride + ${name}_k;
    }
    #endfor
#else
    ${name}_k = ${piece} / ${width // 4}u;
    let column = ${piece} % ${width // 4}u;
    ${name}_to = ${name}_k * ${width // 4}u + (column ^ (${swizzle(name ~ "_k / 4u", width)}));
    #if EDGES == "none"
    let inner = ${first} + column * 4u;
    #elif vec == 4
    let inner = min(${first} + column * 4u, ${size} - 4u);
    #else
    let inner = min(${first} + column * 4u, ${size} - 1u);
    ${name}_n = min(${size} - inner, 4u);
    #endif
    ${name}_i = ${base} + ${name}_k * p.${operand}_stride + inner;
#endif
#endmacro

#macro held(index, size)
#if EDGES == "none"
${index}
#else
min(${index}, ${size} - 1u)
#endif
#endmacro

#macro declare(name, major, vec)
    var ${name}_k = 0u;
    var ${name}_to = 0u;
#if major == "k"
    var ${name}_i = vec4<u32>();
    #for i in range(4)
    var ${name}_${i} = vec4<f32>();
    #endfor
#else
    var ${name}_i = 0u;
    var ${name}_n = 4u;
    var ${name}_0 = vec4<f32>();
#endif
#endmacro

<# Brings the piece's elements of the step from k0 on into registers. #>
#macro fetch(name, operand, major, vec)
#if major == "k"
    #if EDGES == "all"
    let n = min(max(p.k, k0 + ${name}_k) - (k0 + ${name}_k), 4u);
    #endif
    #for i in range(4)
    #if EDGES == "all"
    ${name}_${i} = load_some_${operand}(${name}_i[${i}] + k0, n);
    #elif vec == 4
    ${name}_${i} = load4_${operand}(${name}_i[${i}] + k0);
    #else
    ${name}_${i} = load_some_${operand}(${name}_i[${i}] + k0, 4u);
    #endif
    #endfor
#else
    #if EDGES == "all"
    ${name}_0 = load_some_${operand}(${name}_i + k0 * p.${operand}_stride, select(0u, ${name}_n, k0 + ${name}_k < p.k));
    #elif vec == 4
    ${name}_0 = load4_${operand}(${name}_i + k0 * p.${operand}_stride);
    #else
    ${name}_0 = load_some_${operand}(${name}_i + k0 * p.${operand}_stride, ${name}_n);
    #endif
#endif
#endmacro

<# Writes them to the tile. #>
#macro put(name, operand, major, width)
#if major == "k"
    #for j in range(4)
    tile_${operand}[${name}_to + ${j * (width // 4)}u] = vec4<f32>(${name}_0[${j}], ${name}_1[${j}], ${name}_2[${j}], ${name}_3[${j}]);
    #endfor
#else
    tile_${operand}[${name}_to] = ${name}_0;
#endif
#endmacro

<# Statements for every piece of an invocation; `what` is "locate", "fetch" or "put". #>
#macro pieces(what)
#if TOGETHER
    if lane < ${PIECES_A}u {
        ${step(what, "f", "lane", "a")}
    } else if lane < ${PIECES_A + PIECES_B}u {
        ${step(what, "f", "(lane - " ~ PIECES_A ~ "u)", "b")}
    }
#else
    #for r in range(ROUNDS_A)
    #if (r + 1) * WG <= PIECES_A
    {
    #else
    if lane < ${PIECES_A - r * WG}u {
    #endif
        ${step(what, "fa" ~ r, "(lane + " ~ r * WG ~ "u)", "a")}
    }
    #endfor
    #for r in range(ROUNDS_B)
    #if (r + 1) * WG <= PIECES_B
    {
    #else
    if lane < ${PIECES_B - r * WG}u {
    #endif
        ${step(what, "fb" ~ r, "(lane + " ~ r * WG ~ "u)", "b")}
    }
    #endfor
#endif
#endmacro

#macro step(what, name, piece, operand)
#if operand == "a"
${one(what, name, piece, "a", A_MAJOR, A_VEC, BM, "m0", "p.m", "a_base")}
#else
${one(what, name, piece, "b", B_MAJOR, B_VEC, BN, "n0", "p.n", "b_base")}
#endif
#endmacro

#macro one(what, name, piece, operand, major, vec, width, first, size, base)
#if what == "locate"
${locate(name, piece, operand, major, vec, width, first, size, base)}
#elif what == "fetch"
${fetch(name, operand, major, vec)}
#else
${put(name, operand, major, width)}
#endif
#endmacro

${ product.finish(EDGES, GATED, BIAS, RESIDUAL) }
@compute @workgroup_size(${WG})
fn main(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) grid: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    ${ product.tile(GROUP, BM, BN) }
    let a_base = p.a_offset + batch * p.a_batch;
    let b_base = p.b_offset + batch * p.b_batch;

    let in_block = lane % ${LN * LM}u;
    let block = lane / ${LN * LM}u;
    let tn = (block % ${ACROSS_N // LN}u) * ${LN}u + in_block % ${LN}u;
    let tm = (block / ${ACROSS_N // LN}u) * ${LM}u + in_block / ${LN}u;

    #if TOGETHER
    ${declare("f", "k", 4)}
    #else
    #for r in range(ROUNDS_A)
    ${declare("fa" ~ r, A_MAJOR, A_VEC)}
    #endfor
    #for r in range(ROUNDS_B)
    ${declare("fb" ~ r, B_MAJOR, B_VEC)}
    #endfor
    #endif
    ${pieces("locate")}

    #for i in range(TM)
    #for s in range(BLOCKS_N)
    var sum_${i}_${s} = vec4<f32>();
    #endfor
    #endfor

    var k0 = 0u;
    #if PREFETCH == 1
    ${pieces("fetch")}
    #endif
    loop {
        #if PREFETCH == 0
        ${pieces("fetch")}
        #endif
        ${pieces("put")}
        workgroupBarrier();
        k0 += ${BK}u;
        #if PREFETCH == 1
        if k0 < p.k {
            ${pieces("fetch")}
        }
        #endif
        for (var kq = 0u; kq < ${BK // 4}u; kq += 1u) {
            let swizzle_a = ${swizzle("kq", BM)};
            let swizzle_b = ${swizzle("kq", BN)};
            #for s in range(BLOCKS_M)
            let at_a${s} = kq * ${BM}u + ((tm + ${s * ACROSS_M}u) ^ swizzle_a);
            #endfor
            #for s in range(BLOCKS_N)
            let at_b${s} = kq * ${BN}u + ((tn + ${s * ACROSS_N}u) ^ swizzle_b);
            #endfor
            #for k in range(4)
            {
                #for s in range(BLOCKS_M)
                let a${s} = tile_a[at_a${s} + ${k * (BM // 4)}u];
                #endfor
                #for s in range(BLOCKS_N)
                let b${s} = tile_b[at_b${s} + ${k * (BN // 4)}u];
                #endfor
                #for i in range(TM)
                #for s in range(BLOCKS_N)
                sum_${i}_${s} = fma(vec4<f32>(a${i // 4}[${i % 4}]), b${s}, sum_${i}_${s});
                #endfor
                #endfor
            }
            #endfor
        }
        if k0 >= p.k { break; }
        workgroupBarrier();
    }

    #for i in range(TM)
    {
        let row = m0 + tm * 4u + ${(i // 4) * ACROSS_M * 4 + i % 4}u;
        #if GATED == 1
        finish(row, n0 / 2u + tn * 4u, batch, sum_${i}_0, sum_${i}_1);
        #else
        #for s in range(BLOCKS_N)
        finish(row, n0 + (tn + ${s * ACROSS_N}u) * 4u, batch, sum_${i}_${s}, vec4<f32>());
        #endfor
        #endif
    }
    #endfor
}
