//! TLB invalidations (Arm ARM, D8.17 and C5.5).

/// Where an invalidation takes place.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scope {
    /// On the executing PE.
    Local,
    /// On all PEs of the shareability domain.
    Broadcast,
}

/// What an invalidation is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Invalidation {
    /// Both stages, all of it.
    All,
    /// What stage 1 has a part in.
    Stage1,
    /// The same for an ASID; what is global stays.
    Asid(u16),
    /// Virtual addresses from `start` to `last`.
    Addresses {
        /// The first one.
        start: u64,
        /// The last one.
        last: u64,
        /// For this ASID, and what is global; otherwise for all.
        asid: Option<u16>,
        /// Whether what is cached of tables above the leaves may stay.
        leaves_only: bool,
    },
    /// IPAs from `start` to `last`, of what stage 2 alone has been cached of.
    Ipas {
        /// The first one.
        start: u64,
        /// The last one.
        last: u64,
        /// Whether what is cached of tables above the leaves may stay.
        leaves_only: bool,
    },
}

/// What a TLBI instruction does, once its register is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Operation {
    /// Where it acts.
    pub scope: Scope,
    pub(crate) shape: Shape,
}

/// What a TLBI's register says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Shape {
    All,
    Stage1,
    Asid,
    Va { any_asid: bool, leaves_only: bool, range: bool },
    Ipa { leaves_only: bool, range: bool },
}

impl Operation {
    /// A TLBI for EL1&0 by its fields op1, CRm and op2 (CRn is 8, or 9 for those that do not wait for XS). Those for other
    /// regimes are none of the model's.
    pub(crate) fn decode(op1: u32, crm: u32, op2: u32) -> Option<Self> {
        use Scope::{Broadcast, Local};
        let (scope, range) = match (op1, crm, op2) {
            (0 | 4, 1 | 3, _) | (4, 0, 1 | 5) | (4, 4, 0 | 4) => (Broadcast, false),
            (0 | 4, 7, _) | (4, 4, 1 | 5) => (Local, false),
            (0, 2 | 5, _) | (4, 0, 2 | 6) | (4, 4, 3 | 7) => (Broadcast, true),
            (0, 6, _) | (4, 4, 2 | 6) => (Local, true),
            _ => return None,
        };
        let leaves_only = op2 & 4 != 0;
        let shape = match (op1, crm, op2) {
            (0, _, 0) if !range => Shape::Stage1,
            (0, _, 2) if !range => Shape::Asid,
            (0, _, 1 | 3 | 5 | 7) => Shape::Va { any_asid: op2 & 2 != 0, leaves_only, range },
            (4, 0 | 4, _) => Shape::Ipa { leaves_only, range },
            (4, _, 4 | 6) => Shape::All,
            _ => return None,
        };
        Some(Self { scope, shape })
    }

    /// What it is about, its register holding `value`.
    #[must_use]
    pub fn with(self, value: u64) -> Invalidation {
        let asid = (value >> 48) as u16;
        match self.shape {
            Shape::All => Invalidation::All,
            Shape::Stage1 => Invalidation::Stage1,
            Shape::Asid => Invalidation::Asid(asid),
            Shape::Va { any_asid, leaves_only, range } => {
                // VA[55:12] is in bits 43:0; a range's BaseADDR is VA[48:12], in bits 36:0.
                let unused = if range { 64 - 49 } else { 64 - 56 };
                let start = ((value << 12 << unused) as i64 >> unused) as u64;
                let last = start.saturating_add(bytes(value, range) - 1);
                Invalidation::Addresses { start, last, asid: (!any_asid).then_some(asid), leaves_only }
            }
            Shape::Ipa { leaves_only, range } => {
                // IPA[47:12] is in bits 35:0.
                let start = (value & ((1 << 36) - 1)) << 12;
                Invalidation::Ipas { start, last: start + (bytes(value, range) - 1), leaves_only }
            }
        }
    }
}

/// Bytes that an instruction by address is about: a page, or what NUM (bits 43:39) and SCALE (45:44) say.
fn bytes(value: u64, range: bool) -> u64 {
    let (num, scale) = (value >> 39 & 0x1f, value >> 44 & 3);
    if range { (num + 1) << (5 * scale + 1 + 12) } else { 1 << 12 }
}
