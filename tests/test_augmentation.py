# Copyright 2026 The van_hf authors.
# Licensed under the Apache License, Version 2.0; see LICENSE.
import colorsys

import numpy as np
import pytest
import torch

from van_hf.data import TrainAugmentation, augmentation


def picture(height, width, seed=0):
    rng = np.random.default_rng(seed)
    image = torch.from_numpy(rng.integers(0, 256, (3, height, width), dtype=np.uint8))
    labels = torch.from_numpy(rng.integers(0, 7, (height, width), dtype=np.uint8))
    return image, labels


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def plain_resize(image, labels, size):
    """The definition: bilinear with half-pixel centers for the picture, floor(i * source / target) for the labels."""
    resized = torch.nn.functional.interpolate(image[None].double(), size, mode="bilinear", align_corners=False)[0]
    rows = [i * labels.shape[0] // size[0] for i in range(size[0])]
    columns = [i * labels.shape[1] // size[1] for i in range(size[1])]
    return resized, labels[rows][:, columns]


@pytest.mark.parametrize(
    "height, width, scale, expected",
    [
        (512, 683, (2048, 512), (512, 683)),
        (683, 512, (2048, 512), (683, 512)),
        (480, 640, (1024, 256), (256, 341)),
        (100, 1000, (2048, 512), (205, 2048)),
        (333, 500, (4096, 1024), (1024, 1538)),
        (1, 300, (30, 10), (1, 30)),
    ],
)
def test_keep_ratio_size(height, width, scale, expected):
    long_side, short_side = scale
    assert augmentation.keep_ratio_size(height, width, short_side, long_side) == expected


def test_crop_equals_resizing_the_whole_picture_and_cropping():
    rng = np.random.default_rng(5)
    for case in range(60):
        height, width = (int(side) for side in rng.integers(1, 90, 2))
        image, labels = picture(height, width, case)
        size = tuple(max(1, int(side * rng.uniform(0.3, 2.6))) for side in (height, width))
        shown = tuple(int(rng.integers(1, min(side, 48) + 1)) for side in size)
        corner = tuple(int(rng.integers(side - part + 1)) for side, part in zip(size, shown, strict=True))
        window = (*corner, *shown)
        whole_image, whole_labels = plain_resize(image, labels, size)
        part = np.s_[..., corner[0] : corner[0] + shown[0], corner[1] : corner[1] + shown[1]]
        torch.testing.assert_close(
            augmentation.resized_crop(image, size, window).double(), whole_image[part], atol=1e-3, rtol=0
        )
        assert augmentation.nearest_resized_crop(labels, size, window).equal(whole_labels[part])


def test_a_part_of_the_picture_gives_the_same_crop():
    image, _ = picture(70, 90)
    for size, window in (((31, 40), (5, 9, 20, 30)), ((140, 181), (90, 0, 50, 60)), ((70, 90), (0, 26, 70, 64))):
        left, top, right, bottom = augmentation.source_box((70, 90), size, window)
        part = augmentation.resized_crop(image[:, top:bottom, left:right], size, window, (70, 90))
        assert part.equal(augmentation.resized_crop(image, size, window))


@pytest.mark.parametrize("reduction", [2, 4, 8])
@pytest.mark.parametrize("source_size", [(64, 96), (67, 93)])
def test_a_reduced_picture_is_not_shifted(source_size, reduction):
    """On a ramp, means over squares and interpolation are both exact."""
    rows, columns = (torch.arange(side) for side in source_size)
    image = torch.stack([(2 * rows)[:, None].expand(source_size), (2 * columns).expand(source_size)])
    reduced = image[:, reduction // 2 - 1 :: reduction, reduction // 2 - 1 :: reduction] + 1
    # What is left over at the end becomes a pixel too; the window below stays away from it.
    missing = [-(-side // reduction) - shown for side, shown in zip(source_size, reduced.shape[1:], strict=True)]
    reduced = torch.nn.functional.pad(reduced, (0, missing[1], 0, missing[0])).byte()
    size = source_size[0] // 9, source_size[1] // 9
    window = (1, 1, size[0] - 3, size[1] - 3)
    left, top, right, bottom = augmentation.source_box(source_size, size, window, reduction)
    crop = augmentation.resized_crop(reduced[:, top:bottom, left:right], size, window, source_size, reduction)
    torch.testing.assert_close(crop, augmentation.resized_crop(image.byte(), size, window), atol=1e-3, rtol=0)


def test_only_the_part_that_is_shown_is_read():
    image, _ = picture(400, 500)
    window, size = (100, 200, 64, 64), (800, 1000)
    changed = image.clone()
    changed[:, :45], changed[:, 90:], changed[:, :, :95], changed[:, :, 140:] = 0, 0, 0, 0
    expected = augmentation.resized_crop(image, size, window)
    assert augmentation.resized_crop(changed, size, window).equal(expected)


@pytest.mark.parametrize("height, width", [(40, 70), (150, 90), (300, 7), (97, 131)])
def test_result_equals_the_plain_pipeline(height, width, monkeypatch):
    """Resize everything, crop, flip, pad: with the same random numbers the same picture."""
    windows = []
    augment = TrainAugmentation(crop_size=64, scale=(256, 64), photometric_distortion=False, flip_probability=1.0)
    choose = augment._choose_crop

    def choose_and_tell(labels, size, *args):
        window, cropped = choose(labels, size, *args)
        windows.append((size, window))
        return window, cropped

    monkeypatch.setattr(augment, "_choose_crop", choose_and_tell)
    image, labels = picture(height, width)
    for seed in range(12):
        result, result_labels = augment(image, labels, generator(seed))
        size, (top, left, rows, columns) = windows[-1]
        whole_image, whole_labels = plain_resize(image, labels, size)
        expected = torch.tensor([124.0, 116.0, 104.0]).double()[:, None, None].repeat(1, 64, 64)
        expected[:, :rows, :columns] = whole_image[:, top : top + rows, left : left + columns].flip(-1)
        expected_labels = torch.full((64, 64), 255, dtype=torch.uint8)
        expected_labels[:rows, :columns] = whole_labels[top : top + rows, left : left + columns].flip(-1)
        assert (result.double() - expected).abs().max() <= 0.501
        assert result_labels.equal(expected_labels)
        assert result.dtype == result_labels.dtype == torch.uint8


def test_ratios_cover_the_range(monkeypatch):
    sizes = []
    augment = TrainAugmentation(crop_size=16, scale=(400, 100), cat_max_ratio=1.0, photometric_distortion=False)
    monkeypatch.setattr(augment, "_draw_window", lambda size, _: sizes.append(size) or (0, 0, 16, 16))
    image, labels = picture(100, 150)
    for seed in range(200):
        augment(image, labels, generator(seed))
    short = [min(size) for size in sizes]
    assert 50 <= min(short) < 60 and 190 < max(short) <= 200


def test_crops_with_one_dominant_label_are_avoided():
    labels = torch.zeros(200, 200, dtype=torch.uint8)
    labels[:, 160:] = 1
    augment = TrainAugmentation(crop_size=50, scale=(200, 200), ratio_range=(1.0, 1.0), photometric_distortion=False)
    image = torch.zeros(3, 200, 200, dtype=torch.uint8)
    crops = [augment(image, labels, generator(seed))[1] for seed in range(60)]
    varied = sum(50 * 50 * 0.25 < (crop == 1).sum() < 50 * 50 * 0.75 for crop in crops)
    assert varied > 40


@pytest.mark.parametrize(
    "counts, varied",
    [({0: 60, 1: 40}, True), ({0: 75, 1: 25}, False), ({0: 74, 1: 26}, True), ({0: 100}, False), ({255: 100}, False)]
    + [({255: 90, 0: 5, 1: 5}, True), ({255: 40, 0: 60}, False)],
)
def test_dominance_counts_labelled_pixels_only(counts, varied):
    labels = torch.tensor([label for label, count in counts.items() for _ in range(count)], dtype=torch.uint8)
    assert TrainAugmentation()._is_varied(labels.view(10, 10)) is varied


@pytest.mark.parametrize("do_reduce_labels", [False, True])
@pytest.mark.parametrize("ratio", [0.5, 1.0, 2.0])
def test_crops_are_laid_around_a_label(ratio, do_reduce_labels):
    """Each of its pixels is as likely, at the border too, and lies anywhere in the crop."""
    labels = torch.full((200, 280), 3, dtype=torch.uint8)
    labels[0, 0] = labels[199, 279] = labels[120:122, 60:62] = 1 + int(do_reduce_labels)
    augment = TrainAugmentation(40, (280, 200), (ratio, ratio), photometric_distortion=False)
    drawn = [augment.draw(labels, generator(seed), do_reduce_labels, shown_label=1) for seed in range(120)]
    windows = np.array([each.window for each in drawn])
    assert (windows[:, 2:] == 40).all()
    place, last = np.array([120, 60]) * ratio, np.ceil(np.array([121, 61]) * ratio)
    is_inside = ((windows[:, :2] <= last) & (place < windows[:, :2] + 40)).all(axis=1)
    is_corner = (windows[:, :2] == 0).all(axis=1) | (windows[:, :2] >= np.array(drawn[0].size) - 41).all(axis=1)
    assert (is_inside | is_corner).all() and 60 <= is_inside.sum() <= 100
    assert np.ptp(place - windows[is_inside, :2], axis=0).min() > 25
    if ratio >= 1:
        assert all((each.labels == 1).any() for each in drawn)


def test_hopeless_pictures_are_cropped_all_the_same():
    image, labels = picture(80, 80)[0], torch.zeros(80, 80, dtype=torch.uint8)
    assert TrainAugmentation(32, (80, 80))(image, labels, generator())[1].shape == (32, 32)


def test_all_randomness_comes_from_the_generator():
    image, labels = picture(90, 120)
    augment = TrainAugmentation(48, (200, 64))
    first = augment(image, labels, generator(4))
    torch.manual_seed(1)
    np.random.seed(1)
    again = augment(image, labels, generator(4))
    assert first[0].equal(again[0]) and first[1].equal(again[1])
    assert not first[0].equal(augment(image, labels, generator(5))[0])


def test_labels_may_be_reduced_crop_by_crop():
    labels = picture(90, 120)[1]
    labels[:20] = 255
    reduced = torch.where((labels == 0) | (labels == 255), 255, labels - 1)
    augment = TrainAugmentation(48, (200, 64), cat_max_ratio=0.2)
    for seed in range(10):
        drawn = augment.draw(labels, generator(seed), do_reduce_labels=True)
        expected = augment.draw(reduced, generator(seed))
        assert drawn.window == expected.window and drawn.distortion == expected.distortion
        assert drawn.labels.equal(expected.labels)


def test_inputs_are_left_as_they_are():
    image, labels = picture(64, 64)
    before = image.clone(), labels.clone()
    for seed in range(10):
        TrainAugmentation(64, (64, 64), (1.0, 1.0))(image, labels, generator(seed))
    assert image.equal(before[0]) and labels.equal(before[1])


def distort(image, **strengths):
    neutral = {"brightness": 0.0, "contrast": 1.0, "saturation": 1.0, "hue": 0.0, "contrast_first": True}
    return augmentation.distort(image, **(neutral | strengths))


def test_neutral_distortion_changes_nothing():
    image = picture(20, 30)[0].float()
    assert distort(image.clone()).equal(image)


@pytest.mark.parametrize(
    "saturation, hue", [(0.5, 0.0), (1.5, 0.0), (1.0, 36.0), (1.0, -36.0), (1.4, -20.0), (0.6, 9.0)]
)
def test_saturation_and_hue_are_those_of_hsv(saturation, hue):
    image = picture(12, 17)[0].float()
    image[:, 0, 0], image[:, 0, 1], image[:, 0, 2] = 0, 255, 128
    image[:, 0, 3] = torch.tensor([200.0, 200.0, 10.0])
    result = distort(image.clone(), saturation=saturation, hue=hue)
    for pixel, changed in zip(image.flatten(1).T.tolist(), result.flatten(1).T.tolist(), strict=True):
        h, s, v = colorsys.rgb_to_hsv(*(channel / 255 for channel in pixel))
        expected = colorsys.hsv_to_rgb((h + hue / 360) % 1, min(1, s * saturation), v)
        np.testing.assert_allclose(changed, np.multiply(expected, 255), atol=0.02)


def test_brightness_and_contrast_are_clamped():
    image = torch.tensor([0.0, 100.0, 250.0])[:, None, None].expand(3, 2, 2).clone()
    assert distort(image, brightness=30.0)[:, 0, 0].tolist() == [30, 130, 255]
    assert distort(image, brightness=-30.0)[:, 0, 0].tolist() == [0, 70, 220]
    assert distort(image, contrast=1.5)[:, 0, 0].tolist() == [0, 150, 255]
    assert distort(image, brightness=30.0, contrast=0.5)[:, 0, 0].tolist() == [15, 65, 127.5]


def test_contrast_comes_before_or_after_saturation():
    image = torch.tensor([240.0, 200.0, 100.0])[:, None, None]
    before = distort(image.clone(), contrast=1.5, saturation=0.5, contrast_first=True).flatten().tolist()
    after = distort(image.clone(), contrast=1.5, saturation=0.5, contrast_first=False).flatten().tolist()
    np.testing.assert_allclose(before, [255, 255, 202.5])
    np.testing.assert_allclose(after, [255, 255, 255])


def test_strengths_are_drawn_half_of_the_time_and_within_range():
    source = generator()
    drawn = [augmentation.draw_distortion(source) for _ in range(400)]
    for name, neutral, low, high in (
        ("brightness", 0, -32, 32),
        ("contrast", 1, 0.5, 1.5),
        ("saturation", 1, 0.5, 1.5),
        ("hue", 0, -36, 36),
    ):
        active = [strengths[name] for strengths in drawn if strengths[name] != neutral]
        assert 150 < len(active) < 250
        assert low <= min(active) < low + 0.1 * (high - low) and high - 0.1 * (high - low) < max(active) <= high
    assert 150 < sum(strengths["contrast_first"] for strengths in drawn) < 250


@pytest.mark.parametrize(
    "arguments, field", [({"crop_size": 0}, "crop_size"), ({"ratio_range": (2, 1)}, "ratio_range")]
)
def test_bad_arguments_are_refused(arguments, field):
    with pytest.raises(ValueError, match=field):
        TrainAugmentation(**arguments)
