//! The page of a run: its report as one HTML file.

mod classes;
mod confusion;
mod curves;
mod head;
mod markup;
mod tables;
mod tiles;

use crate::data::Dataset;
use crate::error::{Error, Result};
use crate::metrics::Evaluation;
use crate::predict::Predictor;
use crate::report::Report;
use crate::weights::write_text;
use markup::{escape, section};
use std::fmt::Write as _;
use std::path::Path;
use tiles::Tile;

/// A report as a page to look at and to send to others: one HTML file without scripts, which loads nothing from
/// elsewhere.
///
/// It shows the accuracies with their intervals, warnings, the plan in words, the curves of loss, accuracy and learning
/// rate, which class is taken for which, recall and precision of each class and, with [`mistakes`](Self::mistakes), the
/// most confident mistakes as pictures. Figures of classes are those of the test, or else of the validation. What the
/// report does not have is left out. It follows the reader's choice of a light or dark display.
///
/// ```
/// use candle_finetune::{Backbone, FineTuner, ImageFolder, ReportPage, Strategy, candle_core::Device};
///
/// # let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/assets/fashion");
/// # let dir = tempfile::tempdir()?;
/// # let path = dir.path().join("run.html");
/// let splits = ImageFolder::options().splits(folder, 0)?;
/// let backbone = Backbone::embedded(&Device::Cpu)?;
/// let tuned = FineTuner::new(backbone).strategy(Strategy::Intermediate).fit(&splits.train, &splits.valid)?;
/// let page = ReportPage::new(&tuned.report).title("Clothes").mistakes(&tuned.predictor, &splits.valid, 12)?;
/// page.save(&path)?;
/// # assert!(std::fs::read_to_string(&path)?.contains("<h1>Clothes</h1>"));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// A page can be made later too, of [`Predictor::report`] or of a report that was read from JSON.
#[derive(Debug, Clone)]
pub struct ReportPage {
    report: Report,
    title: Option<String>,
    mistakes: Option<Vec<Tile>>,
}

impl ReportPage {
    /// A page of this report.
    pub fn new(report: &Report) -> Self {
        Self { report: report.clone(), title: None, mistakes: None }
    }

    /// Sets the title, by default `Fine-tuning of resnet18`.
    pub fn title(mut self, title: impl Into<String>) -> Self {
        self.title = Some(title.into());
        self
    }

    /// Adds the samples of `data` whose predicted class is wrong, those with the highest probabilities, at most `most`,
    /// each with its picture of at most 160 pixels ([`Predictor::mistakes`]). A sample that is neither gray nor RGB has
    /// no picture. All samples pass the network once.
    ///
    /// # Errors
    /// As [`Predictor::mistakes`], and if a sample cannot be read again.
    pub fn mistakes<D: Dataset + Clone + 'static>(
        mut self,
        predictor: &Predictor,
        data: &D,
        most: usize,
    ) -> Result<Self> {
        self.mistakes = Some(tiles::tiles(predictor.mistakes(data, most)?, predictor, data)?);
        Ok(self)
    }

    /// The page as HTML.
    ///
    /// # Errors
    /// [`Error::Invalid`] for a report with figures of a class or an epoch that it does not have.
    pub fn html(&self) -> Result<String> {
        let Self { report, title, mistakes } = self;
        self.check()?;
        let title = escape(&title.clone().unwrap_or_else(|| format!("Fine-tuning of {}", report.arch)));
        let mut body = format!("<header>\n<h1>{title}</h1>\n{}</header>\n", head::subtitle(report));
        body += &head::figures(report);
        body += &head::warnings(report);
        body += &section("Training", &(curves::curves(report) + &tables::epochs(report)));
        if let Some((part, evaluation)) = self.evaluation() {
            let confusions = confusion::confusion(evaluation, &report.classes);
            body += &section(&format!("Confusions of the {part} data"), &confusions);
            let classes = classes::classes(evaluation, &report.classes);
            body += &section(&format!("Classes of the {part} data"), &classes);
        }
        if let Some(tiles) = mistakes {
            body += &section("Most confident mistakes", &tiles::mistakes(tiles));
        }
        body += &head::plan(report);
        body += &tables::parameters(report);
        let version = if report.version.is_empty() { String::new() } else { format!(" {}", escape(&report.version)) };
        // Writing into a String cannot fail.
        let _ = writeln!(body, "<footer>Trained with candle-finetune{version}</footer>");
        Ok(format!(
            "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n<meta name=\"viewport\" \
             content=\"width=device-width, initial-scale=1\">\n<meta http-equiv=\"Content-Security-Policy\" \
             content=\"default-src 'none'; style-src 'unsafe-inline'; img-src data:\">\n<title>{title}</title>\n\
             <style>\n{}</style>\n</head>\n<body>\n<main>\n{body}</main>\n</body>\n</html>\n",
            include_str!("page/style.css")
        ))
    }

    /// Saves the page as a file, which is replaced atomically.
    ///
    /// # Errors
    /// As [`ReportPage::html`], and if the file cannot be written.
    pub fn save(&self, path: impl AsRef<Path>) -> Result<()> {
        write_text(path.as_ref(), &self.html()?)
    }

    /// What the figures of classes are of.
    fn evaluation(&self) -> Option<(&'static str, &Evaluation)> {
        let test = self.report.test.as_ref().map(|test| ("test", test));
        test.or_else(|| self.report.valid.as_ref().map(|valid| ("validation", valid)))
    }

    /// Refuses a report that contradicts itself.
    fn check(&self) -> Result<()> {
        let (epochs, classes) = (self.report.epochs.len(), self.report.classes.len());
        if let Some(kept) = self.report.best_epoch.filter(|kept| *kept > epochs) {
            let problem = format!("keeps epoch {kept}, but has {epochs} epochs; write it again");
            return Err(Error::invalid("report", problem));
        }
        for evaluation in [&self.report.valid, &self.report.test].into_iter().flatten() {
            let counted = evaluation.per_class().into_iter().map(|scores| scores.class);
            if let Some(class) = counted.max().filter(|class| *class as usize >= classes) {
                let problem = format!("counts samples of class {class}, but has {classes} classes; write it again");
                return Err(Error::invalid("report", problem));
            }
        }
        Ok(())
    }
}
