//! Rows as Apache Parquet.

use std::io::{self, Write};
use std::sync::Arc;

use arrow::array::{ArrayRef, BooleanArray, Float64Array, Int64Array, StringArray, UInt64Array};
use arrow::datatypes::{DataType, Field, Schema};
use arrow::record_batch::RecordBatch;
use parquet::arrow::ArrowWriter;
use serde_json::Value as Json;

use super::rows::CellType;

/// Rows that are handed over together.
const BATCH_ROWS: usize = 1024;
/// A row group is written out when it is this large. Units: bytes.
const GROUP_BYTES: usize = 16 << 20;

type Failure = Box<dyn std::error::Error + Send + Sync>;

/// Writes rows.
pub(super) struct ParquetRows {
    schema: Arc<Schema>,
    types: Vec<CellType>,
    writer: ArrowWriter<Box<dyn Write + Send>>,
    rows: Vec<Vec<Json>>,
}

impl ParquetRows {
    pub(super) fn new(
        columns: &[(String, CellType)],
        out: Box<dyn Write + Send>,
    ) -> Result<Self, Failure> {
        let field = |(name, cell): &(String, CellType)| {
            let data_type = match cell {
                CellType::Int => DataType::Int64,
                CellType::Uint => DataType::UInt64,
                CellType::Float => DataType::Float64,
                CellType::Bool => DataType::Boolean,
                CellType::Text => DataType::Utf8,
            };
            Field::new(name, data_type, true)
        };
        let schema = Arc::new(Schema::new(columns.iter().map(field).collect::<Vec<_>>()));
        let writer = ArrowWriter::try_new(out, Arc::clone(&schema), None)?;
        let types = columns.iter().map(|(_, cell)| *cell).collect();
        Ok(Self { schema, types, writer, rows: Vec::new() })
    }

    pub(super) fn write(&mut self, cells: Vec<Json>) -> io::Result<()> {
        self.rows.push(cells);
        if self.rows.len() < BATCH_ROWS {
            return Ok(());
        }
        self.flush()?;
        if self.writer.in_progress_size() >= GROUP_BYTES {
            self.writer.flush().map_err(io_error)?;
        }
        Ok(())
    }

    pub(super) fn finish(&mut self) -> io::Result<()> {
        self.flush()?;
        self.writer.finish().map_err(io_error)?;
        self.writer.inner_mut().flush()
    }

    fn flush(&mut self) -> io::Result<()> {
        if self.rows.is_empty() {
            return Ok(());
        }
        let rows = std::mem::take(&mut self.rows);
        let column = |(at, cell): (usize, &CellType)| array(*cell, rows.iter().map(|row| &row[at]));
        let arrays = self.types.iter().enumerate().map(column).collect();
        let batch =
            RecordBatch::try_new(Arc::clone(&self.schema), arrays).map_err(io::Error::other)?;
        self.writer.write(&batch).map_err(io_error)
    }
}

fn array<'a>(cell: CellType, cells: impl Iterator<Item = &'a Json>) -> ArrayRef {
    match cell {
        CellType::Int => Arc::new(cells.map(Json::as_i64).collect::<Int64Array>()),
        CellType::Uint => Arc::new(cells.map(Json::as_u64).collect::<UInt64Array>()),
        // What JSON has no number for is a text there.
        CellType::Float => Arc::new(
            cells
                .map(|cell| cell.as_f64().or_else(|| cell.as_str()?.parse().ok()))
                .collect::<Float64Array>(),
        ),
        CellType::Bool => Arc::new(cells.map(Json::as_bool).collect::<BooleanArray>()),
        CellType::Text => Arc::new(
            cells
                .map(|cell| match cell {
                    Json::Null => None,
                    Json::String(text) => Some(text.clone()),
                    other => Some(other.to_string()),
                })
                .collect::<StringArray>(),
        ),
    }
}

/// A closed pipe stays one.
fn io_error(error: parquet::errors::ParquetError) -> io::Error {
    match error {
        parquet::errors::ParquetError::External(inner) => match inner.downcast::<io::Error>() {
            Ok(error) => *error,
            Err(other) => io::Error::other(other),
        },
        other => io::Error::other(other),
    }
}
