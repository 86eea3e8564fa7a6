#!/usr/bin/env python3
"""Runs this crate and PyTorch in turn, A B A B, and prints ratios of time and of peak memory: ours over theirs.

    cargo build --release --example bench_step
    python benches/peers/race.py resnet18:8:224 resnet50:8:224     # ARCHITECTURE:BATCH:PIXELS
    python benches/peers/race.py --modes train --rounds 3 cifar_resnet20:128:32
    (cd benches/peers/candle && cargo build --release)
    python benches/peers/race.py --ways candle --steps 3 resnet18:8:224
    (cd benches/peers/burn && cargo build --release)
    python benches/peers/race.py --ways burn --steps 3 resnet18:8:224

Machines differ and are never quite idle, so compare ratios of one run, not times of different runs. The Python that
runs this needs torch, torchvision and timm; everything else is in this repository.
"""

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
OURS = ROOT / "target" / "release" / "examples" / "bench_step"
CANDLE = ROOT / "benches" / "peers" / "candle" / "target" / "release" / "candle-peer"
BURN = ROOT / "benches" / "peers" / "burn" / "target" / "release" / "burn-peer"
WAYS = ["nchw", "channels_last", "bf16"]


def run(command: list[str]) -> dict:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        sys.exit(f"{' '.join(command)}: {done.stderr.strip()}")
    return json.loads(done.stdout.splitlines()[-1])


def peer(way: str, options: argparse.Namespace, case: list[str], mode: str) -> list[str]:
    """The command that runs a peer; `way` is one of PyTorch's, or candle or burn, which have ResNet-18 only."""
    arch, batch, size = case
    numbers = [str(options.threads), str(options.steps)]
    programs = {"candle": options.candle, "burn": options.burn}
    if way in programs:
        return [str(programs[way]), batch, size, mode, *numbers]
    script = str(Path(__file__).with_name("torch_step.py"))
    named = ["--arch", arch, "--batch", batch, "--size", size, "--threads", numbers[0], "--steps", numbers[1]]
    return [sys.executable, script, *named, "--mode", mode, "--way", way]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cases", nargs="+", metavar="ARCHITECTURE:BATCH:PIXELS")
    parser.add_argument("--modes", default="train,frozen")
    parser.add_argument("--ways", default=",".join(WAYS))
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--steps", type=int, default=15)
    parser.add_argument("--candle", type=Path, default=CANDLE, help="the program of benches/peers/candle")
    parser.add_argument("--burn", type=Path, default=BURN, help="the program of benches/peers/burn")
    options = parser.parse_args()

    ways = options.ways.split(",")
    theirs = " | ".join(f"{way} ms | of it" for way in ways)
    print(f"| case | mode | ours ms | {theirs} | ours MB | least of theirs MB | of it |")
    print("|" + "---|" * (6 + 2 * len(ways)))
    for case in options.cases:
        arch, batch, size = case.split(":")
        common = ["--arch", arch, "--batch", batch, "--size", size]
        common += ["--threads", str(options.threads), "--steps", str(options.steps)]
        for mode in options.modes.split(","):
            rows: dict[str, list[dict]] = {}
            for _ in range(options.rounds):
                rows.setdefault("ours", []).append(run([str(OURS), *common, "--mode", mode, "--json"]))
                for way in ways:
                    rows.setdefault(way, []).append(run(peer(way, options, [arch, batch, size], mode)))
            time = {who: statistics.median(r["median_ms"] for r in found) for who, found in rows.items()}
            memory = {who: max(r["peak_rss_mb"] for r in found) for who, found in rows.items()}
            least = min(memory[way] for way in ways)
            cells = " | ".join(f"{time[way]:.0f} | {time['ours'] / time[way]:.2f}" for way in ways)
            ours = f"{memory['ours']:.0f} | {least:.0f} | {memory['ours'] / least:.2f}"
            print(f"| {arch}, batch {batch}, {size} px | {mode} | {time['ours']:.1f} | {cells} | {ours} |", flush=True)


if __name__ == "__main__":
    main()
