//! Tables for people: aligned columns, cut to the terminal where there is one.

use crate::plain::plain;

const GAP: &str = "  ";
/// No column is squeezed below this; a terminal narrower than that shows the beginning of each line.
const COLUMN_MIN: usize = 6;

/// Rows under a heading. Every row has as many cells as the heading.
#[derive(Debug)]
pub(crate) struct Table<const N: usize> {
    heading: [&'static str; N],
    rows: Vec<[String; N]>,
}

impl<const N: usize> Table<N> {
    pub(crate) fn new(heading: [&'static str; N]) -> Self {
        Self { heading, rows: Vec::new() }
    }

    pub(crate) fn row(&mut self, cells: [String; N]) {
        self.rows.push(cells.map(|cell| if cell.is_empty() { "-".to_owned() } else { plain(&cell).into_owned() }));
    }

    /// One line each for the heading and the rows. With a width, no line is longer.
    pub(crate) fn render(&self, width: Option<usize>) -> String {
        let mut widths = self.heading.map(length);
        for row in &self.rows {
            for (width, cell) in widths.iter_mut().zip(row) {
                *width = (*width).max(length(cell));
            }
        }
        if let Some(width) = width {
            squeeze(&mut widths, width);
        }
        let heading = self.heading.map(str::to_owned);
        let lines = std::iter::once(&heading).chain(&self.rows).map(|cells| line(cells, &widths, width));
        lines.collect::<Vec<_>>().concat()
    }
}

/// What one thing is like: a name and a value per line.
pub(crate) fn facts(rows: &[(&str, String)]) -> String {
    let width = rows.iter().map(|(name, _)| length(name)).max().unwrap_or_default();
    let line =
        |(name, value): &(&str, String)| format!("{}\n", format!("{name:<width$}{GAP}{}", plain(value)).trim_end());
    rows.iter().map(line).collect()
}

fn line(cells: &[String], widths: &[usize], width: Option<usize>) -> String {
    let padded = cells.iter().zip(widths).map(|(cell, width)| format!("{:<width$}", cut(cell, *width)));
    let line = padded.collect::<Vec<_>>().join(GAP);
    let line = line.trim_end();
    width.map_or_else(|| line.to_owned(), |width| cut(line, width)) + "\n"
}

/// Takes what is too much from the widest column first, again and again.
fn squeeze(widths: &mut [usize], width: usize) {
    let gaps = GAP.len() * widths.len().saturating_sub(1);
    while widths.iter().sum::<usize>() + gaps > width {
        match widths.iter_mut().max() {
            Some(widest) if *widest > COLUMN_MIN => *widest -= 1,
            _ => return,
        }
    }
}

fn cut(text: &str, width: usize) -> String {
    if length(text) <= width {
        return text.to_owned();
    }
    let kept: String = text.chars().take(width.saturating_sub(1)).collect();
    kept + "…"
}

/// In characters. What people name here is mostly ASCII; a wide character costs alignment, nothing more.
fn length(text: &str) -> usize {
    text.chars().count()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn table() -> Table<3> {
        let mut table = Table::new(["NAME", "STATE", "ADDRESSES"]);
        table.row(["tower".to_owned(), "up".to_owned(), "10.0.0.7:11437 10.0.0.7:11436".to_owned()]);
        table.row(["a-much-longer-name".to_owned(), String::new(), "10.0.0.8:11437".to_owned()]);
        table
    }

    #[test]
    fn columns_are_aligned_and_an_empty_cell_is_a_dash() {
        let expected = "NAME                STATE  ADDRESSES\n\
                        tower               up     10.0.0.7:11437 10.0.0.7:11436\n\
                        a-much-longer-name  -      10.0.0.8:11437\n";
        assert_eq!(table().render(None), expected);
    }

    #[test]
    fn a_narrow_terminal_takes_from_the_widest_column() {
        let shown = table().render(Some(40));
        assert!(shown.lines().all(|line| length(line) <= 40), "{shown}");
        assert!(shown.contains("tower") && shown.contains("up") && shown.contains('…'), "{shown}");
        let tiny = table().render(Some(5));
        assert!(tiny.lines().all(|line| length(line) <= 5), "{tiny}");
    }

    #[test]
    fn a_cell_cannot_make_a_line_of_its_own() {
        let mut table = Table::new(["NAME"]);
        table.row(["a\nb".to_owned()]);
        assert_eq!(table.render(None), "NAME\na\\nb\n");
    }

    #[test]
    fn facts_are_aligned_behind_their_names() {
        let rows = [("mesh", "lab".to_owned()), ("leader", "tower".to_owned()), ("labels", String::new())];
        assert_eq!(facts(&rows), "mesh    lab\nleader  tower\nlabels\n");
    }

    #[test]
    fn a_table_without_rows_is_its_heading() {
        assert_eq!(Table::new(["ID", "NAME"]).render(Some(80)), "ID  NAME\n");
    }
}
