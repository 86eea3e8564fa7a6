"""Writes tests/fixtures/transforms.json: what timm's evaluation transform makes of images given by a formula.

Needs timm, torchvision, torch, numpy and Pillow. Run it from the repository's root.

Pillow 13 resizes columns before rows where the height loses more than twice as many pixels as the width, which rounds
differently. The cases avoid that, so that older versions, with which pretrained weights were made, write the same file.
"""

import json

import numpy as np
import PIL
import timm
import torchvision
from PIL import Image
from timm.data import create_transform

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
EVERY = 7  # every seventh value of the output, channels first, is kept

# image (height, width), channels, input (height, width), filter, crop_pct, timm's crop_mode
CASES = [
    ((60, 80), 3, (24, 24), "bilinear", 0.875, "center"),
    ((60, 80), 3, (24, 24), "bicubic", 0.875, "center"),
    ((60, 80), 3, (24, 24), "lanczos", 0.875, "center"),
    ((60, 80), 3, (24, 24), "nearest", 0.875, "center"),
    ((91, 57), 3, (31, 31), "bilinear", 0.95, "center"),
    ((91, 57), 3, (31, 31), "bicubic", 0.95, "center"),
    ((91, 57), 3, (31, 31), "lanczos", 0.95, "center"),
    ((91, 57), 3, (31, 31), "nearest", 0.95, "center"),
    ((13, 17), 3, (32, 32), "bilinear", 0.875, "center"),
    ((13, 17), 3, (32, 32), "bicubic", 0.875, "center"),
    ((13, 17), 3, (32, 32), "lanczos", 0.875, "center"),
    ((13, 17), 3, (32, 32), "nearest", 0.875, "center"),
    ((32, 32), 3, (32, 32), "bicubic", 1.0, "center"),
    ((33, 32), 3, (32, 32), "bicubic", 1.0, "center"),
    ((1, 40), 3, (16, 16), "bicubic", 1.0, "center"),
    ((375, 500), 3, (56, 56), "bicubic", 0.9, "center"),
    ((500, 333), 3, (56, 56), "bilinear", 0.965, "center"),
    ((70, 90), 3, (24, 40), "bicubic", 0.875, "center"),
    ((90, 70), 3, (40, 24), "bilinear", 0.9, "center"),
    ((60, 80), 3, (24, 24), "bicubic", 1.0, "squash"),
    ((19, 45), 3, (37, 24), "bilinear", 1.0, "squash"),
    ((60, 80), 3, (24, 24), "bicubic", 1.0, "border"),
    ((33, 81), 3, (25, 25), "bilinear", 1.0, "border"),
    ((17, 9), 3, (24, 36), "lanczos", 1.0, "border"),
    ((60, 80), 1, (24, 24), "bicubic", 0.875, "center"),
    ((13, 17), 1, (28, 28), "bilinear", 1.0, "center"),
]


def pattern(height, width, channels):
    """A gradient per channel, and noise from a hash that 64 bit arithmetic repeats anywhere."""
    y, x, c = np.meshgrid(*(np.arange(n, dtype=np.uint64) for n in (height, width, channels)), indexing="ij")
    h = (y * np.uint64(73856093)) ^ (x * np.uint64(19349663)) ^ (c * np.uint64(83492791))
    h = (h * np.uint64(2654435761)) >> np.uint64(7)
    gradient = (y * np.uint64(3) + x * np.uint64(2) + c * np.uint64(40)) % np.uint64(256)
    return (((gradient * np.uint64(2)) + h % np.uint64(256)) // np.uint64(3)).astype(np.uint8)


def main():
    cases = []
    for image, channels, size, interpolation, crop_pct, mode in CASES:
        pixels = pattern(*image, channels)
        pil = Image.fromarray(pixels if channels == 3 else pixels[:, :, 0])
        mean, std = (MEAN, STD) if channels == 3 else ((0.1307,), (0.3081,))
        transform = create_transform(
            (channels, *size), interpolation=interpolation, mean=mean, std=std, crop_pct=crop_pct, crop_mode=mode
        )
        out = transform(pil).numpy()
        assert out.shape == (channels, *size), out.shape
        cases.append({
            "image": image, "channels": channels, "size": size, "interpolation": interpolation,
            "crop_pct": crop_pct, "mode": mode, "mean": float(out.astype(np.float64).mean()),
            "values": [round(float(v), 5) for v in out.reshape(-1)[::EVERY]],
        })  # fmt: skip
    versions = f"timm {timm.__version__}, torchvision {torchvision.__version__}, Pillow {PIL.__version__}"
    with open("tests/fixtures/transforms.json", "w") as file:
        lines = ",\n".join(json.dumps(case, separators=(",", ":")) for case in cases)
        file.write(f'{{"made_with":"{versions}","every":{EVERY},"cases":[\n{lines}\n]}}\n')


main()
