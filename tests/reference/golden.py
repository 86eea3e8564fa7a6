#!/usr/bin/env python3
"""Parity files: what PyTorch computes for a model whose weights come from a formula.

    python golden.py timm:resnet18 torchvision:vgg11 reference:cifar_resnet20 --out DIR

README.md beside this file describes the formula, the keys and the tolerances.
"""

import argparse
import json
import math
import pathlib
import sys

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

import models

MASK = (1 << 64) - 1
CHUNK = 1 << 22  # numbers made at a time, so that a layer of 10^8 weights needs little extra memory


# --- numbers from names -------------------------------------------------------------------------


def seed_of(name: str) -> int:
    """FNV-1a, 64 bits, of the name's UTF-8 bytes."""
    state = 14695981039346656037
    for byte in name.encode("utf-8"):
        state = (state ^ byte) * 1099511628211 & MASK
    return state


def uniform(name: str, start: int, stop: int) -> np.ndarray:
    """Entries start..stop of the stream of `name`: multiples of 2^-24 in [0, 1), as float64."""
    bits = np.arange(start + 1, stop + 1, dtype=np.uint64)
    bits *= np.uint64(0x9E3779B97F4A7C15)  # unsigned arrays wrap, as wanted
    bits += np.uint64(seed_of(name))
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        bits ^= bits >> np.uint64(shift)
        bits *= np.uint64(factor)
    bits ^= bits >> np.uint64(31)
    return (bits >> np.uint64(40)).astype(np.float64) * 2.0**-24


def chunks(count: int):
    for start in range(0, count, CHUNK):
        yield start, min(start + CHUNK, count)


def affine(name: str, shape: tuple[int, ...]) -> tuple[float, float]:
    """(scale, offset) of a tensor: it holds scale * (u - offset)."""
    kind = name.split(".")[-1]
    if name == "input":
        return 4.0, 0.5
    if kind == "running_var" or (kind == "weight" and len(shape) == 1):
        return 1.0, -0.5
    if kind == "weight" and len(shape) > 1:
        return 2.0 * math.sqrt(3.0 / math.prod(shape[1:])), 0.5
    return 0.2, 0.5


def fill_(name: str, tensor: torch.Tensor) -> torch.Tensor:
    """Overwrites a contiguous tensor with the numbers of its name, each rounded once to float32."""
    if name.split(".")[-1] == "num_batches_tracked":
        return tensor.zero_()
    scale, offset = affine(name, tuple(tensor.shape))
    flat = tensor.view(-1)
    for start, stop in chunks(flat.numel()):
        values = scale * (uniform(name, start, stop) - offset)
        flat[start:stop] = torch.from_numpy(values.astype(np.float32))
    return tensor


def fill_model(model: nn.Module) -> None:
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            fill_(name, tensor)


# --- models -------------------------------------------------------------------------------------


def create(spec: str, num_classes: int, channels: int) -> nn.Module:
    """The model that a specification LIBRARY:NAME stands for, in float64, without randomness."""
    library, _, name = spec.partition(":")
    if library == "timm":
        import timm

        model = timm.create_model(name, num_classes=num_classes, in_chans=channels)
    elif library == "torchvision":
        import torchvision

        if channels != 3:
            raise ValueError("torchvision's models take three channels")
        model = torchvision.models.get_model(name, weights=None, num_classes=num_classes)
    elif library == "reference":
        model = models.create(name, num_classes, channels)
    else:
        raise ValueError(f"{spec}: write timm:NAME, torchvision:NAME or reference:NAME")
    for module in model.modules():
        silence(module)
    return model.double()


def silence(module: nn.Module) -> None:
    """Sets every dropout and stochastic depth of a module to zero, by whatever name it goes."""
    if isinstance(module, nn.modules.dropout._DropoutNd) or type(module).__name__ == "StochasticDepth":
        module.p = 0.0
    for field in ("drop_prob", "drop_rate"):
        if isinstance(getattr(module, field, None), float):
            setattr(module, field, 0.0)


def within(name: str, prefixes: list[str]) -> bool:
    return any(f"{name}.".startswith(f"{prefix}.") for prefix in prefixes)


def learning_parameters(model: nn.Module, frozen: list[str]) -> dict[str, nn.Parameter]:
    """Puts the model in train mode but for its frozen modules, and returns what learns."""
    model.train()
    modules = {name: module for name, module in model.named_modules() if name}
    for prefix in frozen:
        if not any(within(name, [prefix]) for name in modules):
            raise ValueError(f"--freeze {prefix}: the model has no module of that name")
    for name, module in modules.items():
        if within(name, frozen):
            module.eval()
    learning = {}
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(not within(name, frozen))
        parameter.grad = None
        if parameter.requires_grad:
            learning[name] = parameter
    return learning


# --- figures ------------------------------------------------------------------------------------


def outline(tensor: torch.Tensor) -> dict:
    tensor = tensor.detach()
    return {"l2": tensor.norm().item(), "first": tensor.reshape(-1)[:3].tolist()}


def fingerprint(name: str, tensor: torch.Tensor) -> dict:
    """The outline, and an inner product with a fixed direction that a permuted tensor would change."""
    flat = tensor.detach().reshape(-1)
    total = 0.0
    for start, stop in chunks(flat.numel()):
        direction = torch.from_numpy(2.0 * uniform(f"probe.{name}", start, stop) - 1.0)
        total += torch.dot(flat[start:stop], direction).item()
    return outline(tensor) | {"probe": total}


def statistics(model: nn.Module) -> dict:
    kinds = ("running_mean", "running_var")
    return {name: outline(b) for name, b in model.named_buffers() if name.split(".")[-1] in kinds}


OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.01, momentum=0.9, weight_decay=1e-4),
    "adamw": lambda p: torch.optim.AdamW(p, lr=1e-3, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.01),
}


def train(model: nn.Module, kind: str, frozen: list[str], steps: int, images, labels) -> dict:
    """Some steps of an optimizer on one batch, from the filled weights."""
    fill_model(model)
    learning = learning_parameters(model, frozen)
    optimizer = OPTIMIZERS[kind](list(learning.values()))
    losses = []
    for _ in range(steps):
        loss = F.cross_entropy(model(images), labels)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return {
        "losses": losses,
        "parameters": {name: fingerprint(name, p) for name, p in learning.items()},
        "running": statistics(model),
    }


def require_no_randomness(model: nn.Module, images: torch.Tensor) -> None:
    """A dropout that `silence` does not know would make two forward passes differ."""
    passes = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        with torch.no_grad():
            passes.append(model(images))
    if not torch.equal(*passes):
        raise RuntimeError("the model is random in train mode")


def parity(spec: str, options) -> dict:
    """Everything a parity file holds."""
    model = create(spec, options.classes, options.channels)
    images = fill_("input", torch.empty(options.batch, options.channels, options.size, options.size, dtype=torch.float64))
    labels = torch.tensor([sample % options.classes for sample in range(options.batch)])

    record = {
        "model": spec,
        "num_classes": options.classes,
        "batch": options.batch,
        "size": options.size,
        "frozen": options.freeze,
        "tensors": {name: list(tensor.shape) for name, tensor in model.state_dict().items()},
    }
    if options.channels != 3:
        record["channels"] = options.channels

    fill_model(model)
    model.eval()
    with torch.no_grad():
        record["eval_logits"] = model(images).reshape(-1).tolist()

    learning = learning_parameters(model, options.freeze)
    require_no_randomness(model, images)
    fill_model(model)  # those passes moved the running statistics
    logits = model(images)
    loss = F.cross_entropy(logits, labels)
    loss.backward()
    record["train_logits"] = logits.detach().reshape(-1).tolist()
    record["train_loss"] = loss.item()
    record["gradients"] = {name: fingerprint(name, p.grad) for name, p in learning.items()}
    record["largest_gradient"] = max(g["l2"] for g in record["gradients"].values())
    record["running_after"] = statistics(model)

    if options.steps:
        record["steps"] = options.steps
        for kind in OPTIMIZERS:
            record[kind] = train(model, kind, options.freeze, options.steps, images, labels)
    return record


def file_name(spec: str, options) -> str:
    """A name that tells every option that is not the usual one, so that no two files collide."""
    parts = [spec.replace(":", "-"), str(options.size)]
    for letter, value, usual in (("b", options.batch, 4), ("k", options.classes, 10), ("c", options.channels, 3)):
        if value != usual:
            parts.append(f"{letter}{value}")
    if options.freeze:
        parts.append("frozen_" + "_".join(options.freeze))
    if options.steps:
        parts.append(f"steps{options.steps}")
    return "-".join(parts) + ".json"


def rounded(value, digits: int):
    """The same value with every number cut to so many significant digits."""
    if isinstance(value, dict):
        return {key: rounded(item, digits) for key, item in value.items()}
    if isinstance(value, list):
        return [rounded(item, digits) for item in value]
    return float(f"{value:.{digits}g}") if isinstance(value, float) else value


def names(text: str) -> list[str]:
    return [name for name in text.split(",") if name]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", metavar="LIBRARY:NAME", help="timm:, torchvision: or reference:")
    parser.add_argument("--classes", type=int, default=10)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--size", type=int, default=64, help="height and width of the input")
    parser.add_argument("--channels", type=int, default=3, help="channels of the input")
    parser.add_argument("--freeze", type=names, default=[], help="modules that do not learn, comma-separated")
    parser.add_argument("--steps", type=int, default=0, help="optimizer steps to record")
    parser.add_argument("--digits", type=int, default=17, help="significant digits written")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path("."), help="folder of the files")
    options = parser.parse_args()

    torch.set_num_threads(options.threads)
    options.out.mkdir(parents=True, exist_ok=True)
    for spec in options.models:
        record = rounded(parity(spec, options), options.digits)
        path = options.out / file_name(spec, options)
        path.write_text(json.dumps(record, separators=(",", ":"), allow_nan=False) + "\n")
        print(f"{path}  loss {record['train_loss']:.6f}, {len(record['gradients'])} parameters learn", flush=True)


if __name__ == "__main__":
    try:
        main()
    except ValueError as error:
        sys.exit(f"golden.py: {error}")
