//! Direct messages: who runs on one CPU, and who waits for whom.
//!
//! Each partition has one execution context on each CPU. A direct request runs the receiver's context in the sender's
//! place until it answers, so one CPU's contexts never run at the same time, and different CPUs know nothing of each other.

use crate::Partition;
use arm_ffa::FfaError::{self, Busy, Denied, InvalidParameters};
use arm_ffa::interface_args::DirectMsgArgs;

/// The endpoint in whose name the SPM itself sends: the Normal world's primary, which this machine does not have.
pub const SPM_CLIENT: u16 = 0;

/// A context of a partition.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum State {
    /// It has not asked for a message yet.
    Starting,
    /// It waits for a request.
    Waiting,
    /// It works on a request from this endpoint.
    Working { requester: u16 },
    /// It works on a request from the first endpoint, and has sent one of its own.
    Blocked { requester: u16 },
}

/// What the CPU does next.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Next {
    /// It runs this context, whose call returns the message.
    Run(Partition, Message),
    /// It returns to the SPM: the context has started, or answered the SPM's own request.
    Leave(Option<Message>),
}

/// FFA_MSG_SEND_DIRECT_REQ or FFA_MSG_SEND_DIRECT_RESP.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Message {
    /// From.
    pub source: u16,
    /// To.
    pub destination: u16,
    /// What is said.
    pub args: DirectMsgArgs,
    /// Whether it answers one.
    pub is_response: bool,
}

/// The contexts of one CPU.
#[derive(Debug)]
pub struct Contexts {
    states: [State; 2],
}

impl Contexts {
    /// Both are to be started.
    #[must_use]
    pub const fn new() -> Self {
        Self { states: [State::Starting; 2] }
    }

    /// FFA_MSG_WAIT: the context has nothing to do.
    ///
    /// # Errors
    ///
    /// DENIED if it owes somebody an answer.
    pub fn wait(&mut self, caller: Partition) -> Result<Next, FfaError> {
        if self.states[caller.index()] != State::Starting {
            return Err(Denied);
        }
        self.states[caller.index()] = State::Waiting;
        Ok(Next::Leave(None))
    }

    /// The SPM's own request.
    ///
    /// # Errors
    ///
    /// BUSY if the context does not wait.
    pub fn start(&mut self, partition: Partition, args: DirectMsgArgs) -> Result<Next, FfaError> {
        let message = Message { source: SPM_CLIENT, destination: partition.id(), args, is_response: false };
        self.deliver(partition, message)
    }

    /// A context's message.
    ///
    /// # Errors
    ///
    /// INVALID_PARAMETERS if it comes in another's name, goes nowhere, or answers one that did not ask; BUSY if
    /// the receiver's context does not wait for a request; DENIED for a request while starting.
    pub fn send(&mut self, caller: Partition, message: Message) -> Result<Next, FfaError> {
        let state = self.states[caller.index()];
        if message.source != caller.id() {
            return Err(InvalidParameters);
        }
        let State::Working { requester } = state else {
            return Err(Denied);
        };
        if message.is_response {
            if message.destination != requester {
                return Err(InvalidParameters);
            }
            self.states[caller.index()] = State::Waiting;
            let Some(receiver) = Partition::from_id(requester) else {
                return Ok(Next::Leave(Some(message)));
            };
            if let State::Blocked { requester } = self.states[receiver.index()] {
                self.states[receiver.index()] = State::Working { requester };
            }
            return Ok(Next::Run(receiver, message));
        }
        let receiver = Partition::from_id(message.destination).filter(|to| *to != caller).ok_or(InvalidParameters)?;
        let next = self.deliver(receiver, message)?;
        self.states[caller.index()] = State::Blocked { requester };
        Ok(next)
    }

    fn deliver(&mut self, receiver: Partition, message: Message) -> Result<Next, FfaError> {
        if self.states[receiver.index()] != State::Waiting {
            return Err(Busy);
        }
        self.states[receiver.index()] = State::Working { requester: message.source };
        Ok(Next::Run(receiver, message))
    }
}

impl Default for Contexts {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use Partition::{First, Second};

    const ARGS: DirectMsgArgs = DirectMsgArgs::Args64([7; 15]);

    fn message(source: u16, destination: u16, is_response: bool) -> Message {
        Message { source, destination, args: ARGS, is_response }
    }

    fn started() -> Contexts {
        let mut contexts = Contexts::new();
        for partition in Partition::ALL {
            assert_eq!(contexts.start(partition, ARGS), Err(Busy), "not started yet");
            assert_eq!(contexts.send(partition, message(partition.id(), First.id(), false)), Err(Denied));
            assert_eq!(contexts.wait(partition), Ok(Next::Leave(None)));
        }
        contexts
    }

    #[test]
    fn a_request_goes_down_and_its_answer_comes_up() {
        let mut contexts = started();
        assert_eq!(contexts.start(First, ARGS), Ok(Next::Run(First, message(0, First.id(), false))));
        let request = message(First.id(), Second.id(), false);
        assert_eq!(contexts.send(First, request), Ok(Next::Run(Second, request)));
        assert_eq!(contexts.send(Second, message(Second.id(), First.id(), false)), Err(Busy), "no circles");
        let answer = message(Second.id(), First.id(), true);
        assert_eq!(contexts.send(Second, answer), Ok(Next::Run(First, answer)));
        let answer = message(First.id(), SPM_CLIENT, true);
        assert_eq!(contexts.send(First, answer), Ok(Next::Leave(Some(answer))));
        assert_eq!(contexts.start(Second, ARGS), Ok(Next::Run(Second, message(0, Second.id(), false))));
    }

    #[test]
    fn nobody_speaks_for_another_or_to_nobody() {
        let mut contexts = started();
        contexts.start(First, ARGS).unwrap();
        for (source, destination, is_response) in [
            (Second.id(), SPM_CLIENT, true),
            (First.id(), Second.id(), true),
            (First.id(), First.id(), false),
            (First.id(), 0x8003, false),
            (First.id(), SPM_CLIENT, false),
            (0, Second.id(), false),
        ] {
            let sent = contexts.send(First, message(source, destination, is_response));
            assert_eq!(sent, Err(InvalidParameters), "{source:#x} to {destination:#x}");
        }
        assert_eq!(contexts.wait(First), Err(Denied), "the SPM still waits for an answer");
        assert_eq!(contexts.send(Second, message(Second.id(), First.id(), true)), Err(Denied), "it does not run");
    }
}
