//! Whether a CPU is on, as the guest's PSCI calls see it (PSCI, DEN0022, 5.6 and 6.6).

use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};

const OFF: u32 = 0;
const ON_PENDING: u32 = 1;
const ON: u32 = 2;
/// The bits of a state; those above count how often the CPU was turned on.
const STATE: u32 = 3;

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

/// One call's right to start a CPU, or to say that it could not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ticket(u32);

/// One CPU's state, and where it is to enter the guest.
#[derive(Debug)]
pub struct PowerState {
    state: AtomicU32,
    entry: AtomicU64,
    context: AtomicU64,
}

impl PowerState {
    /// Off.
    pub const fn new() -> Self {
        Self { state: AtomicU32::new(OFF), entry: AtomicU64::new(0), context: AtomicU64::new(0) }
    }

    /// The state.
    pub fn get(&self) -> Power {
        match self.state.load(Ordering::Acquire) & STATE {
            OFF => Power::Off,
            ON_PENDING => Power::OnPending,
            _ => Power::On,
        }
    }

    /// From off to on-pending; of several callers one succeeds, and must then start the CPU or call
    /// [`PowerState::could_not_start`].
    ///
    /// # Errors
    ///
    /// What PSCI answers instead.
    pub fn turn_on(&self, entry: u64, context: u64) -> Result<Ticket, TurnOnError> {
        let pending =
            |state: u32| (state & STATE == OFF).then_some((state & !STATE).wrapping_add(STATE + 1) | ON_PENDING);
        match self.state.fetch_update(Ordering::Acquire, Ordering::Acquire, pending) {
            Ok(before) => {
                self.entry.store(entry, Ordering::Relaxed);
                // Release: the CPU that is started reads both after an acquire of this one.
                self.context.store(context, Ordering::Release);
                Ok(Ticket((before & !STATE).wrapping_add(STATE + 1) | ON_PENDING))
            }
            Err(state) if state & STATE == ON_PENDING => Err(TurnOnError::OnPending),
            Err(_) => Err(TurnOnError::AlreadyOn),
        }
    }

    /// Whether the call that got `ticket` is still the one that the CPU is to be started for.
    pub fn is_pending(&self, ticket: Ticket) -> bool {
        self.state.load(Ordering::Relaxed) == ticket.0
    }

    /// The firmware could not start the CPU for the call that got `ticket`: it is off, unless it was on its way there,
    /// was refused that, and is on again, or others have turned it on meanwhile.
    pub fn could_not_start(&self, ticket: Ticket) {
        let off = ticket.0 & !STATE | OFF;
        let _ = self.state.compare_exchange(ticket.0, off, Ordering::Release, Ordering::Relaxed);
    }

    /// On the CPU that was started: it is on now, and enters the guest at the address returned first, with the value
    /// returned second in x0.
    pub fn turned_on(&self) -> (u64, u64) {
        let context = self.context.load(Ordering::Acquire);
        let entry = self.entry.load(Ordering::Relaxed);
        self.set(ON);
        (entry, context)
    }

    /// On the CPU itself: it is about to be off, and may be turned on from now on.
    pub fn turned_off(&self) {
        self.set(OFF);
    }

    /// On the CPU itself: the firmware has refused to turn it off. It is on, even if another CPU has tried to turn it
    /// on meanwhile.
    pub fn stays_on(&self) {
        self.set(ON);
    }

    fn set(&self, state: u32) {
        // Only the state: a ticket stays used.
        let _ = self.state.fetch_update(Ordering::Release, Ordering::Relaxed, |now| Some(now & !STATE | state));
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
        assert!(cpu.turn_on(1, 2).is_ok());
        assert_eq!(cpu.get(), Power::OnPending);
        assert_eq!(cpu.turn_on(3, 4), Err(TurnOnError::OnPending));
        assert_eq!(cpu.turned_on(), (1, 2), "the refused call changed nothing");
        assert_eq!(cpu.get(), Power::On);
        assert_eq!(cpu.turn_on(3, 4), Err(TurnOnError::AlreadyOn));
        cpu.turned_off();
        assert!(cpu.turn_on(3, 4).is_ok());
        assert_eq!(cpu.turned_on(), (3, 4));
    }

    /// CPU_OFF that the firmware refuses, while another CPU calls CPU_ON: whatever comes first, the CPU is on at the
    /// end.
    #[test]
    fn a_cpu_that_may_not_go_is_on_whoever_tries_to_turn_it_on() {
        for fails_first in [true, false] {
            let cpu = PowerState::new();
            cpu.turn_on(1, 2).unwrap();
            cpu.turned_on();
            cpu.turned_off();
            let ticket = cpu.turn_on(3, 4).unwrap();
            if fails_first {
                cpu.could_not_start(ticket);
                assert_eq!(cpu.get(), Power::Off);
                cpu.stays_on();
            } else {
                cpu.stays_on();
                cpu.could_not_start(ticket);
            }
            assert_eq!(cpu.get(), Power::On, "the firmware's answer to CPU_ON comes first: {fails_first}");
            assert_eq!(cpu.turn_on(5, 6), Err(TurnOnError::AlreadyOn));
        }
    }

    #[test]
    fn a_late_failure_does_not_end_another_s_start() {
        let cpu = PowerState::new();
        let late = cpu.turn_on(1, 2).unwrap();
        cpu.stays_on();
        cpu.turned_off();
        let ticket = cpu.turn_on(3, 4).unwrap();
        assert!(!cpu.is_pending(late) && cpu.is_pending(ticket));
        cpu.could_not_start(late);
        assert_eq!(cpu.get(), Power::OnPending);
        cpu.could_not_start(ticket);
        assert_eq!(cpu.get(), Power::Off);
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
