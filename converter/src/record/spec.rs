//! The runtime spec of the container that is recorded: the image's own command with docker's usual privileges, on the
//! host's network (runtime-spec, config.md).
use crate::cli::RecordArgs;
use crate::report::Progress;
use anyhow::{Result, bail};
use serde_json::{Value, json};

/// Capabilities that docker and containerd give containers by default.
const CAPABILITIES: [&str; 14] = [
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_FSETID",
    "CAP_FOWNER",
    "CAP_MKNOD",
    "CAP_NET_RAW",
    "CAP_SETGID",
    "CAP_SETUID",
    "CAP_SETFCAP",
    "CAP_SETPCAP",
    "CAP_NET_BIND_SERVICE",
    "CAP_SYS_CHROOT",
    "CAP_KILL",
    "CAP_AUDIT_WRITE",
];

/// The spec for an image with this config blob.
///
/// # Errors
/// Neither the image nor the user names a command.
pub fn runtime_spec(config: &Value, args: &RecordArgs, progress: &Progress) -> Result<Value> {
    let config = &config["config"];
    let strings = |value: &Value| -> Vec<String> {
        value.as_array().into_iter().flatten().filter_map(|text| text.as_str().map(str::to_owned)).collect()
    };
    let mut command = strings(&config["Entrypoint"]);
    command.extend(if args.command.is_empty() { strings(&config["Cmd"]) } else { args.command.clone() });
    if command.is_empty() {
        bail!("{}: the image has no command: give one after --", args.reference);
    }
    let mut env = strings(&config["Env"]);
    if !env.iter().any(|variable| variable.starts_with("PATH=")) {
        env.push("PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin".into());
    }
    override_variables(&mut env, &args.env);
    let cwd = config["WorkingDir"].as_str().filter(|dir| dir.starts_with('/')).unwrap_or("/");
    let (uid, gid) = user(config["User"].as_str().unwrap_or_default(), progress);
    let mount = |kind: &str, at: &str, options: &[&str]| json!({ "destination": at, "type": kind, "source": kind, "options": options });
    let bind = |path: &str| json!({ "destination": path, "type": "bind", "source": path, "options": ["rbind", "ro"] });
    Ok(json!({
        "ociVersion": "1.0.2",
        "process": {
            "args": command,
            "env": env,
            "cwd": cwd,
            "user": { "uid": uid, "gid": gid },
            "noNewPrivileges": false,
            "capabilities": { "bounding": CAPABILITIES, "effective": CAPABILITIES, "permitted": CAPABILITIES },
        },
        "root": { "path": "rootfs" },
        "mounts": [
            mount("proc", "/proc", &["nosuid", "noexec", "nodev"]),
            mount("tmpfs", "/dev", &["nosuid", "strictatime", "mode=755", "size=65536k"]),
            mount("devpts", "/dev/pts", &["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"]),
            mount("tmpfs", "/dev/shm", &["nosuid", "noexec", "nodev", "mode=1777", "size=65536k"]),
            mount("mqueue", "/dev/mqueue", &["nosuid", "noexec", "nodev"]),
            mount("sysfs", "/sys", &["nosuid", "noexec", "nodev", "ro"]),
            mount("tmpfs", "/run", &["nosuid", "strictatime", "mode=755", "size=65536k"]),
            bind("/etc/hosts"),
            bind("/etc/resolv.conf"),
        ],
        "linux": {
            "namespaces": [{ "type": "pid" }, { "type": "ipc" }, { "type": "uts" }, { "type": "mount" }],
            "resources": { "devices": [{ "allow": false, "access": "rwm" }] },
        },
    }))
}

/// Puts the user's variables in place of the image's: of two of a name, programs see the first, or the last.
fn override_variables(env: &mut Vec<String>, own: &[String]) {
    let name = |variable: &str| variable.split('=').next().unwrap_or_default().to_owned();
    for variable in own {
        env.retain(|other| name(other) != name(variable));
        env.push(variable.clone());
    }
}

/// The numbers of an image's user, `UID[:GID]`. Names would have to be looked up in the image.
fn user(text: &str, progress: &Progress) -> (u32, u32) {
    let (user, group) = text.split_once(':').unwrap_or((text, "0"));
    let number = |name: &str| match name {
        "" | "root" => Some(0),
        _ => name.parse::<u32>().ok(),
    };
    match (number(user), number(group)) {
        (Some(uid), Some(gid)) => (uid, gid),
        _ => {
            progress.warn(&format!("the image's user {text:?} is a name: recording as root"));
            (0, 0)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_users_variables_replace_the_images() {
        let mut env = ["PATH=/bin", "PORT=8080", "PORTS=1"].map(str::to_owned).to_vec();
        override_variables(&mut env, &["PORT=9".to_owned(), "NEW=a=b".to_owned()]);
        assert_eq!(env, ["PATH=/bin", "PORTS=1", "PORT=9", "NEW=a=b"]);
    }
}
