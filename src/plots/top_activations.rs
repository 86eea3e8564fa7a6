//! The images that excite channels most.

use super::canvas::Canvas;
use super::grid::PictureGrid;
use super::thumbnail::{input_image, scaled};
use crate::backbone::Backbone;
use crate::data::{Dataset, Image, Sample, Transform};
use crate::error::{Error, Result};
use crate::features::{Cut, FeatureCache, FeatureExtractor, FeatureSet};
use crate::ops::no_grad;
use candle_core::{DType, Device, Tensor};
use std::collections::BTreeMap;
use std::sync::Arc;

/// The images of a dataset that excite a channel most: those with the largest mean of the channel's map.
///
/// They show what a channel responds to: those of the first stages to colours, edges and textures, those of the last to
/// parts and whole objects (Zeiler and Fergus 2013, arXiv 1311.2901).
///
/// ```
/// use candle_finetune::{Backbone, ImageFolder, TopActivations, candle_core::Device};
///
/// # let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/assets/fashion/train");
/// let data = ImageFolder::open(folder)?;
/// let backbone = Backbone::embedded(&Device::Cpu)?;
/// let top = TopActivations::find(&backbone, &data, 3, 9)?; // 3 channels per stage, 9 images per channel
/// for top in &top {
///     println!("{} channel {}: samples {:?}", top.stage, top.channel, top.samples);
/// }
/// let picture = TopActivations::draw(&top)?;
/// // picture.save_png("channels.png")?;
/// # assert_eq!(top.len(), 12);
/// # Ok::<(), candle_finetune::Error>(())
/// ```
#[derive(Debug, Clone)]
#[non_exhaustive]
pub struct TopActivations {
    /// The stage.
    pub stage: String,
    /// The channel of the stage's last map, from 0.
    pub channel: usize,
    /// The samples, the most exciting first; of equal ones the first in the dataset.
    pub samples: Vec<usize>,
    /// The mean of the channel's map for each of them.
    pub activations: Vec<f32>,
    /// The network's input of each, small, with the place of the largest activation marked.
    thumbnails: Vec<Image>,
}

/// The pixels of a thumbnail's longer side.
const THUMBNAIL: usize = 64;

impl TopActivations {
    /// For each stage of the backbone the `channels` channels whose best images stand out most, each with its best
    /// `images` images of the dataset. A channel stands out by the difference between the mean activation of its best
    /// images and of all, in standard deviations.
    ///
    /// Every image passes the network once; take a [`Subset`](crate::Subset) of large data.
    ///
    /// # Errors
    /// [`Error::Invalid`] if the dataset, `channels` or `images` is empty, or inputs are neither gray nor RGB; and as
    /// [`FeatureSet::gather`].
    pub fn find<D: Dataset + Clone + 'static>(
        backbone: &Backbone,
        data: &D,
        channels: usize,
        images: usize,
    ) -> Result<Vec<Self>> {
        Self::find_in(backbone, &(Arc::new(data.clone()) as Arc<dyn Dataset>), channels, images)
    }

    fn find_in(backbone: &Backbone, data: &Arc<dyn Dataset>, channels: usize, images: usize) -> Result<Vec<Self>> {
        if data.is_empty() || channels == 0 || images == 0 {
            let problem =
                format!("{channels} channels and {images} of {} images; give one of each at least", data.len());
            return Err(Error::invalid("top activations", problem));
        }
        let extractor = FeatureExtractor::new(backbone)?;
        let all: Vec<usize> = (0..data.len()).collect();
        let cache = FeatureCache::new().budget(usize::MAX);
        let set = FeatureSet::gather(data, &all, 1, &extractor, &[Cut::Stages { pooled: 1 }], &cache)?
            .ok_or_else(|| Error::invalid("feature cache", "has no room for the means of the channels"))?;
        let mut found = vec![];
        for (output, stage) in set.outputs().enumerate() {
            let means = set.features(output, &all, 0)?.to_dtype(DType::F32)?.to_device(&Device::Cpu)?;
            let mut ranked: Vec<(f32, Self)> = vec![];
            for (channel, activations) in means.t()?.to_vec2::<f32>()?.into_iter().enumerate() {
                ranked.push(Self::best(stage, channel, &activations, images));
            }
            ranked.sort_by(|a, b| b.0.total_cmp(&a.0));
            found.extend(ranked.into_iter().take(channels).map(|(_, top)| top));
        }
        add_thumbnails(&mut found, backbone, data.as_ref())?;
        Ok(found)
    }

    /// How far the best images stand out, and which they are.
    fn best(stage: &str, channel: usize, activations: &[f32], images: usize) -> (f32, Self) {
        let mut samples: Vec<usize> = (0..activations.len()).collect();
        samples.sort_by(|&a, &b| activations[b].total_cmp(&activations[a]));
        samples.truncate(images);
        let mean = |values: &mut dyn Iterator<Item = f64>| {
            let (sum, count) = values.fold((0.0, 0), |(sum, count), v| (sum + v, count + 1));
            sum / f64::from(count.max(1))
        };
        let value = |v: &f32| f64::from(*v);
        let middle = mean(&mut activations.iter().map(value));
        let deviation = mean(&mut activations.iter().map(|v| (value(v) - middle).powi(2))).sqrt();
        let best = mean(&mut samples.iter().map(|&i| value(&activations[i])));
        let standing = if deviation > 0.0 { (best - middle) / deviation } else { 0.0 };
        let activations = samples.iter().map(|&i| activations[i]).collect();
        (standing as f32, Self { stage: stage.to_string(), channel, samples, activations, thumbnails: vec![] })
    }

    /// A picture of them: a row per stage, and for each channel its images as a square, row by row, the most exciting
    /// first. A box marks the place of the channel's largest activation where its map has pixels.
    ///
    /// # Errors
    /// [`Error::Invalid`] if there are none.
    pub fn draw(top: &[Self]) -> Result<Image> {
        let rows: Vec<&[Self]> = top.chunk_by(|a, b| a.stage == b.stage).collect();
        let columns = rows.iter().map(|row| row.len()).max().unwrap_or(0);
        let mut grid = PictureGrid::new(columns).gap(12);
        for row in rows {
            for i in 0..columns {
                let Some(top) = row.get(i) else {
                    grid = grid.add(Canvas::new(1, 1).into_image()?, "");
                    continue;
                };
                let side = (top.thumbnails.len() as f64).sqrt().ceil() as usize;
                let square = top.thumbnails.iter().fold(PictureGrid::new(side).gap(2), |g, t| g.add(t.clone(), ""));
                grid = grid.add(square.draw()?, format!("{} channel {}", top.stage, top.channel));
            }
        }
        grid.draw()
    }
}

/// Draws the thumbnails: each sample passes the network once more, for the places of its channels' maxima.
fn add_thumbnails(found: &mut [TopActivations], backbone: &Backbone, data: &dyn Dataset) -> Result<()> {
    let (spec, blocks) = (backbone.input_spec(), backbone.blocks());
    let transform = Transform::eval(spec)?;
    let mut wanted: BTreeMap<usize, Vec<(usize, usize)>> = BTreeMap::new();
    for (at, top) in found.iter_mut().enumerate() {
        top.thumbnails = vec![Canvas::new(1, 1).into_image()?; top.samples.len()];
        for (rank, &sample) in top.samples.iter().enumerate() {
            wanted.entry(sample).or_default().push((at, rank));
        }
    }
    for (sample, places) in wanted {
        let input = match data.sample(sample)? {
            Sample::Image(image) => transform.apply(&image, 0, 0, 0)?,
            Sample::Tensor(tensor) => tensor,
        };
        let thumbnail = scaled(&input_image(&input, spec)?, THUMBNAIL);
        let network = &backbone.inner.network;
        let profile = &backbone.inner.profile;
        let images = input.unsqueeze(0)?.to_device(&profile.device)?.to_dtype(profile.dtype)?;
        no_grad(|| {
            network.each_map(&images, blocks.len(), |count, map| {
                let stage = &blocks[count - 1].stage;
                let here: Vec<_> = places.iter().filter(|(at, _)| found[*at].stage == *stage).collect();
                if here.is_empty() || blocks.get(count).is_some_and(|next| next.stage == *stage) {
                    return Ok(());
                }
                let map = map.to_images()?.get(0)?.to_dtype(DType::F32)?.to_device(&Device::Cpu)?;
                for &&(at, rank) in &here {
                    let mut canvas = Canvas::over(thumbnail.clone())?;
                    if let Some(cell) = brightest(&map, found[at].channel, &thumbnail)? {
                        canvas.outline(cell, 1, [255, 64, 0]);
                    }
                    found[at].thumbnails[rank] = canvas.into_image()?;
                }
                Ok(())
            })
        })?;
    }
    Ok(())
}

/// A box in the thumbnail around the largest value of a channel's map (C, H, W), at least a quarter of each side.
/// `None` if the map is one pixel, or has no such channel because the features are not those of the map.
fn brightest(map: &Tensor, channel: usize, thumbnail: &Image) -> Result<Option<[usize; 4]>> {
    let (channels, h, w) = map.dims3()?;
    if h * w == 1 || channel >= channels {
        return Ok(None);
    }
    let values = map.get(channel)?.flatten_all()?.to_vec1::<f32>()?;
    let at = (0..values.len()).rev().max_by(|&a, &b| values[a].total_cmp(&values[b])).unwrap_or(0);
    let side = |at: usize, count: usize, pixels: usize| {
        let size = pixels.div_ceil(count).max(pixels / 4);
        let middle = (2 * at + 1) * pixels / (2 * count);
        (middle.saturating_sub(size / 2).min(pixels - size), size)
    };
    let ((top, height), (left, width)) = (side(at / w, h, thumbnail.height()), side(at % w, w, thumbnail.width()));
    Ok(Some([top, left, height, width]))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_box_is_around_the_largest_value_and_inside_of_the_image() {
        let thumbnail = Image::from_rgb8(64, 32, vec![0; 64 * 32 * 3]).unwrap();
        let around = |h: usize, w: usize, hot: usize| {
            let mut values = vec![0f32; 2 * h * w];
            values[h * w + hot] = 1.0;
            let map = Tensor::from_vec(values, (2, h, w), &Device::Cpu).unwrap();
            brightest(&map, 1, &thumbnail).unwrap()
        };
        assert_eq!(around(2, 2, 3), Some([16, 32, 16, 32])); // a cell
        assert_eq!(around(16, 32, 5 * 32 + 20), Some([7, 33, 8, 16])); // larger than the cell
        assert_eq!(around(16, 32, 0), Some([0, 0, 8, 16]));
        assert_eq!(around(16, 32, 16 * 32 - 1), Some([24, 48, 8, 16]));
        assert_eq!(around(1, 1, 0), None);
        let map = Tensor::zeros((2, 4, 4), DType::F32, &Device::Cpu).unwrap();
        assert_eq!(brightest(&map, 2, &thumbnail).unwrap(), None);
    }
}
