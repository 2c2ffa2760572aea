# Copyright 2026 The van_hf authors.
# Licensed under the Apache License, Version 2.0; see LICENSE.
"""The image processor against the original test pipeline, every kind of picture and map, and the way back to maps."""

import json
from types import SimpleNamespace

import numpy as np
import PIL.Image
import pytest
import torch
import torch.nn.functional as F
from transformers.image_utils import SizeDict

from van_hf.model.image_processing_van import VanImageProcessor, reduce_labels, resize_steps

EXIF_ORIENTATION = 0x0112
ROTATE_270 = 6  # shown after a quarter turn clockwise


@pytest.fixture(scope="session")
def processor():
    return VanImageProcessor()


@pytest.fixture(scope="session")
def pixels():
    """A processor that hands out the 8-bit RGB pixels themselves."""
    processor = VanImageProcessor(do_resize=False, do_rescale=True, rescale_factor=1.0, do_normalize=False)
    return lambda image: processor(image, return_tensors="pt")["pixel_values"][0]


def rgb_array(height=6, width=8, channels=3):
    return np.random.default_rng(0).integers(0, 256, (height, width, channels), dtype=np.uint8)


def channels_first(array):
    return torch.from_numpy(array).permute(2, 0, 1).float()


def with_orientation(image):
    image.getexif()[EXIF_ORIENTATION] = ROTATE_270
    return image


def test_sizes_equal_the_original_pipeline(fixtures_dir):
    rows = json.loads((fixtures_dir / "resize_sizes.json").read_text())["rows"]
    assert len(rows) > 50
    for row in rows:
        size = SizeDict(shortest_edge=int(512 * row["ratio"]), longest_edge=int(2048 * row["ratio"]))
        steps = resize_steps(row["height"], row["width"], size, 32)
        assert [list(step) for step in steps] == [row["keep_ratio"], row["multiple_of_32"]], row


def test_pixels_equal_the_original_pipeline(fixtures_dir, processor):
    golden = np.load(fixtures_dir / "preprocess.npz")
    pixel_values = processor(golden["image"], return_tensors="pt")["pixel_values"][0]
    assert list(pixel_values.shape) == golden["output_shape"].tolist()
    stride = int(golden["sample_stride"])
    sample = torch.from_numpy(golden["output_sample"])
    torch.testing.assert_close(pixel_values[:, ::stride, ::stride], sample, rtol=0, atol=1e-5)
    pil = processor(PIL.Image.fromarray(golden["image"]), return_tensors="pt")["pixel_values"][0]
    assert torch.equal(pil, pixel_values)


def resized_by_opencvs_rule(image: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """OpenCV's bilinear resize of uint8 (height, width), one pixel at a time."""

    def taps(length, new_length, idx):
        position = np.float32((idx + 0.5) * (length / new_length) - 0.5)
        first = int(np.floor(position))
        weight = int(np.rint((position - np.float32(first)) * np.float32(2048)))
        return [(min(max(first, 0), length - 1), 2048 - weight), (min(max(first + 1, 0), length - 1), weight)]

    resized = np.zeros(size, dtype=np.uint8)
    for row, column in np.ndindex(*size):
        parts = []
        for top, top_weight in taps(image.shape[0], size[0], row):
            horizontal = sum(int(image[top, left]) * weight for left, weight in taps(image.shape[1], size[1], column))
            parts.append(((horizontal >> 4) * top_weight) >> 16)
        resized[row, column] = (sum(parts) + 2) >> 2
    return resized


@pytest.mark.parametrize("shape", [(30, 40), (5, 900), (900, 5), (1, 70), (70, 1)])
@pytest.mark.parametrize("size", [(1, 1), (7, 9), (33, 4), (2, 50)])
def test_rows_that_no_pixel_lies_at_are_not_needed(shape, size):
    image = rgb_array(*shape, channels=1)
    processor = VanImageProcessor(size=dict(zip(("height", "width"), size, strict=True)), do_normalize=False)
    found = processor(image, rescale_factor=1.0)["pixel_values"][0][0].numpy()
    assert (found == resized_by_opencvs_rule(image[..., 0], size)).all()


def test_size_variants():
    image = rgb_array(60, 40)
    shapes = {
        (30, 50): {"size": {"height": 30, "width": 50}},
        (96, 64): {"size": {"shortest_edge": 64}},
        (96, 66): {"size": {"shortest_edge": 64}, "size_divisor": 6},
        (60, 40): {"do_resize": False},
    }
    for shape, kwargs in shapes.items():
        processor = VanImageProcessor(**kwargs)
        assert processor(image, return_tensors="pt")["pixel_values"].shape[-2:] == shape
        assert processor.get_resized_size(60, 40) == shape
    assert VanImageProcessor().get_resized_size(1, 5000) == (32, 2048)


def test_nearest_resampling_makes_no_new_values(pixels):
    image = np.where(rgb_array() > 127, 255, 0).astype(np.uint8)
    resized = VanImageProcessor(size={"height": 13, "width": 11}, resample=0, do_normalize=False)(image)
    assert set(resized["pixel_values"][0].unique().tolist()) == {0.0, 1.0}


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr", "HSV"])
def test_pil_modes_become_rgb(pixels, mode):
    image = PIL.Image.fromarray(rgb_array())
    image = image.convert("P").convert("PA") if mode == "PA" else image.convert(mode)
    assert torch.equal(pixels(image), channels_first(np.array(image.convert("RGB"))))


def test_transparency_is_laid_over_white_for_pictures_palettes_and_arrays(pixels, tmp_path):
    rgba = rgb_array(channels=4)
    rgba[0, 0, 3] = 0
    image = PIL.Image.fromarray(rgba)
    white = PIL.Image.new("RGBA", image.size, "white")
    expected = channels_first(np.array(PIL.Image.alpha_composite(white, image).convert("RGB")))
    assert expected[:, 0, 0].tolist() == [255, 255, 255]
    image.save(tmp_path / "rgba.png")
    for source in [image, rgba, torch.from_numpy(rgba).permute(2, 0, 1), rgba / 255.0, tmp_path / "rgba.png"]:
        assert torch.equal(pixels(source), expected)

    palette = PIL.Image.new("P", (4, 4), 1)
    palette.putpalette([10, 20, 30, 40, 50, 60])
    palette.info["transparency"] = 1
    assert pixels(palette).unique().tolist() == [255]


def test_16_bit_pictures_are_scaled_not_clipped(pixels, tmp_path):
    gray = rgb_array()[..., 0]
    deep = (gray.astype(np.uint16) << 8) + 77
    expected = torch.from_numpy(gray).float().expand(3, -1, -1)
    image = PIL.Image.fromarray(deep)
    assert image.mode == "I;16"
    image.save(tmp_path / "deep.png")
    for source in [image, str(tmp_path / "deep.png"), deep, deep.astype(">u2"), torch.from_numpy(deep)]:
        assert torch.equal(pixels(source), expected)


def test_arrays_of_every_layout_and_dtype_agree(pixels):
    array = rgb_array()
    expected = channels_first(array)
    read_only = array.copy()
    read_only.setflags(write=False)
    flipped_twice = array[::-1].copy()[::-1]
    sources = [array.transpose(2, 0, 1), read_only, flipped_twice, array.astype(np.int64), torch.from_numpy(array)]
    sources += [array / 255.0, (array / 255.0).astype(np.float32), torch.from_numpy(array).permute(2, 0, 1) / 255]
    for source in sources:
        assert torch.equal(pixels(source), expected)
    gray = expected[:1].expand(3, -1, -1)
    for source in [array[..., 0], array[..., :1], array[..., 0][None]]:
        assert torch.equal(pixels(source), gray)
    assert pixels(np.eye(4, dtype=bool)).unique().tolist() == [0, 255]


@pytest.mark.parametrize("shape", [(1, 1, 3), (4, 640, 3), (3, 5, 3), (1, 9, 3), (3, 1, 1), (4, 4, 4), (1, 7, 1)])
def test_where_both_ends_could_be_channels(pixels, shape):
    array = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    array[..., 3:] = 255  # opaque
    last = torch.from_numpy(array).permute(2, 0, 1)[:3].float().expand(3, -1, -1)
    assert torch.equal(pixels(array), last)
    assert torch.equal(pixels(torch.from_numpy(array).permute(2, 0, 1)), last)
    assert torch.equal(pixels(torch.from_numpy(array)), pixels(array.transpose(1, 2, 0)))

    processor = VanImageProcessor(do_resize=False, rescale_factor=1.0, do_normalize=False)
    for image in (array, torch.from_numpy(array)):
        told = processor(image, input_data_format="channels_last", return_tensors="pt")["pixel_values"][0]
        assert torch.equal(told, last)
        told = processor(image, input_data_format="channels_first", return_tensors="pt")["pixel_values"][0]
        assert told.shape[-2:] == shape[1:]


def test_a_layout_that_a_picture_cannot_have_is_named(processor):
    for layout, message in {
        "channels_last": r"found \(3, 5, 7\) as channels_last",
        "channels_middle": "channels_middle",
    }.items():
        with pytest.raises(ValueError, match=message):
            processor(np.zeros((3, 5, 7)), input_data_format=layout)


def test_floats_are_taken_as_they_are_without_rescaling():
    image = np.linspace(-2, 3, 3 * 8 * 8, dtype=np.float32).reshape(3, 8, 8)
    processor = VanImageProcessor(do_resize=False, do_rescale=False, do_normalize=False)
    assert torch.equal(processor(image, return_tensors="pt")["pixel_values"][0], torch.from_numpy(image))


def test_exif_turns_pictures_and_their_maps_upright(pixels, tmp_path):
    array = rgb_array()
    with_orientation(PIL.Image.fromarray(array)).save(
        tmp_path / "turned.png", exif=with_orientation(PIL.Image.fromarray(array)).getexif()
    )
    upright = channels_first(np.rot90(array, -1).copy())
    assert torch.equal(pixels(with_orientation(PIL.Image.fromarray(array))), upright)
    assert torch.equal(pixels(str(tmp_path / "turned.png")), upright)

    processor = VanImageProcessor(do_resize=False)
    image, labels = with_orientation(PIL.Image.fromarray(array)), array[..., 0]
    turned = processor(image, with_orientation(PIL.Image.fromarray(labels)), return_tensors="pt")["labels"][0]
    assert torch.equal(turned, torch.from_numpy(np.rot90(labels, -1).astype(np.int64)))
    with pytest.raises(ValueError, match=r"images\[0\].*\(8, 6\).*EXIF.*\(6, 8\)"):
        processor(image, labels)


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (None, r"images\[0\]: found a NoneType"),
        ([], "images is empty"),
        ([[np.zeros((4, 4, 3))]], r"images\[0\]: found a list"),
        (np.zeros((1, 2, 3, 4, 4)), r"images\[0\].*found \(1, 2, 3, 4, 4\)"),
        (np.zeros((2, 5, 5)), r"1, 3 or 4 channels; found \(2, 5, 5\)"),
        ([np.zeros((3, 4, 4)), np.zeros((3, 0, 4))], r"images\[1\].*no area"),
        (np.full((4, 4), np.nan), "NaN"),
        (np.full((4, 4), 255.0), r"from 255.0 to 255.0.*floats 0\.\.1"),
        (np.full((4, 4), -1), r"from -1 to -1.*integers 0\.\.255"),
        (np.full((4, 4), "x"), "dtype <U1"),
        (PIL.Image.new("I", (4, 4)), "mode I "),
        (PIL.Image.new("F", (4, 4)), "mode F "),
        ("no_such_file.png", r"images\[0\] \(no_such_file.png\)"),
    ],
)
def test_other_pictures_are_refused(processor, images, message):
    with pytest.raises(ValueError, match=message):
        processor(images)


def test_unsupported_parameters_are_refused(processor):
    image = rgb_array()
    for kwargs, message in [
        ({"do_center_crop": True}, "do_center_crop"),
        ({"pad_size": {"height": 9, "width": 9}}, "pad_size"),
        ({"size": {"longest_edge": 64}}, "shortest_edge"),
        ({"size": {"shortest_edge": -1}}, "size is .*-1"),
        ({"size": {"shortest_edge": 64, "longest_edge": 0}}, "size is .*0"),
        ({"size": {"height": -3, "width": 9}}, "size is .*-3"),
        ({"size_divisor": 0}, "size_divisor is 0"),
    ]:
        with pytest.raises(ValueError, match=message):
            processor(image, **kwargs)


def test_a_broken_file_is_named(processor, tmp_path):
    path = tmp_path / "broken.jpg"
    PIL.Image.fromarray(rgb_array(64, 64)).save(path)
    path.write_bytes(path.read_bytes()[:-400])
    with pytest.raises(ValueError, match=r"images\[1\].*broken.jpg.*truncated"):
        processor([rgb_array(), path])


def test_reduce_labels_is_exact_in_every_dtype():
    raw, reduced = [0, 1, 150, 254, 255], [255, 0, 149, 253, 255]
    for dtype in (torch.uint8, torch.int16, torch.int64):
        labels = reduce_labels(torch.tensor(raw, dtype=dtype))
        assert labels.dtype == dtype and labels.tolist() == reduced
    for bad in [torch.tensor([300]), torch.tensor([-1]), torch.tensor([1.0]), torch.tensor([1], dtype=torch.int8)]:
        with pytest.raises(ValueError, match="labels"):
            reduce_labels(bad)


def test_segmentation_maps_of_every_type(tmp_path):
    ids = np.arange(48, dtype=np.uint8).reshape(6, 8)
    palette = PIL.Image.fromarray(ids)
    palette.putpalette([value for value in range(256) for _ in range(3)][::-1])
    assert palette.mode == "P"
    palette.save(tmp_path / "map.png")
    wide = [PIL.Image.fromarray(ids.astype(np.uint16)), PIL.Image.fromarray(ids.astype(np.int32))]
    assert [image.mode for image in wide] == ["I;16", "I"]
    arrays = [ids, ids.astype(np.uint16), ids[None], ids[..., None].tolist(), torch.from_numpy(ids).long()]
    arrays[3] = [np.array(arrays[3])]
    processor = VanImageProcessor(do_resize=False)
    for source in [PIL.Image.fromarray(ids), palette, tmp_path / "map.png", *wide, *arrays]:
        labels = processor(rgb_array(), source, return_tensors="pt")["labels"]
        assert labels.dtype == torch.int64 and torch.equal(labels[0], torch.from_numpy(ids).long())
    labels = processor(rgb_array(), ids, do_reduce_labels=True, return_tensors="pt")["labels"]
    assert torch.equal(labels[0], reduce_labels(torch.from_numpy(ids).long()))


def test_maps_of_one_row_or_column():
    ids = np.arange(7, dtype=np.uint8)[None]
    processor = VanImageProcessor(do_resize=False)
    for height, width in ((1, 7), (7, 1)):
        labels = ids.reshape(height, width)
        for array in (labels, labels[..., None], torch.from_numpy(labels)[None], PIL.Image.fromarray(labels)):
            found = processor(rgb_array(height, width), [array], return_tensors="pt")["labels"][0]
            assert torch.equal(found, torch.from_numpy(labels).long())


def test_segmentation_maps_are_resized_by_nearest_with_their_pictures():
    ids = np.array([[0, 7], [255, 3]], dtype=np.uint8).repeat(30, 0).repeat(20, 1)
    processor = VanImageProcessor(size={"shortest_edge": 64}, do_reduce_labels=True)
    batch = processor(rgb_array(60, 40), ids, return_tensors="pt")
    assert batch["labels"].shape == (1, 96, 64) == (1, *batch["pixel_values"].shape[-2:])
    corners = torch.tensor([[255, 6], [255, 2]]).repeat_interleave(48, 0).repeat_interleave(32, 1)
    assert torch.equal(batch["labels"][0], corners)


@pytest.mark.parametrize(
    ("maps", "message"),
    [
        (PIL.Image.new("RGB", (8, 6)), r"segmentation_maps\[0\].*mode RGB holds colours"),
        (np.zeros((6, 8, 3), np.uint8), "1 images and 6 segmentation_maps"),
        ([np.zeros((6, 8, 3), np.uint8)], r"\(height, width\); found torch.uint8 in \(6, 8, 3\)"),
        (np.zeros((6, 8)), "found torch.float64"),
        (np.zeros((8, 6), np.uint8), r"images\[0\].*\(6, 8\).*segmentation_maps\[0\] has \(8, 6\)"),
        ([np.zeros((6, 8), np.uint8)] * 2, "1 images and 2 segmentation_maps"),
        ([], "segmentation_maps is empty"),
    ],
)
def test_other_maps_are_refused(processor, maps, message):
    with pytest.raises(ValueError, match=message):
        processor(rgb_array(), maps)


@pytest.mark.parametrize("disable_grouping", [None, False])
def test_batch_of_unequal_sizes_is_padded_at_right_and_bottom(disable_grouping):
    processor = VanImageProcessor(size={"shortest_edge": 32, "longest_edge": 64}, disable_grouping=disable_grouping)
    images = [rgb_array(30, 60), rgb_array(60, 30), rgb_array(30, 60)]
    maps = [np.full(image.shape[:2], index, np.uint8) for index, image in enumerate(images)]
    batch = processor(images, maps, return_tensors="pt")
    assert batch["pixel_values"].shape == (3, 3, 64, 64) and batch["labels"].shape == (3, 64, 64)
    for index, (image, size) in enumerate(zip(images, [(32, 64), (64, 32), (32, 64)], strict=True)):
        alone = processor(image, return_tensors="pt")["pixel_values"][0]
        assert alone.shape[-2:] == size
        padded = F.pad(alone, (0, 64 - size[1], 0, 64 - size[0]))
        assert torch.equal(batch["pixel_values"][index], padded)
        labels = F.pad(torch.full(size, index), (0, 64 - size[1], 0, 64 - size[0]), value=255)
        assert torch.equal(batch["labels"][index], labels)
    unpadded = processor(images, do_pad=False)["pixel_values"]
    assert [tuple(image.shape) for image in unpadded] == [(3, 32, 64), (3, 64, 32), (3, 32, 64)]


def random_logits(*shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def interpolated(logits, size):
    return F.interpolate(logits[None], size=size, mode="bilinear", align_corners=False)[0]


@pytest.mark.parametrize("stride", [1, 4, 8, 32])
def test_post_processing_cuts_each_pictures_own_area_out(stride):
    processor = VanImageProcessor(size={"shortest_edge": 32, "longest_edge": 64})
    own_sizes, areas = [(30, 60), (60, 30)], [(32 // stride, 64 // stride), (64 // stride, 32 // stride)]
    logits = random_logits(2, 5, 64 // stride, 64 // stride)
    outputs = SimpleNamespace(logits=logits)
    cut = [picture[:, :rows, :columns] for picture, (rows, columns) in zip(logits, areas, strict=True)]

    maps = processor.post_process_semantic_segmentation(outputs, target_sizes=own_sizes)
    for found, picture, size in zip(maps, cut, own_sizes, strict=True):
        assert found.dtype == torch.int64 and torch.equal(found, interpolated(picture, size).argmax(0))
    again = processor.post_process_semantic_segmentation({"logits": logits}, torch.tensor(own_sizes))
    assert all(map(torch.equal, maps, again))

    targets = [(10, 20), (33, 7)]
    scored = processor.post_process_semantic_segmentation(outputs, targets, own_sizes, return_segmentation_scores=True)
    for result, picture, size in zip(scored, cut, targets, strict=True):
        assert torch.equal(result.segmentation_scores, interpolated(picture, size))
        assert torch.equal(result.segmentation, result.segmentation_scores.argmax(0))
    small = processor.post_process_semantic_segmentation(outputs, original_sizes=own_sizes)
    assert [tuple(found.shape) for found in small] == areas


def test_post_processing_without_known_areas(processor):
    logits = random_logits(2, 5, 8, 8)
    outputs = SimpleNamespace(logits=logits)
    maps = processor.post_process_semantic_segmentation(outputs)
    assert torch.equal(torch.stack(maps), logits.argmax(1))
    maps = processor.post_process_semantic_segmentation(outputs, target_sizes=[(20, 30)] * 2)
    assert torch.equal(maps[1], interpolated(logits[1], (20, 30)).argmax(0))
    for kwargs, message in [
        ({"target_sizes": [(20, 30)]}, "target_sizes has 1 sizes for logits of a batch of 2"),
        ({"target_sizes": [(20, 30), (30, 20)]}, r"processed at \[\(512, 768\).*give logits of \(8, 8\)"),
        ({"target_sizes": [(20, 30)] * 2, "original_sizes": [(32, 64)] * 2}, r"original_sizes \[\(32, 64\)"),
    ]:
        with pytest.raises(ValueError, match=message):
            processor.post_process_semantic_segmentation(outputs, **kwargs)


def test_of_equal_scores_the_first_class_is_taken(processor):
    logits = random_logits(1, 7, 8, 8)
    logits[:, 5] = logits[:, 2]
    [found] = processor.post_process_semantic_segmentation({"logits": logits}, target_sizes=[(20, 30)])
    assert torch.equal(found, interpolated(logits[0], (20, 30)).argmax(0))


def test_saved_and_loaded_again(tmp_path):
    parameters = {
        "size": {"height": 64, "width": 96},
        "do_reduce_labels": True,
        "size_divisor": 8,
        "image_mean": [0.1, 0.2, 0.3],
    }
    processor = VanImageProcessor(**parameters)
    processor.save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "preprocessor_config.json").read_text())
    assert saved["image_processor_type"] == "VanImageProcessor"
    assert {name: saved[name] for name in parameters} == parameters
    loaded = VanImageProcessor.from_pretrained(tmp_path)
    assert loaded.to_dict() == processor.to_dict()
    image = rgb_array()
    assert torch.equal(loaded(image)["pixel_values"][0], processor(image)["pixel_values"][0])


BANDS = {"bands": [4, 3, 2, 8], "image_mean": [100.0, 200.0, 300.0, -5.0], "image_std": [10.0, 20.0, 30.0, 2.0]}


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int16", "float32", "float64"])
@pytest.mark.parametrize("channels_last", [False, True])
def test_bands_of_any_range_are_normalized_as_they_are(dtype, channels_last):
    processor = VanImageProcessor(**BANDS)
    values = np.random.default_rng(0).integers(0, 200, (4, 40, 50)).astype(dtype)
    array = values.transpose(1, 2, 0) if channels_last else values
    pixel_values = processor(array, do_resize=False, return_tensors="pt")["pixel_values"][0]
    mean, std = (np.array(BANDS[name])[:, None, None] for name in ("image_mean", "image_std"))
    np.testing.assert_allclose(pixel_values, (values.astype(np.float64) - mean) / std, rtol=1e-6, atol=1e-6)
    assert pixel_values.dtype == torch.float32
    resized = processor(torch.from_numpy(values), return_tensors="pt")["pixel_values"]
    assert resized.shape == (1, 4, 512, 640)


def test_bands_without_data_are_the_mean():
    processor = VanImageProcessor(**BANDS, size={"height": 64, "width": 64})
    values = torch.full((4, 32, 32), 250.0)
    values[1, :16], values[2, 0, 0] = torch.nan, torch.inf
    given = values.clone()
    pixel_values = processor([values, values[:, :20]], return_tensors="pt")["pixel_values"]
    assert pixel_values.isfinite().all() and (pixel_values[0, 1, :28] == 0).all()
    torch.testing.assert_close(pixel_values[0, 1, 40:], torch.full((24, 64), 2.5))
    torch.testing.assert_close(values, given, rtol=0, atol=0, equal_nan=True)
    alone = processor(values, return_tensors="pt")["pixel_values"]
    torch.testing.assert_close(pixel_values[:1], alone, rtol=0, atol=0)


def test_bands_are_saved_with_the_processor(tmp_path):
    processor = VanImageProcessor(**BANDS, rgb_bands=[8, 4, 3])
    processor.save_pretrained(tmp_path)
    loaded = VanImageProcessor.from_pretrained(tmp_path)
    assert loaded.to_dict() == processor.to_dict()
    assert (loaded.do_rescale, loaded.num_channels, loaded.drawn_bands) == (False, 4, [8, 4, 3])
    assert VanImageProcessor(**BANDS).drawn_bands == [4, 3, 2]
    assert VanImageProcessor(bands=[7, 5], image_mean=[0, 0], image_std=[1, 1]).drawn_bands == [7]
    assert "bands" not in VanImageProcessor().to_dict()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"bands": [4, 4, 2, 8]}, "each once"),
        ({"bands": [0, 1, 2, 3]}, "from 1"),
        ({"bands": []}, "must be numbers of bands"),
        ({"bands": [1, 2, 3]}, "image_mean is .* a finite number for each of the bands"),
        ({"image_std": [1, 1, 0, 1]}, "above 0"),
        ({"image_mean": [1, 1, float("nan"), 1]}, "a finite number"),
        ({"image_std": 1.0}, "image_std is 1.0"),
        ({"do_normalize": False}, "do_normalize must be True"),
        ({"rgb_bands": [4, 3, 1]}, "rgb_bands must be one or three of the bands"),
        ({"rgb_bands": [4, 3]}, "one or three"),
        ({"rgb_bands": 3}, "one or three"),
        ({"image_mean": ["a", 1, 1, 1]}, "a finite number"),
    ],
)
def test_bands_that_cannot_be_are_told(changes, message):
    with pytest.raises(ValueError, match=message):
        VanImageProcessor(**{**BANDS, **changes})


def test_maps_beside_bands_are_ignored_where_there_are_no_data():
    processor = VanImageProcessor(**BANDS, do_resize=False)
    values = torch.ones(4, 8, 9)
    values[:, :3], values[1, 5] = torch.nan, torch.nan
    labels = processor(values, segmentation_maps=torch.ones(8, 9, dtype=torch.int64), return_tensors="pt")["labels"]
    assert (labels[0, :3] == 255).all() and (labels[0, 3:] == 1).all()


def test_bands_are_not_changed_for_one_call():
    processor = VanImageProcessor(**BANDS)
    processor(torch.ones(4, 8, 8), bands=[4, 3, 2, 8])
    with pytest.raises(ValueError, match=r"bands \[1, 2\] are not this processor's"):
        processor(torch.ones(2, 8, 8), bands=[1, 2])


def test_pictures_that_are_no_bands_are_told():
    processor = VanImageProcessor(**BANDS)
    with pytest.raises(ValueError, match=r"images\[0\]: found a PIL image; .*bands \[4, 3, 2, 8\].*read_bands"):
        processor(PIL.Image.new("RGB", (8, 8)))
    with pytest.raises(ValueError, match=r"3 with 4 channels; found \(3, 8, 9\)"):
        processor(torch.zeros(3, 8, 9))
