//! The picture of the rooms in docs/architecture.md, checked: who uses whom.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// Rooms and the rooms they may use. `error`, `settings` and the core crate are open to all.
const ALLOWED: &[(&str, &[&str])] = &[
    (
        "api",
        &[
            "partition",
            "ingest",
            "capture",
            "cache",
            "jobs",
            "maintenance",
            "worker",
            "shmem",
            "pg",
        ],
    ),
    (
        "worker",
        &[
            "partition",
            "ingest",
            "capture",
            "jobs",
            "maintenance",
            "shmem",
            "pg",
        ],
    ),
    ("jobs", &["partition", "pg"]),
    ("maintenance", &["partition", "pg"]),
    ("ingest", &["partition", "shmem", "pg"]),
    ("capture", &["shmem", "pg"]),
    ("cache", &["shmem", "pg"]),
    ("partition", &["shmem", "pg"]),
    ("shmem", &["pg"]),
    ("settings", &["pg"]),
    ("pg", &[]),
    ("error", &[]),
];

fn sources(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
}

#[test]
fn rooms_use_only_the_rooms_below_them() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../src");
    let mut files = Vec::new();
    sources(&root, &mut files);
    assert!(
        files.len() > 20,
        "the sources are not where they are expected"
    );
    let mut wrong = BTreeSet::new();
    for file in files {
        let relative = file.strip_prefix(&root).unwrap();
        let first = relative.iter().next().unwrap().to_str().unwrap();
        let room = first.trim_end_matches(".rs");
        if matches!(room, "lib" | "server_tests") {
            continue;
        }
        let allowed = ALLOWED
            .iter()
            .find(|(name, _)| *name == room)
            .unwrap_or_else(|| panic!("room {room} is not in the picture"))
            .1;
        let text = std::fs::read_to_string(&file).unwrap();
        for used in text.split("crate::").skip(1) {
            let mut targets: Vec<String> = Vec::new();
            if let Some(list) = used.strip_prefix('{') {
                let list = &list[..list.find("};").unwrap_or(list.len())];
                let mut depth = 0;
                let mut word = String::new();
                for letter in list.chars() {
                    match letter {
                        '{' => depth += 1,
                        '}' => depth -= 1,
                        ',' if depth == 0 => targets.push(std::mem::take(&mut word)),
                        _ if depth == 0 => word.push(letter),
                        _ => {}
                    }
                }
                targets.push(word);
            } else {
                targets.push(used.to_owned());
            }
            for target in targets {
                let name: String = target
                    .trim_start()
                    .chars()
                    .take_while(|letter| letter.is_alphanumeric() || *letter == '_')
                    .collect();
                let open = matches!(name.as_str(), "" | "error" | "settings");
                if !open && name != room && !allowed.contains(&name.as_str()) {
                    wrong.insert(format!("{} uses {name}", relative.display()));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

/// Raw server calls stay in their room: elsewhere only types and constants of the bindings are used.
#[test]
fn unsafe_code_stays_in_its_rooms() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../src");
    let mut files = Vec::new();
    sources(&root, &mut files);
    let wrong: Vec<_> = files
        .iter()
        .filter(|file| !file.starts_with(root.join("pg")) && !file.starts_with(root.join("shmem")))
        .filter(|file| std::fs::read_to_string(file).unwrap().contains("unsafe {"))
        .collect();
    assert!(wrong.is_empty(), "{wrong:#?}");
}
