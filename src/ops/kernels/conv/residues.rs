//! With stride s, the input pixels of a convolution fall into s x s residues that are read by different taps of the
//! kernel.

use crate::ops::geometry::Geometry;

/// The taps of one axis that read the input positions of one residue: every `step`-th, starting at `class`.
///
/// With stride s and dilation d, tap a reads input position y if y + pad - a d is a multiple of s. Taps that read the
/// same positions form a class; they are s / gcd(s, d) apart.
#[derive(Debug, Clone, Copy)]
pub(super) struct Classes {
    pub taps: usize,
    pub step: usize,
}

impl Classes {
    pub fn new(taps: usize, stride: usize, dilation: usize) -> Self {
        Self { taps, step: stride / gcd(stride, dilation) }
    }
    pub fn count(&self) -> usize {
        self.step.min(self.taps)
    }
    /// Taps of a class.
    pub fn len(&self, class: usize) -> usize {
        (self.taps - class).div_ceil(self.step)
    }
    /// The `i`-th tap of a class, the last one first: so that the positions in the gradient increase.
    pub fn tap(&self, class: usize, i: usize) -> usize {
        class + (self.len(class) - 1 - i) * self.step
    }
}

fn gcd(a: usize, b: usize) -> usize {
    if b == 0 { a } else { gcd(b, a % b) }
}

/// The positions `residue`, `residue + stride`, ... of one input axis and the output positions that read them.
#[derive(Debug, Clone, Copy)]
pub(super) struct Residue {
    /// Which class of taps, if any.
    pub class: Option<usize>,
    pub taps: usize,
    /// The output position that reads the first position at the first tap.
    pub first: isize,
    /// From tap to tap, in output positions.
    pub step: usize,
}

impl Residue {
    pub fn new(residue: usize, classes: Classes, stride: usize, dilation: usize, pad: usize) -> Self {
        let hits = |class: usize, tap: usize| {
            let v = residue as isize + pad as isize - (tap * dilation) as isize;
            (v.rem_euclid(stride as isize) == 0).then(|| (class, v.div_euclid(stride as isize)))
        };
        let found = (0..classes.count()).find_map(|class| hits(class, classes.tap(class, 0)));
        let step = dilation / gcd(stride, dilation);
        match found {
            Some((class, first)) => Self { class: Some(class), taps: classes.len(class), first, step },
            None => Self { class: None, taps: 0, first: 0, step },
        }
    }
    /// One past the last output position that reads the first position.
    pub fn end(&self) -> isize {
        self.first + ((self.taps.max(1) - 1) * self.step) as isize + 1
    }
}

/// The residues of one axis, and the output positions that read position 0 of any of them.
pub(super) fn residues(taps: usize, g: &Geometry, pad: usize) -> (Vec<Residue>, isize, isize) {
    let classes = Classes::new(taps, g.stride, g.dilation);
    let list: Vec<Residue> = (0..g.stride).map(|p| Residue::new(p, classes, g.stride, g.dilation, pad)).collect();
    let met = || list.iter().filter(|p| p.class.is_some());
    let from = met().map(|p| p.first).min().unwrap_or(0);
    let to = met().map(Residue::end).max().unwrap_or(1);
    (list, from, to)
}
