//! Images that a table (CSV) describes.

use crate::image_folder::{classes_of, put};
use candle_finetune::{CsvOptions, Dataset, Error, ImageFolder, Splits, Target, Targets, k_fold};
use proptest::prelude::*;
use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;
use tempfile::TempDir;

mod errors;

/// A folder with a table and images.
struct Data {
    root: TempDir,
}

impl Data {
    fn new(table: impl AsRef<[u8]>, images: &[&str]) -> Self {
        let root = tempfile::tempdir().unwrap();
        fs::write(root.path().join("table.csv"), table).unwrap();
        images.iter().for_each(|image| put(root.path(), image));
        Self { root }
    }

    fn table(&self) -> PathBuf {
        self.root.path().join("table.csv")
    }

    /// Opens the table with default options.
    fn open(&self) -> ImageFolder {
        ImageFolder::csv().open(self.table()).unwrap()
    }

    /// The error of these options, which is the same in all three ways of opening.
    fn refusal(&self, options: &CsvOptions) -> Error {
        let error = options.splits(self.table(), 0).unwrap_err();
        for other in [options.open(self.table()).unwrap_err(), options.eval_part(self.table()).unwrap_err()] {
            assert_eq!(other.to_string(), error.to_string());
        }
        error
    }
}

/// "ROOT/x/0.png" is "x/0.png".
fn files(data: &ImageFolder) -> Vec<String> {
    let inner = |i| data.path(i).strip_prefix(data.root()).unwrap().to_str().unwrap().replace('\\', "/");
    (0..data.len()).map(inner).collect()
}

fn labels_of(data: &ImageFolder) -> Vec<Vec<u32>> {
    let labels = |i| match data.info(i).target {
        Target::Labels(labels) => labels,
        other => panic!("{other:?}"),
    };
    (0..data.len()).map(labels).collect()
}

fn sizes(splits: &Splits) -> (usize, usize, usize) {
    (splits.train.len(), splits.valid.len(), splits.test.as_ref().map_or(0, Dataset::len))
}

#[test]
fn a_row_is_an_image_with_its_class() {
    let data = Data::new("id,note,breed\nb,x,pug\na,,beagle\nc,\"y, z\",pug\n", &["a.png", "in/b.png", "c.png"]);
    let dogs = data.open();
    assert_eq!((dogs.classes().join(" "), dogs.root()), ("beagle pug".into(), data.root.path()));
    assert_eq!(files(&dogs), ["in/b.png", "a.png", "c.png"]);
    assert_eq!(classes_of(&dogs), [1, 0, 1]);
    dogs.check().unwrap();
    assert!((0..3).all(|i| dogs.fingerprint(i).is_some() && dogs.sample(i).is_ok()));
    assert_eq!(dogs.info(1).to_string(), data.root.path().join("a.png").display().to_string());
    // The labels of a predictor, as for folders.
    let labels = ["cat", "pug", "beagle"].map(String::from);
    assert_eq!(classes_of(&dogs.clone().labels(&labels).unwrap()), [1, 2, 1]);
    let error = dogs.labels(&labels[..2]).unwrap_err();
    assert!(
        matches!(&error, Error::UnknownClasses { path, unknown, .. } if *path == data.table() && unknown == &["beagle"])
    );
}

#[test]
fn files_are_paths_or_the_unique_ends_of_paths() {
    let images =
        ["a.png", "in/a.png", "in/deep/b.JPG", "in/x.1.png", "in/deep/train/d.png", "out/train/e.png", "out/e.png"];
    for (name, expected) in [
        ("a.png", "a.png"),
        ("./a.png", "a.png"),
        ("in/a.png", "in/a.png"),
        ("in\\deep\\b.JPG", "in/deep/b.JPG"),
        ("b.JPG", "in/deep/b.JPG"),
        ("deep/b", "in/deep/b.JPG"),
        ("b", "in/deep/b.JPG"),
        ("x.1", "in/x.1.png"),
        ("train/d.png", "in/deep/train/d.png"),
        ("train/e", "out/train/e.png"),
        ("out/e", "out/e.png"),
    ] {
        let data = Data::new(format!("file,label\n{name},x\n"), &images);
        let found = ImageFolder::csv().open(data.table());
        match found {
            Ok(found) => assert_eq!(files(&found), [expected], "{name}"),
            Err(error) => panic!("{name}: {error}"),
        }
    }
    // A path may begin above the folder of the images.
    let data =
        Data::new("file,label\ndata/images/a.png,x\nimages/b,x\n", &["data/images/a.png", "data/images/sub/a.png"]);
    put(data.root.path(), "data/images/b.png");
    let found = ImageFolder::csv().images(data.root.path().join("data/images")).open(data.table()).unwrap();
    assert_eq!(files(&found), ["a.png", "b.png"]);
    // Names in another form of Unicode.
    let data = Data::new("file,label\ncafe\u{301}.png,x\n", &["caf\u{e9}.png"]);
    assert_eq!(data.open().len(), 1);
}

#[test]
fn the_forms_that_programs_write_are_read() {
    let images = ["a.png", "b.png"];
    for table in [
        "file;label\na.png;\"red; dark\"\nb.png;blue\n",
        "file\tlabel\na.png\tred; dark\nb.png\tblue",
        "file|label\n\na.png|red; dark\n\nb.png|blue\n\n",
        "\u{feff}file,label\r\na.png,red; dark\r\nb.png,blue\r\n",
        " file , label ,\"a,b;c\"\n a.png , red; dark ,\n\"b.png\",\"blue\",\"1\n2\"\n",
        "Image-ID,Class Name\na,red; dark\nb,blue\n",
    ] {
        let data = Data::new(table, &images).open();
        assert_eq!((data.classes().join(" "), classes_of(&data)), ("blue red; dark".into(), vec![1, 0]), "{table:?}");
    }
    let data = Data::new("file;label,x\na.png;red,y\nb.png;blue,z\n", &images);
    let set = ImageFolder::csv().delimiter(b';').label("label,x").open(data.table()).unwrap();
    assert_eq!(set.classes(), ["blue,z", "red,y"]);
    // A class in two forms of Unicode, which sorts after z.
    let data = Data::new("file,label\na.png,caf\u{e9}\nb.png,cafe\u{301}\n", &images).open();
    assert_eq!((data.classes().join(" "), classes_of(&data)), ("caf\u{e9}".into(), vec![0, 0]));
}

#[test]
fn numeric_labels_are_class_ids() {
    let rows: String = (0..12).rev().map(|i| format!("{i:03}.png,{i}\n")).collect::<Vec<_>>().concat();
    let images: Vec<String> = (0..12).map(|i| format!("{i:03}.png")).collect();
    let images: Vec<&str> = images.iter().map(String::as_str).collect();
    let data = Data::new(format!("file,label\n{rows}"), &images).open();
    assert_eq!(data.classes(), (0..12).map(|i| i.to_string()).collect::<Vec<_>>());
    assert_eq!(classes_of(&data), (0..12).rev().collect::<Vec<_>>());
}

#[test]
fn lists_and_columns_are_several_labels() {
    let images = ["a.png", "b.png", "c.png", "d.png"];
    let list = Data::new("image,tags\na,red|blue\nb, blue | blue |\nc,\nd,green|red\n", &images);
    let list = ImageFolder::csv().separator('|').open(list.table()).unwrap();
    assert_eq!(list.classes(), ["blue", "green", "red"]);
    assert_eq!(labels_of(&list), [vec![0, 2], vec![0], vec![], vec![1, 2]]);
    let spaces = Data::new("image,tags\na,red  blue\nb,blue\nc,\nd,green red\n", &images);
    let spaces = ImageFolder::csv().separator(' ').open(spaces.table()).unwrap();
    assert_eq!((spaces.classes(), labels_of(&spaces)), (list.classes(), labels_of(&list)));

    let flags = "image,red,n,blue,green\na,1,9,1.0,0\nb,False,9,TRUE,\nc,no,9,,0\nd,yes,9,0.0,true\n";
    let flags = Data::new(flags, &images);
    let columns = ImageFolder::csv().labels(["red", "green", "blue"]);
    let data = columns.open(flags.table()).unwrap();
    // The order is that of the columns that were named.
    assert_eq!(data.classes(), ["red", "green", "blue"]);
    assert_eq!(labels_of(&data), [vec![0, 2], vec![2], vec![], vec![0, 1]]);
    let sorted = data.clone().labels(list.classes()).unwrap();
    assert_eq!(labels_of(&sorted), labels_of(&list));
    assert_eq!(sorted.group_by(|_| Some("one".into())).info(3).group, Some(0));

    // Batches have zeros and ones.
    let eval = candle_finetune::Transform::eval(&candle_finetune::InputSpec::new(8)).unwrap();
    let batches = candle_finetune::Loader::new(&data, eval);
    let batch = batches.batches(vec![0, 2], 0, &crate::support::CPU).unwrap().next().unwrap().unwrap();
    let Targets::Labels(rows) = &batch.targets else { panic!() };
    assert_eq!(rows.to_vec2::<f32>().unwrap(), [[1.0, 0.0, 1.0], [0.0; 3]]);
}

#[test]
fn the_split_column_makes_parts() {
    let images: Vec<String> = (0..8).map(|i| format!("{i}.png")).collect();
    let images: Vec<&str> = images.iter().map(String::as_str).collect();
    let rows = |words: [&str; 3]| {
        let row = |(i, label): (usize, &str)| format!("{i},{label},{}\n", words[[0, 0, 0, 0, 1, 1, 2, 0][i]]);
        ["y", "x", "y", "x", "y", "x", "x", "y"].into_iter().enumerate().map(row).collect::<String>()
    };
    for words in [["train", "valid", "test"], ["Training", "VAL", "TEST"], ["train2017", "dev", "test_set"]] {
        let data = Data::new(format!("id,label,subset\n{}", rows(words)), &images);
        let splits = ImageFolder::csv().splits(data.table(), 0).unwrap();
        assert_eq!((sizes(&splits), splits.valid_is_split(), splits.unlisted()), ((5, 2, 1), false, 0), "{words:?}");
        assert_eq!(files(&splits.train), ["0.png", "1.png", "2.png", "3.png", "7.png"]);
        // Test has x alone, but the ids are those of train.
        assert_eq!((classes_of(&splits.valid), classes_of(splits.test.as_ref().unwrap())), (vec![1, 0], vec![0]));
        assert_eq!(data.open().len(), 5);
        let test = ImageFolder::csv().eval_part(data.table()).unwrap();
        assert_eq!((files(&test), test.classes().join(" ")), (vec!["6.png".into()], "x".into()));
        let text = splits.to_string();
        let table = data.table().display().to_string();
        let expected =
            ["train 5, valid 2, test 1 images of 2 classes: x, y", &table, "id", "parts by subset", "test lacks y"];
        assert!(expected.iter().all(|part| text.contains(part)), "{text}");
    }
    // The same part in large and small letters is one; without valid it is cut off train.
    let data = Data::new(format!("id,label,fold\n{}", rows(["train", "TRAIN", "test"])), &images);
    let splits = ImageFolder::csv().split("fold").splits(data.table(), 0).unwrap();
    assert_eq!((sizes(&splits), splits.valid_is_split()), ((5, 2, 1), true));
    // Without a split column too; another column of that kind has no meaning.
    let splits = ImageFolder::csv().splits(data.table(), 0).unwrap();
    assert_eq!((sizes(&splits), classes_of(&splits.valid).len()), ((6, 2, 0), 2));
}

#[test]
fn groups_in_several_parts_are_told() {
    let images: Vec<String> = (0..8).map(|i| format!("{i}.png")).collect();
    let images: Vec<&str> = images.iter().map(String::as_str).collect();
    let part = |i: usize| ["train", "train", "train", "train", "valid", "valid", "test", "train"][i];
    let row = |i: usize| format!("{i},{},{},{}\n", i % 2, part(i), ["a", "a", "b", "c", "a", "b", "d", ""][i]);
    let data = Data::new(format!("id,label,split,patient\n{}", (0..8).map(row).collect::<Vec<_>>().concat()), &images);
    let splits = ImageFolder::csv().splits(data.table(), 0).unwrap();
    assert_eq!(splits.torn_groups(), 2);
    assert!(splits.to_string().contains("warning: 2 groups are in several parts"), "{splits}");
    let splits = ImageFolder::csv().ignore(["patient"]).splits(data.table(), 0).unwrap();
    assert!(splits.torn_groups() == 0 && !splits.to_string().contains("several parts"));
}

#[test]
fn ignored_columns_mean_nothing_whatever_they_are_called() {
    let images: Vec<String> = (0..8).map(|i| format!("{i}.png")).collect();
    let images: Vec<&str> = images.iter().map(String::as_str).collect();
    let rows: String =
        (0..8).map(|i| format!("{i},{},set {},walk {}\n", i % 2, i % 3, i / 4)).collect::<Vec<_>>().concat();
    let data = Data::new(format!("id,label,set,video\n{rows}"), &images);
    let error = ImageFolder::csv().splits(data.table(), 0).unwrap_err().to_string();
    assert!(error.contains("set 1") && error.contains("`ignore` (`--ignore-columns`)"), "{error}");
    let splits = ImageFolder::csv().ignore(["set"]).splits(data.table(), 0).unwrap();
    assert_eq!((sizes(&splits), splits.valid_is_split()), ((4, 4, 0), true), "a whole walk is in valid");
    let splits = ImageFolder::csv().ignore(["set", "video"]).splits(data.table(), 0).unwrap();
    assert_eq!((sizes(&splits), splits.train.info(0).group), ((6, 2, 0), None));
    for (columns, word) in [(vec!["fold"], "fold"), (vec!["label"], "twice")] {
        let options = ImageFolder::csv().label("label").ignore(columns);
        let error = options.open(data.table()).unwrap_err().to_string();
        assert!(error.contains(word), "{error}");
    }
}

#[test]
fn a_valid_that_is_cut_off_is_stratified_and_keeps_groups() {
    let images: Vec<String> = (0..80).map(|i| format!("{i:02}.png")).collect();
    let images: Vec<&str> = images.iter().map(String::as_str).collect();
    let rows: String =
        (0..80).map(|i| format!("{i:02},{},p{}\n", ["a", "b"][i / 60], i / 2)).collect::<Vec<_>>().concat();
    let data = Data::new(format!("id,label,Patient_ID\n{rows}"), &images);
    let splits = ImageFolder::csv().splits(data.table(), 3).unwrap();
    // Pairs of 60 and of 20: 15 % are 9 and 3.
    let valid = classes_of(&splits.valid);
    let of = |class| valid.iter().filter(|c| **c == class).count();
    assert!((8..=10).contains(&of(0)) && (2..=4).contains(&of(1)), "{valid:?}");
    let groups = |data: &ImageFolder| (0..data.len()).filter_map(|i| data.info(i).group).collect::<BTreeSet<_>>();
    assert!(groups(&splits.train).is_disjoint(&groups(&splits.valid)));
    assert_eq!(groups(&splits.train).len() + groups(&splits.valid).len(), 40);
    assert!(splits.to_string().contains("groups by Patient_ID"));
    // The seed decides.
    let valid = |seed| files(&ImageFolder::csv().splits(data.table(), seed).unwrap().valid);
    assert_eq!(valid(3), files(&splits.valid));
    assert_ne!(valid(4), valid(3));
    // Without the column's name, a label per image is in no group.
    let data = Data::new("id,label,who\n00,a,\n01,a,x\n02,a,x\n", &images[..3]);
    let grouped = ImageFolder::csv().group("who").open(data.table()).unwrap();
    assert_eq!((0..3).map(|i| grouped.info(i).group).collect::<Vec<_>>(), [None, Some(0), Some(0)]);
    assert_eq!(data.open().info(1).group, None);
}

#[test]
fn images_without_a_row_are_counted() {
    let data = Data::new("id,label\na,x\nb,x\nc,y\nd,y\n", &["a.png", "b.png", "c.png", "d.png", "e.png", "in/f.png"]);
    fs::write(data.root.path().join("notes.pdf"), "%PDF-").unwrap();
    let splits = ImageFolder::csv().splits(data.table(), 0).unwrap();
    assert_eq!((sizes(&splits), splits.unlisted()), ((2, 2, 0), 2));
    assert!(splits.to_string().contains("2 images in the folder are not in the table"));
    assert_eq!(splits.duplicates().unwrap().valid, 2, "all images are alike");
}

#[test]
fn broken_images_are_skipped_with_their_labels() {
    let data = Data::new("id,tags\na,x y\nb,y\nc,x\nd,z\n", &["a.png", "b.png", "c.png", "d.png"]);
    let options = ImageFolder::csv().separator(' ');
    fs::write(data.root.path().join("b.png"), "broken").unwrap();
    fs::remove_file(data.root.path().join("c.png")).unwrap();
    fs::write(data.root.path().join("c.psd"), "8BPS").unwrap();
    // An unsupported format is an error from the start, a broken file when it is read.
    let error = data.refusal(&options);
    assert!(matches!(&error, Error::UnreadableImages { files } if files.len() == 1 && files[0].0.ends_with("c.psd")));
    let skipped = options.clone().skip_broken(true).open(data.table()).unwrap();
    assert_eq!(
        (files(&skipped), labels_of(&skipped)),
        (vec!["a.png".into(), "d.png".into()], vec![vec![0, 1], vec![2]])
    );
    assert_eq!((Dataset::skipped(&skipped), skipped.skipped().len()), (Some(2), 2));
    // Label z has no image left.
    fs::write(data.root.path().join("d.png"), "broken").unwrap();
    let error = options.clone().skip_broken(true).open(data.table()).unwrap_err();
    assert!(matches!(&error, Error::EmptyClass { class, path } if class == "z" && *path == data.table()), "{error}");
    assert_eq!(options.skip_broken(true).eval_part(data.table()).unwrap().len(), 1);
    let small = ImageFolder::csv().separator(' ').max_pixels(29);
    fs::remove_file(data.root.path().join("c.psd")).unwrap();
    put(data.root.path(), "c.png");
    assert!(matches!(small.open(data.table()).unwrap().sample(0), Err(Error::ImageTooLarge { .. })));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, failure_persistence: None, ..ProptestConfig::default() })]

    /// Whatever the groups and labels are, no group is in two parts, and no image is lost.
    #[test]
    fn groups_are_whole_whatever_they_are(rows in prop::collection::vec((0usize..6, 0usize..9, 0u8..8), 2..60), seed: u64) {
        let root = tempfile::tempdir().unwrap();
        let mut table = vec![String::from("file,tags,group")];
        for (i, (class, group, more)) in rows.iter().enumerate() {
            // Names are all that opening reads.
            fs::write(root.path().join(format!("{i}.png")), "").unwrap();
            let tags: Vec<String> = (0..3).filter(|bit| more >> bit & 1 == 1).map(|bit| format!("t{bit}")).collect();
            let group = if *group == 0 { String::new() } else { format!("g{group}") };
            table.push(format!("{i},{} c{class},{group}", tags.join(" ")));
        }
        fs::write(root.path().join("table.csv"), table.join("\n")).unwrap();
        let options = ImageFolder::csv().separator(' ');
        let data = options.open(root.path().join("table.csv")).unwrap();
        prop_assert_eq!(data.len(), rows.len());
        let whole = |train: &dyn Dataset, valid: &dyn Dataset| {
            let groups = |part: &dyn Dataset| (0..part.len()).filter_map(|i| part.info(i).group).collect::<BTreeSet<_>>();
            groups(train).is_disjoint(&groups(valid)) && train.len() + valid.len() == rows.len()
        };
        match options.splits(root.path().join("table.csv"), seed) {
            Ok(splits) => prop_assert!(whole(&splits.train, &splits.valid) && !splits.valid.is_empty()),
            // Every class may be in a single group.
            Err(error) => prop_assert!(error.to_string().contains("cannot be split")),
        }
        for (train, valid) in k_fold(&data, 2, seed).into_iter().flatten() {
            prop_assert!(whole(&train, &valid));
        }
    }
}
