//! The runtime itself: errors that name their cause, a context that goes on working after them, a decode step
//! that makes no allocation.

use flashwave::context::SoftwareAdapters;
use flashwave::kernels::elementwise::{Activation, Binary, BinaryOp, Unary, cast};
use flashwave::kernels::fft::Fft;
use flashwave::model::{Llama, Sampling, embedded};
use flashwave::recorder::Profile;
use flashwave::{Context, DType, Error, Tensor};

fn context() -> Context {
    Context::new().expect("an adapter")
}

/// That the context computes: what every test of an error ends with.
fn works(ctx: &Context) {
    let x = Tensor::from_slice(ctx, &[1.0f32, -2.0, 3.0], [3]).expect("uploads");
    let y = Unary(Activation::Relu).forward(&x).expect("runs");
    assert_eq!(y.to_vec::<f32>().expect("reads"), [1.0, 0.0, 3.0]);
}

fn message<T: std::fmt::Debug>(result: Result<T, Error>) -> String {
    result.expect_err("an error").to_string()
}

#[test]
fn tensors_round_trip_in_every_type_and_at_ragged_lengths() {
    let ctx = context();
    for n in [1, 2, 3, 5, 255, 257] {
        let bytes: Vec<i8> = (0..n).map(|i| (i % 256) as u8 as i8).collect();
        let tensor = Tensor::from_slice(&ctx, &bytes, [n]).expect("uploads");
        assert_eq!(tensor.to_vec::<i8>().expect("reads"), bytes);
        let halves: Vec<half::f16> = (0..n)
            .map(|i| half::f16::from_f32(i as f32 / 7.0))
            .collect();
        let tensor = Tensor::from_slice(&ctx, &halves, [1, n]).expect("uploads");
        assert_eq!(tensor.to_vec::<half::f16>().expect("reads"), halves);
        // From the middle of a word, and to the middle of one.
        let tail = tensor.narrow(1, n / 2..n).expect("a part");
        assert_eq!(tail.to_vec::<half::f16>().expect("reads"), halves[n / 2..]);
    }
}

#[test]
fn bad_arguments_are_named_and_the_context_goes_on() {
    let ctx = context();
    let x = Tensor::from_slice(&ctx, &[0.0f32; 6], [2, 3]).expect("uploads");
    let y = Tensor::from_slice(&ctx, &[0.0f32; 6], [3, 2]).expect("uploads");
    let ids = Tensor::from_slice(&ctx, &[0u32; 6], [2, 3]).expect("uploads");
    assert!(message(Tensor::empty(&ctx, DType::F32, [2, 0])).contains("shape: [2, 0]"));
    assert!(
        message(Tensor::from_slice(&ctx, &[1.0f32], [2]))
            .contains("data: 4 bytes; allowed: 8 bytes")
    );
    assert!(
        message(Binary(BinaryOp::Add).forward(&x, &y))
            .starts_with("b: f32 [3, 2]; allowed: the shape of y")
    );
    assert!(
        message(Unary(Activation::Silu).forward(&ids)).contains("u32; allowed: f32, f16 or bf16")
    );
    assert!(message(cast(&x, DType::I8)).contains("i8"));
    assert!(message(x.to_vec::<u32>()).contains("element type: u32"));
    assert!(message(x.transpose(0, 1).expect("a view").to_vec::<f32>()).contains("contiguous"));
    assert!(
        message(ctx.record(|pass| Unary(Activation::None).run(pass, &x, &x)))
            .contains("same buffer")
    );
    works(&ctx);
}

#[test]
fn a_tensor_over_the_binding_limit_is_refused_with_the_limit() {
    let ctx = context();
    let limit = ctx.capabilities().binding_bytes as usize;
    let error = message(Tensor::empty(&ctx, DType::F32, [limit / 4 + 1024]));
    assert!(error.contains("limit for one storage binding"), "{error}");
    works(&ctx);
}

#[test]
fn a_failed_recording_submits_nothing() {
    let ctx = context();
    let x = Tensor::from_slice(&ctx, &[2.0f32; 4], [4]).expect("uploads");
    let y = Tensor::from_slice(&ctx, &[7.0f32; 4], [4]).expect("uploads");
    let result: Result<(), Error> = ctx.record(|pass| {
        Unary(Activation::None).run(pass, &x, &y)?;
        Err(Error::argument("test", "failed", "nothing"))
    });
    assert!(result.is_err());
    assert_eq!(y.to_vec::<f32>().expect("reads"), [7.0; 4]);
    works(&ctx);
}

#[test]
fn what_a_device_refuses_is_an_error() {
    let ctx = context();
    let x = Tensor::from_slice(&ctx, &[2.0f32; 4], [4]).expect("uploads");
    let y = Tensor::empty(&ctx, DType::F32, [4]).expect("allocates");
    let op = Unary(Activation::Relu);
    let planned = op.plan(ctx.capabilities(), x.layout(), y.layout());
    // More workgroups than any device takes, which a planner would have refused.
    let mut launch = planned.expect("plans");
    launch.grid = [u32::MAX, 1, 1];
    let result = ctx.record(|pass| pass.launch(&launch, &[&x, &y]));
    assert!(matches!(result, Err(Error::Validation(_))), "{result:?}");
    works(&ctx);
}

#[test]
fn a_lost_device_is_an_error_for_every_later_call() {
    let ctx = context();
    let x = Tensor::from_slice(&ctx, &[2.0f32; 4], [4]).expect("uploads");
    ctx.destroy();
    assert!(matches!(x.to_vec::<f32>(), Err(Error::DeviceLost(_))));
    assert!(matches!(
        Unary(Activation::Relu).forward(&x),
        Err(Error::DeviceLost(_))
    ));
    assert!(matches!(
        Tensor::empty(&ctx, DType::F32, [4]),
        Err(Error::DeviceLost(_))
    ));
    // Another context is not concerned.
    works(&context());
}

#[test]
fn no_adapter_is_an_error_that_says_what_was_there() {
    let error = message(Context::builder().adapter_name("no such adapter").build());
    assert!(
        error.contains("no such adapter") && error.contains("found"),
        "{error}"
    );
    let builder = Context::builder().software(SoftwareAdapters::Only);
    assert!(builder.build().is_ok() || cfg!(not(target_os = "linux")));
}

#[test]
fn a_pass_reports_gpu_times() {
    let ctx = context();
    if !ctx.capabilities().timestamps {
        return;
    }
    let x = Tensor::from_slice(&ctx, &vec![1.0f32; 1 << 16], [1 << 16]).expect("uploads");
    let y = Tensor::empty(&ctx, DType::F32, [1 << 16]).expect("allocates");
    let both = |pass: &mut flashwave::Pass<'_>| {
        Unary(Activation::Silu).run(pass, &x, &y)?;
        Unary(Activation::Relu).run(pass, &x, &y)
    };
    let (_, times) = ctx.profile(Profile::Pass, both).expect("runs");
    assert!(times.expect("times").total.as_nanos() > 0);
    let (_, times) = ctx.profile(Profile::EachLaunch, both).expect("runs");
    let launches = times.expect("times").launches;
    assert!(
        launches.len() == 2 && launches[0].recipe.to_string().contains("silu"),
        "{launches:?}"
    );
}

#[test]
fn a_decode_step_makes_no_buffer_and_one_submission() {
    let ctx = context();
    let model = Llama::load(&ctx, &embedded::weights().expect("opens")).expect("loads");
    let mut session = model.session(64).expect("a session");
    let mut generation = session
        .generate(&[0], &Sampling::greedy())
        .expect("starts")
        .ignore_eos();
    for _ in 0..4 {
        generation.next().expect("a token").expect("runs");
    }
    let (buffers, submissions) = (ctx.buffers_created(), ctx.submissions());
    for _ in 0..8 {
        generation.next().expect("a token").expect("runs");
    }
    assert_eq!(
        ctx.buffers_created(),
        buffers,
        "buffers made by decode steps"
    );
    assert_eq!(
        ctx.submissions() - submissions,
        8,
        "submissions of compute work"
    );
}

#[test]
fn sessions_refuse_what_does_not_fit() {
    let ctx = context();
    let model = Llama::load(&ctx, &embedded::weights().expect("opens")).expect("loads");
    assert!(
        model
            .session(0)
            .is_err_and(|e| e.to_string().starts_with("capacity: 0"))
    );
    assert!(
        model
            .session(100_000)
            .is_err_and(|e| e.to_string().contains("1 to 512"))
    );
    let mut session = model.session(4).expect("a session");
    assert!(message(session.feed(&[]).map(|_| ())).starts_with("tokens: none"));
    assert!(
        message(session.feed(&[1, 512]).map(|_| ()))
            .starts_with("tokens[1]: 512; allowed: 0 to 511")
    );
    assert!(message(session.feed(&[0; 5]).map(|_| ())).contains("the session's capacity"));
    let first = session
        .feed(&[0, 5])
        .expect("feeds")
        .to_vec::<f32>()
        .expect("reads");
    session.feed(&[6, 7]).expect("feeds");
    assert!(session.feed(&[8]).is_err());
    session.truncate(0).expect("everything may be forgotten");
    let again = session
        .feed(&[0, 5])
        .expect("feeds")
        .to_vec::<f32>()
        .expect("reads");
    assert_eq!(first, again);
    let bad = session
        .generate(&[0], &Sampling::temperature(f32::INFINITY))
        .map(|_| ());
    assert!(message(bad).starts_with("temperature: inf"));
    works(&ctx);
}

/// A transform whose steps meet in scratch memory, while other threads ask for more of it.
#[test]
fn threads_share_a_context() {
    let ctx = context();
    let transform = |rows: usize| {
        let values: Vec<f32> = (0..rows * 34).map(|i| (i as f32).sin()).collect();
        let x = Tensor::from_slice(&ctx, &values, [rows, 17, 2])?;
        let y = Tensor::empty(&ctx, DType::F32, [rows, 17, 2])?;
        ctx.record(|pass| Fft::forward().run(pass, &x, &y))?;
        y.to_vec::<f32>()
    };
    let alone = transform(1).expect("runs");
    std::thread::scope(|scope| {
        let each = |thread: usize| {
            let (transform, alone) = (&transform, &alone);
            scope.spawn(move || {
                for rows in 1..40 {
                    let y = transform(rows * (thread + 1)).expect("runs");
                    assert_eq!(y[..34], alone[..], "{rows} rows");
                }
            })
        };
        let threads: Vec<_> = (0..4).map(each).collect();
        for thread in threads {
            thread.join().expect("all alike");
        }
    });
}
