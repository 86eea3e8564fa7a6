//! The page of a run: whole HTML whatever the report holds, with the report's figures.

use crate::plots::fashion;
use crate::support::{CPU, numbers, pictures, plan};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use candle_finetune::{
    Arch, Backbone, Block, Blueprint, Conv2d, Dataset, Error, Evaluation, FineTuner, Fitted, FreezePolicy, Image,
    InputSpec, Optimizer, Phase, Predictor, Report, ReportPage, Result, Sample, SampleInfo, Source, Strategy, Target,
    TensorDataset, VecDataset,
};
use serde_json::{Value, json};

/// A run of two phases, of two epochs and one.
fn tuned() -> Fitted {
    let backbone = Backbone::random(Arch::CIFAR_RESNET20, 3, &CPU).unwrap();
    let data = pictures(20, 36, 3, 1);
    let phases = [(2, FreezePolicy::Backbone), (1, FreezePolicy::First(7))];
    let phases = phases.map(|(epochs, freeze)| Phase::new(epochs, Optimizer::adamw(1e-3)).freeze(freeze));
    FineTuner::new(backbone).plan(plan(phases.to_vec(), 8)).fit(&data, &data).unwrap()
}

/// The report of [`tuned`] with some of its JSON changed.
fn changed(change: impl FnOnce(&mut Value)) -> Report {
    let mut report = serde_json::to_value(&tuned().report).unwrap();
    change(&mut report);
    serde_json::from_value(report).unwrap()
}

/// The page, after a check that it is whole: every tag is one of the page's own, is closed and has quoted attributes
/// without numbers that are none, and nothing is loaded.
fn page(report: &Report) -> String {
    let html = ReportPage::new(report).html().unwrap();
    check(&html);
    html
}

const TAGS: &str = "html head meta title style body main header h1 h2 h3 p section div dl dt dd small b i ul li svg g \
                    line rect circle text polyline polygon table thead tbody tr th td details summary figure figcaption \
                    img span footer";

fn check(html: &str) {
    let mut open: Vec<&str> = vec![];
    let body = html.strip_prefix("<!doctype html>\n").unwrap();
    for part in body.split('<').skip(1) {
        let (tag, text) = part.split_once('>').unwrap_or_else(|| panic!("not a tag: {part}"));
        assert!(!text.contains('>') || open.last() == Some(&"style") || tag == "style", "a loose > in {text}");
        let name = tag.trim_start_matches('/').split([' ', '\n']).next().unwrap().trim_end_matches('/');
        assert!(TAGS.split_whitespace().any(|known| known == name), "<{tag}> is not a tag of the page");
        if let Some(closed) = tag.strip_prefix('/') {
            assert_eq!(open.pop(), Some(closed));
        } else if !tag.ends_with('/') && !["meta", "img"].contains(&name) {
            open.push(name);
        }
        assert_eq!(tag.matches('"').count() % 2, 0, "<{tag}>");
        // Outside of the quotes there are names alone, and in a number's place there is a number.
        let loose: String = tag.split('"').step_by(2).collect();
        assert!(loose.chars().all(|c| c.is_alphanumeric() || " \n=-/:".contains(c)), "<{tag}>");
        for attribute in [" x=", " y=", " x1=", " cx=", " cy=", " width=", " height=", " points="] {
            let value = tag.split(attribute).nth(1).map(|rest| rest.split('"').nth(1).unwrap()).unwrap_or_default();
            assert!(value.chars().all(|c| c.is_ascii_digit() || " ,.-%".contains(c)), "<{tag}>");
        }
    }
    assert!(open.is_empty(), "not closed: {open:?}");
    for outside in ["http:", "https:", "url(", "@import"] {
        assert!(!html.contains(outside), "{outside}");
    }
}

/// The text between two others.
fn between<'a>(html: &'a str, from: &str, to: &str) -> &'a str {
    let rest = html.split_once(from).unwrap_or_else(|| panic!("no {from}")).1;
    rest.split_once(to).unwrap_or_else(|| panic!("no {to} after {from}")).0
}

fn has_section(html: &str, title: &str) -> bool {
    html.contains(&format!("<h2>{title}"))
}

#[test]
fn a_page_has_the_figures_of_its_report() {
    let Fitted { report, .. } = tuned();
    let html = page(&report);
    let valid: &Evaluation = report.valid.as_ref().unwrap();
    let percent = |share: f64| format!("{:.1}\u{a0}%", 100.0 * share);
    let card = between(&html, "<h3>Validation accuracy</h3>", "</div>");
    assert!(card.contains(&format!("<p class=\"big\">{}</p>", percent(valid.top1()))), "{card}");
    let (low, high) = valid.interval();
    assert!(card.contains(&format!("{:.1}\u{2013}{}", 100.0 * low, percent(high))), "{card}");
    assert!(card.contains(&format!("<b>{} of 20</b>", valid.correct)));
    assert!(!html.contains("Test accuracy"));
    for line in report.plan.to_string().split_whitespace() {
        assert!(html.contains(line), "the plan's {line}");
    }
    // The matrix has a cell for each pair of classes.
    for truth in 0..3 {
        for predicted in 0..3 {
            let count = valid.confusion.count(truth, predicted);
            let all = valid.confusion.samples()[&(truth as u32)];
            assert!(html.contains(&format!("class {truth} as class {predicted}: {count} of {all} (")));
        }
    }
    for scores in valid.per_class() {
        assert!(html.contains(&format!("recall {}", percent(scores.recall))));
        assert!(html.contains(&format!("precision {}", percent(scores.precision))));
    }
    // Three epochs on an axis from 50 to 338; the phases change between the second and the third.
    let kept = report.best_epoch.unwrap();
    let x = |epoch: f64| format!("x1=\"{:.1}\"", 50.0 + 288.0 * (epoch - 1.0) / 2.0);
    assert_eq!(html.matches(&format!("<line class=\"kept\" {}", x(kept as f64))).count(), 3);
    assert_eq!(html.matches(&format!("<line class=\"phase\" {}", x(2.5))).count(), 3);
    assert_eq!(html.matches("<tr class=\"kept-row\">").count(), 1);
    for epoch in &report.epochs {
        assert!(html.contains(&format!("<td>{:.4}</td>", epoch.train_loss)));
        assert!(html.contains(&format!("train {:.4}\n", epoch.train_loss)), "the tooltip");
    }
    // The rate jumps between the phases, so it has a line in each.
    let rate = between(&html, "<h3>Learning rate of the head", "</figure>");
    assert_eq!(rate.matches("<polyline").count(), 2);
}

#[test]
fn texts_from_data_are_escaped() {
    let evil = "</title><script>alert(\"1\")</script>&amp;'\u{1b}[0m";
    let report = changed(|report| {
        report["classes"] = json!([evil, "a & b", "\"c\" <d>"]);
        report["warnings"] = json!([evil]);
        report["overrides"] = json!([evil]);
        report["stopped"] = json!(evil);
        report["base_model"] = json!(evil);
        report["arch"] = json!(evil);
        report["version"] = json!(evil);
        report["date"] = json!(evil);
        report["plan"]["reasons"] = json!([evil]);
        report["parameters"]["stages"][0]["name"] = json!(evil);
    });
    let html = ReportPage::new(&report).title(evil).html().unwrap();
    check(&html);
    let escaped = "&lt;/title&gt;&lt;script&gt;alert(&quot;1&quot;)&lt;/script&gt;&amp;amp;&#39;\u{fffd}[0m";
    assert!(html.contains(&format!("<title>{escaped}</title>")) && html.contains(&format!("<h1>{escaped}</h1>")));
    assert!(html.contains("a &amp; b as &quot;c&quot; &lt;d&gt;:"));
    assert!(html.matches(escaped).count() >= 10);
}

#[test]
fn reports_without_validation_or_epochs_make_a_page() {
    let without = |report: &mut Value| {
        for key in ["valid", "valid_top1", "best_epoch"] {
            report[key] = Value::Null;
        }
        for epoch in report["epochs"].as_array_mut().unwrap() {
            for key in ["valid_loss", "valid_top1", "valid_interval"] {
                epoch[key] = Value::Null;
            }
        }
    };
    let html = page(&changed(without));
    assert!(html.contains("Not measured") && has_section(&html, "Training") && !has_section(&html, "Confusions"));
    assert!(!html.contains("class=\"kept\""));

    let html = page(&changed(|report| {
        report["epochs"].as_array_mut().unwrap().truncate(1);
        report["best_epoch"] = json!(1);
    }));
    // One epoch is in the middle.
    assert!(html.contains("<circle class=\"blue\" cx=\"194.0\"") && !html.contains("class=\"phase\""));

    let data = pictures(20, 36, 3, 1);
    let backbone = Backbone::random(Arch::CIFAR_RESNET20, 3, &CPU).unwrap();
    let fitted = FineTuner::new(backbone).strategy(Strategy::Intermediate).fit(&data, &data).unwrap();
    let html = page(&fitted.report);
    assert!(!has_section(&html, "Training") && html.contains("the fitted head") && has_section(&html, "Confusions"));
    // The report of a saved predictor has no measurements.
    let report = fitted.predictor.report().unwrap().unwrap();
    assert!(!page(&report).contains("<dt>Time</dt>") && html.contains("<dt>Time</dt>"));
    let old: Report = serde_json::from_str(include_str!("../fixtures/report-0.1.json")).unwrap();
    page(&old);
}

#[test]
fn losses_that_are_not_finite_are_gaps_with_crosses() {
    let html = page(&changed(|report| {
        report["epochs"][1]["train_loss"] = json!("NaN");
        report["epochs"][2]["valid_loss"] = json!("inf");
        report["valid"]["loss"] = json!("NaN");
        report["epochs"][0]["lr"] = json!(1e300);
    }));
    assert_eq!(html.matches("\u{d7}</text>").count(), 3);
    assert!(html.contains("train NaN") && html.contains("valid \u{221e}") && html.contains("loss NaN"));
    let html = page(&changed(|report| {
        for epoch in report["epochs"].as_array_mut().unwrap() {
            (epoch["train_loss"], epoch["valid_loss"]) = (json!("NaN"), json!("-inf"));
        }
    }));
    assert_eq!(html.matches("\u{d7}</text>").count(), 6);
}

/// An evaluation of classes with ten samples each, of which one is taken for the next class.
fn of_classes(count: usize) -> Report {
    changed(|report| {
        report["classes"] = (0..count).map(|i| format!("class {i}")).collect();
        let cells = (0..count).flat_map(|i| [json!([i, i, 9]), json!([i, (i + 1) % count, 1])]);
        report["test"] = json!({
            "correct": 9 * count, "total": 10 * count, "not_finite": 0, "loss": 0.5,
            "confusion": cells.collect::<Vec<_>>(),
        });
        (report["top1"], report["valid"]) = (json!(0.9), Value::Null);
    })
}

#[test]
fn few_classes_have_a_matrix_and_many_a_list() {
    for count in [2, 10, 25] {
        let html = page(&of_classes(count));
        let cells = html.matches("<rect class=\"cell").count();
        assert_eq!(cells, count * count);
        // The table of classes has two bars each, and the list of confusions one.
        assert_eq!(html.matches("<svg class=\"bar\"").count(), 2 * count + count.min(8));
        assert!(!html.contains("other classes</summary>"));
    }
    let html = page(&of_classes(200));
    assert!(!html.contains("<rect class=\"cell") && html.contains("175 more pairs"));
    assert!(html.contains("The other 180 classes"));
    assert_eq!(html.matches("<svg class=\"bar\"").count(), 2 * 200 + 25);
    assert!(html.len() < 300_000, "{} bytes", html.len());
}

#[test]
fn reports_that_contradict_themselves_are_refused() {
    let kept = changed(|report| report["best_epoch"] = json!(4));
    let class = changed(|report| report["valid"]["confusion"][0] = json!([0, 3, 2]));
    for (report, problem) in [(kept, "keeps epoch 4"), (class, "class 3, but has 3 classes")] {
        let error = ReportPage::new(&report).html().unwrap_err();
        assert!(matches!(&error, Error::Invalid { .. }) && error.to_string().contains(problem), "{error}");
        let dir = tempfile::tempdir().unwrap();
        assert!(ReportPage::new(&report).save(dir.path().join("a.html")).is_err());
        assert_eq!(dir.path().read_dir().unwrap().count(), 0);
    }
}

/// The bytes of the pictures of a page.
fn embedded(html: &str) -> Vec<Vec<u8>> {
    let addresses = html.split(";base64,").skip(1).map(|rest| rest.split('"').next().unwrap());
    addresses.map(|address| STANDARD.decode(address).unwrap()).collect()
}

#[test]
fn mistakes_are_shown_with_their_pictures() {
    let predictor = Predictor::load(Source::embedded(), &CPU).unwrap();
    let report = tuned().report;
    let dir = tempfile::tempdir().unwrap();
    // A drawing of 28 pixels stays as it is, in a lossless file.
    let Sample::Image(small) = fashion().sample(0).unwrap() else { panic!("no image") };
    let bytes = (0..300 * 400 * 3).map(|i: u32| (i * i / 500 % 256) as u8).collect();
    let large = Image::new(300, 400, 3, bytes).unwrap();
    let truth = |image: &Image| (predictor.predict(image).unwrap().class + 1) % 10;
    let samples = vec![(small.clone(), truth(&small)), (large.clone(), truth(&large))];
    let data = VecDataset::new(samples, predictor.labels().to_vec()).unwrap();
    let found = predictor.mistakes(&data, 9).unwrap();
    assert_eq!(found.len(), 2);
    let page = ReportPage::new(&report).mistakes(&predictor, &data, 9).unwrap();
    let path = dir.path().join("page.html");
    page.save(&path).unwrap();
    let html = std::fs::read_to_string(&path).unwrap();
    assert_eq!(html, page.html().unwrap());
    check(&html);
    let files = embedded(&html);
    assert_eq!(files.len(), 2);
    for (mistake, file) in found.iter().zip(files) {
        let path = dir.path().join(if file.starts_with(b"\x89PNG") { "picture.png" } else { "picture.jpg" });
        std::fs::write(&path, &file).unwrap();
        let shown = Image::open(&path).unwrap();
        match mistake.index {
            0 => assert!(shown == small && file.starts_with(b"\x89PNG")),
            _ => assert_eq!((shown.height(), shown.width()), (120, 160)),
        }
        let (probability, label) = (mistake.probability, |class: u32| &predictor.labels()[class as usize]);
        let of = format!(
            "<b>{}</b> as <b class=\"orange-text\">{}</b>",
            label(mistake.truth[0]),
            label(mistake.predicted[0])
        );
        let tile = between(&html, &of, "</figure>");
        assert!(tile.contains(&format!("{:.1}\u{a0}%", 100.0 * probability)), "{tile}");
        assert!(tile.contains(&mistake.name));
    }
    // Fewer, and none.
    let one = ReportPage::new(&report).mistakes(&predictor, &data, 1).unwrap().html().unwrap();
    assert_eq!(embedded(&one).len(), 1);
    let right = vec![(small.clone(), predictor.predict(&small).unwrap().class)];
    let right = VecDataset::new(right, predictor.labels().to_vec()).unwrap();
    let none = ReportPage::new(&report).mistakes(&predictor, &right, 9).unwrap().html().unwrap();
    assert!(none.contains("Every sample is predicted correctly"));
    assert!(ReportPage::new(&report).save(dir.path().join("nowhere/page.html")).is_err());
}

/// With lists of labels a tile has all true and all predicted ones, and names the wrong one.
#[test]
fn mistakes_of_lists_of_labels_name_the_wrong_label() {
    let images =
        candle_finetune::candle_core::Tensor::from_vec(numbers(6 * 3 * 32 * 32, 1), (6, 3, 32, 32), &CPU).unwrap();
    let lists = |of: fn(usize) -> Vec<u32>| (0..6).map(|i| Target::Labels(of(i))).collect::<Vec<_>>();
    let names = ["<hat>", "coat", "shoe"].map(String::from).to_vec();
    let with = |targets| TensorDataset::from_targets(images.clone(), targets, names.clone()).unwrap();
    let backbone = Backbone::load(Source::embedded(), &CPU).unwrap();
    let train = with(lists(|i| if i % 2 == 0 { vec![0, 1] } else { vec![] }));
    let plan = plan(vec![Phase::new(60, Optimizer::adamw(1e-2)).freeze(FreezePolicy::Backbone)], 6);
    let tuned = FineTuner::new(backbone).plan(plan).fit(&train, &train).unwrap();
    assert!(tuned.predictor.mistakes(&train, 9).unwrap().is_empty(), "learned by heart");
    // Other lists for the same images: the first has one label too many, the second one too few.
    let data = with(lists(|i| match i {
        0 => vec![0, 1, 2],
        1 => vec![0],
        i if i % 2 == 0 => vec![0, 1],
        _ => vec![],
    }));
    let html = ReportPage::new(&tuned.report).mistakes(&tuned.predictor, &data, 9).unwrap().html().unwrap();
    check(&html);
    assert_eq!(embedded(&html).len(), 2);
    let tile = between(
        &html,
        "<b>&lt;hat&gt; + coat + shoe</b> as <b class=\"orange-text\">&lt;hat&gt; + coat</b>",
        "</figure>",
    );
    assert!(tile.contains("not shoe with "), "{tile}");
    let tile = between(&html, "<b>&lt;hat&gt;</b> as <b class=\"orange-text\">no label</b>", "</figure>");
    assert!(tile.contains("not &lt;hat&gt; with "), "{tile}");
    assert!(html.contains("the true labels, in orange the predicted ones"));
}

/// One sample of five channels under a name that is HTML.
#[derive(Clone)]
struct Named(Vec<String>);

impl Dataset for Named {
    fn len(&self) -> usize {
        2
    }
    fn classes(&self) -> &[String] {
        &self.0
    }
    fn info(&self, i: usize) -> SampleInfo<'_> {
        SampleInfo::new(i, Target::Class(i as u32)).name("x/y/\"><img src=a onload=b>&.png")
    }
    fn sample(&self, _: usize) -> Result<Sample> {
        Ok(Sample::Image(Image::new(8, 8, 5, (0..320).map(|i| (i % 251) as u8).collect())?))
    }
}

#[test]
fn names_of_files_are_escaped_and_what_cannot_be_drawn_says_so() {
    let spec = InputSpec::new(8).normalize(&[0.5; 5], &[0.25; 5]);
    let blocks = vec![Block::new("stem", Conv2d::new(5, 6, 3).relu())];
    let backbone = Backbone::random(Blueprint::from_blocks("own", spec, 6, blocks).unwrap(), 1, &CPU).unwrap();
    let data = Named(vec!["<a>".into(), "b".into()]);
    let phase = Phase::new(1, Optimizer::adamw(1e-3));
    let tuned = FineTuner::new(backbone).plan(plan(vec![phase], 2)).fit(&data, &data).unwrap();
    let page = ReportPage::new(&tuned.report).mistakes(&tuned.predictor, &data, 9).unwrap();
    let html = page.html().unwrap();
    check(&html);
    // Both samples are the same, so one of them is wrong.
    assert!(html.contains("No picture: 5 channels") && embedded(&html).is_empty());
    assert!(html.contains(">y/&quot;&gt;&lt;img src=a onload=b&gt;&amp;.png</p>"));
    assert!(html.contains("&lt;a&gt;</b>"));
}
