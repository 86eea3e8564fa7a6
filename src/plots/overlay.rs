//! Grad-CAM as colours over the image.

use super::canvas::{Canvas, Colour};
use crate::data::{Image, resized, visible};
use crate::error::{Error, Result};
use crate::input_spec::Interpolation;
use crate::predict::GradCam;

/// Images whose shorter side has fewer pixels are enlarged by a whole factor.
const LEAST_SIDE: usize = 160;

/// Images whose longer side has more pixels are shrunk.
const MOST_SIDE: usize = 1024;

impl GradCam {
    /// The image with the map as colours over it, from blue (little) over green to red (most); where the map is 0, the
    /// image stays as it is. What the network does not see, because its input is a crop of the image, is paler. Small
    /// images are enlarged by a whole factor to 160 pixels or a little more, large ones are shrunk to 1024.
    ///
    /// ```
    /// use candle_finetune::{Image, Predictor, Source, candle_core::Device};
    ///
    /// let predictor = Predictor::load(Source::embedded(), &Device::Cpu)?;
    /// let image = Image::from_rgb8(40, 32, (0..40 * 32 * 3).map(|i| (i * 7 % 256) as u8).collect())?;
    /// let overlay = predictor.grad_cam(&image, None)?.overlay(&image)?;
    /// assert_eq!((overlay.height(), overlay.width()), (160, 200));
    /// // overlay.save_png("cat.png")?;
    /// # Ok::<(), candle_finetune::Error>(())
    /// ```
    ///
    /// # Errors
    /// [`Error::Invalid`] for an image of another size than the one that the map is for, and for one that is neither
    /// gray nor RGB.
    pub fn overlay(&self, image: &Image) -> Result<Image> {
        let size = (image.height(), image.width());
        if size != self.image {
            let (height, width) = self.image;
            let problem = format!("{} x {} pixels; the map is for one of {height} x {width}", size.0, size.1);
            return Err(Error::invalid("image", problem));
        }
        let (height, width) = drawn(size);
        let image = image.clone().to_channels(3)?;
        let filter = if height < size.0 { Interpolation::Bicubic } else { Interpolation::Nearest };
        let mut canvas = Canvas::over(resized(&image, height, width, filter))?;
        let map = self.map.to_vec2::<f32>()?;
        let [top, left, rows, columns] = visible(&self.spec, size);
        // The place of a pixel in the map: of pixel `at` of `pixels`, where the image has `sides` and the map, which has
        // `count`, begins at `first` and covers `extent` of the image's pixels.
        let place = |at: usize, pixels: usize, sides: usize, first: f64, extent: f64, count: usize| {
            let at = ((at as f64 + 0.5) * sides as f64 / pixels as f64 - first) / extent;
            (0.0..=1.0).contains(&at).then(|| ((at * count as f64) as usize).min(count - 1))
        };
        for y in 0..height {
            let row = place(y, height, size.0, top, rows, map.len()).map(|row| &map[row]);
            for x in 0..width {
                match row.and_then(|row| Some(row[place(x, width, size.1, left, columns, row.len())?])) {
                    Some(heat) => canvas.blend(y, x, colour(heat), share(heat)),
                    None => canvas.blend(y, x, [255; 3], 0.5),
                }
            }
        }
        canvas.into_image()
    }
}

/// The size at which an image is drawn.
fn drawn((height, width): (usize, usize)) -> (usize, usize) {
    let (short, long) = (height.min(width), height.max(width));
    if long > MOST_SIDE {
        let side = |side: usize| (side * MOST_SIDE / long).max(1);
        return (side(height), side(width));
    }
    let factor = LEAST_SIDE.div_ceil(short).min(MOST_SIDE / long);
    (height * factor, width * factor)
}

/// How much of the colour is mixed into the image.
fn share(heat: f32) -> f32 {
    (0.2 + 0.4 * heat) * (4.0 * heat).min(1.0)
}

/// Blue, cyan, green, yellow, red for 0 to 1.
fn colour(heat: f32) -> Colour {
    let level = |centre: f32| ((1.5 - (3.0 * heat + 0.5 - centre).abs()).clamp(0.0, 1.0) * 255.0).round() as u8;
    [level(3.0), level(2.0), level(1.0)]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::input_spec::{CropMode, InputSpec};
    use candle_core::{Device, Tensor};

    #[test]
    fn colours_go_from_blue_to_red() {
        assert_eq!([0.0, 0.5, 1.0].map(colour), [[0, 0, 255], [128, 255, 128], [255, 0, 0]]);
        assert_eq!(colour(1.0 / 3.0), [0, 255, 255]);
        assert_eq!(colour(2.0 / 3.0), [255, 255, 0]);
    }

    /// A map of 4 x 4 pixels of which one is hot, over a gray image of 200 x 400 pixels.
    fn overlay(spec: InputSpec, hot: (usize, usize)) -> Image {
        let mut map = vec![0f32; 16];
        map[hot.0 * 4 + hot.1] = 1.0;
        let map = Tensor::from_vec(map, (4, 4), &Device::Cpu).unwrap();
        let (class, label, block, weighted) = (0, String::new(), String::new(), map.clone());
        let cam = GradCam { class, label, block, weighted, map, image: (200, 400), spec };
        assert!(cam.overlay(&Image::new(400, 200, 1, vec![100; 80_000]).unwrap()).is_err());
        cam.overlay(&Image::new(200, 400, 1, vec![100; 80_000]).unwrap()).unwrap()
    }

    /// Whether a pixel is hot, as it was, or outside of what the network sees.
    fn kind(image: &Image, y: usize, x: usize) -> &'static str {
        match image.pixel(y, x) {
            [193, 40, 40] => "hot",
            [100, 100, 100] => "cold",
            [178, 178, 178] => "outside",
            _ => "else",
        }
    }

    #[test]
    fn the_map_lies_over_the_part_that_the_network_sees() {
        // The network sees the columns from 100 to 300.
        let image = overlay(InputSpec::new(4).crop_pct(1.0), (1, 3));
        for y in 0..200 {
            for x in 0..400 {
                let hot = (50..100).contains(&y) && (250..300).contains(&x);
                let expected = if hot { "hot" } else { ["outside", "cold"][usize::from((100..300).contains(&x))] };
                assert_eq!(kind(&image, y, x), expected, "{y} {x}");
            }
        }
        // The network sees a border above and below the image.
        let image = overlay(InputSpec::new(4).crop_mode(CropMode::Border), (1, 0));
        for y in 0..200 {
            for x in 0..400 {
                assert_eq!(kind(&image, y, x), if y < 100 && x < 100 { "hot" } else { "cold" }, "{y} {x}");
            }
        }
        let image = overlay(InputSpec::new(4).crop_mode(CropMode::Squash), (3, 2));
        assert_eq!(
            [(149, 250), (150, 200), (199, 299), (150, 300)].map(|(y, x)| kind(&image, y, x)),
            ["cold", "hot", "hot", "cold"]
        );
    }

    #[test]
    fn small_images_are_enlarged_and_large_ones_shrunk() {
        assert_eq!(drawn((28, 28)), (168, 168));
        assert_eq!(drawn((300, 200)), (300, 200));
        assert_eq!(drawn((3000, 4000)), (768, 1024));
        assert_eq!(drawn((1, 700)), (1, 700));
        assert_eq!(drawn((1, 9000)), (1, 1024));
        assert_eq!(drawn((10, 300)), (30, 900));
    }

    #[test]
    fn the_image_shows_where_the_map_is_zero() {
        assert_eq!(share(0.0), 0.0);
        assert!(share(0.3) < share(0.9) && share(1.0) < 0.7);
    }
}
