//! What a file calls the tensors of a network: the architecture's names behind prefixes and wrappers.

use crate::arch::{Arch, Naming};
use crate::error::{Error, Result, shown, shown_list};
use crate::params::Declared;
use crate::weights::Weights;
use candle_core::Tensor;
use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};

/// Parts of a name that wrappers of modules add, wherever in the network they sit: DataParallel, torch.compile, FSDP,
/// activation checkpointing.
const WRAPPERS: [&str; 4] = ["module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"];

const NAMINGS: [Naming; 3] = [Naming::Timm, Naming::Torchvision, Naming::Transformers];

/// Prefixes of more bytes are not looked for, nor more than so many different ones: files may hold any names.
const MAX_PREFIX: usize = 200;
const MAX_PREFIXES: usize = 64;

/// As many names, spread over the network, tell which prefixes are worth a closer look.
const SAMPLE: usize = 32;

/// A file's tensors by their names without wrappers, each with its name in the file.
pub(super) struct Names<'a> {
    tensors: BTreeMap<Cow<'a, str>, (&'a str, &'a Tensor)>,
    /// Names in the file that lie outside the prefix that was asked for.
    beside: Vec<&'a str>,
    /// What was removed from names so far.
    removed: Vec<String>,
    /// Whether the user said the prefix.
    said: bool,
}

/// Where in a file the tensors of an architecture lie.
pub(super) struct Place {
    pub naming: Naming,
    /// What stands before each of the naming's names, with its dot.
    pub prefix: String,
}

impl<'a> Names<'a> {
    /// `prefix`: the only names that count begin with it, if it is said.
    pub fn of(weights: &'a Weights, prefix: Option<&str>) -> Result<Self> {
        let prefix = prefix.map(|p| if p.is_empty() || p.ends_with('.') { p.to_owned() } else { format!("{p}.") });
        let mut names = Self { tensors: BTreeMap::new(), beside: vec![], removed: vec![], said: prefix.is_some() };
        let mut wrappers = BTreeSet::new();
        for (raw, tensor) in &weights.tensors {
            let name = match &prefix {
                None => unwrapped(raw, &mut wrappers),
                Some(prefix) => match raw.strip_prefix(prefix.as_str()) {
                    Some(rest) => unwrapped(rest, &mut wrappers),
                    None => match unwrapped(raw, &mut wrappers).strip_prefix(prefix.as_str()) {
                        Some(rest) => Cow::Owned(rest.to_owned()),
                        None => {
                            names.beside.push(raw);
                            continue;
                        }
                    },
                },
            };
            if let Some((first, _)) = names.tensors.insert(name, (raw, tensor)) {
                let (first, second) = (shown(first), shown(raw));
                let problem = format!(
                    "{first} and {second} are the same name without what wrappers of modules add (\"module.\" and the \
                     like); choose one by its prefix (`Source::prefix`, `--prefix`)"
                );
                return Err(Error::weights(&weights.path, problem));
            }
        }
        names.removed.extend(wrappers.iter().map(|wrapper| format!("{wrapper}.")));
        if let Some(prefix) = prefix.filter(|prefix| !prefix.is_empty()) {
            if names.tensors.is_empty() {
                let first = shown_list(weights.tensors.keys().take(3).map(String::as_str));
                let problem = format!("no tensor's name begins with {prefix:?}; the first names are {first}");
                return Err(Error::invalid("prefix", problem));
            }
            names.removed.push(prefix);
        }
        Ok(names)
    }

    /// The tensor of this name, and its name in the file.
    pub fn get(&self, name: &str) -> Option<(&'a str, &'a Tensor)> {
        self.tensors.get(name).copied()
    }

    /// The names that begin with the prefix, without it.
    pub fn under(&self, prefix: &str) -> BTreeSet<&str> {
        self.tensors.keys().filter_map(|name| name.strip_prefix(prefix)).collect()
    }

    /// Names in the file that do not begin with the prefix.
    pub fn beside(&self, prefix: &str) -> Vec<&'a str> {
        let others = self.tensors.iter().filter(|(name, _)| !name.starts_with(prefix)).map(|(_, &(raw, _))| raw);
        self.beside.iter().copied().chain(others).collect()
    }

    /// What is removed from names, this prefix included.
    pub fn removed(&self, prefix: &str) -> Vec<String> {
        self.removed.iter().cloned().chain((!prefix.is_empty()).then(|| prefix.to_owned())).collect()
    }

    /// What all names begin with, up to a dot; for a message.
    pub fn common_prefix(&self) -> Option<&str> {
        let (first, last) = (self.tensors.keys().next()?, self.tensors.keys().next_back()?);
        // In a sorted list the first and the last have in common what all have.
        let same = first.bytes().zip(last.bytes()).take_while(|(a, b)| a == b).count();
        let dot = first.as_bytes()[..same].iter().rposition(|&b| b == b'.')?;
        (!self.said && first != last).then(|| &first[..=dot])
    }

    /// Where the tensors of an architecture lie: whose names most of them have, and behind which prefix.
    ///
    /// # Errors
    /// If they are all there several times.
    pub fn place(&self, arch: Arch, declared: &[Declared], weights: &Weights) -> Result<Place> {
        let candidates = self.candidates(arch, declared);
        let sample = declared.iter().step_by(declared.len() / SAMPLE + 1);
        let sampled = |place: &Place| self.count(arch, place, sample.clone());
        let most = candidates.iter().map(sampled).max().unwrap_or(0);
        let mut best: Vec<(usize, Place)> = Vec::new();
        for place in candidates.into_iter().filter(|place| sampled(place) == most) {
            best.push((self.count(arch, &place, declared.iter()), place));
        }
        // Of equals the first, for the sort is stable.
        best.sort_by_key(|(count, _)| std::cmp::Reverse(*count));
        let whole: BTreeSet<&str> =
            best.iter().filter(|(count, _)| *count == declared.len()).map(|(_, place)| place.prefix.as_str()).collect();
        if whole.len() > 1 && !whole.contains("") {
            let prefixes = shown_list(whole);
            let problem = format!(
                "the tensors of {arch} are there several times, behind the prefixes {prefixes}; choose one \
                 (`Source::prefix`, `--prefix`)"
            );
            return Err(Error::weights(&weights.path, problem));
        }
        if let Some(at) = best.iter().position(|(count, place)| *count == declared.len() && place.prefix.is_empty()) {
            return Ok(best.swap_remove(at).1);
        }
        let none = Place { naming: Naming::Timm, prefix: String::new() };
        Ok(best.into_iter().next().map_or(none, |(_, place)| place))
    }

    /// Every prefix of the first tensor's name, the shortest first; none at all is always one of them.
    fn candidates(&self, arch: Arch, declared: &[Declared]) -> Vec<Place> {
        let first = declared.first().map_or("", |d| &d.name);
        let mut places: Vec<Place> = NAMINGS.map(|naming| Place { naming, prefix: String::new() }).into();
        if self.said {
            return places;
        }
        for naming in NAMINGS {
            let anchor = arch.name_in(naming, first);
            let prefixes = self.tensors.keys().filter_map(|name| name.strip_suffix(anchor.as_str()));
            let mut prefixes: Vec<&str> = prefixes.filter(|p| p.ends_with('.') && p.len() <= MAX_PREFIX).collect();
            prefixes.sort_by_key(|prefix| prefix.len());
            prefixes.truncate(MAX_PREFIXES);
            places.extend(prefixes.into_iter().map(|prefix| Place { naming, prefix: prefix.to_owned() }));
        }
        places
    }

    fn count<'d>(&self, arch: Arch, place: &Place, declared: impl Iterator<Item = &'d Declared>) -> usize {
        declared.filter(|d| self.tensors.contains_key(place.name(arch, &d.name).as_str())).count()
    }
}

impl Place {
    /// What the tensor with this canonical name is called here.
    pub fn name(&self, arch: Arch, canonical: &str) -> String {
        let name = arch.name_in(self.naming, canonical);
        if self.prefix.is_empty() { name } else { format!("{}{name}", self.prefix) }
    }
}

/// The wrapper that a name begins with.
pub(super) fn outer_wrapper(name: &str) -> Option<&'static str> {
    let first = name.split('.').next();
    WRAPPERS.into_iter().find(|wrapper| Some(*wrapper) == first)
}

/// A name without the parts that wrappers add; `seen` gathers them.
pub(super) fn unwrapped<'a>(name: &'a str, seen: &mut BTreeSet<&'static str>) -> Cow<'a, str> {
    let wrapper = |part: &str| WRAPPERS.into_iter().find(|wrapper| *wrapper == part);
    if !name.split('.').any(|part| wrapper(part).is_some()) {
        return Cow::Borrowed(name);
    }
    let mut rest = String::with_capacity(name.len());
    for part in name.split('.') {
        if let Some(wrapper) = wrapper(part) {
            seen.insert(wrapper);
        } else {
            if !rest.is_empty() {
                rest.push('.');
            }
            rest.push_str(part);
        }
    }
    Cow::Owned(rest)
}
