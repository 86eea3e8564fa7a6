//! Shapes of convolutions and pools.

use candle_core::{Result, bail};

/// How the input of a convolution or pool is padded with zeros (or left out, by a pool).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Padding {
    /// The same number of pixels on all sides, as PyTorch does.
    Even(usize),
    /// TensorFlow's "SAME": the output has ceil(size / stride) pixels; an odd rest goes below and to the right.
    Same,
    /// Top, left, bottom, right.
    #[cfg_attr(not(test), expect(dead_code, reason = "no architecture here needs it"))]
    Sides([usize; 4]),
}

/// The geometry of a two-dimensional convolution or pool over NHWC data.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Geometry {
    /// Images.
    pub n: usize,
    /// Height and width of the input.
    pub h: usize,
    pub w: usize,
    /// Channels of the input and of the output.
    pub c: usize,
    pub k: usize,
    /// Height and width of the kernel.
    pub kh: usize,
    pub kw: usize,
    pub stride: usize,
    pub dilation: usize,
    pub groups: usize,
    /// Top, left, bottom, right.
    pub pad: [usize; 4],
    /// Height and width of the output.
    pub oh: usize,
    pub ow: usize,
}

impl Geometry {
    /// Works out padding and output size; `dims` is (N, H, W, C), `kernel` (K, C / groups, KH, KW).
    pub fn new(
        dims: [usize; 4],
        kernel: (usize, usize, usize, usize),
        stride: usize,
        dilation: usize,
        groups: usize,
        padding: Padding,
    ) -> Result<Self> {
        let [n, h, w, c] = dims;
        let (k, per_group, kh, kw) = kernel;
        // Sizes that a user's layers say: their sums and products must fit, or they would wrap around.
        let huge = |size: &usize| *size > 1 << 24;
        let pads = match padding {
            Padding::Even(pixels) => [pixels; 4],
            Padding::Sides(sides) => sides,
            Padding::Same => [0; 4],
        };
        if [kh, kw, stride, dilation].iter().chain(&pads).any(huge) {
            bail!("kernel, stride, dilation and padding of a convolution or pool are at most {}", 1 << 24);
        }
        if stride == 0 || dilation == 0 || groups == 0 || kh == 0 || kw == 0 {
            bail!("stride, dilation, groups and kernel of a convolution or pool are at least 1");
        }
        if c % groups != 0 || k % groups != 0 || per_group != c / groups {
            bail!("a kernel of shape {kernel:?} in {groups} groups does not take {c} channels");
        }
        let (reach_h, reach_w) = (dilation * (kh - 1) + 1, dilation * (kw - 1) + 1);
        let pad = match padding {
            Padding::Even(p) => [p; 4],
            Padding::Sides(sides) => sides,
            Padding::Same => {
                let ends = |size: usize, reach: usize| {
                    let total = (size.div_ceil(stride).saturating_sub(1) * stride + reach).saturating_sub(size);
                    (total / 2, total - total / 2)
                };
                let ((top, bottom), (left, right)) = (ends(h, reach_h), ends(w, reach_w));
                [top, left, bottom, right]
            }
        };
        let (ph, pw) = (h + pad[0] + pad[2], w + pad[1] + pad[3]);
        if ph < reach_h || pw < reach_w {
            bail!("an input of {h} x {w} pixels is too small for a kernel that reaches over {reach_h} x {reach_w}");
        }
        let (oh, ow) = ((ph - reach_h) / stride + 1, (pw - reach_w) / stride + 1);
        Ok(Self { n, h, w, c, k, kh, kw, stride, dilation, groups, pad, oh, ow })
    }

    /// Elements of the input, the output and the kernel.
    pub fn input_len(&self) -> usize {
        self.n * self.h * self.w * self.c
    }
    pub fn output_len(&self) -> usize {
        self.n * self.oh * self.ow * self.k
    }
    pub fn kernel_len(&self) -> usize {
        self.k * (self.c / self.groups) * self.kh * self.kw
    }

    /// Multiply-adds of the convolution, computed directly.
    pub fn multiply_adds(&self) -> u64 {
        let terms = (self.c / self.groups) * self.kh * self.kw;
        (self.output_len() as u64).saturating_mul(terms as u64)
    }

    /// The input row that tap `a` of output row `oy` reads, if it lies inside.
    #[inline(always)]
    pub fn row(&self, oy: usize, a: usize) -> Option<usize> {
        (oy * self.stride + a * self.dilation).checked_sub(self.pad[0]).filter(|&y| y < self.h)
    }

    /// The input column that tap `b` of output column `ox` reads, if it lies inside.
    #[inline(always)]
    pub fn column(&self, ox: usize, b: usize) -> Option<usize> {
        (ox * self.stride + b * self.dilation).checked_sub(self.pad[1]).filter(|&x| x < self.w)
    }

    /// The output row whose tap `a` reads input row `y`, if there is one.
    #[inline(always)]
    pub fn row_back(&self, y: usize, a: usize) -> Option<usize> {
        let v = (y + self.pad[0]).checked_sub(a * self.dilation)?;
        (v % self.stride == 0).then_some(v / self.stride).filter(|&o| o < self.oh)
    }

    /// The output column whose tap `b` reads input column `x`, if there is one.
    #[inline(always)]
    pub fn column_back(&self, x: usize, b: usize) -> Option<usize> {
        let v = (x + self.pad[1]).checked_sub(b * self.dilation)?;
        (v % self.stride == 0).then_some(v / self.stride).filter(|&o| o < self.ow)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn same_padding_puts_the_odd_pixel_last() {
        let g = Geometry::new([1, 224, 224, 3], (32, 3, 3, 3), 2, 1, 1, Padding::Same).unwrap();
        assert_eq!((g.pad, g.oh, g.ow), ([0, 0, 1, 1], 112, 112));
        let g = Geometry::new([1, 7, 6, 8], (8, 1, 5, 5), 2, 1, 8, Padding::Same).unwrap();
        assert_eq!((g.pad, g.oh, g.ow), ([2, 1, 2, 2], 4, 3));
    }

    #[test]
    fn too_small_an_input_is_an_error() {
        assert!(Geometry::new([1, 2, 2, 3], (8, 3, 7, 7), 1, 1, 1, Padding::Even(0)).is_err());
        assert!(Geometry::new([1, 9, 9, 3], (8, 2, 3, 3), 1, 1, 1, Padding::Even(0)).is_err());
    }
}
