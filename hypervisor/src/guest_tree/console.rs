//! The console's node in the guest's tree, and what names it.

use super::writer::{Writer, Written, unit};
use crate::machine::Uart;
use crate::uart::Kind;
use alloc::format;
use alloc::string::String;

/// The rate of QEMU's and most boards' peripheral clock, for a console whose own is not known. Linux's drivers do not start without
/// a rate.
pub const DEFAULT_CLOCK_HZ: u32 = 24_000_000;

/// The clocks that Linux's drivers want, by the name that they have in the UART's binding.
fn clock_names(uart: &Uart) -> &'static [&'static str] {
    match uart.port.kind {
        Kind::Pl011 => &["uartclk", "apb_pclk"],
        Kind::Ns16550 if uart.compatible.contains(&"mediatek,mt6577-uart") => &["baud", "bus"],
        // These are content with `clock-frequency`, or have no clock to set.
        Kind::Ns16550 | Kind::Sbsa => &[],
        Kind::Cadence => &["uart_clk", "pclk"],
        Kind::Imx => &["ipg", "per"],
    }
}

/// The node's path.
fn path(uart: &Uart) -> String {
    let name = if uart.port.kind == Kind::Pl011 { "pl011" } else { "serial" };
    format!("/{}", unit(name, uart.device.registers))
}

/// `stdout-path`: the node, and how the boot loader has set it up.
pub(super) fn stdout_path(uart: &Uart) -> String {
    uart.options.iter().fold(path(uart), |path, options| path + ":" + options)
}

impl Writer {
    /// `/aliases`: Linux numbers its lines by it, so that `console=ttyS2` is what it is on the machine itself, and i.MX's driver
    /// wants there to be one.
    pub(super) fn aliases(&mut self, uart: &Uart) -> Written {
        self.node("aliases", |tree| tree.text(&format!("serial{}", uart.line.unwrap_or(0)), &path(uart)))
    }

    /// The console (Linux bindings `serial/pl011`, `serial/arm,sbsa-uart`, `serial/8250`, `serial/snps-dw-apb-uart`,
    /// `serial/mediatek,uart`, `serial/cdns,uart`, `serial/fsl-imx-uart`).
    pub(super) fn uart(&mut self, uart: &Uart) -> Written {
        self.node(path(uart).trim_start_matches('/'), |tree| {
            let mut names = uart.compatible.clone();
            if uart.port.kind == Kind::Pl011 {
                names.push("arm,primecell");
            }
            tree.texts("compatible", &names)?;
            tree.reg(&[uart.device.registers])?;
            if let Some(interrupt) = uart.device.interrupt {
                tree.interrupts(&[interrupt])?;
            }
            uart.cells.iter().try_for_each(|(name, value)| tree.cell(name, *value))?;
            uart.flags.iter().try_for_each(|flag| tree.flag(flag))?;
            match uart.port.kind {
                Kind::Ns16550 if clock_names(uart).is_empty() => {
                    tree.cell("clock-frequency", uart.clock_hz.unwrap_or(DEFAULT_CLOCK_HZ))?;
                }
                // SBSA's binding wants to be told; nothing is set to it.
                Kind::Sbsa if !uart.cells.iter().any(|(name, _)| *name == "current-speed") => {
                    tree.cell("current-speed", uart.speed())?;
                }
                _ => {}
            }
            tree.clocks(clock_names(uart))
        })
    }
}
