//! How trees of folders are read: as parts, as classes, or refused.

use crate::image_folder::{classes_of, folder, put};
use candle_finetune::{Dataset, Error, FolderLayout, ImageFolder, Splits};
use std::fs;
use std::path::Path;

fn sizes(splits: &Splits) -> (usize, usize, usize) {
    (splits.train.len(), splits.valid.len(), splits.test.as_ref().map_or(0, Dataset::len))
}

/// The error message for a root, which is the same for all three ways of opening it.
fn refusal(root: &Path) -> String {
    let errors = [
        ImageFolder::splits(root, 0).unwrap_err(),
        ImageFolder::open(root).unwrap_err(),
        ImageFolder::eval_part(root).unwrap_err(),
    ];
    let texts = errors.map(|error| error.to_string());
    assert!(texts.iter().all(|text| *text == texts[0]), "{texts:#?}");
    texts[0].clone()
}

#[test]
fn usual_names_of_parts_are_recognised() {
    for [train, valid, test] in [
        ["Training", "Validation", "Testing"],
        ["TRAIN", "DEV", "TEST"],
        ["train", "eval", "test"],
        ["train_images", "val_images", "test_images"],
        ["images-train", "images-valid", "images-test"],
        ["seg_train", "seg_dev", "seg_test"],
        ["TrainSet", "ValSet", "TestSet"],
        ["train2017", "val2017", "test2017"],
        ["cats train", "cats val", "cats test"],
        ["cub_training", "cub_evaluation", "cub_testing"],
    ] {
        let root = folder(&[(&format!("{train}/a"), 4), (&format!("{train}/b"), 4)]);
        for (part, count) in [(valid, 2), (test, 3)] {
            (0..count).for_each(|i| put(root.path(), &format!("{part}/a/{i}.png")));
            put(root.path(), &format!("{part}/b/0.png"));
        }
        let splits = ImageFolder::splits(root.path(), 0).unwrap();
        assert_eq!((sizes(&splits), splits.train.classes().join(" ")), ((8, 3, 4), "a b".into()), "{train}");
        assert_eq!(ImageFolder::open(root.path()).unwrap().len(), 8);
        assert_eq!(ImageFolder::eval_part(root.path()).unwrap().len(), 4);
    }
}

#[test]
fn look_alikes_are_classes() {
    for names in [
        &["trains", "tests"][..],
        &["train_station", "valid_ticket", "testudo"],
        &["valid", "invalid"],
        &["tram", "protest", "medieval", "devil"],
    ] {
        let root = folder(&names.iter().map(|name| (*name, 2)).collect::<Vec<_>>());
        let mut sorted = names.to_vec();
        sorted.sort_unstable();
        assert_eq!(ImageFolder::open(root.path()).unwrap().classes(), sorted);
        // The same within parts.
        let root = folder(&names.iter().map(|name| (format!("train/{name}"), 2)).collect::<Vec<_>>());
        assert_eq!(ImageFolder::open(root.path()).unwrap().classes(), sorted);
    }
}

#[test]
fn what_can_mean_two_things_is_refused() {
    for others in [&["bus", "car"][..], &["extra"], &["unlabelled/2019"], &["bus/2019", "car/2020/01"]] {
        for part in ["train/2019", "train", "Training/a", "test/a", "train_images/a"] {
            let root = folder(&[(part, 2)]);
            others.iter().for_each(|other| put(root.path(), &format!("{other}/0.png")));
            let text = refusal(root.path());
            let names = others.iter().chain([&part]).map(|name| name.split('/').next().unwrap());
            assert!(text.contains("layout") && names.clone().all(|name| text.contains(name)), "{text}");
            assert!(matches!(ImageFolder::open(root.path()), Err(Error::AmbiguousLayout { .. })));
            let classes = ImageFolder::options().layout(FolderLayout::Classes).open(root.path()).unwrap();
            let mut expected: Vec<&str> = names.collect();
            expected.sort_unstable();
            assert_eq!(classes.classes(), expected);
        }
    }
}

#[test]
fn the_layout_decides() {
    let root = folder(&[("train/a", 3), ("train/b", 3), ("dev/a", 1), ("extra/x", 2), ("more/deep/y", 1)]);
    let parts = ImageFolder::options().layout("parts".parse().unwrap());
    let splits = parts.splits(root.path(), 0).unwrap();
    assert_eq!((sizes(&splits), splits.train.classes().join(" ")), ((6, 1, 0), "a b".into()));
    assert_eq!(splits.ignored(), [root.path().join("extra"), root.path().join("more")]);
    let text = splits.to_string();
    assert!(text.contains("ignored") && text.contains("extra") && text.contains("valid lacks b"), "{text}");
    assert_eq!((parts.open(root.path()).unwrap().len(), parts.eval_part(root.path()).unwrap().len()), (6, 1));

    let classes = ImageFolder::options().layout("classes".parse().unwrap());
    let splits = classes.splits(root.path(), 0).unwrap();
    assert_eq!((splits.train.classes().join(" "), splits.valid_is_split()), ("dev extra more train".into(), true));
    // All names are those of parts; the option makes them classes.
    let root = folder(&[("train", 3), ("test", 3)]);
    assert_eq!(classes.open(root.path()).unwrap().classes(), ["test", "train"]);
    assert!("both".parse::<FolderLayout>().unwrap_err().to_string().contains("both"));
    assert_eq!([FolderLayout::Parts, FolderLayout::Classes].map(|layout| layout.to_string()), ["parts", "classes"]);

    let root = folder(&[("a", 3), ("b", 3)]);
    assert!(parts.open(root.path()).is_err(), "there are no parts");
}

#[test]
fn images_directly_in_a_part_are_no_classes() {
    for names in [["train", "test"], ["train_images", "test_images"], ["Training", "Testing"]] {
        let root = folder(&names.map(|name| (name, 3)));
        fs::write(root.path().join("train.csv"), "000.png,cat").unwrap();
        for error in [ImageFolder::splits(root.path(), 0).unwrap_err(), ImageFolder::open(root.path()).unwrap_err()] {
            let Error::StrayImages { folder, images, .. } = &error else { panic!("{error}") };
            assert_eq!((folder, images.len()), (&root.path().join(names[0]), 3));
            let text = error.to_string();
            assert!(
                text.contains("directly in") && text.contains("tables") && text.contains("class folders"),
                "{text}"
            );
        }
        assert!(ImageFolder::eval_part(root.path()).unwrap_err().to_string().contains(names[1]));
    }
    // The unlabelled test images of a competition.
    let root = folder(&[("train/a", 3), ("train/b", 3), ("test", 3)]);
    assert!(
        matches!(ImageFolder::splits(root.path(), 0), Err(Error::StrayImages { folder, .. }) if folder.ends_with("test"))
    );
}

#[test]
fn no_image_is_left_out_silently() {
    for stray in ["0.png", "train/0.png", "train/0.JPG", "valid/x.heic"] {
        let root = folder(&[("train/a", 3), ("train/b", 3), ("valid/a", 1)]);
        put(root.path(), stray);
        let error = ImageFolder::splits(root.path(), 0).unwrap_err();
        let expected = root.path().join(stray);
        assert!(matches!(&error, Error::StrayImages { images, .. } if images == &[expected]), "{stray}: {error}");
    }
    for stray in ["0.png", "0.heic"] {
        let root = folder(&[("a", 3), ("b", 3)]);
        put(root.path(), stray);
        assert!(ImageFolder::open(root.path()).unwrap_err().to_string().contains(stray));
    }
    // A folder without images is ignored.
    let root = folder(&[("train/a", 3), ("train/b", 3)]);
    fs::create_dir_all(root.path().join("annotations/deep")).unwrap();
    fs::write(root.path().join("annotations/deep/all.json"), "{}").unwrap();
    assert_eq!(ImageFolder::open(root.path()).unwrap().len(), 6);
}

#[test]
fn what_systems_leave_behind_is_ignored_at_any_depth() {
    let system = [
        "@eaDir",
        "__MACOSX",
        "$RECYCLE.BIN",
        "System Volume Information",
        "lost+found",
        "#recycle",
        ".thumbnails",
        ".ipynb_checkpoints",
        "__pycache__",
        "@Recently-Snapshot",
    ];
    let root = folder(&[("train/a", 3), ("train/b/2019", 3), ("valid/a", 1)]);
    for name in system {
        for above in ["", "train/", "train/a/", "train/b/2019/", "valid/"] {
            put(root.path(), &format!("{above}{name}/copy.png"));
            put(root.path(), &format!("{above}{name}/x.jpg/thumb.heic"));
        }
    }
    let splits = ImageFolder::splits(root.path(), 0).unwrap();
    assert_eq!((sizes(&splits), splits.train.classes().join(" ")), ((6, 1, 0), "a b".into()));
}

#[test]
fn one_level_too_many_is_passed_through_or_named() {
    // Above parts it is unambiguous.
    for above in ["pets/", "download/pets/"] {
        let root = folder(&["train/a", "train/b", "val/a"].map(|path| (format!("{above}{path}"), 2)));
        fs::create_dir(root.path().join("docs")).unwrap();
        assert_eq!(sizes(&ImageFolder::splits(root.path(), 0).unwrap()), (4, 2, 0));
    }
    let root = folder(&["seg_train/seg_train/a", "seg_train/seg_train/b", "seg_test/seg_test/a"].map(|path| (path, 2)));
    let splits = ImageFolder::splits(root.path(), 0).unwrap();
    assert_eq!((sizes(&splits), splits.train.classes().join(" ")), ((2, 2, 2), "a b".into()));
    let mixed = folder(&["pets/train/a", "pets/extra/b"].map(|path| (path, 2)));
    assert!(refusal(mixed.path()).contains("pets"));

    // Above classes it may also be one class.
    for (tree, inner) in [(["pets/cat", "pets/dog"], "pets"), (["x/pets/cat", "x/pets/dog"], "x/pets")] {
        let root = folder(&tree.map(|path| (path, 2)));
        for error in [ImageFolder::splits(root.path(), 0).unwrap_err(), ImageFolder::open(root.path()).unwrap_err()] {
            let text = error.to_string();
            let inner = root.path().join(inner);
            assert!(text.contains(inner.to_str().unwrap()) && text.contains("cat, dog"), "{text}");
            assert_eq!(ImageFolder::open(inner).unwrap().classes(), ["cat", "dog"]);
        }
        let one = ImageFolder::options().layout(FolderLayout::Classes).open(root.path()).unwrap();
        assert_eq!((one.classes().len(), one.len()), (1, 4));
    }
    let root = folder(&["train/images/cat", "train/images/dog", "val/images/cat"].map(|path| (path, 2)));
    assert!(ImageFolder::splits(root.path(), 0).unwrap_err().to_string().contains("images"));
    // A single folder is one class.
    for path in ["pets", "pets/2019", "pets/2019/01"] {
        assert_eq!(ImageFolder::open(folder(&[(path, 3)]).path()).unwrap().classes(), ["pets"]);
    }
    // Several classes may have their images in subfolders.
    let root = folder(&[("cat/2019", 2), ("cat/2020", 1), ("dog/2019/01", 1)]);
    assert_eq!(classes_of(&ImageFolder::open(root.path()).unwrap()), [0, 0, 0, 1]);
}

#[test]
fn classes_of_a_part_that_look_like_parts_are_refused() {
    let root = folder(&[("train/train/a", 2), ("train/valid/a", 2), ("test/a", 1)]);
    let error = ImageFolder::splits(root.path(), 0).unwrap_err();
    assert!(matches!(&error, Error::AmbiguousLayout { path, .. } if path.ends_with("train")), "{error}");
    // One such name among others is a class.
    let root = folder(&[("train/train", 2), ("train/bus", 2), ("test/bus", 1)]);
    assert_eq!(ImageFolder::open(root.path()).unwrap().classes(), ["bus", "train"]);
}

#[test]
fn parts_that_are_there_twice_are_both_named() {
    for [a, b] in [["val", "dev"], ["valid", "eval"], ["Validation", "validation_set"]] {
        let root = folder(&[("train/x", 2), (&format!("{a}/x"), 1), (&format!("{b}/x"), 1)]);
        let text = refusal(root.path());
        assert!(text.contains(a) && text.contains(b), "{text}");
    }
    for names in [["trainA", "trainB", "testA"], ["test 1", "test 2", "train"]] {
        let root = folder(&names.map(|name| (format!("{name}/x"), 2)));
        assert!(refusal(root.path()).contains("layout"));
    }
}

#[test]
fn a_name_in_two_forms_of_unicode_is_one_class() {
    let forms =
        [("caf\u{e9}", "cafe\u{301}"), ("\u{304c}", "\u{304b}\u{3099}"), ("\u{d55c}", "\u{1112}\u{1161}\u{11ab}")];
    for (composed, decomposed) in forms {
        let root =
            folder(&[(format!("train/{composed}"), 2), ("train/tea".into(), 2), (format!("val/{decomposed}"), 2)]);
        let splits = ImageFolder::splits(root.path(), 0).unwrap();
        assert!(splits.train.classes().contains(&composed.to_string()));
        assert_eq!(classes_of(&splits.valid), [classes_of(&splits.train)[if composed < "tea" { 0 } else { 3 }]; 2]);
        let data =
            ImageFolder::open(root.path().join("val")).unwrap().labels(&["x".into(), decomposed.into()]).unwrap();
        assert_eq!(classes_of(&data), [1, 1]);
        // Side by side, the message shows the two forms differently.
        put(root.path(), &format!("train/{decomposed}/0.png"));
        let text = ImageFolder::open(root.path()).unwrap_err().to_string();
        let escaped = [composed, decomposed].map(|name| name.escape_default().to_string());
        assert!(text.contains("Unicode") && escaped.iter().all(|name| text.contains(name)), "{text}");
    }
}

#[test]
fn names_that_nearly_match_are_suggested() {
    for name in ["Cat", "cat ", "CAT", "c a-t"] {
        let root = folder(&[("train/cat", 2), ("train/dog", 2), (&format!("val/{name}"), 1)]);
        let error = ImageFolder::splits(root.path(), 0).unwrap_err();
        let text = error.to_string();
        assert!(text.contains(&format!("\"{name}\" (is it \"cat\"?)")), "{text}");
    }
}

#[test]
fn splits_say_what_they_are() {
    let root = folder(&[("train/ants", 40), ("train/bees", 20), ("test/ants", 3)]);
    let text = ImageFolder::splits(root.path(), 1).unwrap().to_string();
    let start = "train 51, valid 9 (split off train), test 3 images of 2 classes: ants, bees";
    assert!(text.starts_with(start) && text.contains("test lacks bees"), "{text}");
    let folders = ["train", "test"].map(|part| root.path().join(part).display().to_string());
    assert!(folders.iter().all(|folder| text.contains(folder)), "{text}");
    let many = folder(&(0..15).map(|class| (format!("{class:02}"), 2)).collect::<Vec<_>>());
    let text = ImageFolder::splits(many.path(), 1).unwrap().to_string();
    assert!(text.contains("15 classes: 00, 01") && text.contains("09 and 5 more"), "{text}");
}

#[test]
fn images_in_several_parts_are_counted() {
    let root = folder(&[("train/a", 0), ("train/b", 0), ("valid/a", 0), ("test/a", 0)]);
    let write = |path: &str, bytes: &[u8]| fs::write(root.path().join(path), bytes).unwrap();
    for (path, bytes) in [
        ("train/a/0.png", "one"),
        ("train/a/1.png", "one"),
        ("train/b/2.png", "two!"),
        ("valid/a/3.png", "one"),
        ("valid/a/4.png", "six"),
        ("valid/a/5.png", "three"),
        ("test/a/6.png", "two!"),
        ("test/a/7.png", "three"),
        ("test/a/8.png", "four"),
    ] {
        write(path, bytes.as_bytes());
    }
    let found = ImageFolder::splits(root.path(), 0).unwrap().duplicates().unwrap();
    assert_eq!((found.valid, found.test, found.is_empty()), (1, 2, false));
    let pairs: Vec<(String, String)> = found.examples.iter().map(|(a, b)| (name(a), name(b))).collect();
    let expected = [("6.png", "2.png"), ("7.png", "5.png"), ("3.png", "0.png")].map(|(a, b)| (a.into(), b.into()));
    assert_eq!(pairs, expected);
    assert!(
        found
            .to_string()
            .starts_with("images in several parts: 1 of valid (also in train), 2 of test (also in train or valid)")
    );
    ["test/a/6.png", "test/a/7.png", "valid/a/3.png"].iter().for_each(|path| write(path, path.as_bytes()));
    assert!(ImageFolder::splits(root.path(), 0).unwrap().duplicates().unwrap().is_empty());
}

fn name(path: &Path) -> String {
    path.file_name().unwrap().to_string_lossy().into_owned()
}

/// A class or a part under a broken link would be missing silently.
#[cfg(unix)]
#[test]
fn links_to_nothing_in_the_place_of_folders_are_refused() {
    for name in ["cats", "valid", "test"] {
        let root = folder(&[("train/a", 4), ("train/b", 4)]);
        let link = if name == "cats" { root.path().join("train/cats") } else { root.path().join(name) };
        std::os::unix::fs::symlink(root.path().join("gone"), &link).unwrap();
        let text = refusal(root.path());
        assert!(text.contains(name) && text.contains("broken link"), "{text}");
    }
}

/// A document, a video or an icon beside the folders is not reported as a misplaced image.
#[test]
fn documents_beside_folders_are_ignored_and_named_in_classes() {
    for stray in ["paper.pdf", "train/demo.mp4", "docs/readme.pdf", "favicon.ico"] {
        let root = folder(&[("train/a", 4), ("train/b", 4), ("test/a", 1), ("test/b", 1)]);
        let path = root.path().join(stray);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, "%PDF-1.7").unwrap();
        let splits = ImageFolder::splits(root.path(), 0).unwrap();
        assert_eq!((splits.train.len() + splits.valid.len(), splits.test.unwrap().len()), (8, 2), "{stray}");
    }
    let root = folder(&[("a", 4), ("b", 4)]);
    fs::write(root.path().join("a/paper.pdf"), "%PDF-1.7").unwrap();
    let text = refusal(root.path());
    assert!(text.contains("paper.pdf") && text.contains("PDF"), "{text}");
}
