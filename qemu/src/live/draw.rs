//! The view, drawn from its data: the same data give the same picture, on a terminal and in a test.

use super::state::{State, WORD};
use crate::size;
use ratatui::Frame;
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Color, Modifier, Style};
use ratatui::text::{Line, Span};
use ratatui::widgets::{Block, Paragraph, Sparkline};

/// A terminal smaller than this has a line of text only.
const LEAST: (u16, u16) = (60, 16);
/// A cell's letter and colour (of the 256 that nearly every terminal has), from a few of its pages to all. The letters tell them
/// apart without colours.
const SHADES: [(char, u8); 6] = [('.', 97), (':', 133), ('-', 168), ('=', 203), ('*', 209), ('#', 222)];
/// A cell that was written earlier, one that never was, and one that the guest has not got.
const EARLIER: (char, u8) = ('.', 60);
const NEVER: (char, u8) = (' ', 236);
const NOT_THE_GUESTS: (char, u8) = ('/', 244);
/// What can be pressed.
const KEYS: [(&str, &str); 5] =
    [("h", "harvest now"), ("f", "freeze, go on"), ("l", "log on, off"), ("s", "save"), ("q", "leave")];

/// Draws all of it.
pub fn draw(frame: &mut Frame<'_>, state: &State) {
    let area = frame.area();
    if area.width < LEAST.0 || area.height < LEAST.1 {
        frame.render_widget(Paragraph::new(headline(state)), area);
        return;
    }
    let output = (area.height / 4).clamp(4, 14);
    let [head, middle, below, keys] = Layout::vertical([
        Constraint::Length(1),
        Constraint::Fill(1),
        Constraint::Length(output),
        Constraint::Length(1),
    ])
    .areas(area);
    let [memory, figures] = Layout::horizontal([Constraint::Fill(1), Constraint::Length(30)]).areas(middle);
    frame.render_widget(Paragraph::new(headline(state)), head);
    draw_memory(frame, memory, state);
    draw_figures(frame, figures, state);
    draw_output(frame, below, state);
    let keys_line: Vec<Span<'_>> = KEYS
        .iter()
        .flat_map(|(key, what)| {
            [Span::styled(*key, Style::new().add_modifier(Modifier::BOLD)), format!(" {what}   ").into()]
        })
        .collect();
    frame.render_widget(Paragraph::new(Line::from(keys_line)), keys);
}

fn headline(state: &State) -> Line<'_> {
    let bold = Style::new().add_modifier(Modifier::BOLD);
    let mut words = vec![Span::styled("Which memory the guest writes", bold)];
    let condition = match (state.frozen, state.logging) {
        (true, _) => "FROZEN",
        (false, true) => "running",
        (false, false) => "the log is off",
    };
    let State { last, harvests, mechanism, .. } = state;
    words.push(format!("  {:.0} s, {harvests} harvests, by {mechanism}: {condition}", last.seconds).into());
    if let Some((audits, missed)) = last.audits {
        words.push(format!("; {audits} audits, missed {missed}").into());
    }
    Line::from(words)
}

/// The grid: memory from left to right and from top to bottom.
fn draw_memory(frame: &mut Frame<'_>, area: Rect, state: &State) {
    let (start, end) = state.memory();
    let block = Block::bordered();
    let inside = block.inner(area);
    let [addresses, grid] = Layout::horizontal([Constraint::Length(12), Constraint::Fill(1)]).areas(inside);
    // A row is a power of two, so that its address is a round one; not every row of the screen is needed then.
    let row = (end - start).div_ceil(u64::from(grid.height.max(1))).next_power_of_two().max(WORD);
    let rows = (end - start).div_ceil(row);
    let width = usize::from(grid.width.max(1));
    let cells = state.cells(width * rows as usize, rows * row);
    frame.render_widget(block.title(format!(" memory, {} in a row ", size::short(row))), area);
    for (number, line) in cells.chunks(width).enumerate() {
        let y = grid.y + number as u16;
        let address = start + number as u64 * row;
        let label = Line::styled(format!("{address:#x}"), Style::new().add_modifier(Modifier::DIM));
        frame.render_widget(label, Rect { y, height: 1, ..addresses });
        let spans: Vec<Span<'_>> = line.iter().map(|cell| span(*cell)).collect();
        frame.render_widget(Line::from(spans), Rect { y, height: 1, ..grid });
    }
}

/// A cell of the grid.
fn span((share, ever, guest): (f64, bool, bool)) -> Span<'static> {
    let (letter, colour) = match (guest, ever) {
        (false, _) => NOT_THE_GUESTS,
        (true, false) => NEVER,
        // The square root: one page of many is seen too.
        (true, true) if share > 0.0 => SHADES[((share.sqrt() * SHADES.len() as f64) as usize).min(SHADES.len() - 1)],
        (true, true) => EARLIER,
    };
    let style = match share > 0.0 {
        true => Style::new().bg(Color::Indexed(colour)).fg(Color::Indexed(16)),
        false => Style::new().fg(Color::Indexed(colour)),
    };
    Span::styled(letter.to_string(), style)
}

fn draw_figures(frame: &mut Frame<'_>, area: Rect, state: &State) {
    let [rate, rest] = Layout::vertical([Constraint::Length(6), Constraint::Fill(1)]).areas(area);
    let last = &state.last;
    let mib = |pages: f64| pages * 4096.0 / f64::from(1 << 20);
    let block = Block::bordered().title(format!(" {:.1} MiB/s written ", mib(last.rate)));
    let width = usize::from(block.inner(rate).width);
    let newest = state.rates.iter().skip(state.rates.len().saturating_sub(width));
    let bars: Vec<u64> = newest.map(|rate| rate.round() as u64).collect();
    let most = bars.iter().max().copied().unwrap_or(0);
    let block = block.title_bottom(format!(" to {:.1} MiB/s ", mib(most as f64)));
    frame.render_widget(Sparkline::default().data(&bars).style(Style::new().fg(Color::Indexed(75))).block(block), rate);

    let mut lines = vec![
        figure("dirty pages", last.pages),
        figure("stage-2 tables", size::short(last.table_bytes)),
        figure("splits", state.counted("split-")),
        figure("collapses", state.counted("collapse-")),
        figure("invalid windows", state.counted("invalid-windows")),
    ];
    let exits = state.exits();
    lines.push(Line::styled("exits, by kind", Style::new().add_modifier(Modifier::DIM)));
    if exits.is_empty() {
        lines.push(Line::from(" none yet"));
    }
    lines.extend(exits.iter().map(|(kind, count)| figure(&format!(" {kind}"), count)));
    frame.render_widget(Paragraph::new(lines).block(Block::bordered().title(" since the start ")), rest);
}

/// A name on the left and its value on the right of a column of figures.
fn figure(name: &str, value: impl ToString) -> Line<'static> {
    let value = value.to_string();
    Line::from(format!("{name:<17}{value:>11}"))
}

fn draw_output(frame: &mut Frame<'_>, area: Rect, state: &State) {
    let block = Block::bordered().title(" the guest's output ");
    let block = if state.said.is_empty() { block } else { block.title_bottom(format!(" {} ", state.said)) };
    let lines = state.lines(usize::from(block.inner(area).height));
    let lines: Vec<Line<'_>> = lines.into_iter().map(Line::from).collect();
    frame.render_widget(Paragraph::new(lines).block(block), area);
}
