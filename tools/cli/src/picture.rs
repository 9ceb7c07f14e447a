//! Layouts as images.

use std::fs::File;
use std::io::BufWriter;
use std::path::Path;

use anyhow::{Context as _, Result, bail};
use flashwave::kernels::sparse::SparseLayout;

/// Pixels of a head's side, at most.
const SIDE: usize = 320;
/// Between heads.
const GAP: usize = 12;

type Pixel = [u8; 3];
/// Behind everything, and what causality hides.
const WHITE: Pixel = [255; 3];
/// Visible and not listed.
const EMPTY: Pixel = [226, 228, 232];
/// Listed.
const LISTED: Pixel = [20, 70, 140];

/// Draws the heads side by side (those alike once) as a PNG: white what causality hides, grey what is visible, blue what
/// is listed.
pub fn layout(layout: &SparseLayout, path: &Path) -> Result<()> {
    if path
        .extension()
        .is_none_or(|e| !e.eq_ignore_ascii_case("png"))
    {
        bail!(
            "--png: {}; allowed: a name that ends in .png",
            path.display()
        );
    }
    let heads = layout.alike().into_iter().map(|run| run.start);
    let pictures: Vec<_> = heads.map(|h| layout.picture(h, SIDE)).collect();
    let (down, across) = (pictures[0].len(), pictures[0][0].len());
    let cell = SIDE / down.max(across);
    let columns = (1..).find(|n| n * n >= pictures.len()).unwrap_or(1);
    let rows = pictures.len().div_ceil(columns);
    let place = |n: usize, cells: usize| GAP + n * (cells * cell + GAP);
    let (width, height) = (place(columns, across), place(rows, down));
    let mut pixels = vec![WHITE; width * height];
    for (n, picture) in pictures.iter().enumerate() {
        let (left, top) = (place(n % columns, across), place(n / columns, down));
        for y in 0..down * cell {
            let row = &mut pixels[(top + y) * width + left..][..across * cell];
            for (x, pixel) in row.iter_mut().enumerate() {
                *pixel = picture[y / cell][x / cell].map_or(WHITE, blend);
            }
        }
    }
    let named = || path.display().to_string();
    let file = File::create(path).with_context(named)?;
    let mut encoder = png::Encoder::new(BufWriter::new(file), width as u32, height as u32);
    encoder.set_color(png::ColorType::Rgb);
    let mut writer = encoder.write_header().with_context(named)?;
    writer
        .write_image_data(pixels.as_flattened())
        .with_context(named)?;
    writer.finish().with_context(named)
}

/// From [`EMPTY`] to [`LISTED`]; a little is already seen to be something.
fn blend(share: f64) -> Pixel {
    let t = share.sqrt();
    std::array::from_fn(|i| {
        let (a, b) = (f64::from(EMPTY[i]), f64::from(LISTED[i]));
        (a + (b - a) * t).round() as u8
    })
}
