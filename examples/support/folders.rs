//! How the examples open folders of images.

use candle_finetune::{FolderLayout, FolderOptions, ImageFolder};
use clap::Args;

/// The options of opening a folder.
#[derive(Args)]
pub struct Folders {
    /// Whether the folders in DATA are parts (train, valid, test) or classes, where their names allow both
    #[arg(long)]
    layout: Option<FolderLayout>,
    /// Skips images that cannot be read, and counts them, instead of stopping
    #[arg(long)]
    pub skip_broken: bool,
    /// The most pixels an image may have
    #[arg(long)]
    max_pixels: Option<u64>,
}

impl Folders {
    pub fn options(&self) -> FolderOptions {
        let options = ImageFolder::options().skip_broken(self.skip_broken);
        let options = self.layout.into_iter().fold(options, FolderOptions::layout);
        self.max_pixels.into_iter().fold(options, FolderOptions::max_pixels)
    }
}
