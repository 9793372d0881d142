//! The state directory: one file that is whole at every instant, whatever is killed or cut off when.

use super::desired::placed_calls;
use api::config::{Call, Document, Section};
use std::fs::{self, DirBuilder, File, OpenOptions, TryLockError};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

const FILE: &str = "state.json";

/// A state directory that this process alone uses.
#[derive(Debug)]
pub(crate) struct Store {
    dir: PathBuf,
    /// Held until the end of the process.
    _lock: File,
}

/// Why the state directory cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("state directory: {what} {path}: {source}", path = path.display())]
pub struct StoreError {
    /// The operation.
    pub what: &'static str,
    /// The file.
    pub path: PathBuf,
    /// The system's reason.
    pub source: io::Error,
}

/// What the file held.
#[derive(Debug, Default)]
pub(crate) struct Loaded {
    pub(crate) document: Document,
    pub(crate) damage: Option<Damage>,
}

/// A file that was not whole.
#[derive(Debug)]
pub(crate) struct Damage {
    /// Line and column, or the entry, and the reason.
    pub(crate) place: String,
    /// The copy that was kept.
    pub(crate) kept: PathBuf,
}

impl Store {
    /// Opens `dir`, which is made if it is missing, for this process alone.
    pub(crate) fn open(dir: &Path) -> Result<Store, StoreError> {
        let at = |what, path: &Path| {
            let path = path.to_owned();
            move |source| StoreError { what, path, source }
        };
        DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(at("create", dir))?;
        let path = dir.join("lock");
        let open = OpenOptions::new().create(true).truncate(false).write(true).mode(0o600).open(&path);
        let lock = open.map_err(at("open", &path))?;
        lock.try_lock().map_err(|error| match error {
            TryLockError::WouldBlock => at("lock", &path)(io::Error::other("another daemon uses this directory")),
            TryLockError::Error(error) => at("lock", &path)(error),
        })?;
        Ok(Store { dir: dir.to_owned(), _lock: lock })
    }

    /// Replaces the state: after this returns it survives anything; before, the old one does.
    pub(crate) fn write(&self, document: &Document) -> Result<(), StoreError> {
        let (path, new) = (self.dir.join(FILE), self.dir.join("state.json.new"));
        let at = |what, path: &Path| {
            let path = path.to_owned();
            move |source| StoreError { what, path, source }
        };
        let text = serde_json::to_string_pretty(document).map_err(|e| at("encode", &path)(e.into()))?;
        let open = OpenOptions::new().create(true).truncate(true).write(true).mode(0o600).open(&new);
        let mut file = open.map_err(at("create", &new))?;
        file.write_all(text.as_bytes()).and_then(|()| file.sync_all()).map_err(at("write", &new))?;
        fs::rename(&new, &path).map_err(at("rename to", &path))?;
        File::open(&self.dir).and_then(|dir| dir.sync_all()).map_err(at("sync", &self.dir))
    }

    /// Reads the state. Of a damaged file a copy is kept, and the entries that are whole are returned.
    pub(crate) fn read(&self) -> Result<Loaded, StoreError> {
        let path = self.dir.join(FILE);
        let text = match fs::read(&path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Loaded::default()),
            Err(source) => return Err(StoreError { what: "read", path, source }),
        };
        let place = match serde_json::from_slice::<Document>(&text) {
            Ok(document) => match placed_calls(&document.subsystems).iter().find_map(|placed| placed.call().err()) {
                None => return Ok(Loaded { document, damage: None }),
                Some(error) => error.message,
            },
            Err(error) => format!("line {}, column {}: {error}", error.line(), error.column()),
        };
        let kept = self.keep_aside(&path)?;
        let document = Document { subsystems: salvage(&String::from_utf8_lossy(&text)) };
        Ok(Loaded { document, damage: Some(Damage { place, kept }) })
    }

    /// Links the damaged file to a free name; it stays in place until a sound one replaces it.
    fn keep_aside(&self, path: &Path) -> Result<PathBuf, StoreError> {
        for n in 1_u32.. {
            let aside = self.dir.join(format!("{FILE}.damaged-{n}"));
            match fs::hard_link(path, &aside) {
                Ok(()) => return Ok(aside),
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                Err(source) => return Err(StoreError { what: "keep aside as", path: aside, source }),
            }
        }
        unreachable!("a directory holds fewer than 2^32 files")
    }
}

/// Every whole call in a text that is not whole, in order. A call with a character that did not decode is not whole. Which
/// subsystem a call belongs to is for its method to say.
fn salvage(text: &str) -> Vec<Section> {
    let (mut calls, mut at) = (Vec::new(), 0);
    while let Some(brace) = text[at..].find('{') {
        at += brace;
        let mut values = serde_json::Deserializer::from_str(&text[at..]).into_iter::<Call>();
        let call = values.next();
        let end = at + values.byte_offset();
        match call {
            Some(Ok(call)) if !text[at..end].contains(char::REPLACEMENT_CHARACTER) => {
                calls.push(serde_json::json!(call));
                at = end;
            }
            _ => at += 1,
        }
    }
    vec![Section { subsystem: String::new(), config: Some(calls) }]
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn document(names: &[&str]) -> Document {
        let config = names.iter().map(|n| json!({"method": "make", "params": {"name": n}})).collect();
        Document { subsystems: vec![Section { subsystem: "bdev".to_owned(), config: Some(config) }] }
    }

    fn names(document: &Document) -> Vec<String> {
        placed_calls(&document.subsystems)
            .iter()
            .map(|p| p.call().unwrap().params["name"].as_str().unwrap().to_owned())
            .collect()
    }

    #[test]
    fn a_written_state_is_read_back() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        assert_eq!(store.read().unwrap().document, Document::default());
        store.write(&document(&["a", "b"])).unwrap();
        let loaded = store.read().unwrap();
        assert_eq!(loaded.document, document(&["a", "b"]));
        assert!(loaded.damage.is_none());
    }

    #[test]
    fn a_directory_has_one_daemon() {
        let dir = tempfile::tempdir().unwrap();
        let first = Store::open(dir.path()).unwrap();
        assert!(Store::open(dir.path()).unwrap_err().to_string().contains("another daemon"));
        drop(first);
        Store::open(dir.path()).unwrap();
    }

    /// Cut off anywhere, the calls before the cut are still there, and the file is kept.
    #[test]
    fn a_file_cut_anywhere_gives_what_is_whole() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        store.write(&document(&["a", "b", "c"])).unwrap();
        let text = fs::read(dir.path().join(FILE)).unwrap();
        let mut seen = [false; 4];
        for cut in 0..text.len() {
            fs::write(dir.path().join(FILE), &text[..cut]).unwrap();
            let loaded = store.read().unwrap();
            let found = names(&loaded.document);
            assert_eq!(found, ["a", "b", "c"][..found.len()]);
            seen[found.len()] = true;
            let damage = loaded.damage.expect("a cut file is damaged");
            assert!(damage.place.starts_with("line "), "{}", damage.place);
            assert_eq!(fs::read(&damage.kept).unwrap(), text[..cut]);
            fs::remove_file(&damage.kept).unwrap();
        }
        assert_eq!(seen, [true; 4]);
    }

    #[test]
    fn damage_in_one_entry_costs_only_that_entry() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        store.write(&document(&["a", "b", "c"])).unwrap();
        let text = fs::read_to_string(dir.path().join(FILE)).unwrap();
        for damaged in [text.replace("\"b\"", "\"b"), text.replace("\"b\"", "b\u{0}b")] {
            fs::write(dir.path().join(FILE), damaged).unwrap();
            let loaded = store.read().unwrap();
            assert_eq!(names(&loaded.document), ["a", "c"]);
            assert!(loaded.damage.is_some());
        }
        let mut bytes = text.clone().into_bytes();
        let at = text.find("\"b\"").unwrap() + 1;
        bytes[at] = 0xff;
        fs::write(dir.path().join(FILE), bytes).unwrap();
        assert_eq!(names(&store.read().unwrap().document), ["a", "c"]);
    }

    #[test]
    fn each_damaged_file_is_kept_under_its_own_name() {
        let dir = tempfile::tempdir().unwrap();
        let store = Store::open(dir.path()).unwrap();
        fs::write(dir.path().join(FILE), "one").unwrap();
        assert_eq!(store.read().unwrap().damage.unwrap().kept, dir.path().join("state.json.damaged-1"));
        store.write(&document(&[])).unwrap();
        fs::write(dir.path().join(FILE), "two").unwrap();
        assert_eq!(store.read().unwrap().damage.unwrap().kept, dir.path().join("state.json.damaged-2"));
    }
}
