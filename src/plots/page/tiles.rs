//! The most confident mistakes as pictures.

use super::markup::{escape, percent};
use crate::data::{Dataset, Image, Sample};
use crate::error::Result;
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
    let label = |class: u32| predictor.labels().get(class as usize).cloned().unwrap_or_default();
    let tile = |mistake: Mistake| {
        let (truth, predicted) = (label(mistake.truth), label(mistake.predicted));
        let picture = match data.sample(mistake.index)? {
            Sample::Image(image) if image.channels() > 4 => Picture::missing(image.channels()),
            Sample::Image(image) => Picture::of(image)?,
            Sample::Tensor(tensor) => match tensor.dims3()?.0 {
                1 | 3 => Picture::of(input_image(&tensor, predictor.backbone().input_spec())?)?,
                channels => Picture::missing(channels),
            },
        };
        Ok(Tile { mistake, truth, predicted, picture })
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
        return "<p>Every sample is predicted as its own class.</p>\n".into();
    }
    let tile = |tile: &Tile| {
        let Tile { mistake, truth, predicted, picture } = tile;
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
        format!(
            "<figure>{picture}<figcaption><p class=\"labels\"><b>{}</b> as <b class=\"orange-text\">{}</b> {}</p>\n\
             <p class=\"soft\">{} for the true class</p>\n<p class=\"file\" title=\"{name}\">{short}</p></figcaption>\
             </figure>\n",
            escape(truth),
            escape(predicted),
            percent(mistake.probability.into()),
            percent(mistake.of_truth.into())
        )
    };
    let tiles: Vec<String> = tiles.iter().map(tile).collect();
    format!(
        "<p class=\"soft\">The wrong predictions with the highest probabilities: the true class, and in orange the \
         predicted one. Images with wrong labels, and images of several classes, are often among them.</p>\n<div class=\"tiles\">\n{}\
         </div>\n",
        tiles.concat()
    )
}
