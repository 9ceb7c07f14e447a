//! Transforms of lengths with large prime factors: a convolution with a chirp, by transforms of a power of two (Bluestein,
//! IEEE Trans. Audio Electroacoust. 18, 1970).

use std::f64::consts::PI;
use std::rc::Rc;

use super::plan::{self, Sequences, Split, Step, Table};
use super::real::{Kind, pointwise};
use super::{Direction, Fft};
use crate::capabilities::Capabilities;
use crate::error::{Error, Result};
use crate::reference::fft::radix2;

/// Scratch memory of the padded sequences and of their transforms; slot 0 is between two passes.
const SLOTS: [usize; 2] = [1, 2];

/// e^(sign pi i n^2 / N): exact angles, n^2 modulo 2 N.
fn chirp(n: usize, points: usize, sign: f64) -> [f64; 2] {
    let square = (n as u64 * n as u64) % (2 * points as u64);
    let (sin, cos) = (sign * PI * square as f64 / points as f64).sin_cos();
    [cos, sin]
}

fn narrow(v: [f64; 2]) -> [f32; 2] {
    v.map(|x| x as f32)
}

/// Plans the transform.
pub(super) fn transform(
    caps: &Capabilities,
    fft: &Fft,
    scale: f32,
    from: Sequences,
    to: Sequences,
) -> Result<Vec<Step>> {
    let n = from.points;
    let padded = (2 * n - 1).next_power_of_two();
    let split = Split::of(caps, padded, fft.most_points).ok_or_else(|| {
        let allowed = format!(
            "for this device, whose workgroup memory is {} bytes, factors up to 13",
            caps.workgroup_bytes
        );
        Error::argument(
            "x",
            format!("{n} points, a length with other prime factors"),
            allowed,
        )
    })?;
    let sign = f64::from(fft.direction.sign());
    let direction = fft.direction.sign() as u32;
    let chirps = Table {
        key: vec![4, direction, n as u32],
        make: Rc::new(move || (0..n).map(|i| narrow(chirp(i, n, sign))).collect()),
    };
    let spectrum = Table {
        key: vec![5, direction, n as u32],
        make: Rc::new(move || {
            let mut filter = vec![[0.0; 2]; padded];
            for i in 0..n {
                let value = chirp(i, n, -sign);
                filter[i] = value;
                filter[(padded - i) % padded] = value;
            }
            radix2(&filter, -1).into_iter().map(narrow).collect()
        }),
    };
    let first = Sequences::scratch(SLOTS[0], from.count(), padded);
    let second = Sequences::scratch(SLOTS[1], from.count(), padded);
    if 8 * (from.count() * padded) as u64 > caps.binding_bytes.min(caps.buffer_bytes) {
        let allowed = format!(
            "{} bytes when padded, this device's limit for one storage binding: split them",
            caps.binding_bytes
        );
        return Err(Error::argument(
            "x",
            format!("{} sequences of {n}", from.count()),
            allowed,
        ));
    }
    let mut steps = pointwise(
        caps,
        Kind::Chirp,
        from,
        first,
        padded,
        n,
        1.0,
        Some(chirps.clone()),
    )?;
    steps.extend(plan::transform(
        caps,
        split.clone(),
        Direction::Forward,
        1.0,
        first,
        second,
    )?);
    steps.extend(pointwise(
        caps,
        Kind::Product,
        second,
        first,
        padded,
        padded,
        1.0 / padded as f32,
        Some(spectrum),
    )?);
    steps.extend(plan::transform(
        caps,
        split,
        Direction::Inverse,
        1.0,
        first,
        second,
    )?);
    steps.extend(pointwise(
        caps,
        Kind::Product,
        second,
        to,
        n,
        n,
        scale,
        Some(chirps),
    )?);
    Ok(steps)
}
