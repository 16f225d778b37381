//! Measurements beside KVM's and beside their limits, as a table.

use super::record::{Record, Row, Unit};
use super::{OPERATIONS, Operation};
use anstyle::{AnsiColor, Style};
use std::fmt::Write;

/// How a row stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Standing {
    Aim,
    Must,
    Over,
    Missing,
}

impl Standing {
    fn of(operation: &Operation, row: Option<&Row>) -> Self {
        match row {
            None => Self::Missing,
            Some(row) if row.mean <= operation.aim => Self::Aim,
            Some(row) if row.mean <= operation.must => Self::Must,
            Some(_) => Self::Over,
        }
    }

    fn word(self) -> &'static str {
        match self {
            Self::Aim => "aim reached",
            Self::Must => "within must",
            Self::Over => "OVER",
            Self::Missing => "not measured",
        }
    }

    fn style(self) -> Style {
        let colour = match self {
            Self::Aim => AnsiColor::Green,
            Self::Must => AnsiColor::Yellow,
            Self::Over | Self::Missing => AnsiColor::Red,
        };
        colour.on_default()
    }
}

/// What one of KVM's operations costs: the median of calls, for their mean holds the host kernel's ticks too; the mean
/// of bulk operations, which have nothing else.
pub fn kvm_cost(row: &Row) -> f64 {
    match row.unit {
        Unit::Call => row.median as f64,
        Unit::Page => row.mean,
    }
}

/// A number with as many decimals as it needs: three digits that count, at most two behind the point.
pub(super) fn number(value: f64) -> String {
    match value {
        value if value >= 1000.0 => format!("{value:.0}"),
        value if value >= 100.0 => format!("{value:.1}"),
        value => format!("{value:.2}"),
    }
}

/// The table, with ANSI colours in it; the caller that prints it takes them out where they don't belong.
pub fn table(record: &Record, kvm: &Record) -> String {
    let width = OPERATIONS.iter().map(|operation| operation.title.len()).max().unwrap_or_default();
    let mut text = String::new();
    // Writing to a string can't fail.
    let _ = writeln!(
        text,
        "{:width$} {:>9} {:>8} {:>8} {:>9} {:>8} {:>6} {:>6}",
        "instructions", "mean", "median", "max", "KVM", "KVM is", "must", "aim"
    );
    for operation in &OPERATIONS {
        let row = record.rows.get(operation.name);
        let standing = Standing::of(operation, row);
        let cost = kvm.rows.get(operation.name).map(kvm_cost);
        let cells = row.map_or_else(
            || ["-"; 3].map(str::to_owned),
            |row| [number(row.mean), row.median.to_string(), row.max.to_string()],
        );
        let factor = row.zip(cost).map_or_else(|| "-".to_owned(), |(row, cost)| format!("{:.1} x", cost / row.mean));
        let _ = writeln!(
            text,
            "{:width$} {:>9} {:>8} {:>8} {:>9} {factor:>8} {:>6} {:>6}  {}{}{:#}",
            operation.title,
            cells[0],
            cells[1],
            cells[2],
            cost.map_or_else(|| "-".to_owned(), number),
            operation.must,
            operation.aim,
            standing.style(),
            standing.word(),
            standing.style(),
        );
    }
    let aims = OPERATIONS.iter().filter(|row| Standing::of(row, record.rows.get(row.name)) == Standing::Aim).count();
    let _ = writeln!(text, "\n{aims} of {} rows reach their aim.", OPERATIONS.len());
    let _ = writeln!(
        text,
        "{}; KVM: {}. Both on QEMU {}{}, counted by icount: instructions of all exception levels, not time.",
        record.subject,
        kvm.subject,
        record.qemu,
        if kvm.qemu == record.qemu { String::new() } else { format!(" (KVM on {})", kvm.qemu) }
    );
    text += "KVM's bulk figures include the system call and the copy of the bitmap to user space: it has no other way \
             in. KVM collapses when a later fault asks for it, so it has no row for that.\n";
    if !record.counts.is_empty() {
        text += "\nCounted meanwhile:\n";
    }
    for (name, count) in &record.counts {
        let _ = writeln!(text, "  {name} {count}");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(mean: f64, median: u64, unit: Unit) -> Row {
        Row { n: 10, mean, median, max: 9, unit }
    }

    #[test]
    fn rows_stand_beside_kvm() {
        let mut record = Record { subject: "Unbroken".into(), qemu: "7.2".into(), ..Record::default() };
        let mut kvm = Record { subject: "Linux 6.12".into(), qemu: "7.2".into(), ..Record::default() };
        for (name, mean) in [("hypercall", 50.0), ("leaf-write-fault", 141.0), ("stop", 501.0)] {
            record.rows.insert(name.into(), row(mean, 1, Unit::Call));
        }
        kvm.rows.insert("hypercall".into(), row(9000.0, 1210, Unit::Call));
        let text = anstream::adapter::strip_str(&table(&record, &kvm)).to_string();
        let line = |title: &str| text.lines().find(|line| line.starts_with(title)).unwrap();
        assert!(line("hypercall").contains("1210   24.2 x    100     50  aim reached"), "{text}");
        assert!(line("first write to").ends_with("within must") && line("stop").ends_with("OVER"), "{text}");
        assert!(
            line("clear 64").ends_with("not measured") && text.contains(&format!("1 of {} rows", OPERATIONS.len())),
            "{text}"
        );
    }

    #[test]
    fn bulk_rows_of_kvm_are_means() {
        assert_eq!(kvm_cost(&row(77.6, 77, Unit::Page)), 77.6);
        assert_eq!(kvm_cost(&row(9700.0, 3673, Unit::Call)), 3673.0);
    }
}
