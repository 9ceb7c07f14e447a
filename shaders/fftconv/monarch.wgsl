// Causal long convolution in f16 on matrix units: y = w * conv(u * v, k), with k's spectrum planned ahead (monarch_spectrum.wgsl).
//
// u, v (GATE_IN), w (GATE_OUT), y: [batch, channels, length] f16, elements adjacent along time, everything at multiples of eight.
// Right-angle convolution of N = FOLD * 256 R points, as fused.wgsl has it. spectrum, scales: monarch_spectrum.wgsl; table: matrices and
// factors, monarch/tables.rs, which says what digits a point and a frequency have. TRANSPOSE 1 correlates instead.
//
// Each digit's transform is a product with a matrix of 16 rows (a Monarch decomposition of order 3: Fu, Kumbong, Nguyen and Ré,
// FlashFFTConv, arXiv 2311.05908). A workgroup has R / 4 subgroups, each with four tiles of 16 x 16 points in registers
// (lib/fragments.wgsl). An accumulator is the next product's operand as it lies, so that two digits and the filter between need
// no exchange: points cross workgroup memory twice, in vectors of 16 bytes, free of bank conflicts by an XOR.
//   forward  u's rows of 16 n1, real, times S; exchange; S times (n2 x n3); times D (n3); the filter
//   inverse  D' times the transpose, (n3 x k2); times S'; exchange; the real part of S' (n1)
// A tile's third digit has R values for each of 16 / R values of k1: D is S, or for R below 16 made of blocks.
//
// With FOLD > 1 a workgroup computes the frequencies k with k % FOLD = kappa: its first digit has 16 FOLD real rows, and its result is
// a part of y, left to monarch_combine.wgsl as complex numbers of f16. Workgroups of a sequence are neighbours, so that u comes
// from memory once. KEPT of every FOLD (or of every four frequencies if FOLD is 1) are computed: the filter is zero at others. If one of
// FOLD is, its workgroup has the whole result and turns it to all the parts of y. MEET 1, without gates: a workgroup computes all
// kappas, one after the other, and adds their parts up in workgroup memory, in f16 as they would be left; u comes from a cache then.
//
// Scaling: u and v are scaled by powers of two to magnitudes below 16, which bounds the norm of all N products by
// 2^8 sqrt(256 R); the transforms keep norms and the filter's spectrum is at most 1, so nothing overflows f16. The scales come
// back at the end, in f32. With FOLD > 2 subgroups find them as they read on, and scale what they had.
//
// Tried on an H100 (2026-11-25; gated, batch 64, 768 channels; benches/record): 1024 points 0.23 ms, 4096 0.86, 8192 3.0, 16384 7.1, 32768
// 18.5 (fused.wgsl and the three passes: 0.29, 1.67, 3.96, -, 26.7). 4096 points with factors multiplied in f32 0.93, error 6.7e-4 in place of
// 8.1e-4; factors read every round 0.88 (1024: 0.28); the filter held as well 0.96 (1024: 0.23); no scaling 0.97 of the
// time; u and v of the next round read ahead 0.94; w read late 0.86. Not bound by memory: with every row the same it takes as long. 1690 instructions
// a row and subgroup are 43% of what could be issued: 168 registers and 16 KiB leave three workgroups a processor.
//
// Tried on an H100 (2026-11-26; batch 64, 768 channels): 8192 points read in two halves one after the other, gated 2990 us, at once 2781; one part
// of two 2057 and 1559. Parts that meet in the workgroup: ungated 2194 (in memory 2623), gated 4443 (2781): twice one part's time would be
// 1518 and 3118, as registers then leave two workgroups a processor. Four parts of 16384 points that meet, gated 13.7 ms in place
// of 7.1. Sparse 4096 points as one part of four of 1024: 773 us, as one tile of four 701, which is 75% of what can be read.
#import "lib/tensor.wgsl" as t
#import "lib/fragments.wgsl" as fragments
#set SUBGROUPS = R // 4
#set ROW = 16 * R
#set INNER = 256 * R
#set HALF = R // 2
#set FOLDED = FOLD > 1
#set PARTS = FOLDED and KEPT > 1 and not MEET
#set TOGETHER = FOLD == 2
#set HALVES = ["a", "b"] if TOGETHER else [""]
#set BETWEEN = 32 * 6
#set FACTORS = 32 * 10
#set FIRST = FACTORS + FOLD * SUBGROUPS * 256
#set OWN = ["sr", "si", "sn"] + (["dr", "di", "dn"] if R < 16 else [])
#set D = "d" if R < 16 else "s"
#set TILES = [4, KEPT] | min if not FOLDED else 4
enable f16;
#if COOP == "elements"
enable wgpu_cooperative_matrix;
#endif

struct Params {
    u_offset: u32,
    u_batch: u32,
    u_channel: u32,
    v_offset: u32,
    v_batch: u32,
    v_channel: u32,
    w_offset: u32,
    w_batch: u32,
    w_channel: u32,
    y_offset: u32,
    y_batch: u32,
    y_channel: u32,
    length: u32,
    batch: u32,
    rounds: u32,
    groups: u32,
    workgroups: u32,
    first_channel: u32,
    first_row: u32,
}
${ t.params(PARAMS) }
${ t.words(1, "u", "vec4<u32>") }
#if GATE_IN
${ t.words(2, "v", "vec4<u32>") }
#endif
#if GATE_OUT and not PARTS
${ t.words(3, "w", "vec4<u32>") }
#endif
${ t.words(4, "spectrum", "vec4<u32>") }
${ t.words(5, "table", "vec4<u32>") }
${ t.words(6, "scales", "f32") }
${ t.words(7, "y", "vec4<u32>", "read_write") }
#if PARTS
${ t.words(8, "part_scales", "f32", "read_write") }
#endif
${ fragments.functions(COOP, "p.rounds", true) }
var<workgroup> exchange: array<vec4<u32>, ${64 * R}>;
#if MEET
// Of every invocation its own: sums of parts of y.
var<workgroup> sums: array<vec4<u32>, ${32 * R * FOLD}>;
#endif

fn low(a: u32, b: u32) -> u32 { return (a & 0xffffu) | (b << 16u); }
fn high(a: u32, b: u32) -> u32 { return (a >> 16u) | (b & 0xffff0000u); }
fn pair(a: f32, b: f32) -> vec2<f16> { return vec2<f16>(vec2<f32>(a, b)); }
fn power(exponent: u32) -> f32 { return bitcast<f32>(exponent << 23u); }

// Where two n2 (pair), n2 and n2 + 2, and two neighbouring n3 stand in the first exchange.
fn first_place(k1: u32, pair: u32, n3: u32) -> u32 {
    let i = (pair * 16u + k1) * ${HALF}u + n3;
    #if R == 16
    return i ^ ((pair & 7u) ^ (k1 & 2u));
    #elif R == 8
    return i ^ ((pair & 7u) ^ ((k1 << 1u) & 4u));
    #else
    return i ^ ((pair & 6u) ^ ((k1 >> 1u) & 1u));
    #endif
}
// Where two k1, k1 and k1 + 2, and two neighbouring n3 stand in the second.
fn second_place(pair: u32, n2: u32, n3: u32) -> u32 {
    return (pair * ${16 * HALF}u + n2 * ${HALF}u + n3) ^ (((n2 >> 1u) & 6u) ^ (pair & 6u));
}

<# An accumulator: the sum of products. #>
#macro products(to, terms)
var ${to}: Accumulator;
#for a, b in terms
${to} = multiply_add(${a}, ${b}, ${to});
#endfor
#endmacro

<# words_r and words_i become the accumulators re and im times the factors (words of two), or their conjugates. #>
#macro times(re, im, factor_re, factor_im, conjugated)
#for j in range(4)
{
    let r = pair(element(&${re}, ${2 * j}u), element(&${re}, ${2 * j + 1}u));
    let i = pair(element(&${im}, ${2 * j}u), element(&${im}, ${2 * j + 1}u));
    let fr = bits_as_halves(${factor_re}[${j}]);
    let fi = bits_as_halves(${factor_im}[${j}]);
    words_r[${j}] = bits_as_word(fma(${"i" if conjugated else "-i"}, fi, r * fr));
    words_i[${j}] = bits_as_word(fma(${"-r" if conjugated else "r"}, fi, i * fr));
}
#endfor
#endmacro

<# Loads u and v of this row from vector `chunk` on: u${s}_0 to u${s}_3. #>
#macro read(chunk, s)
#for name in (["u", "v"] if GATE_IN else ["u"])
let ${name}${s}_from = (p.${name}_offset + (p.first_row + q) * p.${name}_batch + channel * p.${name}_channel) + ${chunk};
#for x in range(4)
#if RAGGED
var ${name}${s}_${x} = vec4<u32>();
if ${chunk} + in_at + ${x * ROW // 8}u < p.length / 8u { ${name}${s}_${x} = ${name}[${name}${s}_from + in_at + ${x * ROW // 8}u]; }
#else
let ${name}${s}_${x} = ${name}[${name}${s}_from + in_at + ${x * ROW // 8}u];
#endif
#endfor
#endfor
#endmacro

<# The bits of the subgroup's largest magnitudes: top_u, top_v. #>
#macro largest(suffixes)
#for name in (["u", "v"] if GATE_IN else ["u"])
var most_${name} = vec2<f16>();
#for s in suffixes
#for x in range(4)
#for j in range(4)
most_${name} = max(most_${name}, abs(bits_as_halves(${name}${s}_${x}[${j}])));
#endfor
#endfor
#endfor
var top_${name} = largest_of_subgroup(bitcast<u32>(f32(max(most_${name}.x, most_${name}.y))));
#endfor
#endmacro

<# Exponents of what was read, e_u and e_v, and factors to bring it below 16. #>
#macro exponents()
#for name in (["u", "v"] if GATE_IN else ["u"])
let e_${name} = clamp(top_${name} >> 23u, 115u, 142u);
let s_${name} = vec2<f16>(f16(power(257u - e_${name})));
#endfor
let size = e_u ${"+ e_v" if GATE_IN else ""};
#endmacro

<# Right operand of tile t: rows n1, columns eight neighbouring points of four tiles. #>
#macro operand(t, s)
#set x = "x" ~ s
let b${s} = matrix_b(vec4<u32>(low(${x}0_${t}, ${x}2_${t}), low(${x}1_${t}, ${x}3_${t}), high(${x}0_${t}, ${x}2_${t}), high(${x}1_${t}, ${x}3_${t})));
#endmacro

<# Products u v, scaled. #>
#macro scaled(less, s)
#for x in range(4)
#for j in range(4)
let x${s}${x}_${j} = bits_as_word(bits_as_halves(u${s}_${x}[${j}]) * s_u ${"* (bits_as_halves(v" ~ s ~ "_" ~ x ~ "[" ~ j ~ "]) * s_v)" if GATE_IN else ""}${less});
#endfor
#endfor
#endmacro

#macro put_first(t, re, im, less)
#for row in range(2)
exchange[put${t}_${row}] = vec4<u32>(
    #for h in range(2)
    #for part in [re, im]
    bits_as_word(pair(element(&${part}, ${4 * row + 2 * h}u)${less}, element(&${part}, ${4 * row + 2 * h + 1}u)${less})),
    #endfor
    #endfor
);
#endfor
#endmacro

#macro of_kappa()
let factors_at = ${FACTORS}u + (kappa * ${SUBGROUPS}u + subgroup) * 256u + place;
let filter_at = ((channel * ${FOLD}u + kappa) * ${SUBGROUPS}u + subgroup) * 256u + place;
#endmacro

@compute @workgroup_size(${SUBGROUPS * 32})
fn main(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) grid: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
    ${ fragments.arguments(COOP) }
) {
    ${ fragments.begin(COOP) }
    let id = workgroup.y * grid.x + workgroup.x;
    if id >= p.workgroups { return; }
    #if MEET
    let row_id = id;
    #elif FOLDED
    let kappa = id % ${KEPT}u;
    let row_id = id / ${KEPT}u;
    #else
    let kappa = 0u;
    let row_id = id;
    #endif
    let channel = p.first_channel + row_id / p.groups;
    let group = row_id % p.groups;
    #for name in OWN
    let word_${name} = table[${32 * loop.index0}u + place];
    let a_${name} = matrix_a(word_${name});
    let b_${name} = matrix_b(word_${name});
    #endfor
    #for name in ["fr", "fi"] + (["gr", "gi"] if R < 16 else [])
    let between_${name} = table[${BETWEEN + 32 * loop.index0}u + place];
    #endfor
    #if R == 16
    let between_gr = between_fr;
    let between_gi = between_fi;
    #endif
    #if not MEET
    ${of_kappa()}
    #endif
    #if HOLD_FACTORS
    #for i in range(2 * TILES)
    let factor${i // 2}_${i % 2} = table[factors_at + ${32 * i}u];
    #endfor
    #endif
    #if HOLD_FILTER
    #for i in range(2 * TILES)
    let filter${i // 2}_${i % 2} = spectrum[filter_at + ${32 * i}u];
    #endfor
    #endif
    let filter_scale = scales[channel];

    // Columns of the first digit's tiles: column c of tile t is point 8 g + 2 t + c / 8 of the subgroup's 64; g is c % 8
    // with its lowest bit where n2 has its second, so that n2 and n2 + 2 come to lie in a word.
    #if R == 16
    let g_in = (line & 1u) * 4u + (line >> 1u);
    let g_out = quad;
    #elif R == 8
    let g_in = (line & 1u) * 2u + (line >> 1u & 1u) + (line >> 2u) * 4u;
    let g_out = (quad & 1u) + (quad >> 1u) * 4u;
    #else
    let g_in = line;
    let g_out = 2u * quad;
    #endif
    let in_at = 4u * quad * ${ROW // 8}u + 8u * subgroup + g_in;
    let out_at = 2u * line * ${ROW // 8}u + 8u * subgroup + quad;
    #for t in range(4)
    let m${t} = 64u * subgroup + 8u * g_out + ${2 * t}u;
    let n2_${t} = m${t} / ${R}u;
    #for row in range(2)
    let put${t}_${row} = first_place(2u * line + ${row}u, ((n2_${t} >> 2u) << 1u) + (n2_${t} & 1u), m${t} % ${R}u / 2u);
    #endfor
    #endfor
    let n3 = line % ${HALF}u;
    let block = line / ${HALF}u;

    for (var round = 0u; round < p.rounds; round++) {
        // Rows beyond the last do its work again.
        let q = min(group * p.rounds + round, p.batch - 1u);
        #if MEET
        for (var kappa = 0u; kappa < ${KEPT}u; kappa++) {
        ${of_kappa()}
        #endif
        #if FOLDED and not TOGETHER
        var grown = 0u;
        #for t in range(4)
        var re${t}: Accumulator;
        var im${t}: Accumulator;
        #endfor
        let first_at = ${FIRST}u + kappa * ${64 * FOLD + 96}u + place;
        for (var chunk = 0u; chunk < ${FOLD}u; chunk++) {
            ${read("chunk * " ~ (INNER // 8) ~ "u", "")}
            ${largest([""])}
            ${exponents()}
            let larger = max(grown, size);
            let less = vec2<f16>(f16(power(127u + size - larger)));
            if larger != grown {
                let factor = power(127u - min(larger - grown, 126u));
                #for t in range(4)
                #for i in range(8)
                set_element(&re${t}, ${i}u, element(&re${t}, ${i}u) * factor);
                set_element(&im${t}, ${i}u, element(&im${t}, ${i}u) * factor);
                #endfor
                #endfor
                grown = larger;
            }
            ${scaled(" * less", "")}
            let a_gr = matrix_a(table[first_at + chunk * 64u]);
            let a_gi = matrix_a(table[first_at + chunk * 64u + 32u]);
            #for t in range(4)
            {
                ${operand(t, "")}
                re${t} = multiply_add(a_gr, b, re${t});
                im${t} = multiply_add(a_gi, b, im${t});
            }
            #endfor
        }
        #if SUBGROUPS > 1
        // Told where this subgroup alone read last, and the other alone writes next.
        if place < ${SUBGROUPS}u { exchange[256u * place + 32u * subgroup].x = grown; }
        workgroupBarrier();
        var most = 0u;
        #for i in range(SUBGROUPS)
        most = max(most, exchange[256u * subgroup + ${32 * i}u].x);
        #endfor
        #else
        let most = grown;
        workgroupBarrier();
        #endif
        let less = power(127u - min(most - grown, 126u));
        #for t in range(4)
        ${put_first(t, "re" ~ t, "im" ~ t, " * less")}
        #endfor
        #else
        #for s in HALVES
        ${read(loop.index0 * INNER // 8 ~ "u", s)}
        #endfor
        ${largest(HALVES)}
        #if SUBGROUPS > 1
        if place < ${SUBGROUPS}u { exchange[256u * place + 32u * subgroup] = vec4<u32>(top_u, ${"top_v" if GATE_IN else "0u"}, 0u, 0u); }
        workgroupBarrier();
        #for i in range(SUBGROUPS)
        {
            let other = exchange[256u * subgroup + ${32 * i}u];
            top_u = max(top_u, other.x);
            #if GATE_IN
            top_v = max(top_v, other.y);
            #endif
        }
        #endfor
        #else
        workgroupBarrier();
        #endif
        ${exponents()}
        let most = size;
        #for s in HALVES
        ${scaled("", s)}
        #endfor
        #if GATE_OUT and not FOLDED
        let w_from = p.w_offset + (p.first_row + q) * p.w_batch + channel * p.w_channel + out_at;
        #for i in range(4)
        #set at = i % 2 * ROW // 8 + i // 2 * 4
        #if RAGGED
        var gate${i} = vec4<u32>();
        if out_at + ${at}u < p.length / 8u { gate${i} = w[w_from + ${at}u]; }
        #else
        let gate${i} = w[w_from + ${at}u];
        #endif
        #endfor
        #endif
        #if TOGETHER
        let first_at = ${FIRST}u + kappa * ${64 * FOLD + 96}u + place;
        #for s in HALVES
        let a_gr${s} = matrix_a(table[first_at + ${64 * loop.index0}u]);
        let a_gi${s} = matrix_a(table[first_at + ${64 * loop.index0 + 32}u]);
        #endfor
        #endif
        #for t in range(4)
        {
            #for s in HALVES
            ${operand(t, s)}
            #endfor
            #if TOGETHER
            ${products("re", [("a_gra", "ba"), ("a_grb", "bb")])}
            ${products("im", [("a_gia", "ba"), ("a_gib", "bb")])}
            #else
            ${products("re", [("a_sr", "b")])}
            ${products("im", [("a_si", "b")])}
            #endif
            ${put_first(t, "re", "im", "")}
        }
        #endfor
        #endif
        // What u v were divided by, and the filter.
        let back = power(most ${"- 133u" if GATE_IN else "- 3u"}) * filter_scale;
        workgroupBarrier();
        #for t in range(TILES)
        #for h in range(2)
        let got${t}_${h} = exchange[first_place(4u * subgroup + ${t}u + ${R}u * block, 2u * quad + ${h}u, n3)];
        #endfor
        #endfor
        workgroupBarrier();
        #for s in range(2)
        {
            #for t in [s, s + 2]
            #set o = t // 2
            #if t < TILES
            #for h in range(2)
            #if HOLD_FACTORS
            let z${o}_${h} = factor${t}_${h};
            #else
            let z${o}_${h} = table[factors_at + ${64 * t + 32 * h}u];
            #endif
            #for x in range(2)
            let xr${o}_${h}_${x} = bits_as_halves(got${t}_${h}[${2 * x}]);
            let xi${o}_${h}_${x} = bits_as_halves(got${t}_${h}[${2 * x + 1}]);
            let zr${o}_${h}_${x} = bits_as_halves(z${o}_${h}[${2 * x}]);
            let zi${o}_${h}_${x} = bits_as_halves(z${o}_${h}[${2 * x + 1}]);
            let pr${o}_${h}_${x} = bits_as_word(fma(-xi${o}_${h}_${x}, zi${o}_${h}_${x}, xr${o}_${h}_${x} * zr${o}_${h}_${x}));
            let pi${o}_${h}_${x} = bits_as_word(fma(xr${o}_${h}_${x}, zi${o}_${h}_${x}, xi${o}_${h}_${x} * zr${o}_${h}_${x}));
            #endfor
            #endfor
            #endif
            var qr${o}: Accumulator;
            var qi${o}: Accumulator;
            #if t < TILES
            {
                var words_r: vec4<u32>;
                var words_i: vec4<u32>;
                let br = matrix_b(vec4<u32>(pr${o}_0_0, pr${o}_1_0, pr${o}_0_1, pr${o}_1_1));
                let bi = matrix_b(vec4<u32>(pi${o}_0_0, pi${o}_1_0, pi${o}_0_1, pi${o}_1_1));
                ${products("ar", [("a_sr", "br"), ("a_sn", "bi")])}
                ${products("ai", [("a_sr", "bi"), ("a_si", "br")])}
                ${times("ar", "ai", "between_fr", "between_fi", false)}
                let cr = matrix_a(words_r);
                let ci = matrix_a(words_i);
                ${products("dr", [("cr", "b_" ~ D ~ "r"), ("ci", "b_" ~ D ~ "n")])}
                ${products("di", [("cr", "b_" ~ D ~ "i"), ("ci", "b_" ~ D ~ "r")])}
                #for part in range(2)
                #if HOLD_FILTER
                let k${part} = filter${t}_${part};
                #else
                let k${part} = spectrum[filter_at + ${64 * t + 32 * part}u];
                #endif
                #endfor
                ${times("dr", "di", "k0", "k1", TRANSPOSE)}
                let er = matrix_b(words_r);
                let ei = matrix_b(words_i);
                ${products("fr", [("a_" ~ D ~ "r", "er"), ("a_" ~ D ~ "i", "ei")])}
                ${products("fi", [("a_" ~ D ~ "r", "ei"), ("a_" ~ D ~ "n", "er")])}
                ${times("fr", "fi", "between_gr", "between_gi", true)}
                let gr = matrix_a(words_r);
                let gi = matrix_a(words_i);
                qr${o} = multiply_add(gr, b_sr, qr${o});
                qr${o} = multiply_add(gi, b_si, qr${o});
                qi${o} = multiply_add(gi, b_sr, qi${o});
                qi${o} = multiply_add(gr, b_sn, qi${o});
            }
            #endif
            #endfor
            #for h in range(2)
            {
                #for o in range(2)
                var turned_r${o}: vec2<u32>;
                var turned_i${o}: vec2<u32>;
                #endfor
                #for x in range(2)
                #for o in range(2)
                #if s + 2 * o < TILES
                {
                    let r = pair(element(&qr${o}, ${4 * x + 2 * h}u), element(&qr${o}, ${4 * x + 2 * h + 1}u));
                    let i = pair(element(&qi${o}, ${4 * x + 2 * h}u), element(&qi${o}, ${4 * x + 2 * h + 1}u));
                    let fr = bits_as_halves(z${o}_${h}[${2 * x}]);
                    let fi = bits_as_halves(z${o}_${h}[${2 * x + 1}]);
                    turned_r${o}[${x}] = bits_as_word(fma(i, fi, r * fr));
                    turned_i${o}[${x}] = bits_as_word(fma(-r, fi, i * fr));
                }
                #endif
                #endfor
                #endfor
                #for b in range(2)
                #set f = "high" if b else "low"
                exchange[second_place(2u * subgroup + ${s}u + ${HALF}u * block, 4u * quad + ${2 * b + h}u, n3)] = vec4<u32>(
                    #for x in range(2)
                    ${f}(turned_r0[${x}], turned_r1[${x}]),
                    ${f}(turned_i0[${x}], turned_i1[${x}]),
                    #endfor
                );
                #endfor
            }
            #endfor
        }
        #endfor
        workgroupBarrier();
        #if FOLDED
        #for name in ["hr", "hi", "hn"]
        let a_${name} = matrix_a(table[first_at + ${64 * FOLD + 32 * loop.index0}u]);
        #endfor
        #endif
        #if PARTS
        let row = ((channel - p.first_channel) * p.batch + q) * ${FOLD}u + kappa;
        #else
        #if GATE_OUT and FOLDED
        let w_from = p.w_offset + (p.first_row + q) * p.w_batch + channel * p.w_channel + out_at;
        #endif
        let y_from = p.y_offset + (p.first_row + q) * p.y_batch + channel * p.y_channel + out_at;
        #endif
        #if MEET
        // By what a part is turned for the points from n0 INNER on.
        #for n0 in range(1, FOLD)
        var turn${n0} = vec2<f32>(${cos_turn(-n0, 4 * FOLD)}, ${sin_turn(-n0, 4 * FOLD)});
        #endfor
        #for k in range(1, KEPT)
        if kappa == ${k}u {
            #for n0 in range(1, FOLD)
            turn${n0} = vec2<f32>(${cos_turn(n0 * (4 * k - 1), 4 * FOLD)}, ${sin_turn(n0 * (4 * k - 1), 4 * FOLD)});
            #endfor
        }
        #endfor
        #endif
        // Columns of the last tiles: a pair of tiles has eight neighbouring points of two rows n1 an invocation.
        #for half in range(2)
        {
            #for t in range(2)
            let m${t} = 64u * subgroup + ${32 * half + 4 * t}u + 8u * (line >> 1u) + 2u * (line & 1u);
            #for h in range(2)
            let got${t}_${h} = exchange[second_place(2u * quad + ${h}u, m${t} / ${R}u, m${t} % ${R}u / 2u)];
            #endfor
            let br${t} = matrix_b(vec4<u32>(got${t}_0.x, got${t}_1.x, got${t}_0.z, got${t}_1.z));
            let bi${t} = matrix_b(vec4<u32>(got${t}_0.y, got${t}_1.y, got${t}_0.w, got${t}_1.w));
            #if FOLDED
            ${products("yr" ~ t, [("a_hr", "br" ~ t), ("a_hi", "bi" ~ t)])}
            ${products("yi" ~ t, [("a_hr", "bi" ~ t), ("a_hn", "br" ~ t)])}
            #else
            ${products("yr" ~ t, [("a_sr", "br" ~ t), ("a_si", "bi" ~ t)])}
            #endif
            #endfor
            #for n1 in range(2)
            #set at = n1 * ROW // 8 + half * 4
            #if PARTS
            #for t in range(2)
            y[row * ${INNER // 4}u + 2u * (out_at + ${at}u) + ${t}u] = vec4<u32>(
                #for i in range(4)
                #set e = 4 * n1 + 2 * (i % 2) + i // 2
                bits_as_word(pair(element(&yr${t}, ${e}u), element(&yi${t}, ${e}u))),
                #endfor
            );
            #endfor
            #elif MEET
            #for n0 in range(FOLD)
            {
                #set from = n0 * INNER // 8 + at
                #set sum = "sums[" ~ ((2 * half + n1) * FOLD + n0) * 8 * R ~ "u + lane]"
                #for j in range(4)
                #set e = 4 * n1 + j % 2
                var r${j} = vec2<f32>(element(&yr${j // 2}, ${e}u), element(&yr${j // 2}, ${e + 2}u));
                #if n0
                r${j} = r${j} * turn${n0}.x - vec2<f32>(element(&yi${j // 2}, ${e}u), element(&yi${j // 2}, ${e + 2}u)) * turn${n0}.y;
                #endif
                #endfor
                if kappa > 0u {
                    let before = ${sum};
                    #for j in range(4)
                    r${j} += unpack2x16float(before[${j}]);
                    #endfor
                }
                if kappa < ${KEPT - 1}u {
                    ${sum} = vec4<u32>(
                        #for j in range(4)
                        bits_as_word(pair(r${j}.x, r${j}.y)),
                        #endfor
                    );
                } ${"else if out_at + " ~ from ~ "u < p.length / 8u" if RAGGED else "else"} {
                    y[y_from + ${from}u] = vec4<u32>(
                        #for j in range(4)
                        bits_as_word(pair(r${j}.x * back, r${j}.y * back)),
                        #endfor
                    );
                }
            }
            #endfor
            #else
            #for n0 in range(FOLD)
            #set from = n0 * INNER // 8 + at
            ${"if out_at + " ~ from ~ "u < p.length / 8u" if RAGGED else ""} {
                var out: vec4<u32>;
                #if GATE_OUT and FOLDED
                let gate${2 * half + n1} = w[w_from + ${from}u];
                #endif
                #for j in range(4)
                {
                    #set e = 4 * n1 + j % 2
                    var r = vec2<f32>(element(&yr${j // 2}, ${e}u), element(&yr${j // 2}, ${e + 2}u)) * back;
                    #if FOLDED
                    r = r * ${cos_turn(n0, 4 * FOLD)} + vec2<f32>(element(&yi${j // 2}, ${e}u), element(&yi${j // 2}, ${e + 2}u)) * back * ${sin_turn(n0, 4 * FOLD)};
                    #endif
                    #if GATE_OUT
                    r *= unpack2x16float(gate${2 * half + n1}[${j}]);
                    #endif
                    out[${j}] = bits_as_word(pair(r.x, r.y));
                }
                #endfor
                y[y_from + ${from}u] = out;
            }
            #endfor
            #endif
            #endfor
        }
        #endfor
        #if PARTS
        if lane == 0u { part_scales[row] = back; }
        #endif
        #if MEET
        }
        #endif
    }
}
