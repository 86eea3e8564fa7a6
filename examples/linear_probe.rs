//! Trains a linear classifier on the output of each stage of a frozen backbone, to show which stages fit your images.
//!
//! ```text
//! cargo run --release --example linear_probe
//! cargo run --release --example linear_probe -- --data DIR --arch resnet18 --weights resnet18.safetensors
//! ```
//!
//! The backbone stays frozen, every image passes through it once, and each stage's output is averaged over its pixels.
//! If the accuracy rises to the end, train the head alone. If it falls after some stage, the later stages are too
//! specific to the pretraining data and should be trained. Prints a line per stage and, last, the accuracy after the
//! last stage on test/ (else valid/): `top1 0.4940 247/500`.

#[path = "support/folders.rs"]
mod folders;
#[path = "support/run.rs"]
mod run;
#[path = "support/small.rs"]
mod small;

use candle_finetune::candle_core::{DType, Tensor, Var};
use candle_finetune::{
    Arch, Backbone, Cut, Dataset, FeatureCache, FeatureExtractor, FeatureSet, ImageFolder, Splits, Target,
    wilson_interval,
};
use candle_nn::{AdamW, Optimizer, ParamsAdamW};
use clap::Parser;
use run::Failure;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

/// Trains a linear classifier on the output of each stage of a frozen backbone.
#[derive(Parser)]
struct Options {
    /// The folder of images: {train,valid,test}/CLASS/*; by default the images that come with the crate.
    #[arg(long)]
    data: Option<PathBuf>,
    #[command(flatten)]
    folders: folders::Folders,
    /// A file of pretrained weights; needs --arch.
    #[arg(long, requires = "arch")]
    weights: Option<PathBuf>,
    /// The architecture of the weights.
    #[arg(long, requires = "weights")]
    arch: Option<Arch>,
    /// Steps of each classifier, over all images at once.
    #[arg(long, default_value_t = 300)]
    steps: usize,
    /// cpu, cuda[:N] or metal[:N].
    #[arg(long, default_value = "cpu")]
    device: String,
}

fn main() -> ExitCode {
    let options = Options::parse();
    run::run(|| probe(&options))
}

fn probe(options: &Options) -> Result<(), Failure> {
    let device = run::device(&options.device)?;
    let backbone = match (&options.weights, options.arch) {
        (Some(path), Some(arch)) => Backbone::from_file(arch, path, &device)?,
        _ => small::backbone(&device)?,
    };
    let splits = options.folders.options().splits(options.data.clone().unwrap_or_else(small::images), 0)?;
    println!("{splits}");
    let Splits { train, valid, test, .. } = splits;
    let classes = train.classes().len();
    let train = features(&backbone, &train)?;
    let test = features(&backbone, &test.unwrap_or(valid))?;

    println!("{:<12} {:>8}  {:>10}  {:>10}", "after", "features", "train top1", "test top1");
    let mut last = (0, 0);
    for ((stage, x), (_, unseen)) in train.stages.iter().zip(&test.stages) {
        let (mean, scale) = standard(x)?;
        let x = x.broadcast_sub(&mean)?.broadcast_mul(&scale)?;
        let unseen = unseen.broadcast_sub(&mean)?.broadcast_mul(&scale)?;
        let classifier = Classifier::fit(&x, &train.labels, classes, options.steps)?;
        let seen = classifier.correct(&x, &train.labels)?;
        last = (classifier.correct(&unseen, &test.labels)?, test.labels.len());
        let fraction = |correct: usize, of: usize| correct as f64 / of as f64;
        let (of, dim) = (train.labels.len(), x.dim(1)?);
        println!("{stage:<12} {dim:>8}  {:>10.4}  {:>10.4}", fraction(seen, of), fraction(last.0, last.1));
    }
    let (low, high) = wilson_interval(last.0, last.1);
    println!("95 % interval {low:.4} - {high:.4}");
    println!("top1 {:.4} {}/{}", last.0 as f64 / last.1 as f64, last.0, last.1);
    Ok(())
}

/// The features of a dataset.
struct Features {
    /// Each stage with its features (samples, channels).
    stages: Vec<(String, Tensor)>,
    labels: Vec<u32>,
}

fn features(backbone: &Backbone, data: &ImageFolder) -> Result<Features, Failure> {
    let data: Arc<dyn Dataset> = Arc::new(data.clone());
    let all: Vec<usize> = (0..data.len()).collect();
    let (extractor, cuts) = (FeatureExtractor::new(backbone)?, [Cut::Stages { pooled: 1 }]);
    let set = FeatureSet::gather(&data, &all, 1, &extractor, &cuts, &FeatureCache::new())?
        .ok_or("the features do not fit into memory")?;
    let stages =
        set.outputs().enumerate().map(|(output, stage)| Ok((stage.to_string(), set.features(output, &all, 0)?)));
    let class = |&i: &usize| match data.info(i).target {
        Target::Class(class) => Ok(class),
        other => Err(format!("{}: {other:?} is not one class", data.info(i))),
    };
    Ok(Features {
        stages: stages.collect::<Result<_, Failure>>()?,
        labels: all.iter().map(class).collect::<Result<_, _>>()?,
    })
}

/// The mean of each column, and one over its standard deviation.
fn standard(x: &Tensor) -> Result<(Tensor, Tensor), Failure> {
    let mean = x.mean_keepdim(0)?;
    let variance = x.broadcast_sub(&mean)?.sqr()?.mean_keepdim(0)?;
    Ok((mean, (variance + 1e-6)?.sqrt()?.recip()?))
}

/// Logistic regression.
struct Classifier {
    weight: Var,
    bias: Var,
}

impl Classifier {
    fn fit(x: &Tensor, labels: &[u32], classes: usize, steps: usize) -> Result<Self, Failure> {
        let (_, dim) = x.dims2()?;
        let weight = Var::zeros((dim, classes), DType::F32, x.device())?;
        let bias = Var::zeros(classes, DType::F32, x.device())?;
        let classifier = Self { weight, bias };
        let variables = vec![classifier.weight.clone(), classifier.bias.clone()];
        let params = ParamsAdamW { lr: 0.02, weight_decay: 0.1, ..ParamsAdamW::default() };
        let mut optimizer = AdamW::new(variables, params)?;
        let labels = Tensor::new(labels, x.device())?;
        for _ in 0..steps {
            optimizer.backward_step(&candle_nn::loss::cross_entropy(&classifier.logits(x)?, &labels)?)?;
        }
        Ok(classifier)
    }

    fn logits(&self, x: &Tensor) -> Result<Tensor, Failure> {
        Ok(x.matmul(self.weight.as_tensor())?.broadcast_add(self.bias.as_tensor())?)
    }

    /// How many rows are given their label.
    fn correct(&self, x: &Tensor, labels: &[u32]) -> Result<usize, Failure> {
        let guesses = self.logits(x)?.argmax(1)?.to_vec1::<u32>()?;
        Ok(guesses.iter().zip(labels).filter(|(guess, label)| guess == label).count())
    }
}
