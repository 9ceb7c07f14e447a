<#
Transforms whose points stay in registers, x0 … x(EACH - 1) of every invocation, and cross between invocations through
workgroup memory (geometry, digits and twiddle tables: src/radix.rs). Needs lib/complex.wgsl and the array `twiddles`.

  #set plan = {"points": N, "steps": fft_steps([R1, R2, R3]), "each": E, "vec": V, "planes": 2, "pad": 5,
               "columns": 1, "spread": 1, "inverse_at": INVERSE, "swaps": [0, S2, S3, S4, 0]}
  ${ fft.memory(plan, SIDE) }               workgroup memory for SIDE transforms side by side
  ${ fft.registers(plan) }                  first in main, after `lane` (0 … N / E - 1) and `side`
  ${ fft.forward(plan, PHASE, REAL) }       registers from the order of `point` to the order of the spectrum
  ${ fft.inverse(plan) }                    back
  ${ fft.point(plan, j) }                   which point register j holds before `forward`, less `lane * vec`
  ${ fft.register(plan, j) }                name of the register that holds this point after `inverse`
  ${ fft.place(plan, j) }                   WGSL: the place, row * columns + column, of register j after `forward`

PHASE "quarter" transforms to the frequencies k - 1/4, "none" to k, "table" to what the forward table from `table_row` on
says. REAL 1: the imaginary parts are zero on entry. Points of an invocation come in runs of `vec` adjacent ones.

With `columns` C the points are N / C rows of C columns, and the columns are transformed. The columns are C of `spread`, from the
variable `column` on; the inverse takes their numbers as the last digits of the point's, so that the transform over the
columns' rows and this one are the inverse of a transform over all N / C * spread points.

`swaps`: in a step between the first and the last, bit 4 of an invocation's number changes places with this bit, or none for 0, so that
invocations that access workgroup memory together meet different banks (src/kernels/fftconv/tuning.rs).

Written in place: a step stores to the places that it loaded from, so that one barrier an exchange suffices with two planes
(real and imaginary parts), three with one.
#>
<# Places of a plane. #>
<% macro span(plan) -%>${plan.points + (plan.points // 2 ** plan.pad if plan.pad else 0)}<%- endmacro %>

#macro memory(plan, side)
#if plan.steps | length > 1
var<workgroup> plane: array<f32, ${span(plan) | int * plan.planes * side}>;
#endif
fn padded(i: u32) -> u32 { return ${"i + (i >> " ~ plan.pad ~ "u)" if plan.pad else "i"}; }
#endmacro

#macro registers(plan)
    let own = side * ${span(plan) | int * plan.planes}u;
    #for bit in plan.swaps
    #if bit
    let lane${loop.index0} = (lane & ${4294967295 - 16 - 2 ** bit}u) | ((lane & 16u) << ${bit - 4}u) | ((lane & ${2 ** bit}u) >> ${bit - 4}u);
    #endif
    #endfor
    #for j in range(plan.each)
    var x${j}: vec2<f32>;
    #endfor
#endmacro

<# The butterfly (without its lane's part) that group g of a step has. #>
<% macro butterfly(plan, s, g) -%>${g * plan.points // plan.each if s else g // plan.vec * (plan.points // plan.each) * plan.vec + g % plan.vec}<%- endmacro %>

<% macro lane_butterfly(plan, s, g) -%>${"lane * " ~ plan.vec ~ "u" if s == 0 else "lane" ~ s if plan.swaps[s] else "lane"} + ${butterfly(plan, s, g)}u<%- endmacro %>

<% macro point(plan, j) -%>
#set R = plan.steps[0].radix
${j % R * plan.steps[0].stride * plan.columns + butterfly(plan, 0, j // R) | int}<%- endmacro %>

<# The register of point j after `inverse`. #>
<% macro register(plan, j) -%>
#set R = plan.steps[0].radix
x${j // R * R + (j % R if plan.steps | length == 1 else bit_reverse(j % R, R))}<%- endmacro %>

<# WGSL: the place, row * columns + column, of what register j holds after `forward`. #>
<% macro place(plan, j) -%>
#set last = plan.steps | length - 1
#set R = plan.steps[last].radix
(${lane_butterfly(plan, last, j // R)}) / ${plan.columns}u * ${R * plan.columns}u + ${bit_reverse(j % R, R) * plan.columns}u + (${lane_butterfly(plan, last, j // R)}) % ${plan.columns}u<%- endmacro %>

#macro forward(plan, phase, real)
    #for s in range(plan.steps | length)
    ${butterflies(plan, s, "forward", phase, real)}
    #if not loop.last
    ${exchange(plan, s, s + 1, true)}
    #endif
    #endfor
#endmacro

#macro inverse(plan)
    #for s in range(plan.steps | length) | reverse
    ${butterflies(plan, s, "inverse", "none", 0)}
    #if not loop.last
    ${exchange(plan, s, s - 1, s + 1 < plan.steps | length)}
    #endif
    #endfor
#endmacro

<# All butterflies of step s. The last step's inverse finds its input in the order that `forward` left. #>
#macro butterflies(plan, s, direction, phase, real)
#set step = plan.steps[s]
#set last = s + 1 == plan.steps | length
#set backwards = direction == "inverse"
#set constant = (last and plan.spread == 1 if backwards else s == 0) and phase != "table"
#set stride = step.stride * plan.columns
    #for g in range(plan.each // step.radix)
    {
        #if not constant
        #if not backwards
        let at = ${"table_row + " if phase == "table" else ""}${step.forward}u${" + (" ~ lane_butterfly(plan, s, g) ~ ") / " ~ stride ~ "u" if step.high > 1 else ""};
        #elif plan.spread == 1
        let at = ${plan.inverse_at + step.inverse}u + (${lane_butterfly(plan, s, g)}) % ${stride}u;
        #else
        let low = (${lane_butterfly(plan, s, g)}) % ${stride}u;
        let at = ${plan.inverse_at + step.inverse * plan.spread}u + low / ${plan.columns}u * ${plan.spread}u + column + low % ${plan.columns}u;
        #endif
        #set rows = step.stride * plan.spread if backwards else step.high
        #for level, k in fft_stored(step.radix)
        let w${level}_${k} = twiddles[at + ${loop.index0 * rows}u];
        #endfor
        #endif
        ${dft(g * step.radix, step.radix, 1 if backwards else -1, -1 if phase == "quarter" and not backwards else 0, constant, backwards and last, real and s == 0)}
    }
    #endfor
#endmacro

<# One butterfly of `radix` registers from `base` on, twiddled. Register j of the result holds output bit_reverse(j), or j
   if `reversed` says that the input was in that order. #>
#macro dft(base, radix, sign, quarters, constant, reversed, real)
#set bits = ilog2(radix)
#for level in range(1, bits + 1)
#set d = radix // 2 ** level
#for high in range(2 ** (level - 1))
#set k = bit_reverse(high, 2 ** (level - 1))
#for low in range(d)
#set i = high * 2 * d + low
#set a = "x" ~ (base + (bit_reverse(i, radix) if reversed else i))
#set b = "x" ~ (base + (bit_reverse(i + d, radix) if reversed else i + d))
#if constant
${constant_pair(a, b, sign * (d * quarters + 4 * (radix // 2 ** level) * k), 4 * radix, real and level == 1)}
#else
#set quarter = 2 ** level // 4
#if level > 1 and k >= quarter
#set w = "w" ~ level ~ "_" ~ (k - quarter)
{ let w = vec2<f32>(${"" if sign < 0 else "-"}${w}.y, ${"-" if sign < 0 else ""}${w}.x); ${pair(a, b, "w", real and level == 1)} }
#else
{ ${pair(a, b, "w" ~ level ~ "_" ~ k, real and level == 1)} }
#endif
#endif
#endfor
#endfor
#endfor
#endmacro

<# (a, b) becomes (a + w b, a - w b). #>
#macro pair(a, b, w, real)
#if real
let s = vec2<f32>(${a}.x, 0.0); let t = ${w} * ${b}.x; ${a} = s + t; ${b} = s - t;
#else
let t = plus_times(${a}, ${w}, ${b}); ${b} = fma(vec2<f32>(2.0), ${a}, -t); ${a} = t;
#endif
#endmacro

<# The same with w of numerator / denominator turns. #>
#macro constant_pair(a, b, numerator, denominator, real)
#set n = numerator % denominator
#set n = n + denominator if n < 0 else n
#if n == 0
{ let t = ${b}; ${b} = ${a} - t; ${a} += t; }
#elif 4 * n == 3 * denominator
{ let t = vec2<f32>(${b}.y, -${b}.x); ${b} = ${a} - t; ${a} += t; }
#elif 4 * n == denominator
{ let t = vec2<f32>(-${b}.y, ${b}.x); ${b} = ${a} - t; ${a} += t; }
#else
{ let w = ${turn(n, denominator)}; ${pair(a, b, "w", real)} }
#endif
#endmacro

<# The place of output `digit` of group g of step s. Strides and radices are powers of two, so padding is additive. #>
#macro exchange(plan, from, to, reversed)
#set source = plan.steps[from]
#set target = plan.steps[to]
    {
    ${places(plan, from, "f")}
    ${places(plan, to, "t")}
    #for part in (["x", "y"] if plan.planes == 1 else ["xy"])
    #if part == "y"
        workgroupBarrier();
    #endif
    #for g in range(plan.each // source.radix)
    #for j in range(source.radix)
    #set digit = bit_reverse(j, source.radix) if reversed else j
        ${store(part, "f" ~ g, offset(plan, source, digit), span(plan) | int, g * source.radix + j)}
    #endfor
    #endfor
        workgroupBarrier();
    #for g in range(plan.each // target.radix)
    #for j in range(target.radix)
        ${load(part, "t" ~ g, offset(plan, target, j), span(plan) | int, g * target.radix + j)}
    #endfor
    #endfor
    #endfor
    }
#endmacro

<% macro offset(plan, step, digit) -%>
#set distance = digit * step.stride * plan.columns
${distance + (distance // 2 ** plan.pad if plan.pad else 0)}<%- endmacro %>

#macro places(plan, s, name)
#set step = plan.steps[s]
#set stride = step.stride * plan.columns
    #for g in range(plan.each // step.radix)
    let ${name}b${g} = ${lane_butterfly(plan, s, g)};
    let ${name}${g} = own + padded(${name}b${g} / ${stride}u * ${stride * step.radix}u + ${name}b${g} % ${stride}u);
    #endfor
#endmacro

#macro store(part, place, offset, span, j)
#if part == "xy"
plane[${place} + ${offset}u] = x${j}.x; plane[${place} + ${offset | int + span}u] = x${j}.y;
#else
plane[${place} + ${offset}u] = x${j}.${part};
#endif
#endmacro

#macro load(part, place, offset, span, j)
#if part == "xy"
x${j} = vec2<f32>(plane[${place} + ${offset}u], plane[${place} + ${offset | int + span}u]);
#else
x${j}.${part} = plane[${place} + ${offset}u];
#endif
#endmacro
