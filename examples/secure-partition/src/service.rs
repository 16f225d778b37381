//! The FF-A calls that a partition makes of the SPM, but for those that switch contexts ([`crate::messages`]).

use crate::Partition;
use crate::descriptor::{Kind, Offer, Relinquishment, Request};
use crate::layout::CPUS;
use crate::ledger::Use;
use crate::relayer::{Machine, Relayer};
use arm_ffa::FfaError::{self, Busy, Denied, InvalidParameters, NoMemory, NotSupported};
use arm_ffa::interface_args::{
    Feature, MemOpBuf, RxTxAddr, SuccessArgs, SuccessArgsFeatures, SuccessArgsIdGet, SuccessArgsSpmIdGet, TargetInfo,
    VersionQueryType,
};
use arm_ffa::memory_management::SuccessArgsMemOp;
use arm_ffa::partition_info::{PartitionIdType, PartitionInfo, PartitionProperties, SuccessArgsPartitionInfoGet};
use arm_ffa::{FuncId, Interface, Uuid, Version, VersionOut};
use spin::{Mutex, MutexGuard};
use stage2::{Ipa, IpaRange, PAGE_SIZE};

/// The version of FF-A that the SPM speaks.
pub const VERSION: Version = Version(1, 2);
/// The SPM's own endpoint ID.
pub const SPM_ID: u16 = 0x8000;
/// What both partitions are: two of the same service.
pub const SERVICE: Uuid = Uuid::from_u128(0x9dc2_53a1_7b0e_4c3f_8a54_61d2_7f03_e5b8);

/// Registers that a call may use (SMCCC 1.2).
pub const REGISTERS: usize = 18;

const PAGE: usize = PAGE_SIZE as usize;

/// What the calls do to the machine.
pub trait World: Machine {
    /// Reads a page of a partition's memory, which the partition may be writing to.
    fn read(&self, page: Ipa, into: &mut [u8; PAGE]);

    /// Writes to the start of a page of a partition's memory.
    fn write(&self, page: Ipa, bytes: &[u8]);
}

/// A partition's RX and TX buffers.
#[derive(Clone, Copy, Debug)]
struct Mailbox {
    rx: IpaRange,
    tx: IpaRange,
    /// The partition has not released what the SPM wrote last.
    rx_full: bool,
}

#[derive(Debug)]
struct State {
    relayer: Relayer,
    mailboxes: [Option<Mailbox>; 2],
    /// A copy of a TX buffer: what is checked must be what is used.
    page: Page,
}

/// Descriptors have 64-bit fields.
#[derive(Debug)]
#[repr(align(16))]
struct Page([u8; PAGE]);

/// The SPM's service to its partitions. One call is served at a time; the engine's own locks are for the fault path, which
/// does not come here.
#[derive(Debug)]
pub struct Service<W> {
    world: W,
    state: Mutex<State>,
}

impl<W: World> Service<W> {
    /// No transaction, no buffers.
    pub fn new(world: W) -> Self {
        let state = State { relayer: Relayer::new(), mailboxes: [None; 2], page: Page([0; PAGE]) };
        Self { world, state: Mutex::new(state) }
    }

    /// The machine that it was made with.
    pub fn world(&self) -> &W {
        &self.world
    }

    /// The relayer, for reports.
    pub fn with_relayer<T>(&self, look: impl FnOnce(&Relayer) -> T) -> T {
        look(&self.state.lock().relayer)
    }

    /// Serves a call and says what it returns. [`decode`] reads calls from registers; those that switch contexts are none of
    /// these.
    pub fn call(&self, caller: Partition, call: &Interface) -> Interface {
        self.serve(caller, call).unwrap_or_else(error)
    }

    fn serve(&self, caller: Partition, call: &Interface) -> Result<Interface, FfaError> {
        let mut state = self.state.lock();
        match *call {
            Interface::Version { input_version, flags } => Ok(Interface::VersionOut {
                output_version: match flags.query_type {
                    VersionQueryType::Negotiate if input_version.0 != VERSION.0 => VersionOut::NotSupported,
                    _ => VersionOut::Version(VERSION),
                },
            }),
            Interface::Features { feat_id, .. } => features(feat_id),
            Interface::IdGet => Ok(with(SuccessArgsIdGet { id: caller.id() })),
            Interface::SpmIdGet => Ok(with(SuccessArgsSpmIdGet { id: SPM_ID })),
            Interface::RxTxMap { addr, page_cnt } => self.map_buffers(&mut state, caller, addr, page_cnt),
            Interface::RxTxUnmap { .. } => self.unmap_buffers(&mut state, caller),
            Interface::RxRelease { .. } => {
                let mailbox = mailbox(&mut state, caller)?;
                if !core::mem::replace(&mut mailbox.rx_full, false) {
                    return Err(Denied);
                }
                Ok(success())
            }
            Interface::PartitionInfoGet { uuid, flags } => {
                self.partition_info(&mut state, caller, uuid, flags.count_only)
            }
            Interface::MemDonate { total_len, frag_len, buf } => {
                self.send(&mut state, caller, Kind::Donate, (total_len, frag_len, buf))
            }
            Interface::MemLend { total_len, frag_len, buf } => {
                self.send(&mut state, caller, Kind::Lend, (total_len, frag_len, buf))
            }
            Interface::MemShare { total_len, frag_len, buf } => {
                self.send(&mut state, caller, Kind::Share, (total_len, frag_len, buf))
            }
            Interface::MemRetrieveReq { total_len, frag_len, buf } => {
                self.retrieve(&mut state, caller, (total_len, frag_len, buf))
            }
            Interface::MemRelinquish => {
                let State { relayer, page, .. } = self.fetch(&mut state, caller)?;
                let what = Relinquishment::parse(caller, &page.0)?;
                relayer.relinquish(&self.world, caller, &what)?;
                Ok(success())
            }
            Interface::MemReclaim { handle, flags } => {
                state.relayer.reclaim(&self.world, caller, handle, flags.zero_memory)?;
                Ok(success())
            }
            _ => Err(NotSupported),
        }
    }

    fn map_buffers(
        &self,
        state: &mut MutexGuard<'_, State>,
        caller: Partition,
        addresses: RxTxAddr,
        pages: u32,
    ) -> Result<Interface, FfaError> {
        let (rx, tx) = match addresses {
            RxTxAddr::Addr32 { rx, tx } => (rx.into(), tx.into()),
            RxTxAddr::Addr64 { rx, tx } => (rx, tx),
        };
        let page = |start| IpaRange::from_size(Ipa(start), PAGE_SIZE).map_err(|_| InvalidParameters);
        let (rx, tx) = (page(rx)?, page(tx)?);
        if pages != 1 || rx == tx {
            return Err(InvalidParameters);
        }
        if state.mailboxes[caller.index()].is_some() {
            return Err(Denied);
        }
        state.relayer.reserve(caller, rx, Use::Exclusive, Use::Buffer).map_err(|_| InvalidParameters)?;
        if state.relayer.reserve(caller, tx, Use::Exclusive, Use::Buffer).is_err() {
            state.relayer.reserve(caller, rx, Use::Buffer, Use::Exclusive)?;
            return Err(InvalidParameters);
        }
        state.mailboxes[caller.index()] = Some(Mailbox { rx, tx, rx_full: false });
        Ok(success())
    }

    fn unmap_buffers(&self, state: &mut MutexGuard<'_, State>, caller: Partition) -> Result<Interface, FfaError> {
        let Mailbox { rx, tx, .. } = state.mailboxes[caller.index()].take().ok_or(InvalidParameters)?;
        for buffer in [rx, tx] {
            state.relayer.reserve(caller, buffer, Use::Buffer, Use::Exclusive)?;
        }
        Ok(success())
    }

    fn partition_info(
        &self,
        state: &mut MutexGuard<'_, State>,
        caller: Partition,
        uuid: Uuid,
        count_only: bool,
    ) -> Result<Interface, FfaError> {
        if uuid != Uuid::nil() && uuid != SERVICE {
            return Err(InvalidParameters);
        }
        let count = Partition::ALL.len() as u32;
        if count_only {
            return Ok(with(SuccessArgsPartitionInfoGet { count, size: None }));
        }
        let info = Partition::ALL.map(|partition| PartitionInfo {
            uuid: SERVICE,
            partition_id: partition.id(),
            partition_id_type: PartitionIdType::PeEndpoint { execution_ctx_count: CPUS as u16 },
            props: PartitionProperties {
                support_direct_req_rec: true,
                support_direct_req_send: true,
                support_direct_req2_rec: Some(false),
                support_direct_req2_send: Some(false),
                is_aarch64: true,
                ..PartitionProperties::default()
            },
        });
        let State { mailboxes, page, .. } = &mut **state;
        let rx = rx_of(mailboxes, caller)?;
        // The UUID is told to a partition that does not name it.
        PartitionInfo::pack(VERSION, &info, &mut page.0, uuid == Uuid::nil());
        self.world.write(rx.rx.start(), &page.0[..info.len() * PartitionInfo::DESC_SIZE]);
        rx.rx_full = true;
        Ok(with(SuccessArgsPartitionInfoGet { count, size: Some(PartitionInfo::DESC_SIZE as u32) }))
    }

    fn send(
        &self,
        state: &mut MutexGuard<'_, State>,
        caller: Partition,
        kind: Kind,
        message: (u32, u32, Option<MemOpBuf>),
    ) -> Result<Interface, FfaError> {
        let State { relayer, page, .. } = self.fetch(state, caller)?;
        let offer = Offer::parse(kind, caller, whole(message, page)?)?;
        let handle = relayer.send(&self.world, offer)?;
        Ok(with(SuccessArgsMemOp { handle }))
    }

    fn retrieve(
        &self,
        state: &mut MutexGuard<'_, State>,
        caller: Partition,
        message: (u32, u32, Option<MemOpBuf>),
    ) -> Result<Interface, FfaError> {
        let State { relayer, page, mailboxes } = self.fetch(state, caller)?;
        let request = Request::parse(caller, whole(message, page)?)?;
        // Before anything changes: the answer needs a place.
        let rx = rx_of(mailboxes, caller)?;
        let (offer, granted) = relayer.retrieve(&self.world, caller, &request)?;
        let length = offer.write_response(request.handle, granted, &mut page.0);
        self.world.write(rx.rx.start(), &page.0[..length]);
        rx.rx_full = true;
        Ok(Interface::MemRetrieveResp { total_len: length as u32, frag_len: length as u32 })
    }

    /// Copies the caller's TX buffer.
    fn fetch<'s>(&self, state: &'s mut MutexGuard<'_, State>, caller: Partition) -> Result<&'s mut State, FfaError> {
        let tx = mailbox(state, caller)?.tx;
        self.world.read(tx.start(), &mut state.page.0);
        Ok(state)
    }
}

fn mailbox(state: &mut State, caller: Partition) -> Result<&mut Mailbox, FfaError> {
    state.mailboxes[caller.index()].as_mut().ok_or(InvalidParameters)
}

/// The caller's RX buffer, if it is empty.
fn rx_of(mailboxes: &mut [Option<Mailbox>; 2], caller: Partition) -> Result<&mut Mailbox, FfaError> {
    let mailbox = mailboxes[caller.index()].as_mut().ok_or(InvalidParameters)?;
    if mailbox.rx_full { Err(Busy) } else { Ok(mailbox) }
}

/// The descriptor in a copied TX buffer, which must be all of it: descriptors in fragments are not supported, and neither
/// are buffers for one call.
fn whole((total, fragment, buffer): (u32, u32, Option<MemOpBuf>), page: &Page) -> Result<&[u8], FfaError> {
    if total as usize > PAGE && fragment < total {
        // It would take fragments: more than there is room for.
        return Err(NoMemory);
    }
    if buffer.is_some() || fragment != total {
        return Err(InvalidParameters);
    }
    page.0.get(..total as usize).ok_or(InvalidParameters)
}

/// FFA_FEATURES: what is served.
fn features(feature: Feature) -> Result<Interface, FfaError> {
    use FuncId::*;
    match feature {
        Feature::FuncId(
            Error32 | Success32 | Success64 | Version | Features | IdGet | SpmIdGet | RxTxMap32 | RxTxMap64 | RxTxUnmap
            | RxRelease | PartitionInfoGet | MsgWait32 | MsgSendDirectReq32 | MsgSendDirectReq64 | MsgSendDirectResp32
            | MsgSendDirectResp64 | MemDonate32 | MemDonate64 | MemLend32 | MemLend64 | MemShare32 | MemShare64
            | MemRetrieveResp | MemRelinquish | MemReclaim | ConsoleLog32 | ConsoleLog64,
        ) => Ok(with(SuccessArgsFeatures::default())),
        // Second property, bits 7:0: a borrower retrieves a region at most 2^(0 + 1) - 1 times, which is once.
        Feature::FuncId(MemRetrieveReq32 | MemRetrieveReq64) => Ok(with(SuccessArgsFeatures { properties: [0, 0] })),
        _ => Err(NotSupported),
    }
}

/// FFA_SUCCESS without anything.
#[must_use]
pub fn success() -> Interface {
    with(SuccessArgs::Args32([0; 6]))
}

fn with(args: impl Into<SuccessArgs>) -> Interface {
    Interface::Success { target_info: TargetInfo::default(), args: args.into() }
}

/// FFA_ERROR.
#[must_use]
pub fn error(error_code: FfaError) -> Interface {
    Interface::Error { target_info: TargetInfo::default(), error_code, error_arg: 0, is_32bit: true }
}

/// Reads a call from its registers.
///
/// # Errors
///
/// NOT_SUPPORTED for what is no FF-A call, INVALID_PARAMETERS for one with arguments that it can't have.
pub fn decode(registers: &[u64; REGISTERS]) -> Result<Interface, FfaError> {
    Interface::from_regs(VERSION, registers).map_err(|error| match error {
        // The crate's own conversion of these three does not end.
        arm_ffa::Error::MemoryManagementError(_)
        | arm_ffa::Error::NotificationError(_)
        | arm_ffa::Error::PartitionInfoError(_) => InvalidParameters,
        other => other.into(),
    })
}
