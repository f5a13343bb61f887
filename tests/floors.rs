//! The architecture as a test: the source is read as text, and the rules of the house are held against it.
//!
//! Each test shows its rule a house that breaks it first, where `<--` marks the lines that must offend, so that
//! no rule can pass by being blind; then it holds the rule against this repository and lists every offender.

use std::{collections::BTreeMap, collections::BTreeSet, fs, path::Path};

/// The floors from the ground up: the alphabet is the order of dependence.
const FLOORS: &str = "base conn edge middleware outbound server watch";

/// Names that say nothing; those of patterns are only refused in `layers/`, where an operator reads the names.
const VAGUE: &str = "common helpers manager util utils";
const PATTERNS: &str = "future layer service";

macro_rules! rules {
    ($($fact:ident: $rule:ident in $start:literal, $house:expr;)*) => {
        $(
            #[test]
            fn $fact() {
                hold($rule, $start, $house);
            }
        )*
    };
}

rules! {
    a_floor_uses_only_floors_below_it: strayed_uses in "layers/", r#"
        layers/lib.rs               | pub use crate::server::Server;
        layers/attic/dust.rs        | use crate::base::io::Io; <--
        layers/conn/info.rs         | use crate::{base::io::Io as Base, conn::{self, Addr},
        layers/conn/info.rs         |     server::{Report, Server}}; <--
        layers/edge/connect/mod.rs  | const S: &str = "\"crate::watch"; /* crate::watch */ // crate::watch
        layers/edge/listen.rs       | fn f<'a>() { '"'; super::super::watch::admin::look::<'a>() } <--
        layers/outbound/pool.rs     | use crate::meter::MeterLayer; <--
        layers/watch/admin.rs       | pub(crate) use crate::{base::io, server::Server};
    "#;

    a_middleware_never_uses_its_siblings: strayed_uses in "layers/", "
        layers/middleware/filter.rs     | use crate::middleware::MeterLayer; <--
        layers/middleware/meter.rs      | use super::filter::Rules; <--
        layers/middleware/meter.rs      | mod tests { use super::{MeterLayer, *}; }
        layers/middleware/mod.rs        | pub mod filter; pub use self::meter::Tally;
        layers/middleware/tls/accept.rs | use super::reload::Reload; use crate::base::io::Io;
        layers/middleware/tls/accept.rs | use super::super::{tls::TlsInfo, meter}; <--
        layers/middleware/tls/mod.rs    | fn f() { crate::middleware::filter::f() } <--
    ";

    no_file_is_too_long_to_read_at_a_sitting: long_files in "layers/",
        &("layers/base/full.rs |\n".repeat(500) + &"layers/base/over.rs |\n".repeat(500) + "layers/base/over.rs | <--");

    every_room_has_a_readme_row_and_a_tests_file: unfurnished_rooms in "layers/", "
        README.md                | `filter` in prose is no row
        README.md                | | `meter` | counts |
        README.md                | | [`tls`](docs) | encrypts |
        README.md                | | `server` | serves |
        layers/conn/mod.rs       | mod addr; <--
        layers/middleware/mod.rs | pub mod filter; <--
        layers/middleware/mod.rs | pub mod meter; mod private; pub(crate) mod own;
        layers/middleware/mod.rs | pub mod tls; <--
        layers/server/mod.rs     | mod accept;
        tests/memory/meter.rs    |
        tests/wire/filter.rs     |
        tests/wire/server.rs     |
    ";

    every_file_is_declared_where_the_compiler_finds_it: undeclared_files in "", "
        layers/base/mod.rs     | mod error; <--
        layers/edge.rs         | mod tcp; <--
        layers/edge/tcp.rs     | <--
        layers/lib.rs          | mod edge; // mod base;
        tests/floors.rs        |
        tests/memory/main.rs   | mod support;
        tests/memory/orphan.rs | <--
        tests/support/drip.rs  | <--
        tests/support/mod.rs   | pub mod stall;
        tests/support/stall.rs |
        tests/vectors/v1.rs    | <--
    ";

    every_name_is_the_name_of_a_thing: empty_names in "", "
        layers/base/mod.rs                | mod error; mod util {} <--
        layers/middleware/frame/future.rs | <--
        layers/server/manager/mod.rs      | <--
        tests/support/service.rs          |
        tests/support/utils.rs            | <--
    ";

    a_feature_is_named_after_its_room: homeless_features in "Cargo.toml", r#"
        Cargo.toml                              | [features]
        Cargo.toml                              | default = []
        Cargo.toml                              | fast = ["proxy-protocol"] <--
        Cargo.toml                              | full = ["fast"]
        Cargo.toml                              | proxy-protocol = []
        Cargo.toml                              | [lints]
        Cargo.toml                              | workspace = true
        layers/middleware/proxy_protocol/mod.rs |
    "#;

    every_io_is_in_the_table_of_vectored_writes: untested_ios in "layers/", "
        layers/middleware/meter.rs    | pin_project! { pub struct MeterIo<I> {} } <--
        layers/middleware/meter.rs    | struct InnerIo; pub struct Tally;
        layers/middleware/throttle.rs | pub struct ThrottleIo;
        tests/memory/io.rs            | use tower_net::throttle::{
        tests/memory/io.rs            |     ThrottleIo}; // MeterIo
    ";

    every_metric_is_documented_and_seen_by_a_test: unknown_metrics in "layers/", r#"
        layers/lib.rs         | //! | `tower_net_opened_total` | counter | ... `tower_net_lost` |
        layers/meter.rs       | counter!("tower_net_opened_total"); gauge!("tower_net_active") <--
        layers/meter.rs       | gauge!("tower_net_lost"); <--
        tests/memory/meter.rs | metrics.of("tower_net_opened_total"); "tower_net_active"
    "#;

    every_close_reason_is_seen_by_a_test: untested_reasons in "layers/conn/reason.rs", r#"
        layers/conn/reason.rs | Idle = "idle",
        layers/conn/reason.rs | Lost = "lost", <--
        layers/conn/reason.rs | Self::Lost => 1,
        tests/memory/a.rs     | assert_eq!(reason, CloseReason::Idle);
    "#;

    nothing_unwraps_outside_its_tests: unwraps in "layers/", "
        layers/base/time.rs | #[cfg(test)] count_reads();
        layers/base/time.rs | now.unwrap_or(then).unwrap() <--
        layers/base/time.rs | #[cfg(test)]
        layers/base/time.rs | mod tests {
        layers/base/time.rs |     fn f() { a.unwrap(); b.unwrap() }
        layers/base/time.rs | }
    ";
}

// === The rules: each tells at which lines of a file it is broken, and how

type Offend<'a> = &'a mut dyn FnMut(usize, String);

fn strayed_uses(tree: &Tree, file: &str, offend: Offend<'_>) {
    let (home, rooms) = (module(file), rooms(tree, "layers/middleware/"));
    for (line, path) in paths(&code(&tree[file])) {
        // `super` in an inner module is this very file: there only the name of a room counts.
        let from_root = path[0] == "crate";
        let counts = |name| from_root || rooms.contains(name);
        let offence = match (&home[..], &place(&path, &home)[..]) {
            (["lib"], _) => continue,
            (_, [name]) if from_root && !lists(FLOORS, name) => format!("`{name}` is not a floor"),
            ([own, ..], [up]) if up > own && lists(FLOORS, up) => format!("`{own}` uses `{up}`"),
            (["middleware", own, ..], ["middleware", name]) if own != name && counts(name) => {
                format!("`{own}` uses its sibling `{name}`")
            }
            _ => continue,
        };
        offend(line, offence);
    }
}

fn long_files(tree: &Tree, file: &str, offend: Offend<'_>) {
    let lines = tree[file].lines().count();
    if lines > 500 {
        offend(lines, "more than 500 lines".to_owned());
    }
}

/// A room is what users see: a public module of a floor, or the floor itself where it is open.
fn unfurnished_rooms(tree: &Tree, file: &str, offend: Offend<'_>) {
    let ([floor], true) = (&module(file)[..], file.ends_with("/mod.rs")) else {
        return;
    };
    let code = code(text(tree, file));
    let mut rooms = names(&code, "pub mod ");
    if rooms.is_empty() {
        rooms.push((1, floor));
    }
    for (line, room) in rooms {
        let plate = format!("`{room}`");
        let mut lines = text(tree, "README.md").lines();
        if !lines.any(|line| line.starts_with('|') && line.contains(&plate)) {
            offend(
                line,
                format!("no table of README.md has a row with {plate}"),
            );
        }
        let [memory, wire] = ["memory", "wire"].map(|kind| format!("tests/{kind}/{room}.rs"));
        if !tree.contains_key(&memory) && !tree.contains_key(&wire) {
            offend(line, format!("there is neither {memory} nor {wire}"));
        }
    }
}

fn undeclared_files(tree: &Tree, file: &str, offend: Offend<'_>) {
    let mut path = file.trim_end_matches(".rs");
    path = path.trim_end_matches("/mod");
    let (folder, module) = match path.rsplit_once('/') {
        // Cargo knows the roots, and without tests/support no test would compile.
        Some((_, "lib" | "main") | ("tests", "support")) | None => return,
        Some(("tests", _)) if !file.ends_with("/mod.rs") => return,
        Some(("tests/vectors", _)) => return offend(1, "code among the data".to_owned()),
        Some(place) => place,
    };
    let declares = ["lib", "main", "mod"].map(|opening| {
        let opening = code(text(tree, &format!("{folder}/{opening}.rs")));
        opening.contains(&format!("mod {module} ;"))
    });
    if !declares.contains(&true) {
        offend(1, format!("nothing says `mod {module};`"));
    }
    let (beside, mut files) = (file.replace(".rs", "/"), tree.keys());
    if files.any(|file| file.starts_with(&beside)) {
        offend(1, format!("belongs in {beside}mod.rs"));
    }
}

fn empty_names(tree: &Tree, file: &str, offend: Offend<'_>) {
    let path = format!("mod {} \n", module(file).join(" mod "));
    for code in [path, code(&tree[file])] {
        for (line, name) in names(&code, "mod ") {
            let is_pattern = lists(PATTERNS, name) && file.starts_with("layers/");
            if is_pattern || lists(VAGUE, name) {
                offend(line, format!("`{name}` names no thing"));
            }
        }
    }
}

fn homeless_features(tree: &Tree, file: &str, offend: Offend<'_>) {
    let (rooms, mut section) = (rooms(tree, "layers/"), "");
    for (at, line) in tree[file].lines().enumerate() {
        section = if line.starts_with('[') { line } else { section };
        let (name, _) = line.split_at(line.find(" = ").unwrap_or(0));
        let is_known = lists("default full", name) || rooms.contains(&*name.replace('-', "_"));
        if section == "[features]" && !name.is_empty() && !is_known {
            offend(at + 1, format!("no room is called `{name}`"));
        }
    }
}

fn untested_ios(tree: &Tree, file: &str, offend: Offend<'_>) {
    let table = code(text(tree, "tests/memory/io.rs"));
    for (line, io) in names(&code(&tree[file]), "pub struct ") {
        if io.ends_with("Io") && !lists(&table, io) {
            offend(line, format!("tests/memory/io.rs does not name `{io}`"));
        }
    }
}

/// Names in the source are in the table of the front page, and somewhere among the tests.
fn unknown_metrics(tree: &Tree, file: &str, offend: Offend<'_>) {
    if file == "layers/lib.rs" {
        return;
    }
    let table = text(tree, "layers/lib.rs");
    let is_tested = |name: &str| {
        let mut files = tree.iter();
        files.any(|(file, text)| {
            (file.starts_with("tests/")
                || file.starts_with("layers/") && text.contains("mod tests"))
                && text.contains(&format!("\"{name}\""))
        })
    };
    for (at, line) in tree[file].lines().enumerate() {
        for literal in line
            .split('"')
            .filter(|word| word.starts_with("tower_net_"))
        {
            if !table.contains(&format!("`{literal}`")) {
                offend(
                    at + 1,
                    format!("`{literal}` is in no table of layers/lib.rs"),
                );
            } else if !is_tested(literal) {
                offend(at + 1, format!("no test looks at `{literal}`"));
            }
        }
    }
}

/// A reason that no test names is one that nothing need ever give.
fn untested_reasons(tree: &Tree, file: &str, offend: Offend<'_>) {
    for (at, line) in tree[file].lines().enumerate() {
        let Some((name, _)) = line.trim().split_once(" = \"") else {
            continue;
        };
        let named = format!("CloseReason::{name}");
        let mut files = tree.iter();
        let is_tested = files.any(|(file, text)| {
            file.starts_with("tests/") && !file.ends_with("ways_out.rs") && text.contains(&named)
        });
        if !is_tested {
            offend(at + 1, format!("no test names {named}"));
        }
    }
}

fn unwraps(tree: &Tree, file: &str, offend: Offend<'_>) {
    let code = code(&tree[file]);
    let tests = code.find("# [ cfg ( test ) ] \nmod ");
    for (line, _) in names(&code[..tests.unwrap_or(code.len())], ". unwrap ( ") {
        offend(line, "say with `expect` why it cannot fail".to_owned());
    }
}

/// Holds a rule against a house that breaks it, then against this repository, in the files under `start`.
fn hold(rule: fn(&Tree, &str, Offend<'_>), start: &str, house: &str) {
    for (tree, marked) in [build(house), (repository(), BTreeSet::new())] {
        let (mut places, mut report) = (BTreeSet::new(), String::new());
        for file in tree.keys() {
            if file.starts_with(start) && (file.ends_with(".rs") || file == start) {
                rule(&tree, file, &mut |line, offence| {
                    places.insert(format!("{file}:{line}"));
                    report += &format!("\n{file}:{line}: {offence}");
                });
            }
        }
        assert!(places == marked, "expected {marked:?}, found:{report}");
    }
}

// === Files: the texts of a repository by path

type Tree = BTreeMap<String, String>;

/// Builds a house from rows of `file | text`, and lists the places marked with `<--`.
fn build(house: &str) -> (Tree, BTreeSet<String>) {
    let (mut tree, mut marked) = (Tree::new(), BTreeSet::new());
    for row in house.lines() {
        if let Some((file, line)) = row.split_once('|') {
            let (file, line) = (file.trim(), line.trim());
            let text: &mut String = tree.entry(file.to_owned()).or_default();
            *text += &format!("{}\n", line.trim_end_matches("<--"));
            if line.ends_with("<--") {
                marked.insert(format!("{file}:{}", text.lines().count()));
            }
        }
    }
    (tree, marked)
}

fn repository() -> Tree {
    let mut tree = Tree::new();
    let mut entries = Vec::from(["Cargo.toml", "README.md", "layers", "tests"].map(String::from));
    while let Some(entry) = entries.pop() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(&entry);
        if let Ok(children) = path.read_dir() {
            for child in children.flatten() {
                entries.push(format!("{entry}/{}", child.file_name().to_string_lossy()));
            }
        } else if let Ok(text) = fs::read_to_string(path) {
            tree.insert(entry, text);
        }
    }
    assert!(tree.contains_key("layers/lib.rs"), "this is not the house");
    tree
}

fn text<'t>(tree: &'t Tree, file: &str) -> &'t str {
    tree.get(file).map_or("", |text| text)
}

/// The module that a file is: `layers/conn/info.rs` is `conn`, `info`.
fn module(file: &str) -> Vec<&str> {
    let mut steps: Vec<_> = file.split(['/', '.']).collect();
    steps.retain(|step| !lists("layers mod rs", step));
    steps
}

/// The rooms in the files whose path starts so: what lies directly on a floor is a room.
fn rooms<'t>(tree: &'t Tree, start: &str) -> BTreeSet<&'t str> {
    let mut rooms = BTreeSet::new();
    for file in tree.keys() {
        match module(file)[..] {
            [_, room] if file.starts_with(start) && room != "macros" => rooms.insert(room),
            _ => false,
        };
    }
    rooms
}

// === Code: its words and signs, each followed by a space; comments and literals are left out

fn code(mut text: &str) -> String {
    let mut code = String::new();
    while let Some(first) = text.chars().next() {
        let inert = inert_len(text);
        let len = match text.find(|c: char| !c.is_alphanumeric() && c != '_') {
            _ if inert > 0 => inert,
            Some(0) if text.starts_with("::") => 2,
            Some(0) => first.len_utf8(),
            Some(end) => end,
            None => text.len(),
        };
        let (word, rest) = text.split_at(len);
        if inert > 0 || first.is_whitespace() {
            code.extend(word.matches('\n'));
        } else {
            code.extend([word, " "]);
        }
        text = rest;
    }
    code
}

/// The length of the comment or literal that a text begins with; zero if it begins with neither.
fn inert_len(text: &str) -> usize {
    let through = |end: &str| match text.find(end) {
        Some(at) => at + end.len(),
        None => text.len(),
    };
    match text.as_bytes() {
        [b'/', b'/', ..] => through("\n"),
        [b'/', b'*', ..] => through("*/"),
        [b'r', b'#', b'"', ..] => through("\"#"),
        [b'"', ..] | [b'\'', b'\\', ..] | [b'\'', _, b'\'', ..] => {
            let (bytes, mut end) = (text.as_bytes(), 1);
            while bytes[end] != bytes[0] {
                end += if bytes[end] == b'\\' { 2 } else { 1 };
            }
            end + 1
        }
        _ => 0,
    }
}

/// What follows these words in code, each with its line.
fn names<'c>(code: &'c str, words: &str) -> Vec<(usize, &'c str)> {
    let mut names = Vec::new();
    for (line, text) in (1..).zip(code.lines()) {
        for rest in text.split(words).skip(1) {
            names.push((line, rest.split(' ').next().unwrap_or(rest)));
        }
    }
    names
}

/// Every path that code names, with its line; `a::{b, c::d}` is `a`, `a::b`, `a::c` and `a::c::d`.
fn paths(code: &str) -> Vec<(usize, Vec<&str>)> {
    let (mut paths, mut path, mut last) = (Vec::new(), Vec::new(), "");
    let mut braces = vec![Vec::new()]; // What each open brace continues: `a` in `a::{b, c}`, mostly nothing.
    for (line, text) in (1..).zip(code.lines()) {
        for word in text.split_whitespace() {
            match (last, word) {
                ("::", "{") => braces.push(path.clone()),
                (_, "{") => braces.push(Vec::new()),
                (_, "}") => drop(braces.pop()),
                ("::", _) | (_, "::") => {}
                ("{" | ",", _) => path = braces[braces.len() - 1].clone(),
                _ => path.clear(),
            }
            if !lists(":: { }", word) {
                path.push(word);
                paths.push((line, path.clone()));
            }
            last = word;
        }
    }
    paths
}

/// The place in the crate that a path in `home` leads to; one that begins otherwise is taken to lead inside.
fn place<'c>(path: &[&'c str], home: &[&'c str]) -> Vec<&'c str> {
    let mut place = home.to_vec();
    for step in path {
        match *step {
            "crate" => place.clear(),
            "self" => {}
            "super" => drop(place.pop()),
            name => place.push(name),
        }
    }
    place
}

/// Whether a name is in a list of them.
fn lists(names: &str, name: &str) -> bool {
    names
        .split_whitespace()
        .any(|it| it == name)
}
