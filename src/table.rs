//! Aligned columns for people.

use std::fmt;

/// A table: a header and rows of as many cells.
pub(crate) struct Table {
    columns: Vec<Column>,
    rows: Vec<Vec<String>>,
}

struct Column {
    title: &'static str,
    right: bool,
}

impl Table {
    /// A table with these columns. A title that starts with `>` aligns its column to the right.
    pub(crate) fn new<const N: usize>(titles: [&'static str; N]) -> Self {
        let column = |title: &'static str| match title.strip_prefix('>') {
            Some(title) => Column { title, right: true },
            None => Column { title, right: false },
        };
        Self { columns: titles.map(column).into(), rows: Vec::new() }
    }

    /// Adds a row.
    pub(crate) fn row<const N: usize>(&mut self, cells: [String; N]) {
        debug_assert_eq!(N, self.columns.len(), "a row has a cell for each column");
        self.rows.push(cells.into());
    }

    /// Whether it has no rows.
    pub(crate) fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    fn widths(&self) -> Vec<usize> {
        let mut widths: Vec<usize> = self.columns.iter().map(|c| c.title.chars().count()).collect();
        for row in &self.rows {
            for (width, cell) in widths.iter_mut().zip(row) {
                *width = (*width).max(cell.chars().count());
            }
        }
        widths
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let widths = self.widths();
        let titles: Vec<&str> = self.columns.iter().map(|c| c.title).collect();
        write_row(f, &self.columns, &widths, &titles)?;
        self.rows.iter().try_for_each(|row| write_row(f, &self.columns, &widths, row))
    }
}

fn write_row(
    f: &mut fmt::Formatter<'_>,
    columns: &[Column],
    widths: &[usize],
    cells: &[impl AsRef<str>],
) -> fmt::Result {
    let last = cells.iter().rposition(|cell| !cell.as_ref().is_empty()).unwrap_or(0);
    for (i, cell) in cells.iter().enumerate().take(last + 1) {
        let (cell, width) = (cell.as_ref(), widths[i]);
        let gap = if i == 0 { "" } else { "  " };
        match columns[i].right {
            true => write!(f, "{gap}{cell:>width$}")?,
            // No spaces at the end of a line.
            false if i == last => write!(f, "{gap}{cell}")?,
            false => write!(f, "{gap}{cell:<width$}")?,
        }
    }
    writeln!(f)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_as_wide_as_their_widest_cell() {
        let mut table = Table::new(["NAME", ">READY", "PROTOCOL"]);
        table.row(["checkout".to_owned(), "3".to_owned(), "http".to_owned()]);
        table.row(["é".to_owned(), "12345678".to_owned(), String::new()]);
        assert_eq!(
            table.to_string(),
            "NAME         READY  PROTOCOL\ncheckout         3  http\né         12345678\n"
        );
    }

    #[test]
    fn no_line_ends_in_spaces() {
        let mut table = Table::new(["A", "B"]);
        table.row([String::new(), String::new()]);
        table.row(["long".to_owned(), String::new()]);
        assert!(table.to_string().lines().all(|line| line == line.trim_end()));
    }
}
