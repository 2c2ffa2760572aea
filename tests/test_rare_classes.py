# Copyright 2026 The van_hf authors.
# Licensed under the Apache License, Version 2.0; see LICENSE.
import math
import warnings
from collections import Counter

import numpy as np
import pytest
import torch

from van_hf.data import RareClassSampling

PIXELS = np.array([900, 0, 90, 10])
PICTURES = tuple(np.array(numbers, dtype=np.int64) for numbers in ([0, 1, 2, 3, 4], [], [1, 3], [4]))


def test_probabilities_are_those_of_the_paper():
    for temperature in (0.01, 0.1, 10):
        weights = [math.exp((1 - share) / temperature) for share in (0.9, 0.09, 0.01)]
        expected = [weights[0], 0, *weights[1:]]
        sampling = RareClassSampling(PIXELS, PICTURES, temperature)
        assert sampling.probabilities == pytest.approx([weight / sum(weights) for weight in expected])


def test_the_lowest_temperatures_draw_the_rarest_label():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        probabilities = RareClassSampling(PIXELS, PICTURES, 1e-300).probabilities
    assert probabilities.tolist() == [0, 0, 0, 1]


def test_labels_are_drawn_as_often_as_they_should_and_their_pictures_alike():
    sampling = RareClassSampling(PIXELS, PICTURES, 0.5)
    generator = torch.Generator().manual_seed(0)
    drawn = Counter(sampling.draw(generator) for _ in range(4000))
    for label, probability in enumerate(sampling.probabilities):
        pictures = PICTURES[label].tolist()
        for picture in pictures:
            share = drawn.pop((picture, label)) / 4000
            assert share == pytest.approx(probability / len(pictures), abs=0.025)
    assert not drawn


def test_nothing_to_draw_by_is_refused():
    with pytest.raises(ValueError, match="no label occurs"):
        RareClassSampling(np.zeros(4, dtype=np.int64), PICTURES)
    for temperature in (0, -1, math.inf, math.nan):
        with pytest.raises(ValueError, match="temperature must be above 0 and finite"):
            RareClassSampling(PIXELS, PICTURES, temperature)
