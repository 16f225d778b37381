//! Values that people write on the command line. What stands before a sentence of theirs is the value and its option.

use crate::machine::Gic;
use crate::manager::saving::When;
use clap::builder::{OsStringValueParser, TypedValueParser};
use std::path::PathBuf;
use std::time::Duration;

const DAY: Duration = Duration::from_secs(86_400);

/// A time limit: a second at least, a day at most.
pub fn limit(text: &str) -> Result<Duration, String> {
    time(text).and_then(|time| within(time, Duration::from_secs(1)))
}

/// A pause: 10 ms at least, a day at most.
pub fn pause(text: &str) -> Result<Duration, String> {
    time(text).and_then(|time| within(time, Duration::from_millis(10)))
}

/// When a machine is saved: `end`, `asked`, or a time.
pub fn when(text: &str) -> Result<When, String> {
    match text {
        "end" => Ok(When::End),
        "asked" => Ok(When::Asked),
        _ => time(text)
            .and_then(|time| within(time, Duration::ZERO))
            .map(When::After)
            .map_err(|why| format!("none of `end`, `asked` and {}", why.trim_start_matches("not "))),
    }
}

fn within(time: Duration, least: Duration) -> Result<Duration, String> {
    if (least..=DAY).contains(&time) {
        return Ok(time);
    }
    Err(format!("out of range; write a time from {} s to a day (24h)", least.as_secs_f64()))
}

/// A number of seconds, or a number with its unit behind it.
fn time(text: &str) -> Result<Duration, String> {
    let (number, unit) = text.split_at(text.find(|c: char| c.is_ascii_alphabetic()).unwrap_or(text.len()));
    let seconds = match unit {
        "ms" => Some(0.001),
        "" | "s" => Some(1.0),
        "m" | "min" => Some(60.0),
        "h" => Some(3600.0),
        _ => None,
    };
    let number: Option<f64> = number.parse().ok();
    let time = seconds.zip(number).and_then(|(unit, number)| Duration::try_from_secs_f64(unit * number).ok());
    time.ok_or_else(|| {
        "not a time; write seconds, or a number with ms, s, m or h behind it, as in 90, 5m or 1.5h".into()
    })
}

/// The version of an interrupt controller.
pub fn gic(text: &str) -> Result<Gic, String> {
    match text {
        "2" => Ok(Gic::V2),
        "3" => Ok(Gic::V3),
        _ => Err("QEMU's machine has version 2 or version 3 of the GIC; write 2 or 3".into()),
    }
}

/// A number of CPUs: there is one at least. What the machine can have at most is not a matter of the value alone.
pub fn cpus(text: &str) -> Result<u32, String> {
    match text.parse() {
        Ok(count @ 1..) => Ok(count),
        _ => Err("not a number of CPUs; write 1 or more, as in 4".into()),
    }
}

/// A number from 1.
pub fn count(text: &str) -> Result<u64, String> {
    match text.parse() {
        Ok(count @ 1..) => Ok(count),
        _ => Err("not a count; write a whole number, 1 or more".into()),
    }
}

/// A filter becomes one word of the payload's arguments.
pub fn filter(text: &str) -> Result<String, String> {
    if text.is_empty() || text.contains(char::is_whitespace) {
        return Err("a test's name is one word; write a part of it without spaces, as in dirty::".into());
    }
    Ok(text.to_owned())
}

/// The path of a QEMU. An empty one is as good as none: so does an empty `HV_QEMU` in the environment read.
pub fn qemu() -> impl TypedValueParser<Value = PathBuf> {
    OsStringValueParser::new().map(PathBuf::from)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_have_units() {
        for (text, milliseconds) in
            [("90", 90_000), ("90s", 90_000), ("5m", 300_000), ("5min", 300_000), ("1.5h", 5_400_000), ("250ms", 250)]
        {
            assert_eq!(time(text), Ok(Duration::from_millis(milliseconds)), "{text}");
        }
        for text in ["", "m", "5q", "5 m", "-1", "1e3", "inf", "nan", "1..5", "0x10"] {
            assert!(time(text).is_err(), "{text}");
        }
    }

    #[test]
    fn times_are_in_range() {
        assert_eq!(pause("0.01"), Ok(Duration::from_millis(10)));
        assert_eq!(limit("24h"), Ok(DAY));
        for text in ["0", "0.5", "25h"] {
            assert!(limit(text).unwrap_err().contains("from 1 s to a day"), "{text}");
        }
        assert!(pause("1ms").unwrap_err().contains("from 0.01 s"));
    }
}
