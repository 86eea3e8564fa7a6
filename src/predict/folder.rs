//! A predictor as a folder in timm's layout, with a model card.

use super::Predictor;
use crate::arch::Arch;
use crate::blueprint::Pooling;
use crate::error::{Error, Result};
use crate::head::HeadKind;
use crate::input_spec::{CropMode, Interpolation};
use crate::metrics::Task;
use crate::weights::write_text;
use serde_json::json;
use std::fmt::Write as _;
use std::io::ErrorKind;
use std::path::Path;

/// The files of the folder.
pub(super) const FILES: [&str; 3] = ["model.safetensors", "config.json", "README.md"];

/// Writes the folder. `id`: its name on the hub.
pub(super) fn write(predictor: &Predictor, path: &Path, id: Option<&str>) -> Result<()> {
    std::fs::create_dir_all(path).map_err(Error::io("create", path))?;
    predictor.save(path.join(FILES[0]))?;
    write_text(&path.join(FILES[1]), &config(predictor)?)?;
    let card_path = path.join(FILES[2]);
    match std::fs::read(&card_path) {
        Ok(text) if !is_ours(&text) => Ok(()),
        Err(error) if error.kind() != ErrorKind::NotFound => Err(Error::io("read", &card_path)(error)),
        _ => write_text(&card_path, &card(predictor, id)?),
    }
}

/// Marks cards that are rewritten with the predictor. A card without it is the user's and is left unchanged.
const MARK: &str = "<!-- Written by candle-finetune with each save or push; without this line it is left alone. -->";

/// Whether this crate wrote a card. Others may be in any encoding.
pub(super) fn is_ours(card: &[u8]) -> bool {
    card.windows(MARK.len()).any(|part| part == MARK.as_bytes())
}

/// timm's config.json.
fn config(predictor: &Predictor) -> Result<String> {
    let backbone = &predictor.backbone;
    let (blueprint, spec, classes) = (backbone.blueprint(), backbone.input_spec(), predictor.labels().len());
    let interpolation = match spec.interpolation {
        Interpolation::Nearest => "nearest",
        Interpolation::Bilinear => "bilinear",
        Interpolation::Bicubic => "bicubic",
        Interpolation::Lanczos => "lanczos",
    };
    let crop_mode = match spec.crop_mode {
        CropMode::Center => "center",
        CropMode::Squash => "squash",
        CropMode::Border => "border",
    };
    let pool = match blueprint.pooling() {
        Pooling::Mean => "avg",
        Pooling::ClassToken => "token",
        Pooling::GeneralizedMean(_) => "gem",
    };
    let mut config = json!({
        "architecture": blueprint.name(),
        "num_classes": classes,
        "num_features": blueprint.feature_dim(),
        "global_pool": pool,
        "label_names": predictor.labels(),
        "model_args": { "num_classes": classes, "in_chans": spec.channels, "global_pool": pool },
        "pretrained_cfg": {
            "custom_load": false,
            "input_size": [spec.channels, spec.size.0, spec.size.1],
            "fixed_input_size": false,
            "interpolation": interpolation,
            // timm also crops after squashing or padding.
            "crop_pct": if spec.crop_mode == CropMode::Center { spec.crop_pct } else { 1.0 },
            "crop_mode": crop_mode,
            "mean": rounded(&spec.mean),
            "std": rounded(&spec.std),
            "num_classes": classes,
            "classifier": blueprint.classifier(),
        },
    });
    // With this name timm finds the kernel to adapt if a model takes other channels than the weights have. Versions up
    // to at least 1.0.15 assume weights for three channels, and drop a kernel for 2, 4 or more with only a warning;
    // without the name, all versions from 0.9.2 to 1.0.31 load it unchanged.
    if spec.channels == 3
        && let Some((first, _)) = blueprint.over_images()
    {
        config["pretrained_cfg"]["first_conv"] = first.trim_end_matches(".weight").into();
    }
    let text = serde_json::to_string_pretty(&config);
    text.map(|text| text + "\n").map_err(|error| Error::invalid("config.json", error.to_string()))
}

/// The shortest decimals that parse to these values: 0.485, not 0.48500001430511475.
fn rounded(values: &[f32]) -> Vec<serde_json::Value> {
    let number = |v: &f32| v.to_string().parse::<f64>().unwrap_or(f64::from(*v)).into();
    values.iter().map(number).collect()
}

/// Whether timm has the architecture, with this kind of head.
fn in_timm(predictor: &Predictor, arch: Option<Arch>) -> bool {
    let averages = predictor.backbone.blueprint().pooling() == Pooling::Mean;
    averages
        && arch.is_some_and(Arch::in_timm)
        && !matches!(predictor.inference.head().kind, HeadKind::Mlp(_) | HeadKind::Stages)
}

/// The model card: base model, training, accuracy, and how to use it.
fn card(predictor: &Predictor, id: Option<&str>) -> Result<String> {
    let arch = predictor.backbone.arch();
    let timm = in_timm(predictor, arch);
    let report = predictor.report()?;
    let base = report.as_ref().and_then(|report| report.base_model.clone());
    let mut card = String::from("---\npipeline_tag: image-classification\n");
    // Writing into a String cannot fail.
    let mut line = |text: std::fmt::Arguments<'_>| {
        let _ = writeln!(card, "{text}");
    };
    line(format_args!("library_name: {}", if timm { "timm" } else { "candle-finetune" }));
    line(format_args!("tags:\n- image-classification\n- candle-finetune"));
    if let Some(base) = base.as_ref().filter(|base| base.contains('/')) {
        line(format_args!("base_model: {base}"));
    }
    line(format_args!("metrics:\n- accuracy\n---\n"));
    line(format_args!("{MARK}\n\n# {}\n", id.unwrap_or("Image classifier")));
    let (labels, spec) = (predictor.labels(), predictor.backbone.input_spec());
    let (name, classes) = (predictor.backbone.name(), labels.len());
    let (does, metric) = match predictor.task() {
        Task::Classes => ("classifies images into", "Top-1"),
        Task::Labels => ("gives images any number of", "Exact match"),
    };
    line(format_args!("A {name} that {does} {classes} classes: {}.\n", listed(labels)));
    line(format_args!("| | |\n|---|---|"));
    if let Some(base) = &base {
        line(format_args!("| Base model | {base} |"));
    }
    if let Some(report) = &report {
        let strategy = report.strategy.map_or("custom plan", |strategy| strategy.name());
        line(format_args!("| Strategy | {strategy} |"));
        line(format_args!("| Training images | {} |", report.samples.train));
        line(format_args!("| Epochs | {} (seed {}) |", report.epochs.len(), report.seed));
        let share = report.parameters.learning as f64 / (report.parameters.learning + report.parameters.frozen) as f64;
        line(format_args!("| Parameters trained in the last phase | {:.1} % |", 100.0 * share));
        // Each figure names its data, and the number of images if the report has it.
        let samples = report.samples;
        let parts = [
            ("validation", report.valid_top1, samples.valid),
            ("test", report.top1.filter(|_| samples.test.is_some()), samples.test),
        ];
        for (part, top1, images) in parts {
            let Some(top1) = top1 else { continue };
            let images = images.map_or(String::new(), |images| format!(" ({images} images)"));
            line(format_args!("| {metric} on {part} data{images} | {:.2} % |", 100.0 * top1));
        }
    }
    let (height, width) = spec.size;
    line(format_args!("| Input | {height} x {width} pixels, {} channels |\n", spec.channels));
    if let Some(report) = &report {
        line(format_args!("## How it was trained\n\n```text\n{}```\n", report.plan));
    }
    let name = id.unwrap_or("FOLDER");
    line(format_args!("## Use\n\nIn Rust, with candle-finetune:\n\n```rust"));
    if !predictor.backbone.blueprint().is_built_in() {
        let source = if id.is_some() { "hub" } else { "dir" };
        line(format_args!("// `blueprint`: the one that it was trained with, whose layers no file describes."));
        line(format_args!("let source = Source::{source}(\"{name}\").blueprint(&blueprint);"));
        line(format_args!("let predictor = Predictor::load(source, &Device::Cpu)?;"));
    } else if id.is_some() {
        line(format_args!("let predictor = Predictor::from_hub(\"{name}\", &Device::Cpu)?;"));
    } else {
        line(format_args!("let predictor = Predictor::load(Source::dir(\"{name}\"), &Device::Cpu)?;"));
    }
    line(format_args!("let prediction = predictor.predict(&Image::open(\"image.jpg\")?)?;\n```\n"));
    if predictor.task() == Task::Labels {
        line(format_args!("Each class has a sigmoid and a threshold of its own, {:?}.\n", predictor.thresholds()));
    }
    if timm {
        let place = if id.is_some() { "hf-hub" } else { "local-dir" };
        line(format_args!("In Python, with timm:\n\n```python"));
        line(format_args!("model = timm.create_model(\"{place}:{name}\", pretrained=True).eval()\n```"));
    } else {
        line(format_args!("timm cannot load this folder."));
    }
    Ok(card)
}

/// The first labels, and how many more there are.
fn listed(labels: &[String]) -> String {
    const SHOWN: usize = 20;
    let mut text = labels[..labels.len().min(SHOWN)].join(", ");
    if labels.len() > SHOWN {
        let _ = write!(text, " and {} more", labels.len() - SHOWN); // into a String
    }
    text
}
