//! Draws what a network has learned: its first filters, the images that excite channels, probes, and where it looks.
//!
//! ```text
//! cargo run --release --example pictures --features plots -- --out pictures
//! cargo run --release --example pictures --features plots -- --data DIR --predictor tuned.safetensors --out pictures
//! ```
//!
//! Writes filters.png, channels.png, probes.png and grad_cam.png to the folder of --out. DIR holds CLASS/*.jpg, or
//! train/, valid/ and test/ with such folders; by default it is the shipped assets/fashion. Without a network it first
//! fine-tunes the backbone that comes with the crate.

#[path = "support/folders.rs"]
mod folders;
#[path = "support/run.rs"]
mod run;
#[path = "support/which.rs"]
mod which;

use candle_finetune::{
    Advisor, Backbone, Dataset, FineTuner, Image, ImageFolder, PictureGrid, Predictor, Sample, Subset, Target,
    TopActivations,
};
use clap::Parser;
use run::Failure;
use std::path::PathBuf;
use std::process::ExitCode;

/// Draws what a network has learned
#[derive(Parser)]
struct Options {
    /// Folder of images: CLASS/*, or {train,valid,test}/CLASS/*
    #[arg(long, default_value = concat!(env!("CARGO_MANIFEST_DIR"), "/assets/fashion"))]
    data: PathBuf,
    #[command(flatten)]
    folders: folders::Folders,
    #[command(flatten)]
    which: which::Which,
    /// Folder for the pictures
    #[arg(long)]
    out: PathBuf,
    /// Images that are searched for those that excite channels
    #[arg(long, default_value_t = 500)]
    images: usize,
    /// Channels per stage
    #[arg(long, default_value_t = 4)]
    channels: usize,
    /// Images whose classes are located by Grad-CAM
    #[arg(long, default_value_t = 10)]
    located: usize,
    /// Random seed
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// Device: cpu, cuda[:N] or metal[:N]
    #[arg(long, default_value = "cpu")]
    device: String,
}

fn main() -> ExitCode {
    let options = Options::parse();
    run::run(|| pictures(&options))
}

fn pictures(options: &Options) -> Result<(), Failure> {
    let device = run::device(&options.device)?;
    let splits = options.folders.options().splits(&options.data, options.seed)?;
    // Images that no network here was trained on: it would separate the classes of those it knows in any case.
    let held_out = splits.test.as_ref().unwrap_or(&splits.valid);
    let probes = |backbone: &Backbone| -> Result<Image, Failure> {
        Ok(Advisor::new(backbone).seed(options.seed).advise(held_out)?.evidence.draw_probes()?)
    };
    let mut plots = PictureGrid::new(1);
    let predictor = match options.which.load(&device)? {
        Some(predictor) => predictor,
        None => {
            let backbone = Backbone::embedded(&device)?;
            plots = plots.add(probes(&backbone)?, "pretrained");
            let tuner = FineTuner::new(backbone).seed(options.seed).on_event(run::progress());
            tuner.fit(&splits.train, &splits.valid)?.predictor
        }
    };
    let backbone = predictor.backbone();
    plots = plots.add(probes(backbone)?, if options.which.is_given() { "" } else { "fine-tuned" });

    std::fs::create_dir_all(&options.out).map_err(|error| format!("{}: {error}", options.out.display()))?;
    let save = |picture: Image, name: &str| -> Result<(), Failure> {
        let path = options.out.join(name);
        picture.save_png(&path)?;
        println!("{} {} x {}", path.display(), picture.width(), picture.height());
        Ok(())
    };
    save(backbone.draw_filters()?, "filters.png")?;
    let every = splits.train.len().div_ceil(options.images.max(1)).max(1);
    let searched = Subset::new(&splits.train, (0..splits.train.len()).step_by(every).collect())?;
    let top = TopActivations::find(backbone, &searched, options.channels, 9)?;
    save(TopActivations::draw(&top)?, "channels.png")?;
    save(plots.draw()?, "probes.png")?;
    save(located(&predictor, held_out, options.located)?, "grad_cam.png")
}

/// Images of each class in turn, each with Grad-CAM of the class that is predicted.
fn located(predictor: &Predictor, data: &ImageFolder, count: usize) -> Result<Image, Failure> {
    let mut of_class: Vec<Vec<usize>> = vec![vec![]; data.classes().len()];
    for i in 0..data.len() {
        if let Target::Class(class) = data.info(i).target {
            of_class[class as usize].push(i);
        }
    }
    let turns = (0..data.len()).flat_map(|turn| of_class.iter().filter_map(move |samples| samples.get(turn)));
    let mut grid = PictureGrid::new(5);
    for &i in turns.take(count) {
        let Sample::Image(image) = data.sample(i)? else { continue };
        let prediction = predictor.predict(&image)?;
        let cam = predictor.grad_cam(&image, Some(prediction.class))?;
        grid = grid.add(cam.overlay(&image)?, format!("{} {:.2}", cam.label, prediction.probability));
    }
    Ok(grid.draw()?)
}
