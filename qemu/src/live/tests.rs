//! The view, drawn into memory.

use super::draw::draw;
use super::*;
use ratatui::backend::TestBackend;
use ratatui::buffer::Buffer;

/// What a terminal of this size shows.
fn drawn(state: &State, width: u16, height: u16) -> Buffer {
    let mut terminal = ratatui::Terminal::new(TestBackend::new(width, height)).unwrap();
    terminal.draw(|frame| draw(frame, state)).unwrap();
    terminal.backend().buffer().clone()
}

fn lines(buffer: &Buffer) -> Vec<String> {
    let width = usize::from(buffer.area.width);
    buffer.content.chunks(width).map(|row| row.iter().map(|cell| cell.symbol()).collect()).collect()
}

/// A machine with 256 MiB, of which 16 are the hypervisor's, in the middle of a log.
fn state() -> State {
    let mut state = State::default();
    (state.logging, state.mechanism) = (true, "write protection".into());
    state.set_memory(&[(0x4000_0000, 0x4400_0000), (0x4500_0000, 0x5000_0000)]);
    for number in 1..=40u64 {
        let words = (0..number).map(|word| (0x4800_0000 + word * state::WORD, u64::MAX)).collect();
        let counted =
            [("split-2m", number), ("collapse-2m", 2), ("fault-permission", number * 64), ("first-writes", 7)];
        state.harvest(Harvest {
            seconds: number as f64,
            words,
            pages: number * 64,
            rate: number as f64 * 64.0,
            table_bytes: 24 << 10,
            counted: counted.map(|(name, count)| (name.to_owned(), count)).to_vec(),
            audits: Some((3, 0)),
        });
    }
    state
}

#[test]
fn everything_is_on_the_screen() {
    let mut state = state();
    state.guest_wrote(b"\x1b[2J\x1b[1;1Hhello from the guest\r\n\x1b]2;evil\x07second line");
    let lines = lines(&drawn(&state, 100, 30));
    let all = lines.join("\n");
    for words in [
        "40 harvests, by write protection: running; 3 audits, missed 0",
        "0x40000000",
        "10.0 MiB/s written",
        "stage-2 tables",
        "24 KiB",
        "hello from the guest",
        "second line",
        "q leave",
    ] {
        assert!(all.contains(words), "`{words}` is missing:\n{all}");
    }
    assert!(!all.contains("evil") && !all.chars().any(|c| c.is_control() && c != '\n'), "{all}");
    let figure = |name: &str| {
        let line = lines.iter().find(|line| line.contains(name))?;
        line.trim_end_matches('│').split_whitespace().last().map(str::to_owned)
    };
    assert_eq!(figure("splits"), Some("40".into()));
    assert_eq!(figure("collapses"), Some("2".into()));
    assert_eq!(figure(" permission"), Some("2560".into()), "exits by kind");
}

#[test]
fn the_grid_tells_written_from_not_written_and_from_the_hypervisors() {
    let mut state = state();
    let letters = |state: &State, letter: &str| {
        drawn(state, 100, 30).content.iter().filter(|cell| cell.symbol() == letter).count()
    };
    let (hot, cold) = (letters(&state, "#"), letters(&state, "/"));
    assert!(hot > 0 && cold > 0, "{hot} {cold}");
    // Nothing was written since: what was hot is no longer.
    state.harvest(Harvest::default());
    assert_eq!((letters(&state, "#"), letters(&state, "/")), (0, cold));
    assert!(letters(&state, ".") >= hot);
}

#[test]
fn the_state_of_things_is_told() {
    let mut state = state();
    state.frozen = true;
    assert!(lines(&drawn(&state, 100, 30))[0].contains("FROZEN"));
    (state.frozen, state.logging) = (false, false);
    assert!(lines(&drawn(&state, 100, 30))[0].contains("the log is off"));
}

#[test]
fn a_terminal_of_any_size_is_drawn_on() {
    let mut state = state();
    state.guest_wrote("ünï çödé 漢字漢字漢字漢字漢字漢字漢字漢字漢字漢字漢字漢字漢字\n".repeat(50).as_bytes());
    for width in [1, 2, 20, 59, 60, 61, 100, 300] {
        for height in [1, 2, 15, 16, 17, 50, 100] {
            assert_eq!(lines(&drawn(&state, width, height)).len(), usize::from(height));
            drawn(&State::default(), width, height);
        }
    }
}
