//! The configuration file: TOML, with the tables and keys of `settings` and no others.
//!
//! Keys are checked against the table and keep their lines, so that a misspelt one is an error that
//! names file, line and key. Values may be strings, numbers or booleans; what they mean is decided
//! in `resolve`. Paths in values mean what they would mean on the command line: they start at the
//! working directory.

use std::collections::BTreeMap;
use std::io::Read;
use std::path::{Path, PathBuf};

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::error::CliError;
use super::layers::suggestion;
use super::settings::{HEADINGS, SETTINGS, Setting};
use super::units::shorten;

/// No configuration is larger; a larger file was named by mistake.
const FILE_BYTES_MAX: u64 = 1 << 20;

/// The settings of one file.
#[derive(Debug)]
pub(crate) struct FileLayer {
    path: PathBuf,
    /// Text and line, by setting's flag.
    values: BTreeMap<&'static str, (String, usize)>,
}

impl FileLayer {
    /// Reads the file that `given` (a flag or variable) names.
    pub fn read(path: &Path, given: &str) -> Result<Self, CliError> {
        Self::parse(path, &read_text(path, given)?)
    }

    /// Reads the text of a file.
    pub fn parse(path: &Path, text: &str) -> Result<Self, CliError> {
        let line_at = |offset: usize| 1 + text[..offset.min(text.len())].matches('\n').count();
        let error = |offset: usize, problem: String| CliError::ConfigFile {
            path: path.display().to_string(),
            line: line_at(offset),
            problem,
        };
        let root = DeTable::parse(text).map_err(|wrong| {
            error(wrong.span().map_or(0, |span| span.start), wrong.message().replace('\n', ", "))
        })?;
        let mut values = BTreeMap::new();
        for (name, content) in root.get_ref() {
            let table = name.get_ref().as_ref();
            if !HEADINGS.iter().any(|(known, _)| *known == table) {
                return Err(error(name.span().start, unknown_table(table)));
            }
            let Some(entries) = content.get_ref().as_table() else {
                let problem =
                    format!("`{table}` is a table: write `[{table}]` on a line of its own");
                return Err(error(name.span().start, problem));
            };
            for (key, value) in entries {
                let setting = find(table, key.get_ref())
                    .ok_or_else(|| error(key.span().start, unknown_key(table, key.get_ref())))?;
                let content = text_of(value).ok_or_else(|| {
                    let problem = format!("{}: a {} is not a value", setting.path(), kind(value));
                    error(value.span().start, format!("{problem}; write it in quotes"))
                })?;
                values.insert(setting.flag, (content, line_at(key.span().start)));
            }
        }
        Ok(Self { path: path.to_owned(), values })
    }

    /// The setting's text and line.
    pub fn get(&self, setting: &Setting) -> Option<(String, usize)> {
        self.values.get(setting.flag).cloned()
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

/// Reads a small text file that `given` names.
pub(crate) fn read_text(path: &Path, given: &str) -> Result<String, CliError> {
    let failed = |source| CliError::Read {
        given: given.to_owned(),
        path: path.display().to_string(),
        source,
    };
    let file = std::fs::File::open(path).map_err(failed)?;
    let mut text = String::new();
    file.take(FILE_BYTES_MAX + 1).read_to_string(&mut text).map_err(failed)?;
    if text.len() as u64 > FILE_BYTES_MAX {
        let why = format!("it is larger than {FILE_BYTES_MAX} bytes, so it is not the file meant");
        return Err(failed(std::io::Error::new(std::io::ErrorKind::FileTooLarge, why)));
    }
    Ok(text)
}

fn find(table: &str, key: &str) -> Option<&'static Setting> {
    SETTINGS.iter().find(|setting| setting.table == table && setting.key == key)
}

fn unknown_table(table: &str) -> String {
    let names = HEADINGS.map(|(name, _)| name);
    // A key of some table at the top of the file was probably meant for that table.
    let owner = SETTINGS.iter().find(|setting| setting.key == table || setting.flag == table);
    let hint = match owner {
        Some(setting) => format!(" (did you mean `{}` in `[{}]`?)", setting.key, setting.table),
        None => suggestion(table, names),
    };
    format!("there is no table `{}`{hint}; the tables are {}", shorten(table), names.join(", "))
}

fn unknown_key(table: &str, key: &str) -> String {
    let keys: Vec<_> = SETTINGS.iter().filter(|s| s.table == table).map(|s| s.key).collect();
    let hint = match SETTINGS.iter().find(|setting| setting.flag == key) {
        Some(setting) => format!(" (did you mean `{}` in `[{}]`?)", setting.key, setting.table),
        None => suggestion(key, keys.iter().copied()),
    };
    format!(
        "there is no key `{}` in `[{table}]`{hint}; its keys are {}",
        shorten(key),
        keys.join(", ")
    )
}

fn text_of(value: &Spanned<DeValue<'_>>) -> Option<String> {
    match value.get_ref() {
        DeValue::String(text) => Some(text.to_string()),
        DeValue::Boolean(value) => Some(value.to_string()),
        DeValue::Float(float) => Some(float.as_str().to_owned()),
        // Digits in another base than ten become ten's, so that `0x10` means what it says.
        DeValue::Integer(integer) => Some(
            i64::from_str_radix(integer.as_str(), integer.radix())
                .map_or_else(|_| integer.as_str().to_owned(), |number| number.to_string()),
        ),
        DeValue::Datetime(_) | DeValue::Array(_) | DeValue::Table(_) => None,
    }
}

fn kind(value: &Spanned<DeValue<'_>>) -> &'static str {
    match value.get_ref() {
        DeValue::Datetime(_) => "date",
        DeValue::Array(_) => "list",
        _ => "table",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::settings::by_flag;
    use crate::cli::test_support::random_text;

    fn refused(text: &str) -> String {
        FileLayer::parse(Path::new("hw.toml"), text).unwrap_err().to_string()
    }

    #[test]
    fn strings_numbers_and_booleans_are_values_and_keep_their_lines() {
        let text = "[network]\nworkers = 0x10\nsupervise = true\n\n[restart]\njitter = 0.25\n\
                    [checkpoints]\ninterval = \"1m\"\n";
        let file = FileLayer::parse(Path::new("hw.toml"), text).unwrap();
        for (flag, value, line) in [
            ("workers", "16", 2),
            ("supervise", "true", 3),
            ("restart-jitter", "0.25", 6),
            ("checkpoint-interval", "1m", 8),
        ] {
            let given = file.get(by_flag(flag).unwrap());
            assert_eq!(given, Some((value.to_owned(), line)), "{flag}");
        }
        assert_eq!(file.get(by_flag("processes").unwrap()), None);
    }

    #[test]
    fn a_misspelt_key_is_an_error_that_names_file_line_and_key() {
        let error = refused("[checkpoints]\n\nintervall = \"1s\"\n");
        assert!(
            error.starts_with(
                "hw.toml:3: there is no key `intervall` in `[checkpoints]` (did you mean `interval`?); its keys are dir, "
            ),
            "{error}"
        );
        let error = refused("[checkpoints]\ntolerable_failures = 3\n");
        assert!(error.contains("did you mean `tolerable-failures`?"), "{error}");
    }

    #[test]
    fn a_key_in_the_wrong_place_is_an_error_that_names_the_right_one() {
        let error = refused("workers = 4\n");
        assert!(error.contains("hw.toml:1: there is no table `workers`"), "{error}");
        assert!(error.contains("did you mean `workers` in `[network]`?"), "{error}");
        let error = refused("[job]\nworkers = 4\n");
        assert!(error.contains("hw.toml:2: there is no key `workers` in `[job]`"), "{error}");
        assert!(error.contains("did you mean `workers` in `[network]`?"), "{error}");
        let error = refused("job = 3\n");
        assert!(error.contains("write `[job]` on a line of its own"), "{error}");
    }

    #[test]
    fn what_is_no_toml_is_an_error_with_its_line() {
        let error = refused("[job]\nname = \"a\"\nname = \"b\"\n");
        assert!(error.starts_with("hw.toml:3: "), "{error}");
        let error = refused("[job]\nname = [1]\n");
        assert_eq!(error, "hw.toml:2: job.name: a list is not a value; write it in quotes");
    }

    #[test]
    fn no_text_makes_the_reader_panic() {
        for seed in 0..20_000 {
            let text = format!("[job]\n{} = {}\n", random_text(seed), random_text(seed + 1));
            let _ = FileLayer::parse(Path::new("hw.toml"), &text);
        }
    }
}
