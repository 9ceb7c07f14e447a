//! Stores of tunings on a device: whatever they say, results are right; files come back, or are ignored.

use std::path::{Path, PathBuf};
use std::time::Duration;

use flashwave::context::Tuning;
use flashwave::kernels::elementwise::Activation;
use flashwave::kernels::linear::{Linear, LinearArgs};
use flashwave::model::{Generation, Llama, Sampling, embedded};
use flashwave::tuned::{Search, compare, tune};
use flashwave::{Context, DType, Result, Tensor};
use kernels_tests::cases::all;
use kernels_tests::{Effort, Tally};

fn folder(name: &str) -> PathBuf {
    let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    std::fs::remove_dir_all(&folder).ok();
    folder
}

fn open(tuning: Tuning, folder: &Path) -> Context {
    let builder = Context::builder().tuning(tuning).pipeline_cache(folder);
    builder.build().expect("a device")
}

/// A product by few rows: one class, many candidates.
struct Product {
    tensors: [Tensor; 3],
}

impl Product {
    fn new(ctx: &Context) -> Result<Self> {
        let random = |shape, seed| kernels_tests::inputs::random(ctx, DType::F32, shape, seed);
        let (x, w) = (random([1, 512], 1)?, random([512, 512], 2)?);
        let out = Tensor::empty(ctx, DType::F32, [1, 512])?;
        Ok(Self {
            tensors: [x, w, out],
        })
    }

    fn run(&self, pass: &mut flashwave::Pass<'_>) -> Result<()> {
        let [x, w, out] = &self.tensors;
        let activation = Activation::None;
        Linear { activation }.run(pass, LinearArgs::new(x, w, out))
    }

    fn recipe(&self, ctx: &Context) -> String {
        let [x, w, out] = self.tensors.each_ref().map(Tensor::layout);
        let activation = Activation::None;
        let plan = Linear { activation }.plan(ctx.capabilities(), &LinearArgs::new(x, w, out));
        plan.expect("valid").product.recipe.to_string()
    }
}

fn search(seconds: u64) -> Search<'static> {
    Search {
        budget: Duration::from_secs(seconds),
        ceilings: None,
        skips: &|_| false,
    }
}

#[test]
fn any_candidate_of_any_class_computes_the_same() {
    let ctx = open(Tuning::Shuffled(1), &folder("shuffled"));
    let mut tally = Tally::default();
    for family in ["attention", "cache", "gemm", "mlp", "norm", "softmax"] {
        for case in all(family, Effort::Quick) {
            tally.add(&case, case.run(&ctx));
        }
    }
    assert!(tally.failures.is_empty(), "{:#?}", tally.failures);
    assert!(tally.passed > 20, "{}", tally.passed);
}

#[test]
fn what_tuning_finds_is_stored_and_taken_by_planners_from_then_on() {
    let folder = folder("stored");
    let ctx = open(Tuning::Stored, &folder);
    let product = Product::new(&ctx).expect("tensors");
    let untuned = product.recipe(&ctx);
    let reports = tune(&ctx, &search(60), &mut |pass, _| product.run(pass)).expect("tunes");
    let [report] = &reports[..] else {
        panic!("{reports:#?}")
    };
    assert!(
        report.candidates > 4 && report.timed == report.candidates,
        "{report:#?}"
    );
    let tuned = &ctx.capabilities().tuned;
    assert_eq!(tuned.entries().len(), 1);
    let compared = compare(&ctx, &mut |pass, _| product.run(pass), 3).expect("compares");
    assert!(
        compared.default_us > 0.0 && compared.tuned_us > 0.0,
        "{compared:?}"
    );

    // Whether it won or not: the best of the candidates as the store's winner.
    let (best, _) = report.best.clone().unwrap_or_else(|| {
        let label = "GemvTuning { team: Workgroup, per_team: 4, per_workgroup: 4, unroll: 4, workgroup: 256 }";
        (label.into(), 0.0)
    });
    tuned.set(&report.class, Some(&best));
    assert_ne!(product.recipe(&ctx), untuned, "{best}");
    let path = ctx
        .save_tuned()
        .expect("saves")
        .expect("a path")
        .to_path_buf();
    let again = open(Tuning::Stored, &folder);
    assert_eq!(again.capabilities().tuned.winner(&report.class), Some(best));
    assert_eq!(product.recipe(&again), product.recipe(&ctx));
    assert_eq!(product.recipe(&open(Tuning::Off, &folder)), untuned);

    // Another device's, a candidate that is none, and no JSON at all: planners are as before.
    let stored = std::fs::read_to_string(&path).expect("the file");
    let device = again.capabilities().tuned.device();
    let garbage = "\u{1}".repeat(100);
    let foreign = stored.replace("GemvTuning", "OtherTuning");
    for text in [
        &stored.replace(device, "another"),
        &foreign,
        &garbage,
        &stored[..60],
    ] {
        std::fs::write(&path, text).expect("writes");
        assert_eq!(
            product.recipe(&open(Tuning::Stored, &folder)),
            untuned,
            "{text}"
        );
    }
}

#[test]
fn a_model_tunes_what_it_first_runs_within_its_budget() {
    let weights = embedded::weights().expect("the embedded model");
    let text = |tuning| {
        let ctx = open(tuning, &folder("lazy"));
        let model = Llama::load(&ctx, &weights)?;
        let mut session = model.session(64)?;
        let tokens = Generation::of(&mut session, &[1, 40, 50], &Sampling::temperature(0.0))?;
        let tokens: Vec<u32> = tokens.ignore_eos().take(8).collect::<Result<_>>()?;
        Ok::<_, flashwave::Error>((tokens, ctx.capabilities().tuned.entries().len()))
    };
    let (untuned, none) = text(Tuning::Off).expect("generates");
    let started = std::time::Instant::now();
    let (tuned, _) = text(Tuning::Lazy(Duration::from_secs(4))).expect("generates");
    assert!(
        started.elapsed() < Duration::from_secs(60),
        "{:?}",
        started.elapsed()
    );
    assert_eq!((untuned.len(), none), (tuned.len(), 0));
    // Tokens differ only where two are as probable within rounding: not in this text.
    assert_eq!(untuned, tuned);
}
