"""Makes tests/seeds/TARGET/NAME, small inputs from which the fuzzer and the test `untrusted` start.

Run from the root of the repository, with any Python 3 and nothing else: python fuzz/make_seeds.py
"""

import collections
import io
import json
import pickle
import struct
import sys
import types
import zipfile
from pathlib import Path

FOLDER = Path("tests/seeds")


def put(target, name, data):
    folder = FOLDER / target
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(data.encode() if isinstance(data, str) else data)


SIZES = {"F64": 8, "I64": 8, "F32": 4, "I32": 4, "U32": 4, "F16": 2, "BF16": 2, "I16": 2, "U16": 2, "I8": 1, "U8": 1, "BOOL": 1}


def header(tensors, metadata=None):
    """The header of a safetensors file and the number of its bytes of data; tensors: (name, dtype, shape)."""
    entries, at = {}, 0
    if metadata:
        entries["__metadata__"] = metadata
    for name, dtype, shape in tensors:
        size = SIZES[dtype]
        for n in shape:
            size *= n
        entries[name] = {"dtype": dtype, "shape": shape, "data_offsets": [at, at + size]}
        at += size
    return json.dumps(entries, separators=(",", ":")).encode(), at


def safetensors(text, size):
    return struct.pack("<Q", len(text)) + text + bytes(i % 251 for i in range(size))


# What torch.save pickles, without torch: globals of its names, and storages that are references out of the pickle.
Storage = collections.namedtuple("Storage", "kind key count")


def fake(module, name):
    def function(*_):
        raise RuntimeError("it is only named")

    function.__module__, function.__qualname__, function.__name__ = module, name, name
    sys.modules.setdefault(module, types.ModuleType(module))
    setattr(sys.modules[module], name, function)
    return function


fake("torch", "Size")
sys.modules["torch"]._utils = sys.modules.setdefault("torch._utils", types.ModuleType("torch._utils"))
REBUILD = fake("torch._utils", "_rebuild_tensor_v2")
PARAMETER = fake("torch._utils", "_rebuild_parameter")
KINDS = {kind: fake("torch", kind + "Storage") for kind in ("Float", "Half", "Long", "Byte", "Bool")}


class Call:
    def __init__(self, function, *arguments):
        self.made_of = function, arguments

    def __reduce__(self):
        return self.made_of


def tensor(storage, offset, shape, stride):
    return Call(REBUILD, storage, offset, shape, stride, False, collections.OrderedDict())


class Object:
    """Of no class that the reader knows: made by NEWOBJ, with attributes."""

    def __init__(self, **attributes):
        self.__dict__.update(attributes)


class Items(dict):
    """The same, with items."""


Object.__module__ = Items.__module__ = "own"
sys.modules["own"] = types.ModuleType("own")
sys.modules["own"].Object, sys.modules["own"].Items = Object, Items
SCALAR = fake("own", "scalar")


class Pickler(pickle.Pickler):
    def persistent_id(self, value):
        if isinstance(value, Storage):
            return ("storage", KINDS[value.kind], value.key, "cpu", value.count)
        return None


def pickled(value, protocol=2):
    out = io.BytesIO()
    Pickler(out, protocol).dump(value)
    return out.getvalue()


def zipped(entries):
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_STORED) as archive:
        for name, data in entries.items():
            archive.writestr(zipfile.ZipInfo(name), data)
    return out.getvalue()


def main():
    # The three storages that the target `pickle` has, and pickles over them.
    a, b, empty = Storage("Float", "0", 24), Storage("Float", "1", 4), Storage("Float", "2", 0)
    state = collections.OrderedDict(
        [
            ("module.weight", tensor(a, 0, (2, 3, 4), (12, 4, 1))),
            ("module.same", tensor(a, 0, (24,), (1,))),
            ("module.transposed", tensor(a, 2, (2, 2), (1, 4))),
            ("module.expanded", tensor(a, 3, (2, 2), (0, 0))),
            ("module.scalar", tensor(b, 3, (), ())),
            ("module.empty", tensor(empty, 0, (0, 3), (3, 1))),
            ("module.bias", Call(PARAMETER, tensor(b, 0, (4,), (1,)), True, collections.OrderedDict())),
        ]
    )
    plain = {"w": tensor(b, 0, (2, 2), (2, 1))}
    wrapped = {"state_dict": plain, "epoch": 3, "loss": 0.5, "args": [None, True, "x", b"y", {1}, 1 << 40, -1]}
    training = {
        "args": Object(lr=0.1, names=("a", None)),
        "config": Items(depth=18),
        "metric": Call(SCALAR, "f8", b"01234567"),
        "losses": collections.defaultdict(list, {"train": [1.0]}),
        "recent": collections.deque([1, 2]),
        "optimizer": {"state": {0: {"exp_avg": tensor(b, 0, (4,), (1,))}}, "param_groups": [{"lr": 1e-3}]},
        "state_dict": plain,
        "state_dict_ema": {"w": tensor(b, 0, (4,), (1,)), "step": Call(SCALAR, "i8", b"01234567")},
    }
    bomb = b"\x80\x02)q\x00" + b"".join(bytes([0x68, i, 0x68, i, 0x86, 0x71, i + 1]) for i in range(60)) + b"."
    pickles = {
        "state_dict": pickled(state),
        "state_dict_4": pickled(state, 4),
        "checkpoint": pickled(wrapped, 4),
        "plain": pickled(plain),
        "training": pickled(training),
        "training_5": pickled(training, 5),
        "memo_bomb": bomb,
        "deep": b"\x80\x02" + b"]" * 300 + b"a" * 299 + b".",
        "call": b"\x80\x02cos\nsystem\nX\x04\x00\x00\x00true\x85R.",
    }
    for name, data in pickles.items():
        put("pickle", name, data)

    data = {"archive/data/0": bytes(96), "archive/data/1": bytes(16), "archive/data/2": b""}
    for name in ("state_dict", "plain"):
        put("pth", name, zipped({"archive/data.pkl": pickles[name], "archive/byteorder": "little", **data}))
    put("pth", "no_pickle", zipped({"archive/other": b"x"}))

    tensors = [(kind.lower(), kind, [2]) for kind in SIZES] + [("scalar", "F32", []), ("empty", "F32", [0, 4])]
    description = {
        "version": 1,
        "arch": "resnet18",
        "layout": "timm",
        "input": {
            "channels": 3,
            "size": [32, 32],
            "interpolation": "bicubic",
            "crop_pct": 0.875,
            "fit": "crop",
            "mean": [0.5] * 3,
            "std": [0.5] * 3,
        },
        "labels": ["ant", "bee"],
        "head": {"kind": "linear", "dropout": 0.0},
        "story": {"a": [1, None, 2.5]},
    }
    files = {
        "types": header(tensors),
        "metadata": header([("w", "F32", [2, 2])], {"format": "pt", "a": "\u00e4 \" \\ \n"}),
        "predictor": header([("w", "U8", [1])], {"format": "pt", "candle_finetune": json.dumps(description)}),
        "empty": header([]),
    }
    for name, (text, size) in files.items():
        put("safetensors", name, safetensors(text, size))
        put("header", name, struct.pack(">H", size) + text)

    index = {"metadata": {"total_size": 2}, "weight_map": {"a": "a.safetensors", "b": "b.safetensors"}}
    text = json.dumps(index).encode()
    shard = [safetensors(*header([(name, "U8", [2])])) for name in "ab"]
    put("index", "plain", text)
    put("index", "shards", b"\xff".join([text, *shard]))
    put("index", "zip", b"\xff".join([text.replace(b'"a"', b'"w"'), zipped({"archive/data.pkl": pickles["plain"], **data})]))
    put("index", "outside", '{"weight_map":{"a":"../a.safetensors","b":"/b.safetensors"}}')

    cfg = {
        "input_size": [3, 224, 224],
        "interpolation": "bicubic",
        "crop_pct": 0.95,
        "crop_mode": "center",
        "mean": [0.485, 0.456, 0.406],
        "std": [0.229, 0.224, 0.225],
    }
    timm = {"architecture": "resnet18", "num_classes": 2, "label_names": ["ant", "bee"], "pretrained_cfg": cfg}
    put("description", "timm", json.dumps({**timm, "model_args": {"in_chans": 3}}))
    put("description", "timm_flat", json.dumps({"architecture": "resnet50.a1_in1k", "labels": ["a"], **cfg}))
    put("description", "unknown", '{"architecture": "resnet81"}')
    resnet = {
        "model_type": "resnet",
        "layer_type": "basic",
        "depths": [2, 2, 2, 2],
        "hidden_sizes": [64, 128, 256, 512],
        "embedding_size": 64,
        "hidden_act": "relu",
        "downsample_in_first_stage": False,
        "id2label": {"0": "ant", "1": "bee"},
    }
    normal = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3, "do_normalize": True, "rescale_factor": 1 / 255, "resample": 3}
    processors = {
        "convnext": {"image_processor_type": "ConvNextImageProcessor", "crop_pct": 0.8, "size": {"shortest_edge": 192}},
        "old": {"feature_extractor_type": "ConvNextFeatureExtractor", "size": 384, "resample": 3},
        "vit": {"image_processor_type": "ViTImageProcessor", "resample": 2, "size": {"height": 64, "width": 96}},
        "crop": {"do_center_crop": True, "size": {"shortest_edge": 256}, "crop_size": {"height": 224, "width": 224}},
        "crop_square": {"crop_size": 224, "size": 256, "do_normalize": False},
        "defaults": {"image_processor_type": "CLIPImageProcessor"},
    }
    put("description", "transformers", json.dumps(resnet))
    for name, processor in processors.items():
        both = json.dumps(resnet).encode() + b"\xff" + json.dumps({**normal, **processor}).encode()
        put("description", f"transformers_{name}", both)
    put("description", "deep", '{"architecture":' + "[" * 200 + "]" * 200 + "}")


main()
