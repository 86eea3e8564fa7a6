//! The preprocessing of images in transformers' preprocessor_config.json.

use super::object::Object;
use crate::error::{Result, shown};
use crate::input_spec::{CropMode, InputSpec, Interpolation};
use serde_json::Value;

/// A processor's defaults for fields that its file leaves out, as far as all versions of transformers from 4.20 to 5.24
/// that have the processor agree.
#[derive(Default)]
struct Defaults {
    resample: Option<Interpolation>,
    /// Mean and standard deviation.
    normal: Option<([f32; 3], [f32; 3])>,
    /// The default for "size": of the shorter side, or of both.
    size: Option<usize>,
    /// The side of the centre crop.
    crop: Option<usize>,
}

const HALF: [f32; 3] = [0.5; 3];
/// Mean and standard deviation of CLIP's images.
const CLIP: ([f32; 3], [f32; 3]) =
    ([0.481_454_66, 0.457_827_5, 0.408_210_73], [0.268_629_54, 0.261_302_6, 0.275_777_1]);

impl Defaults {
    /// The defaults of a class such as "ViTImageProcessor" or "CLIPFeatureExtractor".
    fn of(kind: &str) -> Self {
        let kind = kind.strip_suffix("Fast").or(kind.strip_suffix("Pil")).unwrap_or(kind);
        match kind {
            "ViTImageProcessor" | "ViTFeatureExtractor" => Self {
                resample: Some(Interpolation::Bilinear),
                normal: Some((HALF, HALF)),
                size: Some(224),
                crop: None,
            },
            "BitImageProcessor" | "CLIPImageProcessor" | "CLIPFeatureExtractor" => {
                Self { resample: Some(Interpolation::Bicubic), normal: Some(CLIP), size: Some(224), crop: Some(224) }
            }
            // No default filter: bilinear before version 5, bicubic since. The older ConvNextFeatureExtractor has
            // ImageNet's mean and another size.
            "ConvNextImageProcessor" => Self { normal: Some((HALF, HALF)), size: Some(384), ..Self::default() },
            _ => Self::default(),
        }
    }
}

/// The input specification of a preprocessor_config.json.
pub(super) fn preprocessed(p: &Object) -> Result<InputSpec> {
    for field in ["do_resize", "do_rescale"] {
        if p.flag(field)? == Some(false) {
            return Err(p.wrong(field, "true"));
        }
    }
    let kind = p.text("image_processor_type")?.or(p.text("feature_extractor_type")?).unwrap_or_default();
    let known = Defaults::of(&kind);
    let absent = |field: &str| {
        let kind = if kind.is_empty() { "a processor without a type" } else { &kind };
        p.wrong(
            field,
            &format!("given: {} has no default that is the same in all versions of transformers", shown(kind)),
        )
    };
    let spec = sized(p, &kind, &known)?;
    let filter = match p.count("resample")? {
        Some(0) => Interpolation::Nearest,
        Some(1) => Interpolation::Lanczos,
        Some(2) => Interpolation::Bilinear,
        Some(3) => Interpolation::Bicubic,
        Some(_) => return Err(p.wrong("resample", "0 (nearest), 1 (lanczos), 2 (bilinear) or 3 (bicubic)")),
        None => known.resample.ok_or_else(|| absent("resample"))?,
    };
    let spec = spec.interpolation(filter);
    if p.number("rescale_factor")?.is_some_and(|factor| (factor * 255.0 - 1.0).abs() > 1e-6) {
        return Err(p.wrong("rescale_factor", "1/255"));
    }
    if p.flag("do_normalize")? == Some(false) {
        return Ok(spec.normalize(&[0.0; 3], &[1.0; 3]));
    }
    match known.normal {
        _ if p.has("image_mean") || p.has("image_std") => p.normalized(spec, "image_mean", "image_std"),
        Some((mean, std)) => Ok(spec.normalize(&mean, &std)),
        None => Err(absent("image_mean")),
    }
}

/// Size and crop.
fn sized(p: &Object, kind: &str, known: &Defaults) -> Result<InputSpec> {
    let spec = InputSpec::new(224);
    let short = match p.get("size") {
        Some(Value::Object(_)) => p.object("size")?.map_or(Ok(None), |size| size.size("shortest_edge"))?,
        Some(_) => p.size("size")?,
        None => known.size,
    };
    let sides = |field: &str| -> Result<(usize, usize)> {
        let found = match p.get(field) {
            Some(Value::Object(_)) => match p.object(field)? {
                Some(size) => size.size("height")?.zip(size.size("width")?),
                None => None,
            },
            _ => p.size(field)?.map(|n| (n, n)),
        };
        found.ok_or_else(|| p.wrong(field, "a number of pixels, or height and width, or for size a shortest_edge"))
    };
    // By default, a processor crops if it has a crop size.
    let crops = p.flag("do_center_crop")?.unwrap_or_else(|| p.has("crop_size") || known.crop.is_some());
    let crop = match known.crop {
        _ if !crops => None,
        Some(crop) if !p.has("crop_size") => Some((crop, crop)),
        _ => Some(sides("crop_size")?),
    };
    Ok(match (short, crop) {
        // For a ResNet whose processor has no type, transformers takes ConvNext's.
        (Some(short), None) if kind.contains("ConvNext") || kind.is_empty() || p.has("crop_pct") => {
            // From 384 pixels on, nothing is cropped.
            let pct = if short < 384 { p.fraction("crop_pct")?.unwrap_or(224.0 / 256.0) } else { 1.0 };
            spec.size(short, short)
                .crop_mode(if short < 384 { CropMode::Center } else { CropMode::Squash })
                .crop_pct(pct)
        }
        (Some(short), Some((h, w))) if h.max(w) <= short => spec.size(h, w).crop_pct(h.min(w) as f64 / short as f64),
        (_, Some(_)) => {
            let remedy = "no larger than a size that is a shortest_edge";
            return Err(p.wrong("crop_size", remedy));
        }
        // A plain number gives both sides.
        (Some(short), None) if !matches!(p.get("size"), Some(Value::Object(_))) => {
            spec.size(short, short).crop_mode(CropMode::Squash).crop_pct(1.0)
        }
        (Some(short), None) => spec.size(short, short).crop_pct(1.0),
        (None, None) => {
            let (h, w) = sides("size")?;
            spec.size(h, w).crop_mode(CropMode::Squash).crop_pct(1.0)
        }
    })
}
