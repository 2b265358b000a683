//! An image as one tar file: OCI image layout (image-spec, "image-layout") and Docker archive at once, over the same blobs.

use std::fs::File;
use std::io::{BufWriter, Write as _};
use std::path::Path;

use anyhow::Context as _;
use aws_lc_rs::digest::{SHA256, digest};
use serde_json::{Value, json};
use tar::EntryType;

use crate::{Image, layer};

/// Where a bare program name is looked up in a container.
const SEARCH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Bytes named by their digest.
struct Blob {
    hex: String,
    bytes: Vec<u8>,
}

impl Blob {
    fn new(bytes: Vec<u8>) -> Blob {
        let hex = digest(&SHA256, &bytes).as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
        Blob { hex, bytes }
    }

    fn json(value: &Value) -> anyhow::Result<Blob> {
        Ok(Blob::new(serde_json::to_vec(value)?))
    }

    fn path(&self) -> String {
        format!("blobs/sha256/{}", self.hex)
    }

    fn descriptor(&self, media: &str) -> Value {
        json!({
            "mediaType": format!("application/vnd.oci.image.{media}"),
            "digest": format!("sha256:{}", self.hex),
            "size": self.bytes.len(),
        })
    }
}

pub(crate) fn write(image: &Image, to: &Path) -> anyhow::Result<()> {
    let draft = to.with_extension("tar.part");
    let made = File::create(&draft)
        .with_context(|| format!("create {}", draft.display()))
        .and_then(|file| put(image, BufWriter::new(file)));
    let moved = made
        .and_then(|()| std::fs::rename(&draft, to).with_context(|| format!("move the archive to {}", to.display())));
    moved.with_context(|| format!("write image {}", image.name)).inspect_err(|_| {
        let _ = std::fs::remove_file(&draft); // the first error is the one to tell
    })
}

fn put(image: &Image, to: BufWriter<File>) -> anyhow::Result<()> {
    let layer = Blob::new(layer::bytes(&image.entries)?);
    let config = Blob::json(&config(image, &layer))?;
    let manifest = Blob::json(&json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": config.descriptor("config.v1+json"),
        "layers": [layer.descriptor("layer.v1.tar")],
    }))?;
    let mut named = manifest.descriptor("manifest.v1+json");
    let tag = image.name.rsplit_once(':').map_or("latest", |(_, tag)| tag);
    named["annotations"] = json!({ "io.containerd.image.name": image.name, "org.opencontainers.image.ref.name": tag });
    let index = json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.index.v1+json",
        "manifests": [named],
    });
    let docker = json!([{ "Config": config.path(), "RepoTags": [image.name], "Layers": [layer.path()] }]);
    let mut tar = tar::Builder::new(to);
    let mut add = |path: &str, bytes: &[u8]| {
        tar.append_data(&mut layer::header(EntryType::Regular, 0o644, bytes.len()), path, bytes)
    };
    add("oci-layout", br#"{"imageLayoutVersion":"1.0.0"}"#)?;
    add("index.json", &serde_json::to_vec(&index)?)?;
    add("manifest.json", &serde_json::to_vec(&docker)?)?;
    for blob in [&manifest, &config, &layer] {
        add(&blob.path(), &blob.bytes)?;
    }
    tar.into_inner()?.flush()?;
    Ok(())
}

fn config(image: &Image, layer: &Blob) -> Value {
    let mut run = json!({ "Entrypoint": image.entrypoint, "Env": [SEARCH] });
    if let Some(uid) = image.user {
        run["User"] = format!("{uid}:{uid}").into();
    }
    json!({
        "architecture": "amd64",
        "os": "linux",
        "config": run,
        // Not compressed, so the digest of the blob is that of the content.
        "rootfs": { "type": "layers", "diff_ids": [format!("sha256:{}", layer.hex)] },
    })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::io::Read as _;

    use super::*;

    fn read(path: &Path) -> BTreeMap<String, Vec<u8>> {
        let mut archive = tar::Archive::new(File::open(path).expect("the archive"));
        let mut files = BTreeMap::new();
        for entry in archive.entries().expect("a tar") {
            let mut entry = entry.expect("an entry");
            let mut bytes = Vec::new();
            entry.read_to_end(&mut bytes).expect("its bytes");
            files.insert(entry.path().expect("a path").display().to_string(), bytes);
        }
        files
    }

    #[test]
    fn the_archive_is_an_oci_layout_and_a_docker_archive_of_the_same_blobs() {
        let dir = tempfile::tempdir().expect("a directory");
        let path = dir.path().join("a.tar");
        let image = Image::new("localhost/a:7").text("hello", "/etc/greeting", 0o644).entrypoint(&["/a"]).user(65532);
        image.write(&path).expect("an archive");
        let files = read(&path);
        let json = |name: &str| serde_json::from_slice::<Value>(&files[name]).expect("JSON");
        let blob = |descriptor: &Value| {
            let hex = descriptor["digest"].as_str().and_then(|d| d.strip_prefix("sha256:")).expect("a digest");
            let bytes = files[&format!("blobs/sha256/{hex}")].clone();
            assert_eq!(Blob::new(bytes.clone()).hex, hex);
            assert_eq!(descriptor["size"], bytes.len());
            bytes
        };
        let index = json("index.json");
        assert_eq!(index["manifests"][0]["annotations"]["io.containerd.image.name"], "localhost/a:7");
        let manifest: Value = serde_json::from_slice(&blob(&index["manifests"][0])).expect("JSON");
        let config: Value = serde_json::from_slice(&blob(&manifest["config"])).expect("JSON");
        assert_eq!(config["config"]["User"], "65532:65532");
        assert_eq!(config["rootfs"]["diff_ids"][0], manifest["layers"][0]["digest"]);
        blob(&manifest["layers"][0]);
        let docker = &json("manifest.json")[0];
        for part in [&docker["Config"], &docker["Layers"][0]] {
            assert!(files.contains_key(part.as_str().expect("a path")), "{part}");
        }
        assert_eq!(docker["RepoTags"][0], "localhost/a:7");
    }

    #[test]
    fn the_same_image_written_twice_is_the_same_file() {
        let dir = tempfile::tempdir().expect("a directory");
        let image = Image::new("localhost/a:1").text("x", "/x", 0o644);
        let [one, other] = ["one.tar", "other.tar"].map(|name| dir.path().join(name));
        image.write(&one).expect("an archive");
        image.write(&other).expect("an archive");
        assert_eq!(std::fs::read(one).expect("one"), std::fs::read(other).expect("other"));
        assert_eq!(std::fs::read_dir(dir.path()).expect("the directory").count(), 2, "nothing else is left");
    }
}
