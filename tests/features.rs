//! No feature pulls in what it does not need: `layers/features.md`, which the crate's documentation shows, against
//! what `cargo tree` finds.

use std::{
    collections::{BTreeMap, BTreeSet},
    env,
    fmt::Write,
    process::Command,
};

type Names = BTreeSet<String>;

/// What the library depends on with some features: itself, and by that.
#[derive(Debug, Default, PartialEq, Eq)]
struct Needs {
    itself: Names,
    beyond: Names,
}

#[test]
fn every_feature_brings_what_its_documentation_says_and_no_more() {
    let documented = read(include_str!("../layers/features.md"));
    let actual = ask_cargo(&features(include_str!("../Cargo.toml")));

    let surprises = differences(&documented, &actual);

    assert!(
        surprises.is_empty(),
        "{surprises}\nIf that is meant, layers/features.md is:\n\n{}",
        table(&actual)
    );
}

#[test]
fn all_features_together_bring_what_each_brings_alone() {
    let alone = ask_cargo(&features(include_str!("../Cargo.toml")));
    let union: Names = alone
        .values()
        .flat_map(|needs| needs.itself.union(&needs.beyond))
        .cloned()
        .collect();

    assert_eq!(tree("full", None), union);
}

#[test]
fn a_surprise_is_named_with_its_feature() {
    let row = |text: &str| read(&format!("|a|b|c|\n|---|---|---|\n{text}"));
    let documented = row("| `tls` | `tokio-rustls` | `rustls`, `gone` |");
    let actual = row("| `tls` | `tokio-rustls`, `new` | `rustls` |");

    assert_eq!(
        differences(&documented, &actual),
        "`tls` itself: + new\n`tls` by these: - gone\n"
    );
    assert_eq!(differences(&BTreeMap::new(), &actual), "`tls` has no row\n");
    assert_eq!(
        differences(&documented, &BTreeMap::new()),
        "`tls` is no feature\n"
    );
}

/// The features, but for sets of these, and before them `none`.
fn features(manifest: &str) -> Vec<String> {
    let section = manifest.split("\n[features]\n").nth(1);
    let section = section.and_then(|rest| rest.split("\n[").next());
    let lines = section
        .expect("there are features")
        .lines();
    let names = lines.filter_map(|line| {
        line.split_once(" = ")
            .map(|(name, _)| name)
    });
    let single = names.filter(|name| !["default", "full"].contains(name));
    ["none"]
        .into_iter()
        .chain(single)
        .map(str::to_owned)
        .collect()
}

/// With each feature alone, less what is there with none.
fn ask_cargo(features: &[String]) -> BTreeMap<String, Needs> {
    let needs = |feature: &str| {
        let itself = tree(feature, Some(1));
        let beyond = &tree(feature, None) - &itself;
        Needs { itself, beyond }
    };
    let always = needs("none");
    let there = &always.itself | &always.beyond;
    let mut all: BTreeMap<_, _> = features
        .iter()
        .map(|feature| {
            let Needs { itself, beyond } = needs(feature);
            let needs = Needs {
                itself: &itself - &always.itself,
                beyond: &beyond - &there,
            };
            (feature.clone(), needs)
        })
        .collect();
    all.insert("none".to_owned(), always);
    all
}

/// The normal dependencies of the library: all, or to some depth.
fn tree(feature: &str, depth: Option<u32>) -> Names {
    let mut cargo = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .args(["tree", "--locked", "--offline", "--package", "tower-net"])
        // The same table on every machine.
        .args(["--target", "x86_64-unknown-linux-gnu", "--edges", "normal"])
        .args([
            "--prefix",
            "none",
            "--format",
            "{p}",
            "--no-default-features",
        ]);
    if feature != "none" {
        cargo.args(["--features", feature]);
    }
    if let Some(depth) = depth {
        cargo.args(["--depth", &depth.to_string()]);
    }
    let output = cargo
        .output()
        .expect("cargo runs these tests");
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    // The first line is the library.
    let names = text
        .lines()
        .skip(1)
        .filter_map(|line| line.split(' ').next());
    names.map(str::to_owned).collect()
}

// === The table

fn read(table: &str) -> BTreeMap<String, Needs> {
    let rows = table
        .lines()
        .filter(|line| line.starts_with('|'));
    let names = |cell: &str| {
        let names = cell.split('`').skip(1).step_by(2);
        names.map(str::to_owned).collect()
    };
    // The first two are the heading and the line below it.
    rows.skip(2)
        .map(|row| {
            let cells: Vec<_> = row.split('|').collect();
            let feature = cells[1].trim().trim_matches('`');
            let needs = Needs {
                itself: names(cells[2]),
                beyond: names(cells[3]),
            };
            (feature.to_owned(), needs)
        })
        .collect()
}

fn table(all: &BTreeMap<String, Needs>) -> String {
    let cell = |names: &Names| {
        let names: Vec<_> = names
            .iter()
            .map(|name| format!("`{name}`"))
            .collect();
        names.join(", ")
    };
    let mut text = "| feature | depends itself on | and by these on |\n|---|---|---|\n".to_owned();
    let rest = all
        .iter()
        .filter(|(feature, _)| *feature != "none");
    for (feature, needs) in all
        .get_key_value("none")
        .into_iter()
        .chain(rest)
    {
        let feature = match &**feature {
            "none" => "none".to_owned(),
            name => format!("`{name}`"),
        };
        let (itself, beyond) = (cell(&needs.itself), cell(&needs.beyond));
        writeln!(text, "| {feature} | {itself} | {beyond} |").expect("a string takes it");
    }
    text
}

/// Line by line what is different; nothing if nothing is.
fn differences(documented: &BTreeMap<String, Needs>, actual: &BTreeMap<String, Needs>) -> String {
    let mut text = String::new();
    let mut line = |words: String| text += &(words + "\n");
    for (feature, needs) in actual {
        let Some(said) = documented.get(feature) else {
            line(format!("`{feature}` has no row"));
            continue;
        };
        for (where_from, said, found) in [
            ("itself", &said.itself, &needs.itself),
            ("by these", &said.beyond, &needs.beyond),
        ] {
            let more = found
                .difference(said)
                .map(|name| format!(" + {name}"));
            let less = said
                .difference(found)
                .map(|name| format!(" - {name}"));
            let changes: String = more.chain(less).collect();
            if !changes.is_empty() {
                line(format!("`{feature}` {where_from}:{changes}"));
            }
        }
    }
    for feature in documented.keys() {
        if !actual.contains_key(feature) {
            line(format!("`{feature}` is no feature"));
        }
    }
    text
}
