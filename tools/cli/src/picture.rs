//! Layouts as images.

use std::path::Path;

use anyhow::{Result, anyhow, bail};
use flashwave::kernels::sparse::SparseLayout;
use plotters::backend::BitMapBackend;
use plotters::drawing::IntoDrawingArea;
use plotters::element::Rectangle;
use plotters::style::{Color, RGBColor, WHITE};

/// Pixels of a head's side, about.
const SIDE: usize = 320;
/// Between heads.
const GAP: usize = 12;
/// Visible and not listed.
const EMPTY: RGBColor = RGBColor(226, 228, 232);
/// Listed.
const LISTED: RGBColor = RGBColor(20, 70, 140);

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
    let heads: Vec<usize> = layout.alike().into_iter().map(|run| run.start).collect();
    let pictures: Vec<_> = heads.iter().map(|&h| layout.picture(h, SIDE)).collect();
    let (down, across) = (pictures[0].len(), pictures[0][0].len());
    let cell = (SIDE / down.max(across)).max(1);
    let columns = (1..=heads.len())
        .find(|n| n * n >= heads.len())
        .unwrap_or(1);
    let rows = heads.len().div_ceil(columns);
    let place = |n: usize, cells: usize| (GAP + n * (cells * cell + GAP)) as i32;
    let size = (place(columns, across) as u32, place(rows, down) as u32);
    let failed = |e: &dyn std::fmt::Display| anyhow!("{}: {e}", path.display());
    let area = BitMapBackend::new(path, size).into_drawing_area();
    area.fill(&WHITE).map_err(|e| failed(&e))?;
    for (head, picture) in pictures.iter().enumerate() {
        let (left, top) = (place(head % columns, across), place(head / columns, down));
        for (y, row) in picture.iter().enumerate() {
            for (x, share) in row.iter().enumerate() {
                let Some(share) = *share else { continue };
                let at = (left + (x * cell) as i32, top + (y * cell) as i32);
                let end = (at.0 + cell as i32 - 1, at.1 + cell as i32 - 1);
                let style = blend(share).filled();
                let pixel = Rectangle::new([at, end], style);
                area.draw(&pixel).map_err(|e| failed(&e))?;
            }
        }
    }
    area.present().map_err(|e| failed(&e))
}

/// From [`EMPTY`] to [`LISTED`]; a little is already seen to be something.
fn blend(share: f64) -> RGBColor {
    let t = share.sqrt();
    let mix = |a: u8, b: u8| (f64::from(a) + (f64::from(b) - f64::from(a)) * t).round() as u8;
    RGBColor(
        mix(EMPTY.0, LISTED.0),
        mix(EMPTY.1, LISTED.1),
        mix(EMPTY.2, LISTED.2),
    )
}
