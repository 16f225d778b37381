//! A secure partition: moves its memory to the other partition and back, and takes what the other one sends. Both
//! partitions execute this one copy, which has no data of its own: what they know is on their stacks.
#![no_std]
#![no_main]

mod borrow;
mod drive;
mod ffa;
mod home;
mod pages;
mod refusals;
mod transfer;

use crate::home::Home;
use arm_ffa::Interface;
use arm_ffa::interface_args::{DirectMsgArgs, MsgWaitFlags};
use core::arch::global_asm;
use secure_partition::Partition;
use secure_partition::messages::SPM_CLIENT;
use secure_partition::work::{Answer, Failure, Order};

global_asm!(include_str!("entry.S"));

/// Where each context comes from entry.S.
#[unsafe(no_mangle)]
extern "C" fn main(partition: u64, cpu: u64) -> ! {
    let partition = if partition == 0 { Partition::First } else { Partition::Second };
    let home = Home::of(partition);
    if cpu == 0 {
        // The other CPU's context starts when this one has, but may do so before it is here.
        if let Err(Answer::Failed(failure, detail)) = home.introduce() {
            panic!("{failure:?} {detail:#x}");
        }
    }
    let mut answer = Interface::MsgWait { flags: MsgWaitFlags::default(), is_32bit: true };
    loop {
        let (client, args) = match ffa::call(&answer) {
            Ok(Interface::MsgSendDirectReq { src_id, args, .. }) => (src_id, args),
            other => panic!("no request came: {other:?}"),
        };
        let order = match args {
            DirectMsgArgs::Args64(words) => Order::decode(&words),
            _ => None,
        };
        let result = match (order, client) {
            (Some(Order::TryRefusals), SPM_CLIENT) => refusals::try_all(&home),
            (Some(Order::Drive { moves, seed }), SPM_CLIENT) => drive::drive(&home, moves, seed),
            (Some(order @ Order::Borrow { .. }), _) => borrow::borrow(&home, order),
            _ => Err(Answer::Failed(Failure::Order, client.into())),
        };
        let words = result.unwrap_or_else(|failed| failed).encode();
        let args = DirectMsgArgs::Args64(words);
        answer = Interface::MsgSendDirectResp { src_id: partition.id(), dst_id: client, args };
    }
}

#[unsafe(no_mangle)]
extern "C" fn unexpected_exception(vector: u64, esr: u64, far: u64, elr: u64) -> ! {
    panic!("exception {vector}: ESR {esr:#x} FAR {far:#x} ELR {elr:#x}");
}

/// Says what happened, and waits for the end: the SPM's run has a time limit.
#[panic_handler]
fn panic(info: &core::panic::PanicInfo<'_>) -> ! {
    use core::fmt::Write;
    let mut text = arrayvec::ArrayString::<128>::new();
    // What does not fit is left out.
    let _ = write!(text, "{}", info.message());
    ffa::log(&text);
    loop {
        core::hint::spin_loop();
    }
}
