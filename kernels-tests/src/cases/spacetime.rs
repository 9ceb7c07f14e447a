//! The recurrence of companion-matrix state spaces, in open and in closed loop.

use flashwave::DType::F32;
use flashwave::kernels::spacetime::{Recurrence, RecurrenceArgs};
use flashwave::reference::Real;
use flashwave::reference::spacetime::Companion;
use flashwave::{Capabilities, Launch, Layout, Tensor};

use crate::Case;
use crate::inputs::{Random, poisoned};
use crate::tolerance::{Ulps, check, farther};

/// Channels, order, steps.
const SHAPES: [(usize, usize, usize); 5] =
    [(1, 1, 1), (3, 2, 17), (5, 16, 40), (2, 33, 64), (2, 256, 9)];

/// A system whose parameters are f32 values, stable in open and in closed loop: what was rounded fades.
fn system(random: &mut Random, order: usize) -> Companion<f64> {
    let mut draw = |scale: f64| -> Vec<f64> {
        (0..order)
            .map(|_| f64::from((random.normal() * scale) as f32))
            .collect()
    };
    let size = (order as f64).sqrt();
    Companion {
        a: draw(0.5 / order as f64),
        b: draw(1.0),
        c: draw(0.2 / size),
        d: f64::from(0.1f32),
    }
}

/// The system in other arithmetic.
fn converted<R: Real>(s: &Companion<f64>) -> Companion<R> {
    let all = |v: &[f64]| v.iter().map(|&x| R::of(x)).collect();
    Companion {
        a: all(&s.a),
        b: all(&s.b),
        c: all(&s.c),
        d: R::of(s.d),
    }
}

/// Outputs, summed from the first place of the state on and from the last on, and the state after them; of one channel.
fn run<R: Real>(
    form: Recurrence,
    s: &Companion<f64>,
    x: &[f32],
    u: &[f32],
    steps: usize,
) -> [Vec<R>; 3] {
    let wide = |v: &[f32]| -> Vec<R> { v.iter().map(|&x| R::of(x.into())).collect() };
    let (s, start, u) = (converted::<R>(s), wide(x), wide(u));
    let mut x = start.clone();
    let y = match form {
        Recurrence::OpenLoop => s.open_loop(&mut x, &u),
        Recurrence::ClosedLoop => s.closed_loop(&mut x, u[0], steps),
    };
    let (mut reversed, mut z) = (Vec::with_capacity(steps), start);
    for k in 0..steps {
        let input = match form {
            Recurrence::OpenLoop => u[k],
            Recurrence::ClosedLoop => reversed.last().copied().unwrap_or(u[0]),
        };
        s.step(&mut z, input);
        let terms = z.iter().zip(&s.c).rev();
        let sum = terms.fold(R::zero(), |sum, (&x, &c)| sum + c * x);
        reversed.push(sum + s.d * input);
    }
    [y, reversed, x]
}

/// The correctness matrix.
pub fn cases() -> Vec<Case> {
    let mut cases = Vec::new();
    for form in [Recurrence::OpenLoop, Recurrence::ClosedLoop] {
        for (channels, order, steps) in SHAPES {
            let name = format!("{form:?} {channels} of order {order}, {steps} steps");
            let group = format!("{form:?}").to_lowercase();
            cases.push(Case::new("spacetime", group, name.clone(), move |ctx| {
                let mut random = Random::new(Case::seed(&name));
                let systems: Vec<_> = (0..channels).map(|_| system(&mut random, order)).collect();
                let inputs = if form == Recurrence::OpenLoop {
                    steps
                } else {
                    1
                };
                let u = random.normals(channels * inputs, F32);
                let x = random.normals(channels * order, F32);
                let put = |of: &dyn Fn(&Companion<f64>) -> Vec<f64>| {
                    let all = systems.iter().flat_map(of).map(|x| x as f32);
                    Tensor::from_slice(ctx, &all.collect::<Vec<_>>(), [channels, order])
                };
                let d: Vec<f32> = systems.iter().map(|s| s.d as f32).collect();
                let state = Tensor::from_slice(ctx, &x, [channels, order])?;
                let y = poisoned(ctx, F32, [channels, steps])?;
                let args = RecurrenceArgs {
                    a: &put(&|s| s.a.clone())?,
                    b: &put(&|s| s.b.clone())?,
                    c: &put(&|s| s.c.clone())?,
                    d: &Tensor::from_slice(ctx, &d, [channels])?,
                    u: &Tensor::from_slice(ctx, &u, [channels, inputs])?,
                    state: &state,
                    y: &y,
                };
                ctx.record(|pass| form.run(pass, args))?;
                let (mut exact, mut naive): ([Vec<f64>; 3], [Vec<f32>; 3]) = Default::default();
                for (i, s) in systems.iter().enumerate() {
                    let (x, u) = (&x[i * order..][..order], &u[i * inputs..][..inputs]);
                    for (all, one) in exact.iter_mut().zip(run::<f64>(form, s, x, u, steps)) {
                        all.extend(one);
                    }
                    for (all, one) in naive.iter_mut().zip(run::<f32>(form, s, x, u, steps)) {
                        all.extend(one);
                    }
                }
                let [naive, reversed, naive_state] = naive;
                let naive = farther(&exact[0], [naive, reversed]);
                let outputs = check(&y.to_vec::<f32>()?, &exact[0], &naive, Ulps(0.0))?;
                let state = state.to_vec::<f32>()?;
                let state = check(&state, &exact[2], &naive_state, Ulps(0.0))?;
                Ok(outputs.and(state))
            }));
        }
    }
    cases
}

/// Every variant: both forms, every width of a workgroup.
pub fn launches(caps: &Capabilities) -> Vec<Launch> {
    let f32s = |shape: &[usize]| Layout::contiguous(F32, shape);
    let plan = |form: Recurrence, order: usize| {
        let (system, y) = (f32s(&[2, order])?, f32s(&[2, 7])?);
        let inputs = if form == Recurrence::OpenLoop { 7 } else { 1 };
        let args = RecurrenceArgs {
            a: &system,
            b: &system,
            c: &system,
            d: &f32s(&[2])?,
            u: &f32s(&[2, inputs])?,
            state: &system,
            y: &y,
        };
        form.plan(caps, &args)
    };
    let orders = (0..=8).map(|q| 1 << q);
    orders
        .flat_map(|order| [Recurrence::OpenLoop, Recurrence::ClosedLoop].map(|f| plan(f, order)))
        .filter_map(Result::ok)
        .collect()
}
