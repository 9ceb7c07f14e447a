//! `flashwave generate`: text from a model, streamed.

use std::io::{IsTerminal, Write};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use clap::Args;
use flashwave::kernels::attention::KvFormat;
use flashwave::loader::{TokenStream, Tokenizer, Weights};
use flashwave::model::{
    Generation, Llama, LlamaOptions, Model, Sampling, SparseMethod, Streamed, Thresholds, embedded,
};
use flashwave::quant::Format;
use flashwave::{Context, DType, Error};
use indicatif::{ProgressBar, ProgressStyle};

use crate::units::bytes;

/// Writes text with a model.
#[derive(Args)]
pub struct Generate {
    /// A Hugging Face folder, a .gguf or a llama2.c .bin; the model embedded in this program if absent.
    #[arg(long)]
    model: Option<PathBuf>,
    /// The tokenizer, for a model without one: llama2.c's tokenizer.bin or a tokenizer.json.
    #[arg(long, requires = "model")]
    tokenizer: Option<PathBuf>,
    /// What the text begins with.
    #[arg(long, default_value = "")]
    prompt: String,
    /// The prompt as token ids, comma-separated, instead of text; works without a tokenizer.
    #[arg(long, value_delimiter = ',', conflicts_with = "prompt")]
    prompt_ids: Vec<u32>,
    /// Tokens to generate at most; fewer if the model ends the text. With the prompt, no more than the model's
    /// longest context.
    #[arg(long, default_value_t = 200)]
    max_tokens: usize,
    /// 0 takes the most probable token; higher is more varied.
    #[arg(long, default_value_t = 0.0, allow_negative_numbers = true)]
    temperature: f32,
    /// Draw from the K most probable tokens only.
    #[arg(long)]
    top_k: Option<usize>,
    /// Draw from the most probable tokens that together have this probability.
    #[arg(long, allow_negative_numbers = true)]
    top_p: Option<f32>,
    /// Draw from tokens at least this many times as probable as the best.
    #[arg(long, allow_negative_numbers = true)]
    min_p: Option<f32>,
    /// Makes tokens that occurred less likely; 1 is none.
    #[arg(long, default_value_t = 1.0, allow_negative_numbers = true)]
    repetition_penalty: f32,
    /// Seed of the random draws.
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Element type of the weights on the device: f32, f16, bf16, or a quantised format (int8, q4_0, …); as stored if
    /// absent.
    #[arg(long, value_parser = weights_dtype)]
    dtype: Option<DType>,
    /// How keys and values are cached: f32, f16, bf16, int8, f8e4m3, f8e5m2, block8 or block8:CHANNELS; for models with
    /// attention.
    #[arg(long, value_name = "FORMAT")]
    kv: Option<KvFormat>,
    /// Element type of what a prompt's products and attention take: f32, f16, bf16; f16 where weights, cache and the
    /// device's matrix units are, else f32. Of Llamas.
    #[arg(long, value_parser = dtype)]
    activations: Option<DType>,
    /// Leave weights unread: a file that `flashwave calibrate` wrote for this model.
    #[arg(long, value_name = "FILE")]
    thresholds: Option<PathBuf>,
    /// Leave out this share of the MLPs' neurons (0 to 1), by thresholds found on text that the model writes itself.
    #[arg(long, conflicts_with_all = ["thresholds", "budget"], allow_negative_numbers = true)]
    sparsity: Option<f64>,
    /// Bytes that the weights of MLPs may take on the device; neurons beyond stay in host memory and are brought in as they fire.
    /// With --thresholds of the method cats, or exactly.
    #[arg(long, value_name = "BYTES")]
    budget: Option<u64>,
    /// Go on after the model's end-of-text token.
    #[arg(long)]
    ignore_eos: bool,
    /// Print the generated token ids, BOS left out, as the last line.
    #[arg(long)]
    ids: bool,
}

fn dtype(name: &str) -> Result<DType, String> {
    [DType::F32, DType::F16, DType::BF16]
        .into_iter()
        .find(|d| d.name() == name)
        .ok_or_else(|| "allowed: f32, f16, bf16".into())
}

fn weights_dtype(name: &str) -> Result<DType, String> {
    let quantised = |_| match name.parse::<Format>() {
        Ok(format) => Ok(DType::Quant(format)),
        Err(error) => Err(format!("allowed: f32, f16, bf16, or a format: {error}")),
    };
    dtype(name).or_else(quantised)
}

impl Generate {
    /// Runs the command.
    pub fn run(&self, ctx: &Context) -> Result<()> {
        // All arguments are checked before a large model is read.
        let sampling = self.sampling()?;
        if let Some(sparsity) = self.sparsity.filter(|s| !(0.0..=1.0).contains(s)) {
            bail!("--sparsity: {sparsity}; allowed: 0 to 1");
        }
        let weights = match &self.model {
            Some(path) => Weights::open_with_tokenizer(path, self.tokenizer.as_deref())
                .with_context(|| format!("--model {}", path.display()))?,
            None => embedded::weights()?,
        };
        let prompt = self.prompt_ids(&weights)?;
        let capacity = self.capacity(&weights, prompt.len())?;
        let model = self.load(ctx, &weights)?;

        let started = Instant::now();
        let mut first = None;
        let mut ids = Vec::new();
        let mut session = model.session(capacity)?;
        let mut generation = Generation::of(&mut *session, &prompt, &sampling)?;
        if self.ignore_eos {
            generation = generation.ignore_eos();
        }
        let mut printer = Printer::new(weights.tokenizer());
        for &id in &prompt {
            printer.push(id)?;
        }
        for token in generation.take(self.max_tokens) {
            let token = token?;
            first.get_or_insert_with(|| started.elapsed());
            ids.push(token);
            if !weights.config().eos_token_ids().contains(&token) {
                printer.push(token)?;
            }
        }
        let total = started.elapsed();
        printer.finish()?;
        if self.ids {
            let ids: Vec<String> = ids.iter().map(u32::to_string).collect();
            println!("{}", ids.join(" "));
        }
        report(ctx, prompt.len(), ids.len(), first.unwrap_or(total), total);
        if let Model::Llama(model) = &model
            && let Some(streamed) = model.streamed()
        {
            report_streamed(&streamed, prompt.len() + ids.len());
        }
        Ok(())
    }

    fn sampling(&self) -> Result<Sampling> {
        let mut sampling = Sampling::temperature(self.temperature)
            .seed(self.seed)
            .repetition_penalty(self.repetition_penalty);
        sampling = self.top_k.into_iter().fold(sampling, Sampling::top_k);
        sampling = self.top_p.into_iter().fold(sampling, Sampling::top_p);
        sampling = self.min_p.into_iter().fold(sampling, Sampling::min_p);
        match sampling.check() {
            Ok(()) => Ok(sampling),
            // By the name that it has on the command line.
            Err(Error::Argument { name, was, allowed }) => {
                bail!("--{}: {was}; allowed: {allowed}", name.replace('_', "-"))
            }
            Err(error) => Err(error.into()),
        }
    }

    /// Tokens that the KV cache needs room for.
    fn capacity(&self, weights: &Weights, prompt: usize) -> Result<usize> {
        let most = weights.config().max_positions();
        match prompt.saturating_add(self.max_tokens) {
            all if all <= most && self.max_tokens > 0 => Ok(all),
            _ => bail!(
                "--max-tokens: {} after a prompt of {prompt}; allowed: at least 1, and {most} in all, the model's \
                 longest context",
                self.max_tokens
            ),
        }
    }

    fn load(&self, ctx: &Context, weights: &Weights) -> Result<Model> {
        let options = LlamaOptions {
            weights: self.dtype,
            kv: self.kv,
            activations: self.activations,
            sparsity: match &self.thresholds {
                Some(path) => Thresholds::load(path, weights)?.layers,
                None if self.sparsity.is_some() => {
                    vec![SparseMethod::Cats.layer(&[]); weights.config().llama()?.layers]
                }
                None => Vec::new(),
            },
            budget: self.budget,
            ..LlamaOptions::default()
        };
        let bar = if std::io::stderr().is_terminal() {
            ProgressBar::no_length()
        } else {
            ProgressBar::hidden()
        };
        bar.set_style(ProgressStyle::with_template(
            "loading {bar:30} {bytes}/{total_bytes} {bytes_per_sec} {msg}",
        )?);
        let model = Model::load_with(ctx, weights, options, &mut |p| {
            bar.set_length(p.total);
            bar.set_position(p.done);
            bar.set_message(p.tensor.to_string());
        })?;
        bar.finish_and_clear();
        match (self.sparsity, &model) {
            (Some(sparsity), Model::Llama(llama)) => {
                Ok(Model::Llama(self_calibrated(llama, weights, sparsity)?))
            }
            _ => Ok(model),
        }
    }

    /// The prompt's tokens, BOS first where the model has one.
    fn prompt_ids(&self, weights: &Weights) -> Result<Vec<u32>> {
        let mut ids: Vec<u32> = weights.config().bos_token_id().into_iter().collect();
        if !self.prompt_ids.is_empty() {
            ids.extend(&self.prompt_ids);
        } else if !self.prompt.is_empty() {
            let tokenizer = weights.tokenizer().context(
                "--prompt: the model has no tokenizer; allowed: --tokenizer FILE, --prompt-ids, or an empty prompt",
            )?;
            ids.extend(tokenizer.encode(&self.prompt)?);
        }
        if ids.is_empty() {
            bail!(
                "--prompt: empty, and the model has no beginning-of-sequence token; allowed: at least one token"
            );
        }
        Ok(ids)
    }
}

/// Thresholds found on text that the model writes.
fn self_calibrated(model: &Llama, weights: &Weights, sparsity: f64) -> Result<Llama> {
    const TOKENS: usize = 512;
    let first = weights.config().bos_token_id().unwrap_or(0);
    let room = TOKENS.min(model.config().max_positions);
    let written = model
        .session(room)?
        .generate(&[first], &Sampling::temperature(1.0))?
        .ignore_eos()
        .take(room - 1)
        .collect::<flashwave::Result<Vec<u32>>>()?;
    let text = [vec![first], written].concat();
    Ok(model.calibrated(&text, sparsity)?)
}

/// Streams text to standard output as tokens complete it.
struct Printer<'a> {
    stream: Option<TokenStream<'a>>,
}

impl<'a> Printer<'a> {
    fn new(tokenizer: Option<&'a Tokenizer>) -> Self {
        Self {
            stream: tokenizer.map(Tokenizer::stream),
        }
    }

    fn push(&mut self, id: u32) -> Result<()> {
        if let Some(text) = self
            .stream
            .as_mut()
            .map(|s| s.push(id))
            .transpose()?
            .flatten()
        {
            print!("{text}");
            std::io::stdout().flush()?;
        }
        Ok(())
    }

    fn finish(self) -> Result<()> {
        if let Some(stream) = self.stream {
            println!("{}", stream.finish()?.unwrap_or_default());
        }
        Ok(())
    }
}

/// What MLPs over the budget cost.
fn report_streamed(streamed: &Streamed, tokens: usize) {
    eprintln!(
        "MLPs             {} of {} on the device, {:.1}% of the neurons that fired found there",
        bytes(streamed.resident_bytes),
        bytes(streamed.total_bytes),
        100.0 * streamed.hit_rate()
    );
    eprintln!(
        "streamed         {} bytes, {} a token; the host waited {} times",
        streamed.bytes,
        bytes(streamed.bytes / tokens.max(1) as u64),
        streamed.waits
    );
}

/// Rates: the first token waits for the prompt's pass, the others for one step each.
fn report(ctx: &Context, prompt: usize, generated: usize, first: Duration, total: Duration) {
    let caps = ctx.capabilities();
    let rate = |tokens: usize, time: Duration| tokens as f64 / time.as_secs_f64().max(1e-9);
    eprintln!("adapter          {caps}");
    eprintln!("tier             {}", caps.tier_summary());
    eprintln!(
        "prompt           {prompt} tokens, {:.1} tokens/s",
        rate(prompt, first)
    );
    let rest = generated.saturating_sub(1);
    eprintln!(
        "generation       {generated} tokens, {:.1} tokens/s",
        rate(rest, total.saturating_sub(first))
    );
    eprintln!("first token      {:.1} ms", first.as_secs_f64() * 1e3);
}
