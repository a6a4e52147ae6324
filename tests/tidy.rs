//! Holds the repository to its own rules: who may know whom, headers, sizes, words that must not be there.
//!
//! Every rule reports all that it finds, as `file:line: what`. The table of rooms is the one of
//! `docs/ARCHITECTURE.md`: a test compares the two.

#![allow(clippy::unwrap_used, reason = "what is not as expected fails the test")]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Component, Path, PathBuf};

/// For each room of `src/`: the rooms that its code may name.
const ROOMS: [(&str, &[&str]); 13] = [
    ("ids", &[]),
    ("config", &["ids"]),
    ("protocol", &["ids", "config"]),
    ("format", &["ids"]),
    ("storage", &["ids", "protocol", "format"]),
    ("state", &["ids", "protocol", "format"]),
    ("connect", &["ids"]),
    ("network", &["ids", "config"]),
    ("runtime", &["ids", "config", "protocol", "format", "storage", "state", "connect", "network"]),
    (
        "job",
        &[
            "ids", "config", "protocol", "format", "storage", "state", "connect", "network",
            "runtime",
        ],
    ),
    (
        "testing",
        &[
            "ids", "config", "protocol", "format", "storage", "state", "connect", "network",
            "runtime", "job",
        ],
    ),
    ("supervisor", &["config", "protocol", "network"]),
    ("cli", &["ids", "config", "protocol", "format", "storage", "runtime", "job", "supervisor"]),
];

/// Files of `src/` that stand above the rooms.
const ROOFS: [&str; 3] = ["lib.rs", "prelude.rs", "bin"];

/// What only the code around the protocols may touch.
const WORLD: [&str; 8] = [
    "std::fs",
    "std::net",
    "std::thread",
    "std::env",
    "std::process",
    "Instant::now",
    "SystemTime::now",
    "timely::",
];

const PRODUCTION_LINES_MAX: usize = 800;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// All files below `directory` that end in one of `extensions`, as paths from the root, in order.
fn files(directory: &str, extensions: &[&str]) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut directories = vec![root().join(directory)];
    while let Some(directory) = directories.pop() {
        for entry in fs::read_dir(&directory).into_iter().flatten() {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap().to_str().unwrap().to_owned();
            if path.is_dir() {
                if name != "target" && name != ".git" {
                    directories.push(path);
                }
            } else if extensions.iter().any(|extension| name.ends_with(extension)) {
                found.push(path.strip_prefix(root()).unwrap().to_owned());
            }
        }
    }
    found.sort();
    found
}

fn rust_files() -> Vec<PathBuf> {
    ["src", "operators", "examples", "benches", "tests"]
        .iter()
        .flat_map(|directory| files(directory, &[".rs"]))
        .collect()
}

fn read(path: &Path) -> String {
    fs::read_to_string(root().join(path)).unwrap_or_else(|error| panic!("{path:?}: {error}"))
}

/// Whether a whole file is test code, by its name.
fn is_test_file(path: &Path) -> bool {
    let name = path.file_stem().unwrap().to_str().unwrap();
    path.starts_with("tests")
        || path.starts_with("operators/tests")
        || name == "tests"
        || path.parent().is_some_and(|parent| parent.ends_with("tests"))
        || name.ends_with("_tests")
        || ["test_support", "conformance"].contains(&name)
        || path == Path::new("src/network/testing.rs")
        || path == Path::new("src/connect/file_sink/simulated.rs")
}

/// The lines of a file that are not test code, with their numbers, comments taken out.
fn production_lines(path: &Path) -> Vec<(usize, String)> {
    if is_test_file(path) {
        return Vec::new();
    }
    let text = read(path);
    let lines: Vec<&str> = text.lines().collect();
    let end = lines.windows(2).position(|pair| {
        pair[0].starts_with("#[cfg(test)]") && pair[1].starts_with("mod ") && pair[1].ends_with('{')
    });
    let lines = lines[..end.unwrap_or(lines.len())].iter().enumerate();
    lines
        .filter(|(_, line)| !line.trim_start().starts_with("//"))
        .map(|(index, line)| (index + 1, (*line).to_owned()))
        .collect()
}

fn nothing_found(found: &[String]) {
    assert!(found.is_empty(), "\n{}", found.join("\n"));
}

/// The room that a file of `src/` belongs to.
fn room(path: &Path) -> String {
    let Some(Component::Normal(first)) = path.components().nth(1) else { panic!("{path:?}") };
    first.to_str().unwrap().trim_end_matches(".rs").to_owned()
}

/// The rooms that follow `crate::` in a line.
fn named_rooms(line: &str) -> impl Iterator<Item = &str> {
    line.match_indices("crate::").filter_map(move |(at, _)| {
        let before = line[..at].chars().next_back();
        let rest = &line[at + "crate::".len()..];
        let end = rest.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(rest.len());
        // `$crate::` and `my_crate::` are something else.
        let is_ours = !before.is_some_and(|c| c.is_alphanumeric() || c == '_' || c == '$');
        is_ours.then_some(&rest[..end])
    })
}

#[test]
fn rooms_know_only_the_rooms_that_the_table_allows() {
    let allowed: BTreeMap<&str, &[&str]> = ROOMS.into_iter().collect();
    let reexported = ["key_groups", "Result", "Error", "run", "run_with"];
    let mut found = Vec::new();
    let mut used: BTreeSet<(String, String)> = BTreeSet::new();
    for path in files("src", &[".rs"]) {
        let room = room(&path);
        if ROOFS.iter().any(|roof| roof.trim_end_matches(".rs") == room) {
            continue;
        }
        let Some(allowed) = allowed.get(room.as_str()) else {
            found.push(format!("{}: the room {room} is not in the table", path.display()));
            continue;
        };
        for (number, line) in production_lines(&path) {
            if line.contains("crate::{") {
                found.push(format!("{}:{number}: one `use` a room, please", path.display()));
            }
            for named in named_rooms(&line).filter(|named| !named.is_empty() && *named != room) {
                if allowed.contains(&named) {
                    used.insert((room.clone(), named.to_owned()));
                } else {
                    let hint = if reexported.contains(&named) { " (a re-export)" } else { "" };
                    found.push(format!(
                        "{}:{number}: {room} may not know {named}{hint}",
                        path.display()
                    ));
                }
            }
        }
    }
    nothing_found(&found);
    assert!(used.len() > 20, "the test sees only {} uses of other rooms", used.len());
}

#[test]
fn the_table_of_rooms_has_no_cycle() {
    let mut above: BTreeSet<&str> = BTreeSet::new();
    for (room, allowed) in ROOMS {
        assert!(allowed.iter().all(|room| above.contains(room)), "{room} knows a room below it");
        above.insert(room);
    }
}

#[test]
fn the_table_of_rooms_is_the_one_in_the_architecture() {
    let text = read(Path::new("docs/ARCHITECTURE.md"));
    for (room, allowed) in ROOMS {
        if !root().join(format!("src/{room}")).exists()
            && !root().join(format!("src/{room}.rs")).exists()
        {
            continue;
        }
        let allowed = if allowed.is_empty() { "-".to_owned() } else { allowed.join(", ") };
        let row = text.lines().find(|line| line.starts_with(&format!("| `{room}` |")));
        let row = row.unwrap_or_else(|| panic!("docs/ARCHITECTURE.md has no row for {room}"));
        assert!(
            row.ends_with(&format!("| {allowed} |")),
            "the row of {room} should end in: {allowed}"
        );
    }
}

#[test]
fn protocols_and_formats_do_not_touch_the_world() {
    let mut found = Vec::new();
    for path in files("src/protocol", &[".rs"]).iter().chain(&files("src/format", &[".rs"])) {
        for (number, line) in production_lines(path) {
            for word in WORLD.iter().filter(|word| line.contains(**word)) {
                found.push(format!("{}:{number}: {word}", path.display()));
            }
        }
    }
    nothing_found(&found);
}

#[test]
fn operators_use_the_public_api_only() {
    let allowed = ["prelude", "job", "testing", "Result", "Error"];
    let mut found = Vec::new();
    for path in files("operators", &[".rs"]) {
        for (number, line) in production_lines(&path) {
            for (at, word) in line.match_indices("highwater::") {
                let rest = &line[at + word.len()..];
                if !allowed.iter().any(|allowed| rest.starts_with(allowed)) {
                    found.push(format!("{}:{number}: {}", path.display(), line.trim()));
                }
            }
        }
    }
    nothing_found(&found);
}

#[test]
fn every_source_file_says_what_it_is_for() {
    let files = rust_files();
    assert!(files.len() > 50);
    let without = files.iter().filter(|path| !read(path).starts_with("//! "));
    let found: Vec<String> = without.map(|path| format!("{}: no `//!`", path.display())).collect();
    nothing_found(&found);
}

#[test]
fn no_file_is_too_long() {
    let mut found = Vec::new();
    for path in rust_files().iter().filter(|path| !is_test_file(path)) {
        let lines = production_lines(path).last().map_or(0, |(number, _)| *number);
        if lines > PRODUCTION_LINES_MAX {
            found.push(format!("{}: {lines} lines", path.display()));
        }
    }
    nothing_found(&found);
}

#[test]
fn production_code_does_not_unwrap() {
    let mut found = Vec::new();
    for path in files("src", &[".rs"]).iter().chain(&files("operators/src", &[".rs"])) {
        for (number, line) in production_lines(path) {
            if line.contains(".unwrap()") || line.contains(".expect(\"\")") {
                found.push(format!("{}:{number}: {}", path.display(), line.trim()));
            }
        }
    }
    nothing_found(&found);
}

#[test]
fn no_test_is_ignored_and_none_sleeps() {
    // Put together here so that this file does not contain what it looks for.
    let ignore = ["#[", "ignore"].concat();
    let sleep = ["thread::", "sleep("].concat();
    let mut found = Vec::new();
    for path in rust_files() {
        let text = read(&path);
        let from = if is_test_file(&path) {
            0
        } else {
            production_lines(&path).last().map_or(0, |(number, _)| *number)
        };
        for (index, line) in text.lines().enumerate() {
            let place = format!("{}:{}", path.display(), index + 1);
            if line.contains(&ignore) {
                found.push(format!("{place}: {}", line.trim()));
            }
            // Not to wait for something to have happened: the line, or the one before it, says what for.
            let explained = |line: &str| {
                let line = line.to_lowercase();
                ["fault:", "poll:", "pace:"].iter().any(|why| line.contains(why))
            };
            let before = index.checked_sub(1).and_then(|before| text.lines().nth(before));
            let is_explained = explained(line) || before.is_some_and(explained);
            if index >= from && line.contains(&sleep) && !is_explained {
                found.push(format!("{place}: {} (wait for a condition)", line.trim()));
            }
        }
    }
    nothing_found(&found);
}

#[test]
fn a_promise_to_do_something_names_an_issue() {
    let words = [["TO", "DO"].concat(), ["FIX", "ME"].concat(), ["XX", "X"].concat()];
    let mut found = Vec::new();
    for path in rust_files() {
        for (index, line) in read(&path).lines().enumerate() {
            let promises = words.iter().any(|word| line.contains(word.as_str()));
            if promises && !line.contains("issue #") {
                found.push(format!("{}:{}: {}", path.display(), index + 1, line.trim()));
            }
        }
    }
    nothing_found(&found);
}

#[test]
fn every_invariant_is_held_by_an_assertion_or_a_test() {
    let mut held: BTreeSet<u32> = BTreeSet::new();
    for path in rust_files().iter().filter(|path| *path != Path::new("tests/tidy.rs")) {
        for line in read(path).lines().map(str::trim_start) {
            let named = |number: &u32| {
                let name = format!("I{number}");
                line.split(|c: char| !c.is_alphanumeric()).any(|word| word == name)
            };
            // Not in documentation: a plain comment in a test, or the message of an assertion.
            let is_assertion = line.contains("assert") || line.contains("should_panic");
            if (line.starts_with("// ") || is_assertion || line.contains("\"I"))
                && !line.starts_with("///")
            {
                held.extend((1..=9).filter(named));
            }
        }
    }
    let missing: Vec<String> =
        (1..=9).filter(|number| !held.contains(number)).map(|n| format!("I{n}")).collect();
    nothing_found(&missing);
}

#[test]
fn documents_link_only_to_what_is_there() {
    let mut found = Vec::new();
    let mut links = 0;
    for path in files("", &[".md"]) {
        let text = read(&path);
        for (number, line) in text.lines().enumerate() {
            for (at, _) in line.match_indices("](") {
                let target = &line[at + 2..];
                let target = &target[..target.find(')').unwrap_or(target.len())];
                let file = target.split('#').next().unwrap_or_default();
                if target.contains("://") || file.is_empty() {
                    continue;
                }
                links += 1;
                let from = root().join(&path);
                if !from.parent().unwrap().join(file).exists() {
                    found.push(format!("{}:{}: {target}", path.display(), number + 1));
                }
            }
            // Paths of this repository in backticks are promises too.
            for quoted in line.split('`').skip(1).step_by(2) {
                let is_path = ["src/", "tests/", "docs/", "examples/", "operators/", "benches/"]
                    .iter()
                    .any(|start| quoted.starts_with(start));
                let plain = !quoted.contains(['*', '<', ' ', '{']);
                if is_path && plain && !root().join(quoted).exists() {
                    found.push(format!("{}:{}: {quoted}", path.display(), number + 1));
                }
            }
        }
    }
    nothing_found(&found);
    assert!(links > 5, "the test sees only {links} links");
}

#[test]
fn every_chapter_of_the_guide_is_in_its_summary_and_its_programs_are_compiled() {
    let summary = read(Path::new("docs/guide/src/SUMMARY.md"));
    let compiled = read(Path::new("src/lib.rs"));
    let mut found = Vec::new();
    let chapters = files("docs/guide/src", &[".md"]);
    for path in &chapters {
        let name = path.file_stem().unwrap().to_str().unwrap();
        if name == "SUMMARY" {
            continue;
        }
        if !summary.contains(&format!("]({name}.md)")) {
            found.push(format!("{}: not in the summary", path.display()));
        }
        if !compiled.contains(&format!("{name:?} ")) {
            found.push(format!("{}: not compiled by src/lib.rs", path.display()));
        }
    }
    nothing_found(&found);
    assert!(chapters.len() > 10, "the test sees only {} chapters", chapters.len());
}

#[test]
fn documents_name_only_tests_that_are_there() {
    let tests: BTreeSet<String> = rust_files()
        .iter()
        .flat_map(|path| read(path).lines().map(str::to_owned).collect::<Vec<_>>())
        .filter_map(|line| {
            let name = line.trim_start().strip_prefix("fn ")?.split('(').next()?;
            Some(name.to_owned())
        })
        .collect();
    let mut found = Vec::new();
    let mut named = 0;
    for path in files("docs", &[".md"]) {
        for (number, line) in read(&path).lines().enumerate() {
            for quoted in line.split('`').skip(1).step_by(2) {
                let words = quoted.split('_').count();
                let is_name = quoted
                    .chars()
                    .all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_');
                if is_name && words >= 5 {
                    named += 1;
                    if !tests.contains(quoted) {
                        found.push(format!("{}:{}: {quoted}", path.display(), number + 1));
                    }
                }
            }
        }
    }
    nothing_found(&found);
    assert!(named > 5, "the test sees only {named} names of tests");
}

#[test]
fn nothing_of_the_machine_that_wrote_it_is_in_the_repository() {
    let homes = [["/ro", "ot/"].concat(), ["/ho", "me/"].concat(), ["/Us", "ers/"].concat()];
    let hosts = ["cra", "tes.io"].concat();
    let mut found = Vec::new();
    let kinds = [".rs", ".md", ".toml", ".txt", "NOTICE", "run", "test", "setup"];
    for path in files("", &kinds) {
        let Ok(text) = fs::read_to_string(root().join(&path)) else { continue };
        for (number, line) in text.lines().enumerate() {
            if homes.iter().any(|home| line.contains(home.as_str())) || line.contains(&hosts) {
                found.push(format!("{}:{}: {}", path.display(), number + 1, line.trim()));
            }
        }
    }
    nothing_found(&found);
}

#[test]
fn tls_brings_no_large_c_library() {
    let lock = read(Path::new("Cargo.lock"));
    let packages: Vec<&str> =
        lock.lines().filter_map(|line| line.strip_prefix("name = ")).collect();
    assert!(packages.contains(&"\"rustls\""), "the test reads the wrong file");
    // It comes with default features of object stores, HTTP clients and metrics, and takes minutes to build. `ring` does it.
    let found: Vec<String> = ["aws-lc-sys", "aws-lc-rs", "openssl-sys", "native-tls"]
        .iter()
        .filter(|name| packages.contains(&format!("\"{name}\"").as_str()))
        .map(|name| format!("Cargo.lock: {name}: choose features without it"))
        .collect();
    nothing_found(&found);
}
