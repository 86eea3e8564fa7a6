//! The page of the grid: every task, the regret of each rule, and what the figures allow to say.

use crate::regret::{Figures, bootstrap, mean_regret, rules};
use crate::rows::{Rows, Task};
use candle_finetune::Strategy;
use std::fmt::Write as _;
use std::path::Path;

const HEAD: &str = "\
# Which strategy was right?

Every strategy on every task, and what the advisor chose, by test accuracy (top-1, the mean over the seeds). The page is
written by the example `four_quadrants` from the rows in `docs/evidence/rows.jsonl`; a row is one training. To run what is
missing, or out of date since a plan has changed:

```text
cargo run --release --example four_quadrants -- --tasks docs/evidence/tasks.json --rows docs/evidence/rows.jsonl \\
    --sets DIR --weights cifar_resnet20=FILE --weights tf_efficientnet_lite0=FILE --page docs/evidence.md
```

DIR holds a folder for each set, with train/ and test/; `--only NAME` runs the tasks whose name contains it. A task takes
the first images of each class in an order that the seed decides, and holds 15 % of them out for validation; the choice
sees the training images alone. Test images are used once, for the figures here.

The figures of the probes, and the accuracy that twice the images have brought to them, are the advisor's. For comparison the
rules below also try two that it does not use: how far the statistics of a batch are from those that the batch norms
remember of the pretraining data (Jeffreys' divergence, a mean over channels), and the share of the first half of the
blocks in the relative gradients.

*Regret* is the accuracy of the strategy that is best on the task minus that of the choice, in points. Tasks in brackets
are shown and not counted.
";

pub fn write(tasks: &[Task], rows: &Rows, picture: &Path) -> String {
    let figures: Vec<Figures<'_>> = tasks.iter().filter_map(|task| Figures::new(task, rows)).collect();
    let counted: Vec<&Figures<'_>> = figures.iter().filter(|figures| figures.counts()).collect();
    let mut page = String::from(HEAD);
    let name = picture.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    // Writing into a String cannot fail.
    let _ = writeln!(page, "\n![images per class, similarity and the best strategy of each task]({name})\n");
    let lacking = tasks.len() - figures.len();
    if lacking > 0 {
        let _ = writeln!(page, "{lacking} of {} tasks are not complete yet and are left out.\n", tasks.len());
    }
    table(&mut page, &figures);
    if !counted.is_empty() {
        regrets(&mut page, &counted);
    }
    page
}

fn table(page: &mut String, figures: &[Figures<'_>]) {
    let _ = writeln!(
        page,
        "| task | images (of a class) | seeds | probe, last / best stage | {} | others | auto | chose | regret (95 %) |",
        Strategy::QUADRANTS.map(Strategy::name).join(" | ")
    );
    let _ = writeln!(page, "|---|---|---|---|{}---|---|---|---|", "---|".repeat(Strategy::QUADRANTS.len()));
    for figures in figures {
        let name = &figures.task.name;
        let name = if figures.counts() { name.clone() } else { format!("({name})") };
        let ((images, per_class), (last, best)) = (figures.images(), figures.probe());
        let _ = write!(page, "| {name} | {images} ({per_class:.0}) | {} | {last:.3} / {best:.3} |", figures.task.seeds);
        for strategy in Strategy::QUADRANTS {
            let top1 = figures.top1[strategy.name()];
            let bold = if strategy == figures.best { "**" } else { "" };
            let _ = write!(page, " {bold}{top1:.3}{bold} |");
        }
        let known =
            |name: &&str| Strategy::QUADRANTS.iter().any(|strategy| strategy.name() == *name) || *name == "auto";
        let others: Vec<String> = figures
            .top1
            .iter()
            .filter(|(name, _)| !known(name))
            .map(|(name, top1)| format!("{name} {top1:.3}"))
            .collect();
        let mut chosen: Vec<&str> =
            figures.auto.iter().filter_map(|row| Some(row.advice.as_ref()?.strategy.as_str())).collect();
        chosen.sort_unstable();
        chosen.dedup();
        let (low, high) = figures.interval;
        let _ = writeln!(
            page,
            " {} | {:.3} | {} | {:.1} ({:.1} to {:.1}) |",
            others.join(", "),
            figures.top1["auto"],
            chosen.join(", "),
            100.0 * figures.regret,
            100.0 * low,
            100.0 * high
        );
    }
    for figures in figures.iter().filter(|figures| !figures.counts()) {
        if let Some(why) = &figures.task.shown {
            let _ = writeln!(page, "\n({}): {why}.", figures.task.name);
        }
    }
}

fn regrets(page: &mut String, counted: &[&Figures<'_>]) {
    let tuning: Vec<&Figures<'_>> = counted.iter().copied().filter(|figures| figures.task.tuning).collect();
    let held_out: Vec<&Figures<'_>> = counted.iter().copied().filter(|figures| !figures.task.tuning).collect();
    let sets = |tasks: &[&Figures<'_>]| {
        let mut sets: Vec<&str> = tasks.iter().map(|figures| figures.task.set.as_str()).collect();
        sets.sort_unstable();
        sets.dedup();
        sets.join(", ")
    };
    let _ = writeln!(
        page,
        "\n## Regret\n\nThresholds, the advisor's and those of the rules below, were chosen on these sets: {}. Others: {}. \
         The rules by one figure have the two strategies and the threshold that do best on those sets. The last column is \
         the regret of the rule minus the advisor's, with its 95 % interval from resampling whole sets: where that holds \
         zero, the figures here do not tell the two apart.\n",
        sets(&tuning),
        sets(&held_out)
    );
    let _ = writeln!(page, "| choice | mean regret | other sets | worst | minus auto (95 %) |\n|---|---|---|---|---|");
    let points = |value: f64| format!("{:.2}", 100.0 * value);
    let worst = |regret: &dyn Fn(&Figures<'_>) -> f64| counted.iter().map(|f| regret(f)).fold(f64::MIN, f64::max);
    let auto = |figures: &Figures<'_>| figures.regret;
    let _ = writeln!(
        page,
        "| **auto** | {} | {} | {} | |",
        points(mean_regret(counted, auto)),
        points(mean_regret(&held_out, auto)),
        points(worst(&auto))
    );
    for rule in rules(&tuning) {
        let regret = |figures: &Figures<'_>| figures.regret_of((rule.choice)(figures).name());
        let more = |figures: &Figures<'_>| regret(figures) - figures.regret;
        let (low, high) = bootstrap(counted, more);
        let _ = writeln!(
            page,
            "| {} | {} | {} | {} | {} ({} to {}) |",
            rule.name,
            points(mean_regret(counted, regret)),
            points(mean_regret(&held_out, regret)),
            points(worst(&regret)),
            points(mean_regret(counted, more)),
            points(low),
            points(high)
        );
    }
}
