// Discrete Fourier transforms of N points, N a product of up to 6 radices 2, 3, 4, 5, 7, 8, 11, 13, 16:
//   y[k] = scale * sum over n of x[n] e^(-2 pi i n k / N), FORWARD 0 with the other sign
//
// x and y: complex numbers (two elements each), a transform's at a distance in outer and inner ones, its points at another, so
// that rows, columns and transposed results are one kernel. Where the transform is the first of two, over the N columns of a matrix
// of SPREAD, its result is multiplied by e^(-2 pi i k inner / (N SPREAD)) (TWIST 1; Bailey's four steps).
//
// SIDE transforms a workgroup, in workgroup memory as planes of real and imaginary parts. A step replaces the points of a
// butterfly in place: digits of points turn into digits of frequencies in reverse order. LOAD and STORE say what neighbouring
// invocations have: "points" adjacent points of a transform, "sides" the same point of adjacent transforms.
// twiddles: for each step after the first (radix - 1) rows of factors; then, for TWIST, e^(i 2 pi m / (N SPREAD)) for m below
// 1024 and for the multiples of 1024.
#import "lib/tensor.wgsl" as t
#import "lib/complex.wgsl" as complex
#import "lib/fft.wgsl" as fft
#import "lib/butterfly.wgsl" as butterfly
#set radices = fft_radices([R1, R2, R3, R4, R5, R6])
#set count = radices | length
#set SIGN = -1 if FORWARD else 1

struct Params {
    transforms: u32,
    inner: u32,
    workgroups: u32,
    scale: f32,
    x_offset: u32,
    x_outer: u32,
    x_inner: u32,
    x_point: u32,
    y_offset: u32,
    y_outer: u32,
    y_inner: u32,
    y_point: u32,
}
${ t.params(PARAMS) }
${ t.prelude() }
${ complex.functions() }
${ t.input(1, "x", X) }
${ t.words(2, "twiddles", "vec2<f32>") }
${ t.output(3, "y", Y, 2) }
#if count > 1
var<workgroup> re: array<f32, ${N * SIDE}>;
var<workgroup> im: array<f32, ${N * SIDE}>;
#endif

fn place(side: u32, point: u32) -> u32 { return ${"point * " ~ SIDE ~ "u + side" if INTERLEAVE else "side * " ~ N ~ "u + point"}; }

@compute @workgroup_size(${WG})
fn main(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) grid: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let id = workgroup.y * grid.x + workgroup.x;
    if id >= p.workgroups { return; }
    let first = id * ${SIDE}u;
    #set ns = namespace(stride=N, high=1, table=0)
    #for R in radices
    #set ns.stride = ns.stride // R
    #set from_memory = loop.first
    #set to_memory = loop.last
    #set sides = LOAD == "sides" if loop.first else STORE == "sides" if loop.last else INTERLEAVE
    #if not loop.first
    workgroupBarrier();
    #endif
    for (var task = lane; task < ${SIDE * N // R}u; task += ${WG}u) {
        #if sides
        let side = task % ${SIDE}u;
        let b = task / ${SIDE}u;
        #else
        let side = task / ${N // R}u;
        let b = task % ${N // R}u;
        #endif
        #if from_memory or to_memory
        let transform = first + side;
        #endif
        let high = b / ${ns.stride}u;
        let at = high * ${R * ns.stride}u + b % ${ns.stride}u;
        #for d in range(R)
        var x${d} = vec2<f32>();
        #endfor
        #if from_memory
        if transform < p.transforms {
            let source = p.x_offset + transform / p.inner * p.x_outer + transform % p.inner * p.x_inner;
            #for d in range(R)
            x${d} = load2_x(source + (at + ${d * ns.stride}u) * p.x_point);
            #endfor
        }
        #else
        #for d in range(R)
        let p${d} = place(side, at + ${d * ns.stride}u);
        x${d} = vec2<f32>(re[p${d}], im[p${d}]);
        #endfor
        #for d in range(1, R)
        x${d} = times(x${d}, twiddles[${ns.table + (d - 1) * ns.high}u + high]);
        #endfor
        #endif
        #if R is even
        ${fft.dft(0, R, SIGN, 0, true, false, false)}
        #elif R > 1
        ${butterfly.odd(R, SIGN)}
        #endif
        #if to_memory
        if transform < p.transforms {
            <# The last digit is the most significant of the frequency; those before are reversed. #>
            var k = 0u;
            #set digits = namespace(high=ns.high, weight=1)
            #for Q in radices
            #if not loop.last
            #set digits.high = digits.high // Q
            k += high / ${digits.high}u % ${Q}u * ${digits.weight}u;
            #set digits.weight = digits.weight * Q
            #endif
            #endfor
            let target_at = p.y_offset + transform / p.inner * p.y_outer + transform % p.inner * p.y_inner;
            #for d in range(R)
            #set digit = bit_reverse(d, R) if R is even else d
            {
                let k = k + ${digit * ns.high}u;
                #if TWIST
                let m = k * (transform % p.inner);
                let w = times(twiddles[${TWIDDLES}u + (m & 1023u)], twiddles[${TWIDDLES + 1024}u + (m >> 10u)]);
                store2_y(target_at + k * p.y_point, times(x${d}, w) * p.scale);
                #else
                store2_y(target_at + k * p.y_point, x${d} * p.scale);
                #endif
            }
            #endfor
        }
        #else
        #for d in range(R)
        #set digit = bit_reverse(d, R) if R is even else d
        #if from_memory
        {
            let place = place(side, at + ${digit * ns.stride}u);
            re[place] = x${d}.x;
            im[place] = x${d}.y;
        }
        #else
        re[p${digit}] = x${d}.x;
        im[p${digit}] = x${d}.y;
        #endif
        #endfor
        #endif
    }
    #if not loop.first
    #set ns.table = ns.table + (R - 1) * ns.high
    #endif
    #set ns.high = ns.high * R
    #endfor
}
