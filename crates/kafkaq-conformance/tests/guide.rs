//! Each guide's first sections, copied into an empty crate as a reader would, compile and pass.

#![allow(clippy::unwrap_used)]

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::Command,
};

/// The blocks of the sections that are files to copy: path and text.
fn files(guide: &'static str) -> Vec<(&'static str, &'static str)> {
    let (to_copy, _) = guide.split_once("## 4.").unwrap();
    let blocks = to_copy.split("```").skip(1).step_by(2);
    let file = |block: &'static str| {
        // After the language.
        let text = block.split_once('\n').unwrap().1;
        let path = text.lines().next().unwrap().trim_start_matches(['/', '#', ' ']);
        (path, text)
    };
    blocks.map(file).collect()
}

/// Follows a guide to the crate of that name, whose run of the kit ignores this many cases: as the guide's word, and as
/// a number.
fn follow(guide: &'static str, name: &str, (word, ignored): (&str, usize)) {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let lock = here.join("../../Cargo.lock");
    if !lock.exists() {
        // Outside of the repository there is nothing that the crate could be built with.
        return;
    }
    let dir = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(name);
    let files = files(guide);
    assert_eq!(
        files.iter().map(|(path, _)| *path).collect::<Vec<_>>(),
        ["Cargo.toml", "src/lib.rs", "tests/conformance.rs"]
    );
    for (path, text) in files {
        let mut text = text.to_owned();
        if path == "Cargo.toml" {
            assert!(text.contains(&format!("name = {name:?}")), "{text}");
            text += "\n[workspace]\n\n[patch.crates-io]\n";
            for name in ["kafkaq-core", "kafkaq-conformance"] {
                text += &format!("{name}.path = {:?}\n", here.with_file_name(name));
            }
        }
        fs::create_dir_all(dir.join(path).parent().unwrap()).unwrap();
        fs::write(dir.join(path), text).unwrap();
    }
    fs::copy(lock, dir.join("Cargo.lock")).unwrap();
    let run = Command::new(env!("CARGO"))
        .args(["test", "--offline", "--test", "conformance"])
        .current_dir(&dir)
        // One for all guides, so that what they share is built once.
        .env("CARGO_TARGET_DIR", dir.with_file_name("guide"))
        .envs([("CARGO_INCREMENTAL", "0"), ("CARGO_PROFILE_DEV_DEBUG", "0")])
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&run.stdout) + String::from_utf8_lossy(&run.stderr);
    assert!(run.status.success() && !text.contains("warning:"), "{text}");
    assert!(guide.contains(&format!("all pass but {word}, which are ignored")));
    assert!(text.contains(&format!(" 0 failed; {ignored} ignored")), "{text}");
}

#[test]
fn the_files_of_the_guide_to_stores_make_a_crate_that_passes_the_kit() {
    follow(include_str!("../docs/write-your-own-store.md"), "kafkaq-mystore", ("four", 4));
}

#[test]
fn the_files_of_the_guide_to_logs_make_a_crate_that_passes_the_kit() {
    follow(include_str!("../docs/write-your-own-log.md"), "kafkaq-mylog", ("three", 3));
}
