//! The guide's first sections, copied into an empty crate as a reader copies them, compile and pass.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::Command,
};

const GUIDE: &str = include_str!("../docs/write-your-own-store.md");

/// The blocks of the sections that are files to copy: path and text.
fn files() -> Vec<(&'static str, &'static str)> {
    let (to_copy, _) = GUIDE.split_once("## 4.").unwrap();
    let blocks = to_copy.split("```").skip(1).step_by(2);
    let file = |block: &'static str| {
        // After the language.
        let text = block.split_once('\n').unwrap().1;
        let path = text.lines().next().unwrap().trim_start_matches(['/', '#', ' ']);
        (path, text)
    };
    blocks.map(file).collect()
}

#[test]
fn the_files_of_the_guide_make_a_crate_that_passes_the_kit() {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    let lock = here.join("../../Cargo.lock");
    if !lock.exists() {
        // Outside of the repository there is nothing that the crate could be built with.
        return;
    }
    let dir = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("kafkaq-mystore");
    let files = files();
    assert_eq!(
        files.iter().map(|(path, _)| *path).collect::<Vec<_>>(),
        ["Cargo.toml", "src/lib.rs", "tests/conformance.rs"]
    );
    for (path, text) in files {
        let mut text = text.to_owned();
        if path == "Cargo.toml" {
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
        .env("CARGO_TARGET_DIR", dir.with_file_name("guide"))
        .envs([("CARGO_INCREMENTAL", "0"), ("CARGO_PROFILE_DEV_DEBUG", "0")])
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&run.stdout) + String::from_utf8_lossy(&run.stderr);
    assert!(run.status.success() && !text.contains("warning:"), "{text}");
    // What the guide says about it.
    assert!(GUIDE.contains("all pass but four, which are ignored"));
    assert!(text.contains(" 0 failed; 4 ignored"), "{text}");
}
