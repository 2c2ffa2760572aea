# Copyright 2026 The van_hf authors.
# Licensed under the Apache License, Version 2.0; see LICENSE.
"""Turn a checkpoint of the VAN authors into a folder that `from_pretrained` and `pipeline` load.

    python examples/convert_checkpoint.py upernet_van_b2_512x512_160k_ade20k.pth van-b2-upernet-ade20k

Kind (UperNet, Semantic FPN, Light-Ham, HamNet, classifier) and architecture are inferred from the tensors. OUTPUT_DIR
is written at the end, wholly or not at all.

The exit status is 0; 2 if the arguments or the checkpoint are wrong; 1 if OUTPUT_DIR could not be written after all.
"""

import argparse
import json
import sys

from van_hf import VanForImageClassification, VanForSemanticSegmentation, VanPreTrainedModel
from van_hf.checkpoints import check_output_dir, convert_checkpoint, save_converted
from van_hf.data.label_names import read_id2label
from van_hf.model.configuration_van import DECODE_HEADS, published_size


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", metavar="CHECKPOINT", help="the authors' file: .pth, .pth.tar or .safetensors")
    parser.add_argument("output_dir", metavar="OUTPUT_DIR", help="a new or empty folder")
    parser.add_argument(
        "--id2label",
        metavar="FILE",
        help='JSON file of the class names, {"0": "wall", "1": "building", ...}. By default those in the checkpoint, '
        "or ADE20K's for a segmentation model of 150 classes, ImageNet's for a classifier of 1000.",
    )
    parser.add_argument(
        "--ham_rank",
        type=int,
        metavar="RANK",
        help="rank of the factorization in Light-Ham and HamNet, which no tensor tells. By default the authors': 64, "
        "or 16 with 256 channels.",
    )
    parser.add_argument(
        "--trust_pickle",
        action="store_true",
        help="load a file that holds more than tensors and plain containers. This runs any code in it: use it only "
        "for files whose source you trust.",
    )
    args = parser.parse_args(argv)
    if args.ham_rank is not None and args.ham_rank < 1:
        parser.error(f"--ham_rank must be 1 or more, got {args.ham_rank}")
    return args


def describe(model: VanPreTrainedModel) -> str:
    """Return architecture, size and labels of a converted model, in a line each."""
    config = model.config
    size = published_size(config.hidden_sizes, config.depths)
    name = f"VAN-{size.upper()}" if size else "VAN of a size that was not published"
    if isinstance(model, VanForSemanticSegmentation):
        auxiliary = " and its auxiliary head" if model.auxiliary_head is not None else ""
        head = DECODE_HEADS[config.decode_head]
        rank = f" of rank {config.ham_rank} (no tensor tells it)" if head.has_hamburger else ""
        name += f" with {head.name}{rank}{auxiliary}"
    elif isinstance(model, VanForImageClassification):
        name += ", classifier"
    else:
        name += ", backbone only: the file has no head"
    lines = [
        f"architecture: {name}",
        f"              hidden_sizes {list(config.hidden_sizes)}, depths {list(config.depths)}",
        f"parameters:   {sum(parameter.numel() for parameter in model.parameters()):,}",
    ]
    if isinstance(model, (VanForSemanticSegmentation, VanForImageClassification)):
        names = [config.id2label[idx] for idx in range(config.num_labels)]
        lines.append(f"labels:       {len(names)}: {', '.join(names[:4])}{', ...' if len(names) > 4 else ''}")
    return "\n".join(lines)


def usage(model: VanPreTrainedModel, output_dir: str) -> str:
    """Return the two lines of Python that use the folder."""
    folder = json.dumps(output_dir)
    if not isinstance(model, (VanForSemanticSegmentation, VanForImageClassification)):
        return (
            "from van_hf import VanForSemanticSegmentation\n"
            f"model = VanForSemanticSegmentation.from_pretrained({folder}, num_labels=150)"
        )
    task = "image-segmentation" if isinstance(model, VanForSemanticSegmentation) else "image-classification"
    return f'import transformers, van_hf\nprint(transformers.pipeline("{task}", model={folder})("picture.jpg"))'


def main(argv: list[str] | None = None) -> int:
    args = parse_args(argv)
    try:
        check_output_dir(args.output_dir)
        id2label = read_id2label(args.id2label) if args.id2label else None
        model, image_processor = convert_checkpoint(args.checkpoint, id2label, args.trust_pickle, args.ham_rank)
        save_converted(model, image_processor, args.output_dir)
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2 if isinstance(error, ValueError) else 1
    print(describe(model))
    print(f"\nSaved to {args.output_dir}. To use it:\n\n{usage(model, args.output_dir)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
