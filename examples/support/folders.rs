//! Options that the examples share for folders of images.

use candle_finetune::{FolderLayout, FolderOptions, ImageFolder};
use clap::Args;

/// How to read a folder of images.
#[derive(Args)]
pub struct Folders {
    /// Read the folders in DATA as parts (train, valid, test) or as classes, if their names allow both
    #[arg(long)]
    pub layout: Option<FolderLayout>,
    /// Skip and count images that cannot be read, instead of stopping
    #[arg(long)]
    pub skip_broken: bool,
    /// Maximum number of pixels of an image
    #[arg(long)]
    pub max_pixels: Option<u64>,
}

impl Folders {
    pub fn options(&self) -> FolderOptions {
        let options = ImageFolder::options().skip_broken(self.skip_broken);
        let options = self.layout.into_iter().fold(options, FolderOptions::layout);
        self.max_pixels.into_iter().fold(options, FolderOptions::max_pixels)
    }
}
