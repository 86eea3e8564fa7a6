"""Checks event files with TensorBoard's own code. Made with TensorBoard 2.21.0 and protobuf 7.36.2, Python 3.11.

    python3 -m venv venv && venv/bin/pip install tensorboard
    venv/bin/python tensorboard.py > events.tfevents    the records of the Rust test, by TensorBoard's writer
    venv/bin/python tensorboard.py FOLDER LOG.jsonl     compares a run's tags, steps and values with its lines of JSON
"""

import json
import math
import sys

import numpy as np

# This file has the package's name, and Python looks in its folder first.
sys.path.pop(0)

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.compat.proto.event_pb2 import Event, SessionLog
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.summary.writer.record_writer import RecordWriter

TIME = 1_800_000_000.25


def scalars(after, step, values):
    summary = Summary(value=[Summary.Value(tag=tag, simple_value=value) for tag, value in values])
    return Event(wall_time=TIME + after, step=step, summary=summary)


def start(after, step):
    return Event(wall_time=TIME + after, step=step, session_log=SessionLog(status=SessionLog.START))


def write(out):
    writer = RecordWriter(out)
    for event in [
        Event(wall_time=TIME, file_version="brain.Event:2"),
        start(1, 0),
        scalars(2, 1, [("train/loss", 1.5), ("train/lr", 1e-3)]),
        scalars(3, 300, [("valid/top1", 0.0), ("valid/" + "x" * 200, math.nan)]),
        start(4, 301),
        scalars(5, 2**32 - 1, [("train/loss", math.inf)]),
    ]:
        writer.write(event.SerializeToString(deterministic=True))


def expected(log):
    """The scalars of a run by tag, as {step: value}: a run that resumes repeats the steps after its checkpoint."""
    tags, metric = {}, None

    def put(tag, step, value):
        if value is not None:
            tags.setdefault(tag, {})[step] = np.float32(value)

    for line in map(json.loads, open(log)):
        if line["event"] == "start":
            metric = line["report"]["metric"]
        elif line["event"] == "resumed":
            for values in tags.values():
                for step in [step for step in values if step > line["step"]]:
                    del values[step]
        elif line["event"] == "head_fit":
            for name in ["loss", "top1"]:
                put(f"valid/{name}", 0, line[f"valid_{name}"])
        elif line["event"] == "step":
            for name in ["loss", "lr", "gradient_norm"]:
                put(f"train/{name}", line["run_step"], line[name])
        elif line["event"] == "epoch":
            step = line["run_step"]
            for tag in ["epoch/train_loss", "epoch/train_top1"]:
                put(tag, step, line[tag.split("/")[1]])
            put("valid/loss", step, line["valid_loss"])
            put("valid/top1", step, line["valid_top1"])
            if metric not in ["top1", "loss"]:
                put(f"valid/{metric}", step, line["valid_metric"])
    return tags


def compare(folder, log):
    reader = EventAccumulator(folder, size_guidance={"scalars": 0})
    reader.Reload()
    tags = expected(log)
    assert sorted(reader.Tags()["scalars"]) == sorted(tags), (reader.Tags()["scalars"], sorted(tags))
    for tag, values in tags.items():
        # An epoch that ended at the checkpoint is told twice, with the same value.
        found = {event.step: np.float32(event.value) for event in reader.Scalars(tag)}
        steps = [event.step for event in reader.Scalars(tag)]
        assert steps == sorted(steps) and found.keys() == values.keys(), (tag, steps, sorted(values))
        for step, value in values.items():
            assert np.array_equal(found[step], value, equal_nan=True), (tag, step, found[step], value)
        print(f"{tag}: {len(steps)} values at steps {steps[0]} to {steps[-1]}")


if len(sys.argv) == 3:
    compare(*sys.argv[1:])
else:
    write(sys.stdout.buffer)
