//! Power cuts while records change: afterwards each change has taken place or hasn't, and never in part.
use super::*;
use clipper_tests::power::{SimulatedDisk, SimulatedFile};
use std::io;

/// What a power cut leaves is chosen anew for each.
const SEEDS: u64 = 9;

/// redb's file on a disk whose power fails.
#[derive(Debug)]
struct Backend(SimulatedFile);

impl redb::StorageBackend for Backend {
    fn len(&self) -> io::Result<u64> {
        self.0.size()
    }
    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.0.read_at(out, offset)
    }
    fn set_len(&self, len: u64) -> io::Result<()> {
        self.0.set_size(len)
    }
    fn sync_data(&self) -> io::Result<()> {
        self.0.sync()
    }
    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.0.write_at(data, offset)
    }
}

/// What is compared of a record: everything but the time.
type Known = Vec<(String, SnapshotId, Kind, Option<String>, Labels, Option<RemoteLayer>)>;
type Step = fn(&Change) -> Result<()>;

fn open(disk: &SimulatedDisk) -> Result<Records> {
    let file = disk.open(Path::new("/records.redb")).map_err(Error::io("open", Path::new("/records.redb")))?;
    let backend = Backend(file);
    Records::over(redb::Builder::new().set_cache_size(CACHE).create_with_backend(backend).map_err(Error::database)?)
}

fn known(records: &Records) -> Result<Known> {
    let all = records.all()?.into_iter();
    Ok(all.map(|(name, r)| (name, r.id, r.kind, r.parent, r.labels, r.remote)).collect())
}

fn new(kind: Kind, parent: Option<&str>, remote: Option<RemoteLayer>) -> NewRecord {
    let labels = Labels::from([("text".to_owned(), "long ".repeat(300))]);
    NewRecord { kind, parent: parent.map(Into::into), labels, usage: Usage::default(), remote }
}

fn remote(name: &str) -> Option<RemoteLayer> {
    let digest = Digest::of(name.as_bytes());
    Some(RemoteLayer {
        index: digest,
        layer: digest,
        chain: digest,
        tree: digest,
        repositories: vec!["a/b".into()],
        image: None,
    })
}

/// The changes of a life: an ordinary layer, a remote one upon it, containers on that, and all of it removed.
const STEPS: [Step; 9] = [
    |change| change.insert("work", new(Kind::Active, None, None)).map(drop),
    |change| change.commit_active("work", "base", Labels::new(), Usage { size: 7, inodes: 2 }).map(drop),
    |change| change.insert("layer", new(Kind::Committed, Some("base"), remote("layer"))).map(drop),
    |change| {
        let mut record = change.get("layer")?;
        record.remote.as_mut().expect("a remote layer").repositories.push("c/d".into());
        change.replace("layer", &record)
    },
    |change| {
        for number in 0..20 {
            change.insert(&format!("container-{number}"), new(Kind::Active, Some("layer"), None))?;
        }
        Ok(())
    },
    |change| change.remove("container-7").map(drop),
    |change| {
        for number in (0..20).filter(|number| *number != 7) {
            change.remove(&format!("container-{number}"))?;
        }
        Ok(())
    },
    |change| change.remove("layer").map(drop),
    |change| change.remove("base").map(drop),
];

/// Makes the changes one after the other until the power fails: how many took place, as far as was told.
fn run(disk: &SimulatedDisk) -> usize {
    let Ok(records) = open(disk) else { return 0 };
    let step = |step: &Step| {
        let change = records.change()?;
        step(&change)?;
        change.commit()
    };
    STEPS.iter().take_while(|&change| step(change).is_ok()).count()
}

#[test]
fn whenever_the_power_fails_a_change_has_taken_place_or_not() {
    let disk = || {
        let disk = SimulatedDisk::default();
        drop(open(&disk).unwrap());
        disk.sync_dir(Path::new("/")).unwrap();
        disk
    };
    let (whole, mut states) = (disk(), Vec::new());
    let records = open(&whole).unwrap();
    states.push(known(&records).unwrap());
    for step in STEPS {
        let change = records.change().unwrap();
        step(&change).unwrap();
        change.commit().unwrap();
        states.push(known(&records).unwrap());
    }
    drop(records);
    let before = disk().steps();
    assert!(whole.steps() > before + 2 * STEPS.len() as u64);
    for step in before + 1..=whole.steps() + 1 {
        let cut = disk();
        cut.fail_at(step);
        let done = run(&cut);
        for seed in 0..SEEDS {
            let after = cut.after_power_loss(seed);
            let found = known(&open(&after).unwrap()).unwrap();
            let place = states[done..].iter().take(2).position(|state| *state == found);
            assert!(
                place.is_some(),
                "step {step}, seed {seed}: {done} changes took place, and this is left: {found:?}"
            );
        }
    }
}
