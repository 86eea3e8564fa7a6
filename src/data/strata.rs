//! The one class that each sample counts as, where classes are balanced or judged one at a time.

use super::{Dataset, Target, largest};

/// The class that each sample counts as: its own, the most probable one of a soft target, of a list of labels the rarest,
/// which the fewest samples have, of equally rare ones the first. Samples without labels count as one class more,
/// `dataset.classes().len()`, and so do labels that no class has, which are the loader's to refuse.
pub(crate) fn strata(dataset: &dyn Dataset) -> Vec<usize> {
    let none = dataset.classes().len();
    let targets: Vec<Target> = (0..dataset.len()).map(|i| dataset.info(i).target).collect();
    let mut having = vec![0usize; none + 1];
    for target in &targets {
        let Target::Labels(labels) = target else { continue };
        labels.iter().for_each(|&label| having[(label as usize).min(none)] += 1);
    }
    let of = |target: &Target| match target {
        Target::Class(class) => (*class as usize).min(none),
        Target::Soft(p) => largest(p).min(none),
        Target::Labels(labels) => {
            let rarest =
                labels.iter().map(|&label| (label as usize).min(none)).min_by_key(|&label| (having[label], label));
            rarest.unwrap_or(none)
        }
    };
    targets.iter().map(of).collect()
}
