//! The relayer: which transactions there are, and what each call does to them.
//!
//! Everything that can be refused is refused before anything changes. What is left to fail is the memory for tables, and
//! that leaves nothing changed either.

use crate::Partition;
use crate::descriptor::{Kind, Offer, Relinquishment, Request};
use crate::ledger::{Ledger, Use};
use arm_ffa::FfaError::{self, Denied, InvalidParameters, NoMemory};
use arm_ffa::memory_management::Handle;
use stage2::{Error, IpaRange, Permissions};

/// Transactions at a time.
pub const MAX_TRANSACTIONS: usize = 32;

/// What the relayer does to the machine.
pub trait Machine {
    /// Changes what `partition` may do in `ranges` from `before` to `after`. On return no CPU lets it do more.
    ///
    /// # Errors
    ///
    /// [`Error::OutOfMemory`]: its permissions are what they were.
    fn set_access(
        &self,
        partition: Partition,
        ranges: &[IpaRange],
        before: Permissions,
        after: Permissions,
    ) -> Result<(), Error>;

    /// Makes the leaves in and around `ranges` as large as they can be. Nothing changes for the partition.
    fn collapse(&self, partition: Partition, ranges: &[IpaRange]);

    /// Zeroes memory.
    fn zero(&self, range: IpaRange);
}

#[derive(Debug)]
struct Transaction {
    handle: Handle,
    offer: Offer,
    /// What the receiver has been given, from retrieval to relinquishment.
    retrieved: Option<Permissions>,
}

/// All transactions.
#[derive(Debug)]
pub struct Relayer {
    ledger: Ledger,
    transactions: [Option<Transaction>; MAX_TRANSACTIONS],
    /// Handles given so far: none is given twice.
    serial: u64,
}

impl Relayer {
    /// No transaction; each partition has its memory.
    #[must_use]
    pub fn new() -> Self {
        Self { ledger: Ledger::new(), transactions: [const { None }; MAX_TRANSACTIONS], serial: 0 }
    }

    /// Who has what.
    #[must_use]
    pub fn ledger(&self) -> &Ledger {
        &self.ledger
    }

    /// Transactions under way.
    #[must_use]
    pub fn pending(&self) -> usize {
        self.transactions.iter().flatten().count()
    }

    /// Reserves pages as `owner`'s buffers, or gives them back to it.
    ///
    /// # Errors
    ///
    /// DENIED if they are not its own, or in use.
    pub fn reserve(&mut self, owner: Partition, range: IpaRange, from: Use, to: Use) -> Result<(), FfaError> {
        if !self.ledger.is(range, owner, from) {
            return Err(Denied);
        }
        self.ledger.set(range, owner, to);
        Ok(())
    }

    /// FFA_MEM_DONATE, FFA_MEM_LEND, FFA_MEM_SHARE.
    ///
    /// # Errors
    ///
    /// DENIED if any page is not the sender's own Normal memory, or is in another transaction; NO_MEMORY.
    pub fn send(&mut self, machine: &impl Machine, offer: Offer) -> Result<Handle, FfaError> {
        if !offer.ranges.iter().all(|&range| self.ledger.is(range, offer.sender, Use::Exclusive)) {
            return Err(Denied);
        }
        let number = self.transactions.iter().position(Option::is_none).ok_or(NoMemory)?;
        if offer.kind != Kind::Share {
            let (sender, ranges) = (offer.sender, &offer.ranges);
            change(machine, sender, ranges, Permissions::ALL, Permissions::NONE)?;
        }
        for &range in &offer.ranges {
            if offer.zero {
                machine.zero(range);
            }
            self.ledger.set(range, offer.sender, Use::Transaction(number as u8));
        }
        self.serial += 1;
        // Bit 63 is clear in handles that the SPM allocates; all of 2^55 fit above the number.
        let handle = Handle(self.serial << 8 & !(1 << 63) | number as u64);
        self.transactions[number] = Some(Transaction { handle, offer, retrieved: None });
        Ok(handle)
    }

    /// FFA_MEM_RETRIEVE_REQ: returns the offer and what was granted. A donation is complete with it.
    ///
    /// # Errors
    ///
    /// INVALID_PARAMETERS for a handle that is not an offer to `caller`, or a request that does not match it; DENIED if it
    /// has been retrieved, or if more is asked for than is offered; NO_MEMORY.
    pub fn retrieve(
        &mut self,
        machine: &impl Machine,
        caller: Partition,
        request: &Request,
    ) -> Result<(Offer, Permissions), FfaError> {
        let transaction = find(&mut self.transactions, request.handle, |offer| offer.receiver == caller)?;
        let granted = request.permissions(&transaction.offer)?;
        if transaction.retrieved.is_some() {
            return Err(Denied);
        }
        change(machine, caller, &transaction.offer.ranges, Permissions::NONE, granted)?;
        transaction.retrieved = Some(granted);
        let offer = transaction.offer.clone();
        if offer.kind == Kind::Donate {
            self.end(request.handle, caller);
            machine.collapse(offer.sender, &offer.ranges);
            machine.collapse(caller, &offer.ranges);
        }
        Ok((offer, granted))
    }

    /// FFA_MEM_RELINQUISH.
    ///
    /// # Errors
    ///
    /// INVALID_PARAMETERS for a handle that is not an offer to `caller`; DENIED if it has not been retrieved, or is to be
    /// zeroed by one that may not write; NO_MEMORY.
    pub fn relinquish(
        &mut self,
        machine: &impl Machine,
        caller: Partition,
        what: &Relinquishment,
    ) -> Result<(), FfaError> {
        let transaction = find(&mut self.transactions, what.handle, |offer| offer.receiver == caller)?;
        let granted = transaction.retrieved.ok_or(Denied)?;
        if what.zero && !granted.write {
            return Err(Denied);
        }
        let ranges = &transaction.offer.ranges;
        change(machine, caller, ranges, granted, Permissions::NONE)?;
        transaction.retrieved = None;
        if what.zero {
            ranges.iter().for_each(|&range| machine.zero(range));
        }
        machine.collapse(caller, ranges);
        Ok(())
    }

    /// FFA_MEM_RECLAIM.
    ///
    /// # Errors
    ///
    /// INVALID_PARAMETERS for a handle that is not an offer of `caller`; DENIED while the receiver has it; NO_MEMORY.
    pub fn reclaim(
        &mut self,
        machine: &impl Machine,
        caller: Partition,
        handle: Handle,
        zero: bool,
    ) -> Result<(), FfaError> {
        let transaction = find(&mut self.transactions, handle, |offer| offer.sender == caller)?;
        if transaction.retrieved.is_some() {
            return Err(Denied);
        }
        let offer = transaction.offer.clone();
        if offer.kind != Kind::Share {
            change(machine, caller, &offer.ranges, Permissions::NONE, Permissions::ALL)?;
        }
        if zero {
            offer.ranges.iter().for_each(|&range| machine.zero(range));
        }
        self.end(handle, caller);
        machine.collapse(caller, &offer.ranges);
        Ok(())
    }

    /// Forgets a transaction; its memory is `owner`'s from now on.
    fn end(&mut self, handle: Handle, owner: Partition) {
        for slot in &mut self.transactions {
            if let Some(transaction) = slot.take_if(|transaction| transaction.handle == handle) {
                for &range in &transaction.offer.ranges {
                    self.ledger.set(range, owner, Use::Exclusive);
                }
            }
        }
    }
}

impl Default for Relayer {
    fn default() -> Self {
        Self::new()
    }
}

/// The transaction with this handle, if the caller has a part in it.
fn find(
    transactions: &mut [Option<Transaction>],
    handle: Handle,
    concerns: impl Fn(&Offer) -> bool,
) -> Result<&mut Transaction, FfaError> {
    transactions
        .iter_mut()
        .flatten()
        .find(|transaction| transaction.handle == handle && concerns(&transaction.offer))
        .ok_or(InvalidParameters)
}

fn change(
    machine: &impl Machine,
    partition: Partition,
    ranges: &[IpaRange],
    before: Permissions,
    after: Permissions,
) -> Result<(), FfaError> {
    machine.set_access(partition, ranges, before, after).map_err(|error| {
        // The ranges were checked, so that there is one thing that can be wrong; splits on the way there are undone.
        debug_assert!(matches!(error, Error::OutOfMemory { .. }), "{error}");
        machine.collapse(partition, ranges);
        NoMemory
    })
}
