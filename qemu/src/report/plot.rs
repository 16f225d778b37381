//! Drawings for the page: SVG without words, stretched to the room there is; the words are HTML, so that they keep their
//! size on a phone.

use super::cells::{Cells, SHADES};
use maud::{Markup, html};
use std::fmt::Write;

/// The width of a drawing in its own units.
const WIDTH: f64 = 1000.0;
/// The height of a chart in its own units.
const HEIGHT: f64 = 100.0;

/// What is plotted over time: a value from each harvest to the next.
pub struct Series<'a> {
    /// Its name in the legend.
    pub name: &'a str,
    /// Where each value's time ends, in seconds, and the value.
    pub values: Vec<(f64, f64)>,
}

/// Up to seven round numbers from 0 to `until`.
pub fn ticks(until: f64) -> Vec<f64> {
    if !until.is_finite() || until <= 0.0 {
        return vec![0.0];
    }
    let rough = until / 6.0;
    let power = 10f64.powf(rough.log10().floor());
    let step = [1.0, 2.0, 5.0, 10.0].map(|factor| factor * power).into_iter().find(|step| *step >= rough);
    let step = step.unwrap_or(until);
    (0..=6).map(|number| f64::from(number) * step).take_while(|tick| *tick <= until * 1.0001).collect()
}

/// A number of percent for a style.
pub fn percent(share: f64) -> String {
    format!("{:.2}%", share.clamp(0.0, 1.0) * 100.0)
}

/// The axis of time below a drawing.
pub fn time_axis(until: f64) -> Markup {
    html! {
        div.time {
            @for tick in ticks(until) {
                span style={ "left:" (percent(tick / until)) } { (tick) }
            }
        }
    }
}

/// A chart of up to two series that share a scale.
pub fn chart(series: &[Series<'_>], until: f64, begun: Option<f64>, show: impl Fn(f64) -> String) -> Markup {
    let most = series.iter().flat_map(|one| &one.values).map(|value| value.1).fold(0.0, f64::max);
    let scale = if most > 0.0 { most } else { 1.0 };
    html! {
        div.plot.chart {
            svg viewBox={ "0 0 " (WIDTH) " " (HEIGHT) } preserveAspectRatio="none" aria-hidden="true" {
                @for share in [0.0, 0.5] {
                    line.grid x1="0" x2=(WIDTH) y1=(share * HEIGHT) y2=(share * HEIGHT) {}
                }
                @for (number, one) in series.iter().enumerate() {
                    path class={ "series s" (number) } d=(steps(&one.values, until, scale)) {}
                }
            }
            (beginning(begun, until))
            @for share in [1.0, 0.5, 0.0] {
                span.value style={ "top:" (percent(1.0 - share)) } { (show(most * share)) }
            }
        }
        (time_axis(until))
        @if series.len() > 1 {
            p.legend {
                @for (number, one) in series.iter().enumerate() {
                    span.key { i class={ "s" (number) } {} (one.name) }
                }
            }
        }
    }
}

/// The line where the guest's command begins.
pub fn beginning(begun: Option<f64>, until: f64) -> Markup {
    html! {
        @if let Some(begun) = begun {
            i.begun style={ "left:" (percent(begun / until)) } {}
        }
    }
}

/// A path that holds each value from the time of the value before.
fn steps(values: &[(f64, f64)], until: f64, scale: f64) -> String {
    let mut path = format!("M0 {HEIGHT}");
    for (seconds, value) in values {
        // Writing to a string can't fail.
        let _ = write!(path, "V{:.2}H{:.2}", HEIGHT - value / scale * HEIGHT, seconds / until * WIDTH);
    }
    let _ = write!(path, "V{HEIGHT}Z");
    path
}

/// The cells that were written: a path for each shade.
pub fn heat(cells: &Cells) -> Markup {
    let rows = cells.sums.len();
    let until = cells.until.last().copied().unwrap_or(1.0);
    let mut paths = [const { String::new() }; SHADES];
    let mut from = 0.0;
    for (column, end) in cells.columns.iter().zip(&cells.until) {
        let (left, right) = (from / until * WIDTH, end / until * WIDTH);
        from = *end;
        let mut low = 0;
        // Rows of one shade that lie on each other are one rectangle.
        for run in column.chunk_by(|a, b| cells.shade(*a) == cells.shade(*b)) {
            let high = low + run.len();
            let shade = run.first().and_then(|pages| cells.shade(*pages));
            if let Some(path) = shade.and_then(|shade| paths.get_mut(shade)) {
                let (top, wide) = (rows - high, right - left);
                let _ = write!(path, "M{left:.1} {top}h{wide:.1}v{}h-{wide:.1}z", run.len());
            }
            low = high;
        }
    }
    html! {
        svg viewBox={ "0 0 " (WIDTH) " " (rows) } preserveAspectRatio="none" aria-hidden="true" {
            @for (shade, path) in paths.iter().enumerate().filter(|(_, path)| !path.is_empty()) {
                path class={ "l" (shade) } d=(path) {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_are_round_and_few() {
        assert_eq!(ticks(12.3), [0.0, 5.0, 10.0]);
        assert_eq!(ticks(60.0), [0.0, 10.0, 20.0, 30.0, 40.0, 50.0, 60.0]);
        assert_eq!(ticks(0.0), [0.0]);
        for until in [0.01, 0.7, 3.0, 99.0, 12345.0] {
            let ticks = ticks(until);
            assert!((2..=7).contains(&ticks.len()) && ticks.last() <= Some(&(until * 1.001)), "{ticks:?}");
        }
    }

    #[test]
    fn a_shade_is_drawn_once_for_rows_on_each_other() {
        let mut cells = Cells::new(0, 512 * 4096, &[1.0]);
        let mut bitmap = vec![0; 64];
        (bitmap[0], bitmap[8], bitmap[32]) = (1, 1, 0xff);
        cells.add(0, &bitmap);
        let drawn = heat(&cells).into_string();
        assert!(drawn.contains("d=\"M0.0 6h1000.0v2h-1000.0z\""), "{drawn}");
        assert_eq!(drawn.matches("<path").count(), 2, "{drawn}");
    }
}
