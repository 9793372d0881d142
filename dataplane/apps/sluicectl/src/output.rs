//! Answers as tables, words or JSON; refusals with their parts.

use crate::verbs::Verb;
use api::{ErrorData, RpcError};
use serde_json::Value;
use std::io::Write;

/// Heading, where the value is in a row, and how it is written.
pub(crate) struct Column(pub(crate) &'static str, pub(crate) &'static str, pub(crate) Format);

/// How a value is written.
#[derive(Clone, Copy)]
pub(crate) enum Format {
    /// As it is.
    Plain,
    /// In KiB, MiB, GiB or TiB.
    Bytes,
}

/// Prints an answer.
pub(crate) fn show(answer: &Value, verb: &Verb, json: bool) {
    print(&render(answer, verb, json));
}

/// Prints text. An error is ignored: a pager or `head` that closed the pipe has seen enough.
pub(crate) fn print(text: &str) {
    let mut out = std::io::stdout();
    let _ = out.write_all(text.as_bytes()).and_then(|()| out.flush());
}

fn render(answer: &Value, verb: &Verb, json: bool) -> String {
    let rows = answer.pointer(verb.rows).and_then(Value::as_array);
    match (answer, rows) {
        _ if json => format!("{answer:#}\n"),
        (_, Some(rows)) if !verb.columns.is_empty() => table(rows, verb.columns),
        (Value::Bool(true), _) => "done\n".to_owned(),
        (Value::Array(lines), _) if !lines.is_empty() && lines.iter().all(Value::is_string) => {
            lines.iter().filter_map(Value::as_str).map(|line| format!("{line}\n")).collect()
        }
        (Value::String(text), _) => format!("{}\n", text.trim_end()),
        (other, _) => format!("{other:#}\n"),
    }
}

fn table(rows: &[Value], columns: &[Column]) -> String {
    let headings = columns.iter().map(|column| column.0.to_owned()).collect();
    let cells = |row: &Value| columns.iter().map(|Column(_, at, format)| cell(row.pointer(at), *format)).collect();
    align(&std::iter::once(headings).chain(rows.iter().map(cells)).collect::<Vec<_>>())
}

/// Rows of cells in columns of equal width.
pub(crate) fn align(rows: &[Vec<String>]) -> String {
    let columns = rows.first().map_or(0, Vec::len);
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let line = |row: &Vec<String>| {
        let cells: Vec<String> = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:width$}")).collect();
        format!("{}\n", cells.join("  ").trim_end())
    };
    rows.iter().map(line).collect()
}

fn cell(value: Option<&Value>, format: Format) -> String {
    match (value, format) {
        (None | Some(Value::Null), _) => "-".to_owned(),
        (Some(Value::Bool(yes)), _) => if *yes { "yes" } else { "no" }.to_owned(),
        (Some(Value::String(text)), _) if text.is_empty() => "-".to_owned(),
        (Some(Value::String(text)), _) => text.clone(),
        (Some(value), Format::Bytes) => value.as_u64().map_or_else(|| value.to_string(), bytes),
        (Some(value), Format::Plain) => value.to_string(),
    }
}

/// A number of bytes in the largest unit that leaves a digit before the point.
pub(crate) fn bytes(n: u64) -> String {
    let units = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"];
    let unit = (n.max(1).ilog2() / 10).min(units.len() as u32 - 1);
    let value = n as f64 / f64::from(1 << 10_u32).powi(unit as i32);
    if value.fract() == 0.0 {
        format!("{value} {}", units[unit as usize])
    } else {
        format!("{value:.1} {}", units[unit as usize])
    }
}

/// The parts of a refusal beyond its message, a line each.
pub(crate) fn details(refusal: &RpcError) -> String {
    let ErrorData { field, got, expected, hint } = &*refusal.data;
    let parts = [("field", field), ("got", got), ("expected", expected), ("hint", hint)];
    parts.iter().filter_map(|(part, text)| Some(format!("  {part}: {}\n", text.as_ref()?))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_readable() {
        let cases = [(0, "0 B"), (512, "512 B"), (1536, "1.5 KiB"), (1 << 30, "1 GiB"), (5 << 40, "5 TiB")];
        for (n, text) in cases {
            assert_eq!(bytes(n), text);
        }
    }

    #[test]
    fn a_table_is_aligned() {
        let rows = [serde_json::json!({"a": "long name", "b": true}), serde_json::json!({"a": "x"})];
        let columns = [Column("NAME", "/a", Format::Plain), Column("HELD", "/b", Format::Plain)];
        assert_eq!(table(&rows, &columns), "NAME       HELD\nlong name  yes\nx          -\n");
    }
}
