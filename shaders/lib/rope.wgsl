<#
Rotary position embedding of one slot: 2 * VEC channels of a head, as two runs of VEC adjacent ones.

  ${ rope.functions(LAYOUT, VEC) }
defines `Channels` (f32 with VEC 1, vec4<f32> with VEC 4) and, with `half` pairs a head and `rotating` slots,
  rotated_first(slot), rotated_second(slot, half)   where a rotated slot's two runs begin; copied ones beyond the
                                                    rotating begin at 2 VEC slot and VEC later
  rotate(a, b, cosine, sine) -> Pair                the two runs rotated; cosine, sine: of pairs VEC slot and on

half_split pairs channels i and i + half, interleaved 2i and 2i + 1.
#>
#macro functions(layout, vec)
alias Channels = ${"vec4<f32>" if vec == 4 else "f32"};

struct Pair {
    a: Channels,
    b: Channels,
}

#if layout == "half_split"
fn rotated_first(slot: u32) -> u32 { return slot * ${vec}u; }
fn rotated_second(slot: u32, half: u32) -> u32 { return slot * ${vec}u + half; }
#else
fn rotated_first(slot: u32) -> u32 { return slot * ${2 * vec}u; }
fn rotated_second(slot: u32, half: u32) -> u32 { return slot * ${2 * vec}u + ${vec}u; }
#endif

fn rotate(a: Channels, b: Channels, cosine: Channels, sine: Channels) -> Pair {
    #if layout == "half_split" or vec == 1
    return Pair(a * cosine - b * sine, b * cosine + a * sine);
    #else
    let even = vec4<f32>(a.xz, b.xz);
    let odd = vec4<f32>(a.yw, b.yw);
    let x = even * cosine - odd * sine;
    let y = odd * cosine + even * sine;
    return Pair(vec4<f32>(x.x, y.x, x.y, y.y), vec4<f32>(x.z, y.z, x.w, y.w));
    #endif
}
#endmacro
