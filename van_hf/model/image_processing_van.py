# Copyright 2026 The van_hf authors.
# Licensed under the Apache License, Version 2.0; see LICENSE.
"""Image processor of VAN: the test pipeline of the original segmentation code, and its way back to label maps."""

import math
import os
from collections.abc import Mapping, Sequence

import numpy as np
import PIL.ExifTags
import PIL.Image
import PIL.ImageOps
import torch
import torch.nn.functional as F
import torchvision.transforms.v2.functional as tvF
from transformers.image_processing_backends import TorchvisionBackend
from transformers.image_processing_outputs import SemanticSegmentationPostProcessorOutput
from transformers.image_processing_utils import BatchFeature
from transformers.image_transforms import group_images_by_shape, reorder_images
from transformers.image_utils import (
    IMAGENET_DEFAULT_MEAN,
    IMAGENET_DEFAULT_STD,
    ChannelDimension,
    PILImageResampling,
    SizeDict,
    load_image,
    pil_torch_interpolation_mapping,
)
from transformers.processing_utils import ImagesKwargs, Unpack

from .interpolation import half_pixel_positions, keep_ratio_size
from .upsampled_scores import upsampled_argmax

IGNORE_INDEX = 255
MAX_VALUE, MIN_STD = 3e38, 1e-30  # of bands, as float32 has them
CHANNELS = (1, 3, 4)  # that a picture can have
MAP_MODES = ("1", "L", "P", "I")  # PIL modes of one integer channel; "I;16" and its variants besides


def reduce_labels(labels: torch.Tensor) -> torch.Tensor:
    """Turn raw ids, where 0 means "other", into class ids: 0 -> 255 (ignored), k -> k - 1, and 255 stays 255.

    Args:
        labels: raw ids 0..255, an integer tensor of any shape; int8 and bool cannot hold 255 and are refused.

    Returns:
        A new tensor of the same shape and dtype.

    Raises:
        ValueError: `labels` has another dtype, or ids outside 0..255.
    """
    if labels.is_floating_point() or labels.dtype in (torch.bool, torch.int8):
        raise ValueError(f"labels has dtype {labels.dtype}; reduce_labels needs uint8 or a wider integer dtype")
    if labels.dtype != torch.uint8 and labels.numel():
        low, high = (bound.item() for bound in labels.aminmax())
        if low < 0 or high > IGNORE_INDEX:
            raise ValueError(f"labels holds ids from {low} to {high}; reduce_labels takes raw ids 0..{IGNORE_INDEX}")
    return torch.where((labels == 0) | (labels == IGNORE_INDEX), IGNORE_INDEX, labels - 1)


def check_bands(bands: Sequence[int]) -> None:
    """Raise a ValueError where these are no numbers of bands: whole, from 1, and no two alike."""
    are_numbers = isinstance(bands, (list, tuple)) and all(type(band) is int and band >= 1 for band in bands)
    if not are_numbers or not bands or len(set(bands)) < len(bands):
        raise ValueError(f"bands must be numbers of bands, from 1 and each once, such as [4, 3, 2, 8]; got {bands}")


def check_band_values(bands: Sequence[int], name: str, values, are_deviations: bool = False) -> None:
    """Raise a ValueError where values are no numbers of float32, one for each band; deviations must be above 0."""
    are_numbers = isinstance(values, (list, tuple)) and all(isinstance(value, (int, float)) for value in values)
    if not are_numbers or len(values) != len(bands) or not all(abs(value) <= MAX_VALUE for value in values):
        raise ValueError(f"{name} is {values}; it must have a finite number for each of the bands {list(bands)}")
    flat = [str(band) for band, value in zip(bands, values, strict=True) if are_deviations and value < MIN_STD]
    if flat:
        raise ValueError(
            f"{name} is {list(values)}; it must be above 0, and is not for band(s) {', '.join(flat)}. A band that is "
            "the same everywhere teaches nothing: leave it out"
        )


def check_rgb_bands(bands: Sequence[int], rgb_bands: Sequence[int]) -> None:
    """Raise a ValueError where these are not one or three of `bands`, to be drawn as grey or red, green and blue."""
    is_list = isinstance(rgb_bands, (list, tuple))
    if not is_list or len(rgb_bands) not in (1, 3) or not set(rgb_bands) <= set(bands):
        raise ValueError(f"rgb_bands must be one or three of the bands {list(bands)}, got {rgb_bands}")


def ignore_missing(labels: torch.Tensor, image: torch.Tensor) -> torch.Tensor:
    """Return labels, integers (..., height, width), 255 too where an image, (bands, height, width), has NaN alone."""
    return labels.masked_fill(image.isnan().all(dim=0), IGNORE_INDEX)


def orientation_of(image: PIL.Image.Image) -> int:
    """Return the EXIF orientation, 1 (upright) to 8; those above 4 exchange height and width."""
    orientation = image.getexif().get(PIL.ExifTags.Base.Orientation, 1)
    return orientation if orientation in range(1, 9) else 1


def upright(image: PIL.Image.Image) -> PIL.Image.Image:
    """Return a picture turned as its EXIF orientation says, and itself, not a copy, where it is upright."""
    return PIL.ImageOps.exif_transpose(image) if orientation_of(image) != 1 else image


def upright_size(image: PIL.Image.Image) -> tuple[int, int]:
    """Return the size `(height, width)` that a picture has upright, whether or not it is loaded yet."""
    if image.format == "TIFF" and orientation_of(image) != 1:
        image.load()  # by which Pillow turns TIFFs, and no others
    width, height = image.size
    return (width, height) if orientation_of(image) > 4 else (height, width)


def resize_steps(height: int, width: int, size: SizeDict, size_divisor: int) -> list[tuple[int, int]]:
    """Return the sizes `(height, width)` a picture goes through; the last one is its processed size.

    With `shortest_edge` (and `longest_edge`): mmcv's keep-ratio rule, then each side up to the next multiple of
    `size_divisor`; the original code resizes twice too. With `height` and `width`: that size, whatever the divisor.

    Raises:
        ValueError: `size` has neither form, or a side or the divisor is less than 1.
    """
    if height < 1 or width < 1:
        raise ValueError(f"a picture of {height}x{width} pixels has no area")
    if size_divisor < 1:
        raise ValueError(f"size_divisor is {size_divisor}; it must be 1 or more")
    has_size = bool(size.height and size.width)
    if not (has_size or size.shortest_edge) or any(side < 1 for side in dict(size).values()):
        raise ValueError(
            f"size is {dict(size)}; it must have 'shortest_edge' (and 'longest_edge'), or 'height' and 'width', in"
            " pixels"
        )
    if has_size:
        return [(size.height, size.width)]
    keep_ratio = keep_ratio_size(height, width, size.shortest_edge, size.longest_edge)
    return [keep_ratio, tuple(math.ceil(side / size_divisor) * size_divisor for side in keep_ratio)]


class VanImageProcessorKwargs(ImagesKwargs, total=False):
    """
    size_divisor (`int`, *optional*, defaults to `self.size_divisor`):
        After the keep-ratio resize, a second one brings each side up to the next multiple of this.
    do_reduce_labels (`bool`, *optional*, defaults to `self.do_reduce_labels`):
        Whether the segmentation maps' 0 means "other": 0 becomes 255 (ignored) and k becomes k - 1.
    bands (`list[int]`, *optional*):
        The numbers that the model's channels have as bands in files, from 1, for pictures of more than three
        channels or 8 bits. For the processor as a whole, not for one call.
    rgb_bands (`list[int]`, *optional*):
        The bands, one or three, that are drawn where a picture of bands is to be looked at.
    """

    size_divisor: int | None
    do_reduce_labels: bool | None
    bands: list[int] | None
    rgb_bands: list[int] | None


class VanImageProcessor(TorchvisionBackend):
    """Turn pictures into `pixel_values` (batch, 3, height, width) as the original segmentation code does in testing.

    By default: keep-ratio resize to a short side of at most 512 and a long side of at most 2048 pixels, a second
    resize with each side up to the next multiple of 32, normalisation with ImageNet's mean and standard deviation.
    Bilinear resizing has no antialiasing and gives the 8-bit values of OpenCV, with which the models were trained.

    Args:
        size: `{"shortest_edge": int, "longest_edge": int}` keeps the ratio (the long side may be left out);
            `{"height": int, "width": int}` is taken as it is, with a single resize and no rounding to a multiple.
        size_divisor: multiple that the sides are brought up to after a keep-ratio resize; 1 leaves them.
        resample: PIL's filter; all but bilinear go through torchvision, without antialiasing too.
        do_resize: when False, pictures keep their sizes (the models take any) and are only padded to one another.
        do_rescale, rescale_factor, do_normalize, image_mean, image_std: as everywhere in transformers. With
            `do_rescale=False`, pictures of floats are taken as they are.
        do_pad: pad the pictures of a batch at the right and the bottom to the largest, with 0 after normalisation
            (the mean colour), and their labels with 255.
        do_convert_rgb: bring every mode to RGB; transparent pictures are laid over white.
        do_reduce_labels: see `reduce_labels`; concerns segmentation maps only.
        bands: the numbers that the model's channels have as bands in files, from 1. Pictures are then arrays or
            tensors of as many channels, in this order, of values of any range, which `image_mean` and `image_std`
            are of. They stay as they are (`do_rescale` is False by default), and NaN, for pixels without data,
            becomes 0 after normalization, which is the mean.
        rgb_bands: those of `bands`, one or three, that are drawn as grey, or as red, green and blue, where a picture
            is to be looked at; by default the first three, or the first one of fewer.

    Raises:
        ValueError: `bands` or `rgb_bands` are no numbers of bands, or there is no mean and positive standard deviation
            for each of `bands`.
    """

    valid_kwargs = VanImageProcessorKwargs
    model_input_names = ["pixel_values"]
    resample = PILImageResampling.BILINEAR
    image_mean = IMAGENET_DEFAULT_MEAN
    image_std = IMAGENET_DEFAULT_STD
    size = {"shortest_edge": 512, "longest_edge": 2048}
    size_divisor = 32
    default_to_square = False
    do_resize = True
    do_rescale = True
    rescale_factor = 1 / 255
    do_normalize = True
    do_pad = True
    do_convert_rgb = True
    do_reduce_labels = False
    bands = None
    rgb_bands = None

    def __init__(self, **kwargs: Unpack[VanImageProcessorKwargs]):
        if kwargs.get("bands") is not None:
            kwargs.setdefault("do_rescale", False)
        super().__init__(**kwargs)
        if self.bands is not None:
            self._check_bands()

    def _check_bands(self):
        check_bands(self.bands)
        if not self.do_normalize:
            raise ValueError("do_normalize must be True with bands, whose values may be of any range")
        for name in ("image_mean", "image_std"):
            check_band_values(self.bands, name, getattr(self, name), are_deviations=name == "image_std")
        if self.rgb_bands is not None:
            check_rgb_bands(self.bands, self.rgb_bands)

    @property
    def num_channels(self) -> int:
        """Channels of the pictures that the model takes."""
        return 3 if self.bands is None else len(self.bands)

    @property
    def drawn_bands(self) -> list[int]:
        """The bands to draw: `rgb_bands`, or the first three of `bands`, or the first one of fewer."""
        return list(self.rgb_bands or self.bands[: 3 if len(self.bands) >= 3 else 1])

    def get_resized_size(self, height: int, width: int) -> tuple[int, int]:
        """Return the size `(height, width)` at which a picture of `height` x `width` pixels is processed, unpadded."""
        if not self.do_resize:
            return height, width
        return resize_steps(height, width, self.size, self.size_divisor)[-1]

    def preprocess(self, images, segmentation_maps=None, **kwargs: Unpack[VanImageProcessorKwargs]) -> BatchFeature:
        """Prepare one picture or a batch.

        Args:
            images: a PIL image (turned upright by its EXIF tag), a path, a URL, a numpy array or torch tensor
                `(height, width)`, `(channels, height, width)` or `(height, width, channels)` with 1, 3 or 4 (RGBA)
                channels, a list of these, or an array or tensor with a batch dimension in front. Where both ends could
                be channels, as of `(4, 640, 3)`, arrays have them last and tensors first; `input_data_format`
                ("channels_first" or "channels_last") says otherwise. Integers are 0..255, 16-bit pictures (`uint16`,
                mode `I;16`) are scaled down to 8 bits, floats are 0..1. With `bands`, arrays or tensors of as many
                channels, of integers or floats of any range, NaN where there is no data.
            segmentation_maps: one map of ids per picture, with the upright picture's size: PIL images of one channel
                (palette indices are the ids; a map with an EXIF tag of its own is turned upright), paths, or integer
                arrays or tensors `(height, width)`; a list of these, or an array or tensor with a batch dimension.
            kwargs: any of the processor's parameters, for this call; `return_tensors`, `device`.

        Returns:
            `pixel_values`: float32 (3, height, width) each, `labels`: int64 (height, width) each, if maps were
            given; stacked to a batch when `return_tensors` is given.

        Raises:
            ValueError: a picture or map is not one of the above; the message names it and what was found.
        """
        for name in ("bands", "rgb_bands"):
            given, own = kwargs.pop(name, None), getattr(self, name)
            if given is not None and list(given) != list(own or ()):
                raise ValueError(f"{name} {list(given)} are not this processor's, {own}: make one that has them")
        return super().preprocess(images, segmentation_maps, **kwargs)

    def process_image(
        self, image, do_convert_rgb=None, input_data_format=None, device=None, do_rescale=None, **kwargs
    ) -> torch.Tensor:
        """Return a picture as uint8 (channels, height, width), or as float32 where it is floats not to be rescaled.

        With `bands` it is float32 (bands, height, width), with NaN for all that is not finite.
        """
        if isinstance(image, PIL.Image.Image):
            if self.bands is not None:
                raise ValueError(
                    f"found a PIL image; this processor takes arrays of the bands {list(self.bands)}, such as"
                    " van_hf.data.read_bands returns of a TIFF file"
                )
            image, input_data_format = _pil_to_array(image, do_convert_rgb), ChannelDimension.LAST
        pixels = _to_tensor(image)
        channels = CHANNELS if self.bands is None else (len(self.bands),)
        if pixels.ndim == 2:
            pixels, input_data_format = pixels[None], ChannelDimension.FIRST
        if input_data_format is None:
            axis = _channel_axis(image, pixels.shape, channels)
        else:
            axis = 0 if ChannelDimension(input_data_format) == ChannelDimension.FIRST else -1
        if pixels.ndim != 3 or axis is None or pixels.shape[axis] not in channels:
            layout = f" as {ChannelDimension(input_data_format).value}" if input_data_format else ""
            wanted = "1, 3 or 4" if self.bands is None else f"{len(self.bands)}"
            raise ValueError(
                f"a picture has 2 dimensions, or 3 with {wanted} channels; found {tuple(pixels.shape)}{layout}"
            )
        if pixels.numel() == 0:
            raise ValueError(f"a picture of shape {tuple(pixels.shape)} has no area")
        pixels = pixels.movedim(axis, 0)
        if self.bands is not None:
            pixels = pixels.to(device, torch.float32)
            return torch.where(pixels.isfinite(), pixels, torch.nan)

        pixels = _to_8_bits(pixels, do_rescale)
        if do_convert_rgb and len(pixels) == 4:
            if pixels.is_floating_point():
                raise ValueError("a picture with 4 channels of floats needs do_rescale=True, or to be made RGB before")
            rgba = PIL.Image.fromarray(np.ascontiguousarray(pixels.permute(1, 2, 0).cpu().numpy()))
            pixels = torch.from_numpy(_pil_to_array(rgba, do_convert_rgb=True)).permute(2, 0, 1).to(pixels.device)
        if do_convert_rgb and len(pixels) == 1:
            pixels = pixels.expand(3, -1, -1)
        return pixels if device is None else pixels.to(device)

    def rescale_and_normalize(
        self, images: torch.Tensor, do_rescale, rescale_factor, do_normalize, image_mean, image_std
    ) -> torch.Tensor:
        """Rescale and normalize (..., channels, height, width); with `bands`, NaN is 0 once it is normalized."""
        arguments = (do_rescale, rescale_factor, do_normalize, image_mean, image_std)
        images = super().rescale_and_normalize(images, *arguments)
        return images.nan_to_num() if self.bands is not None and do_normalize else images

    def resize(self, image: torch.Tensor, size: SizeDict, resample=None, size_divisor: int = 1, **kwargs):
        """Resize (..., channels, height, width) through `resize_steps`; every step ends in the picture's own dtype."""
        interpolation = pil_torch_interpolation_mapping.get(resample, resample)
        for step in resize_steps(*image.shape[-2:], size, size_divisor):
            if step == tuple(image.shape[-2:]):
                continue
            if interpolation == tvF.InterpolationMode.BILINEAR and image.dtype == torch.uint8:
                image = _resize_bilinear_uint8(image, step)
            else:
                image = tvF.resize(image, list(step), interpolation=interpolation, antialias=False)
        return image.contiguous()

    def post_process_semantic_segmentation(
        self,
        outputs,
        target_sizes: Sequence[tuple[int, int]] | torch.Tensor | None = None,
        original_sizes: Sequence[tuple[int, int]] | torch.Tensor | None = None,
        return_segmentation_scores: bool = False,
    ) -> list[torch.Tensor] | list[SemanticSegmentationPostProcessorOutput]:
        """Turn logits into label maps, each picture's own area cut out of the padded batch.

        The area follows from the sizes the pictures had before processing, through this processor's resize rule.
        Where `original_sizes` is not given, `target_sizes` are taken for them if they explain the logits' size. If
        they do not, and are all the same, they are read as mere output sizes of a batch without padding.

        Args:
            outputs: the model's outputs, or any mapping, with `logits` (batch, num_labels, height / s, width / s),
                rounded up, for any s that is a power of 2.
            target_sizes: `(height, width)` in pixels of each map; None leaves them at the logits' size.
            original_sizes: `(height, width)` in pixels of each picture as it was given to the processor.
            return_segmentation_scores: return the scores too, (num_labels, height, width) float32 for each picture.

        Returns:
            For each picture a map (height, width) of class ids, int64; or an object with `segmentation` and
            `segmentation_scores`.

        Raises:
            ValueError: the number of sizes is not the batch size, or the sizes do not explain the logits' size.
        """
        logits = outputs["logits"] if isinstance(outputs, Mapping) else outputs.logits
        target_sizes = _to_sizes(target_sizes, "target_sizes", len(logits))
        original_sizes = _to_sizes(original_sizes, "original_sizes", len(logits))
        areas = self._own_areas(logits, target_sizes, original_sizes)

        results = []
        for picture, (rows, columns), size in zip(logits, areas, target_sizes or areas, strict=True):
            own = picture[:, :rows, :columns].float()
            if not return_segmentation_scores:
                results.append(upsampled_argmax(own[None], size)[0])
                continue
            scores = F.interpolate(own[None], size=size, mode="bilinear", align_corners=False)[0]
            data = {"segmentation": scores.argmax(dim=0), "segmentation_scores": scores}
            results.append(SemanticSegmentationPostProcessorOutput(data=data))
        return results

    def _own_areas(self, logits, target_sizes, original_sizes) -> list[tuple[int, int]]:
        """Return the rows and columns of the logits that belong to each picture."""
        logits_size = tuple(logits.shape[-2:])
        sizes = original_sizes or target_sizes
        if sizes is None:
            return [logits_size] * len(logits)
        resized = [self.get_resized_size(*size) for size in sizes]
        padded_size = tuple(map(max, zip(*resized, strict=True)))
        # The stride depends on the model's head. No two powers of 2 give the same size, unless it is a single place.
        for stride in (1, 2, 4, 8, 16, 32):
            if _strided(padded_size, stride) == logits_size:
                return [_strided(size, stride) for size in resized]
        if original_sizes is None and len(set(target_sizes)) == 1:
            return [logits_size] * len(logits)
        raise ValueError(
            f"{'original_sizes' if original_sizes else 'target_sizes'} {sizes} are processed at {resized}, which does"
            f" not give logits of {logits_size}. original_sizes must be the sizes that were given to this processor,"
            " with its own parameters; for pictures prepared in another way, post-process them one by one"
        )

    def _validate_preprocess_kwargs(self, do_center_crop=None, pad_size=None, **kwargs):
        for name, value in {"do_center_crop": do_center_crop, "pad_size": pad_size}.items():
            if value:
                raise ValueError(f"{name}={value} is not supported: post-processing could not undo it; leave it out")
        super()._validate_preprocess_kwargs(**kwargs)

    def _preprocess_image_like_inputs(
        self,
        images,
        segmentation_maps=None,
        *,
        do_convert_rgb,
        do_rescale,
        do_reduce_labels,
        input_data_format=None,
        device=None,
        return_tensors=None,
        **kwargs,
    ) -> BatchFeature:
        images = self._process_each(
            images,
            "images",
            3,
            self.process_image,
            do_convert_rgb=do_convert_rgb,
            input_data_format=input_data_format,
            device=device,
            do_rescale=do_rescale,
        )
        data = {"pixel_values": self._preprocess(images, do_rescale=do_rescale, **kwargs)}
        if segmentation_maps is not None:
            maps = self._process_each(segmentation_maps, "segmentation_maps", 2, _process_map, device=device)
            _check_map_sizes(images, maps)
            if do_reduce_labels:
                maps = [reduce_labels(labels) for labels in maps]
            if self.bands is not None:
                maps = [ignore_missing(labels, image) for image, labels in zip(images, maps, strict=True)]
            kwargs |= {"resample": tvF.InterpolationMode.NEAREST_EXACT, "do_normalize": False}
            maps = self._preprocess(maps, do_rescale=False, fill_value=IGNORE_INDEX, **kwargs)
            data["labels"] = [labels[0].to(torch.int64) for labels in maps]
        return BatchFeature(data=data, tensor_type=return_tensors)

    def _process_each(self, inputs, name: str, ndim: int, process, **kwargs) -> list[torch.Tensor]:
        """Fetch one input or a batch of inputs, `process` each, and name the one that fails."""
        if not isinstance(inputs, (list, tuple)):
            is_batch = isinstance(inputs, (np.ndarray, torch.Tensor)) and inputs.ndim == ndim + 1
            inputs = list(inputs) if is_batch else [inputs]
        if not inputs:
            raise ValueError(f"{name} is empty; give at least one")
        processed = []
        for index, item in enumerate(inputs):
            try:
                processed.append(process(_open_image(item), **kwargs))
            except (OSError, RuntimeError, ValueError) as error:
                source = f" ({item})" if isinstance(item, (str, os.PathLike)) else ""
                raise ValueError(f"{name}[{index}]{source}: {error}") from error
        return processed

    def _preprocess(
        self,
        images: list[torch.Tensor],
        do_resize: bool,
        size: SizeDict,
        size_divisor: int,
        resample,
        do_rescale: bool,
        rescale_factor: float,
        do_normalize: bool,
        image_mean,
        image_std,
        do_pad: bool,
        disable_grouping: bool | None,
        fill_value: int = 0,
        **kwargs,
    ) -> list[torch.Tensor]:
        groups, order = group_images_by_shape(images, disable_grouping=disable_grouping)
        for shape, stacked in groups.items():
            if do_resize:
                stacked = self.resize(stacked, size=size, resample=resample, size_divisor=size_divisor)
            groups[shape] = self.rescale_and_normalize(
                stacked, do_rescale, rescale_factor, do_normalize, image_mean, image_std
            )
        processed = reorder_images(groups, order)
        if do_pad:
            processed = self.pad(processed, fill_value=fill_value, disable_grouping=disable_grouping)
        return processed


def _open_image(source):
    """Open a path, URL or base64 string with PIL; hand back anything else.

    Unlike the parent's loader this keeps a file's own mode: palette indices of maps, transparency, 16 bits.
    """
    if isinstance(source, os.PathLike) or (isinstance(source, str) and os.path.isfile(source)):
        return PIL.Image.open(source)
    return load_image(source) if isinstance(source, str) else source


def _pil_to_array(image: PIL.Image.Image, do_convert_rgb: bool | None) -> np.ndarray:
    """Return the upright picture's pixels, (height, width) or (height, width, channels), uint8, uint16 or bool."""
    image = upright(image)
    if image.mode.startswith("I;16"):
        return np.asarray(image).astype(np.uint16)
    if image.mode in ("I", "F"):
        raise ValueError(
            f"a PIL image of mode {image.mode} has no known range of values;"
            " give it as mode L or I;16, or as an array of uint8, uint16 or floats in 0..1"
        )
    if do_convert_rgb:
        if image.has_transparency_data:
            white = PIL.Image.new("RGBA", image.size, "white")
            image = PIL.Image.alpha_composite(white, image.convert("RGBA"))
        image = image if image.mode == "RGB" else image.convert("RGB")
    return np.array(image)


def _to_tensor(array) -> torch.Tensor:
    if isinstance(array, np.ndarray):
        if array.dtype.kind not in "biuf":
            raise ValueError(f"found an array of dtype {array.dtype}; it must hold integers or floats")
        # The copy makes any byte order, stride and read-only array one that torch takes.
        return torch.from_numpy(np.array(array, dtype=array.dtype.newbyteorder("="), order="C"))
    if not isinstance(array, torch.Tensor):
        raise ValueError(
            f"found a {type(array).__name__}; it must be a PIL image, a path or URL, a numpy array or a torch tensor"
        )
    return array


def _channel_axis(image, shape: Sequence[int], channels: Sequence[int]) -> int | None:
    """Return the axis, first (0) or last (-1), that has one of these numbers of channels; None where neither has.

    Where both have, as of (1, 640, 3) or (4, 480, 3), a torch tensor has them first, and everything else last.
    """
    axes = (0, -1) if isinstance(image, torch.Tensor) else (-1, 0)
    return next((axis for axis in axes if shape and shape[axis] in channels), None)


def _to_8_bits(pixels: torch.Tensor, do_rescale: bool | None) -> torch.Tensor:
    """Bring bool, 16-bit, wider integers of 0..255, and floats of 0..1 to uint8, refusing values out of range."""
    if pixels.dtype == torch.uint8:
        return pixels
    if pixels.dtype == torch.bool:
        return pixels.to(torch.uint8) * 255
    if pixels.dtype == torch.uint16:
        return (pixels.to(torch.int32) >> 8).to(torch.uint8)
    is_float = pixels.is_floating_point()
    if is_float:
        pixels = pixels.to(torch.float32)
        if not pixels.isfinite().all():
            raise ValueError("the picture holds NaN or infinite values")
        if not do_rescale:
            return pixels
    low, high = (bound.item() for bound in pixels.aminmax())
    if low < 0 or high > (1 if is_float else 255):
        allowed = "floats 0..1 (or any, with do_rescale=False)" if is_float else "integers 0..255"
        raise ValueError(f"the picture holds values from {low} to {high}; it must hold {allowed}")
    return (pixels * 255).round().to(torch.uint8) if is_float else pixels.to(torch.uint8)


def _process_map(segmentation_map, device=None) -> torch.Tensor:
    """Return one segmentation map as uint8 or int64 (1, height, width)."""
    if isinstance(segmentation_map, PIL.Image.Image):
        segmentation_map = upright(segmentation_map)
        if segmentation_map.mode not in MAP_MODES and not segmentation_map.mode.startswith("I;16"):
            raise ValueError(
                f"a segmentation map of mode {segmentation_map.mode} holds colours, not one class id per pixel;"
                f" its mode must be one of {', '.join(MAP_MODES)}, I;16"
            )
        segmentation_map = np.array(segmentation_map)
    labels = _to_tensor(segmentation_map)
    if labels.ndim == 3 and (axis := _channel_axis(segmentation_map, labels.shape, (1,))) is not None:
        labels = labels.squeeze(axis)
    if labels.ndim != 2 or labels.numel() == 0 or labels.is_floating_point():
        raise ValueError(
            f"a segmentation map holds integers in (height, width); found {labels.dtype} in {tuple(labels.shape)}"
        )
    labels = labels if labels.dtype == torch.uint8 else labels.to(torch.int64)
    return labels[None].to(device)


def _check_map_sizes(images: list[torch.Tensor], maps: list[torch.Tensor]) -> None:
    if len(images) != len(maps):
        raise ValueError(f"found {len(images)} images and {len(maps)} segmentation_maps; each image needs one map")
    for index, (image, labels) in enumerate(zip(images, maps, strict=True)):
        if image.shape[-2:] != labels.shape[-2:]:
            raise ValueError(
                f"images[{index}] has (height, width) {tuple(image.shape[-2:])}, after any turn its EXIF tag asks for,"
                f" and segmentation_maps[{index}] has {tuple(labels.shape[-2:])}; they must be the same"
            )


def _resize_bilinear_uint8(image: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Resize uint8 (..., channels, height, width) as OpenCV does bilinearly, bit for bit.

    OpenCV weighs pixels in 11-bit fixed point and drops bits on the way, so that rounded float interpolation is off
    by one level at an eighth of the pixels, and by two after two resizes.
    """
    left, right, left_weight, right_weight = _fixed_point_taps(image.shape[-1], size[1], image.device)
    top, bottom, top_weight, bottom_weight = _fixed_point_taps(image.shape[-2], size[0], image.device)
    channels = image.shape[-3]
    # Only the rows that are used: of a picture that is millions of pixels high those are few.
    used, places = torch.cat([top, bottom]).unique(return_inverse=True)
    top, bottom = places.chunk(2)
    # Channels last and columns x channels as one dimension: several times faster on the CPU than any other order.
    pixels = image.movedim(-3, -1).index_select(-3, used)
    rows = pixels.index_select(-2, left).flatten(-2).to(torch.int32) * left_weight.repeat_interleave(channels)
    rows.addcmul_(pixels.index_select(-2, right).flatten(-2).to(torch.int32), right_weight.repeat_interleave(channels))
    rows >>= 4
    upper = rows.index_select(-2, top).mul_(top_weight[:, None])
    lower = rows.index_select(-2, bottom).mul_(bottom_weight[:, None])
    upper >>= 16
    lower >>= 16
    resized = (upper.add_(lower).add_(2) >> 2).to(torch.uint8)
    return resized.unflatten(-1, (size[1], channels)).movedim(-1, -3)


def _fixed_point_taps(length: int, new_length: int, device) -> tuple[torch.Tensor, ...]:
    """Return both neighbours of each new pixel along one side, and their weights, which add up to 2048.

    Not `bilinear_taps`: OpenCV splits the weights of a pixel beyond the border too, and drops bits of both parts.
    """
    position = half_pixel_positions(length, new_length).to(torch.float32)
    first = position.floor()
    second_weight = ((position - first) * 2048).round().to(torch.int32)
    first = first.to(torch.int64)
    taps = first.clamp(0, length - 1), (first + 1).clamp(0, length - 1), 2048 - second_weight, second_weight
    return tuple(tap.to(device) for tap in taps)


def _strided(size: tuple[int, int], stride: int) -> tuple[int, int]:
    return math.ceil(size[0] / stride), math.ceil(size[1] / stride)


def _to_sizes(sizes, name: str, batch_size: int) -> list[tuple[int, int]] | None:
    if sizes is None:
        return None
    sizes = [(int(height), int(width)) for height, width in sizes]
    if len(sizes) != batch_size:
        raise ValueError(f"{name} has {len(sizes)} sizes for logits of a batch of {batch_size}; give one per picture")
    return sizes


__all__ = ["VanImageProcessor", "check_band_values", "check_bands", "check_rgb_bands", "reduce_labels"]
