//! Which record may follow which.

use super::{Damage, Error, FIRST, Header, Kind, TOOL_BLOCKS};

/// What came so far.
#[derive(Clone, Copy, Debug)]
pub struct Order {
    last: Option<Kind>,
    next: u64,
    block: u64,
}

impl Order {
    /// Nothing has come.
    #[must_use]
    pub const fn whole() -> Self {
        Self { last: None, next: 0, block: 0 }
    }

    /// The tool's record has come, or is not looked at.
    #[must_use]
    pub const fn after_tool() -> Self {
        Self { last: Some(Kind::Tool), next: 1, block: FIRST }
    }

    /// The block at which the next record begins.
    #[must_use]
    pub const fn block(&self) -> u64 {
        self.block
    }

    /// The next record's number; so many have come.
    #[must_use]
    pub const fn number(&self) -> u64 {
        self.next
    }

    /// Whether the last one has come.
    #[must_use]
    pub fn is_over(&self) -> bool {
        self.last == Some(Kind::End)
    }

    /// Takes the next record.
    ///
    /// # Errors
    ///
    /// It is not its turn; nothing was taken.
    pub fn accept(&mut self, header: &Header) -> Result<(), Error> {
        let Header { kind, number, .. } = *header;
        let follows = match self.last {
            None => kind == Kind::Tool && header.blocks() == TOOL_BLOCKS,
            Some(Kind::Tool) => kind == Kind::Machine,
            Some(Kind::Machine | Kind::Pages) => kind >= Kind::Pages,
            Some(Kind::State) => kind >= Kind::State,
            Some(Kind::End) => false,
        };
        if !follows || number != self.next {
            let damage = Damage::Order { kind, number, expected: self.next };
            return Err(Error { block: self.block, damage });
        }
        *self = Self { last: Some(kind), next: number + 1, block: self.block + 1 + header.blocks() };
        Ok(())
    }
}
