//! From the names in a file to the architecture's own.

use crate::arch::{Arch, Layout};
use crate::error::{Error, Result};
use crate::params::Declared;
use crate::weights::Weights;
use candle_core::{DType, Tensor};
use std::collections::{BTreeMap, BTreeSet};

/// A file's tensors under the architecture's names.
pub(super) struct Matched {
    pub layout: Layout,
    pub channels: usize,
    pub tensors: BTreeMap<String, Tensor>,
    pub counters: BTreeMap<String, Tensor>,
    pub classifier: Option<(Tensor, Tensor)>,
}

const LAYOUTS: [Layout; 3] = [Layout::Timm, Layout::Torchvision, Layout::Transformers];

/// Finds every tensor of `arch` in the file, under the names of whichever library fits best. `head`: the
/// names of a head that the file is known to hold besides.
pub(super) fn matched(arch: Arch, weights: &Weights, head: &[String]) -> Result<Matched> {
    let declared = arch.declared(3)?;
    let count = |layout: Layout| {
        declared.iter().filter(|d| weights.tensors.contains_key(&arch.name_in(layout, &d.name))).count()
    };
    let layout = LAYOUTS.into_iter().rev().max_by_key(|&l| count(l)).unwrap_or(Layout::Timm);
    // The first convolution tells the number of channels, if it has its shape otherwise.
    let channels = declared.first().and_then(|d| {
        let dims = weights.tensors.get(&arch.name_in(layout, &d.name))?.dims();
        let fits = dims.len() == 4 && dims[0] == d.shape[0] && dims[2..] == d.shape[2..] && dims[1] > 0;
        fits.then(|| dims[1])
    });
    let channels = channels.unwrap_or(3);
    let declared = arch.declared(channels)?;

    let mut left: BTreeSet<&str> = weights.tensors.keys().map(String::as_str).collect();
    let (mut tensors, mut missing, mut shapes) = (BTreeMap::new(), vec![], vec![]);
    for d in &declared {
        let name = arch.name_in(layout, &d.name);
        let Some(tensor) = weights.tensors.get(&name) else {
            missing.push(name);
            continue;
        };
        left.remove(name.as_str());
        match shaped(tensor, d, layout)? {
            Some(tensor) => drop(tensors.insert(d.name.clone(), tensor)),
            None => shapes.push(format!("{name} has {:?} and should have {:?}", tensor.dims(), d.shape)),
        }
    }
    let mut counters = BTreeMap::new();
    for d in &declared {
        let Some(norm) = d.name.strip_suffix(".running_mean") else { continue };
        let canonical = format!("{norm}.num_batches_tracked");
        let name = arch.name_in(layout, &canonical);
        if let Some(tensor) = weights.tensors.get(&name) {
            counters.insert(canonical, tensor.clone());
            left.remove(name.as_str());
        }
    }
    let classifier = classifier(arch, layout, weights, &mut left, &mut shapes)?;
    let unknown: Vec<String> = left
        .into_iter()
        .filter(|name| !arch.may_ignore(name) && !head.iter().any(|h| h == name))
        .map(String::from)
        .collect();
    if missing.is_empty() && shapes.is_empty() && unknown.is_empty() {
        return Ok(Matched { layout, channels, tensors, counters, classifier });
    }
    Err(Error::WeightsMismatch { path: weights.path.clone(), arch: arch.name().to_string(), missing, unknown, shapes })
}

fn float(tensor: &Tensor) -> bool {
    matches!(tensor.dtype(), DType::F32 | DType::F64)
}

/// The tensor in the wanted shape; torchvision keeps VGG's convolutional layers as flat linear ones.
fn shaped(tensor: &Tensor, d: &Declared, layout: Layout) -> Result<Option<Tensor>> {
    if !float(tensor) {
        return Ok(None);
    }
    if tensor.dims() == d.shape {
        return Ok(Some(tensor.clone()));
    }
    let flat = layout == Layout::Torchvision
        && tensor.rank() == 2
        && tensor.dims().first() == d.shape.first()
        && tensor.elem_count() == d.shape.iter().product::<usize>();
    Ok(if flat { Some(tensor.reshape(d.shape.as_slice())?) } else { None })
}

fn classifier(
    arch: Arch,
    layout: Layout,
    weights: &Weights,
    left: &mut BTreeSet<&str>,
    shapes: &mut Vec<String>,
) -> Result<Option<(Tensor, Tensor)>> {
    let [weight, bias] = ["weight", "bias"].map(|s| arch.name_in(layout, &format!("{}.{s}", arch.classifier())));
    let found = (weights.tensors.get(&weight), weights.tensors.get(&bias));
    let (Some(w), Some(b)) = found else { return Ok(None) };
    let dim = arch.feature_dim();
    if arch.may_ignore(&weight) && w.dims().get(1) != Some(&dim) {
        // The classifier of the whole network, of which this is a part.
        return Ok(None);
    }
    left.remove(weight.as_str());
    left.remove(bias.as_str());
    match (w.dims(), b.dims()) {
        ([classes, d], [n]) if *d == dim && classes == n && float(w) && float(b) => Ok(Some((w.clone(), b.clone()))),
        // A convolution's worth of pixels, as some files have it.
        ([classes, d, 1, 1], [n]) if *d == dim && classes == n && float(w) && float(b) => {
            Ok(Some((w.flatten_from(1)?, b.clone())))
        }
        (w, b) => {
            shapes.push(format!(
                "{weight} and {bias} have {w:?} and {b:?} and should have [classes, {dim}] and [classes]"
            ));
            Ok(None)
        }
    }
}
