//! Where in a feature map the evidence for a class is.

use super::Inference;
use crate::backbone::spatial_blocks;
use crate::blueprint::Pooling;
use crate::data::largest;
use crate::error::{Error, Result};
use crate::ops::{backward, is_finite, no_grad};
use candle_core::{DType, Device, Tensor, Var};

/// A class activation map by gradients.
pub(crate) struct ClassMap {
    pub class: usize,
    /// The number of blocks before the map.
    pub blocks: usize,
    /// relu(sum over channels of weight x map), (H, W) of the feature map, f32, on the CPU.
    pub weighted: Tensor,
}

/// What is refused, in messages.
const ACTION: &str = "show where it looks (Grad-CAM)";

impl Inference {
    /// Grad-CAM (Selvaraju et al. 2017, arXiv 1610.02391) of prepared images (1, C, H, W): of the most probable class if
    /// `class` is `None`, over the map after the first `after` blocks, by default the last map with pixels.
    pub fn class_map(&self, images: &Tensor, class: Option<usize>, after: Option<usize>) -> Result<ClassMap> {
        let count = self.network.blocks().len();
        let unsupported = |why: &str| Error::unsupported(self.blueprint.name(), ACTION, why);
        if self.blueprint.pooling() == Pooling::ClassToken {
            let why = "its features are a class token, not a mean over pixels; use a convolutional network";
            return Err(unsupported(why));
        }
        let images = images.to_device(&self.device)?.to_dtype(self.dtype)?;
        // For larger images than its own, a network's fully connected layers slide over a few pixels; their maps are
        // not meant as such.
        let spatial = spatial_blocks(&self.blueprint)?;
        let has_pixels = |blocks: usize| spatial.as_ref().is_none_or(|spatial| spatial[blocks - 1]);
        let mut found = None;
        no_grad(|| {
            self.network.each_map(&images, after.unwrap_or(count), |blocks, map| {
                let (_, _, h, w) = map.dims()?;
                if h * w > 1 && after.map_or_else(|| has_pixels(blocks), |after| after == blocks) {
                    found = Some((blocks, map.clone()));
                }
                Ok(())
            })
        })?;
        let Some((blocks, map)) = found else {
            let why = match after {
                Some(_) => "the map after this block is a single pixel; choose an earlier block, or larger images",
                None => {
                    "no block returns a map of more than one pixel: networks of the zoo are one block that returns \
                     features; use a convolutional network of the crate or of your own, with images that are large \
                     enough for it"
                }
            };
            return Err(unsupported(why));
        };
        let map = Var::from_tensor(&map.to_images()?)?;
        let features = self.network.features_from_map(&map, blocks)?;
        let logits = self.head.forward(&features, &self.slots, &self.blueprint, None)?.get(0)?;
        if !is_finite(&logits)? {
            return Err(Error::NotFinite { what: "the outputs of the network for the image".into() });
        }
        let class = match class {
            Some(class) => class,
            None => largest(&logits.detach().to_dtype(DType::F32)?.to_vec1::<f32>()?),
        };
        let mut gradients = backward(&logits.get(class)?, [("map", map.id())])?;
        let Some(gradient) = gradients.remove("map") else {
            let why = "the gradient of a class does not reach the map: a custom layer after it cuts the graph";
            return Err(unsupported(why));
        };
        let gradient = gradient.into_tensor(map.shape())?;
        if !is_finite(&gradient)? {
            return Err(Error::NotFinite { what: "the gradients of the network for the image".into() });
        }
        // The weight of a channel is the mean of its gradient over the pixels.
        let weights = gradient.mean_keepdim((2, 3))?;
        let weighted = map.as_detached_tensor().broadcast_mul(&weights)?.sum(1)?.relu()?.get(0)?;
        let weighted = weighted.to_dtype(DType::F32)?.to_device(&Device::Cpu)?;
        Ok(ClassMap { class, blocks, weighted })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backbone::Backbone;
    use crate::blueprint::{Block, Blueprint};
    use crate::head::Head;
    use crate::input_spec::InputSpec;
    use crate::nn::{Conv2d, Layer};
    use crate::params::{Slot, Slots};

    /// Convolutions, a fully connected block over all pixels, and a head of two layers, in f64.
    fn network() -> Inference {
        let blocks = vec![
            Block::new("stem", Layer::sequential([Conv2d::new(3, 8, 3).silu().into(), Layer::max_pool(2, 2)])),
            Block::new("body", Conv2d::new(8, 12, 3).batch_norm().silu()),
            Block::new("fc", Conv2d::new(12, 16, 6).padding(0).silu()),
            Block::new("fc2", Conv2d::new(16, 16, 1).relu()),
        ];
        let blueprint = Blueprint::from_blocks("connected", InputSpec::new(12), 16, blocks).unwrap();
        let Backbone { inner } = Backbone::random(&blueprint, 3, &Device::Cpu).unwrap();
        let double = |t: &Tensor| t.to_dtype(DType::F64).unwrap();
        let tensors = inner.tensors.iter().map(|(name, t)| (name.clone(), double(t))).collect();
        let backbone = Backbone::assemble(inner.profile.clone(), tensors, None, None).unwrap();
        let head = Head::mlp(10);
        let slots: Slots =
            head.start(&backbone, 4, 1).unwrap().into_iter().map(|(n, t)| (n, Slot::Frozen(t))).collect();
        Inference::new(&backbone, head, slots, (0..4).map(|i| i.to_string()).collect()).unwrap()
    }

    fn image(size: usize) -> Tensor {
        let values: Vec<f64> = (0..3 * size * size).map(|i| (i as f64 * 0.37).sin() + (i % 7) as f64 * 0.1).collect();
        Tensor::from_vec(values, (1, 3, size, size), &Device::Cpu).unwrap()
    }

    /// The derivative of a logit where a channel of the map is shifted as a whole is the sum of its gradient: by
    /// central differences.
    #[test]
    fn the_weights_are_the_gradients_of_a_logit_by_finite_differences() {
        let (inference, images) = (network(), image(12));
        let mut positive = 0;
        for (after, blocks) in [(None, 2), (Some(1), 1)] {
            let map = no_grad(|| inference.network.prefix(&images, blocks)).unwrap();
            let (_, channels, h, w) = map.dims4().unwrap();
            for class in 0..4 {
                let logit = |map: &Tensor| -> f64 {
                    let features = no_grad(|| inference.network.features_from_map(map, blocks)).unwrap();
                    let logits =
                        inference.head.forward(&features, &inference.slots, &inference.blueprint, None).unwrap();
                    logits.get(0).unwrap().get(class).unwrap().to_scalar().unwrap()
                };
                let mut expected = Tensor::zeros((h, w), DType::F64, &Device::Cpu).unwrap();
                for channel in 0..channels {
                    let shift: Vec<f64> = (0..channels).map(|c| if c == channel { 1e-6 } else { 0.0 }).collect();
                    let shift = Tensor::from_vec(shift, (1, channels, 1, 1), &Device::Cpu).unwrap();
                    let [up, down] =
                        [map.broadcast_add(&shift), map.broadcast_sub(&shift)].map(|map| logit(&map.unwrap()));
                    let weight = (up - down) / 2e-6 / (h * w) as f64;
                    let plane = map.get(0).unwrap().get(channel).unwrap();
                    expected = (expected + (plane * weight).unwrap()).unwrap();
                }
                let found = inference.class_map(&images, Some(class), after).unwrap();
                assert_eq!((found.class, found.blocks), (class, blocks));
                let numbers =
                    |t: &Tensor| t.flatten_all().unwrap().to_dtype(DType::F64).unwrap().to_vec1::<f64>().unwrap();
                let most = numbers(&expected).iter().fold(0.0, |most: f64, v| most.max(v.abs()));
                let (expected, found) = (numbers(&expected.relu().unwrap()), numbers(&found.weighted));
                positive += usize::from(expected.iter().any(|v| *v > 0.1 * most));
                for (a, b) in found.iter().zip(&expected) {
                    assert!((a - b).abs() < 1e-5 * most, "class {class} after {blocks}: {a} {b}");
                }
            }
        }
        assert!(positive >= 4, "most maps have nothing to compare");
    }

    /// Of a mean over the pixels and a linear head, the gradient of a logit is the class's row over the number of pixels:
    /// the class activation map of Zhou et al. (2016).
    #[test]
    fn of_a_linear_head_over_the_mean_it_is_the_class_activation_map() {
        let backbone = Backbone::embedded(&Device::Cpu).unwrap();
        let head = Head::original();
        let slots = head.start(&backbone, 10, 0).unwrap().into_iter().map(|(n, t)| (n, Slot::Frozen(t))).collect();
        let inference = Inference::new(&backbone, head, slots, (0..10).map(|i| i.to_string()).collect()).unwrap();
        let images = image(32).to_dtype(DType::F32).unwrap();
        let mut last = None;
        no_grad(|| {
            inference.network.each_map(&images, backbone.blocks().len(), |_, map| {
                last = Some(map.to_images()?);
                Ok(())
            })
        })
        .unwrap();
        let planes = last.unwrap().get(0).unwrap().flatten_from(1).unwrap().to_vec2::<f32>().unwrap();
        let rows = inference.head_tensors()[0].1.to_vec2::<f32>().unwrap();
        for (class, row) in rows.iter().enumerate() {
            let found = inference.class_map(&images, Some(class), None).unwrap();
            assert_eq!((found.blocks, found.weighted.dims()), (backbone.blocks().len(), [8, 8].as_slice()));
            let found = found.weighted.flatten_all().unwrap().to_vec1::<f32>().unwrap();
            for (pixel, found) in found.iter().enumerate() {
                let sum: f32 = row.iter().zip(&planes).map(|(weight, plane)| weight * plane[pixel] / 64.0).sum();
                assert!((found - sum.max(0.0)).abs() < 1e-5, "class {class}, pixel {pixel}: {found} {sum}");
            }
            assert!(found.iter().any(|v| *v > 1e-4), "class {class}: nothing to compare");
        }
    }

    /// The fully connected block has four pixels then, of which none is a place in the image.
    #[test]
    fn larger_images_do_not_make_a_map_of_fully_connected_layers() {
        let found = network().class_map(&image(14), None, None).unwrap();
        assert_eq!((found.blocks, found.weighted.dims()), (2, [7, 7].as_slice()));
    }

    #[test]
    fn the_class_is_the_most_probable_one_if_none_is_given() {
        let (inference, images) = (network(), image(12));
        let logits = inference.logits(&images).unwrap().get(0).unwrap().to_vec1::<f64>().unwrap();
        let class = inference.class_map(&images, None, None).unwrap().class;
        assert!(logits.iter().all(|logit| *logit <= logits[class]), "{logits:?} {class}");
    }
}
