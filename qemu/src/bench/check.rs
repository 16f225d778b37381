//! Whether measurements may stay as they are: limits, and a baseline.

use super::OPERATIONS;
use super::record::Record;

/// How much worse than the baseline a row may get, as a factor. The counts are exact: this is for changes that are
/// worth it, not for noise.
const TOLERANCE: f64 = 1.02;

/// How much more of a count there may be: instructions as above, events none.
fn tolerance(name: &str) -> f64 {
    if name.ends_with("-instructions") { TOLERANCE } else { 1.0 }
}

/// Finds what is over a limit or missing: a sentence each.
pub fn limits(record: &Record) -> Vec<String> {
    let mut faults = Vec::new();
    for operation in OPERATIONS {
        match record.rows.get(operation.name) {
            None => faults.push(format!("{} was not measured", operation.name)),
            Some(row) if row.mean > operation.must => faults.push(format!(
                "{}: {:.2} instructions, which must be at most {}",
                operation.name, row.mean, operation.must
            )),
            Some(_) => {}
        }
    }
    faults
}

/// What a comparison with a baseline comes to.
#[derive(Debug, PartialEq, Eq)]
pub enum Comparison {
    /// Other code was measured, so nothing can be said; why.
    Incomparable(String),
    /// What got worse: a sentence each.
    Worse(Vec<String>),
}

/// Compares with a baseline.
pub fn compare(record: &Record, baseline: &Record) -> Comparison {
    // Another QEMU has other CPU features, and another compiler makes other instructions.
    for (what, now, then) in [
        ("QEMU", Some(&record.qemu), Some(&baseline.qemu)),
        ("the compiler", record.compiler.as_ref(), baseline.compiler.as_ref()),
    ] {
        if now != then {
            let name = |version: Option<&String>| version.map_or("none", String::as_str).to_owned();
            return Comparison::Incomparable(format!("{what} is {}, not {}", name(now), name(then)));
        }
    }
    let mut worse = Vec::new();
    for (name, old) in &baseline.rows {
        match record.rows.get(name) {
            None => worse.push(format!("{name} is in the baseline and was not measured")),
            Some(row) if row.mean > old.mean * TOLERANCE => worse.push(format!(
                "{name}: {:.2} instructions, {:.1} % more than the baseline's {:.2}",
                row.mean,
                (row.mean / old.mean - 1.0) * 100.0,
                old.mean
            )),
            Some(_) => {}
        }
    }
    for name in record.rows.keys().filter(|name| !baseline.rows.contains_key(*name)) {
        worse.push(format!("{name} is not in the baseline: renew it"));
    }
    for (name, old) in &baseline.counts {
        match record.counts.get(name) {
            None => worse.push(format!("the count {name} is in the baseline and was not made")),
            Some(count) if *count as f64 > *old as f64 * tolerance(name) => {
                worse.push(format!("{name}: {count}, in the baseline {old}"))
            }
            Some(_) => {}
        }
    }
    Comparison::Worse(worse)
}

#[cfg(test)]
mod tests {
    use super::super::record::{Row, Unit};
    use super::*;

    /// A record in which every operation costs `share` of its limit.
    fn record(share: f64) -> Record {
        let row = |must: f64| Row { n: 1, mean: must * share, median: 0, max: 0, unit: Unit::Call };
        let rows = OPERATIONS.iter().map(|operation| (operation.name.to_owned(), row(operation.must))).collect();
        Record { qemu: "7.2".into(), rows, counts: [("invalid-windows".to_owned(), 0)].into(), ..Record::default() }
    }

    #[test]
    fn every_limit_is_checked() {
        assert_eq!(limits(&record(1.0)), [""; 0]);
        assert_eq!(limits(&record(1.001)).len(), OPERATIONS.len());
        assert_eq!(limits(&Record::default()).len(), OPERATIONS.len());
    }

    #[test]
    fn two_per_cent_are_allowed() {
        assert_eq!(compare(&record(1.02), &record(1.0)), Comparison::Worse(vec![]));
        assert_eq!(compare(&record(0.5), &record(1.0)), Comparison::Worse(vec![]));
        let Comparison::Worse(worse) = compare(&record(1.021), &record(1.0)) else { panic!("the same QEMU") };
        assert_eq!(worse.len(), OPERATIONS.len());
        assert!(worse.iter().any(|line| line.starts_with("hypercall: 102.10 instructions, 2.1 % more")), "{worse:?}");
    }

    #[test]
    fn nothing_may_be_missing_or_counted_more() {
        let mut other = record(1.0);
        other.rows.remove("stop");
        other.counts.insert("invalid-windows".into(), 1);
        let lines = |now: &Record, then: &Record| match compare(now, then) {
            Comparison::Worse(worse) => worse,
            Comparison::Incomparable(why) => panic!("{why}"),
        };
        assert_eq!(lines(&other, &record(1.0)).len(), 2);
        assert_eq!(lines(&record(1.0), &other), ["stop is not in the baseline: renew it"]);
        // Instructions may vary as rows may; events may not.
        let with = |count| {
            let mut record = record(1.0);
            record.counts.insert("start-log-instructions".into(), count);
            record
        };
        assert_eq!(lines(&with(102), &with(100)), [""; 0]);
        assert_eq!(lines(&with(103), &with(100)).len(), 1);
    }

    #[test]
    fn other_tools_make_other_figures() {
        let other = Record { qemu: "10.0".into(), ..record(9.0) };
        assert!(matches!(compare(&other, &record(1.0)), Comparison::Incomparable(why) if why.contains("10.0")));
        let other = Record { compiler: Some("rustc 1.96".into()), ..record(9.0) };
        assert!(matches!(compare(&other, &record(1.0)), Comparison::Incomparable(_)));
    }
}
