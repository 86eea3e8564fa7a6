use super::*;
use crate::data::Target;

/// Labels and groups without images.
#[derive(Clone)]
struct Labels {
    classes: Vec<String>,
    of_sample: Vec<u32>,
    groups: Vec<Option<u32>>,
}

impl Labels {
    fn new(sizes: &[usize], group: impl Fn(usize) -> Option<u32>) -> Self {
        let of_sample: Vec<u32> = sizes.iter().zip(0..).flat_map(|(&n, class)| vec![class; n]).collect();
        let groups = (0..of_sample.len()).map(group).collect();
        Self { classes: (0..sizes.len()).map(|c| c.to_string()).collect(), of_sample, groups }
    }
}

impl Dataset for Labels {
    fn len(&self) -> usize {
        self.of_sample.len()
    }
    fn classes(&self) -> &[String] {
        &self.classes
    }
    fn info(&self, i: usize) -> SampleInfo<'_> {
        let mut info = SampleInfo::new(i, Target::Class(self.of_sample[i]));
        info.group = self.groups[i];
        info
    }
    fn sample(&self, i: usize) -> Result<Sample> {
        Err(Error::bad_sample(self.info(i).to_string(), "has no image"))
    }
}

fn count(part: &Subset, class: u32) -> usize {
    (0..part.len()).filter(|&i| part.info(i).target == Target::Class(class)).count()
}

fn groups_of(part: &Subset) -> std::collections::BTreeSet<u32> {
    (0..part.len()).filter_map(|i| part.info(i).group).collect()
}

#[test]
fn classes_are_cut_alike() {
    let sizes = [200, 40, 10, 2, 1];
    let data = Labels::new(&sizes, |_| None);
    let (train, valid) = split(&data, 0.15, 7).unwrap();
    for (class, (&size, cut)) in (0..).zip(sizes.iter().zip([30, 6, 2, 1, 0])) {
        assert_eq!((count(&train, class), count(&valid, class)), (size - cut, cut), "class {class}");
    }
    let mut all: Vec<usize> = train.indices().iter().chain(valid.indices()).copied().collect();
    all.sort_unstable();
    assert_eq!(all, (0..253).collect::<Vec<_>>());
    assert!(valid.indices()[..30] != (0..30).collect::<Vec<_>>()[..], "the first samples were cut off");
}

#[test]
fn the_seed_decides() {
    let data = Labels::new(&[100, 100], |_| None);
    let cut = |seed| split(&data, 0.2, seed).unwrap().1.indices().to_vec();
    assert_eq!(cut(1), cut(1));
    assert_ne!(cut(1), cut(2));
}

#[test]
fn groups_stay_together() {
    // Groups of five, within classes and across the border between them.
    let data = Labels::new(&[98, 102], |i| Some((i / 5) as u32));
    for seed in 0..20 {
        let (train, valid) = split(&data, 0.15, seed).unwrap();
        assert!(groups_of(&train).is_disjoint(&groups_of(&valid)));
        for class in 0..2 {
            let cut = count(&valid, class);
            assert!((10..=20).contains(&cut), "{cut} of class {class} with seed {seed}");
        }
    }
}

#[test]
fn what_cannot_be_cut_is_refused() {
    for data in [Labels::new(&[1, 1], |_| None), Labels::new(&[20], |_| Some(3)), Labels::new(&[0], |_| None)] {
        assert!(matches!(split(&data, 0.15, 0), Err(Error::Invalid { .. })));
    }
    let data = Labels::new(&[20], |_| None);
    for fraction in [0.0, 1.0, -0.5, f64::NAN] {
        assert!(split(&data, fraction, 0).is_err());
    }
    for k in [0, 1, 21] {
        assert!(k_fold(&data, k, 0).is_err());
    }
}

#[test]
fn folds_cover_everything_once() {
    let data = Labels::new(&[50, 23, 7], |_| None);
    let folds = k_fold(&data, 5, 3).unwrap();
    let mut validated = vec![0; data.len()];
    for (train, valid) in &folds {
        assert_eq!(train.len() + valid.len(), data.len());
        assert!(valid.indices().iter().all(|i| !train.indices().contains(i)));
        valid.indices().iter().for_each(|&i| validated[i] += 1);
        assert_eq!(count(valid, 0), 10);
        assert!((4..=5).contains(&count(valid, 1)) && (1..=2).contains(&count(valid, 2)));
        assert!((15..=17).contains(&valid.len()), "{}", valid.len());
    }
    assert!(validated.iter().all(|&times| times == 1));
}

#[test]
fn folds_keep_groups() {
    let data = Labels::new(&[60, 60], |i| Some((i / 4) as u32));
    for (train, valid) in k_fold(&data, 3, 1).unwrap() {
        assert!(groups_of(&train).is_disjoint(&groups_of(&valid)));
        assert_eq!((count(&valid, 0), count(&valid, 1)), (20, 20));
    }
}

#[test]
fn subsets_of_subsets() {
    let data = Labels::new(&[3, 3], |i| Some(i as u32));
    let outer = Subset::new(&data, vec![5, 0, 3]).unwrap();
    let inner = Subset::new(&outer, vec![2, 0]).unwrap();
    assert_eq!((inner.info(0).group, inner.info(1).group), (Some(3), Some(5)));
    assert_eq!(inner.info(1).to_string(), "sample 5");
    assert!(Subset::new(&outer, vec![3]).is_err());
}

#[test]
fn groups_larger_than_the_part_are_still_split() {
    // Four groups of six samples, two of each class: 15 % would be less than a group.
    let data = Labels::new(&[8, 8, 8], |i| Some(i as u32 % 8 / 2));
    for seed in 0..4 {
        let (train, valid) = split(&data, 0.15, seed).unwrap();
        assert_eq!((train.len(), valid.len(), groups_of(&valid).len()), (18, 6, 1));
        assert!(groups_of(&train).is_disjoint(&groups_of(&valid)));
    }
    // The group that fits best: the smallest one here.
    let data = Labels::new(&[20], |i| Some(if i < 4 { 0 } else { 1 + (i as u32) / 12 }));
    assert_eq!(groups_of(&split(&data, 0.1, 0).unwrap().1).into_iter().collect::<Vec<_>>(), [0]);
    // One group holds a class whole, so nothing can be held out.
    assert!(split(&Labels::new(&[3], |_| Some(0)), 0.3, 0).is_err());
}

/// Lists of labels without images.
#[derive(Clone)]
struct Lists {
    classes: Vec<String>,
    of_sample: Vec<Vec<u32>>,
    groups: Vec<Option<u32>>,
}

impl Dataset for Lists {
    fn len(&self) -> usize {
        self.of_sample.len()
    }
    fn classes(&self) -> &[String] {
        &self.classes
    }
    fn info(&self, i: usize) -> SampleInfo<'_> {
        let mut info = SampleInfo::new(i, Target::Labels(self.of_sample[i].clone()));
        info.group = self.groups[i];
        info
    }
    fn sample(&self, i: usize) -> Result<Sample> {
        Err(Error::bad_sample(self.info(i).to_string(), "has no image"))
    }
}

#[test]
fn the_rarest_label_of_a_list_counts() {
    // All have label 1, 20 of them label 0 too, 4 of these label 2 too; 12 have none.
    let labels = |i: usize| match i {
        0..4 => vec![1, 0, 2],
        4..20 => vec![0, 1],
        20..100 => vec![1],
        _ => vec![],
    };
    let of_sample: Vec<Vec<u32>> = (0..112).map(labels).collect();
    let classes = ["0", "1", "2"].map(String::from).to_vec();
    let data = Lists { classes, groups: vec![None; of_sample.len()], of_sample };
    let of = |part: &Subset, list: &[u32]| {
        (0..part.len()).filter(|&i| part.info(i).target == Target::Labels(list.to_vec())).count()
    };
    for seed in 0..10 {
        let (train, valid) = split(&data, 0.25, seed).unwrap();
        let counts = [&[1u32, 0, 2][..], &[0, 1], &[1], &[]].map(|list| (of(&train, list), of(&valid, list)));
        assert_eq!(counts, [(3, 1), (12, 4), (60, 20), (9, 3)]);
        for (_, valid) in k_fold(&data, 4, seed).unwrap() {
            assert_eq!([&[1u32, 0, 2][..], &[0, 1], &[1], &[]].map(|list| of(&valid, list)), [1, 4, 20, 3]);
        }
    }
    let grouped = Lists { groups: (0..112).map(|i| Some(i / 2)).collect(), ..data };
    let (train, valid) = split(&grouped, 0.5, 0).unwrap();
    assert!(groups_of(&train).is_disjoint(&groups_of(&valid)));
    assert_eq!([&[1u32, 0, 2][..], &[0, 1], &[1], &[]].map(|list| of(&valid, list)), [2, 8, 40, 6]);
}
