//! Reads the sources and fails on what the design forbids: wrong arrows, long files, IO in pure folders.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Which folders each folder of `src/` may use (DESIGN §2). Beyond that page: `net` takes `SslMode` from `cluster`,
/// `store` keeps `cluster`'s states, `workflow` numbers nodes with `base`. `config` sees the `Settings` of all.
const MAY_USE: &[(&str, &str)] = &[
    ("base", ""),
    ("wire", "base"),
    ("auth", "base"),
    ("cluster", "base"),
    ("telemetry", "base"),
    ("routing", "base cluster"),
    ("net", "base wire cluster telemetry"),
    ("store", "base cluster telemetry"),
    ("workflow", "base store telemetry"),
    ("server", "base wire auth cluster net telemetry"),
    ("pool", "base cluster server telemetry"),
    ("node", "base cluster server telemetry"),
    ("client", "base wire auth net routing cluster server pool telemetry"),
    ("keeper", "base cluster store server node telemetry net"),
    ("recovery", "base cluster store workflow node keeper server telemetry net"),
    ("maintenance", "base cluster store workflow node keeper server telemetry net"),
    (
        "admin",
        "base wire auth cluster telemetry routing net store workflow server pool node client keeper recovery maintenance",
    ),
    (
        "config",
        "base wire auth cluster telemetry routing net store workflow server pool node client keeper recovery maintenance admin",
    ),
    ("cli", "*"),
    ("app", "*"),
];

/// Folders without sockets, files and clocks: these words must not appear in their code.
const PURE: &[&str] = &["base", "wire", "auth", "cluster", "routing"];
const IMPURE_WORDS: &[&str] = &[
    "std::fs",
    "tokio::fs",
    "std::net::Tcp",
    "std::net::Udp",
    "std::os::unix::net",
    "tokio::net",
    "tokio::time",
    "Instant::now",
    "SystemTime::now",
    "std::process",
];
/// The files of pure folders that may, with the reason.
const PURE_EXCEPT: &[&str] = &[
    "src/auth/files.rs", // reads the secret files, for the steps that do not
];

const MAX_LINES_BEFORE_TESTS: usize = 600;

#[test]
fn every_folder_uses_only_lower_ones() {
    let table: BTreeMap<&str, Vec<&str>> =
        MAY_USE.iter().map(|(folder, uses)| (*folder, uses.split_whitespace().collect())).collect();
    let mut faults = Vec::new();
    for file in sources("src") {
        let Some(folder) = folder_of(&file) else { continue };
        let Some(allowed) = table.get(folder.as_str()) else {
            faults.push(format!("{}: folder `{folder}` is not in the level table", file.display()));
            continue;
        };
        if allowed.contains(&"*") {
            continue;
        }
        let text = code_before_tests(&read(&file));
        for (number, line) in text.lines().enumerate() {
            for used in folders_used(line) {
                if used != folder && !allowed.contains(&used.as_str()) {
                    faults.push(format!("{}:{}: `{folder}` may not use `{used}`", file.display(), number + 1));
                }
            }
        }
    }
    assert_none(faults);
}

#[test]
fn the_level_table_has_no_cycle() {
    // A folder's uses all stand above it in the table, or are its equals without using it back.
    let place: BTreeMap<&str, usize> = MAY_USE.iter().enumerate().map(|(n, (folder, _))| (*folder, n)).collect();
    let faults = MAY_USE
        .iter()
        .flat_map(|(folder, uses)| uses.split_whitespace().filter(|u| *u != "*").map(move |used| (*folder, used)))
        .filter(|(folder, used)| place.get(used).is_none_or(|p| *p >= place[folder]))
        .map(|(folder, used)| format!("{folder} -> {used}"))
        .collect();
    assert_none(faults);
}

#[test]
fn every_file_says_its_job_in_its_first_line() {
    let faults = all_rust()
        .into_iter()
        .filter(|file| !read(file).lines().next().is_some_and(|line| line.starts_with("//! ") && line.len() > 12))
        .map(|file| format!("{}: the first line is not a `//!` line", file.display()))
        .collect();
    assert_none(faults);
}

#[test]
fn no_file_is_too_long() {
    let faults = all_rust()
        .into_iter()
        .map(|file| (code_before_tests(&read(&file)).lines().count(), file))
        .filter(|(lines, _)| *lines > MAX_LINES_BEFORE_TESTS)
        .map(|(lines, file)| {
            format!("{}: {lines} lines before its tests (limit {MAX_LINES_BEFORE_TESTS})", file.display())
        })
        .collect();
    assert_none(faults);
}

#[test]
fn pure_folders_do_no_io_and_read_no_clock() {
    let mut faults = Vec::new();
    for file in sources("src") {
        let name = file.display().to_string();
        let Some(folder) = folder_of(&file) else { continue };
        if !PURE.contains(&folder.as_str()) || PURE_EXCEPT.contains(&name.as_str()) {
            continue;
        }
        for (number, line) in code_before_tests(&read(&file)).lines().enumerate() {
            let code = line.split("//").next().unwrap_or_default();
            faults.extend(
                IMPURE_WORDS
                    .iter()
                    .filter(|word| code.contains(**word))
                    .map(|word| format!("{name}:{}: `{word}` in a pure folder", number + 1)),
            );
        }
    }
    assert_none(faults);
}

#[test]
fn every_test_that_the_manual_names_exists() {
    let tests: Vec<String> = all_rust()
        .iter()
        .flat_map(|file| read(file).lines().map(str::to_owned).collect::<Vec<_>>())
        .filter_map(|line| Some(line.trim_start().trim_start_matches("async ").strip_prefix("fn ")?.to_owned()))
        .collect();
    let page = read(Path::new("src/manual/protocol-hazards.md"));
    // Of `folder::file::name` the name; what stands for `*` and `…` may be anything, and a file may be named as a whole.
    let exists = |name: &str| {
        let last = name.rsplit("::").next().unwrap_or_default();
        let parts: Vec<&str> = last.split(['*', '…']).filter(|part| !part.is_empty()).collect();
        let file = name.trim_end_matches("::*").replace("::", "/");
        let is_file = [format!("src/{file}.rs"), format!("src/{file}/mod.rs"), format!("tests/it/{file}.rs")];
        is_file.iter().any(|path| Path::new(path).exists())
            || !parts.is_empty()
                && tests.iter().any(|test| {
                    let test = test.split('(').next().unwrap_or_default();
                    match last == parts[0] {
                        true => test == last,
                        false => parts.iter().all(|part| test.contains(part)),
                    }
                })
    };
    let named: Vec<&str> = page.split('`').skip(1).step_by(2).filter(|word| word.contains("::")).collect();
    assert!(named.len() > 20, "the page names its tests: {named:?}");
    assert_none(named.into_iter().filter(|name| !exists(name)).map(|name| format!("{name}: no such test")).collect());
}

#[test]
fn no_path_of_a_developers_machine() {
    // Written in two halves so that this file does not find itself.
    let words = [concat!("/wo", "rk/"), concat!("/ho", "me/"), concat!("/tmp", "/w/")];
    let mut files = all_rust();
    files.extend(files_under(Path::new("conf"), &|_| true));
    files.extend(files_under(Path::new("src/manual"), &|_| true));
    files.extend(["README.md", "CHANGELOG.md", "tests/run", "tests/perf", "tests/setup"].map(PathBuf::from));
    let mut faults = Vec::new();
    for file in files {
        for (number, line) in read(&file).lines().enumerate() {
            faults.extend(
                words
                    .iter()
                    .filter(|w| line.contains(**w))
                    .map(|w| format!("{}:{}: `{w}`", file.display(), number + 1)),
            );
        }
    }
    assert_none(faults);
}

fn assert_none(faults: Vec<String>) {
    assert!(faults.is_empty(), "{} faults:\n{}", faults.len(), faults.join("\n"));
}

fn all_rust() -> Vec<PathBuf> {
    ["src", "tests", "benches", "fuzz"].iter().flat_map(|folder| sources(folder)).collect()
}

fn sources(folder: &str) -> Vec<PathBuf> {
    files_under(Path::new(folder), &|path| path.extension().is_some_and(|e| e == "rs"))
}

fn files_under(folder: &Path, wanted: &dyn Fn(&Path) -> bool) -> Vec<PathBuf> {
    let Ok(entries) = std::fs::read_dir(folder) else { return Vec::new() };
    let mut found = Vec::new();
    for path in entries.flatten().map(|entry| entry.path()) {
        if path.is_dir() {
            if !path.ends_with("target") && !path.ends_with("corpus") {
                found.extend(files_under(&path, wanted));
            }
        } else if wanted(&path) {
            found.push(path);
        }
    }
    found.sort();
    found
}

fn read(path: &Path) -> String {
    std::fs::read(path).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default()
}

/// `src/<folder>/…`; `None` for files directly in `src/`.
fn folder_of(file: &Path) -> Option<String> {
    let mut parts = file.strip_prefix("src").ok()?.components();
    let first = parts.next()?.as_os_str().to_str()?.to_owned();
    parts.next().map(|_| first)
}

/// Everything above the first `#[cfg(test)]` that opens a module.
fn code_before_tests(text: &str) -> String {
    let lines: Vec<&str> = text.lines().collect();
    let end = lines
        .windows(2)
        .position(|pair| pair[0].trim() == "#[cfg(test)]" && pair[1].trim_start().starts_with("mod "))
        .unwrap_or(lines.len());
    lines[..end].join("\n")
}

/// The folders named as `crate::folder` or in `use crate::{folder::…, …}` on one line, comments aside.
fn folders_used(line: &str) -> Vec<String> {
    let code = line.split("//").next().unwrap_or_default();
    let known = |name: &str| MAY_USE.iter().any(|(folder, _)| *folder == name);
    let word = |text: &str| text.chars().take_while(|c| c.is_ascii_alphanumeric() || *c == '_').collect::<String>();
    let mut found = Vec::new();
    for rest in code.split("crate::").skip(1) {
        if let Some(group) = rest.strip_prefix('{') {
            let mut depth = 0_i32;
            let mut start = true;
            for (at, c) in group.char_indices() {
                if start && depth == 0 && c.is_ascii_alphabetic() {
                    found.push(word(&group[at..]));
                }
                start = (c == ',' || (start && c == ' ')) && depth == 0;
                depth += i32::from(c == '{') - i32::from(c == '}');
                if depth < 0 {
                    break;
                }
            }
        } else {
            found.push(word(rest));
        }
    }
    found.retain(|name| known(name));
    found
}

#[test]
fn uses_are_found_in_every_form() {
    assert_eq!(folders_used("use crate::base::NodeId;"), ["base"]);
    assert_eq!(folders_used("use crate::{base::{A, wire}, net};"), ["base", "net"]);
    assert_eq!(folders_used("let x = crate::wire::peek(crate::auth::y()); // crate::pool"), ["wire", "auth"]);
}
