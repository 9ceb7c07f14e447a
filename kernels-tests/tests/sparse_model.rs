//! Models that leave weights unread: exact at threshold zero, whatever the number of tokens; left sparse, the embedded
//! model still writes its grammar; what is refused.

use flashwave::kernels::elementwise::Activation;
use flashwave::kernels::gemm::Residual;
use flashwave::kernels::mlp::{Histogram, Predictor, SparseMlp, SparseMlpArgs};
use flashwave::model::{
    LayerSparsity, Llama, LlamaOptions, Sampling, SparseMethod, Thresholds, embedded,
};
use flashwave::{Context, DType, Tensor};
use kernels_tests::grammar::Grammar;

const METHODS: [SparseMethod; 2] = [SparseMethod::Cats, SparseMethod::Teal];

fn context() -> Context {
    Context::new().expect("an adapter")
}

fn load(ctx: &Context, sparsity: Vec<LayerSparsity>) -> Llama {
    let weights = embedded::weights().expect("opens");
    let options = LlamaOptions {
        sparsity,
        ..LlamaOptions::default()
    };
    Llama::load_with(ctx, &weights, options, &mut |_| ()).expect("loads")
}

fn layers(method: SparseMethod) -> Vec<LayerSparsity> {
    let weights = embedded::weights().expect("opens");
    vec![method.layer(&[]); weights.config().layers()]
}

fn write(model: &Llama, tokens: usize) -> Vec<u32> {
    let generation = model.generate(&[1], &Sampling::greedy()).expect("starts");
    generation
        .ignore_eos()
        .take(tokens)
        .map(|t| t.expect("a token"))
        .collect()
}

#[test]
fn at_zero_it_is_the_dense_model_and_sparse_it_still_writes_stories() {
    let ctx = context();
    let dense = load(&ctx, Vec::new());
    let text = write(&dense, 48);
    // By inputs at half it misspells a word ("grasss"): a model of a million weights has little to spare.
    for (method, sparsity) in [(SparseMethod::Cats, 0.5), (SparseMethod::Teal, 0.4)] {
        let exact = load(&ctx, layers(method));
        assert_eq!(write(&exact, 48), text, "{method:?}");
        let sparse = exact.calibrated(&text, sparsity).expect("thresholds");
        let story = write(&sparse, 40);
        let tokens = [vec![1], story].concat();
        let weights = embedded::weights().expect("opens");
        let written = weights
            .tokenizer()
            .expect("a tokenizer")
            .decode(&tokens)
            .expect("decodes");
        Grammar::load()
            .check(&written)
            .unwrap_or_else(|e| panic!("{method:?}: {e}\n{written}"));
    }
}

#[test]
fn a_prompt_and_its_tokens_one_by_one_are_the_same() {
    let ctx = context();
    for method in METHODS {
        let exact = load(&ctx, layers(method));
        let text = [1, 20, 35, 50, 7, 90, 33, 12];
        let sparse = exact.calibrated(&text, 0.5).expect("thresholds");
        let mut together = sparse.session(text.len()).expect("a session");
        let mut single = sparse.session(text.len()).expect("a session");
        let all = together
            .feed(&text)
            .expect("feeds")
            .to_f32_vec()
            .expect("reads");
        let mut last = Vec::new();
        for token in text {
            last = single
                .feed(&[token])
                .expect("feeds")
                .to_f32_vec()
                .expect("reads");
        }
        let largest = all.iter().fold(0.0f32, |m, v| m.max(v.abs()));
        let apart = all
            .iter()
            .zip(&last)
            .map(|(a, b)| (a - b).abs())
            .fold(0.0, f32::max);
        assert!(apart < 0.05 * largest, "{method:?}: {apart} of {largest}");
    }
}

/// The embedded model within a budget.
fn within(ctx: &Context, sparsity: Vec<LayerSparsity>, budget: u64) -> flashwave::Result<Llama> {
    let weights = embedded::weights().expect("opens");
    let options = LlamaOptions {
        sparsity,
        budget: Some(budget),
        ..LlamaOptions::default()
    };
    Llama::load_with(ctx, &weights, options, &mut |_| ())
}

#[test]
fn what_is_over_the_budget_is_brought_in_and_changes_nothing() {
    let ctx = context();
    let exact = load(&ctx, layers(SparseMethod::Cats));
    let text = write(&exact, 32);
    let sparse = exact.calibrated(&text, 0.5).expect("thresholds");
    let found = sparse.config().sparsity.clone();
    let expected = write(&sparse, 32);
    let one_by_one = |model: &Llama| -> Vec<f32> {
        let mut session = model.session(8).expect("a session");
        let tokens = text.iter().take(8);
        tokens
            .flat_map(|&t| {
                session
                    .feed(&[t])
                    .expect("feeds")
                    .to_f32_vec()
                    .expect("reads")
            })
            .collect()
    };
    let logits = one_by_one(&sparse);
    let all = within(&ctx, found.clone(), u64::MAX / 2).expect("loads");
    assert_eq!(all.streamed(), None, "all of it fits");
    let least = within(&ctx, found.clone(), 1)
        .err()
        .expect("refused")
        .to_string();
    let digits: String = least
        .split("at least ")
        .nth(1)
        .expect("says")
        .chars()
        .take_while(char::is_ascii_digit)
        .collect();
    let least: u64 = digits.parse().expect("a number");
    for budget in [least, least * 5 / 4, least * 3 / 2] {
        let model = within(&ctx, found.clone(), budget).expect("loads");
        // To the bit: the same sums in the same order.
        assert!(one_by_one(&model) == logits, "{budget}");
        assert_eq!(write(&model, 32), expected, "{budget}");
        let done = model.streamed().expect("streams");
        assert!(done.resident_bytes <= budget && done.resident_bytes < done.total_bytes);
        assert!(done.bytes > 0 && done.hits < done.fired, "{done:?}");
        assert!(budget == least || done.hits > 0, "{done:?}");
    }
    // Without thresholds every neuron fires, and the model is the dense one.
    let dense = within(&ctx, Vec::new(), least).expect("loads");
    assert_eq!(write(&dense, 12), text[..12]);
    let mut session = dense.session(4).expect("a session");
    assert!(session.observe().is_err());
    let teal = within(&ctx, layers(SparseMethod::Teal), least).err();
    let said = teal.expect("refused").to_string();
    assert!(said.contains("layer 0 is teal"), "{said}");
}

/// Predictors that score all neurons alike: below their threshold none may fire, and above it all.
#[test]
fn a_predictor_says_which_gates_are_read() {
    let ctx = context();
    let exact = load(&ctx, layers(SparseMethod::Cats));
    let c = exact.config();
    let (k, n) = (c.hidden_size, c.intermediate_size);
    let zeros = |shape: [usize; 2]| {
        let data = vec![0.0; shape[0] * shape[1]];
        Tensor::from_f32(&ctx, DType::F32, &data, shape).expect("zeros")
    };
    let predictor =
        |t: f32| Predictor::new(zeros([4, k]), zeros([n, 4]), t).expect("matrices that fit");
    let with = |t: f32| {
        exact
            .with_predictors(vec![predictor(t); c.layers])
            .expect("predictors")
    };
    let text = write(&exact, 12);
    assert_eq!(write(&with(-1.0), 12), text);
    assert_ne!(write(&with(1.0), 12), text);
    assert!(exact.with_predictors(vec![predictor(0.0)]).is_err());
    assert!(
        load(&ctx, Vec::new())
            .with_predictors(vec![predictor(0.0); c.layers])
            .is_err()
    );
}

#[test]
fn what_does_not_fit_is_refused_by_name() {
    let ctx = context();
    let said = |error: flashwave::Error| error.to_string();
    let exact = load(&ctx, layers(SparseMethod::Cats));
    let other = exact.with_sparsity(layers(SparseMethod::Teal));
    assert!(
        said(other.err().expect("refused")).starts_with("sparsity of layer 0: teal; allowed: cats")
    );
    let few = exact.with_sparsity(vec![
        SparseMethod::Cats.layer(&[f32::NAN]);
        exact.config().layers
    ]);
    assert!(said(few.err().expect("refused")).starts_with("threshold: NaN; allowed: finite"));
    let dense = load(&ctx, Vec::new())
        .session(4)
        .expect("a session")
        .observe();
    assert!(said(dense.expect_err("refused")).starts_with("sparsity: none"));

    let folder = std::env::temp_dir().join("flashwave-thresholds");
    std::fs::create_dir_all(&folder).expect("a folder");
    let path = folder.join("t.json");
    let weights = embedded::weights().expect("opens");
    let mut good = Thresholds::new(&weights, 0.5, layers(SparseMethod::Cats)).expect("new");
    good.save(&path).expect("saves");
    assert_eq!(Thresholds::load(&path, &weights).expect("loads"), good);
    good.sparsity = 1.5;
    good.save(&path).expect("saves");
    assert!(
        said(Thresholds::load(&path, &weights).expect_err("refused"))
            .contains("sparsity: 1.5; allowed: 0 to 1")
    );
    good.model = "2 layers of 3 x 4".into();
    good.save(&path).expect("saves");
    assert!(
        said(Thresholds::load(&path, &weights).expect_err("refused"))
            .contains("thresholds for 2 layers of 3 x 4")
    );

    let bins = Histogram::bins(&ctx).expect("bins");
    let counted = Histogram::read(&bins).expect("reads");
    assert!(
        said(counted.threshold(-0.1).expect_err("refused"))
            .starts_with("sparsity: -0.1; allowed: 0 to 1")
    );
    let zeros = |rows: usize, cols: usize| {
        Tensor::from_f32(&ctx, DType::F32, &vec![0.0; rows * cols], [rows, cols]).expect("zeros")
    };
    let (x, gate, pairs, y) = (zeros(17, 8), zeros(4, 8), zeros(4, 16), zeros(17, 8));
    let run = |threshold: f32, x: &Tensor, pairs: &Tensor, y: &Tensor| {
        let op = SparseMlp {
            activation: Activation::Silu,
            threshold,
        };
        let args = SparseMlpArgs {
            residual: Residual::None,
            ..SparseMlpArgs::new(x, &gate, pairs, y)
        };
        ctx.record(|pass| op.run(pass, &args)).err().map(said)
    };
    let error = |e: Option<String>, begins: &str| {
        let e = e.expect("refused");
        assert!(e.starts_with(begins), "{e}");
    };
    error(
        run(0.5, &x, &pairs, &y),
        "x: 17 rows; allowed: at most 16 rows",
    );
    let (x, y) = (x.rows(0..2).expect("rows"), y.rows(0..2).expect("rows"));
    error(run(-0.5, &x, &pairs, &y), "threshold: -0.5");
    error(
        run(0.5, &x, &gate, &y),
        "pairs: shape [4, 8]; allowed: [4, 16]",
    );
}
