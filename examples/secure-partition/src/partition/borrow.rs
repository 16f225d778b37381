//! The receiver's side.

use crate::home::{Home, checked};
use crate::pages::{self, Access};
use crate::transfer::{self, OfferOf, Wish};
use arm_ffa::FuncId;
use arm_ffa::memory_management::{DataAccessPerm, Handle, InstuctionAccessPerm};
use secure_partition::descriptor::Kind;
use secure_partition::work::{Answer, Failure, Order, answer_to};

/// Retrieves what the other partition offers, checks it, changes it if it may, and gives it back.
pub fn borrow(home: &Home, order: Order) -> Result<Answer, Answer> {
    let Order::Borrow { handle, kind, seed, zeroed, writable, probe } = order else {
        return Err(Answer::Failed(Failure::Order, 0));
    };
    let handle = Handle(handle);
    home.step(1)?;
    if kind == Kind::Donate {
        let ranges = transfer::take_back(home, handle, seed, None)?;
        pages::check(&ranges, (!zeroed).then_some(seed))?;
        pages::fill(&ranges, answer_to(seed));
        let described = transfer::constituents(&ranges);
        let back = OfferOf::new(home, Kind::Donate, &described, true, seed);
        let handle = checked(back.send(home), FuncId::MemDonate32)?;
        return Ok(Answer::Done([handle.0, 0, 0, 0]));
    }
    let data_access = if writable { DataAccessPerm::ReadWrite } else { DataAccessPerm::ReadOnly };
    let instr_access = InstuctionAccessPerm::NotExecutable;
    let wish = Wish { handle, sender: home.partition.other(), tag: seed, data_access, instr_access };
    let ranges = checked(wish.retrieve(home), FuncId::MemRetrieveReq32)?;
    pages::check(&ranges, (!zeroed).then_some(seed))?;
    if probe {
        pages::must_fault(&ranges, Access::Execute)?;
        if !writable {
            pages::must_fault(&ranges, Access::Write)?;
        }
    }
    if writable {
        pages::fill(&ranges, answer_to(seed));
    }
    home.step(1)?;
    checked(transfer::relinquish(home, handle), FuncId::MemRelinquish)?;
    if probe {
        pages::must_fault(&ranges, Access::Read)?;
    }
    Ok(Answer::Done([0; 4]))
}
