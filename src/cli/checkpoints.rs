//! What `highwater checkpoints` says: reports, as tables for people and as JSON for programs.
//!
//! The shapes here are a promise to scripts, so they are types of their own and not those that are
//! stored. Sizes are bytes, times are milliseconds since 1970, durations end in their unit.

use comfy_table::{CellAlignment, Table, presets};
use serde::Serialize;

use super::units::{short_count, short_duration, short_size};
use std::time::Duration;

/// A report that can be shown to people and to programs.
pub(crate) trait Report: Serialize {
    /// Tables and sentences.
    fn text(&self) -> String;

    /// The same and more, as one JSON object.
    fn json(&self) -> String {
        let json = serde_json::to_string_pretty(self);
        json.expect("reports are structs of texts and numbers, which JSON has")
    }
}

/// `list`: the checkpoints of a job, and what became of the last ones.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct ListReport {
    pub job: String,
    pub location: String,
    /// In ascending order.
    pub checkpoints: Vec<ListRow>,
    /// Checkpoints that can not be read.
    pub damaged: Vec<DamagedRow>,
    /// In ascending order.
    pub history: Vec<HistoryRow>,
    /// What processes have read to restore, by attempt: of jobs with local copies.
    pub restores: Vec<RestoreRow>,
}

/// A complete checkpoint.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct ListRow {
    pub id: u64,
    pub attempt: u64,
    pub triggered_unix_ms: u64,
    pub size_bytes: u64,
    pub entries: u64,
    pub parallelism: u32,
    #[serde(rename = "final")]
    pub is_final: bool,
    /// Whether a user keeps it.
    pub pinned: bool,
}

/// A checkpoint whose manifest can not be read.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct DamagedRow {
    pub id: u64,
    pub why: String,
}

/// What became of one checkpoint.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct HistoryRow {
    pub id: u64,
    pub attempt: u64,
    pub triggered_unix_ms: u64,
    pub complete: bool,
    /// Why it was aborted, if it was.
    pub why: Option<String>,
    pub duration_ms: u64,
    pub size_bytes: u64,
    pub in_flight_bytes: u64,
}

/// What a process has read to restore.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct RestoreRow {
    /// The checkpoint.
    pub id: u64,
    pub attempt: u64,
    pub process: u32,
    pub restored_unix_ms: u64,
    pub local_bytes: u64,
    pub store_bytes: u64,
}

/// `show`: what is in a checkpoint, and what it cost.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct ShowReport {
    pub job: String,
    pub location: String,
    pub id: u64,
    pub attempt: u64,
    pub lineage: u64,
    pub triggered_unix_ms: u64,
    pub parallelism: u32,
    pub max_parallelism: u16,
    #[serde(rename = "final")]
    pub is_final: bool,
    /// Whether a user keeps it.
    pub pinned: bool,
    pub size_bytes: u64,
    pub entries: u64,
    /// Number of blobs, the manifest apart.
    pub blobs: u64,
    /// Sorted by operator and state.
    pub states: Vec<StateRow>,
    /// What it cost. `None`: the history does not reach back that far.
    pub timings: Option<Timings>,
}

/// One state of one operator, over all workers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct StateRow {
    pub operator: String,
    pub state: String,
    pub kind: String,
    pub type_name: String,
    pub type_version: u32,
    /// What an entry is; `None` if that is not known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub shape: Option<String>,
    /// Of that shape, in hexadecimal.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fingerprint: Option<String>,
    pub entries: u64,
    pub size_bytes: u64,
}

/// What a checkpoint cost.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Timings {
    pub duration_ms: u64,
    pub publish_ms: u64,
    pub in_flight_bytes: u64,
    pub workers: Vec<WorkerRow>,
    pub waits: Vec<WaitRow>,
}

/// What a checkpoint had to wait for.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct WaitRow {
    pub phase: String,
    pub worker: u32,
    pub operators: Vec<String>,
    pub waited_ms: u64,
}

/// What a checkpoint cost one worker.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct WorkerRow {
    pub worker: u32,
    pub align_us: u64,
    pub sync_us: u64,
    pub async_us: u64,
    pub size_bytes: u64,
    pub in_flight_bytes: u64,
}

/// `pin` and `unpin`: what has changed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct PinReport {
    pub job: String,
    pub location: String,
    pub id: u64,
    /// Whether it is pinned now.
    pub pinned: bool,
    /// Whether it was otherwise before.
    pub changed: bool,
}

/// `verify`: what reading everything found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct VerifyReport {
    pub job: String,
    pub location: String,
    pub checkpoints: Vec<u64>,
    pub parts: u64,
    pub entries: u64,
    pub size_bytes: u64,
    pub problems: Vec<ProblemRow>,
    /// Blobs that nothing references: no damage.
    pub unreferenced: Vec<String>,
}

/// One damage.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct ProblemRow {
    pub checkpoint: u64,
    pub path: String,
    /// Where in the blob; `None`: all of it, or it is not there.
    pub offset_bytes: Option<u64>,
    pub why: String,
}

/// `delete`: what is gone.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct DeleteReport {
    pub job: String,
    pub location: String,
    pub id: u64,
    pub blobs: u64,
    pub size_bytes: u64,
}

impl Report for ListReport {
    fn text(&self) -> String {
        let mut text = format!("job {} in {}\n\n", self.job, printable(&self.location));
        if self.checkpoints.is_empty() {
            text.push_str("no complete checkpoint\n");
        } else {
            text.push_str(&self.checkpoint_table());
        }
        for damaged in &self.damaged {
            let why = printable(&damaged.why);
            text.push_str(&format!("\ncheckpoint {} is damaged: {why}\n", damaged.id));
        }
        if !self.history.is_empty() {
            text.push_str("\nhistory\n\n");
            text.push_str(&self.history_table());
        }
        if !self.restores.is_empty() {
            text.push_str("\nrestores\n\n");
            text.push_str(&self.restore_table());
        }
        text
    }
}

impl ListReport {
    fn checkpoint_table(&self) -> String {
        let rows = self.checkpoints.iter().map(|row| {
            [
                row.id.to_string(),
                row.attempt.to_string(),
                utc(row.triggered_unix_ms),
                short_size(row.size_bytes),
                short_count(row.entries),
                row.parallelism.to_string(),
                notes(row),
            ]
        });
        let header =
            [">ID", ">ATTEMPT", "TRIGGERED (UTC)", ">SIZE", ">ENTRIES", ">PARALLELISM", ""];
        table(header, rows)
    }

    fn history_table(&self) -> String {
        let rows = self.history.iter().map(|row| {
            let outcome = match &row.why {
                _ if row.complete => "complete".to_owned(),
                Some(why) => format!("aborted: {}", printable(why)),
                None => "aborted".to_owned(),
            };
            [
                row.id.to_string(),
                row.attempt.to_string(),
                utc(row.triggered_unix_ms),
                short_duration(Duration::from_millis(row.duration_ms)),
                short_size(row.size_bytes),
                short_size(row.in_flight_bytes),
                outcome,
            ]
        });
        let header =
            [">ID", ">ATTEMPT", "TRIGGERED (UTC)", ">DURATION", ">SIZE", ">IN FLIGHT", "OUTCOME"];
        table(header, rows)
    }
}

impl ListReport {
    fn restore_table(&self) -> String {
        let rows = self.restores.iter().map(|row| {
            [
                row.id.to_string(),
                row.attempt.to_string(),
                row.process.to_string(),
                utc(row.restored_unix_ms),
                short_size(row.local_bytes),
                short_size(row.store_bytes),
            ]
        });
        table([">ID", ">ATTEMPT", ">PROCESS", "RESTORED (UTC)", ">LOCAL", ">STORE"], rows)
    }
}

/// What is special about a checkpoint.
fn notes(row: &ListRow) -> String {
    let notes = [(row.is_final, "final"), (row.pinned, "pinned")].into_iter();
    notes.filter(|(is, _)| *is).map(|(_, note)| note).collect::<Vec<_>>().join(", ")
}

impl Report for ShowReport {
    fn text(&self) -> String {
        let suffix = match (self.is_final, self.pinned) {
            (false, false) => "",
            (true, false) => ", the final one",
            (false, true) => ", pinned",
            (true, true) => ", the final one, pinned",
        };
        let mut text = format!(
            "checkpoint {} of job {} in {}{suffix}\n\
             triggered {} UTC by attempt {}, lineage {}\n\
             {} workers, {} key groups\n\
             {} entries, {} in {} blobs and the manifest\n",
            self.id,
            self.job,
            printable(&self.location),
            utc(self.triggered_unix_ms),
            self.attempt,
            self.lineage,
            self.parallelism,
            self.max_parallelism,
            self.entries,
            short_size(self.size_bytes),
            self.blobs,
        );
        if !self.states.is_empty() {
            text.push('\n');
            text.push_str(&state_table(&self.states));
        }
        match &self.timings {
            Some(timings) => text.push_str(&timings.text()),
            None => text.push_str("\nits timings are not in the history any more\n"),
        }
        text
    }
}

pub(super) fn state_table(states: &[StateRow]) -> String {
    let rows = states.iter().map(|row| {
        let version = row.type_version;
        [
            row.operator.clone(),
            row.state.clone(),
            row.kind.clone(),
            format!("{} v{version}", printable(&row.type_name)),
            row.entries.to_string(),
            short_size(row.size_bytes),
        ]
    });
    table(["OPERATOR", "STATE", "KIND", "TYPE", ">ENTRIES", ">SIZE"], rows)
}

impl Timings {
    fn text(&self) -> String {
        let rows = self.workers.iter().map(|row| {
            let micros = |micros| short_duration(Duration::from_micros(micros));
            [
                row.worker.to_string(),
                micros(row.align_us),
                micros(row.sync_us),
                micros(row.async_us),
                short_size(row.size_bytes),
                short_size(row.in_flight_bytes),
            ]
        });
        let millis = |millis| short_duration(Duration::from_millis(millis));
        format!(
            "\ntook {}, of which publishing {}; {} in flight\n\n{}",
            millis(self.duration_ms),
            millis(self.publish_ms),
            short_size(self.in_flight_bytes),
            table([">WORKER", ">ALIGN", ">SYNC", ">ASYNC", ">SIZE", ">IN FLIGHT"], rows),
        ) + &self.waits_text()
    }

    fn waits_text(&self) -> String {
        if self.waits.is_empty() {
            return String::new();
        }
        let rows = self.waits.iter().map(|row| {
            [
                row.worker.to_string(),
                row.phase.clone(),
                short_duration(Duration::from_millis(row.waited_ms)),
                printable(&row.operators.join(", ")).to_string(),
            ]
        });
        format!("\nwaited long for\n\n{}", table([">WORKER", "PHASE", ">TIME", "OPERATORS"], rows))
    }
}

impl VerifyReport {
    /// Whether every checkpoint that was read can be restored.
    pub fn is_clean(&self) -> bool {
        self.problems.is_empty()
    }
}

impl Report for VerifyReport {
    fn text(&self) -> String {
        let count = self.checkpoints.len();
        let mut text = format!(
            "job {} in {}: read {count} checkpoint{}, {} parts, {} entries, {}\n",
            self.job,
            printable(&self.location),
            if count == 1 { "" } else { "s" },
            self.parts,
            self.entries,
            short_size(self.size_bytes),
        );
        for problem in &self.problems {
            let offset = problem.offset_bytes.map_or(String::new(), |o| format!(" at byte {o}"));
            let (path, why) = (printable(&problem.path), printable(&problem.why));
            let id = problem.checkpoint;
            text.push_str(&format!("checkpoint {id}: {path}{offset}: {why}\n"));
        }
        if !self.unreferenced.is_empty() {
            let count = self.unreferenced.len();
            let files = if count == 1 { "blob is" } else { "blobs are" };
            text.push_str(&format!(
                "{count} {files} of no checkpoint: the job removes what is left over when it starts\n"
            ));
        }
        text.push_str(if self.is_clean() { "no damage\n" } else { "DAMAGED\n" });
        text
    }
}

impl Report for PinReport {
    fn text(&self) -> String {
        let Self { id, job, .. } = self;
        match (self.pinned, self.changed) {
            (true, true) => {
                format!("pinned checkpoint {id} of job {job}: it stays until it is unpinned\n")
            }
            (true, false) => format!("checkpoint {id} of job {job} was pinned already\n"),
            (false, true) => {
                format!(
                    "unpinned checkpoint {id} of job {job}: the job deletes it when it is old\n"
                )
            }
            (false, false) => format!("checkpoint {id} of job {job} was not pinned\n"),
        }
    }
}

impl Report for DeleteReport {
    fn text(&self) -> String {
        format!(
            "deleted checkpoint {} of job {}: {} blobs, {}\n",
            self.id,
            self.job,
            self.blobs,
            short_size(self.size_bytes)
        )
    }
}

/// Columns under headings; `>` before a heading aligns its column to the right.
pub(super) fn table<const N: usize>(
    headings: [&str; N],
    rows: impl Iterator<Item = [String; N]>,
) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    table.set_header(headings.map(|heading| heading.trim_start_matches('>')));
    table.add_rows(rows.map(Vec::from));
    for (column, heading) in table.column_iter_mut().zip(headings) {
        column.set_padding((0, 2));
        if heading.starts_with('>') {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    let lines: Vec<String> = table.lines().map(|line| line.trim_end().to_owned() + "\n").collect();
    lines.concat()
}

/// The text in one line, without what a terminal would take for a command: it may come from a
/// damaged file.
pub(super) fn printable(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

/// `2023-11-14 22:13:20`. Source of the calendar: Howard Hinnant, `civil_from_days`.
fn utc(unix_ms: u64) -> String {
    let seconds = unix_ms / 1_000;
    let (days, second) = (seconds / 86_400, seconds % 86_400);
    let shifted = days + 719_468;
    let (era, day_of_era) = (shifted / 146_097, shifted % 146_097);
    let year_of_era =
        (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_index = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_index + 2) / 5 + 1;
    let month = if month_index < 10 { month_index + 3 } else { month_index - 9 };
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    let (hour, minute) = (second / 3_600, second / 60 % 60);
    format!("{year:04}-{month:02}-{day:02} {hour:02}:{minute:02}:{:02}", second % 60)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list() -> ListReport {
        let row = |id, size_bytes, is_final| ListRow {
            id,
            attempt: 2,
            triggered_unix_ms: 1_700_000_000_000,
            size_bytes,
            entries: 12_345,
            parallelism: 4,
            is_final,
            pinned: is_final,
        };
        let history = |id, why: Option<&str>| HistoryRow {
            id,
            attempt: 2,
            triggered_unix_ms: 1_700_000_000_000,
            complete: why.is_none(),
            why: why.map(str::to_owned),
            duration_ms: 340,
            size_bytes: 1_300_000,
            in_flight_bytes: 0,
        };
        ListReport {
            job: "count".to_owned(),
            location: "/state".to_owned(),
            checkpoints: vec![row(9, 1_300_000, false), row(11, 512, true)],
            damaged: Vec::new(),
            history: vec![history(9, None), history(10, Some("it took\nlonger than \u{1b}[1m1m"))],
            restores: vec![RestoreRow {
                id: 9,
                attempt: 3,
                process: 0,
                restored_unix_ms: 1_700_000_000_000,
                local_bytes: 1_300_000,
                store_bytes: 512,
            }],
        }
    }

    fn show() -> ShowReport {
        ShowReport {
            job: "count".to_owned(),
            location: "/state".to_owned(),
            id: 9,
            attempt: 2,
            lineage: 1,
            triggered_unix_ms: 1_700_000_000_000,
            parallelism: 2,
            max_parallelism: 128,
            is_final: false,
            pinned: false,
            size_bytes: 1_300_000,
            entries: 12_345,
            blobs: 2,
            states: vec![StateRow {
                operator: "count".to_owned(),
                state: "counts".to_owned(),
                kind: "keyed value".to_owned(),
                type_name: "u64".to_owned(),
                type_version: 1,
                shape: None,
                fingerprint: None,
                entries: 12_345,
                size_bytes: 1_300_000,
            }],
            timings: Some(Timings {
                duration_ms: 340,
                publish_ms: 12,
                waits: vec![WaitRow {
                    phase: "align".into(),
                    worker: 1,
                    operators: vec!["key_by-1".into(), "count".into()],
                    waited_ms: 10_000,
                }],
                in_flight_bytes: 2_048,
                workers: vec![WorkerRow {
                    worker: 0,
                    align_us: 900,
                    sync_us: 1_200,
                    async_us: 300_000,
                    size_bytes: 650_000,
                    in_flight_bytes: 2_048,
                }],
            }),
        }
    }

    #[test]
    fn a_list_shows_complete_checkpoints_and_below_what_became_of_all() {
        let expected = "\
job count in /state

ID  ATTEMPT  TRIGGERED (UTC)         SIZE  ENTRIES  PARALLELISM
 9        2  2023-11-14 22:13:20  1.2 MiB    12.3k            4
11        2  2023-11-14 22:13:20    512 B    12.3k            4  final, pinned

history

ID  ATTEMPT  TRIGGERED (UTC)      DURATION     SIZE  IN FLIGHT  OUTCOME
 9        2  2023-11-14 22:13:20     340ms  1.2 MiB        0 B  complete
10        2  2023-11-14 22:13:20     340ms  1.2 MiB        0 B  aborted: it took longer than  [1m1m

restores

ID  ATTEMPT  PROCESS  RESTORED (UTC)         LOCAL  STORE
 9        3        0  2023-11-14 22:13:20  1.2 MiB  512 B
";
        assert_eq!(list().text(), expected);
    }

    #[test]
    fn an_empty_list_says_so_and_a_damaged_checkpoint_is_named() {
        let damaged = vec![DamagedRow { id: 3, why: "bad\nchecksum".to_owned() }];
        let (checkpoints, history, restores) = (vec![], vec![], vec![]);
        let report = ListReport { checkpoints, history, restores, damaged, ..list() };
        let expected = "job count in /state\n\nno complete checkpoint\n\n\
                        checkpoint 3 is damaged: bad checksum\n";
        assert_eq!(report.text(), expected);
    }

    #[test]
    fn a_checkpoint_is_shown_with_its_states_and_timings() {
        let expected = "\
checkpoint 9 of job count in /state
triggered 2023-11-14 22:13:20 UTC by attempt 2, lineage 1
2 workers, 128 key groups
12345 entries, 1.2 MiB in 2 blobs and the manifest

OPERATOR  STATE   KIND         TYPE    ENTRIES     SIZE
count     counts  keyed value  u64 v1    12345  1.2 MiB

took 340ms, of which publishing 12ms; 2.0 KiB in flight

WORKER  ALIGN  SYNC  ASYNC     SIZE  IN FLIGHT
     0  900us   1ms  300ms  634 KiB    2.0 KiB

waited long for

WORKER  PHASE   TIME  OPERATORS
     1  align  10.0s  key_by-1, count
";
        assert_eq!(show().text(), expected);
        let without = ShowReport { timings: None, is_final: true, ..show() };
        assert!(without.text().contains("/state, the final one\n"));
        let pinned = ShowReport { pinned: true, ..show() };
        assert!(pinned.text().contains("/state, pinned\n"));
        assert!(without.text().ends_with("its timings are not in the history any more\n"));
    }

    #[test]
    fn a_verification_says_clearly_whether_there_is_damage() {
        let clean = VerifyReport {
            job: "count".to_owned(),
            location: "/state".to_owned(),
            checkpoints: vec![9],
            parts: 2,
            entries: 5,
            size_bytes: 600,
            problems: vec![],
            unreferenced: vec!["/state/count/chk/12/2-0.part".to_owned()],
        };
        assert!(clean.is_clean());
        assert_eq!(
            clean.text(),
            "job count in /state: read 1 checkpoint, 2 parts, 5 entries, 600 B\n\
             1 blob is of no checkpoint: the job removes what is left over when it starts\n\
             no damage\n"
        );
        let problem = |offset_bytes| ProblemRow {
            checkpoint: 9,
            path: "/state/count/chk/9/2-1.part".to_owned(),
            offset_bytes,
            why: "wrong checksum".to_owned(),
        };
        let problems = vec![problem(Some(20)), problem(None)];
        let damaged = VerifyReport { problems, unreferenced: vec![], ..clean };
        assert!(!damaged.is_clean());
        assert_eq!(
            damaged.text(),
            "job count in /state: read 1 checkpoint, 2 parts, 5 entries, 600 B\n\
             checkpoint 9: /state/count/chk/9/2-1.part at byte 20: wrong checksum\n\
             checkpoint 9: /state/count/chk/9/2-1.part: wrong checksum\n\
             DAMAGED\n"
        );
    }

    #[test]
    fn json_has_the_promised_shape() {
        let json: serde_json::Value = serde_json::from_str(&list().json()).unwrap();
        let expected = serde_json::json!({
            "id": 11, "attempt": 2, "triggered_unix_ms": 1_700_000_000_000_u64, "size_bytes": 512,
            "entries": 12_345, "parallelism": 4, "final": true, "pinned": true,
        });
        assert_eq!(json["checkpoints"][1], expected);
        let expected = serde_json::json!({
            "id": 9, "attempt": 2, "triggered_unix_ms": 1_700_000_000_000_u64, "complete": true, "why": null,
            "duration_ms": 340, "size_bytes": 1_300_000, "in_flight_bytes": 0,
        });
        assert_eq!(json["history"][0], expected);
        let expected = serde_json::json!({
            "id": 9, "attempt": 3, "process": 0, "restored_unix_ms": 1_700_000_000_000_u64,
            "local_bytes": 1_300_000, "store_bytes": 512,
        });
        assert_eq!(json["restores"][0], expected);
        assert_eq!((&json["job"], &json["location"]), (&"count".into(), &"/state".into()));
        let json: serde_json::Value = serde_json::from_str(&show().json()).unwrap();
        assert_eq!(json["states"][0]["kind"], "keyed value");
        assert_eq!(json["timings"]["workers"][0]["async_us"], 300_000);
    }

    #[test]
    fn pinning_says_what_it_has_changed() {
        let text = |pinned, changed| {
            let (job, location) = ("count".to_owned(), "/state".to_owned());
            PinReport { job, location, id: 9, pinned, changed }.text()
        };
        for (pinned, changed, said) in [
            (true, true, "pinned checkpoint 9 of job count: it stays until it is unpinned\n"),
            (true, false, "checkpoint 9 of job count was pinned already\n"),
            (
                false,
                true,
                "unpinned checkpoint 9 of job count: the job deletes it when it is old\n",
            ),
            (false, false, "checkpoint 9 of job count was not pinned\n"),
        ] {
            assert_eq!(text(pinned, changed), said);
        }
    }

    #[test]
    fn dates_follow_the_calendar() {
        for (unix_ms, text) in [
            (0, "1970-01-01 00:00:00"),
            (951_782_399_999, "2000-02-28 23:59:59"),
            (951_782_400_000, "2000-02-29 00:00:00"),
            (1_709_251_200_000, "2024-03-01 00:00:00"),
            (4_107_542_399_000, "2100-02-28 23:59:59"),
            (4_107_542_400_000, "2100-03-01 00:00:00"),
        ] {
            assert_eq!(utc(unix_ms), text);
        }
        let _ = utc(u64::MAX);
    }
}
