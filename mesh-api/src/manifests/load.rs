//! Reads a directory of manifests.

use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use serde_json::Value;

use super::document::{self, Document, Header};
use super::kind::{self, ObjectRef};
use super::{Objects, Rejected};

/// The largest file that is read; a larger one is refused whole. Guessed: some 10,000 pods fit.
pub const MAX_FILE: u64 = 8 * 1024 * 1024;
/// The one JSON file of the directory that is not a manifest: token → node, read by the control plane alone.
pub const TOKENS: &str = "tokens.json";

/// Reads every `*.yaml`, `*.yml` and `*.json` of the directory, in the order of their names; not those that start with a dot, nor
/// `tokens.json`, nor what is in subdirectories. `last` is what the load before returned: where something cannot be read now, its
/// last good version stays.
///
/// It always returns a whole set. What was refused is in the list, named by file and line.
pub fn load_dir(dir: &Path, last: &Objects) -> (Objects, Vec<Rejected>) {
    let files = match files(dir) {
        Ok(files) => files,
        // Nothing can be told about any object: what was known stays.
        Err(error) => return (last.clone(), vec![whole(dir, format!("read directory: {error}"))]),
    };
    let mut load =
        Load { last, objects: Objects::default(), rejected: Vec::new(), broken: Vec::new(), unclear: Vec::new() };
    for file in files {
        load.file(file);
    }
    load.finish()
}

fn files(dir: &Path) -> io::Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(dir)? {
        let path = entry?.path();
        let Some(name) = path.file_name().and_then(|name| name.to_str()) else { continue };
        let wanted = [".yaml", ".yml", ".json"].iter().any(|end| name.ends_with(end));
        if wanted && !name.starts_with('.') && name != TOKENS && !path.is_dir() {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}

fn whole(file: &Path, error: String) -> Rejected {
    Rejected { file: file.to_owned(), line: 0, kind: String::new(), name: String::new(), error }
}

/// A document that names an object of ours and cannot be used.
struct Broken {
    object: ObjectRef,
    value: Option<Value>,
    file: PathBuf,
    why: String,
}

struct Load<'a> {
    last: &'a Objects,
    objects: Objects,
    rejected: Vec<Rejected>,
    broken: Vec<Broken>,
    /// Files with something in them that cannot be told to be any object: nobody knows what of theirs is gone.
    unclear: Vec<PathBuf>,
}

impl Load<'_> {
    fn file(&mut self, file: PathBuf) {
        let text = match read(&file) {
            Ok(text) => text,
            // Gone since the directory was listed: as if it had been gone then.
            Err(error) if error.kind() == io::ErrorKind::NotFound => return,
            Err(error) => {
                self.rejected.push(whole(&file, error.to_string()));
                self.unclear.push(file);
                return;
            }
        };
        let is_json = file.extension().is_some_and(|end| end == "json");
        for document in if is_json { document::json(&text) } else { document::yaml(&text) } {
            self.document(&file, document);
        }
    }

    fn document(&mut self, file: &Path, document: Document) {
        let Document { line, content, text } = document;
        match content {
            Ok(value) => {
                for value in document::objects(value) {
                    self.value(file, line, value);
                }
            }
            Err(fault) => {
                let header = Header::guess(&text);
                let object = header.known_kind().and_then(|kind| header.object(kind).ok());
                self.refuse(file, fault.line, &header, object, None, fault.error);
            }
        }
    }

    fn value(&mut self, file: &Path, line: usize, value: Value) {
        let value = document::without_nulls(value);
        let header = Header::of(&value);
        if !value.is_object() || header.kind.is_empty() || header.api_version.is_empty() {
            let error = "not a Kubernetes object: apiVersion or kind is missing".to_owned();
            let object = header.known_kind().and_then(|kind| header.object(kind).ok());
            return self.refuse(file, line, &header, object, Some(value), error);
        }
        // Of no concern to the mesh.
        let Some(known) = header.known_kind() else { return };
        let object = match header.object(known) {
            Ok(object) => object,
            Err(error) => return self.refuse(file, line, &header, None, None, error),
        };
        if !header.version_is_known(known) {
            let error =
                format!("apiVersion {} is not understood; use {}", header.api_version, known.versions().join(" or "));
            return self.refuse(file, line, &header, Some(object), Some(value), error);
        }
        if kind::holds(&self.objects, &object) {
            let other = self.objects.file_of(&object).map(|file| file.display().to_string()).unwrap_or_default();
            let error = format!("the object is in {other} already, which is used; remove one of them");
            return self.reject(file, line, &header, error);
        }
        let value = document::with_namespace(value, &object);
        if let Err(error) = kind::add(&mut self.objects, &object, value.clone(), Some(file.to_owned())) {
            self.refuse(file, line, &header, Some(object), Some(value), error);
        }
    }

    fn reject(&mut self, file: &Path, line: usize, header: &Header, error: String) {
        let name = match header.known_kind().map(|kind| header.object(kind)) {
            Some(Ok(object)) => object.full_name(),
            _ => header.name.clone(),
        };
        self.rejected.push(Rejected { file: file.to_owned(), line, kind: header.kind.clone(), name, error });
    }

    fn refuse(
        &mut self,
        file: &Path,
        line: usize,
        header: &Header,
        object: Option<ObjectRef>,
        value: Option<Value>,
        error: String,
    ) {
        self.reject(file, line, header, error.clone());
        match object {
            Some(object) => self.broken.push(Broken { object, value, file: file.to_owned(), why: error }),
            None => self.unclear.push(file.to_owned()),
        }
    }

    /// Fills the gaps once everything readable is known, so that a good version in another file wins over a stand-in.
    fn finish(self) -> (Objects, Vec<Rejected>) {
        let Self { last, mut objects, rejected, broken, unclear } = self;
        for Broken { object, value, file, why } in broken {
            if !kind::holds(&objects, &object) {
                kind::stand_in(&mut objects, last, &object, value.as_ref(), file, &why);
            }
        }
        for file in unclear {
            for object in kind::of_file(last, &file) {
                if !kind::holds(&objects, object) {
                    kind::keep(&mut objects, last, object, kind::Keep::Any);
                }
            }
        }
        (objects, rejected)
    }
}

fn read(file: &Path) -> io::Result<String> {
    // Asked before it is opened: opening a pipe would wait for its writer.
    if !std::fs::metadata(file)?.is_file() {
        return Err(io::Error::other("not a regular file"));
    }
    let opened = File::open(file)?;
    // One byte more than allowed, so that growth while reading is noticed too.
    let mut bytes = Vec::new();
    opened.take(MAX_FILE + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > MAX_FILE {
        return Err(io::Error::other(format!("the file is larger than {MAX_FILE} bytes; split it")));
    }
    String::from_utf8(bytes).map_err(|_| io::Error::other("the file is not UTF-8 text"))
}
