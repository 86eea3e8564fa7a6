"""Makes tests/fixtures/pth: tiny files of torch.save, one for each way in which state dicts are saved.

Run from the root of the repository, with any PyTorch of 2.x: python tests/reference/make_pth.py
"""

from collections import OrderedDict
from pathlib import Path

import torch

FOLDER = Path("tests/fixtures/pth")


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

    save("legacy", {"weight": weight}, _use_new_zipfile_serialization=False)


if __name__ == "__main__":
    main()
