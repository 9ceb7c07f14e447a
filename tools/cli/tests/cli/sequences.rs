//! `flashwave run` of what works on sequences: transforms, long convolutions, Hyena's operator, SpaceTime's recurrence.

use flashwave::DType::{F16, F32};
use flashwave::kernels::fftconv::Boundary;
use flashwave::reference::Real;
use flashwave::reference::fft::{dft, radix2};
use flashwave::reference::fftconv::{by_fft, by_quarters, convolve, gated};
use flashwave::reference::hyena::{OperatorState, operator};
use flashwave::reference::spacetime::Companion;
use kernels_tests::inputs::{Random, round, widen};

use crate::common::{Tensor, compare, flashwave, folder, run, save};

fn complex<R: Copy>(x: &[R]) -> Vec<[R; 2]> {
    x.chunks(2).map(|c| [c[0], c[1]]).collect()
}

#[test]
fn a_transform() {
    let (rows, n) = (3, 64);
    let x = Random::new(1).normals(rows * 2 * n, F32);
    let input = [Tensor::float("x", F32, &[rows, n, 2], &x)];
    let out = run("fft", "fft", &["direction=forward"], &input);
    let exact = x
        .chunks(2 * n)
        .flat_map(|row| dft(&complex(&widen(row)), -1));
    let naive = x.chunks(2 * n).flat_map(|row| radix2(&complex(row), -1));
    let (exact, naive): (Vec<_>, Vec<_>) = (exact.flatten().collect(), naive.flatten().collect());
    compare(&out, "out", F32, &[rows, n, 2], &exact, &naive);
}

#[test]
fn long_convolutions() {
    let (batch, channels, length) = (2, 3, 128);
    let shape = [batch, channels, length];
    let mut random = Random::new(2);
    let [u, v, w] = [(); 3].map(|()| random.normals(batch * channels * length, F32));
    let (k, d) = (
        random.normals(channels * length, F32),
        random.normals(channels, F32),
    );
    let inputs = [
        Tensor::float("u", F32, &shape, &u),
        Tensor::float("v", F32, &shape, &v),
        Tensor::float("w", F32, &shape, &w),
        Tensor::float("k", F32, &[channels, length], &k),
        Tensor::float("d", F32, &[channels], &d),
    ];
    for (name, boundary) in [
        ("causal", Boundary::Causal),
        ("circular", Boundary::Circular),
    ] {
        let set = format!("boundary={name}");
        let out = run(&format!("fft_conv {name}"), "fft_conv", &[&set], &inputs);
        let (mut exact, mut naive) = (Vec::new(), Vec::new());
        for row in 0..batch * channels {
            let part = |x: &[f32]| x[row * length..][..length].to_vec();
            let (u, v, w) = (part(&u), part(&v), part(&w));
            let (k, d) = (&k[row % channels * length..][..length], d[row % channels]);
            let (wide_v, wide_w) = (widen(&v), widen(&w));
            let gates = [Some(&wide_v[..]), Some(&wide_w[..])];
            let sum = |u: &[f64], k: &[f64]| convolve(boundary, u, k);
            exact.extend(gated(sum, &widen(&u), gates, &widen(k), Some(d.into())));
            let textbook = |u: &[f32], k: &[f32]| by_fft(boundary, u, k);
            naive.extend(gated(textbook, &u, [Some(&v), Some(&w)], k, Some(d)));
        }
        compare(&out, "out", F32, &shape, &exact, &naive);
    }
}

/// A filter that keeps one in four frequencies: in f16, where a device has matrix units; elsewhere the pattern is refused by name.
#[test]
fn a_filter_that_is_zero_at_most_frequencies() {
    let (length, kept) = (1024, 1);
    let shape = [1, 1, length];
    let mut random = Random::new(3);
    let (u, k) = (random.normals(length, F16), random.normals(length, F32));
    let inputs = [
        Tensor::float("u", F16, &shape, &u),
        Tensor::float("k", F32, &[1, length], &k),
    ];
    let set = format!("kept={kept}");
    let sets = ["arithmetic=half", &set];
    let test = "fft_conv kept";
    let folder = folder(test);
    let (input, output) = (
        folder.join("try.safetensors"),
        folder.join("got.safetensors"),
    );
    save(&input, &inputs);
    let (input, output) = (input.to_string_lossy(), output.to_string_lossy());
    let tried = flashwave(&[
        "run", "fft_conv", "--input", &input, "--output", &output, "--set", sets[0], "--set",
        sets[1],
    ]);
    if !tried.status.success() {
        let errors = String::from_utf8_lossy(&tried.stderr);
        assert!(errors.contains("pattern: Kept(1)"), "{errors}");
        return;
    }
    let out = run(test, "fft_conv", &sets, &inputs);
    let keep = |i: usize| i.is_multiple_of(4);
    let exact = by_quarters(length, &widen(&u), &widen(&k), keep, |x| x);
    let naive = by_quarters(length, &u, &k, keep, |x: f32| round(x, F16));
    let naive: Vec<f32> = naive.into_iter().map(|y| round(y, F16)).collect();
    compare(&out, "out", F16, &shape, &exact, &naive);
}

#[test]
fn a_hyena_operator() {
    let (tokens, channels, taps) = (37, 5, 3);
    let mut random = Random::new(4);
    let projection = random.normals(tokens * 3 * channels, F32);
    let (weight, bias) = (
        random.normals(3 * channels * taps, F32),
        random.normals(3 * channels, F32),
    );
    let k = random.normals(channels * tokens, F32);
    let rows = weight.chunks(taps).zip(&bias);
    let short: Vec<f32> = rows.flat_map(|(w, b)| [w, &[*b]].concat()).collect();
    let inputs = [
        Tensor::float("projection", F32, &[tokens, 3 * channels], &projection),
        Tensor::float("short", F32, &[3 * channels, taps + 1], &short),
        Tensor::float("k", F32, &[channels, tokens], &k),
    ];
    let out = run("hyena", "hyena", &[], &inputs);
    /// [channels][tokens], as the program has it.
    fn all<R: Real + Default>([projection, weight, bias, k]: [&[R]; 4], tokens: usize) -> Vec<R> {
        let channels = bias.len() / 3;
        let lags = (0..tokens).map(|lag| (0..channels).map(|c| k[c * tokens + lag]).collect());
        let (lags, mut state) = (lags.collect::<Vec<Vec<R>>>(), OperatorState::default());
        let rows = projection.chunks(3 * channels);
        let y: Vec<Vec<R>> = rows
            .map(|row| operator(&mut state, row.to_vec(), weight, bias, &lags))
            .collect();
        (0..channels)
            .flat_map(|c| y.iter().map(move |y| y[c]))
            .collect()
    }
    let wide = [&projection, &weight, &bias, &k].map(|x| widen(x));
    let exact = all([&wide[0], &wide[1], &wide[2], &wide[3]], tokens);
    let naive = all([&projection, &weight, &bias, &k], tokens);
    compare(&out, "out", F32, &[channels, tokens], &exact, &naive);
}

#[test]
fn a_state_space() {
    let (channels, order, steps) = (3, 4, 9);
    let mut random = Random::new(5);
    let [a, b, c] = [0.2, 1.0, 1.0].map(|s| random.scaled_normals(channels * order, F32, s));
    let (d, u) = (
        random.normals(channels, F32),
        random.normals(channels * steps, F32),
    );
    fn systems<R: Real>([a, b, c, d]: [&[R]; 4]) -> Vec<Companion<R>> {
        let order = a.len() / d.len();
        let part = |x: &[R], i: usize| x[i * order..][..order].to_vec();
        (0..d.len())
            .map(|i| Companion {
                a: part(a, i),
                b: part(b, i),
                c: part(c, i),
                d: d[i],
            })
            .collect()
    }
    fn outputs<R: Real>(all: &[Companion<R>], u: &[R], closed: Option<usize>) -> Vec<R> {
        let rows = all.iter().zip(u.chunks(u.len() / all.len()));
        rows.flat_map(|(s, u)| {
            let mut x = vec![R::zero(); s.a.len()];
            match closed {
                Some(steps) => s.closed_loop(&mut x, u[0], steps),
                None => s.open_loop(&mut x, u),
            }
        })
        .collect()
    }
    let wide = [&a, &b, &c, &d].map(|x| widen(x));
    let exact = systems([&wide[0], &wide[1], &wide[2], &wide[3]]);
    let naive = systems([&a, &b, &c, &d]);
    let matrix = [channels, order];
    for (name, given, closed) in [("open", steps, None), ("closed", 1, Some(steps))] {
        let u: Vec<f32> = u.chunks(steps).flat_map(|u| u[..given].to_vec()).collect();
        let inputs = [
            Tensor::float("a", F32, &matrix, &a),
            Tensor::float("b", F32, &matrix, &b),
            Tensor::float("c", F32, &matrix, &c),
            Tensor::float("d", F32, &[channels], &d),
            Tensor::float("u", F32, &[channels, given], &u),
        ];
        let (form, count) = (format!("loop={name}"), format!("steps={steps}"));
        let sets = [&form[..], &count];
        let sets = if closed.is_some() {
            &sets[..]
        } else {
            &sets[..1]
        };
        let out = run(&format!("spacetime {name}"), "spacetime", sets, &inputs);
        let exact = outputs(&exact, &widen(&u), closed);
        let naive = outputs(&naive, &u, closed);
        compare(&out, "out", F32, &[channels, steps], &exact, &naive);
    }
}
