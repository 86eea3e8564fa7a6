//! Finds the state dict in a checkpoint.

use std::collections::{BTreeMap, HashSet};

use super::{Id, Pickled, Values, View};
use crate::error::shown;
use crate::weights::pickle::Problem;
use crate::weights::{MAX_OTHERS, quoted};

/// The keys under which training scripts keep a state dict; the first that holds one wins. Averaged weights (EMA) come
/// before plain ones, as in timm's `load_state_dict`, which knows the first four.
const WRAPPERS: [&str; 9] = [
    "state_dict_ema",
    "model_ema",
    "state_dict",
    "model",
    "model_state_dict",
    "model_state",
    "net",
    "network",
    "module",
];

/// Those wrappers that hold averaged weights.
const AVERAGED: [&str; 2] = ["state_dict_ema", "model_ema"];

/// Scripts wrap a state dict once or twice; deeper wrapping is refused.
const MAX_DEPTH: usize = 4;

/// The tensors of a state dict.
pub(super) struct Found<'a> {
    pub views: BTreeMap<&'a str, &'a View>,
    /// Which state dict was taken, where there are several.
    pub notes: Vec<String>,
    /// The entries that are no tensors: name and description.
    pub others: BTreeMap<String, String>,
}

/// Finds the state dict: the outermost dictionary, or one under [`WRAPPERS`], or the only one that holds tensors.
/// Ignores everything else.
pub(super) fn find(values: &Values) -> Result<Found<'_>, Problem> {
    let mut at = values.root;
    let mut notes = Vec::new();
    for _ in 0..MAX_DEPTH {
        let level = Level::of(values, at)?;
        match level.inner(values)? {
            Some((name, inner)) => {
                notes.extend(level.rivals(values, name));
                at = inner;
            }
            None => return level.tensors(values, notes),
        }
    }
    Err(format!("refused: the state dict is wrapped more than {MAX_DEPTH} times"))
}

/// The entries of a dictionary whose keys are texts.
struct Level<'a> {
    entries: Vec<(&'a str, Id)>,
    /// The first key that is not a text.
    odd_key: Option<Id>,
}

impl<'a> Level<'a> {
    fn of(values: &'a Values, id: Id) -> Result<Self, Problem> {
        let Pickled::Dict(all) = values.get(id) else {
            let found = values.describe(id);
            return Err(match values.get(id) {
                Pickled::Opaque { .. } => format!(
                    "the pickle holds {found} instead of a state dict, which maps names to tensors, and no code of it \
                     is run; in Python, `torch.save(model.state_dict(), \"weights.pth\")` saves one"
                ),
                _ => format!(
                    "the pickle holds {found} instead of a state dict, which maps names to tensors; save \
                     model.state_dict()"
                ),
            });
        };
        let mut level = Self { entries: Vec::new(), odd_key: None };
        for &(key, value) in all {
            match values.get(key) {
                Pickled::Text(name) => level.entries.push((name, value)),
                _ => level.odd_key = level.odd_key.or(Some(key)),
            }
        }
        Ok(level)
    }

    /// The dictionary that this one wraps, if it wraps one.
    fn inner(&self, values: &Values) -> Result<Option<(&'a str, Id)>, Problem> {
        let is_dict = |id: Id| matches!(values.get(id), Pickled::Dict(_));
        let wrapped = |wrapper| self.entries.iter().rev().find(|&&(name, id)| name == wrapper && is_dict(id)).copied();
        let wrapped: Vec<(&str, Id)> = WRAPPERS.into_iter().filter_map(wrapped).collect();
        // An empty average or a configuration may have such a name, so a dictionary that holds tensors is preferred.
        let mut seen = HashSet::new();
        let full = wrapped.iter().find(|&&(_, id)| wraps_tensors(values, id, MAX_DEPTH, &mut seen));
        if let Some(&found) = full.or(wrapped.first()) {
            return Ok(Some(found));
        }
        let mut seen = HashSet::new();
        let holds_tensors = |&&(_, id): &&(&str, Id)| match values.get(id) {
            // Each dictionary is looked at once, however often it is referred to.
            Pickled::Dict(entries) if seen.insert(id) => {
                entries.iter().any(|&(_, value)| matches!(values.get(value), Pickled::Tensor(_)))
            }
            _ => false,
        };
        let inner: Vec<_> = self.entries.iter().filter(holds_tensors).collect();
        let own = self.entries.iter().filter(|&&(_, id)| matches!(values.get(id), Pickled::Tensor(_))).count();
        let len = |id| if let Pickled::Dict(entries) = values.get(id) { entries.len() } else { 0 };
        match inner[..] {
            [&(name, id)] if len(id) > own => Ok(Some((name, id))),
            [_, _, ..] if own == 0 => {
                let names: Vec<_> = inner.iter().take(10).map(|(name, _)| quoted(name)).collect();
                let names = names.join(", ");
                Err(format!("several dictionaries hold tensors: {names}; save only the state dict"))
            }
            _ => Ok(None),
        }
    }

    /// A note of which state dict was taken, where there are several.
    fn rivals(&self, values: &Values, taken: &str) -> Option<String> {
        let exists = |wrapper: &&str| {
            self.entries.iter().any(|&(name, id)| name == *wrapper && matches!(values.get(id), Pickled::Dict(_)))
        };
        let others: Vec<_> = WRAPPERS.into_iter().filter(|&wrapper| wrapper != taken).filter(exists).collect();
        let average = if AVERAGED.contains(&taken) { " (averaged, EMA)" } else { "" };
        (!others.is_empty() || !average.is_empty()).then(|| {
            let beside =
                if others.is_empty() { String::new() } else { format!("; the file also has {}", others.join(", ")) };
            format!("weights of {}{average}{beside}", shown(taken))
        })
    }

    /// The tensors of this dictionary.
    fn tensors(self, values: &'a Values, notes: Vec<String>) -> Result<Found<'a>, Problem> {
        let mut found = Found { views: BTreeMap::new(), notes, others: BTreeMap::new() };
        for &(name, id) in &self.entries {
            match values.get(id) {
                Pickled::Tensor(view) => {
                    // The last value of a repeated key counts, as in Python.
                    found.views.insert(name, view);
                    found.others.remove(name);
                }
                _ => {
                    found.views.remove(name);
                    if found.others.len() < MAX_OTHERS {
                        found.others.insert(name.to_owned(), values.describe(id));
                    }
                }
            }
        }
        if !found.views.is_empty() {
            return Ok(found);
        }
        if let (true, Some(key)) = (self.entries.is_empty(), self.odd_key) {
            let found = values.describe(key);
            return Err(format!("the dictionary has {found} as a key; keys must be names of tensors"));
        }
        if self.entries.is_empty() {
            return Err("the state dict is empty".into());
        }
        let first = found.others.iter().take(10).map(|(name, what)| format!("{} ({what})", quoted(name)));
        let first: Vec<_> = first.collect();
        let more = self.entries.len() - first.len();
        let more = if more > 0 { format!(" and {more} more") } else { String::new() };
        Err(format!(
            "no tensors found, directly or under one of {}; it holds {}{more}. Save model.state_dict() alone",
            WRAPPERS.join(", "),
            first.join(", ")
        ))
    }
}

/// Whether a dictionary holds tensors, directly or in a wrapper. Each dictionary is looked at once, however often it is
/// referred to.
fn wraps_tensors(values: &Values, id: Id, depth: usize, seen: &mut HashSet<Id>) -> bool {
    let Pickled::Dict(entries) = values.get(id) else { return false };
    if depth == 0 || !seen.insert(id) {
        return false;
    }
    entries.iter().any(|&(_, value)| matches!(values.get(value), Pickled::Tensor(_)))
        || entries.iter().any(|&(key, value)| {
            let is_wrapper = matches!(values.get(key), Pickled::Text(name) if WRAPPERS.contains(&name.as_str()));
            is_wrapper && wraps_tensors(values, value, depth - 1, seen)
        })
}
