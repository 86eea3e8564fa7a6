#!/usr/bin/env python3
"""Writes tests/fixtures/jpeg: small JPEG files of many kinds, and what Pillow makes of them.

    make_jpeg.py            needs Pillow 11.2 or newer, NumPy, and cjpeg of libjpeg-turbo (Debian: libjpeg-turbo-progs)

`pixels.json` has for each file its width and height, and the sums of the red, green and blue values in its left upper,
right upper, left lower and right lower quarter; or null where
the crate refuses it.
"""

import io
import json
import pathlib
import subprocess
import tempfile

import numpy as np
from PIL import Image

OUT = pathlib.Path(__file__).resolve().parent.parent / "fixtures" / "jpeg"
WIDTH, HEIGHT = 35, 25


def picture(width=WIDTH, height=HEIGHT):
    y, x = np.mgrid[0:height, 0:width]
    red, green, blue = 6 * x + y, 250 - 8 * y, 40 + 3 * x + 2 * y
    return Image.fromarray(np.clip(np.stack([red, green, blue], -1), 0, 255).astype(np.uint8))


def cjpeg(*options, scans=None, image=None):
    ppm = io.BytesIO()
    (image or picture()).save(ppm, "PPM")
    with tempfile.NamedTemporaryFile("w") as script:
        if scans:
            script.write(scans)
            script.flush()
            options = (*options, "-scans", script.name)
        coding = [] if "-arithmetic" in options else ["-optimize"]
        command = ["cjpeg", "-quality", "90", *coding, *options]
        return subprocess.run(command, input=ppm.getvalue(), stdout=subprocess.PIPE, check=True).stdout


def pillow(mode="RGB", **options):
    jpeg = io.BytesIO()
    picture().convert(mode).save(jpeg, "JPEG", quality=90, optimize=True, **options)
    return jpeg.getvalue()


def segments(jpeg):
    """The segments up to the first start of scan, as (marker, bytes), and the rest."""
    at, found = 2, []
    while True:
        marker, end = jpeg[at + 1], at + 2 + int.from_bytes(jpeg[at + 2 : at + 4], "big")
        found.append((marker, jpeg[at:end]))
        at = end
        if marker == 0xDA:
            return found, jpeg[at:]


def edited(jpeg, edit):
    """The file with each segment replaced by what `edit(marker, bytes)` gives."""
    found, rest = segments(jpeg)
    return jpeg[:2] + b"".join(edit(marker, segment) for marker, segment in found) + rest


def adobe(transform):
    return b"\xff\xee\x00\x0eAdobe\x00\x64\x00\x00\x00\x00" + bytes([transform])


THREE_SCANS = "0;\n1;\n2;\n"
SCANS_PER_COMPONENT = "".join(f"{c}: {band} 0 0;\n" for band in ("0 0", "1 63") for c in (0, 1, 2))

READ = {
    "sampling_444": cjpeg("-sample", "1x1"),
    "sampling_422": cjpeg("-sample", "2x1"),
    "sampling_420": cjpeg("-sample", "2x2"),
    "sampling_440": cjpeg("-sample", "1x2"),
    "sampling_411": cjpeg("-sample", "4x1"),
    "sampling_410": cjpeg("-sample", "4x2"),
    "sampling_441": cjpeg("-sample", "1x4"),
    "sampling_mixed": cjpeg("-sample", "2x2,1x2,2x1"),
    "progressive": cjpeg("-sample", "2x2", "-progressive"),
    "progressive_per_component": cjpeg("-sample", "2x2", scans=SCANS_PER_COMPONENT),
    "restarts": cjpeg("-sample", "2x2", "-restart", "1B"),
    "one_pixel": cjpeg("-sample", "2x2", image=picture(1, 1)),
    "coarse": cjpeg("-quality", "1"),  # quantisation tables of 16 bit
    "gray": cjpeg("-grayscale"),
    "gray_2x2": cjpeg("-grayscale", "-sample", "2x2"),
    "rgb": pillow(keep_rgb=True),
    "rgb_by_names": edited(pillow(keep_rgb=True), lambda marker, segment: b"" if marker == 0xEE else segment),
    "cmyk": pillow("CMYK"),
    "ycck": edited(pillow("CMYK"), lambda marker, segment: adobe(2) if marker == 0xEE else segment),
    "trailing_video": cjpeg() + b"\0\0\0\x18ftypmp42\xff\xd8\xff\xd9",
}

REFUSED = {
    "scan_per_component": cjpeg("-sample", "2x2", scans=THREE_SCANS),
    "scan_of_chroma": cjpeg("-sample", "2x1", scans="0;\n1,2;\n"),
    "luma_subsampled": cjpeg("-sample", "1x1,2x2,2x2"),
    "luma_subsampled_progressive": cjpeg("-sample", "1x1,1x2,1x2", "-progressive"),
    "sampling_by_three": cjpeg("-sample", "3x1"),
    "arithmetic": cjpeg("-arithmetic"),
    # Their headers are enough.
    "lossless": edited(cjpeg(), lambda marker, segment: b"\xff\xc3" + segment[2:] if marker == 0xC0 else segment),
    "twelve_bit": edited(cjpeg(), lambda marker, segment: segment[:4] + b"\x0c" + segment[5:] if marker == 0xC0 else segment),
    "progressive_incomplete": cjpeg(scans="0,1,2: 0 0 0 0;\n0: 1 5 0 2;\n0: 6 63 0 2;\n"),
    "without_huffman_tables": edited(cjpeg(), lambda marker, segment: b"" if marker == 0xC4 else segment),
    "height_at_the_end": edited(
        cjpeg(), lambda marker, segment: segment[:5] + b"\0\0" + segment[7:] if marker == 0xC0 else segment
    ),
    "jfif_and_adobe": edited(cjpeg(), lambda marker, segment: segment + adobe(0) if marker == 0xE0 else segment),
    "cmyk_called_ycbcr": edited(pillow("CMYK"), lambda marker, segment: adobe(1) if marker == 0xEE else segment),
}


def quarters(jpeg):
    pixels = np.asarray(Image.open(io.BytesIO(jpeg)).convert("RGB")).astype(int)
    height, width, _ = pixels.shape
    columns = (slice(0, width // 2), slice(width // 2, None))
    halves = [(rows, half) for rows in np.split(pixels, [height // 2]) for half in columns]
    return {"width": width, "height": height, "sums": [rows[:, half].sum((0, 1)).tolist() for rows, half in halves]}


if __name__ == "__main__":
    OUT.mkdir(exist_ok=True)
    facts = {name: quarters(jpeg) for name, jpeg in READ.items()} | dict.fromkeys(REFUSED)
    for name, jpeg in (READ | REFUSED).items():
        (OUT / f"{name}.jpg").write_bytes(jpeg)
    lines = ",\n".join(f"{json.dumps(name)}: {json.dumps(fact)}" for name, fact in facts.items())
    (OUT / "pixels.json").write_text("{\n" + lines + "\n}\n")
