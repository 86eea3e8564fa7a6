//! A predictor as a folder of timm's shape, with a model card.

use super::{Predictor, saved};
use crate::arch::{Arch, CropMode, Interpolation};
use crate::error::{Error, Result};
use crate::head::HeadKind;
use crate::weights::write_text;
use serde_json::json;
use std::fmt::Write as _;
use std::io::ErrorKind;
use std::path::Path;

/// What the folder holds.
pub(super) const FILES: [&str; 3] = ["model.safetensors", "config.json", "README.md"];

/// Writes the folder. `id`: what it will be called on the hub.
pub(super) fn write(predictor: &Predictor, path: &Path, id: Option<&str>) -> Result<()> {
    std::fs::create_dir_all(path).map_err(Error::io("create", path))?;
    saved::write(predictor, &path.join(FILES[0]))?;
    write_text(&path.join(FILES[1]), &config(predictor)?)?;
    let card_path = path.join(FILES[2]);
    match std::fs::read(&card_path) {
        Ok(text) if !is_ours(&text) => Ok(()),
        Err(error) if error.kind() != ErrorKind::NotFound => Err(Error::io("read", &card_path)(error)),
        _ => write_text(&card_path, &card(predictor, id)?),
    }
}

/// Stands in cards that are written anew with the predictor. A text without it is somebody's own, and stays.
const MARK: &str = "<!-- Written by candle-finetune with each save or push; without this line it is left alone. -->";

/// Whether a card was written here. Others' may be in any encoding.
pub(super) fn is_ours(card: &[u8]) -> bool {
    card.windows(MARK.len()).any(|part| part == MARK.as_bytes())
}

/// timm's config.json.
fn config(predictor: &Predictor) -> Result<String> {
    let backbone = &predictor.backbone;
    let (arch, spec, classes) = (backbone.arch(), backbone.input_spec(), predictor.labels().len());
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
    let mut config = json!({
        "architecture": arch.name(),
        "num_classes": classes,
        "num_features": arch.feature_dim(),
        "global_pool": "avg",
        "label_names": predictor.labels(),
        "model_args": { "num_classes": classes, "in_chans": spec.channels, "global_pool": "avg" },
        "pretrained_cfg": {
            "custom_load": false,
            "input_size": [spec.channels, spec.size.0, spec.size.1],
            "fixed_input_size": false,
            "interpolation": interpolation,
            // timm crops what was squashed or padded, too.
            "crop_pct": if spec.crop_mode == CropMode::Center { spec.crop_pct } else { 1.0 },
            "crop_mode": crop_mode,
            "mean": rounded(&spec.mean),
            "std": rounded(&spec.std),
            "num_classes": classes,
            "classifier": arch.classifier(),
        },
    });
    // By this name timm finds the kernel to adapt where a model is made for other channels than the weights have.
    // Versions up to 1.0.15 at least assume weights for three channels, and drop a kernel for 2, 4 or more with no more
    // than a warning; without the name, all from 0.9.2 to 1.0.31 load it as it is.
    if spec.channels == 3
        && let Some(first) = arch.declared(3)?.first()
    {
        config["pretrained_cfg"]["first_conv"] = first.name.trim_end_matches(".weight").into();
    }
    let text = serde_json::to_string_pretty(&config);
    text.map(|text| text + "\n").map_err(|error| Error::invalid("config.json", error.to_string()))
}

/// The shortest numbers that are these: 0.485, not 0.48500001430511475.
fn rounded(values: &[f32]) -> Vec<serde_json::Value> {
    let number = |v: &f32| v.to_string().parse::<f64>().unwrap_or(f64::from(*v)).into();
    values.iter().map(number).collect()
}

/// Whether timm has the architecture, with a head as it would have it.
fn in_timm(predictor: &Predictor, arch: Arch) -> bool {
    arch.in_timm() && !matches!(predictor.inference.head().kind, HeadKind::Mlp(_))
}

/// The model card: what it is made of, how, how good it is, and how to use it.
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
    line(format_args!("A {arch} that tells {} classes apart: {}.\n", labels.len(), listed(labels)));
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
        // Each figure says what it was measured on, and on how many images where the report knows.
        let samples = report.samples;
        let parts = [
            ("validation", report.valid_top1, samples.valid),
            ("test", report.top1.filter(|_| samples.test.is_some()), samples.test),
        ];
        for (part, top1, images) in parts {
            let Some(top1) = top1 else { continue };
            let images = images.map_or(String::new(), |images| format!(" ({images} images)"));
            line(format_args!("| Top-1 on {part} data{images} | {:.2} % |", 100.0 * top1));
        }
    }
    let (height, width) = spec.size;
    line(format_args!("| Input | {height} x {width} pixels, {} channels |\n", spec.channels));
    if let Some(report) = &report {
        line(format_args!("## How it was trained\n\n```text\n{}```\n", report.plan));
    }
    let name = id.unwrap_or("FOLDER");
    line(format_args!("## Use\n\nIn Rust, with candle-finetune:\n\n```rust"));
    if id.is_some() {
        line(format_args!("let predictor = Predictor::from_hub(\"{name}\", &Device::Cpu)?;"));
    } else {
        line(format_args!("let predictor = Predictor::pretrained(Source::dir(\"{name}\"), &Device::Cpu)?;"));
    }
    line(format_args!("let prediction = predictor.predict(&Image::open(\"image.jpg\")?)?;\n```\n"));
    if timm {
        let place = if id.is_some() { "hf-hub" } else { "local-dir" };
        line(format_args!("In Python, with timm:\n\n```python"));
        line(format_args!("model = timm.create_model(\"{place}:{name}\", pretrained=True).eval()\n```"));
    } else {
        line(format_args!("timm has no such network, so it cannot load this one."));
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
