//! Finding an architecture's tensors in a file.

use super::finite::check_finite;
use super::names::{NameMap, Names, outer_wrapper, unwrapped};
use super::wanted::Wanted;
use crate::arch::{Arch, Naming};
use crate::error::{Error, Result, WeightsMismatch, shown, shown_list};
use crate::head::COLUMNS;
use crate::params::{Declared, Kind};
use crate::weights::Weights;
use candle_core::{DType, Tensor};
use std::collections::{BTreeMap, BTreeSet};

/// A file's tensors under the architecture's canonical names.
pub(super) struct Matched {
    pub naming: Naming,
    pub channels: usize,
    pub tensors: BTreeMap<String, Tensor>,
    pub counters: BTreeMap<String, Tensor>,
    pub classifier: Option<(Tensor, Tensor)>,
    /// Names and shapes of a classifier that is not one linear layer over the features.
    pub unused: Vec<String>,
    /// Notes of what was chosen, removed and skipped in the file.
    pub notes: Vec<String>,
}

/// Common names of classifiers. A tensor with one of these names, or below one, is not part of the backbone.
const HEADS: [&str; 5] = ["classifier", "fc", "head", "last_linear", "linear"];

/// Finds every tensor of `arch` in the file, under the naming that fits best and under any prefix, and checks that its
/// elements are finite. `prefix`: the one that the user sets; `dtype`: the network's element type.
pub(super) fn matched(arch: &Wanted, weights: &Weights, prefix: Option<&str>, dtype: DType) -> Result<Matched> {
    let names = Names::of(weights, prefix)?;
    let map = names.map(arch, &arch.declared(arch.usual_channels())?, weights)?;
    let mut found = Comparison::of(arch, &names, &map)?;
    if !found.fits() {
        return Err(found.mismatch(arch, &names, &map, weights));
    }
    for d in &found.declared {
        if let (Some((file, _)), Some(tensor)) = (names.get(&map.name(arch, &d.name)), found.tensors.get(&d.name)) {
            check_finite(&weights.path, file, tensor, dtype, d.facts.kind == Kind::RunningVariance)?;
        }
    }
    if let Some((weight, bias)) = &found.classifier {
        for (suffix, tensor) in [("weight", weight), ("bias", bias)] {
            let name = map.name(arch, &format!("{}.{suffix}", arch.classifier()));
            check_finite(&weights.path, names.get(&name).map_or(&name, |(file, _)| file), tensor, dtype, false)?;
        }
    }
    let mut notes = weights.notes.clone();
    let removed = names.removed(&map.prefix);
    if !removed.is_empty() {
        notes.push(format!("removed from the names: {}", shown_list(removed.iter().map(String::as_str))));
    }
    let mut beside = names.beside(&map.prefix);
    beside.extend(found.beside.iter().map(String::as_str));
    if !beside.is_empty() {
        notes.push(format!("not part of the network: {}", first_of(&beside)));
    }
    if !weights.others.is_empty() {
        let others: Vec<String> = weights.others.iter().map(|(name, what)| format!("{name} ({what})")).collect();
        notes.push(format!("skipped, not tensors: {}", first_of(&others)));
    }
    Ok(Matched {
        naming: map.naming,
        channels: found.channels,
        tensors: std::mem::take(&mut found.tensors),
        counters: found.counters,
        classifier: found.classifier,
        unused: found.unused,
        notes,
    })
}

/// The first names, and how many more there are.
pub(super) fn first_of(names: &[impl AsRef<str>]) -> String {
    const FIRST: usize = 6;
    let first: Vec<String> = names.iter().take(FIRST).map(|name| shown(name.as_ref())).collect();
    let more = names.len() - first.len();
    first.join(", ") + &if more > 0 { format!(" and {more} more") } else { String::new() }
}

/// An architecture compared with a file.
struct Comparison {
    declared: Vec<Declared>,
    channels: usize,
    tensors: BTreeMap<String, Tensor>,
    counters: BTreeMap<String, Tensor>,
    classifier: Option<(Tensor, Tensor)>,
    unused: Vec<String>,
    beside: Vec<String>,
    missing: Vec<String>,
    unknown: Vec<String>,
    shapes: Vec<String>,
}

impl Comparison {
    fn of(arch: &Wanted, names: &Names<'_>, map: &NameMap) -> Result<Self> {
        let usual = arch.usual_channels();
        let as_usual = arch.declared(usual)?;
        // The tensor that meets the images' channels shows their number, if the rest of its shape fits.
        let channels = as_usual.iter().find_map(|d| {
            let at = d.facts.image_channels?;
            let dims = names.get(&map.name(arch, &d.name))?.1.dims();
            let same = |(i, (a, b)): (usize, (&usize, &usize))| i == at || a == b;
            let fits = dims.len() == d.shape.len() && dims.iter().zip(&d.shape).enumerate().all(same) && dims[at] > 0;
            fits.then(|| dims[at])
        });
        let channels = channels.unwrap_or(usual);
        let declared = if channels == usual { as_usual } else { arch.declared(channels)? };
        let mut left = names.under(&map.prefix);
        let (mut tensors, mut missing, mut shapes) = (BTreeMap::new(), vec![], vec![]);
        for d in &declared {
            let name = map.name(arch, &d.name);
            let Some((file, tensor)) = names.get(&name) else {
                missing.push(name);
                continue;
            };
            left.remove(&name[map.prefix.len()..]);
            match shaped(tensor, d, map.naming)? {
                Some(tensor) => drop(tensors.insert(d.name.clone(), tensor)),
                None if tensor.dims() == d.shape => {
                    shapes.push(format!("{file} holds {:?}, but weights are floating point", tensor.dtype()));
                }
                None => shapes.push(format!("{file} has {:?} and should have {:?}", tensor.dims(), d.shape)),
            }
        }
        let mut counters = BTreeMap::new();
        for d in &declared {
            let Some(norm) = d.name.strip_suffix(".running_mean") else { continue };
            let canonical = format!("{norm}.num_batches_tracked");
            let name = map.name(arch, &canonical);
            if let Some((_, tensor)) = names.get(&name) {
                counters.insert(canonical, tensor.clone());
                left.remove(&name[map.prefix.len()..]);
            }
        }
        let classifier = classifier(arch, names, map, &mut left)?;
        let (unused, unknown): (Vec<&str>, Vec<&str>) =
            left.into_iter().partition(|name| is_of_head(name) || arch.may_ignore(name));
        let in_file = |name: &&str| names.get(&format!("{}{name}", map.prefix));
        // If the whole network is wrapped, unwrapped tensors do not belong to it: torch's AveragedModel has a counter.
        let wrapper = |d: &Declared| names.get(&map.name(arch, &d.name)).and_then(|(file, _)| outer_wrapper(file));
        let whole =
            declared.first().and_then(wrapper).filter(|outer| declared.iter().all(|d| wrapper(d) == Some(outer)));
        let (beside, unknown): (Vec<&str>, Vec<&str>) = unknown.into_iter().partition(|name| {
            let file = names.get(&format!("{}{name}", map.prefix)).map_or(*name, |(file, _)| file);
            whole.is_some() && outer_wrapper(file) != whole
        });
        let unused = unused.iter().filter_map(in_file).map(|(file, t)| format!("{file} {:?}", t.dims())).collect();
        let [beside, unknown] = [beside, unknown]
            .map(|list| list.iter().filter_map(in_file).map(|(file, _)| file.to_owned()).collect::<Vec<String>>());
        Ok(Self { declared, channels, tensors, counters, classifier, unused, beside, missing, unknown, shapes })
    }

    fn fits(&self) -> bool {
        self.missing.is_empty() && self.shapes.is_empty() && self.unknown.is_empty()
    }

    /// The error for tensors that do not fit, with an architecture that does.
    fn mismatch(self, arch: &Wanted, names: &Names<'_>, map: &NameMap, weights: &Weights) -> Error {
        let mut seen = BTreeSet::new();
        let others: BTreeMap<_, _> = weights.others.iter().map(|(n, what)| (unwrapped(n, &mut seen), what)).collect();
        if let Some((name, what)) = self.missing.iter().find_map(|name| others.get_key_value(name.as_str())) {
            let problem = format!(
                "tensor {} is {what} in this file, which is neither read nor run; save model.state_dict(), whose \
                 values are tensors",
                shown(name)
            );
            return Error::weights(&weights.path, problem);
        }
        let looks_like = looks_like(arch.arch(), names, weights);
        let common = names.common_prefix().filter(|_| looks_like.is_none() && map.prefix.is_empty());
        Error::WeightsMismatch(Box::new(WeightsMismatch {
            path: weights.path.clone(),
            arch: arch.name().to_string(),
            missing: self.missing,
            unknown: self.unknown,
            shapes: self.shapes,
            looks_like: looks_like.map(|arch| arch.name().to_string()),
            prefix: common.map(String::from),
        }))
    }
}

/// The error for a file of unknown architecture.
pub(super) fn of_unknown_arch(weights: &Weights) -> Error {
    let guess = Names::of(weights, None).ok().and_then(|names| looks_like(None, &names, weights));
    let guess = guess.map_or(String::new(), |arch| format!("; it looks like {arch}"));
    let problem = "does not name its architecture; set it (`Source::arch`, `--arch`)";
    Error::weights(&weights.path, format!("{problem}{guess}"))
}

/// An architecture other than `asked` that the tensors fit.
fn looks_like(asked: Option<Arch>, names: &Names<'_>, weights: &Weights) -> Option<Arch> {
    let fits = |arch: Arch| -> Result<bool> {
        let arch = &Wanted::Arch(arch);
        let map = names.map(arch, &arch.declared(arch.usual_channels())?, weights)?;
        Ok(Comparison::of(arch, names, &map)?.fits())
    };
    // An architecture whose comparison fails is not a candidate.
    Arch::all().iter().copied().find(|&arch| Some(arch) != asked && fits(arch).unwrap_or(false))
}

fn float(tensor: &Tensor) -> bool {
    matches!(tensor.dtype(), DType::F32 | DType::F64)
}

/// Whether a name belongs to a classifier.
fn is_of_head(name: &str) -> bool {
    HEADS.contains(&name.split('.').next().unwrap_or_default())
}

/// The tensor in the declared shape, if it fits. torchvision stores VGG's first fully connected layers, which are
/// convolutions here, as flat linear ones.
fn shaped(tensor: &Tensor, d: &Declared, naming: Naming) -> Result<Option<Tensor>> {
    if !float(tensor) {
        return Ok(None);
    }
    if tensor.dims() == d.shape {
        return Ok(Some(tensor.clone()));
    }
    let flat = naming == Naming::Torchvision
        && tensor.rank() == 2
        && tensor.dims().first() == d.shape.first()
        && tensor.elem_count() == d.shape.iter().product::<usize>();
    Ok(if flat { Some(tensor.reshape(d.shape.as_slice())?) } else { None })
}

/// The original classifier's weight (classes, feature_dim) and bias (classes), if it is one linear layer.
fn classifier(
    arch: &Wanted,
    names: &Names<'_>,
    map: &NameMap,
    left: &mut BTreeSet<&str>,
) -> Result<Option<(Tensor, Tensor)>> {
    let [weight, bias] = ["weight", "bias"].map(|s| map.name(arch, &format!("{}.{s}", arch.classifier())));
    let (Some((_, w)), Some((_, b))) = (names.get(&weight), names.get(&bias)) else { return Ok(None) };
    // A head over all stages, whatever its width.
    if names.get(&map.name(arch, &format!("{}.{COLUMNS}", arch.classifier()))).is_some() {
        return Ok(None);
    }
    let dim = arch.feature_dim();
    let linear = match (w.dims(), b.dims()) {
        // Some files store it as a convolution of one pixel.
        ([classes, d] | [classes, d, 1, 1], [n]) => *d == dim && classes == n && *n > 0 && float(w) && float(b),
        _ => false,
    };
    if !linear {
        return Ok(None);
    }
    left.remove(&weight[map.prefix.len()..]);
    left.remove(&bias[map.prefix.len()..]);
    Ok(Some((w.flatten_from(1)?, b.clone())))
}
