//! Tables that are refused, with what the message says.

use super::Data;
use crate::image_folder::put;
use candle_finetune::{CsvOptions, Dataset, Error, ImageFolder};
use std::fs;

const IMAGES: [&str; 3] = ["a.png", "b.png", "in/b.png"];

/// The message of a table and options; it names the table, and is an [`Error::Invalid`].
fn refusal(table: impl AsRef<[u8]>, options: &CsvOptions, parts: &[&str]) {
    let data = Data::new(table, &IMAGES);
    let error = data.refusal(options);
    let text = error.to_string();
    assert!(matches!(error, Error::Invalid { .. }), "{text}");
    assert!(parts.iter().all(|part| text.contains(part)), "{text}\nlacks one of {parts:?}");
}

#[test]
fn columns_that_are_not_there_or_unclear_are_listed() {
    let default = ImageFolder::csv();
    let all = "its columns are: ";
    refusal("x,label\na,1\n", &default, &["table.csv", "`file`", "--file-column", all, "x, label"]);
    refusal("file,x\na,1\n", &default, &["`label`", "--label-column", "`labels`", all, "file, x"]);
    refusal("id,file,label\n1,a,1\n", &default, &["may be the file: id, file", "`file`", all]);
    refusal("file,Class,species\na,1,2\n", &default, &["may be the label: Class, species", "`label`", all]);
    refusal("file,label,split,subset\na,1,train,train\n", &default, &["split, subset", "`split`", "--split-column"]);
    refusal("file,label,group,patient\na,1,,\n", &default, &["group, patient", "`group`", "--group-column"]);
    let named = ImageFolder::csv().file("f").label("l").split("s").group("g");
    refusal("file,l,s,g\na,1,train,\n", &named, &["no column f", "`file`", all, "file, l, s, g"]);
    refusal("f,label,s,g\na,1,train,\n", &named, &["no column l", "`label`", all]);
    refusal("f,l,split,g\na,1,train,\n", &named, &["no column s", "`split`", all]);
    refusal("f,l,s,group\na,1,train,\n", &named, &["no column g", "`group`", all]);
    refusal("f,l,s,g,g\na,1,train,,\n", &named, &["two columns are called g"]);
    let flags = ImageFolder::csv().labels(["red", "blue"]);
    refusal("file,red\na,1\n", &flags, &["no column blue", "`labels`", "--label-columns", all, "file, red"]);
    refusal("file,red,blue\na,1,0\n", &ImageFolder::csv().labels(["red", "red"]), &["red", "twice"]);
    refusal("file,label\na,1\n", &ImageFolder::csv().file("label"), &["no column has a usual name for the label"]);
    refusal("file,label\na,1\n", &ImageFolder::csv().file("file").label("file"), &["file", "twice"]);
    refusal("file,label\na,1\n", &ImageFolder::csv().label("label").labels(["label"]), &["labels: ", "`label`"]);
    refusal("file,label\na,1\n", &ImageFolder::csv().labels(["label"]).separator('|'), &["`separator`"]);
    refusal("file,label\na,1\n", &ImageFolder::csv().labels([""; 0]), &["labels: ", "no columns"]);
    // A column with a name of its own is no candidate for anything else.
    let data = Data::new("id,file,label\np,a.png,1\np,b.png,1\n", &IMAGES);
    assert_eq!(ImageFolder::csv().group("id").open(data.table()).unwrap().len(), 2);
}

#[test]
fn rows_that_are_wrong_are_named_by_their_line() {
    let default = ImageFolder::csv();
    refusal("file,label\na,x\n\n ,x\n", &default, &["table.csv, line 4", "file is empty", "column file"]);
    refusal("file,label\r\na,x\r\nb.png,\r\n", &default, &["line 3", "label is empty", "column label"]);
    for path in ["../a.png", "in/../a.png", "/etc/a.png", "\\a.png", "C:\\a.png", "..\\a.png"] {
        refusal(format!("file,label\n{path},x\n"), &default, &["line 2", path, "relative"]);
    }
    refusal("file,label\nb,x\n", &default, &["line 2", "b.png", "in/b.png", "may be"]);
    refusal(
        "file,label\na,x\nb.png,x\n\"a.png\",y\n",
        &default,
        &["line 4", "line 2", "a.png", "`separator`", "`labels`", "--label-separator"],
    );
    refusal("file,label\na,x,y\n", &default, &["line 2", "3 fields", "header has 2", "quotes", "','"]);
    refusal("file,label\na,\"x\nb.png,y\n", &default, &["line 2", "quote is not closed"]);
    refusal("file,label\na,\"x\" y\n", &default, &["line 2", "closing quote"]);
    let flags = ImageFolder::csv().labels(["red"]);
    refusal("file,red\na,1\nb.png,2\n", &flags, &["line 3", "red", "\"2\"", "0 or 1"]);
    refusal("file,label\n", &default, &["no rows"]);
    refusal("\n\n", &default, &["is empty", "first line"]);
    refusal("file,label\na,1\nb.png,01\n", &default, &["1", "01", "same number"]);
}

#[test]
fn rows_without_an_image_are_listed_together() {
    let rows: String = (0..15).map(|i| format!("no{i}.png,x\n")).collect::<Vec<_>>().concat();
    let table = format!("file,label\na,x\nout/b.png,x\n{rows}");
    let named = [
        "16 rows",
        "line 3: out/b.png",
        "but there is ",
        "/b.png)",
        "line 4: no0.png",
        "6 more",
        "`images`",
        "--images",
    ];
    refusal(table, &ImageFolder::csv(), &named);
    let data = Data::new("file,label\na,x\n", &[]);
    fs::create_dir(data.root.path().join("empty")).unwrap();
    let error = data.refusal(&ImageFolder::csv().images(data.root.path().join("empty")));
    assert!(error.to_string().contains("no images in this folder"), "{error}");
    let missing = ImageFolder::csv().images(data.root.path().join("nowhere"));
    assert!(matches!(data.refusal(&missing), Error::Io { .. }));
    assert!(matches!(ImageFolder::csv().open("no/such/table.csv"), Err(Error::Io { .. })));
}

#[test]
fn splits_that_mean_nothing_are_listed() {
    let default = ImageFolder::csv();
    let rows = |words: &[&str]| {
        let rows = words.iter().enumerate().map(|(i, word)| format!("{},x,{word}\n", IMAGES[i]));
        format!("file,label,split\n{}", rows.collect::<String>())
    };
    refusal(rows(&["train", "3", ""]), &default, &["split", "name no part: 3, (empty)", "`split`"]);
    refusal(rows(&["train", "val", "dev"]), &default, &["val and dev both mean valid"]);
    // A column of many values is none of parts.
    let root = tempfile::tempdir().unwrap();
    let mut table = vec![String::from("file,label,set")];
    for i in 0..60 {
        put(root.path(), &format!("{i}.png"));
        table.push(format!("{i},x,s{i}"));
    }
    fs::write(root.path().join("t.csv"), table.join("\n")).unwrap();
    let text = default.open(root.path().join("t.csv")).unwrap_err().to_string();
    assert!(text.contains("s0, s1") && text.contains("more"), "{text}");
    // Test alone can be evaluated on.
    let data = Data::new(rows(&["test", "test"]), &IMAGES);
    for error in [default.open(data.table()).unwrap_err(), default.splits(data.table(), 0).unwrap_err()] {
        assert!(error.to_string().contains("no row is of train"), "{error}");
    }
    assert_eq!(default.eval_part(data.table()).unwrap().classes(), ["x"]);
}

#[test]
fn classes_that_train_lacks_are_named() {
    let data = Data::new("file,label,split\na,x,train\nb.png,y,test\n", &IMAGES);
    let error = ImageFolder::csv().splits(data.table(), 0).unwrap_err();
    let Error::UnknownClasses { path, unknown, known } = &error else { panic!("{error}") };
    assert_eq!((path, unknown.join(" "), known.join(" ")), (&data.table(), "y".into(), "x".into()));
    assert_eq!(ImageFolder::csv().open(data.table()).unwrap().classes(), ["x"]);
    // The same for columns, where one that is 0 everywhere is empty.
    let data = Data::new("file,x,y,z,split\na,1,0,0,train\nb.png,1,1,0,test\n", &IMAGES);
    let error = ImageFolder::csv().labels(["x", "y"]).splits(data.table(), 0).unwrap_err();
    assert!(matches!(&error, Error::UnknownClasses { unknown, .. } if unknown == &["y"]), "{error}");
    let empty = ImageFolder::csv().labels(["x", "z"]);
    for error in [empty.splits(data.table(), 0).unwrap_err(), empty.open(data.table()).unwrap_err()] {
        assert!(
            matches!(&error, Error::EmptyClass { class, path } if class == "z" && *path == data.table()),
            "{error}"
        );
        assert!(error.to_string().contains("remove the class"), "{error}");
    }
    // Evaluation needs no image of each class, and has them all.
    assert_eq!(empty.eval_part(data.table()).unwrap().labels(&["z", "x"].map(String::from)).unwrap().len(), 1);
}

#[test]
fn other_encodings_are_named_with_the_remedy() {
    let default = ImageFolder::csv();
    let table = "file,label\na,caf\u{e9}\n";
    let utf16 = |mark: &[u8], bytes: fn(u16) -> [u8; 2]| {
        [mark, &table.encode_utf16().flat_map(bytes).collect::<Vec<_>>()].concat()
    };
    refusal(utf16(b"\xFF\xFE", u16::to_le_bytes), &default, &["UTF-16", "save", "UTF-8"]);
    refusal(utf16(b"\xFE\xFF", u16::to_be_bytes), &default, &["UTF-16", "UTF-8"]);
    refusal(utf16(b"", u16::to_le_bytes), &default, &["UTF-16", "UTF-8"]);
    let latin: Vec<u8> = table.chars().map(|c| u8::try_from(u32::from(c)).unwrap()).collect();
    refusal(latin, &default, &["line 2", "Latin-1", "save", "UTF-8"]);
    refusal(b"PK\x03\x04rest", &default, &["spreadsheet", "UTF-8"]);
    // The characters that separate.
    refusal("file,label;x\na,1\n", &default, &["','", "';'", "`delimiter`"]);
    for delimiter in [b'"', b'\n', 200] {
        refusal("file,label\na,1\n", &ImageFolder::csv().delimiter(delimiter), &["delimiter: ", "ASCII"]);
    }
    refusal("file|label\na|1\n", &ImageFolder::csv().delimiter(b'|').separator('|'), &["delimiter: ", "labels"]);
    refusal("file|label\na|1\n", &ImageFolder::csv().separator('|'), &["its columns are: file|label"]);
}

#[test]
fn messages_are_safe_to_print() {
    let data = Data::new("file,label\n\x1b[2J.png,x\n", &IMAGES);
    let text = data.refusal(&ImageFolder::csv()).to_string();
    assert!(!text.contains('\x1b') && text.contains("\\u{1b}[2J.png"), "{text}");
}
