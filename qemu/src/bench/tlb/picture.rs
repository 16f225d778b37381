//! The figures as a picture: for each part of the guest's work what walks read, with each shape of stage 2.

use super::{Figures, PARTS, SHAPES, table};
use crate::bench::bars::{self, Bar, FONT, INK};
use anyhow::{Result, anyhow};
use plotters::prelude::*;
use std::path::Path;
use tlb_model::Record;

const SIZE: (u32, u32) = (1280, 1390);
/// Without stage 2; without a log; with one; after one; with a Linux that maps its own memory in blocks. Apart in lightness too.
const COLOURS: [RGBColor; 5] = [
    RGBColor(190, 190, 190),
    RGBColor(46, 110, 180),
    RGBColor(236, 180, 62),
    RGBColor(120, 170, 220),
    RGBColor(86, 140, 90),
];

fn colour(name: &str) -> RGBColor {
    let of = |shape: &&super::Shape| shape.name == name;
    let [none, plain, logged, after, linear] = COLOURS;
    match SHAPES.iter().find(of) {
        Some(shape) if shape.leaves.is_none() => none,
        Some(shape) if shape.linear_blocks => linear,
        Some(shape) if shape.stopped => after,
        Some(shape) if shape.log.is_some() => logged,
        _ => plain,
    }
}

/// Draws it to a PNG file.
///
/// # Errors
/// If the file can't be written.
pub fn draw(figures: &Figures, path: &Path) -> Result<()> {
    bars::register_font()?;
    paint(figures, path).map_err(|error| anyhow!("can't draw {}: {error}", path.display()))
}

/// Descriptors that walks read for a thousand instructions of the guest's.
fn references_per_thousand(record: &Record) -> f64 {
    record.counts.references() as f64 * 1000.0 / record.guest_instructions().max(1) as f64
}

fn paint(figures: &Figures, path: &Path) -> Result<(), Box<dyn std::error::Error>> {
    let root = BitMapBackend::new(path, SIZE).into_drawing_area();
    root.fill(&WHITE)?;
    let text = |size: u32| (FONT, size).into_font().color(&INK);
    let head = "What walks of the translation tables read, with stage 2 in leaves of different sizes";
    root.draw(&Text::new(head, (24, 16), text(30)))?;
    root.draw(&Text::new(
        "Descriptors of both stages for 1000 instructions of the guest's, counted by a model of TLBs. Shorter is better; each chart has \
         its own scale.",
        (24, 56),
        text(18),
    ))?;
    root.draw(&Text::new(table::origin(figures), (24, 78), text(18)))?;
    let charts = root.margin(112, 12, 16, 16).split_evenly((3, 2));
    for ((part, title), area) in (0..).zip(PARTS).zip(&charts) {
        let measured = SHAPES.iter().filter_map(|shape| Some((shape, figures.of(shape.name, part)?)));
        let bars: Vec<Bar<'_>> = measured
            .map(|(shape, record)| {
                let value = references_per_thousand(record);
                Bar { name: shape.title, value, shown: format!("{value:.2}"), colour: colour(shape.name) }
            })
            .collect();
        bars::chart(title, &bars, area)?;
    }
    root.present()?;
    Ok(())
}
