//! What is told of kept descriptors: lines of text in a file without a name, which is kept with them.
//!
//! ```text
//! clipper kept 1
//! tree                           or `devices`, or `image`
//! flags 1234                     what the handshake with the kernel agreed on        (tree, devices)
//! threads 2                                                                          (tree)
//! files devices-18c-0 1764       whose files the kernel reads, and the mount's number there  (image)
//! dir /var/lib/…/mounts/abc      where it is mounted                                 (tree, image)
//! device 0:53                    the mounted filesystem's number                     (tree, image)
//! place bottom                   or `above`, or `over DIGEST`                        (tree, image)
//! beneath /var/lib/…/fs          any number, topmost first                           (tree, image)
//! layer INDEX LAYER              bottom first, each followed by its repositories     (tree, image)
//! repository registry.example.com/app
//! image registry.example.com/app:1.4                what the layer's image is called, if that is known
//! ```
use crate::{
    Beneath, LayerRef,
    mount_point::Device,
    store::{Origin, Place},
};
use clipper_format::Digest;
use rustix::fs::MemfdFlags;
use std::{
    fmt::Write as _,
    fs::File,
    io::{self, Read as _, Seek as _, Write as _},
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    str::FromStr,
};

const FIRST_LINE: &str = "clipper kept 1";

/// Most bytes of a note.
const NOTE_MAX: u64 = 16 << 20;

/// What descriptors that are kept are for.
#[derive(Clone, Debug)]
pub(crate) enum Note {
    /// The connection of a tree that FUSE serves.
    Tree { flags: u64, threads: usize, mount: MountNote },
    /// The connection of a filesystem of devices, and its root.
    Devices { flags: u64 },
    /// Nothing: the image's devices are files of the filesystem that is kept as `files`.
    Image { files: String, number: u64, mount: MountNote },
}

/// A mounted image.
#[derive(Clone, Debug)]
pub(crate) struct MountNote {
    pub(crate) dir: PathBuf,
    pub(crate) device: Device,
    pub(crate) origin: Origin,
}

impl Note {
    /// A file without a name that holds it.
    pub(super) fn to_file(&self) -> io::Result<OwnedFd> {
        let mut file = File::from(rustix::fs::memfd_create("clipper-kept", MemfdFlags::CLOEXEC)?);
        file.write_all(self.to_text()?.as_bytes())?;
        Ok(file.into())
    }

    pub(super) fn from_file(file: OwnedFd) -> io::Result<Self> {
        let mut file = File::from(file);
        // The offset is shared with whoever wrote or read it before.
        file.rewind()?;
        let mut text = String::new();
        file.take(NOTE_MAX).read_to_string(&mut text)?;
        Self::parse(&text).ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "the note is of another version"))
    }

    fn to_text(&self) -> io::Result<String> {
        let (kind, mount) = match self {
            Self::Tree { flags, threads, mount } => (format!("tree\nflags {flags}\nthreads {threads}"), Some(mount)),
            Self::Devices { flags } => (format!("devices\nflags {flags}"), None),
            Self::Image { files, number, mount } => (format!("image\nfiles {files} {number}"), Some(mount)),
        };
        let mut text = format!("{FIRST_LINE}\n{kind}\n");
        if let Some(mount) = mount {
            mount.write(&mut text)?;
        }
        Ok(text)
    }

    fn parse(text: &str) -> Option<Self> {
        let mut lines = text.lines();
        if lines.next()? != FIRST_LINE {
            return None;
        }
        let kind = lines.next()?;
        let mut fields = Fields { flags: None, threads: None, files: None, mount: PartialMount::default() };
        for line in lines {
            fields.read(line)?;
        }
        Some(match kind {
            "tree" => Self::Tree { flags: fields.flags?, threads: fields.threads?, mount: fields.mount.whole()? },
            "devices" => Self::Devices { flags: fields.flags? },
            "image" => {
                let (files, number) = fields.files?;
                Self::Image { files, number, mount: fields.mount.whole()? }
            }
            _ => return None,
        })
    }
}

impl MountNote {
    fn write(&self, text: &mut String) -> io::Result<()> {
        let Self { dir, device, origin: Origin { layers, place } } = self;
        let mut line = |key: &str, value: &dyn std::fmt::Display| {
            let value = value.to_string();
            if value.contains('\n') {
                return Err(io::Error::new(io::ErrorKind::InvalidInput, format!("{key} {value:?} has a line break")));
            }
            writeln!(text, "{key} {value}").map_err(io::Error::other)
        };
        line("dir", &text_of(dir)?)?;
        line("device", device)?;
        match place {
            Place::Bottom => line("place", &"bottom")?,
            Place::Above => line("place", &"above")?,
            Place::Over(beneath) => {
                line("place", &format_args!("over {}", beneath.id))?;
                for dir in &beneath.dirs {
                    line("beneath", &text_of(dir)?)?;
                }
            }
        }
        for LayerRef { index, layer, repositories, image } in layers {
            line("layer", &format_args!("{index} {layer}"))?;
            for repository in repositories {
                line("repository", repository)?;
            }
            if let Some(image) = image {
                line("image", image)?;
            }
        }
        Ok(())
    }
}

fn text_of(path: &Path) -> io::Result<&str> {
    path.to_str().ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, format!("{path:?} isn't UTF-8")))
}

/// What was read of a note so far.
struct Fields {
    flags: Option<u64>,
    threads: Option<usize>,
    files: Option<(String, u64)>,
    mount: PartialMount,
}

#[derive(Default)]
struct PartialMount {
    dir: Option<PathBuf>,
    device: Option<Device>,
    place: Option<Place>,
    layers: Vec<LayerRef>,
}

impl Fields {
    /// Takes in a line; `None` if it makes no sense.
    fn read(&mut self, line: &str) -> Option<()> {
        let (key, value) = line.split_once(' ')?;
        match key {
            "flags" => self.flags = Some(value.parse().ok()?),
            "threads" => self.threads = Some(value.parse().ok()?),
            "files" => {
                let (files, number) = value.split_once(' ')?;
                self.files = Some((files.into(), number.parse().ok()?));
            }
            _ => self.mount.read(key, value)?,
        }
        Some(())
    }
}

impl PartialMount {
    fn read(&mut self, key: &str, value: &str) -> Option<()> {
        match key {
            "dir" => self.dir = Some(value.into()),
            "device" => self.device = Some(Device::from_str(value).ok()?),
            "place" => {
                self.place = Some(match value {
                    "bottom" => Place::Bottom,
                    "above" => Place::Above,
                    over => {
                        let id = over.strip_prefix("over ")?.parse().ok()?;
                        Place::Over(Beneath { id, dirs: Vec::new() })
                    }
                });
            }
            "beneath" => match &mut self.place {
                Some(Place::Over(beneath)) => beneath.dirs.push(value.into()),
                _ => return None,
            },
            "layer" => {
                let (index, layer) = value.split_once(' ')?;
                let digest = |text: &str| text.parse::<Digest>().ok();
                let (index, layer) = (digest(index)?, digest(layer)?);
                self.layers.push(LayerRef { index, layer, repositories: Vec::new(), image: None });
            }
            "repository" => self.layers.last_mut()?.repositories.push(value.parse().ok()?),
            "image" => self.layers.last_mut()?.image = Some(value.into()),
            _ => return None,
        }
        Some(())
    }

    fn whole(self) -> Option<MountNote> {
        let origin = Origin { layers: self.layers, place: self.place? };
        Some(MountNote { dir: self.dir?, device: self.device?, origin })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mount() -> MountNote {
        let layer = |name: &[u8], repositories: &[&str]| LayerRef {
            index: Digest::of(b"index"),
            layer: Digest::of(name),
            repositories: repositories.iter().map(|text| text.parse().unwrap()).collect(),
            image: repositories.first().map(|first| format!("{first}:1 2").into()),
        };
        let layers = vec![layer(b"a", &["registry.example.com:5000/a/b", "oci:/some where:tag"]), layer(b"b", &[])];
        let beneath = Beneath { id: Digest::of(b"below"), dirs: vec!["/r/1/fs".into(), "/r/2/f s".into()] };
        let origin = Origin { layers, place: Place::Over(beneath) };
        MountNote { dir: "/r/mounts/x".into(), device: "0:53".parse().unwrap(), origin }
    }

    #[test]
    fn notes_come_back_from_their_files_whoever_read_them_before() {
        let notes = [
            Note::Tree { flags: 1 << 40 | 5, threads: 3, mount: mount() },
            Note::Devices { flags: 7 },
            Note::Image { files: "devices-1-0".into(), number: 12, mount: mount() },
        ];
        for note in notes {
            let file = note.to_file().unwrap();
            let first = Note::from_file(file.try_clone().unwrap()).unwrap();
            assert_eq!(format!("{first:?}"), format!("{note:?}"));
            let second = Note::from_file(file).unwrap();
            assert_eq!(format!("{second:?}"), format!("{note:?}"));
        }
    }

    #[test]
    fn other_versions_missing_fields_and_line_breaks_are_refused() {
        for text in ["", "clipper kept 2\ndevices\nflags 1\n", "clipper kept 1\ntree\nflags 1\n"] {
            assert!(Note::parse(text).is_none(), "{text}");
        }
        for line in ["nonsense", "colour red", "layer sha256:12 sha256:34", "beneath /x", "repository x"] {
            assert!(Note::parse(&format!("{FIRST_LINE}\ndevices\nflags 1\n{line}\n")).is_none(), "{line}");
        }
        let note = Note::Tree { flags: 1, threads: 1, mount: MountNote { dir: "/a\nb".into(), ..mount() } };
        assert!(note.to_text().unwrap_err().to_string().contains("line break"));
    }
}
