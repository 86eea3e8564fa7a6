#!/usr/bin/env python3
"""PyTorch's counterpart of examples/bench_step.rs: one line of JSON per run.

    python torch_step.py --arch resnet18 --batch 8 --size 224 --mode train --way channels_last

Ways: nchw (PyTorch's default), channels_last, bf16 (autocast and channels_last). Modes: train (SGD with momentum) and
frozen (forward under inference_mode). Memory is the process's peak, as Linux counts it, so every measurement needs a
separate process.
"""

import argparse
import json
import resource
import statistics
import sys
import time
from pathlib import Path

import torch
from torch.nn import functional as F

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "tests" / "reference"))

WARM_UP = 3


def build(arch: str) -> torch.nn.Module:
    """The model from torchvision, else from timm; the CIFAR ResNets are from tests/reference."""
    if arch.startswith("cifar_") or arch.endswith("_features"):
        import models

        return models.create(arch, 10)
    import torchvision

    if hasattr(torchvision.models, arch):
        return torchvision.models.get_model(arch, weights=None)
    import timm

    return timm.create_model(arch)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--arch", default="resnet18")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--mode", choices=["train", "frozen"], default="train")
    parser.add_argument("--way", choices=["nchw", "channels_last", "bf16"], default="nchw")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--steps", type=int, default=15)
    options = parser.parse_args()

    torch.set_num_threads(options.threads)
    torch.manual_seed(1)
    model = build(options.arch)
    images = torch.randn(options.batch, 3, options.size, options.size)
    labels = torch.arange(options.batch) % 10
    if options.way != "nchw":
        model = model.to(memory_format=torch.channels_last)
        images = images.contiguous(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9)
    model.train(options.mode == "train")

    def autocast():
        return torch.autocast("cpu", torch.bfloat16, enabled=options.way == "bf16")

    def step() -> None:
        if options.mode == "frozen":
            with torch.inference_mode(), autocast():
                model(images)
            return
        optimizer.zero_grad()
        with autocast():
            loss = F.cross_entropy(model(images).float(), labels)
        loss.backward()
        optimizer.step()

    times = []
    for i in range(WARM_UP + options.steps):
        start = time.perf_counter()
        step()
        if i >= WARM_UP:
            times.append((time.perf_counter() - start) * 1e3)
    median = statistics.median(times)
    line = {
        "peer": f"torch {torch.__version__} {options.way}",
        "arch": options.arch,
        "batch": options.batch,
        "size": options.size,
        "mode": options.mode,
        "threads": options.threads,
        "median_ms": median,
        "images_per_s": options.batch / median * 1e3,
        "peak_rss_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }
    print(json.dumps(line))


if __name__ == "__main__":
    main()
