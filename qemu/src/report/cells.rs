//! What was written, in cells of memory and time: few enough to be drawn.

use crate::size::PAGE;

/// The most rows of memory, and the most columns of time.
const ROWS: u64 = 240;
const COLUMNS: usize = 240;
/// Shades of a cell.
pub const SHADES: usize = 8;

/// Pages that were written, by rows of memory and columns of time.
#[derive(Debug)]
pub struct Cells {
    /// The address of the first page.
    pub start: u64,
    /// The first address past the last page.
    pub end: u64,
    /// Bytes of memory in a row.
    pub row: u64,
    /// Harvests that are in it.
    pub rounds: usize,
    /// Harvests that share a column.
    pub together: usize,
    /// Where each column ends, in seconds.
    pub until: Vec<f64>,
    /// For each column, the most pages of each row that one harvest found.
    pub columns: Vec<Vec<u32>>,
    /// For each row, the pages of all harvests together.
    pub sums: Vec<u64>,
    /// For each byte of a bitmap, the pages that were ever dirty.
    ever: Vec<u8>,
}

impl Cells {
    /// Empty ones, for harvests at these times, of the memory from `start` to `end`.
    pub fn new(start: u64, end: u64, seconds: &[f64]) -> Self {
        let row = (end - start).div_ceil(ROWS).next_power_of_two().max(64 * PAGE);
        let rows = (end - start).div_ceil(row) as usize;
        let together = seconds.len().div_ceil(COLUMNS).max(1);
        let until: Vec<f64> = seconds.chunks(together).filter_map(|times| times.last().copied()).collect();
        let columns = vec![vec![0; rows]; until.len()];
        Self { start, end, row, rounds: 0, together, until, columns, sums: vec![0; rows], ever: Vec::new() }
    }

    /// Adds the bitmap of a harvest: they come in order.
    pub fn add(&mut self, round: usize, bitmap: &[u8]) {
        self.rounds = round + 1;
        self.ever.resize(bitmap.len(), 0);
        for (ever, byte) in self.ever.iter_mut().zip(bitmap) {
            *ever |= byte;
        }
        let bytes = (self.row / PAGE / 8) as usize;
        let Some(column) = self.columns.get_mut(round / self.together) else { return };
        for ((cell, sum), piece) in column.iter_mut().zip(&mut self.sums).zip(bitmap.chunks(bytes)) {
            let pages = piece.iter().map(|byte| byte.count_ones()).sum::<u32>();
            *cell = (*cell).max(pages);
            *sum += u64::from(pages);
        }
    }

    /// Pages that were written at least once.
    pub fn distinct(&self) -> u64 {
        self.ever.iter().map(|byte| u64::from(byte.count_ones())).sum()
    }

    /// The most pages that a cell can have.
    pub fn most(&self) -> u32 {
        (self.row / PAGE) as u32
    }

    /// A cell's shade, by the logarithm of its pages; none for a cell that was not written.
    pub fn shade(&self, pages: u32) -> Option<usize> {
        if pages == 0 {
            return None;
        }
        let share = f64::from(pages).ln() / f64::from(self.most()).ln();
        Some(((share * SHADES as f64) as usize).min(SHADES - 1))
    }

    /// The fewest pages of a shade.
    pub fn least(&self, shade: usize) -> u32 {
        (1..=self.most()).find(|pages| self.shade(*pages) >= Some(shade)).unwrap_or(self.most())
    }

    /// Where an address lies between the start (0.0) and the end (1.0).
    pub fn position(&self, address: u64) -> f64 {
        (address.clamp(self.start, self.end) - self.start) as f64 / (self.end - self.start) as f64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_are_counted_where_they_lie() {
        let mut cells = Cells::new(0x4000_0000, 0x4000_0000 + 1024 * PAGE, &[1.0, 2.0]);
        assert_eq!((cells.row, cells.columns[0].len()), (64 * PAGE, 16));
        let mut bitmap = vec![0; 128];
        (bitmap[0], bitmap[8], bitmap[127]) = (3, 1, 0x80);
        cells.add(0, &bitmap);
        bitmap[0] = 7;
        cells.add(1, &bitmap);
        assert_eq!((cells.columns[0][0], cells.columns[0][1], cells.columns[1][0], cells.columns[1][15]), (2, 1, 3, 1));
        assert_eq!((cells.distinct(), cells.sums[0], cells.rounds), (5, 5, 2));
    }

    #[test]
    fn many_harvests_share_a_column() {
        let seconds: Vec<f64> = (1..=1000).map(f64::from).collect();
        let mut cells = Cells::new(0, 64 * PAGE, &seconds);
        assert_eq!((cells.until.len(), cells.together, cells.until.last()), (200, 5, Some(&1000.0)));
        for (round, byte) in [(0, 1), (1, 3), (4, 0), (5, 0xff)] {
            cells.add(round, &[byte, 0, 0, 0, 0, 0, 0, 0]);
        }
        assert_eq!((cells.columns[0][0], cells.columns[1][0]), (2, 8));
    }

    #[test]
    fn shades_rise() {
        let cells = Cells::new(0, PAGE << 18, &[1.0]);
        let shades: Vec<_> = (0..=cells.most()).map(|pages| cells.shade(pages)).collect();
        assert!(shades.is_sorted());
        assert_eq!((shades[0], shades[1], *shades.last().unwrap()), (None, Some(0), Some(SHADES - 1)));
        assert!((0..SHADES).all(|shade| cells.shade(cells.least(shade)) >= Some(shade)));
    }
}
