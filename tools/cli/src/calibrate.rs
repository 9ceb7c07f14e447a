//! `flashwave calibrate`: thresholds for a model that leaves weights unread.

use std::io::{Write, stdout};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, anyhow, bail};
use clap::{Args, ValueEnum};
use flashwave::Context;
use flashwave::kernels::mlp::Histogram;
use flashwave::loader::Weights;
use flashwave::model::{
    LayerSparsity, Llama, LlamaOptions, Session, SparseMethod, Thresholds, embedded,
};
use plotters::prelude::*;

/// Finds thresholds for a model on a text, and tells what they cost.
#[derive(Args)]
pub struct Calibrate {
    /// A Hugging Face folder, a .gguf or a llama2.c .bin; the embedded model if absent.
    #[arg(long)]
    model: Option<PathBuf>,
    /// The tokenizer, for a model without one.
    #[arg(long, requires = "model")]
    tokenizer: Option<PathBuf>,
    /// The text; thresholds are found on its first half and judged on the second.
    #[arg(long, value_name = "FILE")]
    text: PathBuf,
    /// What to leave out: neurons whose gate is small (cats), or inputs of all linear layers that are (teal).
    #[arg(long, value_enum, default_value_t = Method::Cats)]
    method: Method,
    /// Shares to leave out, comma-separated: each gets a row of the table and a file of thresholds.
    #[arg(
        long,
        value_delimiter = ',',
        default_value = "0.5",
        allow_negative_numbers = true
    )]
    sparsity: Vec<f64>,
    /// Folder for the thresholds; beside the model if absent.
    #[arg(long, value_name = "FOLDER")]
    output: Option<PathBuf>,
    /// Draw the histograms, and the loss against sparsity, into this folder.
    #[arg(long, value_name = "FOLDER")]
    plot: Option<PathBuf>,
    /// Tokens of the text to use at most.
    #[arg(long, default_value_t = 8192)]
    tokens: usize,
}

#[derive(Clone, Copy, ValueEnum)]
enum Method {
    Cats,
    Teal,
}

/// What a pass over a text gives.
struct Outcome {
    /// Mean loss of a token, in nats.
    loss: f64,
    histograms: Vec<Vec<Histogram>>,
}

/// A row of the table.
struct Reached {
    sparsity: f64,
    reached: f64,
    loss: f64,
}

impl Calibrate {
    /// Runs the command.
    pub fn run(&self, ctx: &Context) -> Result<()> {
        if let Some(bad) = self.sparsity.iter().find(|s| !(0.0..=1.0).contains(*s)) {
            bail!("--sparsity: {bad}; allowed: 0 to 1");
        }
        let weights = match &self.model {
            Some(path) => Weights::open_with_tokenizer(path, self.tokenizer.as_deref())
                .with_context(|| format!("--model {}", path.display()))?,
            None => embedded::weights()?,
        };
        let method = match self.method {
            Method::Cats => SparseMethod::Cats,
            Method::Teal => SparseMethod::Teal,
        };
        let config = weights.config().llama()?;
        let text = std::fs::read_to_string(&self.text)
            .with_context(|| format!("--text {}", self.text.display()))?;
        let tokenizer = weights
            .tokenizer()
            .context("--model: it has no tokenizer; allowed: --tokenizer FILE")?;
        let mut tokens = tokenizer.encode(&text)?;
        tokens.truncate(self.tokens);
        let bos = config.bos_token_id;
        let window = config.max_positions.min(1024).min(tokens.len() / 2 + 1);
        if tokens.len() < 4 {
            bail!("--text: {} tokens; allowed: at least 4", tokens.len());
        }
        let (found_on, judged_on) = tokens.split_at(tokens.len() / 2);
        let zero = vec![method.layer(&[]); config.layers];
        let options = LlamaOptions {
            sparsity: zero,
            ..LlamaOptions::default()
        };
        let dense = Llama::load_with(ctx, &weights, options, &mut |_| ())?;
        let measured = pass(&dense, found_on, bos, window)?;
        let reference = pass(&dense, judged_on, bos, window)?.loss;

        let mut out = stdout().lock();
        writeln!(
            out,
            "{} of {} tokens, dense loss {reference:.4} nats",
            method.name(),
            judged_on.len()
        )?;
        writeln!(out, "target  reached  loss    more    perplexity")?;
        let mut rows = Vec::new();
        for &sparsity in &self.sparsity {
            let layers = thresholds(method, &measured.histograms, sparsity)?;
            let model = dense.with_sparsity(layers.clone())?;
            let judged = pass(&model, judged_on, bos, window)?;
            let row = Reached {
                sparsity,
                reached: reached(&layers, &judged.histograms),
                loss: judged.loss,
            };
            writeln!(
                out,
                "{:<6.2}  {:<7.3}  {:<6.4}  {:<+6.4}  x{:.3}",
                row.sparsity,
                row.reached,
                row.loss,
                row.loss - reference,
                (row.loss - reference).exp()
            )?;
            rows.push(row);
            if let Some(folder) = self.folder() {
                let name = format!("thresholds-{}-{sparsity}.json", method.name());
                let path = folder.join(name);
                Thresholds::new(&weights, sparsity, layers)?.save(&path)?;
                writeln!(out, "        {}", path.display())?;
            }
        }
        if let Some(folder) = &self.plot {
            std::fs::create_dir_all(folder).with_context(|| folder.display().to_string())?;
            for (name, drawn) in [
                (
                    "histograms.svg",
                    histograms as fn(&Figure<'_>, &Path) -> Drawn,
                ),
                ("loss.svg", losses),
            ] {
                let path = folder.join(format!("{}-{name}", method.name()));
                let figure = Figure {
                    method,
                    histograms: &measured.histograms,
                    rows: &rows,
                    dense: reference,
                };
                drawn(&figure, &path).map_err(|e| anyhow!("{}: {e}", path.display()))?;
                writeln!(out, "{}", path.display())?;
            }
        }
        Ok(())
    }

    /// Where the thresholds go; the embedded model has no place of its own.
    fn folder(&self) -> Option<PathBuf> {
        let beside = self.model.as_ref().map(|path| match path.is_dir() {
            true => path.clone(),
            false => path.parent().unwrap_or(Path::new(".")).to_path_buf(),
        });
        self.output.clone().or(beside)
    }
}

/// The text in windows, each after a beginning of sequence: mean loss, and what was counted.
fn pass(model: &Llama, tokens: &[u32], bos: Option<u32>, window: usize) -> Result<Outcome> {
    let mut session: Session = model.session(window)?;
    session.observe()?;
    let vocab = model.config().vocab_size;
    let (mut total, mut count) = (0.0, 0);
    let room = window - usize::from(bos.is_some());
    for part in tokens.chunks(room) {
        let input: Vec<u32> = bos.into_iter().chain(part.iter().copied()).collect();
        session.truncate(0)?;
        let logits = session.feed_all(&input)?.to_f32_vec()?;
        for (row, &next) in logits.chunks(vocab).zip(&input[1..]) {
            let top = row.iter().fold(f32::NEG_INFINITY, |m, &v| m.max(v));
            let sum: f64 = row.iter().map(|&v| f64::from(v - top).exp()).sum();
            total += sum.ln() - f64::from(row[next as usize] - top);
            count += 1;
        }
    }
    Ok(Outcome {
        loss: total / f64::from(count.max(1)),
        histograms: session.histograms()?,
    })
}

/// Each place's own threshold, so that every one leaves out the same share.
fn thresholds(
    method: SparseMethod,
    counted: &[Vec<Histogram>],
    sparsity: f64,
) -> Result<Vec<LayerSparsity>> {
    let layer = |places: &Vec<Histogram>| {
        let found = places.iter().map(|h| h.threshold(sparsity));
        Ok(method.layer(&found.collect::<flashwave::Result<Vec<f32>>>()?))
    };
    counted.iter().map(layer).collect()
}

/// The share of all magnitudes that their thresholds left out.
fn reached(layers: &[LayerSparsity], counted: &[Vec<Histogram>]) -> f64 {
    let (mut out, mut all) = (0.0, 0.0);
    for (layer, places) in layers.iter().zip(counted) {
        for (threshold, histogram) in layer.thresholds().into_iter().zip(places) {
            let total = histogram.total() as f64;
            out += histogram.sparsity(threshold) * total;
            all += total;
        }
    }
    out / f64::max(all, 1.0)
}

struct Figure<'a> {
    method: SparseMethod,
    histograms: &'a [Vec<Histogram>],
    rows: &'a [Reached],
    dense: f64,
}

type Drawn = std::result::Result<(), Box<dyn std::error::Error>>;

/// Share of the magnitudes in every quarter of an octave, a line for each layer of the first place, half of them marked.
fn histograms(figure: &Figure<'_>, path: &Path) -> Drawn {
    let place = figure.method.places()[0];
    let lines: Vec<Vec<(f64, f64)>> = figure
        .histograms
        .iter()
        .map(|places| {
            let mut bins = std::collections::BTreeMap::new();
            for (low, _, count) in places[0].filled().filter(|bin| bin.0 > 0.0) {
                let octave = (f64::from(low).log2() * 4.0).floor() as i32;
                *bins.entry(octave).or_insert(0.0) += f64::from(count) / places[0].total() as f64;
            }
            bins.into_iter()
                .map(|(o, share)| (f64::from(o) / 4.0, share))
                .collect()
        })
        .collect();
    let points = || lines.iter().flatten();
    let low = points().map(|p| p.0).fold(f64::MAX, f64::min).max(-20.0);
    let high = points().map(|p| p.0).fold(f64::MIN, f64::max) + 0.5;
    let top = points().map(|p| p.1).fold(0.0, f64::max) * 1.1;
    let area = SVGBackend::new(path, (860, 480)).into_drawing_area();
    area.fill(&WHITE)?;
    let mut chart = ChartBuilder::on(&area)
        .caption(
            format!(
                "Magnitudes that {} compares ({place})",
                figure.method.name()
            ),
            ("sans-serif", 20),
        )
        .margin(16)
        .x_label_area_size(44)
        .y_label_area_size(60)
        .build_cartesian_2d(low..high, 0.0..top)?;
    chart
        .configure_mesh()
        .x_desc("log2 of the magnitude")
        .y_desc("share")
        .draw()?;
    for (layer, line) in lines.iter().enumerate() {
        let color = Palette99::pick(layer).to_rgba();
        let key = move |(x, y)| PathElement::new([(x, y), (x + 18, y)], color.stroke_width(2));
        chart
            .draw_series(LineSeries::new(line.iter().copied(), color.stroke_width(2)))?
            .label(format!("layer {layer}"))
            .legend(key);
    }
    chart
        .configure_series_labels()
        .background_style(WHITE.mix(0.8))
        .draw()?;
    area.present()?;
    Ok(())
}

/// Loss against the sparsity reached.
fn losses(figure: &Figure<'_>, path: &Path) -> Drawn {
    let most = figure
        .rows
        .iter()
        .map(|r| r.loss)
        .fold(figure.dense, f64::max);
    let area = SVGBackend::new(path, (860, 480)).into_drawing_area();
    area.fill(&WHITE)?;
    let mut chart = ChartBuilder::on(&area)
        .caption(
            format!("Loss of {}", figure.method.name()),
            ("sans-serif", 20),
        )
        .margin(16)
        .x_label_area_size(44)
        .y_label_area_size(60)
        .build_cartesian_2d(0.0..1.0, 0.0..most * 1.1)?;
    chart
        .configure_mesh()
        .x_desc("share left out")
        .y_desc("nats a token")
        .draw()?;
    chart.draw_series(LineSeries::new(
        [(0.0, figure.dense), (1.0, figure.dense)],
        BLACK.mix(0.35),
    ))?;
    let points = figure.rows.iter().map(|r| (r.reached, r.loss));
    chart.draw_series(LineSeries::new(points, BLUE.stroke_width(2)).point_size(3))?;
    area.present()?;
    Ok(())
}
