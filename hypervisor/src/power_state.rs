//! Whether a CPU is on, as the guest's PSCI calls see it (PSCI, DEN0022, 5.6 and 6.6).

use core::sync::atomic::{AtomicU8, AtomicU64, Ordering};

const OFF: u8 = 0;
const ON_PENDING: u8 = 1;
const ON: u8 = 2;

/// What AFFINITY_INFO answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Power {
    /// It runs the guest.
    On,
    /// It does not.
    Off,
    /// It was asked to, and is on its way.
    OnPending,
}

/// Why a CPU cannot be turned on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TurnOnError {
    /// It is on.
    AlreadyOn,
    /// It is on its way.
    OnPending,
}

/// One CPU's state, and where it is to enter the guest.
#[derive(Debug)]
pub struct PowerState {
    state: AtomicU8,
    entry: AtomicU64,
    context: AtomicU64,
}

impl PowerState {
    /// Off.
    pub const fn new() -> Self {
        Self { state: AtomicU8::new(OFF), entry: AtomicU64::new(0), context: AtomicU64::new(0) }
    }

    /// The state.
    pub fn get(&self) -> Power {
        match self.state.load(Ordering::Acquire) {
            OFF => Power::Off,
            ON_PENDING => Power::OnPending,
            _ => Power::On,
        }
    }

    /// From off to on-pending; of several callers one succeeds, and must then start the CPU or call
    /// [`PowerState::turned_off`].
    ///
    /// # Errors
    ///
    /// What PSCI answers instead.
    pub fn turn_on(&self, entry: u64, context: u64) -> Result<(), TurnOnError> {
        match self.state.compare_exchange(OFF, ON_PENDING, Ordering::Acquire, Ordering::Acquire) {
            Ok(_) => {
                self.entry.store(entry, Ordering::Relaxed);
                // Release: the CPU that is started reads both after an acquire of this one.
                self.context.store(context, Ordering::Release);
                Ok(())
            }
            Err(ON_PENDING) => Err(TurnOnError::OnPending),
            Err(_) => Err(TurnOnError::AlreadyOn),
        }
    }

    /// On the CPU that was started: it is on now, and enters the guest at the address returned first, with the value
    /// returned second in x0.
    pub fn turned_on(&self) -> (u64, u64) {
        let context = self.context.load(Ordering::Acquire);
        let entry = self.entry.load(Ordering::Relaxed);
        self.state.store(ON, Ordering::Release);
        (entry, context)
    }

    /// It is off, or could not be started.
    pub fn turned_off(&self) {
        self.state.store(OFF, Ordering::Release);
    }
}

impl Default for PowerState {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_an_off_cpu_is_turned_on() {
        let cpu = PowerState::new();
        assert_eq!(cpu.get(), Power::Off);
        assert_eq!(cpu.turn_on(1, 2), Ok(()));
        assert_eq!(cpu.get(), Power::OnPending);
        assert_eq!(cpu.turn_on(3, 4), Err(TurnOnError::OnPending));
        assert_eq!(cpu.turned_on(), (1, 2), "the refused call changed nothing");
        assert_eq!(cpu.get(), Power::On);
        assert_eq!(cpu.turn_on(3, 4), Err(TurnOnError::AlreadyOn));
        cpu.turned_off();
        assert_eq!(cpu.turn_on(3, 4), Ok(()));
        assert_eq!(cpu.turned_on(), (3, 4));
    }

    #[test]
    fn of_many_callers_one_turns_it_on() {
        for _ in 0..100 {
            let cpu = PowerState::new();
            let winners = std::thread::scope(|scope| {
                let callers = [0, 1, 2, 3].map(|n| {
                    let cpu = &cpu;
                    scope.spawn(move || cpu.turn_on(n, n).is_ok())
                });
                callers.into_iter().filter_map(|caller| caller.join().ok()).filter(|&won| won).count()
            });
            assert_eq!(winners, 1);
        }
    }
}
