// Long convolution in one kernel: y = w * conv(u * v, k), with k's spectrum planned ahead (spectrum.wgsl; the skip term is
// in its first tap, 1 / N in its scale).
//
// u, v (GATE_IN), w (GATE_OUT), y: [batch, channels, length], elements adjacent along time; transforms of them by BOUNDARY:
// lib/conv.wgsl. spectrum: [channels][E / 2][N / E] pairs of complex numbers, in the order in which `forward` leaves them in
// registers. twiddles: src/radix.rs. TRANSPOSE 1 correlates instead (the spectrum's conjugate): the gradient of u.
//
// BOUNDARY causal: one real sequence a transform of N >= length points, as the right-angle convolution: u is
// transformed to the frequencies (k - 1/4) / N, where products are negacyclic convolutions of 2 N real points; the real
// part of the result is the first N of them. So the zero padding exists nowhere, no step works on it, and nothing has to
// be unpacked. In polynomials: modulo x^N - i (Nussbaumer, Fast Fourier Transform and Convolution Algorithms, 1982).
// BOUNDARY window: all 2 N points are elements, N of them or more come out right (overlap-save).
// BOUNDARY circular: two batch rows of a channel are the real and the imaginary part of one transform of N = length.
//
// A workgroup has SIDE transforms of one channel side by side, N / E invocations each, and loops over `rounds` groups of
// transforms, so that the spectrum comes from memory once. E points an invocation stay in registers.
//
// Tried on an H100 (2026-11-25; causal, gated, f16, batch 64, 768 channels): 4096 points as 4, 8, 8, 16 by 16 points an invocation
// 1.67 ms with one plane, 2.34 with two: workgroup memory takes the cache from spectra and twiddles; largest radix first 2.66;
// 8 points an invocation 2.13; 16 halves of two bytes an access instead of eight 2.67. 1024 points: 4, 16, 16 0.38 ms, 8 points an
// invocation 0.41. 8192 points: 3.9 ms however taken apart by 16 points an invocation. f32 sequences
// (ungated): 4096 points as 16, 16, 16 read one by one 1.37 ms, as 4, 8, 8, 16 1.49; 8192, batch 16, as 8, 32, 32 0.78, as 4, 16, 8, 16 0.96.
//
// Tried on an H200 (2026-11-26; f32, ungated, 768 channels, batch 64, 8192 points 16; benches/record). By count 105 instructions and 22
// words through workgroup memory and cache a point: at 4096 points 0.63 and 0.53 ms, and what is measured is their sum. Of 1196 us at
// 4096 points exchanges are 393 (barriers 154), reads and writes 157, twiddles 79, the spectrum 47. Places free of bank conflicts
// (padding and order of invocations, tuning.rs) and scalars read as scalars: 1024 points 264 to 233 us, 4096 1366 to 1153, 2048 as
// 8, 16, 16 498 (as 4, 8, 8, 8 634). Dropped: one exchange in place of two, 64 points an invocation at 4096 points 1950, 32 at 1024 273;
// both parts of a number in an access of eight bytes 1477; u read ahead 1165; twiddles turned by constants from one a level 1138, but the
// error is 1.25 times as large (predicted, not built: benches/record/nvidia-h100/2026-11-26-fftconv-final.txt); halves of 8192 points as transforms of their own, one level less, 822 in place of 700.
#import "lib/tensor.wgsl" as t
#import "lib/complex.wgsl" as complex
#import "lib/fft.wgsl" as fft
#import "lib/conv.wgsl" as conv
#set plan = {"points": N, "steps": fft_steps([R1, R2, R3, R4, R5]), "each": E, "vec": VEC, "planes": PLANES, "pad": PAD,
             "columns": 1, "spread": 1, "inverse_at": INVERSE, "swaps": [0, S2, S3, S4, 0]}
#set LANES = N // E
#set FIRST = plan.steps[0]
#set BOTH = BOUNDARY != "causal"

struct Params {
    ${ conv.params() }
    rounds: u32,
    groups: u32,
    workgroups: u32,
}
${ t.params(PARAMS) }
${ t.prelude() }
${ complex.functions() }
${ t.input(1, "u", U, VEC) }
#if GATE_IN != "none"
${ t.input(2, "v", GATE_IN, VEC) }
#endif
#if GATE_OUT != "none"
${ t.input(3, "w", GATE_OUT, VEC) }
#endif
${ t.words(4, "spectrum", "vec4<f32>") }
${ t.words(5, "twiddles", "vec2<f32>") }
${ t.output(6, "y", Y, VEC) }
${ fft.memory(plan, SIDE) }
${ conv.load(BOUNDARY, GATE_IN, VEC, RAGGED, N) }
${ conv.store(BOUNDARY, GATE_OUT, VEC, RAGGED, N) }

@compute @workgroup_size(${LANES * SIDE})
fn main(
    @builtin(workgroup_id) workgroup: vec3<u32>,
    @builtin(num_workgroups) grid: vec3<u32>,
    @builtin(local_invocation_index) index: u32,
) {
    let id = workgroup.y * grid.x + workgroup.x;
    if id >= p.workgroups { return; }
    let channel = id / p.groups;
    let lane = index % ${LANES}u;
    let side = index / ${LANES}u;
    let start = lane * ${VEC}u;
    let column = 0u;
    let filter_at = channel * ${N // 2}u + lane;
    ${ fft.registers(plan) }
    for (var round = 0u; round < p.rounds; round++) {
        let q = (id % p.groups * p.rounds + round) * ${SIDE}u + side;
        #for j in range(0, E // FIRST.radix, VEC)
        #for digit in range(FIRST.radix)
        {
            let n = start + ${fft.point(plan, j * FIRST.radix + digit)}u;
            let re = load_re(q, channel, n);
            #if BOTH
            let im = load_im(q, channel, n);
            #endif
            #for i in range(VEC)
            #set part = "[" ~ i ~ "]" if VEC > 1 else ""
            x${(j + i) * FIRST.radix + digit} = vec2<f32>(re${part}, ${"im" ~ part if BOTH else "0.0"});
            #endfor
        }
        #endfor
        #endfor
        ${ fft.forward(plan, "none" if BOUNDARY == "circular" else "quarter", not BOTH) }
        #for r in range(E // 2)
        {
            let k = spectrum[filter_at + ${r * LANES}u];
            x${2 * r} = times(x${2 * r}, ${"conjugate(k.xy)" if TRANSPOSE else "k.xy"});
            x${2 * r + 1} = times(x${2 * r + 1}, ${"conjugate(k.zw)" if TRANSPOSE else "k.zw"});
        }
        #endfor
        ${ fft.inverse(plan) }
        ${ conv.results(plan, BOUNDARY, VEC, TWIST) }
    }
}
