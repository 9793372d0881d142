//! The report: Markdown with tables, plots beside it as SVG, and the tables on the terminal as they are made.

use crate::measure::Measurement;
use anyhow::{Result, anyhow};
use plotters::prelude::*;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

/// Rows of text under a heading each.
pub(crate) struct Table(Vec<Vec<String>>);

impl Table {
    pub(crate) fn new<S: Into<String>>(columns: impl IntoIterator<Item = S>) -> Table {
        Table(vec![columns.into_iter().map(Into::into).collect()])
    }

    pub(crate) fn push(&mut self, row: Vec<String>) {
        assert_eq!(row.len(), self.0[0].len(), "a cell for each column");
        self.0.push(row);
    }

    /// As Markdown, padded so that it reads well as text too.
    fn markdown(&self) -> String {
        let width = |column: usize| self.0.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
        let widths: Vec<usize> = (0..self.0[0].len()).map(width).collect();
        let mut text = String::new();
        for (index, row) in self.0.iter().enumerate() {
            for (cell, width) in row.iter().zip(&widths) {
                write!(text, "| {cell:<width$} ").expect("a String takes all");
            }
            text.push_str("|\n");
            if index == 0 {
                let rules: Vec<String> = widths.iter().map(|width| "-".repeat(width + 2)).collect();
                writeln!(text, "|{}|", rules.join("|")).expect("a String takes all");
            }
        }
        text
    }
}

/// A bar chart: groups of bars, a colour for each series, whiskers from the lowest to the highest window.
pub(crate) struct Bars {
    file: &'static str,
    title: &'static str,
    unit: &'static str,
    groups: Vec<String>,
    series: Vec<String>,
    bars: Vec<(usize, usize, Measurement)>,
}

impl Bars {
    /// An empty chart that will be `file`.svg.
    pub(crate) fn new(file: &'static str, title: &'static str, unit: &'static str) -> Bars {
        Bars { file, title, unit, groups: Vec::new(), series: Vec::new(), bars: Vec::new() }
    }

    pub(crate) fn push(&mut self, group: &str, series: &str, figure: Measurement) {
        let (group, series) = (place(&mut self.groups, group), place(&mut self.series, series));
        self.bars.push((group, series, figure));
    }

    fn draw(&self, path: &Path) -> Result<()> {
        self.try_draw(path).map_err(|error| anyhow!("{}: {error}", path.display()))
    }

    fn try_draw(&self, path: &Path) -> Result<(), Box<dyn std::error::Error>> {
        let root = SVGBackend::new(path, (1100, 520)).into_drawing_area();
        root.fill(&WHITE)?;
        // A window that was disturbed does not set the scale.
        let highest = self.bars.iter().map(|(.., figure)| figure.median()).fold(0.0, f64::max) * 1.3;
        let mut chart = ChartBuilder::on(&root)
            .caption(self.title, ("sans-serif", 20))
            .margin(12)
            .x_label_area_size(30)
            .y_label_area_size(80)
            .build_cartesian_2d(0.0..self.groups.len() as f64, 0.0..highest)?;
        let mut mesh = chart.configure_mesh();
        mesh.disable_x_mesh().light_line_style(TRANSPARENT).y_desc(self.unit).x_labels(0).draw()?;
        let width = 0.8 / self.series.len() as f64;
        let left = |group: usize, series: usize| group as f64 + 0.1 + series as f64 * width;
        for (series, label) in self.series.iter().enumerate() {
            let color = Palette99::pick(series).to_rgba();
            let bars = self.bars.iter().filter(|bar| bar.1 == series).map(|(group, _, figure)| {
                let x = left(*group, series);
                Rectangle::new([(x, 0.0), (x + width * 0.9, figure.median())], color.filled())
            });
            chart
                .draw_series(bars)?
                .label(label)
                .legend(move |(x, y)| Rectangle::new([(x, y - 5), (x + 10, y + 5)], color.filled()));
        }
        let whiskers = self.bars.iter().map(|(group, series, figure)| {
            let x = left(*group, *series) + width * 0.45;
            ErrorBar::new_vertical(x, figure.min(), figure.median(), figure.max().min(highest), BLACK.filled(), 6)
        });
        chart.draw_series(whiskers)?;
        let centre = TextStyle::from(("sans-serif", 13)).pos(plotters::style::text_anchor::Pos::new(
            plotters::style::text_anchor::HPos::Center,
            plotters::style::text_anchor::VPos::Top,
        ));
        for (group, label) in self.groups.iter().enumerate() {
            let (x, y) = chart.backend_coord(&(group as f64 + 0.5, 0.0));
            root.draw_text(label, &centre, (x, y + 6))?;
        }
        chart
            .configure_series_labels()
            .position(SeriesLabelPosition::UpperLeft)
            .border_style(BLACK)
            .background_style(WHITE.mix(0.8))
            .draw()?;
        root.present()?;
        Ok(())
    }
}

/// Where `name` stands in `names`, at the end if it is new.
fn place(names: &mut Vec<String>, name: &str) -> usize {
    names.iter().position(|known| known == name).unwrap_or_else(|| {
        names.push(name.to_owned());
        names.len() - 1
    })
}

/// A report in a directory of its own.
pub(crate) struct Report {
    directory: PathBuf,
    text: String,
}

impl Report {
    pub(crate) fn new(directory: PathBuf, title: &str) -> Result<Report> {
        std::fs::create_dir_all(&directory)?;
        Ok(Report { directory, text: format!("# {title}\n") })
    }

    pub(crate) fn section(&mut self, title: &str) {
        self.say(&format!("\n## {title}\n"));
    }

    pub(crate) fn text(&mut self, text: &str) {
        self.say(&format!("\n{text}\n"));
    }

    pub(crate) fn table(&mut self, table: Table) {
        self.say(&format!("\n{}", table.markdown()));
    }

    pub(crate) fn bars(&mut self, bars: Bars) -> Result<()> {
        let name = format!("{}.svg", bars.file);
        bars.draw(&self.directory.join(&name))?;
        writeln!(self.text, "\n![{}]({name})", bars.title)?;
        Ok(())
    }

    fn say(&mut self, text: &str) {
        print!("{text}");
        self.text.push_str(text);
    }

    /// Writes report.md and returns where it is.
    pub(crate) fn write(self) -> Result<PathBuf> {
        let path = self.directory.join("report.md");
        std::fs::write(&path, self.text)?;
        Ok(path)
    }
}
