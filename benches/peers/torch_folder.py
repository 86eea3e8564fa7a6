#!/usr/bin/env python3
"""PyTorch beyond the step: its DataLoader, a start from a file, its tutorial's loop with a fixed feature extractor.

    python torch_folder.py loader --data DIR --workers 2                  # images per second
    python torch_folder.py start --weights resnet50.safetensors           # timm, from a file to the first prediction
    python torch_folder.py tutorial --data DIR --weights resnet18.safetensors --epochs 20

DIR holds train/CLASS/* and test/CLASS/*. `tutorial` is the loop of PyTorch's transfer learning tutorial: ResNet-18 with
everything frozen except a new classifier, batches of 4, SGD with momentum, random crops and flips, a validation each
epoch. Its time does not depend on the values of the weights: if the file does not exist, random weights are written to
it first.
"""

import argparse
import json
import time
from pathlib import Path

import torch
from torch import nn
from torchvision import datasets, models, transforms


def loaders(data: Path, batch: int, workers: int) -> dict:
    norm = transforms.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
    ways = {
        "train": [transforms.RandomResizedCrop(224), transforms.RandomHorizontalFlip()],
        "test": [transforms.Resize(256), transforms.CenterCrop(224)],
    }
    made = {}
    for part, way in ways.items():
        folder = datasets.ImageFolder(str(data / part), transforms.Compose([*way, transforms.ToTensor(), norm]))
        made[part] = torch.utils.data.DataLoader(folder, batch_size=batch, shuffle=True, num_workers=workers)
    return made


def loader(options: argparse.Namespace) -> dict:
    train = loaders(options.data, 32, options.workers)["train"]
    start, images = time.perf_counter(), 0
    for _ in range(options.epochs):
        for batch, _ in train:
            images += len(batch)
    return {"images_per_s": images / (time.perf_counter() - start)}


def tutorial(options: argparse.Namespace) -> dict:
    from safetensors.torch import load_file, save_file

    model = models.resnet18(weights=None)
    if options.weights.exists():
        model.load_state_dict(load_file(options.weights))
    else:
        save_file(model.state_dict(), options.weights)
    start = time.perf_counter()
    for parameter in model.parameters():
        parameter.requires_grad = False
    model.fc = nn.Linear(model.fc.in_features, 2)
    criterion = nn.CrossEntropyLoss()
    optimizer = torch.optim.SGD(model.fc.parameters(), lr=0.001, momentum=0.9)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, step_size=7, gamma=0.1)
    parts = loaders(options.data, 4, options.workers)
    top1 = 0.0
    for _ in range(options.epochs):
        for part, batches in parts.items():
            model.train(part == "train")
            right = 0
            for images, labels in batches:
                optimizer.zero_grad()
                with torch.set_grad_enabled(part == "train"):
                    logits = model(images)
                    loss = criterion(logits, labels)
                    if part == "train":
                        loss.backward()
                        optimizer.step()
                right += (logits.argmax(1) == labels).sum().item()
            top1 = right / len(batches.dataset)
        scheduler.step()
    return {"seconds": time.perf_counter() - start, "top1": top1}


def start(options: argparse.Namespace) -> dict:
    """The time to import Python's modules is not counted."""
    import timm
    from safetensors.torch import load_file, save_file

    if not options.weights.exists():
        save_file(timm.create_model("resnet50").state_dict(), options.weights)
    begun = time.perf_counter()
    model = timm.create_model("resnet50")
    model.load_state_dict(load_file(options.weights))
    model.eval()
    loaded = time.perf_counter() - begun
    with torch.inference_mode():
        model(torch.zeros(1, 3, 224, 224))
    return {"loaded_ms": loaded * 1e3, "predicted_ms": (time.perf_counter() - begun) * 1e3}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["loader", "start", "tutorial"])
    parser.add_argument("--data", type=Path)
    parser.add_argument("--weights", type=Path, default=Path("resnet18.random.safetensors"))
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(1)
    line = {"peer": f"torch {torch.__version__}", "what": options.what}
    line |= {"loader": loader, "start": start, "tutorial": tutorial}[options.what](options)
    print(json.dumps(line))


if __name__ == "__main__":
    main()
