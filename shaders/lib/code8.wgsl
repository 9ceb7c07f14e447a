<#
Eight-bit codes: int8, and the OCP's FP8 formats E4M3 (no infinities) and E5M2.

  ${ code8.halves(COOP, "a", type, order) }   fn halves_a(codes: vec2<u32>) -> vec4<u32>: eight codes as f16, exact, in their order
                                ("natural"), or of each four the first and third, then the others ("paired": fewer
                                instructions). E4M3's are divided by 2^8. int8 needs `enable f16` and src/spirv.rs,
                                unless COOP is "emulated".
  ${ code8.floats("a", type) }         fn floats_a(codes: u32) -> vec4<f32>: four codes, E4M3's divided by 2^8 too
  ${ code8.e4m3_odd() }                fn e4m3_odd(w: u32) -> vec2<f32>: two codes of E4M3, divided by 2^8
  ${ code8.quantise() }                fn scale_for(range, inverse) -> f32 and fn nearest(x, scale): see there

Scales have eleven significant bits, so that half integers below 2^10 times a scale are exact and decide how a quotient is
rounded, whatever the device's division is: results are those of reference/quantize.rs, bit by bit.
#>
#macro e4m3_odd()
// Bytes 1 and 3 of a word as two f16, divided by 2^8: sign, then exponent and fraction a place further down. All ones are
// NaN: one more in the last place carries into the exponent's first bit.
fn e4m3_odd(w: u32) -> vec2<f32> {
    let size = (w >> 1u) & 0x3f803f80u;
    return unpack2x16float((w & 0x80008000u) | size | ((size + 0x00800080u) & 0x40004000u));
}
#endmacro

#macro quantise()
// A scale of which 1 / inverse steps reach `range`, but for a rounding. Of what is not finite: NaN.
fn scale_for(range: f32, inverse: f32) -> f32 {
    let least = max(bitcast<u32>(range * inverse), ${27 * 2 ** 23}u);
    return bitcast<f32>(select((least + 0x1fffu) & 0xffffe000u, 0x7fc00000u, bitcast<u32>(range) >= 0x7f7fffffu));
}
// The integers nearest to x / scale, of two the even one, for |x| up to 255 scales; zero if the scale is not a number.
fn nearest(x: vec4<f32>, scale: f32) -> vec4<f32> {
    if bitcast<u32>(scale) >= 0x7f800000u { return vec4<f32>(); }
    let code = round(x * (1.0 / scale));
    // Exact: what is taken away has 19 bits, and is nearly x.
    let rest = x - code * scale;
    let half = vec4<f32>(0.5 * scale);
    let odd = fract(code * 0.5) != vec4<f32>();
    let off = (abs(rest) > half) | ((abs(rest) == half) & odd);
    return code + select(vec4<f32>(), sign(rest), off);
}
#endmacro

#macro halves(coop, name, type, order)
#if type != "f16"
#if type == "i8" and coop == "units"
fn bits_as_halves(w: u32) -> vec2<f16> { return vec2<f16>(); }
fn bits_as_word(h: vec2<f16>) -> u32 { return 0u; }
#endif
fn halves_${name}(codes: vec2<u32>) -> vec4<u32> {
    #if type == "i8" and coop != "units"
    #set PAIRS = ["xz", "yw"] if order == "paired" else ["xy", "zw"]
    let low = vec4<f32>(unpack4xI8(codes.x));
    let high = vec4<f32>(unpack4xI8(codes.y));
    return vec4<u32>(
        pack2x16float(low.${PAIRS[0]}), pack2x16float(low.${PAIRS[1]}), pack2x16float(high.${PAIRS[0]}), pack2x16float(high.${PAIRS[1]}));
    #else
    // The codes as upper bytes of halves.
    #set MASK = "vec2<u32>(0xff00ff00u)"
    #if order == "paired"
    let even = (codes << vec2<u32>(8u)) & ${MASK};
    let odd = codes & ${MASK};
    #else
    let even = ((codes << vec2<u32>(8u)) & vec2<u32>(0xff00u)) | ((codes << vec2<u32>(16u)) & vec2<u32>(0xff000000u));
    let odd = ((codes >> vec2<u32>(8u)) & vec2<u32>(0xff00u)) | (codes & vec2<u32>(0xff000000u));
    #endif
    let h = vec4<u32>(even.x, odd.x, even.y, odd.y);
    #if type == "i8"
    // With 128 more, the last bits of 1024 to 1279.
    let moved = ((h ^ vec4<u32>(0x80008000u)) >> vec4<u32>(8u)) | vec4<u32>(0x64006400u);
    return vec4<u32>(
        #for i in range(4)
        bits_as_word(bits_as_halves(moved[${i}]) - vec2<f16>(1152.0h)),
        #endfor
    );
    #elif type == "f8e4m3"
    let moved = (h & vec4<u32>(0x80008000u)) | ((h >> vec4<u32>(1u)) & vec4<u32>(0x3f803f80u));
    // All ones are NaN: one more in the last place carries into the exponent's first bit.
    return moved | ((moved + vec4<u32>(0x00800080u)) & vec4<u32>(0x40004000u));
    #else
    return h;
    #endif
    #endif
}
#endif
#endmacro

#macro floats(name, type)
#if type == "i8"
fn floats_${name}(codes: u32) -> vec4<f32> { return vec4<f32>(unpack4xI8(codes)); }
#else
${ halves("plain", name, type, "natural") }
fn floats_${name}(codes: u32) -> vec4<f32> {
    let h = halves_${name}(vec2<u32>(codes, 0u));
    return vec4<f32>(unpack2x16float(h.x), unpack2x16float(h.y));
}
#endif
#endmacro
