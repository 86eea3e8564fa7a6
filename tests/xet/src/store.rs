//! A content-addressed store on this machine: the one that xet's authors test their client with, its blocks on disk,
//! where they can be taken away and changed.

use crate::Outcome;
use std::path::{Path, PathBuf};
use tokio::runtime::Runtime;
use xet::xet_session::{Sha256Policy, XetFileInfo, XetSessionBuilder};
use xet_client::cas_client::{LocalTestServer, LocalTestServerBuilder};

pub struct Store {
    server: LocalTestServer,
    runtime: Runtime,
    folder: PathBuf,
}

impl Store {
    pub fn start(folder: &Path) -> Outcome<Self> {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
        let server = runtime.block_on(LocalTestServerBuilder::new().with_disk_location(folder).start());
        Ok(Self { server, runtime, folder: folder.to_path_buf() })
    }

    pub fn url(&self) -> &str {
        self.server.http_endpoint()
    }

    /// Stores a file as hf-hub stores it, and says what it is called here.
    pub fn upload(&self, file: &Path) -> Outcome<XetFileInfo> {
        self.runtime.block_on(async {
            let session = XetSessionBuilder::new().build()?;
            let commit = session.new_upload_commit()?.with_endpoint(self.url()).build().await?;
            let upload = commit.upload_from_path(file.to_path_buf(), Sha256Policy::Compute).await?;
            let stored = upload.finalize_ingestion().await?;
            commit.commit().await?;
            Ok(stored.xet_info)
        })
    }

    /// The files that hold the blocks, the largest first; the store has empty ones too.
    pub fn blocks(&self) -> Outcome<Vec<(PathBuf, u64)>> {
        let mut blocks = vec![];
        for entry in std::fs::read_dir(self.folder.join("xorbs"))? {
            let entry = entry?;
            blocks.push((entry.path(), entry.metadata()?.len()));
        }
        blocks.retain(|(_, size)| *size > 1000);
        blocks.sort_by_key(|(path, size)| (std::cmp::Reverse(*size), path.clone()));
        Ok(blocks)
    }
}

/// A block that is not what it was until this is dropped.
pub struct Damage {
    path: PathBuf,
    aside: PathBuf,
}

impl Damage {
    pub fn missing(block: &Path) -> Outcome<Self> {
        // Not beside the others, where it would count as one of them.
        let folder = block.parent().and_then(Path::parent).ok_or("a block without a folder")?;
        let aside = folder.join("aside");
        std::fs::rename(block, &aside)?;
        Ok(Self { path: block.to_path_buf(), aside })
    }

    pub fn changed(block: &Path, change: impl FnOnce(&mut [u8])) -> Outcome<Self> {
        let damage = Self::missing(block)?;
        let mut bytes = std::fs::read(&damage.aside)?;
        change(&mut bytes);
        std::fs::write(block, bytes)?;
        Ok(damage)
    }
}

impl Drop for Damage {
    fn drop(&mut self) {
        if let Err(error) = std::fs::rename(&self.aside, &self.path) {
            eprintln!("{} cannot be put back: {error}", self.path.display());
        }
    }
}
