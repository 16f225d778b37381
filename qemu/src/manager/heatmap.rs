//! The picture of a dirty log: guest memory upwards, time to the right, colour for how much was written.

use crate::size::{self, PAGE};
use anyhow::{Result, anyhow};
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};
use std::path::Path;

/// The most rows of cells.
const ROWS: u64 = 300;
const SIZE: (u32, u32) = (1280, 760);
const FONT: &str = "hv";
const INK: RGBColor = RGBColor(40, 40, 40);
/// From a little to all: dark blue, violet, red, orange, yellow; each is lighter than the one before, so that the order
/// can be seen without colours too.
const SCALE: [(u8, u8, u8); 6] =
    [(26, 22, 88), (92, 24, 122), (168, 44, 96), (226, 85, 53), (250, 158, 34), (250, 238, 110)];

/// What was written, by rows of memory and by harvests.
#[derive(Debug)]
pub struct Heatmap {
    start: u64,
    end: u64,
    /// Bytes of memory that a row stands for.
    row: u64,
    how: String,
    /// Seconds at the end of each harvest's time, and dirty pages of each row.
    columns: Vec<(f64, Vec<u32>)>,
}

impl Heatmap {
    /// An empty one for memory from `start` to `end`. `how` says how the log was kept.
    pub fn new(start: u64, end: u64, how: &str) -> Self {
        let row = (end - start).div_ceil(ROWS).next_power_of_two().max(64 * PAGE);
        Self { start, end, row, how: how.to_owned(), columns: Vec::new() }
    }

    /// Adds a harvest.
    pub fn add(&mut self, seconds: f64, words: &[(u64, u64)]) {
        let mut column = vec![0; (self.end - self.start).div_ceil(self.row) as usize];
        for &(address, bits) in words {
            if let Some(cell) = column.get_mut((address.saturating_sub(self.start) / self.row) as usize) {
                *cell += bits.count_ones();
            }
        }
        self.columns.push((seconds, column));
    }

    /// Draws it to a PNG file.
    ///
    /// # Errors
    /// If it can't be written.
    pub fn draw(&self, path: &Path) -> Result<()> {
        // The tool brings its font along: there is not one on every machine.
        plotters::style::register_font(FONT, FontStyle::Normal, epaint_default_fonts::UBUNTU_LIGHT)
            .map_err(|_| anyhow!("the built-in font can't be read"))?;
        self.paint(path).map_err(|error| anyhow!("can't draw {}: {error}", path.display()))
    }

    fn paint(&self, path: &Path) -> Result<(), Box<dyn std::error::Error>> {
        let root = BitMapBackend::new(path, SIZE).into_drawing_area();
        root.fill(&WHITE)?;
        let text = |size: u32| (FONT, size).into_font().color(&INK);
        let mib = (self.end - self.start) >> 20;
        root.draw(&Text::new("Which memory the guest wrote", (24, 16), text(30)))?;
        let subtitle = format!(
            "{mib} MiB of guest memory in pages of 4 KiB; {} harvests of the dirty log, kept by {}. White: not written.",
            self.columns.len(),
            self.how
        );
        root.draw(&Text::new(subtitle, (24, 54), text(18)))?;

        let (plot, legend) = root.margin(84, 12, 8, 8).split_horizontally(SIZE.0 - 190);
        let seconds = self.columns.last().map_or(1.0, |last| last.0).max(0.001);
        let mut chart = ChartBuilder::on(&plot)
            .x_label_area_size(58)
            .y_label_area_size(130)
            .margin_right(16)
            .build_cartesian_2d(0.0..seconds, (self.start..self.end).with_key_points(self.labels()))?;
        chart
            .configure_mesh()
            .disable_mesh()
            .x_desc("time since the log's start (seconds)")
            .y_desc("guest physical address")
            .x_labels(12)
            .y_labels(10)
            .x_label_formatter(&|second| format!("{second:.0}"))
            .y_label_formatter(&|address| format!("{address:#x}"))
            .label_style(text(17))
            .axis_desc_style(text(19))
            .axis_style(INK)
            .draw()?;
        let most = (self.row / PAGE) as u32;
        let mut from = 0.0;
        for (until, column) in &self.columns {
            for (row, &pages) in column.iter().enumerate().filter(|(_, pages)| **pages > 0) {
                let low = self.start + row as u64 * self.row;
                let cell = [(from, low), (*until, (low + self.row).min(self.end))];
                chart.draw_series([Rectangle::new(cell, colour(pages, most).filled())])?;
            }
            from = *until;
        }
        self.legend(&legend, most)?;
        root.present()?;
        Ok(())
    }

    /// The addresses that are written at the axis: up to twelve, a power of two apart.
    fn labels(&self) -> Vec<u64> {
        let apart = ((self.end - self.start) / 12).next_power_of_two().max(PAGE);
        (self.start.next_multiple_of(apart)..=self.end).step_by(apart as usize).collect()
    }

    /// The scale of colours, with page counts beside it.
    fn legend<B: DrawingBackend>(
        &self,
        area: &DrawingArea<B, plotters::coord::Shift>,
        most: u32,
    ) -> Result<(), Box<dyn std::error::Error>>
    where
        B::ErrorType: 'static,
    {
        let text = |size: u32| (FONT, size).into_font().color(&INK);
        let cell = format!("in each {}", size::short(self.row));
        for (line, y) in ["Pages written", "in one harvest", &cell].iter().zip([0, 20, 40]) {
            area.draw(&Text::new(*line, (4, y), text(17)))?;
        }
        let (top, bottom) = (100, 500);
        let height = bottom - top;
        for y in 0..height {
            // The scale is logarithmic, as the cells' colours are.
            let share = f64::from(height - y) / f64::from(height);
            let shade = shade(share).filled();
            area.draw(&Rectangle::new([(6, top + y), (34, top + y + 1)], shade))?;
        }
        area.draw(&Rectangle::new([(6, top), (34, bottom)], INK.stroke_width(1)))?;
        let mut count = 1;
        loop {
            let y = bottom - (position(count, most) * f64::from(height)) as i32;
            area.draw(&PathElement::new([(34, y), (40, y)], INK))?;
            let style = text(17).pos(Pos::new(HPos::Left, VPos::Center));
            area.draw(&Text::new(count.to_string(), (46, y), style))?;
            if count == most {
                return Ok(());
            }
            count = (count * 4).min(most);
        }
    }
}

/// Where a count lies between 1 (0.0) and the most there can be (1.0), logarithmically.
fn position(pages: u32, most: u32) -> f64 {
    if most <= 1 { 1.0 } else { f64::from(pages.max(1)).ln() / f64::from(most).ln() }
}

fn colour(pages: u32, most: u32) -> RGBColor {
    shade(position(pages, most))
}

/// The scale's colour at 0.0 to 1.0.
fn shade(share: f64) -> RGBColor {
    let at = share.clamp(0.0, 1.0) * (SCALE.len() - 1) as f64;
    let below = (at as usize).min(SCALE.len() - 2);
    let part = at - below as f64;
    let [from, to] = [SCALE[below], SCALE[below + 1]];
    let mix = |from: u8, to: u8| (f64::from(from) + (f64::from(to) - f64::from(from)) * part).round() as u8;
    RGBColor(mix(from.0, to.0), mix(from.1, to.1), mix(from.2, to.2))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cells_hold_their_pages() {
        let mut map = Heatmap::new(0x4000_0000, 0x8000_0000, "hardware");
        assert_eq!(map.row % (64 * PAGE), 0);
        map.add(1.0, &[(0x4000_0000, 7), (0x4000_0000 + map.row, 1), (0x7ffc_0000, u64::MAX)]);
        let cells = &map.columns[0].1;
        assert_eq!((cells[0], cells[1], *cells.last().unwrap()), (3, 1, 64));
        assert!(cells.len() as u64 <= ROWS);
    }

    #[test]
    fn more_is_lighter() {
        let light = |colour: RGBColor| u32::from(colour.0) * 3 + u32::from(colour.1) * 6 + u32::from(colour.2);
        let shades: Vec<u32> = [1, 4, 16, 64, 256, 1024].map(|pages| light(colour(pages, 1024))).to_vec();
        assert!(shades.is_sorted_by(|a, b| a < b), "{shades:?}");
    }
}
