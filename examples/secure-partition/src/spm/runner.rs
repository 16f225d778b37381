//! One CPU's contexts: runs them by turns, as their messages say, and answers what they are stopped for.

use crate::console::{self, say};
use crate::context::{Context, Exit};
use crate::shared::Spm;
use arm_ffa::FfaError::InvalidParameters;
use arm_ffa::interface_args::{ConsoleLogChars, DirectMsgArgs};
use arm_ffa::{FfaError, Interface};
use core::sync::atomic::{AtomicU64, Ordering::Relaxed};
use secure_partition::messages::{Contexts, Message, Next};
use secure_partition::service::{self, REGISTERS, VERSION};
use secure_partition::work::{Answer, Order};
use secure_partition::{Partition, layout};
use stage2::aarch64::read_abort;
use stage2::fault::Status;
use stage2::{FaultHistory, Outcome, Taken};

/// Aborts of partitions on memory that was theirs all along: what an invalid window looks like from inside.
pub static WINDOWS_SEEN: AtomicU64 = AtomicU64::new(0);
/// Accesses that a partition was denied.
pub static DENIED: AtomicU64 = AtomicU64::new(0);

/// One CPU's contexts.
#[derive(Debug)]
pub struct Runner {
    spm: &'static Spm,
    cpu: usize,
    contexts: [Context; 2],
    messages: Contexts,
    history: FaultHistory,
    current: Option<Partition>,
}

impl Runner {
    /// Both partitions' contexts on this CPU, run until they wait for a message.
    pub fn new(spm: &'static Spm, cpu: usize) -> Self {
        let contexts = Partition::ALL.map(|partition| {
            let arguments = [layout::stack_top(partition, cpu).0, partition.index() as u64, cpu as u64];
            Context::new(layout::PROGRAM.start().0, arguments)
        });
        let history = FaultHistory::new();
        let mut runner = Self { spm, cpu, contexts, messages: Contexts::new(), history, current: None };
        for partition in Partition::ALL {
            runner.run(partition);
        }
        runner
    }

    /// Has a partition carry out an order on this CPU.
    pub fn order(&mut self, partition: Partition, order: Order) -> Answer {
        match self.messages.start(partition, DirectMsgArgs::Args64(order.encode())) {
            Ok(Next::Run(partition, message)) => {
                self.deliver(partition, message);
                match self.run(partition) {
                    Some(Message { args: DirectMsgArgs::Args64(words), .. }) => Answer::decode(&words),
                    _ => panic!("{partition:?} on CPU {} answered with another kind of message", self.cpu),
                }
            }
            other => panic!("{partition:?} on CPU {} takes no orders: {other:?}", self.cpu),
        }
    }

    /// Runs a partition's context, and those it sends requests to, until there is something for the SPM itself.
    fn run(&mut self, partition: Partition) -> Option<Message> {
        let mut partition = partition;
        loop {
            self.switch_to(partition);
            let exit = self.contexts[partition.index()].run();
            match self.handle(partition, exit) {
                None => {}
                Some(Next::Run(next, message)) => {
                    partition = next;
                    self.deliver(next, message);
                }
                Some(Next::Leave(message)) => return message,
            }
        }
    }

    fn switch_to(&mut self, partition: Partition) {
        if self.current == Some(partition) {
            return;
        }
        if let Some(previous) = self.current.replace(partition) {
            self.contexts[previous.index()].save();
        }
        self.spm.load_tables(partition, self.cpu);
        self.contexts[partition.index()].load();
    }

    /// What a context's waiting call returns: the message.
    fn deliver(&mut self, partition: Partition, message: Message) {
        let Message { source: src_id, destination: dst_id, args, is_response } = message;
        let interface = match is_response {
            false => Interface::MsgSendDirectReq { src_id, dst_id, args },
            true => Interface::MsgSendDirectResp { src_id, dst_id, args },
        };
        self.answer(partition, &interface);
    }

    fn answer(&mut self, partition: Partition, interface: &Interface) {
        let mut registers = [0; REGISTERS];
        interface.to_regs(VERSION, &mut registers);
        self.contexts[partition.index()].answer(&registers);
    }

    /// Answers what stopped a context; says what runs next if it is not the same context.
    fn handle(&mut self, partition: Partition, exit: Exit) -> Option<Next> {
        const SMC: u64 = 0x17;
        let Exit::Synchronous { esr, far } = exit else {
            panic!("an interrupt or an error came while {partition:?} ran on CPU {}", self.cpu);
        };
        if esr >> 26 & 0x3f == SMC {
            self.contexts[partition.index()].step_over();
            return self.call(partition);
        }
        self.abort(partition, esr, far);
        None
    }

    fn call(&mut self, partition: Partition) -> Option<Next> {
        let decoded = service::decode(&self.contexts[partition.index()].call());
        let switched = match decoded {
            Ok(Interface::MsgWait { .. }) => self.messages.wait(partition),
            Ok(Interface::MsgSendDirectReq { src_id: source, dst_id: destination, args }) => {
                self.messages.send(partition, Message { source, destination, args, is_response: false })
            }
            Ok(Interface::MsgSendDirectResp { src_id: source, dst_id: destination, args }) => {
                self.messages.send(partition, Message { source, destination, args, is_response: true })
            }
            Ok(Interface::ConsoleLog { chars }) => {
                let result = log(partition, &chars);
                self.answer(partition, &result);
                return None;
            }
            Ok(call) => {
                let result = self.spm.service.call(partition, &call);
                self.answer(partition, &result);
                return None;
            }
            Err(error) => Err(error),
        };
        switched.map_err(|error: FfaError| self.answer(partition, &service::error(error))).ok()
    }

    fn abort(&mut self, partition: Partition, esr: u64, far: u64) {
        let abort = match read_abort(esr) {
            Some(Taken::Abort(abort)) => abort,
            // A register or an instruction that contexts do not have. (Addresses always have an IPA: contexts have no stage
            // 1. Who lets them have one calls `Stage2::answer`, which knows what else there may be to do.)
            Some(Taken::Untranslated { .. }) | None => {
                self.contexts[partition.index()].inject_undefined();
                return;
            }
        };
        match self.spm.service.world().tables.fault(partition, &abort, &mut self.history) {
            Outcome::Retry if abort.status == Status::Translation => {
                WINDOWS_SEEN.fetch_add(1, Relaxed);
            }
            Outcome::Retry => {}
            Outcome::Unmapped | Outcome::Denied => {
                DENIED.fetch_add(1, Relaxed);
                self.contexts[partition.index()].inject_abort(esr, far);
            }
            // Nobody freezes these tables.
            Outcome::Stuck | Outcome::Frozen => {
                panic!("{partition:?} aborts at {far:#x} although its tables allow it: ESR_EL2 {esr:#x}");
            }
        }
    }
}

/// FFA_CONSOLE_LOG.
fn log(partition: Partition, chars: &ConsoleLogChars) -> Interface {
    let bytes = match chars {
        ConsoleLogChars::Chars32(chars) => chars.bytes(),
        ConsoleLogChars::Chars64(chars) => chars.bytes(),
    };
    let Ok(text) = core::str::from_utf8(bytes) else {
        return service::error(InvalidParameters);
    };
    match partition {
        Partition::First => console::line("0x8001", format_args!("{text}")),
        Partition::Second => console::line("0x8002", format_args!("{text}")),
    }
    service::success()
}

/// Says what a partition's answer means, and whether it is a good one.
pub fn judge(partition: Partition, answer: Answer) -> Option<[u64; 4]> {
    match answer {
        Answer::Done(counts) => Some(counts),
        Answer::Failed(failure, detail) => {
            say!("partition {:#x}: {failure:?} went wrong: {detail:#x}", partition.id());
            None
        }
    }
}
