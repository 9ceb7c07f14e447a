<#
Sequences of a convolution as complex numbers: what a transform takes in and gives out. Params begins with ${ conv.params() }.

  ${ conv.load(…) }    load_re(q, channel, n), load_im(…): VEC adjacent points of transform q from n on, u * v
  ${ conv.store(…) }   store_re(q, channel, n, value), store_im(…): w * value to y
  ${ conv.results(…) } what the inverse left in registers, turned back and stored; `start`, `column`, `q` and `channel` are in scope

BOUNDARY causal    transform q is batch row q, real
         circular  batch rows 2 q and 2 q + 1 are its real and imaginary parts
         window    batch row q / chunks, the window of 2 POINTS elements from `hop` * (q % chunks) - `before` on: the first POINTS the real
                   part, the rest the imaginary part; of the result `hop` points from `after` on count
         round     the same, elements before the first being the last ones
RAGGED 1: points may lie beyond the sequence; they are zero and not stored.
#>
#import "lib/fft.wgsl" as fft
#macro params()
    inputs: u32,
    length: u32,
    batch: u32,
    hop: u32,
    chunks: u32,
    before: u32,
    after: u32,
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
#endmacro

<% macro vector(vec) -%>${"f32" if vec == 1 else "vec" ~ vec ~ "<f32>"}<%- endmacro %>

#macro load(boundary, gate, vec, ragged, points)
#set type = vector(vec)
#set suffix = "" if vec == 1 else vec
fn load_at(b: u32, channel: u32, n: u32) -> ${type} {
    #if ragged
    if n >= p.inputs { return ${type}(); }
    #endif
    var value = load${suffix}_u(p.u_offset + b * p.u_batch + channel * p.u_channel + n);
    #if gate != "none"
    value *= load${suffix}_v(p.v_offset + b * p.v_batch + channel * p.v_channel + n);
    #endif
    return value;
}
#if boundary in ["window", "round"]
// Before the first element the unsigned place is beyond the last.
fn load_re(q: u32, channel: u32, n: u32) -> ${type} {
    #if boundary == "window"
    return load_at(min(q / p.chunks, p.batch - 1u), channel, q % p.chunks * p.hop + n - p.before);
    #else
    let place = q % p.chunks * p.hop + n - p.before;
    let round = select(place - p.length, place + p.length, place > 0x7fffffffu);
    return load_at(min(q / p.chunks, p.batch - 1u), channel, select(round, place, place < p.length));
    #endif
}
fn load_im(q: u32, channel: u32, n: u32) -> ${type} { return load_re(q, channel, n + ${points}u); }
#elif boundary == "circular"
// Rows beyond the last do its work again and keep it to themselves.
fn load_re(q: u32, channel: u32, n: u32) -> ${type} { return load_at(min(2u * q, p.batch - 1u), channel, n); }
fn load_im(q: u32, channel: u32, n: u32) -> ${type} { return load_at(min(2u * q + 1u, p.batch - 1u), channel, n); }
#else
fn load_re(q: u32, channel: u32, n: u32) -> ${type} { return load_at(min(q, p.batch - 1u), channel, n); }
fn load_im(q: u32, channel: u32, n: u32) -> ${type} { return ${type}(); }
#endif
#endmacro

#macro store(boundary, gate, vec, ragged, points)
#set type = vector(vec)
#set suffix = "" if vec == 1 else vec
fn store_at(b: u32, channel: u32, n: u32, result: ${type}) {
    if ${"n >= p.length || " if ragged else ""}b >= p.batch { return; }
    var value = result;
    #if gate != "none"
    value *= load${suffix}_w(p.w_offset + b * p.w_batch + channel * p.w_channel + n);
    #endif
    store${suffix}_y(p.y_offset + b * p.y_batch + channel * p.y_channel + n, value);
}
#if boundary in ["window", "round"]
fn store_re(q: u32, channel: u32, n: u32, value: ${type}) {
    if n - p.after < p.hop { store_at(q / p.chunks, channel, q % p.chunks * p.hop + n - p.after, value); }
}
fn store_im(q: u32, channel: u32, n: u32, value: ${type}) { store_re(q, channel, n + ${points}u, value); }
#elif boundary == "circular"
fn store_re(q: u32, channel: u32, n: u32, value: ${type}) { store_at(2u * q, channel, n, value); }
fn store_im(q: u32, channel: u32, n: u32, value: ${type}) { store_at(2u * q + 1u, channel, n, value); }
#else
fn store_re(q: u32, channel: u32, n: u32, value: ${type}) { store_at(q, channel, n, value); }
#endif
#endmacro

#macro results(plan, boundary, vec, twist)
#set first = plan.steps[0]
#for j in range(0, plan.each // first.radix, vec)
{
    #if boundary != "circular"
    #for i in range(vec)
    let low${i} = start + ${fft.butterfly(plan, 0, j + i)}u;
    let back${i} = twiddles[${twist}u + low${i} / ${plan.columns}u * ${plan.spread}u + column + low${i} % ${plan.columns}u];
    #endfor
    #endif
    #for digit in range(first.radix)
    {
        let place = start + ${fft.point(plan, j * first.radix + digit)}u;
        let n = place / ${plan.columns}u * ${plan.spread}u + column + place % ${plan.columns}u;
        var re: ${vector(vec)};
        var im: ${vector(vec)};
        #for i in range(vec)
        #set part = "[" ~ i ~ "]" if vec > 1 else ""
        #set x = fft.register(plan, (j + i) * first.radix + digit)
        #if boundary == "causal"
        re${part} = real_times(times(${x}, back${i}), ${turn(-digit, 4 * first.radix)});
        #else
        let z${i} = ${x if boundary == "circular" else "times(times(" ~ x ~ ", back" ~ i ~ "), " ~ turn(-digit, 4 * first.radix) ~ ")"};
        re${part} = z${i}.x;
        im${part} = z${i}.y;
        #endif
        #endfor
        store_re(q, channel, n, re);
        #if boundary != "causal"
        store_im(q, channel, n, im);
        #endif
    }
    #endfor
}
#endfor
#endmacro
