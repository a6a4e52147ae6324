//! Rows of state on their way out: a table, JSON lines, CSV or Parquet. Holds some hundred rows at most, or one row group.

use std::fmt::Write as _;
use std::io::{self, Write};

use serde_json::{Map, Value as Json, json};

use super::checkpoints::printable;
use super::tool::ToolError;
use crate::format::shape::{EntryShape, Field, Shape, Value};

/// So many rows share the widths of their columns in a table.
const TABLE_ROWS: usize = 500;

/// What rows are written as.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Format {
    /// Columns for people
    Table,
    /// One JSON object a line
    Jsonl,
    /// Comma-separated values, with a line of headings
    Csv,
    /// Apache Parquet
    Parquet,
}

/// One entry.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Row {
    pub operator: String,
    pub state: String,
    /// `None`: it has no key.
    pub key_group: Option<u16>,
    /// Units: milliseconds since 1970.
    pub last_update: Option<i64>,
    pub key: Option<Json>,
    pub value: Json,
}

/// What a cell is, for formats that tell.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum CellType {
    Int,
    Uint,
    Float,
    Bool,
    Text,
}

/// The columns of key and value: a flat struct has one for each field.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Columns {
    key: Vec<(String, CellType)>,
    value: Vec<(String, CellType)>,
}

impl Columns {
    /// Of states of any shape.
    pub(crate) fn any() -> Self {
        let one = |name: &str| vec![(name.to_owned(), CellType::Text)];
        Self { key: one("key"), value: one("value") }
    }

    /// Of one state.
    pub(crate) fn of(shape: &EntryShape, is_keyed: bool) -> Self {
        let key = if is_keyed { columns("key", &shape.key) } else { Self::any().key };
        Self { key, value: columns("value", &shape.value) }
    }

    fn all(&self) -> Vec<(String, CellType)> {
        let fixed = [
            ("operator", CellType::Text),
            ("state", CellType::Text),
            ("key_group", CellType::Int),
            ("last_update", CellType::Int),
        ];
        let fixed = fixed.into_iter().map(|(name, cell)| (name.to_owned(), cell));
        fixed.chain(self.key.iter().cloned()).chain(self.value.iter().cloned()).collect()
    }

    /// One cell a column.
    fn cells(&self, row: Row) -> Vec<Json> {
        let mut cells = vec![
            json!(row.operator),
            json!(row.state),
            json!(row.key_group),
            json!(row.last_update),
        ];
        add_cells(&self.key, "key", row.key.unwrap_or(Json::Null), &mut cells);
        add_cells(&self.value, "value", row.value, &mut cells);
        cells
    }
}

fn columns(name: &str, shape: &Shape) -> Vec<(String, CellType)> {
    match shape {
        Shape::Struct(fields) if fields.iter().all(|field| cell_type(&field.shape).is_some()) => {
            let column = |field: &Field| {
                let cell = cell_type(&field.shape).unwrap_or(CellType::Text);
                (format!("{name}.{}", field.name), cell)
            };
            fields.iter().map(column).collect()
        }
        shape => vec![(name.to_owned(), cell_type(shape).unwrap_or(CellType::Text))],
    }
}

/// `None`: it is nested.
fn cell_type(shape: &Shape) -> Option<CellType> {
    Some(match shape {
        Shape::I8 | Shape::I16 | Shape::I32 | Shape::I64 => CellType::Int,
        Shape::U8 | Shape::U16 | Shape::U32 | Shape::U64 => CellType::Uint,
        Shape::F32 | Shape::F64 => CellType::Float,
        Shape::Bool => CellType::Bool,
        Shape::Str | Shape::Char | Shape::Bytes | Shape::I128 | Shape::U128 => CellType::Text,
        Shape::Option(inner) => return cell_type(inner).filter(|_| inner.is_leaf()),
        Shape::Enum(variants) if variants.iter().all(|variant| variant.shape == Shape::Unit) => {
            CellType::Text
        }
        _ => return None,
    })
}

fn add_cells(columns: &[(String, CellType)], name: &str, value: Json, cells: &mut Vec<Json>) {
    if let [(only, _)] = columns
        && only == name
    {
        cells.push(value);
        return;
    }
    for (column, _) in columns {
        let field = &column[name.len() + 1..];
        cells.push(value.get(field).cloned().unwrap_or(Json::Null));
    }
}

/// A cell as text: a text is itself, nothing is nothing, all else is JSON.
fn text_of(cell: &Json) -> String {
    match cell {
        Json::Null => String::new(),
        Json::String(text) => text.clone(),
        other => other.to_string(),
    }
}

/// A value as JSON. Keys of maps become texts; bytes become hexadecimal digits; numbers that JSON has not (of more than 64 bits,
/// infinite, not a number) become texts; a variant is its name, or an object of its name and what it holds.
pub(crate) fn to_json(value: &Value<'_>) -> Json {
    match value {
        Value::Unit | Value::None => Json::Null,
        Value::Bool(value) => json!(value),
        Value::Int(value) => json!(value),
        Value::Uint(value) => json!(value),
        Value::Int128(value) => i64::try_from(*value).map_or(json!(value.to_string()), Json::from),
        Value::Uint128(value) => u64::try_from(*value).map_or(json!(value.to_string()), Json::from),
        // By its digits, so that it is not made longer on the way.
        Value::F32(value) => value.to_string().parse().map_or(Json::Null, float),
        Value::F64(value) => float(*value),
        Value::Char(value) => json!(value.to_string()),
        Value::Str(value) => json!(value),
        Value::Bytes(value) => {
            let mut hex = String::with_capacity(2 * value.len());
            for byte in *value {
                let _ = write!(hex, "{byte:02x}");
            }
            Json::String(hex)
        }
        Value::Some(value) => to_json(value),
        Value::Seq(values) | Value::Tuple(values) => values.iter().map(to_json).collect(),
        Value::Map(entries) => {
            let entry = |(key, value): &(Value<'_>, Value<'_>)| {
                let key = match to_json(key) {
                    Json::String(text) => text,
                    other => other.to_string(),
                };
                (key, to_json(value))
            };
            entries.iter().map(entry).collect::<Map<_, _>>().into()
        }
        Value::Struct(fields) => {
            let field = |(name, value): &(&str, Value<'_>)| ((*name).to_owned(), to_json(value));
            fields.iter().map(field).collect::<Map<_, _>>().into()
        }
        Value::Variant(_, name, value) => match &**value {
            Value::Unit => json!(name),
            value => json!({ *name: to_json(value) }),
        },
    }
}

fn float(value: f64) -> Json {
    serde_json::Number::from_f64(value).map_or_else(|| json!(value.to_string()), Json::Number)
}

/// Where rows go.
pub(crate) struct Rows {
    columns: Columns,
    sink: Sink,
    /// Whoever reads has seen enough.
    is_closed: bool,
}

enum Sink {
    Lines(io::BufWriter<Box<dyn Write + Send>>),
    Csv(io::BufWriter<Box<dyn Write + Send>>),
    Table(io::BufWriter<Box<dyn Write + Send>>, Vec<Vec<Json>>),
    #[cfg(feature = "parquet")]
    Parquet(Box<super::parquet::ParquetRows>),
}

impl Rows {
    /// # Errors
    /// [`ToolError`] if the format was not compiled in.
    pub(crate) fn new(
        format: Format,
        columns: Columns,
        out: Box<dyn Write + Send>,
    ) -> Result<Self, ToolError> {
        let sink = match format {
            Format::Jsonl => Sink::Lines(io::BufWriter::new(out)),
            Format::Csv => {
                let mut out = io::BufWriter::new(out);
                let names = columns.all().into_iter().map(|(name, _)| Json::String(name));
                // Anything wrong with the output is found when it is flushed.
                let _ = out.write_all(csv_line(&names.collect::<Vec<_>>()).as_bytes());
                Sink::Csv(out)
            }
            Format::Table => Sink::Table(io::BufWriter::new(out), Vec::new()),
            #[cfg(feature = "parquet")]
            Format::Parquet => {
                let rows = super::parquet::ParquetRows::new(&columns.all(), out);
                Sink::Parquet(Box::new(rows.map_err(ToolError::Failed)?))
            }
            #[cfg(not(feature = "parquet"))]
            Format::Parquet => {
                drop(out);
                return Err(ToolError::NoParquet);
            }
        };
        Ok(Self { columns, sink, is_closed: false })
    }

    /// # Errors
    /// [`ToolError`] if the output fails.
    pub(crate) fn write(&mut self, row: Row) -> Result<(), ToolError> {
        if self.is_closed {
            return Ok(());
        }
        let written = match &mut self.sink {
            Sink::Lines(out) => {
                let Row { operator, state, key_group, last_update, key, value } = row;
                let mut line = json!({ "operator": operator, "state": state, "value": value });
                let more = [
                    ("key_group", key_group.map(Json::from)),
                    ("key", key),
                    ("last_update", last_update.map(Json::from)),
                ];
                for (name, cell) in more {
                    if let Some(cell) = cell {
                        line[name] = cell;
                    }
                }
                writeln!(out, "{line}")
            }
            Sink::Csv(out) => out.write_all(csv_line(&self.columns.cells(row)).as_bytes()),
            Sink::Table(out, rows) => {
                rows.push(self.columns.cells(row));
                if rows.len() < TABLE_ROWS {
                    return Ok(());
                }
                write_table(&self.columns, rows, out)
            }
            #[cfg(feature = "parquet")]
            Sink::Parquet(out) => out.write(self.columns.cells(row)),
        };
        self.end(written)
    }

    /// Writes a line that is no row.
    ///
    /// # Errors
    /// [`ToolError`] if the output fails.
    pub(crate) fn line(&mut self, line: &str) -> Result<(), ToolError> {
        let written = match &mut self.sink {
            Sink::Lines(out) if !self.is_closed => writeln!(out, "{line}"),
            _ => Ok(()),
        };
        self.end(written)
    }

    /// # Errors
    /// [`ToolError`] if the output fails.
    pub(crate) fn finish(mut self) -> Result<(), ToolError> {
        let written = match &mut self.sink {
            Sink::Lines(out) | Sink::Csv(out) => out.flush(),
            Sink::Table(out, rows) => {
                write_table(&self.columns, rows, out).and_then(|()| out.flush())
            }
            #[cfg(feature = "parquet")]
            Sink::Parquet(out) => out.finish(),
        };
        self.end(written)
    }

    /// A closed pipe is no failure: the reader has seen enough.
    fn end(&mut self, written: io::Result<()>) -> Result<(), ToolError> {
        match written {
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => {
                self.is_closed = true;
                Ok(())
            }
            other => other.map_err(|error| ToolError::Failed(error.into())),
        }
    }
}

fn csv_line(cells: &[Json]) -> String {
    let mut line = String::new();
    for (at, cell) in cells.iter().enumerate() {
        if at > 0 {
            line.push(',');
        }
        let text = text_of(cell);
        // A text that is empty is not nothing.
        let is_empty_text = matches!(cell, Json::String(text) if text.is_empty());
        if is_empty_text || text.contains([',', '"', '\n', '\r']) {
            line.push('"');
            line.push_str(&text.replace('"', "\"\""));
            line.push('"');
        } else {
            line.push_str(&text);
        }
    }
    line.push('\n');
    line
}

fn write_table(
    columns: &Columns,
    rows: &mut Vec<Vec<Json>>,
    out: &mut impl Write,
) -> io::Result<()> {
    if rows.is_empty() {
        return Ok(());
    }
    let mut table = comfy_table::Table::new();
    table.load_style(comfy_table::presets::NOTHING);
    table.set_header(columns.all().into_iter().map(|(name, _)| name.to_uppercase()));
    for cells in rows.drain(..) {
        table.add_row(cells.iter().map(|cell| printable(&text_of(cell))));
    }
    for column in table.column_iter_mut() {
        column.set_padding((0, 2));
    }
    for line in table.lines() {
        writeln!(out, "{}", line.trim_end())?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use serde::{Deserialize, Serialize};

    use super::*;
    use crate::format::codec;
    use crate::format::shape::{decode_value, trace};

    #[derive(Serialize, Deserialize)]
    enum Colour {
        Red,
        Green,
    }

    #[derive(Serialize, Deserialize)]
    struct Visit {
        page: String,
        seconds: Option<u64>,
        share: f32,
        colour: Colour,
        seen: bool,
    }

    fn visits() -> [Visit; 2] {
        [
            Visit {
                page: "a \"b\", c".to_owned(),
                seconds: Some(u64::MAX),
                share: 0.1,
                colour: Colour::Green,
                seen: true,
            },
            Visit {
                page: String::new(),
                seconds: None,
                share: f32::NAN,
                colour: Colour::Red,
                seen: false,
            },
        ]
    }

    fn json_of<T: Serialize + serde::de::DeserializeOwned>(value: &T) -> Json {
        let mut bytes = Vec::new();
        codec::encode(value, &mut bytes).unwrap();
        to_json(&decode_value(&trace::<T>().unwrap(), &bytes).unwrap().0)
    }

    /// What is written can be looked at.
    #[derive(Clone, Default)]
    struct Shared(Arc<Mutex<Vec<u8>>>);

    impl Write for Shared {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn written(format: Format) -> Vec<u8> {
        let shape = EntryShape {
            key: Arc::new(trace::<(u8, String)>().unwrap()),
            value: Arc::new(trace::<Visit>().unwrap()),
            expires: true,
        };
        let out = Shared::default();
        let mut rows = Rows::new(format, Columns::of(&shape, true), Box::new(out.clone())).unwrap();
        for visit in visits() {
            let row = Row {
                operator: "ways".to_owned(),
                state: "visits".to_owned(),
                key_group: Some(7),
                last_update: Some(1_700_000_000_000),
                key: Some(json_of(&(1_u8, "x".to_owned()))),
                value: json_of(&visit),
            };
            rows.write(row).unwrap();
        }
        rows.finish().unwrap();
        out.0.lock().unwrap().clone()
    }

    #[test]
    fn values_are_json_as_serde_would_write_them() {
        let value = (
            Some(vec![(1_u8, 'x')]),
            std::collections::BTreeMap::from([((1_i8, false), Colour::Red)]),
            Ok::<u128, String>(u128::MAX),
            f64::INFINITY,
        );
        let expected = json!([
            [[1, "x"]],
            { "[1,false]": "Red" },
            { "Ok": u128::MAX.to_string() },
            "inf"
        ]);
        assert_eq!(json_of(&value), expected);
        let [visit, _] = visits();
        let expected = json!({
            "page": "a \"b\", c", "seconds": u64::MAX, "share": 0.1, "colour": "Green", "seen": true,
        });
        assert_eq!(json_of(&visit), expected);
    }

    #[test]
    fn a_flat_struct_is_columns_and_what_is_nested_is_json_text() {
        let text = String::from_utf8(written(Format::Csv)).unwrap();
        let expected = "\
operator,state,key_group,last_update,key,value.page,value.seconds,value.share,value.colour,value.seen
ways,visits,7,1700000000000,\"[1,\"\"x\"\"]\",\"a \"\"b\"\", c\",18446744073709551615,0.1,Green,true
ways,visits,7,1700000000000,\"[1,\"\"x\"\"]\",\"\",,NaN,Red,false
";
        assert_eq!(text, expected);
        let table = String::from_utf8(written(Format::Table)).unwrap();
        assert!(table.starts_with("OPERATOR") && table.lines().count() == 3, "{table}");
    }

    #[cfg(not(feature = "parquet"))]
    #[test]
    fn parquet_that_was_not_compiled_in_is_refused_with_the_way_to_have_it() {
        let out = Box::new(Shared::default());
        let error = Rows::new(Format::Parquet, Columns::any(), out).err().unwrap();
        assert!(error.to_string().contains("--features parquet"), "{error}");
    }

    #[cfg(feature = "parquet")]
    #[test]
    fn parquet_has_typed_columns_and_comes_back() {
        use arrow::array::{Array, AsArray};
        use arrow::datatypes::{Float64Type, Int64Type, UInt64Type};
        use parquet::arrow::arrow_reader::ParquetRecordBatchReaderBuilder;

        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), written(Format::Parquet)).unwrap();
        let file = std::fs::File::open(file.path()).unwrap();
        let mut reader = ParquetRecordBatchReaderBuilder::try_new(file).unwrap().build().unwrap();
        let batch = reader.next().unwrap().unwrap();
        assert!(batch.num_rows() == 2 && reader.next().is_none());
        let column = |name: &str| batch.column_by_name(name).unwrap();
        assert_eq!(column("last_update").as_primitive::<Int64Type>().value(1), 1_700_000_000_000);
        assert_eq!(column("key").as_string::<i32>().value(0), "[1,\"x\"]");
        let seconds = column("value.seconds").as_primitive::<UInt64Type>();
        assert!(seconds.value(0) == u64::MAX && seconds.is_null(1));
        let share = column("value.share").as_primitive::<Float64Type>();
        assert!(share.value(0) == 0.1 && share.value(1).is_nan());
        assert!(column("value.seen").as_boolean().value(0));
    }
}
