//! The parts of a data set, recognised by folder names.

/// A part of a data set.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Part {
    Train,
    Valid,
    Test,
}

impl Part {
    pub fn name(self) -> &'static str {
        match self {
            Self::Train => "train",
            Self::Valid => "valid",
            Self::Test => "test",
        }
    }

    fn of_word(word: &str) -> Option<Self> {
        Some(match word {
            "train" | "training" => Self::Train,
            "val" | "valid" | "validation" | "dev" | "eval" | "evaluation" => Self::Valid,
            "test" | "testing" => Self::Test,
            _ => return None,
        })
    }
}

/// Words that may accompany a part's name without changing its meaning: `train_images`, `seg_train`, `TestSet`.
const AFFIXES: [&str; 24] = [
    "image", "images", "img", "imgs", "picture", "pictures", "pic", "pics", "photo", "photos", "data", "dataset",
    "set", "sets", "seg", "split", "part", "folder", "dir", "files", "samples", "jpg", "jpeg", "png",
];

/// A name that contains one part's word.
struct Spelling {
    part: Part,
    /// All words, with `*` in place of the part's, if any of the others is not an affix; empty for a plain part.
    rest: Vec<String>,
}

impl Spelling {
    fn of(name: &str) -> Option<Self> {
        let (mut part, mut rest, mut known) = (None, Vec::new(), true);
        for word in words(name) {
            if let Some(found) = part_in(&word) {
                if part.replace(found).is_some() {
                    return None;
                }
                rest.push("*".to_string());
            } else {
                known &= is_affix(&word);
                rest.push(word);
            }
        }
        Some(Self { part: part?, rest: if known { Vec::new() } else { rest } })
    }
}

/// The part that each of these sibling names means; `None` for a class or anything else.
///
/// A word that is not an affix is allowed if two parts share it: `cats_train` and `cats_test`, but not `train_station`
/// and `valid_ticket`. Beside `invalid`, and without train or test, `valid` is a class.
pub(super) fn parts(names: &[&str]) -> Vec<Option<Part>> {
    let mut spellings: Vec<Option<Spelling>> = names.iter().map(|name| Spelling::of(name)).collect();
    if names.iter().any(|name| words(name).contains(&"invalid".into()))
        && spellings.iter().flatten().all(|spelling| spelling.part == Part::Valid)
    {
        spellings.fill_with(|| None);
    }
    let shared = |spelling: &Spelling| {
        let mut others = spellings.iter().flatten();
        others.any(|other| other.part != spelling.part && other.rest == spelling.rest)
    };
    let part = |spelling: &Spelling| (spelling.rest.is_empty() || shared(spelling)).then_some(spelling.part);
    spellings.iter().map(|spelling| spelling.as_ref().and_then(part)).collect()
}

/// The part that a single name means.
pub(super) fn part(name: &str) -> Option<Part> {
    parts(&[name]).pop().flatten()
}

/// The words of a name in lower case: split at characters that are not letters or digits, before a capital that follows
/// a small letter, and between letters and digits.
fn words(name: &str) -> Vec<String> {
    let (mut words, mut last) = (vec![String::new()], ' ');
    for c in name.chars() {
        let cut = !c.is_alphanumeric()
            || (last.is_lowercase() && c.is_uppercase())
            || (last.is_alphanumeric() && last.is_numeric() != c.is_numeric());
        if cut {
            words.push(String::new());
        }
        if let Some(word) = words.last_mut().filter(|_| c.is_alphanumeric()) {
            word.extend(c.to_lowercase());
        }
        last = c;
    }
    words.retain(|word| !word.is_empty());
    words
}

/// The part that a word means, alone or joined to an affix: `train`, `trainset`.
fn part_in(word: &str) -> Option<Part> {
    let joined = |affix: &str| {
        let rest = word.strip_prefix(affix).or_else(|| word.strip_suffix(affix));
        rest.and_then(Part::of_word)
    };
    Part::of_word(word).or_else(|| AFFIXES.iter().find_map(|affix| joined(affix)))
}

fn is_affix(word: &str) -> bool {
    AFFIXES.contains(&word) || word.chars().count() == 1 || word.chars().all(char::is_numeric)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn usual_spellings_are_parts() {
        for (expected, names) in [
            (
                Part::Train,
                "train Training TRAIN train_images images-train TrainSet trainset seg_train train2017 trainA",
            ),
            (Part::Valid, "val valid Validation dev eval evaluation valid_data img_val DEV devset val.images"),
            (Part::Test, "test Testing test_images TestData"),
        ] {
            for name in names.split(' ') {
                assert_eq!(part(name), Some(expected), "{name}");
            }
        }
        assert_eq!(part("training set 2"), Some(Part::Train));
    }

    #[test]
    fn look_alikes_are_not() {
        for name in "trains tests testudo train_station valid_ticket invalid tram trainer testing_ground value level \
                     validator protest contest devil medieval train_test bus 3"
            .split_whitespace()
        {
            assert_eq!(part(name), None, "{name}");
        }
        assert_eq!(parts(&["train_station", "valid_ticket"]), [None, None]);
        assert_eq!(parts(&["valid", "invalid"]), [None, None]);
        assert_eq!(parts(&["valid", "train"]), [Some(Part::Valid), Some(Part::Train)]);
        assert_eq!(parts(&["valid", "train", "invalid"]), [Some(Part::Valid), Some(Part::Train), None]);
    }

    #[test]
    fn parts_may_share_what_stands_beside_them() {
        let expected = [Some(Part::Train), Some(Part::Test), None];
        assert_eq!(parts(&["cats_train", "cats_test", "dogs_val"]), expected);
        assert_eq!(parts(&["CUB-training", "CUB-testing", "attributes"]), expected);
        assert_eq!(parts(&["cats_train", "test_cats", "x"]), [None; 3]);
    }
}
