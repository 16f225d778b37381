//! The page's parts. Every word of a run's goes through `maud`, which escapes it.

use super::cells::{Cells, SHADES};
use super::plot::{self, Series, percent};
use super::read::{Round, Run};
use crate::manager::about::Mark;
use crate::size::{self, PAGE, Size};
use maud::{DOCTYPE, Markup, PreEscaped, html};

/// Instructions, and rows of memory, in a table.
const SHOWN: usize = 20;
/// The browser is told as well that the page needs nothing from outside, and may fetch nothing.
const POLICY: &str = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'";

/// The whole page.
pub fn page(run: &Run) -> Markup {
    let title = if run.cells.is_some() { "Which memory the guest wrote" } else { "Who stored to protected memory" };
    html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width, initial-scale=1";
                meta http-equiv="Content-Security-Policy" content=(POLICY);
                title { (title) ": " (run.about.setup.command.as_deref().unwrap_or("a shell")) }
                style { (PreEscaped(include_str!("style.css"))) }
            }
            body {
                h1 { (title) }
                (about(run))
                (verdicts(run))
                @if let Some(cells) = &run.cells {
                    (tiles(run, cells))
                    (heat(run, cells))
                    (charts(run))
                    (rows(run, cells))
                }
                (stores(run))
                script { (PreEscaped(include_str!("hover.js"))) }
            }
        }
    }
}

fn about(run: &Run) -> Markup {
    let setup = &run.about.setup;
    html! {
        p {
            @match &setup.command {
                Some(command) => { "The guest ran " code { (command) } "." },
                None => { "The guest ran a shell." },
            }
        }
        p.soft {
            "Kernel " code { (setup.kernel) } " under Unbroken in QEMU: CPU " code { (setup.cpu) } ", " (setup.cpus)
            (if setup.cpus == 1 { " CPU" } else { " CPUs" }) " for the guest, " (Size(setup.memory).to_string()) " of RAM."
            @if run.cells.is_some() {
                " The log was kept by " (run.about.mechanism) ", and asked " (run.rounds.len()) " times."
            }
        }
    }
}

/// What was checked, and what went wrong.
fn verdicts(run: &Run) -> Markup {
    let about = &run.about;
    html! {
        @for failure in &about.failures {
            p.verdict.bad { (failure) }
        }
        @if let Some(line) = &about.audit {
            p class={ "verdict" (if line.contains("missed 0,") { "" } else { " bad" }) } {
                code { (line) }
                br;
                "The audit froze the guest, hashed all of its memory, and looked for pages that had changed and were not in the log."
            }
        }
    }
}

fn tiles(run: &Run, cells: &Cells) -> Markup {
    let peak = run.rounds.iter().map(|round| round.rate).fold(0.0, f64::max);
    let tables = run.rounds.iter().map(|round| round.table_bytes).max().unwrap_or_default();
    let written: u64 = run.rounds.iter().map(|round| round.pages).sum();
    let seconds = run.rounds.last().map_or(0.0, |round| round.seconds);
    let after = run.about.table_bytes.map(|(_, after)| size::short(after));
    let tiles = [
        ("memory written at least once", size::short(cells.distinct() * PAGE)),
        ("written in all, page by page", size::short(written * PAGE)),
        ("highest rate", rate(peak)),
        ("seconds", format!("{seconds:.0}")),
        ("stage-2 tables, at most", size::short(tables)),
        ("stage-2 tables after the log", after.unwrap_or_else(|| "not known".into())),
    ];
    html! {
        dl.tiles {
            @for (name, value) in tiles {
                div { dt { (name) } dd { (value) } }
            }
        }
    }
}

fn rate(pages: f64) -> String {
    format!("{:.1} MiB/s", pages * PAGE as f64 / f64::from(1 << 20))
}

/// Ranges with names: what the guest has not got, then what was loaded.
fn marks(run: &Run, cells: &Cells) -> Vec<(usize, Mark)> {
    let gaps = run
        .about
        .gaps()
        .into_iter()
        .map(|(start, end)| (0, Mark { name: "the hypervisor's memory".into(), start, end }));
    let loaded = run.about.setup.marks.iter().cloned().enumerate().map(|(number, mark)| (1 + number % 3, mark));
    let inside = |mark: &Mark| mark.start < mark.end && mark.start < cells.end && mark.end > cells.start;
    gaps.chain(loaded).filter(|(_, mark)| inside(mark)).collect()
}

/// Where names of marks stand, as shares from the bottom: beside their marks, but never on each other.
fn apart(mut centres: Vec<f64>) -> Vec<f64> {
    const ROOM: f64 = 0.065;
    let mut order: Vec<usize> = (0..centres.len()).collect();
    order.sort_by(|a, b| centres[*a].total_cmp(&centres[*b]));
    let mut lowest = ROOM / 2.0;
    for at in order {
        centres[at] = centres[at].max(lowest);
        lowest = centres[at] + ROOM;
    }
    centres
}

fn heat(run: &Run, cells: &Cells) -> Markup {
    let until = cells.until.last().copied().unwrap_or(1.0);
    let step = ((cells.end - cells.start) / 8).next_power_of_two().max(PAGE);
    let marks = marks(run, cells);
    let middle = |mark: &Mark| (cells.position(mark.start) + cells.position(mark.end)) / 2.0;
    let places = apart(marks.iter().map(|(_, mark)| middle(mark)).collect());
    html! {
        h2 { "Memory and time" }
        p.soft {
            "Guest physical memory upwards, in rows of " (Size(cells.row).to_string()) "; time to the right. "
            "The darker (on a dark page: the brighter) a cell, the more of its pages were written from one harvest of the log to the next."
            @if cells.together > 1 { " A column stands for " (cells.together) " harvests, and shows the one with most." }
        }
        figure {
            div.plot.heat data-start=(cells.start) data-bytes=(cells.end - cells.start) data-until=(format!("{until:.3}")) {
                @for (kind, mark) in &marks {
                    div class={ "band m" (kind) } style={
                        "bottom:" (percent(cells.position(mark.start)))
                        ";height:" (percent(cells.position(mark.end) - cells.position(mark.start)))
                    } {}
                }
                (plot::heat(cells))
                @if let Some(begun) = run.about.begun {
                    i.begun style={ "left:" (percent(begun / until)) } { b { "the command begins" } }
                }
                @for ((kind, mark), place) in marks.iter().zip(places) {
                    span.name style={ "bottom:" (percent(place))  } { i class={ "m" (kind) } {} (mark.name) }
                }
                @for address in (cells.start.next_multiple_of(step)..=cells.end).step_by(step as usize) {
                    span.address style={ "top:" (percent(1.0 - cells.position(address))) } { (format!("{address:#x}")) }
                }
                output {}
            }
            (plot::time_axis(until))
            p.unit { "seconds since the log's start" }
            // Where there is no room beside the plot, the names stand below it.
            p.legend.marks {
                @for (kind, mark) in &marks { span.key { i class={ "m" (kind) } {} (mark.name) } " " }
            }
            p.legend {
                "Pages written in a cell: "
                @for shade in 0..SHADES {
                    span.key { i class={ "l" (shade) } {} (cells.least(shade)) @if shade + 1 == SHADES { " to " (cells.most()) } }
                }
            }
        }
    }
}

fn charts(run: &Run) -> Markup {
    let until = run.rounds.last().map_or(1.0, |round| round.seconds.max(0.001));
    let series = |name: &'static str, value: fn(&Round) -> f64| Series {
        name,
        values: run.rounds.iter().map(|round| (round.seconds, value(round))).collect(),
    };
    let count = |value: f64| format!("{value:.0}");
    let begun = run.about.begun;
    html! {
        h2 { "How fast memory was written" }
        figure { (plot::chart(&[series("dirty", |round| round.rate)], until, begun, rate)) }
        h2 { "Stage-2 tables" }
        p.soft { "More small leaves need more tables: each 2 MiB block that is split takes 4 KiB." }
        figure {
            (plot::chart(&[series("tables", |round| round.table_bytes as f64)], until, begun, |bytes| size::short(bytes as u64)))
        }
        h2 { "Splits and collapses" }
        p.soft { "Leaves that became smaller ones, and large leaves that were made of small ones, from one harvest to the next." }
        figure {
            (plot::chart(
                &[series("splits", |round| round.splits as f64), series("collapses", |round| round.collapses as f64)],
                until, begun, count,
            ))
        }
        h2 { "Permission faults" }
        p.soft { "Stores that trapped to EL2 because their page was write-protected. Hardware that keeps dirty state needs none." }
        figure { (plot::chart(&[series("faults", |round| round.faults as f64)], until, begun, count)) }
    }
}

/// The rows of memory that were written most.
fn rows(run: &Run, cells: &Cells) -> Markup {
    let mut sums: Vec<(u64, u64)> =
        cells.sums.iter().enumerate().map(|(row, sum)| (*sum, cells.start + row as u64 * cells.row)).collect();
    sums.sort_by(|a, b| b.cmp(a));
    sums.retain(|(sum, _)| *sum > 0);
    sums.truncate(SHOWN / 2);
    let what = |start: u64| {
        let end = start + cells.row;
        let names: Vec<String> = marks(run, cells)
            .into_iter()
            .filter(|(_, mark)| mark.start < end && mark.end > start)
            .map(|(_, mark)| mark.name)
            .collect();
        names.join(", ")
    };
    html! {
        h2 { "Where most was written" }
        div.wide {
            table {
                thead { tr { th { "guest physical memory" } th.number { "pages, all harvests together" } th { "loaded there at boot" } } }
                tbody {
                    @for (sum, start) in sums {
                        tr {
                            td { code { (format!("{start:#x}-{:#x}", (start + cells.row).min(cells.end))) } }
                            td.number { (sum) }
                            td { (what(start)) }
                        }
                    }
                }
            }
        }
    }
}

fn stores(run: &Run) -> Markup {
    let Some([reported, denied, lost]) = run.about.stores else { return html! {} };
    html! {
        h2 { "Who stored where" }
        p {
            "Stores to memory that was protected: " (reported) " reported, " (denied) " denied, " (lost) " more that there was no room for. "
            "A page reports its first store after each harvest."
        }
        @if !run.stores.is_empty() {
            div.wide {
                table {
                    thead { tr { th { "instruction" } th.number { "stores" } th { "to guest physical" } th {} } }
                    tbody {
                        @for store in run.stores.iter().take(SHOWN) {
                            tr {
                                td { code { (store.by) } }
                                td.number { (store.count) }
                                td { code { (format!("{:#x}", store.span.0)) @if store.span.0 != store.span.1 { (format!(" to {:#x}", store.span.1)) } } }
                                td { (if store.denied { "denied" } else { "reported" }) }
                            }
                        }
                    }
                }
            }
            @if run.stores.len() > SHOWN { p.soft { "And " (run.stores.len() - SHOWN) " more instructions: stores.csv has them all." } }
        }
    }
}
