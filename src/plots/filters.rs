//! The kernels of the first convolution.

use super::grid::PictureGrid;
use crate::backbone::Backbone;
use crate::data::Image;
use crate::error::{Error, Result};
use candle_core::{DType, Device, Tensor};

/// The pixels of a tile's longer side, at most, unless the kernel is larger.
const TILE: usize = 48;

/// The pixels between tiles.
const GAP: usize = 4;

impl Backbone {
    /// The kernels of the first convolution as a picture: a tile per kernel. Of three channels they are the colours of
    /// a tile, otherwise each channel is a gray tile and the channels of a kernel lie side by side. Zero is mid-gray,
    /// and the largest value of a kernel, in size, is 0 or 255. Pixels are enlarged to tiles of 48 pixels or a little
    /// less.
    ///
    /// Trained kernels show edges, blobs and colours; a network that learned little shows noise.
    ///
    /// ```
    /// use candle_finetune::{Backbone, candle_core::Device};
    /// let filters = Backbone::embedded(&Device::Cpu)?.draw_filters()?;
    /// assert_eq!((filters.height(), filters.width()), (212, 212)); // 16 kernels of 3 x 3 pixels
    /// // filters.save_png("filters.png")?;
    /// # Ok::<(), candle_finetune::Error>(())
    /// ```
    ///
    /// # Errors
    /// [`Error::Unsupported`] if no convolution of the network is known to take the images.
    pub fn draw_filters(&self) -> Result<Image> {
        let kernels = self.first_kernels()?;
        let (count, channels, height, width) = kernels.dims4()?;
        let scale = (TILE / height.max(width)).max(1);
        let kernels = kernels.to_dtype(DType::F32)?.to_device(&Device::Cpu)?;
        let colours = channels == 3;
        let per_kernel = if colours { 1 } else { channels };
        let columns = if per_kernel == 1 { columns(count) } else { per_kernel * (16 / per_kernel).max(1) };
        let mut grid = PictureGrid::new(columns).gap(GAP);
        for kernel in 0..count {
            let values = kernels.get(kernel)?.flatten_all()?.to_vec1::<f32>()?;
            let most = values.iter().fold(0.0, |most: f32, v| most.max(v.abs())).max(f32::MIN_POSITIVE);
            let level = |v: f32| (127.5 + 127.5 * v / most).round() as u8;
            let planes: Vec<&[f32]> = values.chunks_exact(height * width).collect();
            let tile = |planes: &[&[f32]]| {
                let mut bytes = Vec::with_capacity(height * width * scale * scale * planes.len());
                for y in 0..height * scale {
                    for x in 0..width * scale {
                        let at = y / scale * width + x / scale;
                        bytes.extend(planes.iter().map(|plane| level(plane[at])));
                    }
                }
                Image::new(height * scale, width * scale, planes.len(), bytes)
            };
            for planes in planes.chunks(if colours { 3 } else { 1 }) {
                grid = grid.add(tile(planes)?, "");
            }
        }
        grid.draw()
    }

    /// The kernels (outputs, channels, height, width) that are applied to the images.
    fn first_kernels(&self) -> Result<&Tensor> {
        let (blueprint, channels) = (self.blueprint(), self.input_spec().channels);
        let named = blueprint.over_images().map(|(name, _)| name);
        // In a user's own network: the first tensor of a kernel's shape.
        let first = blueprint.declared().iter().find(|d| d.shape.len() == 4 && d.shape[1] == channels);
        let name = named.or(first.map(|d| d.name.as_str()));
        name.and_then(|name| self.tensors().get(name)).filter(|kernels| kernels.rank() == 4).ok_or_else(|| {
            let why = format!(
                "no tensor of it has the shape of kernels over images, (outputs, {channels}, height, width); draw \
                 its own tensors (`Backbone::tensors`)"
            );
            Error::unsupported(self.name(), "show the filters of its first convolution", why)
        })
    }
}

/// The columns of a grid of `count` tiles: so that rows are full if that keeps it near a square.
fn columns(count: usize) -> usize {
    let root = (count as f64).sqrt().ceil() as usize;
    (root..2 * root).find(|&columns| count.is_multiple_of(columns)).unwrap_or(root).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_full_where_the_grid_stays_near_a_square() {
        assert_eq!([1, 16, 32, 64, 96, 37].map(columns), [1, 4, 8, 8, 12, 7]);
    }
}
