//! The samples that a probe looks at.

use super::fit::Targets;
use crate::data::{Dataset, Target, check_target, strata};
use crate::error::{Error, Result};
use crate::metrics::Task;
use crate::rng::Seed;
use rand::seq::SliceRandom;
use std::collections::BTreeMap;

/// The samples of each class.
pub(crate) struct Classes(Vec<Vec<usize>>);

impl Classes {
    /// Of a dataset. A sample with a soft target is of its most probable class, and one with a list of labels of the
    /// rarest of them. Samples without labels are the last class, if there are any.
    ///
    /// # Errors
    /// For a class that is out of range, and if some samples have one class and others a list of labels.
    pub fn of(data: &dyn Dataset) -> Result<Self> {
        let count = data.classes().len();
        for i in 0..data.len() {
            let info = data.info(i);
            check_target(&info.target, count, || info.to_string())?;
        }
        let mut of_class: Vec<Vec<usize>> = vec![vec![]; count + 1];
        strata(data).into_iter().enumerate().for_each(|(i, class)| of_class[class].push(i));
        let none = of_class.pop().unwrap_or_default();
        if Task::of_data(data)? == Task::Labels {
            // One that is never the rarest of a list is no class here.
            of_class.push(none);
            of_class.retain(|members| !members.is_empty());
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
/// For soft targets of another number of classes, and where some samples have lists of labels and others do not.
pub(crate) fn targets(data: &dyn Dataset, indices: &[usize]) -> Result<Targets> {
    let count = data.classes().len();
    let mut task = None;
    let mut values = Vec::with_capacity(indices.len() * count);
    for &i in indices {
        let info = data.info(i);
        check_target(&info.target, count, || info.to_string())?;
        let own = Task::of_target(&info.target);
        if *task.get_or_insert(own) != own {
            let problem = "has a list of labels where others have one class, or the other way round";
            return Err(Error::bad_sample(info.to_string(), problem));
        }
        let row = values.len();
        values.resize(row + count, 0.0);
        match &info.target {
            Target::Class(class) => values[row + *class as usize] = 1.0,
            Target::Soft(p) => values[row..].iter_mut().zip(p).for_each(|(value, &p)| *value = f64::from(p)),
            Target::Labels(labels) => labels.iter().for_each(|&label| values[row + label as usize] = 1.0),
        }
    }
    Ok(Targets { values, count, task: task.unwrap_or_default(), units: units(data, indices) })
}
