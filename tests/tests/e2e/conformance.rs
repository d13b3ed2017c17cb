//! containerd's own suite for snapshotters, from beside the checkout.

use std::process::Command;

use clipper_tests::clipper::driver;
use clipper_tests::daemon::{program, workspace};

#[test]
fn containerds_own_suite() {
    let suite = workspace().join("../shared/conformance/run");
    assert!(suite.is_file(), "the suite is expected at {}", suite.display());
    let snapshotter = program("clipper-snapshotter").unwrap();
    let line = format!("{} --address {{sock}} --root {{root}} --driver {}", snapshotter.display(), driver());
    let run = Command::new(&suite).arg(line).output().unwrap();
    let said = String::from_utf8_lossy(&run.stdout);
    let failed: Vec<&str> = said.lines().filter(|line| line.contains("--- FAIL")).collect();
    let passed = said.lines().filter(|line| line.trim_start().starts_with("--- PASS")).count();
    assert!(
        run.status.success() && failed.is_empty() && passed > 10,
        "{failed:#?}\n{passed} passed\n{}\n{}",
        tail(&said),
        tail(&String::from_utf8_lossy(&run.stderr))
    );
}

fn tail(text: &str) -> String {
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(60)..].join("\n")
}
