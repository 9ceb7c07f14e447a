<#
Quantised matrices in registers (src/quant/layout.rs has their layout). A unit is 16 bytes of the low plane of a row: 16, 32
or 64 elements, decoded four at a time.

  ${ quant.matrix(2, "w", CODE, SCALE, ZERO, OUTER) }   the binding, and over the fields of `p` that begin with `w_`:
      unit_w(i) -> vec4<u32>                    unit i of the low plane
      high_w(i) -> u32                          word i of the high plane
      group_w(row, i) -> Affine                 the scale of group i of a row (of blocks) and what is added to scaled levels
  ${ quant.fields("w") }                        those fields of Params, for `QuantParams` of src/kernels/quant.rs
  ${ quant.prelude(CODE) }                      once a kernel
  ${ quant.begin(CODE, "lane", WG) }            in main, before units are decoded: every invocation
  ${ quant.four("to", CODE, LOW, HIGH, "l", "h", q) }   a statement: `to` is elements 4q .. 4q + 3 of the unit l (high words
                                                h[0], h[1]) as vec4<f32>, in units of 1 / factor(CODE);
                                                zero: an integer to be taken from the levels, at no cost
  ${ quant.factor(CODE) }                       multiplies scales: decoded floats are off by a power of two

Integers: a code k bits up in the fraction of 2^(23 - k) is that many more, wherever it lies; a subtraction takes away 2^(23 - k)
and the middle of the range, exactly: three instructions an element with the multiplication by x. E4M3 and E2M1 are
f16 numbers with another bias: moved in pairs, subnormals and NaN included. NF4: a table in
workgroup memory, whose 16 words lie in different banks.
#>
#import "lib/code8.wgsl" as code8
#macro fields(name)
${name}_row: u32,
${name}_high: u32,
${name}_high_row: u32,
${name}_scales: u32,
${name}_groups: u32,
${name}_group_rows: u32,
${name}_outer: u32,
${name}_outer_row: u32,
#endmacro

#macro matrix(index, name, code, scale, zero, outer)
@group(0) @binding(${index}) var<storage, read> ${name}: array<vec4<u32>>;
fn unit_${name}(i: u32) -> vec4<u32> { return ${name}[i]; }
fn word_${name}(i: u32) -> u32 { return ${name}[i >> 2u][i & 3u]; }
fn high_${name}(i: u32) -> u32 { return word_${name}(p.${name}_high + i); }
fn byte_${name}(at: u32, i: u32) -> u32 { return (word_${name}(at + (i >> 2u)) >> ((i & 3u) * 8u)) & 0xffu; }
fn half_${name}(at: u32, i: u32) -> f32 { return unpack2x16float(word_${name}(at + (i >> 1u)))[i & 1u]; }

fn group_${name}(row: u32, i: u32) -> Affine {
    let g = row * p.${name}_groups + i;
#if scale in ["byte_f32", "byte_f16"]
    let outer = row * p.${name}_outer_row + i / ${outer}u;
#endif
#if zero == "none"
#if scale == "f32"
    let scale = bitcast<f32>(word_${name}(p.${name}_scales + g));
#elif scale == "f16"
    let scale = half_${name}(p.${name}_scales, g);
#elif scale == "e8m0"
    // 2^-127 is a subnormal number.
    let scale = bitcast<f32>(max(byte_${name}(p.${name}_scales, g) << 23u, 0x400000u));
#else
    let byte = f32(bitcast<i32>(byte_${name}(p.${name}_scales, g) << 24u) >> 24u);
    #if scale == "byte_f32"
    let scale = byte * bitcast<f32>(word_${name}(p.${name}_outer + outer));
    #else
    let scale = byte * half_${name}(p.${name}_outer, outer);
    #endif
#endif
    return Affine(scale * ${factor(code)}, 0.0);
#else
#if scale == "f32"
    let pair = vec2<f32>(
        bitcast<f32>(word_${name}(p.${name}_scales + 2u * g)), bitcast<f32>(word_${name}(p.${name}_scales + 2u * g + 1u)));
#elif scale == "f16"
    let pair = unpack2x16float(word_${name}(p.${name}_scales + g));
#else
    let bytes = word_${name}(p.${name}_scales + (g >> 1u)) >> ((g & 1u) * 16u);
    // Both are 0 to 63.
    let pair = vec2<f32>(f32(bytes & 0xffu), f32((bytes >> 8u) & 0xffu)) * unpack2x16float(word_${name}(p.${name}_outer + outer));
#endif
#set middle = {"int2": "2.0", "int3": "4.0", "int4": "8.0", "int5": "16.0", "int6": "32.0", "int8": "128.0"}[code]
#if zero == "point"
    // Taken from levels before the scale: both are integers, and their difference is exact.
    return Affine(pair.x, pair.y);
#elif zero == "min"
    return Affine(pair.x, fma(pair.x, ${middle}, pair.y));
#else
    return Affine(pair.x, fma(pair.x, ${middle}, -pair.y));
#endif
#endif
}
#endmacro

#macro factor(code)
#if code == "e4m3"
256.0
#elif code == "e2m1"
16384.0
#else
1.0
#endif
#endmacro

#macro prelude(code)
// value = level * scale + shift, or with zero points (level - shift) * scale
struct Affine {
    scale: f32,
    shift: f32,
}
#if code == "nf4"
var<workgroup> nf4: array<f32, 16>;
#endif
#if code == "e4m3"
${ code8.e4m3_odd() }
#endif
#if code == "e2m1"
// Nibbles 3 and 7 of a word.
fn e2m1_odd(w: u32) -> vec2<f32> { return unpack2x16float((w & 0x80008000u) | ((w >> 3u) & 0x0e000e00u)); }
#endif
#endmacro

#macro begin(code, lane, wg)
#if code == "nf4"
#for level in nf4_levels()
#if loop.first
if ${lane} == 0u {
#endif
    nf4[${loop.index0}] = ${level};
#endfor
}
workgroupBarrier();
#endif
#endmacro

<# Where the code of element j of four is in the component's word: its low bits, and how far it has to be moved. #>
#macro four(to, code, low, high, l, h, q, zero="")
#set word = l ~ "[" ~ (q * 4 * low) // 32 ~ "u]"
#set at = (q * 4 * low) % 32
#if code in ["int2", "int3", "int4", "int5", "int6", "int8"]
#set shifted = "(" ~ word ~ " >> " ~ at ~ "u)" if at else word
#set mask = 2 ** low - 1
#set middle = 2 ** (low + high - 1)
#if low == 8
let ${to}_w = ${word} >> 16u;
let ${to}_bits = (vec4<u32>(${word}, ${word}, ${to}_w, ${to}_w) & vec4<u32>(0xffu, 0xff00u, 0xffu, 0xff00u))
    ^ vec4<u32>(0x4b000080u, 0x47008000u, 0x4b000080u, 0x47008000u);
let ${to} = bitcast<vec4<f32>>(${to}_bits) - ${"(" if zero else ""}vec4<f32>(8388736.0, 32896.0, 8388736.0, 32896.0)${" + " ~ zero ~ ")" if zero else ""};
#else
let ${to}_w = ${shifted};
let ${to}_bits = (vec4<u32>(${to}_w) & vec4<u32>(${mask}u, ${mask * 2 ** low}u, ${mask * 4 ** low}u, ${mask * 8 ** low}u))
    | vec4<u32>(${75 * 2 ** 24}u, ${75 * 2 ** 24 - low * 2 ** 23}u, ${75 * 2 ** 24 - 2 * low * 2 ** 23}u, ${75 * 2 ** 24 - 3 * low * 2 ** 23}u)
    #if high
    #set at_high = (q * 4 * high) % 32
    #set high_word = h ~ "[" ~ (q * 4 * high) // 32 ~ "u]"
    #set high_mask = 2 ** high - 1
    | vec4<u32>(
        #for j in range(4)
        ${ moved(high_word, at_high + j * high, j * low + low) } & ${high_mask * 2 ** (j * low + low)}u,
        #endfor
    )
    #endif
    ;
let ${to} = bitcast<vec4<f32>>(${to}_bits) - ${"(" if zero else ""}vec4<f32>(
    ${8388608 + middle}.0, ${8388608 // 2 ** low + middle}.0, ${8388608 // 4 ** low + middle}.0, ${8388608 // 8 ** low + middle}.0)${" + " ~ zero ~ ")" if zero else ""};
#endif
#elif code == "e4m3"
let ${to}_even = e4m3_odd(${word} << 8u);
let ${to}_odd = e4m3_odd(${word});
let ${to} = vec4<f32>(${to}_even.x, ${to}_odd.x, ${to}_even.y, ${to}_odd.y);
#elif code == "e5m2"
let ${to}_even = unpack2x16float((${word} << 8u) & 0xff00ff00u);
let ${to}_odd = unpack2x16float(${word} & 0xff00ff00u);
let ${to} = vec4<f32>(${to}_even.x, ${to}_odd.x, ${to}_even.y, ${to}_odd.y);
#elif code == "e2m1"
#set part = "x" if at == 0 else "y"
let ${to} = vec4<f32>(
    e2m1_odd(${word} << 12u).${part}, e2m1_odd(${word} << 8u).${part}, e2m1_odd(${word} << 4u).${part}, e2m1_odd(${word}).${part});
#else
let ${to} = vec4<f32>(
    #for j in range(4)
    nf4[(${word} >> ${at + 4 * j}u) & 15u],
    #endfor
);
#endif
#endmacro

<# The word with bit `from` at bit `to`. #>
#macro moved(word, from, to)
#if from > to
(${word} >> ${from - to}u)
#elif from < to
(${word} << ${to - from}u)
#else
${word}
#endif
#endmacro
