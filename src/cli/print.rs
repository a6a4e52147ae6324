//! The effective settings as a file that gives the same settings again.

use super::layers::Layers;
use super::restart;
use super::settings::{HEADINGS, Kind, SETTINGS, Setting, by_flag};

/// All settings as TOML, each with where it comes from. What is unset, or means nothing under the
/// chosen restart strategy, is a comment.
pub(crate) fn print_config(job_name: &str, layers: &Layers) -> String {
    let strategy = by_flag("restart").and_then(|setting| layers.get(setting));
    let strategy = strategy.map_or(String::new(), |given| given.text);
    let mut text = String::new();
    for (table, _) in HEADINGS {
        text.push_str(&format!("{}[{table}]\n", if text.is_empty() { "" } else { "\n" }));
        for setting in SETTINGS.iter().filter(|setting| setting.table == table) {
            text.push_str(&line(setting, job_name, &strategy, layers));
            text.push('\n');
        }
    }
    text
}

fn line(setting: &Setting, job_name: &str, strategy: &str, layers: &Layers) -> String {
    let key = setting.key;
    if table_is_restart(setting) && !restart::applies(setting.flag, strategy) {
        return format!("# {key}: means nothing to {strategy}");
    }
    match layers.get(setting) {
        Some(given) => {
            let origin = layers.describe(setting, given.origin);
            // A control character in a file's name would end the comment.
            let origin = origin.replace(char::is_control, "?");
            format!("{key} = {}  # {origin}", literal(setting.kind, &given.text))
        }
        None if setting.flag == "job-name" => {
            format!("{key} = {}  # default of the program", literal(Kind::Text, job_name))
        }
        None => format!("# {key}: not set"),
    }
}

fn table_is_restart(setting: &Setting) -> bool {
    setting.table == "restart" && setting.flag != "restart"
}

/// The text as a TOML value that reads back as the same text.
fn literal(kind: Kind, text: &str) -> String {
    let is_word = matches!(text, "true" | "false");
    let mut halves = text.split('.');
    let whole = halves.next().unwrap_or("");
    let digits = |part: &str| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit());
    let is_number = digits(whole)
        && (whole == "0" || !whole.starts_with('0'))
        && halves.next().is_none_or(digits)
        && halves.next().is_none();
    match kind {
        Kind::Switch if is_word => text.to_owned(),
        Kind::Number if is_number => text.to_owned(),
        _ => toml::Value::String(text.to_owned()).to_string(),
    }
}
