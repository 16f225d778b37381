//! The same guest moved by QEMU itself, with no hypervisor below it.

use crate::console::Extract;
use crate::machine::Machine;
use crate::run::{self, Flow, Limits, Stopper};
use crate::setup::emulator::Emulator;
use crate::temporary::Temporary;
use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::thread;
use std::time::{Duration, Instant};

/// What QEMU says of its own migration.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Theirs {
    /// Rounds, the first and the last one among them.
    pub rounds: u64,
    /// Pages that were sent.
    pub pages: u64,
    /// Pages that were named only.
    pub zero_pages: u64,
    /// How long the guest stood still.
    pub milliseconds: f64,
}

/// How long a QEMU may take to make a socket, and to migrate.
const SOON: Duration = Duration::from_secs(30);
const LATE: Duration = Duration::from_secs(300);

/// Moves the guest of `machine`, whose command has this nonce, from one QEMU to another, so long after the command has begun. The
/// sockets are in `folder`.
///
/// # Errors
/// If QEMU can't be run, or does not migrate.
pub fn measure(
    emulator: &Emulator,
    machine: &Machine,
    (nonce, after): (&str, Duration),
    folder: &Path,
) -> Result<Theirs> {
    let socket = |name: &str| Temporary::new(folder.join(format!("unbroken-{:08x}.{name}", std::process::id())));
    let (line, way) = (socket("qmp"), socket("way"));
    let [line_path, way_path] = [line.path(), way.path()].map(|path| path.display().to_string());
    let with = |words: [&str; 2]| {
        let mut machine = machine.clone();
        machine.extra.extend(words.map(Into::into));
        machine
    };
    let source = with(["-qmp", &format!("unix:{line_path},server=on,wait=off")]);
    let destination = with(["-incoming", &format!("unix:{way_path}")]);
    let (begun, stoppers) = (AtomicBool::new(false), [Stopper::default(), Stopper::default()]);
    let limits = Limits { total: LATE, silence: LATE };
    thread::scope(|scope| {
        let [first, second] = &stoppers;
        let mut extract = Extract::new(nonce);
        let begun = &begun;
        let see = move |bytes: &[u8], _: &_| {
            extract.push(bytes, |_, _| {});
            begun.store(extract.has_begun(), Relaxed);
            Flow::Continue
        };
        let source = scope.spawn(move || run::capture_within(emulator, &source, limits, first, None, see));
        let destination = scope
            .spawn(move || run::capture_within(emulator, &destination, limits, second, None, |_, _| Flow::Continue));
        let result = (|| {
            until(LATE, "the guest's command has begun", || source.is_finished() || begun.load(Relaxed))?;
            ensure!(begun.load(Relaxed), "the guest ended before its command began");
            thread::sleep(after);
            until(SOON, "QEMU takes a migration", || way.path().exists())?;
            migrate(&mut Monitor::open(line.path())?, &way_path)
        })();
        stoppers.iter().for_each(Stopper::stop);
        for run in [source, destination] {
            run.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
        }
        result
    })
}

/// Waits until something is so.
fn until(time: Duration, what: &str, mut is_so: impl FnMut() -> bool) -> Result<()> {
    let end = Instant::now() + time;
    while !is_so() {
        ensure!(Instant::now() < end, "after {} s it is not so that {what}", time.as_secs());
        thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}

/// Has QEMU migrate, with its own limits, and waits until it has.
fn migrate(monitor: &mut Monitor, way: &str) -> Result<Theirs> {
    monitor.ask("migrate", json!({ "uri": format!("unix:{way}") }))?;
    let end = Instant::now() + LATE;
    loop {
        let told = monitor.ask("query-migrate", json!({}))?;
        match told["status"].as_str() {
            Some("completed") => return theirs(&told).context("QEMU does not say what it has moved"),
            Some("failed" | "cancelled") => bail!("QEMU does not migrate: {told}"),
            _ => ensure!(Instant::now() < end, "QEMU does not end its migration: {told}"),
        }
        thread::sleep(Duration::from_millis(20));
    }
}

/// Reads the answer to `query-migrate`.
fn theirs(told: &Value) -> Option<Theirs> {
    let ram = &told["ram"];
    Some(Theirs {
        rounds: ram["dirty-sync-count"].as_u64()?,
        pages: ram["normal"].as_u64()?,
        zero_pages: ram["duplicate"].as_u64()?,
        milliseconds: told["downtime"].as_f64()?,
    })
}

/// QEMU's monitor (QMP): a line of JSON for each question and each answer.
struct Monitor {
    out: UnixStream,
    lines: BufReader<UnixStream>,
}

impl Monitor {
    fn open(socket: &Path) -> Result<Self> {
        let out = UnixStream::connect(socket).context("can't reach QEMU's monitor")?;
        out.set_read_timeout(Some(SOON)).context("can't set a time")?;
        let lines = BufReader::new(out.try_clone().context("can't share a socket")?);
        let mut monitor = Self { out, lines };
        monitor.ask("qmp_capabilities", json!({}))?;
        Ok(monitor)
    }

    fn ask(&mut self, question: &str, arguments: Value) -> Result<Value> {
        let line = format!("{}\n", json!({ "execute": question, "arguments": arguments }));
        self.out.write_all(line.as_bytes()).context("QEMU's monitor is gone")?;
        loop {
            let mut line = String::new();
            self.lines.read_line(&mut line).context("QEMU's monitor does not answer")?;
            ensure!(!line.is_empty(), "QEMU's monitor is gone");
            let mut answer: Value = serde_json::from_str(&line).context("QEMU's monitor does not speak JSON")?;
            // Before the first answer comes a greeting; events come at any time.
            if let Some(value) = answer.get_mut("return") {
                return Ok(value.take());
            }
            ensure!(answer.get("error").is_none(), "QEMU refuses {question}: {answer}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_of_qemu_s_is_read() {
        let told = json!({
            "status": "completed", "downtime": 42, "total-time": 900,
            "ram": { "dirty-sync-count": 4, "normal": 1000, "duplicate": 64000, "remaining": 0 }
        });
        let expected = Theirs { rounds: 4, pages: 1000, zero_pages: 64000, milliseconds: 42.0 };
        assert_eq!(theirs(&told), Some(expected));
        assert_eq!(theirs(&json!({ "status": "completed" })), None);
    }
}
