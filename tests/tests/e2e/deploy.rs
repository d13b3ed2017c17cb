//! The files in `deploy/`: what systemd and Kubernetes are told holds together, and suits the program.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use clipper_tests::daemon::{program, workspace};
use clipper_tests::scratch::Scratch;
use serde_json::Value;

fn deployed(name: &str) -> String {
    fs::read_to_string(workspace().join("deploy").join(name)).unwrap()
}

/// `clipper-snapshotter --check` over a configuration.
fn check(config: &str) -> Output {
    let scratch = Scratch::new("check").unwrap();
    let file = scratch.join("config.toml");
    fs::write(&file, config).unwrap();
    let program = program("clipper-snapshotter").unwrap();
    Command::new(program).arg("--config").arg(file).arg("--check").output().unwrap()
}

#[test]
fn a_configuration_is_checked_without_starting_anything() {
    let scratch = Scratch::new("checked").unwrap();
    let root = scratch.join("root");
    let valid = check(&format!("root = {root:?}\naddress = {:?}\n", scratch.join("s.sock")));
    assert!(valid.status.success() && !root.exists(), "{valid:?}");
    for (config, told) in [
        ("bakground_fill = true", "bakground_fill"),
        ("[fetch]\nwait_seconds = 0", "wait_seconds"),
        ("[registry]\nfollow_refs = [\"a/b\"]", "registry.follow_refs"),
        ("log_level = \"clipper=loud\"", "log level"),
        ("root = ", "config.toml"),
    ] {
        let refused = check(config);
        let said = String::from_utf8_lossy(&refused.stderr);
        assert!(refused.status.code() == Some(1) && said.contains(told), "{config}: {said}");
    }
}

/// The directives of a unit file, in order.
fn directives(unit: &str) -> Vec<(&str, &str)> {
    unit.lines().filter(|line| !line.starts_with('#')).filter_map(|line| line.split_once('=')).collect()
}

#[test]
fn the_unit_keeps_the_mount_namespace_of_the_machine() {
    let unit = deployed("systemd/clipper-snapshotter.service");
    let all = directives(&unit);
    // Each of these would give the service a mount namespace of its own, in which containerd sees none of its mounts.
    let own_namespace = [
        "PrivateTmp",
        "PrivateDevices",
        "PrivateMounts",
        "PrivateUsers",
        "ProtectSystem",
        "ProtectHome",
        "ProtectProc",
        "ProcSubset",
        "ProtectKernelTunables",
        "ProtectKernelModules",
        "ProtectKernelLogs",
        "ProtectControlGroups",
        "ReadWritePaths",
        "ReadOnlyPaths",
        "InaccessiblePaths",
        "ExecPaths",
        "NoExecPaths",
        "TemporaryFileSystem",
        "BindPaths",
        "BindReadOnlyPaths",
        "MountAPIVFS",
        "MountFlags",
        "RootDirectory",
        "RootImage",
        "DynamicUser",
        "NetworkNamespacePath",
        "PrivateNetwork",
        "PrivateIPC",
        "LogNamespace",
    ];
    // These would keep it from its work.
    let in_the_way = ["ProtectClock", "DevicePolicy", "DeviceAllow", "RestrictSUIDSGID", "User"];
    for (name, _) in &all {
        assert!(!own_namespace.contains(name) && !in_the_way.contains(name), "{name}");
    }
    let value = |name: &str| all.iter().find(|(key, _)| *key == name).map(|(_, value)| *value);
    assert_eq!((value("KillMode"), value("Type"), value("Restart")), (Some("mixed"), Some("notify"), Some("always")));
    assert_eq!((value("NoNewPrivileges"), value("UMask")), (Some("yes"), Some("0077")));
    assert!(value("CapabilityBoundingSet").unwrap().split(' ').any(|name| name == "CAP_SYS_ADMIN"));
}

#[test]
fn systemd_takes_the_unit() {
    let installed = |name: &str| Path::new("/usr/bin").join(name).exists() || Path::new("/bin").join(name).exists();
    assert!(installed("systemd-analyze"), "scripts/setup installs systemd; it need not run");
    // Where the program is, and not where it will be.
    let scratch = Scratch::new("unit").unwrap();
    let unit = deployed("systemd/clipper-snapshotter.service");
    let program = program("clipper-snapshotter").unwrap().display().to_string();
    let file: PathBuf = scratch.join("clipper-snapshotter.service");
    fs::write(&file, unit.replace("/usr/local/bin/clipper-snapshotter", &program)).unwrap();
    let run = Command::new("systemd-analyze").args(["verify", "--man=no", "--recursive-errors=no"]).arg(&file).output();
    let run = run.unwrap();
    let said = String::from_utf8_lossy(&run.stderr);
    assert!(run.status.success() && !said.contains("clipper-snapshotter.service"), "{said}");
    let args = ["security", "--offline=yes", "--no-pager", "--threshold=60"];
    let run = Command::new("systemd-analyze").args(args).arg(&file).output().unwrap();
    let said = format!("{}{}", String::from_utf8_lossy(&run.stdout), String::from_utf8_lossy(&run.stderr));
    assert!(run.status.success() && said.contains("Overall exposure level"), "{said}");
}

/// The documents of a YAML file.
fn documents(text: &str) -> Vec<Value> {
    text.split("\n---\n").map(|document| serde_saphyr::from_str(document).unwrap()).collect()
}

/// The elements of an array by their `name`.
fn named<'a>(array: &'a Value, name: &str) -> &'a Value {
    let all = array.as_array().into_iter().flatten();
    all.clone().find(|one| one["name"] == name).unwrap_or_else(|| panic!("no {name} in {array}"))
}

#[test]
fn the_daemonset_mounts_for_the_node_and_has_a_valid_configuration() {
    let documents = documents(&deployed("kubernetes/daemonset.yaml"));
    let kind = |kind: &str| documents.iter().find(|one| one["kind"] == kind).unwrap_or_else(|| panic!("no {kind}"));
    for one in &documents {
        assert_eq!(one["metadata"]["namespace"], "kube-system", "{one}");
    }
    let text = kind("ConfigMap")["data"]["config.toml"].as_str().unwrap();
    let config: toml::Table = text.parse().unwrap();
    let checked = check(text);
    assert!(checked.status.success(), "{}", String::from_utf8_lossy(&checked.stderr));

    let set = kind("DaemonSet");
    let template = &set["spec"]["template"];
    assert_eq!(set["spec"]["selector"]["matchLabels"], template["metadata"]["labels"]);
    let pod = &template["spec"];
    assert_eq!(pod["serviceAccountName"], kind("ServiceAccount")["metadata"]["name"]);
    assert_eq!((&pod["hostNetwork"], &pod["dnsPolicy"]), (&true.into(), &"Default".into()));
    assert_eq!(pod["priorityClassName"], "system-node-critical");
    assert_eq!(set["spec"]["updateStrategy"]["type"], "OnDelete", "who replaces the pod takes files from containers");
    let container = named(&pod["containers"], "snapshotter");
    assert_eq!(container["securityContext"]["privileged"], true);
    assert_eq!(container["args"], serde_json::json!(["--config", "/etc/clipper-snapshotter/config.toml"]));
    // What containerd mounts lies where the snapshotter sees it, and mounts below it reach the node.
    for name in ["root", "run", "containerd", "hosts"] {
        let (mount, volume) = (named(&container["volumeMounts"], name), named(&pod["volumes"], name));
        assert_eq!(mount["mountPath"], volume["hostPath"]["path"], "{name}");
        let propagation = if name == "root" { "Bidirectional".into() } else { Value::Null };
        assert_eq!(mount["mountPropagation"], propagation, "{name}");
    }
    assert_eq!(named(&container["volumeMounts"], "root")["mountPath"], "/var/lib/clipper-snapshotter");
    assert_eq!(named(&pod["volumes"], "config")["configMap"]["name"], kind("ConfigMap")["metadata"]["name"]);
    // Probes ask where metrics are served.
    let (host, port) = config["metrics"]["address"].as_str().unwrap().rsplit_once(':').unwrap();
    for (probe, path) in [("livenessProbe", "/healthz"), ("readinessProbe", "/readyz")] {
        let get = &container[probe]["httpGet"];
        assert_eq!((&get["path"], &get["host"]), (&path.into(), &host.into()), "{probe}");
        assert_eq!(get["port"], port.parse::<u16>().unwrap(), "{probe}");
    }
}

#[test]
fn the_image_holds_what_the_daemonset_starts() {
    let file = deployed("Containerfile");
    for name in ["clipper", "clipper-snapshotter"] {
        assert!(file.contains(&format!("--bin {name}")) && file.contains(&format!("/target/release/{name}")), "{name}");
    }
    assert!(file.contains("ENTRYPOINT [\"/usr/local/bin/clipper-snapshotter\"]"));
    let toolchain: toml::Table = fs::read_to_string(workspace().join("Cargo.toml")).unwrap().parse().unwrap();
    let rust = toolchain["workspace"]["package"]["rust-version"].as_str().unwrap();
    assert!(file.contains(&format!("library/rust:{rust}-")), "Rust {rust}");
}
