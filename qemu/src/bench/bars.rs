//! Charts of bars in pictures: a name before each bar, and its value behind it.

use anyhow::{Result, anyhow};
use plotters::coord::Shift;
use plotters::prelude::*;
use plotters::style::text_anchor::{HPos, Pos, VPos};

/// The tool's own font.
pub const FONT: &str = "hv";
/// The colour of letters.
pub const INK: RGBColor = RGBColor(40, 40, 40);

/// Has [`FONT`] known: there is not a font on every machine.
///
/// # Errors
/// If it can't be read.
pub fn register_font() -> Result<()> {
    plotters::style::register_font(FONT, FontStyle::Normal, epaint_default_fonts::UBUNTU_LIGHT)
        .map_err(|_| anyhow!("the built-in font can't be read"))
}

/// A bar.
#[derive(Debug, Clone)]
pub struct Bar<'a> {
    /// What it is of.
    pub name: &'a str,
    /// Its length.
    pub value: f64,
    /// The value as it is written.
    pub shown: String,
    /// Its colour.
    pub colour: RGBColor,
}

/// Draws bars under each other, the longest one as long as there is room.
///
/// # Errors
/// The backend's.
pub fn chart<B: DrawingBackend>(
    title: &str,
    bars: &[Bar<'_>],
    area: &DrawingArea<B, Shift>,
) -> Result<(), Box<dyn std::error::Error>>
where
    B::ErrorType: 'static,
{
    const LEFT: i32 = 216;
    const TOP: i32 = 34;
    const STEP: i32 = 34;
    let text = |size: u32| (FONT, size).into_font().color(&INK);
    let (width, _) = area.dim_in_pixel();
    let room = f64::from(width as i32 - LEFT - 130);
    let most = bars.iter().map(|bar| bar.value).fold(0.0, f64::max);
    let most = if most > 0.0 { most } else { 1.0 };
    area.draw(&Text::new(title.to_owned(), (8, 6), text(21)))?;
    for (row, bar) in bars.iter().enumerate() {
        let y = TOP + STEP * row as i32;
        let middle = y + STEP / 2 - 2;
        let name_style = text(17).pos(Pos::new(HPos::Right, VPos::Center));
        area.draw(&Text::new(bar.name, (LEFT - 8, middle), name_style))?;
        let end = LEFT + (bar.value / most * room).round() as i32;
        area.draw(&Rectangle::new([(LEFT, y + 3), (end, y + STEP - 7)], bar.colour.filled()))?;
        let value_style = text(17).pos(Pos::new(HPos::Left, VPos::Center));
        area.draw(&Text::new(bar.shown.clone(), (end + 8, middle), value_style))?;
    }
    area.draw(&PathElement::new([(LEFT, TOP), (LEFT, TOP + STEP * bars.len() as i32 - 4)], INK))?;
    Ok(())
}
