//! The mount as a lower layer of overlayfs, as containers use it.
use crate::{
    fixture::{Image, Node, Packing, options},
    tarball::{Entry, Kind},
    walk::{noise, view},
};
use clipper_format::Digest;
use clipper_mount::{Beneath, Driver};
use rustix::mount::{MountFlags, UnmountFlags};
use std::{
    ffi::CString,
    fs, io,
    os::unix::fs::{MetadataExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
    process::Command,
};

/// An overlay; unmounted when dropped.
pub struct Overlay(PathBuf);

impl Overlay {
    /// With `lower`, topmost first, and a fresh upper directory.
    pub fn new(node: &Node, lower: &[&Path]) -> Self {
        let lower: Vec<_> = lower.iter().map(|dir| dir.display().to_string()).collect();
        let (upper, work, target) = (node.dir("upper"), node.dir("work"), node.dir("merged"));
        let options = format!("lowerdir={},upperdir={},workdir={}", lower.join(":"), upper.display(), work.display());
        let options = CString::new(options).unwrap();
        rustix::mount::mount("overlay", &target, "overlay", MountFlags::empty(), options.as_c_str()).unwrap();
        Self(target)
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }
}

impl Drop for Overlay {
    fn drop(&mut self) {
        rustix::mount::unmount(&self.0, UnmountFlags::DETACH).unwrap();
    }
}

async fn an_overlay_reads_through_copies_up_and_covers(driver: Driver) {
    let content = noise(1, 500_000);
    let a = Entry::file("dir/a", content.clone()).mode(0o640).owner(5, 6).xattr("user.x", b"kept");
    let entries = [
        Entry::dir("."),
        Entry::dir("dir"),
        a.clone(),
        a.linked("dir/b"),
        Entry::file("dir/gone", "x"),
        Entry::dir("removed"),
        Entry::file("removed/x", "x"),
    ];
    let (image, node) = (Image::gzip(&entries), Node::new(driver));
    let mounted = node.mount(&image).await;
    let overlay = Overlay::new(&node, &[mounted.dir()]);
    let lower = view(mounted.dir());
    assert!(view(&overlay.0)[&b"dir/b"[..]].kind == Kind::File(content.clone()));

    // Copy-up of data, attributes and xattrs.
    let a = overlay.path("dir/a");
    fs::OpenOptions::new().append(true).open(&a).and_then(|mut file| io::Write::write_all(&mut file, b"!")).unwrap();
    assert!(fs::read(&a).unwrap() == [&content[..], b"!"].concat());
    let status = fs::metadata(&a).unwrap();
    assert_eq!((status.mode() & 0o7777, status.uid(), status.gid()), (0o640, 5, 6));
    assert_eq!(xattr::get(&a, "user.x").unwrap().unwrap(), b"kept");
    fs::set_permissions(overlay.path("dir/b"), fs::Permissions::from_mode(0o600)).unwrap();
    // Whiteouts, and a directory that replaces one.
    fs::remove_file(overlay.path("dir/gone")).unwrap();
    fs::remove_dir_all(overlay.path("removed")).unwrap();
    fs::create_dir(overlay.path("removed")).unwrap();
    assert_eq!(fs::read_dir(overlay.path("removed")).unwrap().count(), 0);
    let names: Vec<_> = fs::read_dir(overlay.path("dir")).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(names.len(), 2, "{names:?}");
    fs::rename(&a, overlay.path("moved")).unwrap();

    // Nothing of that reaches the image.
    assert!(view(mounted.dir()) == lower);
}

async fn an_overlay_may_lie_on_an_overlay_as_containers_in_containers_have_it(driver: Driver) {
    let (image, node) = (Image::gzip(&[Entry::dir("."), Entry::file("file", "x")]), Node::new(driver));
    let mounted = node.mount(&image).await;
    let outer = Overlay::new(&node, &[mounted.dir()]);
    let inner = node.dir("inner");
    let options = CString::new(format!("lowerdir={}:{}", outer.0.display(), node.dir("empty").display())).unwrap();
    rustix::mount::mount("overlay", &inner, "overlay", MountFlags::empty(), options.as_c_str()).unwrap();
    let inner = Overlay(inner);
    assert_eq!(fs::read(inner.path("file")).unwrap(), b"x");
}

async fn a_tree_with_whiteouts_covers_an_ordinary_directory_below_it(driver: Driver) {
    let first = [
        Entry::dir("dir"),
        Entry::file("dir/.wh.gone", ""),
        Entry::file("dir/replaced", "by the image"),
        Entry::dir("opaque"),
        Entry::file("opaque/.wh..wh..opq", ""),
        Entry::file("opaque/new", "new"),
        Entry::file(".wh.tree", ""),
    ];
    let second = [Entry::file("dir/more", "more"), Entry::file("opaque/newer", "newer")];
    let image = Image::new(&[(&first, Packing::Gzip), (&second, Packing::Gzip)]);
    let node = Node::new(driver);
    let ordinary = node.dir("ordinary");
    for (name, text) in
        [("dir/gone", "x"), ("dir/kept", "kept"), ("dir/replaced", "old"), ("opaque/old", "x"), ("tree/x", "x")]
    {
        let path = ordinary.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }
    let options = options(driver);
    let mounted = node.store.mount(&image.layers, true, &node.dir("mnt"), &options).await.unwrap();
    assert_eq!(xattr::get(mounted.dir().join("opaque"), "trusted.overlay.opaque").unwrap().unwrap(), b"y");
    let overlay = Overlay::new(&node, &[mounted.dir(), &ordinary]);
    let seen = view(&overlay.0);
    let names: Vec<_> = seen.keys().map(|path| String::from_utf8_lossy(path)).collect();
    assert_eq!(names, ["", "dir", "dir/kept", "dir/more", "dir/replaced", "opaque", "opaque/new", "opaque/newer"]);
    assert_eq!(seen[&b"dir/replaced"[..]].kind, Kind::File(b"by the image".to_vec()));
    assert_eq!(seen[&b"dir/kept"[..]].kind, Kind::File(b"kept".to_vec()));
}

async fn directories_that_no_layer_described_look_as_they_do_beneath(driver: Driver) {
    let image = Image::gzip(&[Entry::file("tmp/x", "x"), Entry::file("new/x", "x")]);
    let node = Node::new(driver);
    let ordinary = node.dir("ordinary");
    fs::create_dir(ordinary.join("tmp")).unwrap();
    fs::set_permissions(ordinary.join("tmp"), fs::Permissions::from_mode(0o1777)).unwrap();
    std::os::unix::fs::chown(ordinary.join("tmp"), Some(7), Some(8)).unwrap();
    let beneath = Beneath { id: Digest::of(b"beneath"), dirs: vec![ordinary.clone()] };
    let options = options(driver);
    let mounted = node.store.mount_above(&image.layers, &beneath, &node.dir("mnt"), &options).await.unwrap();
    let overlay = Overlay::new(&node, &[mounted.dir(), &ordinary]);
    let seen = view(&overlay.0);
    let attributes = |path: &str| (seen[path.as_bytes()].mode, seen[path.as_bytes()].uid, seen[path.as_bytes()].gid);
    assert_eq!(attributes("tmp"), (0o1777, 7, 8));
    assert_eq!(attributes("new"), (0o755, 0, 0));
    assert_eq!(seen[&b"tmp/x"[..]].kind, Kind::File(b"x".to_vec()));
}

async fn programs_run_from_an_overlay_and_set_user_id_is_honoured(driver: Driver) {
    // A shell and what it is linked with, from this machine.
    let mut entries = vec![Entry::dir("."), Entry::dir("bin"), Entry::dir("lib64"), Entry::dir("proc")];
    let program = fs::canonicalize("/usr/bin/id").unwrap();
    let listing = Command::new("ldd").arg(&program).output().unwrap().stdout;
    let mut parents = std::collections::BTreeSet::from(["bin".to_owned(), "lib64".to_owned(), "proc".to_owned()]);
    for library in String::from_utf8(listing).unwrap().split_whitespace().filter(|word| word.starts_with('/')) {
        let name = library.trim_start_matches('/').to_owned();
        let mut parent = String::new();
        for component in Path::new(&name).parent().unwrap().components() {
            parent = format!("{parent}/{}", component.as_os_str().to_str().unwrap()).trim_matches('/').to_owned();
            if parents.insert(parent.clone()) {
                entries.push(Entry::dir(&parent));
            }
        }
        entries.push(Entry::file(&name, fs::read(library).unwrap()).mode(0o755));
    }
    entries.push(Entry::file("bin/id", fs::read(&program).unwrap()).mode(0o4755).owner(1234, 0));
    let (image, node) = (Image::gzip(&entries), Node::new(driver));
    let mounted = node.mount(&image).await;
    let overlay = Overlay::new(&node, &[mounted.dir()]);
    let output = Command::new("chroot").arg(&overlay.0).args(["/bin/id", "-u"]).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    assert_eq!(output.stdout, b"1234\n");
}

over_both_drivers! {
    an_overlay_reads_through_copies_up_and_covers,
    an_overlay_may_lie_on_an_overlay_as_containers_in_containers_have_it,
    a_tree_with_whiteouts_covers_an_ordinary_directory_below_it,
    directories_that_no_layer_described_look_as_they_do_beneath,
    programs_run_from_an_overlay_and_set_user_id_is_honoured,
}
