//! The sender's side: random moves of random pages, there and back.

use crate::ffa;
use crate::home::{Home, checked};
use crate::pages::{self, Access};
use crate::transfer::{self, OfferOf, Ranges};
use arm_ffa::interface_args::DirectMsgArgs;
use arm_ffa::memory_management::{Handle, MemTransactionFlags};
use arm_ffa::{FuncId, Interface};
use secure_partition::descriptor::Kind;
use secure_partition::layout;
use secure_partition::work::{Answer, Failure, Order, Random, answer_to};
use stage2::{Ipa, IpaRange, LeafSize, PAGE_SIZE};

/// Moves memory to the other partition and back so many times. Returns how many moves there were of each kind, and how many
/// pages they moved.
pub fn drive(home: &Home, moves: u64, seed: u64) -> Result<Answer, Answer> {
    let mut random = Random::new(seed);
    let mut counts = [0; 4];
    for _ in 0..moves {
        let kind = [Kind::Donate, Kind::Lend, Kind::Share][random.below(3) as usize];
        let ranges = pick(home, &mut random);
        home.step(0)?;
        move_once(home, kind, &ranges, &mut random)?;
        counts[kind as usize] += 1;
        counts[3] += ranges.iter().map(|range| range.pages()).sum::<u64>();
    }
    Ok(Answer::Done(counts))
}

/// One to three ranges of spare pages, none of which touch; or once in a while a whole block.
fn pick(home: &Home, random: &mut Random) -> Ranges {
    let spare = layout::spare(home.partition);
    let mut ranges = Ranges::new();
    if random.below(256) == 0 {
        let block = LeafSize::Block2M.bytes();
        ranges.extend(IpaRange::from_size(Ipa(spare.end().0 - block), block));
        return ranges;
    }
    for _ in 0..1 + random.below(3) {
        let start = spare.start().offset(random.below(spare.pages()) * PAGE_SIZE);
        let bytes = (1 + random.below(8)) * PAGE_SIZE;
        let range = IpaRange::from_size(start, bytes).ok().and_then(|range| range.intersection(spare));
        if let Some(range) = range.filter(|range| ranges.iter().all(|other| other.intersection(*range).is_none())) {
            ranges.push(range);
        }
    }
    ranges
}

fn move_once(home: &Home, kind: Kind, ranges: &[IpaRange], random: &mut Random) -> Result<(), Answer> {
    let seed = random.next_number();
    let writable = kind == Kind::Donate || random.below(4) != 0;
    let zeroed = writable && kind != Kind::Share && random.below(8) == 0;
    let probe = random.below(16) == 0;
    pages::fill(ranges, seed);

    let described = transfer::constituents(ranges);
    let mut offer = OfferOf::new(home, kind, &described, writable, seed);
    if zeroed {
        offer.header.flags = MemTransactionFlags(MemTransactionFlags::ZERO_MEMORY);
    }
    let handle = checked(offer.send(home), transfer::function(kind))?;
    if probe && kind != Kind::Share {
        pages::must_fault(ranges, Access::Read)?;
        pages::must_fault(ranges, Access::Write)?;
    }
    let answer = ask(home, Order::Borrow { handle: handle.0, kind, seed, zeroed, writable, probe })?;
    match (kind, answer) {
        (_, Answer::Failed(..)) => return Err(answer),
        (Kind::Donate, Answer::Done([handle, ..])) => {
            transfer::take_back(home, Handle(handle), seed, Some(ranges))?;
        }
        (_, Answer::Done(_)) => checked(transfer::reclaim(handle), FuncId::MemReclaim)?,
    }
    match (writable, zeroed) {
        (true, _) => pages::check(ranges, Some(answer_to(seed))),
        (false, true) => pages::check(ranges, None),
        (false, false) => pages::check(ranges, Some(seed)),
    }
}

/// Sends the other partition a direct request and returns its answer.
fn ask(home: &Home, order: Order) -> Result<Answer, Answer> {
    let request = Interface::MsgSendDirectReq {
        src_id: home.partition.id(),
        dst_id: home.partition.other().id(),
        args: DirectMsgArgs::Args64(order.encode()),
    };
    match checked(ffa::call(&request), FuncId::MsgSendDirectReq64)? {
        Interface::MsgSendDirectResp { args: DirectMsgArgs::Args64(words), .. } => Ok(Answer::decode(&words)),
        _ => Err(Answer::Failed(Failure::Order, 0)),
    }
}
