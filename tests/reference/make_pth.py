"""Makes tests/fixtures/pth: tiny files of torch.save, one for each way in which state dicts are saved.

Run from the root of the repository, with any PyTorch of 2.x and NumPy of 2.x: python tests/reference/make_pth.py
"""

import argparse
import datetime
import enum
from collections import OrderedDict, defaultdict, deque
from pathlib import Path, PurePosixPath

import numpy
import torch

FOLDER = Path("tests/fixtures/pth")


class Mode(enum.Enum):
    FAST = 1


class Config(dict):
    """A configuration as several libraries have it: a dictionary with attributes."""


def save(name, value, **options):
    torch.save(value, FOLDER / f"{name}.pth", **options)


def main():
    FOLDER.mkdir(parents=True, exist_ok=True)
    weight = torch.arange(6, dtype=torch.float32).reshape(2, 3)

    # A module's state dict, with buffers of whole numbers and booleans.
    module = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.BatchNorm1d(2))
    with torch.no_grad():
        module[0].weight.copy_(weight)
        module[0].bias.copy_(torch.tensor([0.5, -1.5]))
    module[1].num_batches_tracked.fill_(7)
    save("state_dict", module.state_dict())
    save("protocol4", module.state_dict(), pickle_protocol=4)

    save("parameter", {"weight": torch.nn.Parameter(weight), "frozen": torch.nn.Parameter(weight[0], False)})
    save("half", {"weight": weight.half(), "other": weight.bfloat16(), "double": weight.double()})
    save(
        "integers",
        {
            "i64": torch.tensor([-1, 2**40]),
            "i32": torch.tensor([-2], dtype=torch.int32),
            "i16": torch.tensor([-3], dtype=torch.int16),
            "i8": torch.tensor([-4], dtype=torch.int8),
            "u8": torch.tensor([255], dtype=torch.uint8),
            "bool": torch.tensor([True, False]),
        },
    )

    # Views: transposed, sliced with an offset, expanded, and two tensors over one storage; a scalar and an empty one.
    save(
        "views",
        {
            "transposed": weight.t(),
            "column": weight[:, 1],
            "row": weight[1],
            "expanded": weight[0, :1].expand(4),
            "scalar": weight[1, 2],
            "empty": torch.zeros(0, 3),
            "channels_last": torch.arange(24.0).reshape(1, 2, 3, 4).to(memory_format=torch.channels_last),
        },
    )
    save("tied", {"first": weight, "second": weight})

    # A training checkpoint: the state dict is one of many things, and wrapped twice.
    save(
        "checkpoint",
        {
            "epoch": 12,
            "arch": "resnet18",
            "best": 0.75,
            "flags": [True, None, (1, 2, 3), 2**70],
            "state_dict": OrderedDict(
                [("module._orig_mod.weight", weight), ("module._orig_mod.bias", torch.tensor([1.0, 2.0]))]
            ),
            "optimizer": {"state": {0: {"exp_avg": weight}}, "param_groups": [{"lr": 1e-3, "params": [0]}]},
        },
    )

    # As timm's training script saves it: objects of many classes beside two state dicts, and tensors in other places.
    bias, average = torch.tensor([1.0, 2.0]), torch.tensor([3.0, 4.0])
    parameter = torch.nn.Parameter(bias.clone())
    optimizer = torch.optim.AdamW([parameter], lr=0.1)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=5)
    parameter.grad = bias.clone()
    optimizer.step()
    config = Config(depth=18)
    config.frozen = True
    save(
        "training",
        {
            "epoch": numpy.int64(3),
            "arch": "resnet18",
            "args": argparse.Namespace(lr=0.1, data=PurePosixPath("/data"), mode=Mode.FAST, sizes=(224, None)),
            "optimizer": optimizer.state_dict(),
            "lr_scheduler": scheduler.state_dict(),
            "state_dict": OrderedDict([("weight", weight), ("bias", bias)]),
            "state_dict_ema": OrderedDict([("weight", weight), ("bias", average)]),
            "metric": numpy.float64(91.5),
            "confusion": numpy.arange(4).reshape(2, 2),
            "names": numpy.array(["a", "b"], dtype=object),
            "saved": datetime.datetime(2024, 1, 1, tzinfo=datetime.timezone.utc),
            "config": config,
            "seen": {1, 2},
            "frozen": frozenset([1]),
            "losses": defaultdict(list, {"train": [1.0]}),
            "recent": deque([1, 2], maxlen=3),
            "rng": {"cpu": torch.random.get_rng_state()[:8], "numpy": numpy.random.default_rng(1).bit_generator.state},
            "device": torch.device("cpu"),
            "dtype": torch.float16,
            "size": torch.Size([2, 3]),
            "complex": torch.zeros(1, dtype=torch.complex64),
            "sparse": torch.eye(2).to_sparse(),
            "none": None,
        },
    )
    others = {"epoch": 3, "args": argparse.Namespace(lr=0.1), "scale": numpy.float32(0.5)}
    save("flat", {"weight": weight, **others, "bias": bias})

    save("legacy", {"weight": weight}, _use_new_zipfile_serialization=False)


if __name__ == "__main__":
    main()
