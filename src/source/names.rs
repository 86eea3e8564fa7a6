//! The names of a network's tensors in a file: the architecture's names with prefixes and wrappers.

use super::wanted::Wanted;
use crate::arch::Naming;
use crate::error::{Error, Result, shown, shown_list};
use crate::params::Declared;
use crate::weights::Weights;
use candle_core::Tensor;
use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet};

/// Parts of a name that wrappers of modules add, anywhere in the network: DataParallel, torch.compile, FSDP, activation
/// checkpointing.
const WRAPPERS: [&str; 4] = ["module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"];

const NAMINGS: [Naming; 3] = [Naming::Timm, Naming::Torchvision, Naming::Transformers];

/// Limits on the prefixes that are tried, in bytes and in number, since a file may hold any names.
const MAX_PREFIX: usize = 200;
const MAX_PREFIXES: usize = 64;

/// The number of names, spread over the network, that decide which prefixes are compared in full.
const SAMPLE: usize = 32;

/// A file's tensors by their names without wrappers, each with its full name in the file.
pub(super) struct Names<'a> {
    tensors: BTreeMap<Cow<'a, str>, (&'a str, &'a Tensor)>,
    /// Names in the file without the prefix that the user set.
    beside: Vec<&'a str>,
    /// Wrappers and prefixes that were removed from names.
    removed: Vec<String>,
    /// Whether the user set the prefix.
    fixed: bool,
}

/// Maps an architecture's canonical names to those in a file.
pub(super) struct NameMap {
    pub naming: Naming,
    /// The prefix of each of the naming's names, with its dot.
    pub prefix: String,
}

impl<'a> Names<'a> {
    /// If the user set a `prefix`, only names that begin with it count.
    pub fn of(weights: &'a Weights, prefix: Option<&str>) -> Result<Self> {
        let prefix = prefix.map(|p| if p.is_empty() || p.ends_with('.') { p.to_owned() } else { format!("{p}.") });
        let mut names = Self { tensors: BTreeMap::new(), beside: vec![], removed: vec![], fixed: prefix.is_some() };
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
                    "{first} and {second} are the same name without the prefixes of module wrappers (\"module.\" and \
                     the like); choose one by its prefix (`Source::prefix`, `--prefix`)"
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

    /// Full names in the file that do not begin with the prefix.
    pub fn beside(&self, prefix: &str) -> Vec<&'a str> {
        let others = self.tensors.iter().filter(|(name, _)| !name.starts_with(prefix)).map(|(_, &(raw, _))| raw);
        self.beside.iter().copied().chain(others).collect()
    }

    /// The parts removed from names, including this prefix.
    pub fn removed(&self, prefix: &str) -> Vec<String> {
        self.removed.iter().cloned().chain((!prefix.is_empty()).then(|| prefix.to_owned())).collect()
    }

    /// The common prefix of all names, up to a dot, for a message.
    pub fn common_prefix(&self) -> Option<&str> {
        let (first, last) = (self.tensors.keys().next()?, self.tensors.keys().next_back()?);
        // In a sorted list, what the first and the last have in common, all have.
        let same = first.bytes().zip(last.bytes()).take_while(|(a, b)| a == b).count();
        let dot = first.as_bytes()[..same].iter().rposition(|&b| b == b'.')?;
        (!self.fixed && first != last).then(|| &first[..=dot])
    }

    /// The naming and prefix under which most of the architecture's tensors are found.
    ///
    /// # Errors
    /// If all of them are found under several prefixes.
    pub fn map(&self, arch: &Wanted, declared: &[Declared], weights: &Weights) -> Result<NameMap> {
        let candidates = self.candidates(arch, declared);
        let sample = declared.iter().step_by(declared.len() / SAMPLE + 1);
        let sampled = |map: &NameMap| self.count(arch, map, sample.clone());
        let most = candidates.iter().map(sampled).max().unwrap_or(0);
        let mut best: Vec<(usize, NameMap)> = Vec::new();
        for map in candidates.into_iter().filter(|map| sampled(map) == most) {
            best.push((self.count(arch, &map, declared.iter()), map));
        }
        // The sort is stable, so of equals the first wins.
        best.sort_by_key(|(count, _)| std::cmp::Reverse(*count));
        let whole: BTreeSet<&str> =
            best.iter().filter(|(count, _)| *count == declared.len()).map(|(_, map)| map.prefix.as_str()).collect();
        if whole.len() > 1 && !whole.contains("") {
            let prefixes = shown_list(whole);
            let problem = format!(
                "the file holds the tensors of {arch} several times, under the prefixes {prefixes}; choose one \
                 (`Source::prefix`, `--prefix`)"
            );
            return Err(Error::weights(&weights.path, problem));
        }
        if let Some(at) = best.iter().position(|(count, map)| *count == declared.len() && map.prefix.is_empty()) {
            return Ok(best.swap_remove(at).1);
        }
        let none = NameMap { naming: Naming::Timm, prefix: String::new() };
        Ok(best.into_iter().next().map_or(none, |(_, map)| map))
    }

    /// All prefixes of the first tensor's name, shortest first, beginning with none.
    fn candidates(&self, arch: &Wanted, declared: &[Declared]) -> Vec<NameMap> {
        let first = declared.first().map_or("", |d| &d.name);
        let mut maps: Vec<NameMap> = NAMINGS.map(|naming| NameMap { naming, prefix: String::new() }).into();
        if self.fixed {
            return maps;
        }
        for naming in NAMINGS {
            let anchor = arch.name_in(naming, first);
            let prefixes = self.tensors.keys().filter_map(|name| name.strip_suffix(anchor.as_str()));
            let mut prefixes: Vec<&str> = prefixes.filter(|p| p.ends_with('.') && p.len() <= MAX_PREFIX).collect();
            prefixes.sort_by_key(|prefix| prefix.len());
            prefixes.truncate(MAX_PREFIXES);
            maps.extend(prefixes.into_iter().map(|prefix| NameMap { naming, prefix: prefix.to_owned() }));
        }
        maps
    }

    fn count<'d>(&self, arch: &Wanted, map: &NameMap, declared: impl Iterator<Item = &'d Declared>) -> usize {
        declared.filter(|d| self.tensors.contains_key(map.name(arch, &d.name).as_str())).count()
    }
}

impl NameMap {
    /// The name in the file of the tensor with this canonical name.
    pub fn name(&self, arch: &Wanted, canonical: &str) -> String {
        let name = arch.name_in(self.naming, canonical);
        if self.prefix.is_empty() { name } else { format!("{}{name}", self.prefix) }
    }
}

/// The wrapper at the beginning of a name.
pub(super) fn outer_wrapper(name: &str) -> Option<&'static str> {
    let first = name.split('.').next();
    WRAPPERS.into_iter().find(|wrapper| Some(*wrapper) == first)
}

/// A name without the parts that wrappers add, which `seen` collects.
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
