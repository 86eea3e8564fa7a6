//! Decoding of image files, which the tests write.

use candle_finetune::{Error, Image};
use image::{DynamicImage, ExtendedColorType, ImageEncoder, ImageFormat};
use std::io::Cursor;

/// Smooth colours, so that JPEG's error is small.
fn picture(width: u32, height: u32) -> image::RgbImage {
    image::RgbImage::from_fn(width, height, |x, y| image::Rgb([(x * 6) as u8, (y * 7) as u8, 200 - (x * 2 + y) as u8]))
}

fn encoded(image: &DynamicImage, format: ImageFormat) -> Vec<u8> {
    let mut bytes = Vec::new();
    image.write_to(&mut Cursor::new(&mut bytes), format).unwrap();
    bytes
}

fn rgb(width: u32, height: u32) -> DynamicImage {
    picture(width, height).into()
}

const LOSSLESS: [ImageFormat; 4] = [ImageFormat::Png, ImageFormat::Bmp, ImageFormat::WebP, ImageFormat::Tiff];

#[test]
fn lossless_formats_come_back_exactly() {
    let expected = Image::from_rgb8(31, 17, picture(31, 17).into_raw()).unwrap();
    for format in LOSSLESS {
        assert_eq!(Image::decode(&encoded(&rgb(31, 17), format)).unwrap(), expected, "{format:?}");
    }
}

#[test]
fn lossy_formats_come_back_closely() {
    // GIF has 256 colours.
    for (format, tolerance) in [(ImageFormat::Jpeg, 6.0), (ImageFormat::Gif, 12.0)] {
        let image = Image::decode(&encoded(&rgb(31, 17), format)).unwrap();
        assert_eq!((image.height(), image.width(), image.channels()), (17, 31, 3));
        let original = picture(31, 17).into_raw();
        let difference: f64 = image.bytes().iter().zip(&original).map(|(&a, &b)| f64::from(a.abs_diff(b))).sum::<f64>();
        assert!(difference / (original.len() as f64) < tolerance, "{format:?}: {difference}");
    }
}

#[test]
fn a_gif_gives_its_first_frame() {
    let mut bytes = Vec::new();
    let mut encoder = image::codecs::gif::GifEncoder::new(&mut bytes);
    for level in [10, 200] {
        let frame = image::RgbaImage::from_pixel(4, 3, image::Rgba([level, level, level, 255]));
        encoder.encode_frame(image::Frame::new(frame)).unwrap();
    }
    drop(encoder);
    assert!(Image::decode(&bytes).unwrap().bytes().iter().all(|v| v.abs_diff(10) < 4));
}

#[test]
fn gray_alpha_and_16_bit_become_rgb() {
    let gray = DynamicImage::from(image::GrayImage::from_fn(5, 4, |x, y| image::Luma([(x * 40 + y) as u8])));
    let deep =
        DynamicImage::from(image::ImageBuffer::from_fn(5, 4, |x, y| image::Rgb([(x * 257) as u16, 65535, y as u16])));
    let deep_gray = DynamicImage::from(image::ImageBuffer::from_fn(5, 4, |x, _| image::Luma([(x * 257 * 9) as u16])));
    let alpha =
        DynamicImage::from(image::RgbaImage::from_fn(5, 4, |x, _| image::Rgba([x as u8, 100, 7, (x * 50) as u8])));
    for format in [ImageFormat::Png, ImageFormat::Tiff] {
        let image = Image::decode(&encoded(&gray, format)).unwrap();
        assert_eq!((image.channels(), image.pixel(2, 3)), (3, &[122, 122, 122][..]));
        assert_eq!(Image::decode(&encoded(&deep, format)).unwrap().pixel(1, 4), [4, 255, 0]);
        assert_eq!(Image::decode(&encoded(&deep_gray, format)).unwrap().pixel(0, 3), [27; 3]);
        assert_eq!(Image::decode(&encoded(&alpha, format)).unwrap().pixel(3, 2), [2, 100, 7], "alpha is dropped");
    }
    let jpeg = Image::decode(&encoded(&gray, ImageFormat::Jpeg)).unwrap();
    assert!(jpeg.bytes().chunks_exact(3).all(|p| p[0] == p[1] && p[1] == p[2]));
}

/// An EXIF block with an orientation only.
fn exif(orientation: u8) -> Vec<u8> {
    let mut bytes = b"MM\0\x2A\0\0\0\x08".to_vec(); // big endian, first directory at byte 8
    bytes.extend([0, 1]); // one entry
    bytes.extend([0x01, 0x12, 0, 3, 0, 0, 0, 1, 0, orientation, 0, 0]); // tag 0x112, short, one value
    bytes.extend([0; 4]); // no further directory
    bytes
}

/// The upper left, upper right, lower left and lower right quarters have brightness 1 to 4.
fn quarters(image: &Image) -> [u8; 4] {
    let (h, w) = (image.height(), image.width());
    [(h / 4, w / 4), (h / 4, 3 * w / 4), (3 * h / 4, w / 4), (3 * h / 4, 3 * w / 4)]
        .map(|(y, x)| (f32::from(image.pixel(y, x)[0]) / 60.0).round() as u8)
}

#[test]
fn all_eight_orientations_are_applied() {
    let upright = image::RgbImage::from_fn(64, 32, |x, y| image::Rgb([(60 + x / 32 * 60 + y / 16 * 120) as u8; 3]));
    let expected = [
        [1, 2, 3, 4],
        [2, 1, 4, 3],
        [4, 3, 2, 1],
        [3, 4, 1, 2],
        [1, 3, 2, 4],
        [3, 1, 4, 2],
        [4, 2, 3, 1],
        [2, 4, 1, 3],
    ];
    for (orientation, expected) in (1..).zip(expected) {
        let mut jpeg = Vec::new();
        let mut encoder = image::codecs::jpeg::JpegEncoder::new_with_quality(&mut jpeg, 95);
        encoder.set_exif_metadata(exif(orientation)).unwrap();
        encoder.write_image(&upright, 64, 32, ExtendedColorType::Rgb8).unwrap();

        let mut png = Vec::new();
        let mut encoder = image::codecs::png::PngEncoder::new(&mut png);
        encoder.set_exif_metadata(exif(orientation)).unwrap();
        encoder.write_image(&upright, 64, 32, ExtendedColorType::Rgb8).unwrap();

        let mut webp = Vec::new();
        let mut encoder = image::codecs::webp::WebPEncoder::new_lossless(&mut webp);
        encoder.set_exif_metadata(exif(orientation)).unwrap();
        encoder.write_image(&upright, 64, 32, ExtendedColorType::Rgb8).unwrap();

        for bytes in [jpeg, png, webp] {
            let image = Image::decode(&bytes).unwrap();
            let size = if orientation < 5 { (32, 64) } else { (64, 32) };
            assert_eq!((image.height(), image.width()), size, "orientation {orientation}");
            assert_eq!(quarters(&image), expected, "orientation {orientation}");
        }
    }
    // An invalid orientation is ignored.
    let mut jpeg = Vec::new();
    let mut encoder = image::codecs::jpeg::JpegEncoder::new(&mut jpeg);
    encoder.set_exif_metadata(exif(77)).unwrap();
    encoder.write_image(&upright, 64, 32, ExtendedColorType::Rgb8).unwrap();
    assert_eq!(Image::decode(&jpeg).unwrap().width(), 64);
}

#[test]
fn truncated_files_are_errors_in_every_format() {
    for format in LOSSLESS.into_iter().chain([ImageFormat::Jpeg, ImageFormat::Gif]) {
        let bytes = encoded(&rgb(60, 50), format);
        for part in [0.02, 0.3, 0.5, 0.9, 0.97] {
            let cut = &bytes[..(bytes.len() as f64 * part) as usize];
            let result = Image::decode(cut);
            assert!(matches!(result, Err(Error::BrokenImage { .. })), "{format:?} cut to {part}: {result:?}");
        }
    }
}

#[test]
fn damaged_bytes_never_panic() {
    for format in LOSSLESS.into_iter().chain([ImageFormat::Jpeg, ImageFormat::Gif]) {
        let bytes = encoded(&rgb(40, 30), format);
        for k in 0..400usize {
            let mut damaged = bytes.clone();
            let at = if k < 200 { k % bytes.len() } else { k * 7919 % bytes.len() };
            damaged[at] ^= 1 << (k % 8);
            damaged[(at * 31 + k) % bytes.len()] = (k * 37) as u8;
            let _ = Image::decode(&damaged); // an image or an error, as long as it returns
        }
    }
}

/// A PNG of this size without any pixels.
fn png_header(width: u32, height: u32) -> Vec<u8> {
    let crc = |bytes: &[u8]| {
        !bytes.iter().fold(u32::MAX, |crc, &byte| {
            (0..8).fold(crc ^ u32::from(byte), |c, _| if c & 1 == 1 { (c >> 1) ^ 0xEDB8_8320 } else { c >> 1 })
        })
    };
    let mut png = b"\x89PNG\r\n\x1a\n".to_vec();
    let mut chunk = |kind: &[u8], data: &[u8]| {
        let body = [kind, data].concat();
        png.extend((data.len() as u32).to_be_bytes());
        png.extend(&body);
        png.extend(crc(&body).to_be_bytes());
    };
    chunk(b"IHDR", &[&width.to_be_bytes()[..], &height.to_be_bytes(), &[8, 2, 0, 0, 0]].concat());
    chunk(b"IDAT", &[]);
    chunk(b"IEND", &[]);
    png
}

#[test]
fn an_enormous_image_is_refused_by_its_header() {
    let error = Image::decode(&png_header(60_000, 60_000)).unwrap_err();
    let Error::ImageTooLarge { width: 60_000, height: 60_000, .. } = error else { panic!("{error}") };
    assert!(matches!(Image::decode(&png_header(10, 10)), Err(Error::BrokenImage { .. })));
    // A BMP has its size in the header too.
    let mut bmp = encoded(&rgb(8, 8), ImageFormat::Bmp);
    bmp[18..26].copy_from_slice(&[0x60, 0xEA, 0, 0, 0x60, 0xEA, 0, 0]);
    assert!(matches!(Image::decode(&bmp), Err(Error::ImageTooLarge { .. } | Error::BrokenImage { .. })));
}

#[test]
fn files_that_are_no_images() {
    for bytes in [&b""[..], b"x", b"not an image", &[0; 100], b"\xFF\xD8", b"\xFF\xD8\xFF\xD9", b"GIF89a"] {
        assert!(matches!(Image::decode(bytes), Err(Error::BrokenImage { .. })), "{bytes:?}");
    }
    let error = Image::open("no/such/file.png").unwrap_err();
    assert!(matches!(error, Error::Io { .. }) && error.to_string().contains("no/such/file.png"), "{error}");
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("text.jpg");
    std::fs::write(&path, "text").unwrap();
    assert!(Image::open(&path).unwrap_err().to_string().contains("text.jpg"));
}

#[test]
fn content_decides_and_not_the_extension() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.jpg");
    std::fs::write(&path, encoded(&rgb(9, 8), ImageFormat::Png)).unwrap();
    assert_eq!(Image::open(&path).unwrap().width(), 9);
}

#[test]
fn jpegs_have_the_pixels_of_libjpeg_or_are_refused() {
    let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/jpeg");
    let facts = std::fs::read_to_string(folder.join("pixels.json")).unwrap();
    let facts: std::collections::BTreeMap<String, serde_json::Value> = serde_json::from_str(&facts).unwrap();
    assert!(facts.len() > 30);
    for (name, fact) in facts {
        let path = folder.join(format!("{name}.jpg"));
        let image = Image::open(&path);
        if fact.is_null() {
            let error = image.unwrap_err();
            let text = error.to_string();
            assert!(matches!(error, Error::UnsupportedImage { .. }), "{text}");
            assert!(text.contains(&format!("{name}.jpg")) && text.contains("convert"), "{text}");
            continue;
        }
        let image = image.unwrap();
        let (width, height) = (image.width(), image.height());
        assert_eq!((width as u64, height as u64), (fact["width"].as_u64().unwrap(), fact["height"].as_u64().unwrap()));
        let (rows, columns) = ([0, height / 2, height], [0, width / 2, width]);
        for (i, (row, column)) in [(0, 0), (0, 1), (1, 0), (1, 1)].into_iter().enumerate() {
            let (top, bottom, left, right) = (rows[row], rows[row + 1], columns[column], columns[column + 1]);
            let count = ((bottom - top) * (right - left)) as f64;
            for channel in 0..3 {
                let pixels = (top..bottom).flat_map(|y| (left..right).map(move |x| (y, x)));
                let sum: f64 = pixels.map(|(y, x)| f64::from(image.pixel(y, x)[channel])).sum();
                let expected = fact["sums"][i][channel].as_f64().unwrap();
                assert!(
                    (sum - expected).abs() <= 3.0 * count,
                    "{name}, quarter {i}, channel {channel}: {sum} {expected}"
                );
            }
        }
    }
}

/// An uncompressed TIFF of 2 x 2 pixels, with these tags and values beside its size, all shorts.
fn tiff(tags: &[(u16, &[u16])], data: &[u8]) -> Vec<u8> {
    let mut tags: Vec<(u16, Vec<u16>)> = tags.iter().map(|(tag, values)| (*tag, values.to_vec())).collect();
    let standard = [(256, 2), (257, 2), (259, 1), (273, 8), (278, 2), (279, data.len() as u16)];
    tags.extend(standard.map(|(tag, value)| (tag, vec![value])));
    tags.sort();
    let directory = 8 + data.len() + data.len() % 2;
    let mut more = directory + 2 + 12 * tags.len() + 4;
    let mut bytes = [b"II*\0", &(directory as u32).to_le_bytes()[..], data].concat();
    bytes.resize(directory, 0);
    bytes.extend((tags.len() as u16).to_le_bytes());
    let mut behind = Vec::new();
    for (tag, values) in tags {
        bytes.extend([tag.to_le_bytes(), [3, 0]].concat());
        bytes.extend((values.len() as u32).to_le_bytes());
        let mut values: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        if values.len() > 4 {
            bytes.extend((more as u32).to_le_bytes());
            more += values.len();
            behind.append(&mut values);
        } else {
            values.resize(4, 0);
            bytes.append(&mut values);
        }
    }
    bytes.extend([0; 4]);
    bytes.append(&mut behind);
    bytes
}

#[test]
fn tiffs_that_are_not_read_are_unsupported_and_not_broken() {
    let pixels: Vec<u8> = (10..90).collect();
    let gray = Image::decode(&tiff(&[(258, &[8]), (262, &[1])], &pixels[..4])).unwrap();
    assert_eq!(gray.bytes(), [10, 10, 10, 11, 11, 11, 12, 12, 12, 13, 13, 13]);
    let inverse = Image::decode(&tiff(&[(258, &[8]), (262, &[0])], &pixels[..4])).unwrap();
    assert_eq!(inverse.pixel(0, 1), [244; 3]);
    // Premultiplied colours are divided by alpha.
    let rgba =
        |extra: u16| tiff(&[(258, &[8; 4]), (262, &[2]), (277, &[4]), (338, &[extra])], &[60, 30, 0, 127].repeat(4));
    assert_eq!(Image::decode(&rgba(2)).unwrap().pixel(1, 1), [60, 30, 0]);
    assert_eq!(Image::decode(&rgba(1)).unwrap().pixel(1, 1), [120, 60, 0]);
    let map = [9; 768];
    type Tags<'a> = &'a [(u16, &'a [u16])];
    let kinds: [(&str, Tags); 8] = [
        ("palette", &[(258, &[8]), (262, &[3]), (320, &map)]),
        ("YCbCr", &[(258, &[8; 3]), (262, &[6]), (277, &[3])]),
        ("L*a*b*", &[(258, &[8; 3]), (262, &[8]), (277, &[3])]),
        ("32 bit floating-point", &[(258, &[32; 3]), (262, &[2]), (277, &[3]), (339, &[3; 3])]),
        ("32 bit floating-point", &[(258, &[32]), (262, &[1]), (339, &[3])]),
        ("16 bit signed", &[(258, &[16]), (262, &[1]), (339, &[2])]),
        ("gray colours, 2 samples", &[(258, &[8; 2]), (262, &[1]), (277, &[2]), (338, &[2])]),
        ("gray colours, 5 samples", &[(258, &[8; 5]), (262, &[1]), (277, &[5])]),
    ];
    for (expected, tags) in kinds {
        let error = Image::decode(&tiff(tags, &pixels)).unwrap_err();
        let Error::UnsupportedImage { found, .. } = &error else { panic!("{expected}: {error}") };
        assert!(found.contains(expected) && found.contains("TIFF"), "{expected}: {found}");
        assert!(error.to_string().contains("convert it to JPEG or PNG"));
    }
    let error = Image::decode(b"II\x2b\0\x08\0\0\0\x10\0\0\0\0\0\0\0").unwrap_err();
    assert!(matches!(&error, Error::UnsupportedImage { found, .. } if found.contains("BigTIFF")), "{error}");
}

#[test]
fn files_are_called_what_they_are() {
    let heic = [b"\0\0\0\x18ftypheic\0\0\0\0mif1heic".as_slice(), &[0; 64]].concat();
    for (bytes, expected) in [
        (heic.as_slice(), "HEIC"),
        (b"\0\0\0\x1Cftypavif\0\0\0\0mif1avifmiaf", "AVIF"),
        (b"\0\0\0\x0CJXL \r\n\x87\n", "JPEG XL"),
        (b"8BPS\0\x01", "Photoshop"),
        (b"%PDF-1.7", "PDF"),
        (b"<svg xmlns=\"http://www.w3.org/2000/svg\">", "SVG"),
        (b"\0\0\0\x18ftypmp42\0\0\0\0isommp42", "video"),
    ] {
        let error = Image::decode(bytes).unwrap_err();
        let text = error.to_string();
        assert!(matches!(error, Error::UnsupportedImage { .. }), "{text}");
        assert!(text.contains(expected) && text.contains("convert"), "{text}");
    }
    for (bytes, expected) in [
        (&b"<!DOCTYPE html>\n<html><title>404</title>"[..], "an HTML page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12\n", "git lfs pull"),
        (b"{\"message\": \"Not Found\"}", "JSON"),
        (&[0; 4096], "zeros"),
        (b"", "empty"),
    ] {
        let error = Image::decode(bytes).unwrap_err();
        assert!(matches!(&error, Error::BrokenImage { .. }) && error.to_string().contains(expected), "{error}");
    }
}

#[cfg(unix)]
#[test]
fn what_is_no_file_or_never_ends_is_refused_at_once() {
    use std::io::Write;
    let folder = tempfile::tempdir().unwrap();
    let pipe = folder.path().join("pipe.jpg");
    assert!(std::process::Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    let device = folder.path().join("zero.png");
    std::os::unix::fs::symlink("/dev/zero", &device).unwrap();
    let socket = folder.path().join("socket.jpg");
    let _listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
    let mut paths = vec![pipe, device, socket, folder.path().to_path_buf()];
    // Sparse files of 6 GB: the beginning of an image, then zeros.
    let formats = [ImageFormat::Png, ImageFormat::Bmp, ImageFormat::WebP, ImageFormat::Jpeg, ImageFormat::Gif];
    let beginnings = formats.map(|format| {
        let bytes = encoded(&rgb(60, 50), format);
        bytes[..bytes.len() * 2 / 3].to_vec()
    });
    for (i, bytes) in beginnings.into_iter().chain([b"II\x2b\0\x08\0\0\0\x10".to_vec(), vec![]]).enumerate() {
        let path = folder.path().join(format!("sparse{i}.tif"));
        let mut file = std::fs::File::create(&path).unwrap();
        file.write_all(&bytes).unwrap();
        file.set_len(6 << 30).unwrap();
        paths.push(path);
    }
    let start = std::time::Instant::now();
    for path in paths {
        let error = Image::open(&path).unwrap_err();
        assert!(error.to_string().contains(path.to_str().unwrap()), "{error}");
        assert!(matches!(error, Error::BrokenImage { .. } | Error::UnsupportedImage { .. }), "{error}");
    }
    assert!(start.elapsed().as_secs() < 5, "{:?}", start.elapsed());
}

#[test]
fn the_limit_on_pixels_holds_for_single_images() {
    let folder = tempfile::tempdir().unwrap();
    for (format, extension) in [(ImageFormat::Png, "png"), (ImageFormat::Jpeg, "jpg"), (ImageFormat::Tiff, "tif")] {
        let (bytes, path) = (encoded(&rgb(9, 8), format), folder.path().join(extension));
        std::fs::write(&path, &bytes).unwrap();
        assert_eq!(Image::open_limited(&path, 72).unwrap(), Image::decode_limited(&bytes, 72).unwrap());
        for error in [Image::open_limited(&path, 71).unwrap_err(), Image::decode_limited(&bytes, 71).unwrap_err()] {
            assert!(matches!(error, Error::ImageTooLarge { width: 9, height: 8, limit: 71, .. }), "{error}");
        }
    }
}
