<#
Eight-bit codes: int8, and the OCP's FP8 formats E4M3 (no infinities) and E5M2.

  ${ code8.halves(COOP, "a", type) }   fn halves_a(codes: vec2<u32>) -> vec4<u32>: eight codes as f16, in their order, exact.
                                E4M3's are divided by 2^8. int8 needs `enable f16` and src/spirv.rs, unless COOP is "emulated".
  ${ code8.floats("a", type) }         fn floats_a(codes: u32) -> vec4<f32>: four codes, E4M3's divided by 2^8 too
  ${ code8.quantise() }                fn scale_for(range, inverse) -> f32 and fn nearest(x, scale) -> f32: see there

Scales have eleven significant bits, so that half integers below 2^10 times a scale are exact and decide how a quotient is
rounded, whatever the device's division is: results are those of reference/quantize.rs, bit by bit.
#>
#macro quantise()
// A scale of which 1 / inverse steps reach `range`, but for a rounding. Of what is not finite: NaN.
fn scale_for(range: f32, inverse: f32) -> f32 {
    let least = max(bitcast<u32>(range * inverse), ${27 * 2 ** 23}u);
    return bitcast<f32>(select((least + 0x1fffu) & 0xffffe000u, 0x7fc00000u, bitcast<u32>(range) >= 0x7f7fffffu));
}
// The integer nearest to x / scale, of two the even one, at most 255 away from zero; zero if the scale is not a number.
fn nearest(x: f32, scale: f32) -> f32 {
    if bitcast<u32>(scale) >= 0x7f800000u { return 0.0; }
    let code = clamp(round(x * (1.0 / scale)), -255.0, 255.0);
    let odd = (i32(code) & 1) != 0;
    let upper = (code + 0.5) * scale;
    let lower = (code - 0.5) * scale;
    let up = x > upper || (odd && x == upper);
    let down = x < lower || (odd && x == lower);
    return clamp(code + select(0.0, 1.0, up) - select(0.0, 1.0, down), -255.0, 255.0);
}
#endmacro

#macro halves(coop, name, type)
#if type != "f16"
#if type == "i8" and coop == "units"
fn bits_as_halves(w: u32) -> vec2<f16> { return vec2<f16>(); }
fn bits_as_word(h: vec2<f16>) -> u32 { return 0u; }
#endif
fn halves_${name}(codes: vec2<u32>) -> vec4<u32> {
    #if type == "i8" and coop != "units"
    let low = vec4<f32>(unpack4xI8(codes.x));
    let high = vec4<f32>(unpack4xI8(codes.y));
    return vec4<u32>(pack2x16float(low.xy), pack2x16float(low.zw), pack2x16float(high.xy), pack2x16float(high.zw));
    #else
    #if type == "i8"
    // 128 more, as the last bits of 1024 to 1279.
    let c = codes ^ vec2<u32>(0x80808080u);
    let spread = vec4<u32>(
        (c.x & 0xffu) | ((c.x & 0xff00u) << 8u), ((c.x >> 16u) & 0xffu) | ((c.x >> 8u) & 0xff0000u),
        (c.y & 0xffu) | ((c.y & 0xff00u) << 8u), ((c.y >> 16u) & 0xffu) | ((c.y >> 8u) & 0xff0000u),
    ) | vec4<u32>(0x64006400u);
    return vec4<u32>(
        #for i in range(4)
        bits_as_word(bits_as_halves(spread[${i}]) - vec2<f16>(1152.0h)),
        #endfor
    );
    #else
    // The upper bytes of halves.
    let h = vec4<u32>(
        ((codes.x << 8u) & 0xff00u) | ((codes.x << 16u) & 0xff000000u), ((codes.x >> 8u) & 0xff00u) | (codes.x & 0xff000000u),
        ((codes.y << 8u) & 0xff00u) | ((codes.y << 16u) & 0xff000000u), ((codes.y >> 8u) & 0xff00u) | (codes.y & 0xff000000u),
    );
    #if type == "f8e4m3"
    let moved = (h & vec4<u32>(0x80008000u)) | ((h & vec4<u32>(0x7f007f00u)) >> vec4<u32>(1u));
    // All ones are NaN: one more in the last place carries into the exponent's first bit.
    return moved | ((moved + vec4<u32>(0x00800080u)) & vec4<u32>(0x40004000u));
    #else
    return h;
    #endif
    #endif
    #endif
}
#endif
#endmacro

#macro floats(name, type)
#if type == "i8"
fn floats_${name}(codes: u32) -> vec4<f32> { return vec4<f32>(unpack4xI8(codes)); }
#else
${ halves("plain", name, type) }
fn floats_${name}(codes: u32) -> vec4<f32> {
    let h = halves_${name}(vec2<u32>(codes, 0u));
    return vec4<f32>(unpack2x16float(h.x), unpack2x16float(h.y));
}
#endif
#endmacro
