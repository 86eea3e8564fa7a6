//! The most confident mistakes as pictures.

use super::markup::{escape, percent};
use crate::data::{Dataset, Image, Sample};
use crate::error::Result;
use crate::metrics::Task;
use crate::plots::thumbnail::{input_image, scaled};
use crate::predict::{Mistake, Predictor};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;

/// The pixels of a picture's longer side, at most.
const SIDE: usize = 160;

/// Pictures whose longer side is shorter than this are enlarged without smoothing.
const SMALL: usize = 80;

/// A sample that was predicted wrongly.
#[derive(Debug, Clone)]
pub(super) struct Tile {
    mistake: Mistake,
    truth: String,
    predicted: String,
    wrong: Option<String>,
    picture: Picture,
}

#[derive(Debug, Clone)]
enum Picture {
    /// The file as an address, and whether it is small.
    Shown(String, bool),
    /// Why there is none.
    Missing(String),
}

/// The mistakes with their pictures.
pub(super) fn tiles(mistakes: Vec<Mistake>, predictor: &Predictor, data: &dyn Dataset) -> Result<Vec<Tile>> {
    let tile = |mistake: Mistake| {
        let [truth, predicted, wrong] = mistake.words(predictor.labels());
        // Of several labels, the wrong one is named by itself.
        let wrong = (predictor.task() == Task::Labels).then_some(wrong);
        let picture = match data.sample(mistake.index)? {
            Sample::Image(image) if image.channels() > 4 => Picture::missing(image.channels()),
            Sample::Image(image) => Picture::of(image)?,
            Sample::Tensor(tensor) => match tensor.dims3()?.0 {
                1 | 3 => Picture::of(input_image(&tensor, predictor.backbone().input_spec())?)?,
                channels => Picture::missing(channels),
            },
        };
        Ok(Tile { mistake, truth, predicted, wrong, picture })
    };
    mistakes.into_iter().map(tile).collect()
}

impl Picture {
    fn of(image: Image) -> Result<Self> {
        let image = image.to_channels(3)?;
        let longer = image.height().max(image.width());
        let image = if longer > SIDE { scaled(&image, SIDE) } else { image };
        let (kind, bytes) = image.encoded()?;
        Ok(Self::Shown(format!("data:{kind};base64,{}", STANDARD.encode(bytes)), longer < SMALL))
    }

    fn missing(channels: usize) -> Self {
        Self::Missing(format!("No picture: {channels} channels"))
    }
}

/// The tiles of the section.
pub(super) fn mistakes(tiles: &[Tile]) -> String {
    if tiles.is_empty() {
        return "<p>Every sample is predicted correctly.</p>\n".into();
    }
    let tile = |tile: &Tile| {
        let Tile { mistake, truth, predicted, wrong, picture } = tile;
        let name = escape(&mistake.name);
        // The file within its folder, as which a class is often named.
        let parts: Vec<&str> = mistake.name.split(['/', '\\']).collect();
        let short = escape(&parts[parts.len().saturating_sub(2)..].join("/"));
        let picture = match picture {
            Picture::Shown(address, small) => {
                let class = if *small { " class=\"small\"" } else { "" };
                format!("<img{class} src=\"{address}\" alt=\"{name}\" title=\"{name}\">")
            }
            Picture::Missing(why) => format!("<p class=\"missing\">{why}</p>"),
        };
        let (probability, of_truth) = (percent(mistake.probability.into()), percent(mistake.of_truth.into()));
        let (of_mistake, of_truth) = match wrong {
            Some(wrong) => (String::new(), format!("{} with {probability}", escape(wrong))),
            None => (format!(" {probability}"), format!("{of_truth} for the true class")),
        };
        format!(
            "<figure>{picture}<figcaption><p class=\"labels\"><b>{}</b> as <b class=\"orange-text\">{}</b>{of_mistake}</p>\n\
             <p class=\"soft\">{of_truth}</p>\n<p class=\"file\" title=\"{name}\">{short}</p></figcaption></figure>\n",
            escape(truth),
            escape(predicted),
        )
    };
    let all: Vec<String> = tiles.iter().map(tile).collect();
    let (of, several) = if tiles.iter().any(|tile| tile.wrong.is_some()) {
        (
            "the true labels, in orange the predicted ones, and the one that is wrong most confidently",
            "more than was labelled",
        )
    } else {
        ("the true class, and in orange the predicted one", "several classes")
    };
    format!(
        "<p class=\"soft\">The wrong predictions with the highest probabilities: {of}. Images with wrong labels, and \
         images that show {several}, are often among them.</p>\n<div class=\"tiles\">\n{}</div>\n",
        all.concat()
    )
}
