//! `flashwave quantize`.

use std::io::{Write, stdout};
use std::path::PathBuf;

use anyhow::{Context as _, Result, bail};
use clap::Args;
use flashwave::kernels::attention::KvFormat;
use flashwave::loader::{Weights, quantize_folder};
use flashwave::model::{Llama, LlamaOptions, Sampling, embedded};
use flashwave::quant::{Clip, Format, Scale};
use flashwave::{Context, DType};

use crate::device::DeviceArgs;

/// Options of `flashwave quantize`.
#[derive(Args)]
pub struct QuantizeArgs {
    /// A Hugging Face folder of a Llama (to be written), or any model (to be evaluated); the embedded model if absent
    #[arg(long, value_name = "PATH")]
    model: Option<PathBuf>,
    /// The tokenizer, for a model without one
    #[arg(long, requires = "model")]
    tokenizer: Option<PathBuf>,
    /// The format: int8, int4, nf4, mxfp4, q4_0, …, or code/group/scale[/zero]; with --eval every one if absent
    #[arg(long)]
    format: Option<Format>,
    /// How far the levels of what is written reach: absmax, percentile:P or mse (the least squared error of each group)
    #[arg(long, default_value_t)]
    clip: Clip,
    /// Write the quantised model into this folder
    #[arg(long, value_name = "FOLDER", requires_all = ["model", "format"])]
    out: Option<PathBuf>,
    /// Print the loss of the quantised model beside that of f32
    #[arg(long)]
    eval: bool,
    /// Tokens of the text that is evaluated: what the model writes by itself in f32, at temperature 1
    #[arg(long, default_value_t = 256)]
    tokens: usize,
}

/// Runs the command.
pub fn run(device: &DeviceArgs, args: &QuantizeArgs) -> Result<()> {
    if args.out.is_none() && !args.eval {
        bail!("--out: absent; allowed: a folder, or --eval");
    }
    if let (Some(out), Some(model), Some(format)) = (&args.out, &args.model, args.format) {
        let written = quantize_folder(model, format, args.clip, out)?;
        writeln!(
            stdout(),
            "{}: {} matrices {format}, {} bytes of {}",
            out.display(),
            written.matrices,
            written.after,
            written.before
        )?;
    }
    if args.eval {
        evaluate(&device.open()?, args)?;
    }
    Ok(())
}

/// Loss and distance of one way to store the weights.
struct Score {
    /// Mean negative log-likelihood of the text's tokens, in nats.
    loss: f64,
    /// Mean Kullback-Leibler divergence from f32's predictions, in nats.
    divergence: f64,
    /// Positions with f32's most probable token.
    agreement: f64,
}

fn evaluate(ctx: &Context, args: &QuantizeArgs) -> Result<()> {
    let weights = match &args.model {
        Some(path) => Weights::open_with_tokenizer(path, args.tokenizer.as_deref())?,
        None => embedded::weights()?,
    };
    let load = |dtype: DType| -> Result<Llama> {
        let options = LlamaOptions {
            weights: Some(dtype),
            kv: Some(KvFormat::F32),
            ..LlamaOptions::default()
        };
        Ok(Llama::load_with(ctx, &weights, options, &mut |_| ())?)
    };
    let exact = load(DType::F32)?;
    let tokens = args.tokens.min(exact.config().max_positions);
    let start = exact
        .config()
        .bos_token_id
        .context("the model has no token to begin with")?;
    let sampling = Sampling::temperature(1.0).seed(0);
    let mut text = vec![start];
    for token in exact
        .generate(&[start], &sampling)?
        .ignore_eos()
        .take(tokens - 1)
    {
        text.push(token?);
    }
    let vocab = exact.config().vocab_size;
    let predictions = |model: &Llama| -> Result<Vec<f64>> {
        let logits = model.session(text.len())?.feed_all(&text)?.to_f32_vec()?;
        Ok(logits.chunks(vocab).flat_map(log_softmax).collect())
    };
    let expected = predictions(&exact)?;
    let mut out = stdout().lock();
    writeln!(
        out,
        "{} tokens that the model wrote in f32 at temperature 1; loss in nats",
        text.len()
    )?;
    writeln!(
        out,
        "{:<14} {:>7} {:>10} {:>10} {:>11} {:>9}",
        "format", "bits", "loss", "- f32's", "divergence", "same top"
    )?;
    let formats = match args.format {
        Some(format) => vec![format],
        None => {
            let written = |f: &Format| !matches!(f.scale, Scale::ByteF16(_));
            Format::NAMED
                .iter()
                .map(|&(_, f)| f)
                .filter(written)
                .collect()
        }
    };
    let types = [DType::F32, DType::F16, DType::BF16].into_iter();
    let mut base = None;
    for dtype in types.chain(formats.into_iter().map(DType::Quant)) {
        let model = load(dtype)?;
        let score = score(&text, vocab, &expected, &predictions(&model)?);
        let base = *base.get_or_insert(score.loss);
        let elements = parameters(&model);
        writeln!(
            out,
            "{:<14} {:>7.2} {:>10.4} {:>+10.4} {:>11.2e} {:>8.1}%",
            dtype.to_string(),
            8.0 * model.bytes_per_token() as f64 / elements,
            score.loss,
            score.loss - base,
            score.divergence,
            100.0 * score.agreement
        )?;
    }
    Ok(())
}

/// Elements of the matrices that a token reads.
fn parameters(model: &Llama) -> f64 {
    let c = model.config();
    let attention = (2 * c.heads + 2 * c.kv_heads) * c.head_dim * c.hidden_size;
    let layer = attention + 3 * c.intermediate_size * c.hidden_size;
    (c.layers * layer + c.vocab_size * c.hidden_size) as f64
}

fn log_softmax(logits: &[f32]) -> Vec<f64> {
    let most = logits.iter().copied().fold(f32::MIN, f32::max);
    let sum: f64 = logits.iter().map(|&l| f64::from(l - most).exp()).sum();
    logits
        .iter()
        .map(|&l| f64::from(l - most) - sum.ln())
        .collect()
}

fn score(text: &[u32], vocab: usize, expected: &[f64], found: &[f64]) -> Score {
    let positions = (text.len() - 1) as f64;
    let (mut loss, mut divergence, mut same) = (0.0, 0.0, 0.0);
    let top = |row: &[f64]| (0..row.len()).max_by(|&a, &b| row[a].total_cmp(&row[b]));
    let rows = expected.chunks(vocab).zip(found.chunks(vocab));
    for ((p, q), &next) in rows.zip(&text[1..]) {
        loss -= q[next as usize] / positions;
        divergence += p.iter().zip(q).map(|(p, q)| p.exp() * (p - q)).sum::<f64>() / positions;
        same += f64::from(top(p) == top(q)) / positions;
    }
    Score {
        loss,
        divergence,
        agreement: same,
    }
}
