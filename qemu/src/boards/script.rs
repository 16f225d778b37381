//! What is typed at a boot loader: each line when the loader asks for it.

use super::modules::{BOOTARGS, Module, Modules};
use std::collections::VecDeque;

/// Lines to type, each with what must have been printed before it.
#[derive(Debug, Default)]
pub(super) struct Script {
    steps: VecDeque<(&'static str, String)>,
    /// What of the console has been answered.
    seen: usize,
}

/// U-Boot's prompt.
const PROMPT: &str = "=> ";

impl Script {
    /// Nothing to type.
    pub fn none() -> Self {
        Self::default()
    }

    /// What makes U-Boot start the image at `image`: QEMU's tree, which lies at `ram`, is moved to where there is room, is given
    /// the modules, and goes to the image in x0.
    pub fn u_boot(ram: u64, tree: u64, image: u64, modules: &Modules) -> Self {
        let mut steps = VecDeque::from([("Hit any key to stop autoboot", "\r".to_owned())]);
        let mut line = |line: String| steps.push_back((PROMPT, line + "\r"));
        line(format!("fdt addr {ram:#x}"));
        line(format!("fdt move {ram:#x} {tree:#x} 0x110000"));
        line("fdt set /chosen \\#address-cells <2>".into());
        line("fdt set /chosen \\#size-cells <2>".into());
        line("fdt set /chosen bootargs \"log=info\"".into());
        for (kind, Module { address, bytes, .. }) in [("kernel", &modules.kernel), ("ramdisk", &modules.initrd)] {
            let node = format!("module@{address:x}");
            line(format!("fdt mknode /chosen {node}"));
            line(format!("fdt set /chosen/{node} compatible \"multiboot,{kind}\" \"multiboot,module\""));
            line(format!("fdt set /chosen/{node} reg <{}>", cells(&[*address, *bytes])));
            if kind == "kernel" {
                line(format!("fdt set /chosen/{node} bootargs \"{BOOTARGS}\""));
            }
        }
        line(format!("booti {image:#x} - {tree:#x}"));
        Self { steps, seen: 0 }
    }

    /// What to type now that `console` has been printed.
    pub fn next(&mut self, console: &[u8]) -> Option<Vec<u8>> {
        let (wanted, _) = self.steps.front()?;
        let new = console.get(self.seen..)?;
        let at = new.windows(wanted.len()).position(|piece| piece == wanted.as_bytes())?;
        self.seen += at + wanted.len();
        self.steps.pop_front().map(|(_, line)| line.into_bytes())
    }
}

/// Numbers of 64 bits as U-Boot writes cells.
fn cells(numbers: &[u64]) -> String {
    let cells = numbers.iter().flat_map(|number| [number >> 32, number & 0xffff_ffff]);
    cells.map(|cell| format!("{cell:#x}")).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_wait_for_their_prompt() {
        let steps = [("key", "\r".to_owned()), (PROMPT, "one\r".into()), (PROMPT, "two\r".into())];
        let mut script = Script { steps: steps.into(), seen: 0 };
        let mut console = Vec::new();
        let mut typed = Vec::new();
        for byte in b"boot... press a key 2\n=> one\r\n=> two\r\ndone => " {
            console.push(*byte);
            typed.extend(script.next(&console).map(|line| (console.len(), String::from_utf8(line).unwrap())));
        }
        assert_eq!(typed, [(19, "\r".into()), (25, "one\r".into()), (33, "two\r".into())]);
        assert_eq!(Script::none().next(b"=> "), None);
    }

    #[test]
    fn numbers_are_two_cells() {
        assert_eq!(cells(&[0x1_0000_0002, 3]), "0x1 0x2 0x0 0x3");
    }
}
