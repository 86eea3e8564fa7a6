//! Folders of images: classes, parts, broken files. `folder_layout` tests how trees are read.

use candle_finetune::candle_core::Device;
use candle_finetune::{Dataset, Error, ImageFolder, InputSpec, Loader, SampleInfo, Target, Transform};
use std::borrow::Cow;
use std::fs;
use std::path::Path;
use tempfile::TempDir;

/// Writes a small PNG and creates the folders above it.
pub fn put(root: &Path, path: &str) {
    let path = root.join(path);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    image::RgbImage::from_pixel(6, 5, image::Rgb([9, 99, 199]))
        .save_with_format(path, image::ImageFormat::Png)
        .unwrap();
}

/// A folder with this many images in each of these folders.
pub fn folder(classes: &[(impl AsRef<str>, usize)]) -> TempDir {
    let root = tempfile::tempdir().unwrap();
    for (class, n) in classes {
        let class = class.as_ref();
        fs::create_dir_all(root.path().join(class)).unwrap();
        (0..*n).for_each(|i| put(root.path(), &format!("{class}/{i:03}.png")));
    }
    root
}

pub fn classes_of(data: &ImageFolder) -> Vec<u32> {
    (0..data.len())
        .map(|i| match data.info(i).target {
            Target::Class(class) => class,
            other => panic!("{other:?}"),
        })
        .collect()
}

#[test]
fn classes_are_folders_in_sorted_order() {
    let root = folder(&[("bees", 2), ("ants", 3), (".hidden", 1), ("__MACOSX", 1)]);
    put(root.path(), "ants/deeper/still/x.PNG");
    fs::write(root.path().join("labels.csv"), "").unwrap();
    fs::write(root.path().join("ants/notes.TXT"), "").unwrap();
    fs::write(root.path().join("ants/._000.png"), "").unwrap();
    let data = ImageFolder::open(root.path()).unwrap();
    assert_eq!(data.classes(), ["ants", "bees"]);
    assert_eq!(classes_of(&data), [0, 0, 0, 0, 1, 1]);
    assert!(data.path(3).ends_with("ants/deeper/still/x.PNG"));
    data.check().unwrap();
    let eval = Transform::eval(&InputSpec::new(8)).unwrap();
    let batch = Loader::new(&data, eval).batches(vec![5, 0], 0, &Device::Cpu).unwrap().next().unwrap().unwrap();
    assert_eq!(batch.images().unwrap().dims(), [2, 3, 8, 8]);
    assert_eq!(batch.targets.classes().unwrap(), [1, 0]);
}

#[test]
fn without_valid_a_part_of_train_is_cut_off() {
    let root = folder(&[("train/a", 40), ("train/b", 20), ("test/a", 3), ("test/b", 1)]);
    let splits = ImageFolder::splits(root.path(), 1).unwrap();
    assert_eq!((splits.train.len(), splits.valid.len(), splits.test.unwrap().len()), (51, 9, 4));
    assert_eq!(classes_of(&splits.valid), [[0; 6].as_slice(), &[1; 3]].concat());
    let names = |data: &ImageFolder| (0..data.len()).map(|i| data.info(i).to_string()).collect::<Vec<_>>();
    let again = ImageFolder::splits(root.path(), 1).unwrap();
    assert_eq!(names(&again.valid), names(&splits.valid));
    assert_ne!(names(&ImageFolder::splits(root.path(), 2).unwrap().valid), names(&splits.valid));
    assert!(names(&splits.train).iter().all(|name| !names(&splits.valid).contains(name)));
    // Names are borrowed, so that a pass over all samples allocates nothing for them.
    let (part, _) = candle_finetune::split(&splits.train, 0.5, 1).unwrap();
    let borrowed = |info: SampleInfo<'_>| matches!(info.name, Some(Cow::Borrowed(_)));
    assert!(borrowed(splits.train.info(0)) && borrowed(part.info(0)) && borrowed((&part as &dyn Dataset).info(0)));
    // Plain class folders are split in the same way.
    let plain = ImageFolder::splits(root.path().join("train"), 1).unwrap();
    assert_eq!((names(&plain.valid), plain.test.is_none()), (names(&splits.valid), true));
}

#[test]
fn groups_stay_together_when_a_part_is_cut_off() {
    let root = folder(&[("train/a", 40), ("train/b", 40)]);
    // Pairs of images, as of one patient.
    let patient = |path: &std::path::Path| {
        let number: usize = path.file_stem()?.to_str()?.parse().ok()?;
        Some(format!("{}{}", path.parent()?.display(), number / 2))
    };
    let splits = ImageFolder::options().group_by(patient).splits(root.path(), 1).unwrap();
    let patients = |data: &ImageFolder| (0..data.len()).filter_map(|i| patient(data.path(i))).collect::<Vec<_>>();
    let (train, valid) = (patients(&splits.train), patients(&splits.valid));
    assert!(valid.len() >= 8 && valid.iter().all(|one| !train.contains(one)), "{valid:?}");
    assert_eq!(train.len() + valid.len(), 80);
    // Without groups, some pair is split.
    let torn = ImageFolder::splits(root.path(), 1).unwrap();
    let train = patients(&torn.train);
    assert!(patients(&torn.valid).iter().any(|one| train.contains(one)));
}

#[test]
fn parts_that_are_there_are_taken() {
    for name in ["valid", "val", "Validation"] {
        let root = folder(&[("train/a", 4), ("train/b", 4), (&format!("{name}/a"), 2), ("test/b", 1)]);
        let splits = ImageFolder::splits(root.path(), 0).unwrap();
        assert_eq!((splits.train.len(), splits.valid.len(), splits.test.as_ref().unwrap().len()), (8, 2, 1));
        // Class b is missing in valid, but the classes are those of train.
        assert_eq!(splits.valid.classes(), ["a", "b"]);
        assert_eq!(classes_of(splits.test.as_ref().unwrap()), [1]);
        assert_eq!(ImageFolder::open(root.path()).unwrap().len(), 8);
        assert_eq!(ImageFolder::eval_part(root.path()).unwrap().len(), 1);
    }
    let root = folder(&[("train/a", 4), ("valid/a", 2), ("val/a", 2)]);
    assert!(matches!(ImageFolder::splits(root.path(), 0), Err(Error::Invalid { .. })));
}

#[test]
fn parts_are_not_taken_for_classes() {
    let root = folder(&[("test/a", 2), ("test/b", 1)]);
    let error = ImageFolder::open(root.path()).unwrap_err();
    assert!(matches!(error, Error::Invalid { .. }) && error.to_string().contains("test"), "{error}");
    assert_eq!(ImageFolder::eval_part(root.path()).unwrap().classes(), ["a", "b"]);
    assert_eq!(ImageFolder::open(root.path().join("test")).unwrap().len(), 3);
}

#[test]
fn a_class_in_valid_only_is_named() {
    let root = folder(&[("train/a", 4), ("train/b", 4), ("valid/a", 2), ("valid/c", 2)]);
    let error = ImageFolder::splits(root.path(), 0).unwrap_err();
    let Error::UnknownClasses { unknown, known, .. } = &error else { panic!("{error}") };
    assert_eq!((unknown.join(" "), known.join(" ")), ("c".to_string(), "a b".to_string()));
}

#[test]
fn empty_classes_and_folders_are_named() {
    let root = folder(&[("a", 1), ("b", 0)]);
    let error = ImageFolder::open(root.path()).unwrap_err();
    assert!(matches!(&error, Error::EmptyClass { class, .. } if class == "b"), "{error}");
    for root in [folder(&[("", 0)]), folder(&[("a", 0), ("b", 0)])] {
        assert!(matches!(ImageFolder::open(root.path()), Err(Error::NoImages { .. })));
    }
    assert!(matches!(ImageFolder::open("no/such/folder"), Err(Error::Io { .. })));
    let root = folder(&[("a", 1)]);
    put(root.path(), "loose.png");
    assert!(ImageFolder::open(root.path()).unwrap_err().to_string().contains("loose.png"));
}

#[test]
fn strange_files_are_all_named() {
    let root = folder(&[("a", 1), ("b", 1)]);
    fs::write(root.path().join("a/x.exe"), "").unwrap();
    fs::write(root.path().join("b/noextension"), "").unwrap();
    let error = ImageFolder::open(root.path()).unwrap_err();
    assert!(matches!(&error, Error::UnknownFiles { files } if files.len() == 2), "{error}");
    assert!(error.to_string().contains("x.exe") && error.to_string().contains("noextension"));
}

#[test]
fn broken_files_are_found_at_once_and_can_be_skipped() {
    let root = folder(&[("a", 4), ("b", 3)]);
    let good = fs::read(root.path().join("a/000.png")).unwrap();
    fs::write(root.path().join("a/001.png"), &good[..good.len() / 2]).unwrap();
    fs::write(root.path().join("b/002.png"), "not an image").unwrap();
    let data = ImageFolder::open(root.path()).unwrap();
    let error = data.check().unwrap_err();
    let Error::UnreadableImages { files } = &error else { panic!("{error}") };
    assert!(files[0].0.ends_with("a/001.png") && files[1].0.ends_with("b/002.png") && files.len() == 2);
    assert!(error.to_string().contains("2 images cannot be read") && error.to_string().contains("002.png"), "{error}");

    let eval = Transform::eval(&InputSpec::new(8)).unwrap();
    let mut batches = Loader::new(&data, eval).batches(vec![0, 1], 0, &Device::Cpu).unwrap();
    assert!(batches.next().unwrap().unwrap_err().to_string().contains("001.png"));

    let kept = data.skip_broken().unwrap();
    assert_eq!((kept.len(), kept.skipped().len(), Dataset::skipped(&kept)), (5, 2, Some(2)));
    assert_eq!(classes_of(&kept), [0, 0, 0, 1, 1]);
    kept.check().unwrap();

    for file in ["b/000.png", "b/001.png"] {
        fs::write(root.path().join(file), "").unwrap();
    }
    let error = ImageFolder::open(root.path()).unwrap().skip_broken().unwrap_err();
    assert!(matches!(&error, Error::EmptyClass { class, .. } if class == "b"), "{error}");
}

#[test]
fn broken_files_are_skipped_before_a_part_is_cut_off() {
    let root = folder(&[("train/a", 40), ("train/b", 4), ("test/a", 3), ("test/b", 1)]);
    let write = |path: &str, bytes: &[u8]| fs::write(root.path().join(path), bytes).unwrap();
    ["train/b/000.png", "train/b/001.png", "train/a/007.png", "test/b/000.png"]
        .iter()
        .for_each(|path| write(path, b"?"));
    write("train/a/x.HEIC", b"\0\0\0\x18ftypheic\0\0\0\0mif1heic");
    let splits = (0..20).map(|seed| ImageFolder::options().skip_broken(true).splits(root.path(), seed).unwrap());
    for splits in splits {
        let test = splits.test.as_ref().unwrap();
        assert_eq!((splits.train.len(), splits.valid.len(), test.len()), (34, 7, 3));
        assert_eq!(classes_of(&splits.valid), [0, 0, 0, 0, 0, 0, 1], "two of class b are left, one for each");
        let skipped = [&splits.train, &splits.valid, test].map(Dataset::skipped);
        assert_eq!(skipped, [4, 0, 1].map(Some), "each is counted once");
        let text = splits.to_string();
        assert!(text.contains("test lacks b") && text.contains("5 images that cannot be read"), "{text}");
        let (path, problem) = splits.train.skipped().iter().find(|(path, _)| path.ends_with("x.HEIC")).unwrap();
        assert!(problem.contains("HEIC") && problem.contains("convert"), "{}: {problem}", path.display());
        splits.train.check().unwrap();
    }
    // A class without readable images is an error in train, but not in the part for evaluation.
    ["train/b/002.png", "train/b/003.png"].iter().for_each(|path| write(path, b"?"));
    let options = ImageFolder::options().skip_broken(true);
    for error in [options.splits(root.path(), 0).unwrap_err(), options.open(root.path()).unwrap_err()] {
        assert!(matches!(&error, Error::EmptyClass { class, .. } if class == "b"), "{error}");
    }
    let test = options.eval_part(root.path()).unwrap();
    assert_eq!((test.classes().len(), test.len(), test.skipped().len()), (2, 3, 1));
    // The same for a class with unsupported images only.
    let root = folder(&[("a", 3), ("b", 0)]);
    fs::write(root.path().join("b/x.avif"), "").unwrap();
    assert!(matches!(options.open(root.path()), Err(Error::EmptyClass { class, .. }) if class == "b"));
}

#[test]
fn what_was_skipped_is_counted_once_over_the_parts() {
    let root = folder(&[("a", 12), ("b", 12)]);
    ["a/003.png", "b/000.png", "b/001.png"].iter().for_each(|path| fs::write(root.path().join(path), "?").unwrap());
    let data = ImageFolder::open(root.path()).unwrap().skip_broken().unwrap();
    for seed in 0..10 {
        let (train, valid) = candle_finetune::split(&data, 0.3, seed).unwrap();
        assert_eq!((train.skipped(), valid.skipped()), (Some(3), Some(0)));
        let folds = candle_finetune::k_fold(&data, 4, seed).unwrap();
        assert!(folds.iter().all(|(train, valid)| (train.skipped(), valid.skipped()) == (Some(3), Some(0))));
        let (train, valid) = candle_finetune::split(&train, 0.3, seed).unwrap();
        assert_eq!((train.skipped(), valid.skipped()), (Some(3), Some(0)));
    }
    // A part of the dataset has skipped as many, whichever samples it has.
    assert_eq!(candle_finetune::Subset::new(&data, vec![1, 5]).unwrap().skipped(), Some(3));
}

#[test]
fn kinds_that_are_not_read_are_called_what_they_are() {
    let root = folder(&[("a", 2), ("b", 2)]);
    let files = [
        ("a/IMG_1.HEIC", "HEIC"),
        ("a/b.avif", "AVIF"),
        ("a/c.jxl", "JPEG XL"),
        ("b/d.svg", "SVG"),
        ("b/deep/e.psd", "Photoshop"),
        ("b/f.CR2", "raw photograph"),
        ("b/g.mp4", "video"),
    ];
    fs::create_dir(root.path().join("b/deep")).unwrap();
    files.iter().for_each(|(path, _)| fs::write(root.path().join(path), "").unwrap());
    let error = ImageFolder::open(root.path()).unwrap_err();
    let Error::UnreadableImages { files: found } = &error else { panic!("{error}") };
    assert_eq!(found.len(), files.len());
    for ((path, problem), (expected, kind)) in found.iter().zip(files) {
        assert!(path.ends_with(expected) && problem.contains(kind) && problem.contains("convert"), "{problem}");
    }
    let kept = ImageFolder::options().skip_broken(true).open(root.path()).unwrap();
    assert_eq!((kept.len(), kept.skipped()), (4, found.as_slice()));
    // A file is read although its name looks unsupported.
    files.iter().for_each(|(path, _)| put(root.path(), path));
    let data = ImageFolder::open(root.path()).unwrap();
    assert_eq!(data.len(), 11);
    data.check().unwrap();
}

#[cfg(unix)]
#[test]
fn pipes_and_devices_are_refused_without_being_opened() {
    let root = folder(&[("a", 2), ("b", 2)]);
    let pipe = root.path().join("a/live.jpg");
    assert!(std::process::Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    std::os::unix::fs::symlink("/dev/zero", root.path().join("b/zero.png")).unwrap();
    let error = ImageFolder::open(root.path()).unwrap_err();
    let Error::UnreadableImages { files } = &error else { panic!("{error}") };
    assert_eq!(files.len(), 2);
    assert!(files[0].1.contains("pipe") && files[1].1.contains("device"), "{error}");
    let kept = ImageFolder::options().skip_broken(true).open(root.path()).unwrap();
    assert_eq!((kept.len(), kept.skipped().len()), (4, 2));
    // A file that breaks later is found by a check.
    fs::remove_file(root.path().join("b/zero.png")).unwrap();
    fs::rename(&pipe, root.path().join("later")).unwrap();
    fs::remove_file(root.path().join("a/001.png")).unwrap();
    fs::copy(root.path().join("b/000.png"), &pipe).unwrap();
    fs::rename(root.path().join("later"), root.path().join("a/later.txt")).unwrap();
    let data = ImageFolder::open(root.path()).unwrap();
    fs::rename(root.path().join("a/later.txt"), &pipe).unwrap();
    assert!(data.check().unwrap_err().to_string().contains("live.jpg"));
}

#[test]
fn leaving_out_many_files_of_many_takes_no_long_time() {
    let root = folder(&[("a", 1), ("b", 1)]);
    for i in 0..4000 {
        fs::write(root.path().join(format!("a/x{i}.png")), "").unwrap();
        let good = root.path().join("b/000.png");
        fs::hard_link(good, root.path().join(format!("b/x{i}.png"))).unwrap();
    }
    let start = std::time::Instant::now();
    let kept = ImageFolder::options().skip_broken(true).open(root.path()).unwrap();
    assert_eq!((kept.len(), kept.skipped().len()), (4002, 4000));
    assert!(start.elapsed().as_secs() < 20, "{:?}", start.elapsed());
}

#[test]
fn the_limit_on_pixels_can_be_set() {
    let root = folder(&[("a", 1)]);
    let data = ImageFolder::open(root.path()).unwrap();
    assert!(data.clone().max_pixels(30).sample(0).is_ok());
    assert!(matches!(data.max_pixels(29).sample(0), Err(Error::ImageTooLarge { limit: 29, .. })));
    let options = ImageFolder::options().max_pixels(29);
    assert!(options.open(root.path()).unwrap().check().unwrap_err().to_string().contains("6 x 5 pixels"));
    let options = options.max_pixels(30).skip_broken(true);
    assert_eq!(options.eval_part(root.path()).unwrap().len(), 1);
}

#[test]
fn folders_map_onto_given_labels() {
    let root = folder(&[("bee", 1), ("ant", 2)]);
    let labels = ["wasp", "bee", "ant"].map(String::from);
    let data = ImageFolder::open(root.path()).unwrap().labels(&labels).unwrap();
    assert_eq!((data.classes(), classes_of(&data)), (&labels[..], vec![2, 2, 1]));
    let error = ImageFolder::open(root.path()).unwrap().labels(&labels[..2]).unwrap_err();
    assert!(matches!(&error, Error::UnknownClasses { unknown, .. } if unknown == &["ant"]), "{error}");
}

#[test]
fn a_label_that_is_there_twice_is_an_error_only_where_it_is_looked_up() {
    let labels = ["crane", "bee", "crane"].map(String::from);
    let root = folder(&[("bee", 1)]);
    let data = ImageFolder::open(root.path()).unwrap().labels(&labels).unwrap();
    assert_eq!((data.classes(), classes_of(&data)), (&labels[..], vec![1]));
    put(root.path(), "crane/0.png");
    let error = ImageFolder::open(root.path()).unwrap().labels(&labels).unwrap_err().to_string();
    assert!(error.contains("crane") && error.contains("[0, 2]") && error.contains("class_indices"), "{error}");
    let root = folder(&[("0_crane", 1), ("2_crane", 2)]);
    let data = ImageFolder::open(root.path()).unwrap().class_indices(&labels).unwrap();
    assert_eq!(classes_of(&data), [0, 2, 2]);
}

#[test]
fn a_number_is_a_name_among_labels() {
    let labels = ["1", "2", "10", "20", "100"].map(String::from);
    let root = folder(&[("1", 1), ("2", 1)]);
    let data = ImageFolder::open(root.path()).unwrap().labels(&labels).unwrap();
    assert_eq!(classes_of(&data), [0, 1]);
    put(root.path(), "3/0.png");
    let error = ImageFolder::open(root.path()).unwrap().labels(&labels).unwrap_err();
    assert!(matches!(&error, Error::UnknownClasses { unknown, .. } if unknown == &["3"]), "{error}");
    assert!(error.to_string().contains("\"3\""), "{error}");
}

#[test]
fn folders_can_be_numbers() {
    let root = folder(&[("0180_n02093428", 1), ("2", 2)]);
    let data = ImageFolder::open(root.path()).unwrap();
    let labels: Vec<String> = (0..1000).map(|i| format!("label {i}")).collect();
    let numbered = data.clone().class_indices(&labels).unwrap();
    assert_eq!((numbered.classes(), classes_of(&numbered)), (labels.as_slice(), vec![180, 2, 2]));
    let error = data.class_indices(&labels[..100]).unwrap_err();
    assert!(matches!(error, Error::LabelOutOfRange { label: 180, classes: 100, .. }), "{error}");
    for names in [["1", "01"], ["1", "one"], ["1", "99999999999999999999"]] {
        let root = folder(&names.map(|name| (name, 1)));
        assert!(ImageFolder::open(root.path()).unwrap().class_indices(&labels[..10]).is_err(), "{names:?}");
    }
}

#[test]
fn groups_by_file_name_stay_together() {
    let root = tempfile::tempdir().unwrap();
    for (patient, i) in (0..20).flat_map(|patient| (0..3).map(move |i| (patient, i))) {
        put(root.path(), &format!("{}/p{patient}_{i}.png", ["ill", "well"][patient % 2]));
    }
    let patient = |path: &Path| path.file_name()?.to_str()?.split_once('_').map(|(patient, _)| patient.to_string());
    let data = ImageFolder::open(root.path()).unwrap().group_by(patient);
    let (train, valid) = candle_finetune::split(&data, 0.2, 0).unwrap();
    assert_eq!((train.len(), valid.len()), (48, 12));
    let groups = |part: &candle_finetune::Subset| -> std::collections::BTreeSet<u32> {
        (0..part.len()).map(|i| part.info(i).group.unwrap()).collect()
    };
    assert!(groups(&train).is_disjoint(&groups(&valid)));
}

#[cfg(unix)]
#[test]
fn links_and_odd_names() {
    use std::os::unix::ffi::OsStrExt;
    let root = folder(&[("a", 1)]);
    let odd = root.path().join("a").join(std::ffi::OsStr::from_bytes(b"\xFF\xFE.png"));
    fs::copy(root.path().join("a/000.png"), odd).unwrap();
    std::os::unix::fs::symlink(root.path().join("a/000.png"), root.path().join("a/link.png")).unwrap();
    let data = ImageFolder::open(root.path()).unwrap();
    assert_eq!(data.len(), 3);
    data.check().unwrap();
    // A broken link is a broken image.
    std::os::unix::fs::symlink("nowhere", root.path().join("a/dangling.png")).unwrap();
    assert!(ImageFolder::open(root.path()).unwrap_err().to_string().contains("dangling.png"));
    assert_eq!(ImageFolder::options().skip_broken(true).open(root.path()).unwrap().skipped().len(), 1);
    // A link to a folder above would be a cycle.
    std::os::unix::fs::symlink(root.path(), root.path().join("a/above")).unwrap();
    assert!(matches!(ImageFolder::open(root.path()), Err(Error::Invalid { .. } | Error::Io { .. })));
}
