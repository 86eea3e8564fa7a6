//! The samples that a probe looks at.

use super::fit::Targets;
use crate::data::{Dataset, Target, largest};
use crate::error::{Error, Result};
use crate::rng::Seed;
use rand::seq::SliceRandom;
use std::collections::BTreeMap;

/// The samples of each class.
pub(crate) struct Classes(Vec<Vec<usize>>);

impl Classes {
    /// Of a dataset. A sample with a soft target counts as its most probable class. Lists of labels are refused;
    /// `remedy` says what to do then.
    pub fn of(data: &dyn Dataset, remedy: &str) -> Result<Self> {
        let count = data.classes().len();
        let mut of_class: Vec<Vec<usize>> = vec![vec![]; count];
        for i in 0..data.len() {
            let info = data.info(i);
            let class = match &info.target {
                Target::Class(class) => *class as usize,
                Target::Soft(p) => largest(p),
                Target::Labels(_) => {
                    return Err(Error::invalid("dataset", format!("its samples have label sets, which {remedy}")));
                }
            };
            let Some(members) = of_class.get_mut(class) else {
                return Err(Error::LabelOutOfRange { sample: info.to_string(), label: class as u64, classes: count });
            };
            members.push(i);
        }
        Ok(Self(of_class))
    }

    /// How many samples each class has.
    pub fn sizes(&self) -> Vec<usize> {
        self.0.iter().map(Vec::len).collect()
    }

    /// At most about `most` samples in the dataset's order, each with its class: of each class the same fraction, at
    /// random by the stream `name`, but at least two. Of two numbers, the samples for the smaller are among those for
    /// the larger.
    pub fn sample(&self, most: usize, seed: u64, name: &str) -> (Vec<usize>, Vec<u32>) {
        let all: usize = self.0.iter().map(Vec::len).sum();
        let fraction = (most as f64 / all.max(1) as f64).min(1.0);
        let mut taken: Vec<(usize, u32)> = vec![];
        for (class, members) in self.0.iter().enumerate() {
            let mut members = members.clone();
            // At least two, where there are two: one to learn from and one to judge.
            let wanted = (members.len() as f64 * fraction).round() as usize;
            members.shuffle(&mut Seed(seed).stream(name, &[class as u64]));
            members.truncate(wanted.max(2));
            taken.extend(members.into_iter().map(|i| (i, class as u32)));
        }
        taken.sort_unstable();
        taken.into_iter().unzip()
    }
}

/// The rows that are left out together: the samples of a group, or one sample.
pub(crate) fn units(data: &dyn Dataset, indices: &[usize]) -> Vec<Vec<usize>> {
    let mut groups: BTreeMap<u32, Vec<usize>> = BTreeMap::new();
    let mut units = vec![];
    for (row, &i) in indices.iter().enumerate() {
        match data.info(i).group {
            Some(group) => groups.entry(group).or_default().push(row),
            None => units.push(vec![row]),
        }
    }
    units.extend(groups.into_values());
    units
}

/// What a head is fitted to, for the samples `indices`.
///
/// # Errors
/// For lists of labels, and for soft targets of another number of classes.
pub(crate) fn targets(data: &dyn Dataset, indices: &[usize]) -> Result<Targets> {
    let count = data.classes().len();
    let mut values = Vec::with_capacity(indices.len() * count);
    for &i in indices {
        let info = data.info(i);
        match &info.target {
            Target::Class(class) => values.extend((0..count).map(|k| f64::from(u8::from(k == *class as usize)))),
            Target::Soft(p) if p.len() == count => values.extend(p.iter().map(|&p| f64::from(p))),
            _ => {
                let problem = format!("its target is not one of {count} classes");
                return Err(Error::bad_sample(info.to_string(), problem));
            }
        }
    }
    Ok(Targets { values, count, units: units(data, indices) })
}
