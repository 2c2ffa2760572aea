# Copyright 2026 The van_hf authors.
# Licensed under the Apache License, Version 2.0; see LICENSE.
import argparse
import importlib
import json
import os
import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))
benchmark = importlib.import_module("benchmark")

SIZES = ("--num_images", 5, "--height", 24, "--width", 31, "--num_labels", 9)


def run(*arguments: object) -> int:
    return benchmark.main([str(argument) for argument in arguments])


@pytest.fixture
def here(monkeypatch):
    """Measures in this process: a new one takes seconds to import everything."""
    monkeypatch.setattr(benchmark, "in_new_process", lambda function, *arguments: function(*arguments))


def test_new_processes_are_others():
    assert benchmark.in_new_process(os.getpid) != os.getpid()
    with pytest.raises(ValueError, match="invalid literal"):
        benchmark.in_new_process(int, "none")


def test_the_hubs_algorithm_gives_the_golden_figures(fixtures_dir, tmp_path):
    maps = np.load(fixtures_dir / "mean_iou_cases.npz")
    cases = json.loads((fixtures_dir / "mean_iou_cases.json").read_text())
    number, case = next((idx, case) for idx, case in enumerate(cases) if not case["reduce_labels"])
    metric = benchmark.HubMeanIoU(cache_dir=str(tmp_path))
    for prediction, reference in zip(maps[f"predictions_{number}"], maps[f"references_{number}"], strict=True):
        metric.add_batch(predictions=[prediction], references=[reference])
    assert list(tmp_path.rglob("*.arrow"))
    figures = metric.compute(num_labels=case["num_labels"], ignore_index=case["ignore_index"])
    expected = {name: np.array(case[name], dtype=float) for name in figures}
    assert benchmark.largest_difference(figures, expected) < 1e-12


def test_metric_is_compared_side_by_side(here, tmp_path, capsys):
    assert run("metric", *SIZES, "--repeats", 2, "--json", tmp_path / "metric.json") == 0
    printed = capsys.readouterr().out
    assert "Hub's algorithm" in printed and "growth from 2 to 5 images" in printed
    results = json.loads((tmp_path / "metric.json").read_text())
    assert results["num_images"] == 5 and results["repeats"] == 2
    assert 0 <= results["largest_difference"] < 1e-12
    hub, ours = (results["algorithms"][name] for name in ("hub", "van_hf"))
    assert results["speedup"] == pytest.approx(hub["seconds"] / ours["seconds"])
    assert f"{results['speedup']:.1f} times as fast" in printed
    assert all(row["images_per_second"] == pytest.approx(5 / row["seconds"]) for row in (hub, ours))


def test_algorithms_take_turns(monkeypatch):
    turns = []

    def measure(function, algorithm, *sizes):
        turns.append((algorithm, sizes))
        seconds = {"hub": 4.0, "van_hf": 0.5}[algorithm] + len(turns)
        return {"seconds": seconds, "figures": {"mean_iou": 0.5}, "peak_bytes": [2e6, 3e6]}

    monkeypatch.setattr(benchmark, "in_new_process", measure)
    sizes = {"num_images": 10, "height": 2, "width": 3, "num_labels": 4}
    results = benchmark.compare_metrics(argparse.Namespace(repeats=3, **sizes))
    assert turns == [("hub", (10, 2, 3, 4)), ("van_hf", (10, 2, 3, 4))] * 3
    assert results["algorithms"]["hub"] == {
        "seconds": 7.0,
        "images_per_second": 10 / 7,
        "peak_memory": 3.0,
        "memory_growth": 1.0,
    }
    assert results["speedup"] == 7.0 / 4.5


def test_maps_are_the_same_each_time():
    prediction, reference = benchmark.random_maps(3, 40, 50, 7)
    assert prediction.shape == reference.shape == (40, 50)
    again, other = benchmark.random_maps(3, 40, 50, 7)[0], benchmark.random_maps(4, 40, 50, 7)[0]
    assert (prediction == again).all() and (prediction != other).any()
    counted = reference != 255
    assert counted.mean() == pytest.approx(0.9, abs=0.05)
    assert (prediction == reference)[counted].mean() == pytest.approx(0.5 + 0.5 / 7, abs=0.05)
    assert prediction.max() == reference[counted].max() == 6


def test_peak_memory_sees_what_was_let_go():
    before = benchmark.peak_memory()
    np.ones(before // 8 + 2**22)  # the peak so far and 32 MB
    assert benchmark.peak_memory() > before + 2**24


def test_largest_difference():
    figures = {"mean_iou": 0.5, "per_category_iou": np.array([0.25, np.nan])}
    assert benchmark.largest_difference(figures, figures) == 0
    assert benchmark.largest_difference(figures, {**figures, "mean_iou": 0.75}) == 0.25
    assert benchmark.largest_difference(figures, {**figures, "per_category_iou": np.zeros(2)}) == float("inf")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((), "BENCHMARK"),
        (("metric", "--num_images", "1"), "must be 2 or more: 1"),
        (("metric", "--num_labels", "256"), "must be 2 to 255: 256"),
    ],
)
def test_usage_errors(arguments, message, capsys):
    with pytest.raises(SystemExit) as stopped:
        run(*arguments)
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err
