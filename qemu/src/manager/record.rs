//! A dirty log's files: `dirty.csv`, `dirty.bitmaps`, and at the end `dirty.png`.

use super::heatmap::Heatmap;
use crate::size::PAGE;
use anyhow::{Context, Result};
use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

/// First bytes of `dirty.bitmaps`.
const MAGIC: &[u8; 8] = b"UNBDIRTY";

/// One harvest.
#[derive(Debug, Clone, PartialEq)]
pub struct Round {
    /// Counted from 1.
    pub number: u64,
    /// Seconds since the log's start.
    pub seconds: f64,
    /// Words of the bitmap: the address of the first of 64 pages, and their bits.
    pub words: Vec<(u64, u64)>,
    /// Dirty pages.
    pub pages: u64,
    /// Pages a second since the last harvest.
    pub rate: f64,
    /// Bytes of stage-2 tables.
    pub table_bytes: u64,
    /// Stage-2 permission faults since the last harvest.
    pub faults: u64,
    /// Leaves that were split since the last harvest.
    pub splits: u64,
    /// Leaves that were made by a collapse since the last harvest.
    pub collapses: u64,
}

/// The files, open.
#[derive(Debug)]
pub struct Record {
    folder: PathBuf,
    csv: BufWriter<File>,
    bitmaps: BufWriter<File>,
    /// The memory that the bitmaps stand for.
    start: u64,
    end: u64,
    heatmap: Heatmap,
}

impl Record {
    /// Begins the files in a folder, which is made if need be. `memory` are the guest's ranges.
    ///
    /// # Errors
    /// If they can't be written.
    pub fn begin(folder: &Path, memory: &[(u64, u64)], how: &str) -> Result<Self> {
        std::fs::create_dir_all(folder).with_context(|| format!("can't make the folder {}", folder.display()))?;
        let create = |name: &str| {
            let path = folder.join(name);
            File::create(&path).map(BufWriter::new).with_context(|| format!("can't write {}", path.display()))
        };
        let (mut csv, mut bitmaps) = (create("dirty.csv")?, create("dirty.bitmaps")?);
        // A word of 64 pages begins at a multiple of its size, and so does the bitmap.
        let start = memory.iter().map(|range| range.0).min().unwrap_or(0) / (64 * PAGE) * (64 * PAGE);
        let end = memory.iter().map(|range| range.1).max().unwrap_or(0);
        writeln!(
            csv,
            "round,seconds,dirty_pages,dirty_bytes,pages_per_second,table_bytes,permission_faults,splits,collapses"
        )?;
        bitmaps.write_all(MAGIC)?;
        for number in [start, (end - start) / PAGE, row_bytes(start, end) as u64] {
            bitmaps.write_all(&number.to_le_bytes())?;
        }
        Ok(Self { folder: folder.to_owned(), csv, bitmaps, start, end, heatmap: Heatmap::new(start, end, how) })
    }

    /// Adds a harvest.
    ///
    /// # Errors
    /// If it can't be written.
    pub fn add(&mut self, round: &Round) -> Result<()> {
        let Round { number, seconds, pages, rate, table_bytes, faults, splits, collapses, .. } = round;
        let bytes = pages * PAGE;
        writeln!(
            self.csv,
            "{number},{seconds:.3},{pages},{bytes},{rate:.1},{table_bytes},{faults},{splits},{collapses}"
        )?;
        let mut row = vec![0; row_bytes(self.start, self.end)];
        for &(address, bits) in &round.words {
            let at = (address.saturating_sub(self.start) / PAGE / 8) as usize;
            for (slot, byte) in row.iter_mut().skip(at).zip(bits.to_le_bytes()) {
                *slot = byte;
            }
        }
        self.bitmaps.write_all(&row)?;
        self.heatmap.add(round.seconds, &round.words);
        Ok(())
    }

    /// Ends the files and draws the picture. Returns the folder.
    ///
    /// # Errors
    /// If they can't be written.
    pub fn finish(mut self) -> Result<PathBuf> {
        self.csv.flush()?;
        self.bitmaps.flush()?;
        self.heatmap.draw(&self.folder.join("dirty.png"))?;
        Ok(self.folder)
    }
}

/// Bytes of one round's bitmap: whole words.
fn row_bytes(start: u64, end: u64) -> usize {
    ((end - start).div_ceil(64 * PAGE) * 8) as usize
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_can_be_read() {
        let folder = std::env::temp_dir().join(format!("hv-record-{}", std::process::id()));
        let start = 0x4000_0000;
        let memory = [(start, start + 0x20_0000), (start + 0x40_0000, start + 0x100_0000)];
        let mut record = Record::begin(&folder, &memory, "write protection").unwrap();
        for number in 1..=3u64 {
            let words = vec![(start, 1 << number), (start + 64 * PAGE, u64::MAX)];
            record
                .add(&Round {
                    number,
                    seconds: number as f64,
                    words,
                    pages: 65,
                    rate: 65.0,
                    table_bytes: 8192,
                    faults: 2,
                    splits: 5,
                    collapses: 1,
                })
                .unwrap();
        }
        assert_eq!(record.finish().unwrap(), folder);
        let csv = std::fs::read_to_string(folder.join("dirty.csv")).unwrap();
        assert_eq!(csv.lines().nth(2), Some("2,2.000,65,266240,65.0,8192,2,5,1"));
        let bitmaps = std::fs::read(folder.join("dirty.bitmaps")).unwrap();
        let numbers: Vec<u64> = bitmaps[8..32].chunks(8).map(|n| u64::from_le_bytes(n.try_into().unwrap())).collect();
        assert_eq!(numbers, [start, 4096, 512]);
        let rows: Vec<&[u8]> = bitmaps[32..].chunks(512).collect();
        assert_eq!((rows.len(), rows[1][0], &rows[1][8..17]), (3, 4, &[255, 255, 255, 255, 255, 255, 255, 255, 0][..]));
        let png = std::fs::read(folder.join("dirty.png")).unwrap();
        assert!(png.starts_with(b"\x89PNG") && png.len() > 5000);
        std::fs::remove_dir_all(folder).unwrap();
    }
}
