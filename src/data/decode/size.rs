//! Sizes of images from their headers, without a decoder.

use image::ImageFormat;

/// Width and height of an image that begins with these bytes, for formats that have them at a fixed offset.
pub(super) fn of(format: ImageFormat, head: &[u8]) -> Option<(u64, u64)> {
    let byte = |at: usize| head.get(at).copied().map(u64::from);
    let little = |at: usize, bytes: usize| (at..at + bytes).rev().try_fold(0, |n, at| Some(n << 8 | byte(at)?));
    let big = |at: usize, bytes: usize| (at..at + bytes).try_fold(0, |n, at| Some(n << 8 | byte(at)?));
    Some(match format {
        ImageFormat::Png => (big(16, 4)?, big(20, 4)?),
        ImageFormat::Gif => (little(6, 2)?, little(8, 2)?),
        ImageFormat::Bmp if little(14, 4)? == 12 => (little(18, 2)?, little(20, 2)?),
        // A negative height means that rows are stored from the top.
        ImageFormat::Bmp => (little(18, 4)?, u64::from((little(22, 4)? as i32).unsigned_abs())),
        ImageFormat::WebP => match head.get(12..16)? {
            b"VP8X" => (little(24, 3)? + 1, little(27, 3)? + 1),
            b"VP8L" => ((little(21, 4)? & 0x3FFF) + 1, (little(21, 4)? >> 14 & 0x3FFF) + 1),
            _ => (little(26, 2)? & 0x3FFF, little(28, 2)? & 0x3FFF),
        },
        _ => return None,
    })
}
