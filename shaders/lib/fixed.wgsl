<#
Products of integer codes with x in fixed point, by packed dot products of bytes (src/quant/layout.rs has the codes' layout).

A unit of x, as many elements as a unit of W has codes, becomes integers of 24 bits times a step, the largest magnitude / 8355711 (at
least 1e-30 / 8355711); an integer is three signed digits to the base 256, and a word has a digit of four elements, in the order in
which a mask takes codes out of a word. Their products with codes are exact; the largest of them is below 2^22, so sums that begin
at the bits of 3 2^22 are floats when they are done. Codes of less than a byte count from zero: the middle of their range times the
digits is taken away at the beginning. What is not finite makes the unit NaN.

  ${ fixed.digits("x0", LOW, PARTS) }   x0_0, x0_1, … (vec4<f32>) of a unit -> what follows is made of; LOW bits a code, PARTS groups a unit
  ${ fixed.product("to", "l0", "x0", LOW, PARTS, g) }   let to: f32 = the sum of level times x over part g of unit l0 (vec4<u32>)

An element of four bits costs 1.3 instructions, where masks, a subtraction and a multiply-add in f32 are 3.3.
#>
#macro digits(x, low, parts)
#set phases = 8 // low
var ${x}_bits = vec4<u32>();
#for q in range(32 // low)
${x}_bits = max(${x}_bits, bitcast<vec4<u32>>(${x}_${q}) & vec4<u32>(0x7fffffffu));
#endfor
let ${x}_most = max(max(max(${x}_bits.x, ${x}_bits.y), max(${x}_bits.z, ${x}_bits.w)), 0x0da24260u);
let ${x}_step = bitcast<f32>(select(bitcast<u32>(bitcast<f32>(${x}_most) * ${1 / 8355711}), 0x7fc00000u, ${x}_most >= 0x7f800000u));
let ${x}_inverse = 8355711.0 / bitcast<f32>(${x}_most);
#for c in range(4)
#for f in range(phases)
#set at = (32 // low) * c + f
let ${x}_digits${c}_${f} = bitcast<vec4<u32>>(vec4<i32>(round(clamp(vec4<f32>(
    #for i in range(4)
    ${x}_${(at + i * phases) // 4}[${(at + i * phases) % 4}],
    #endfor
) * ${x}_inverse, vec4<f32>(-8355711.0), vec4<f32>(8355711.0)))) + vec4<i32>(0x808080)) ^ vec4<u32>(0x808080u);
#for b in range(3)
let ${x}_bytes${c}_${f}_${b} = (${x}_digits${c}_${f} >> vec4<u32>(${8 * b}u)) & vec4<u32>(255u);
let ${x}_word${c}_${f}_${b} = ${x}_bytes${c}_${f}_${b}.x | (${x}_bytes${c}_${f}_${b}.y << 8u) | (${x}_bytes${c}_${f}_${b}.z << 16u) | (${x}_bytes${c}_${f}_${b}.w << 24u);
#endfor
#endfor
#endfor
#for g in range(parts)
#for b in range(3)
let ${x}_begin${g}_${b} = 0x4b400000
    #if low < 8
    #for c in range(g * 4 // parts, (g + 1) * 4 // parts)
    #for f in range(phases)
    - ${2 ** (low - 1)} * dot4I8Packed(${x}_word${c}_${f}_${b}, 0x01010101u)
    #endfor
    #endfor
    #endif
    ;
#endfor
#endfor
#endmacro

#macro product(to, l, x, low, parts, g)
#for b in range(3)
var ${to}_${b} = ${x}_begin${g}_${b};
#endfor
#for c in range(g * 4 // parts, (g + 1) * 4 // parts)
#for f in range(8 // low)
{
    #if low == 8
    let codes = ${l}[${c}];
    #else
    let codes = (${l}[${c}] >> ${f * low}u) & ${(2 ** low - 1) * 16843009}u;
    #endif
    #for b in range(3)
    ${to}_${b} += dot4I8Packed(codes, ${x}_word${c}_${f}_${b});
    #endfor
}
#endfor
#endfor
let ${to} = ${x}_step * fma(bitcast<f32>(${to}_2) - 12582912.0, 65536.0,
    fma(bitcast<f32>(${to}_1) - 12582912.0, 256.0, bitcast<f32>(${to}_0) - 12582912.0));
#endmacro
