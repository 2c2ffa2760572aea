# Copyright 2026 The van_hf authors.
# Licensed under the Apache License, Version 2.0; see LICENSE.
"""Releases a model on the Hub, in one commit: weights, image processor, code, card, figures and pictures.

    python examples/push_to_hub.py outputs/van-scenes --hub_model_id someone/van-scenes --dry_run

lists what would go; without --dry_run it goes. Figures and pictures are those that train_seg.py has left; of an output
folder of eval_seg.py the model is the one that was evaluated. Files of an authors' checkpoint are converted first.

With --space someone/van-scenes-demo the page of demo.py goes too, as a Space that loads the model from the Hub; where
the model is there already, it goes alone:

    python examples/push_to_hub.py --hub_model_id someone/van-scenes --space someone/van-scenes-demo

The exit status is 0; 2 if the arguments or the files are wrong, so that nothing was sent; 1 if the Hub could not be
reached or refused. No release is ever half there, and after a failure the same command goes on with what is missing.
"""

import argparse
import sys
import tempfile
from importlib.metadata import requires
from pathlib import Path

from huggingface_hub import HfApi, SpaceCardData
from tqdm.auto import tqdm

import van_hf
from van_hf import VanForSemanticSegmentation
from van_hf.checkpoints import convert_checkpoint, save_converted
from van_hf.data.label_names import read_id2label
from van_hf.files import read_json
from van_hf.hub import (
    CARD,
    check_access,
    check_name,
    collect_files,
    create_card,
    plain_errors,
    push,
)
from van_hf.inference import digest_of_weights
from van_hf.released_checkpoints import RELEASED_CHECKPOINTS

# What demo.py was tested with.
GRADIO_VERSION, PYTHON_VERSION = "6.31.0", "3.11"
APP = """\
# Written by push_to_hub.py: the page of demo.py for one model.
import sys

from demo import main

sys.exit(main(["--model_name_or_path", {model_id!r}]))
"""
SPACE_CARD = """\
---
{metadata}
---

Segments pictures with [{model_id}](https://huggingface.co/{model_id}), a Visual Attention Network. `van_hf/` is the
package that has the model's classes.
"""


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "source",
        metavar="CHECKPOINT_OR_FOLDER",
        nargs="?",
        help="a model's folder, an output folder of eval_seg.py, or the authors' file (.pth, .pth.tar)",
    )
    parser.add_argument("--hub_model_id", metavar="OWNER/NAME", required=True, help="the model's name on the Hub")
    parser.add_argument(
        "--space",
        metavar="OWNER/NAME",
        help="a Space to show the model in; for a private model, give the Space a secret HF_TOKEN in its settings",
    )
    parser.add_argument("--private", action="store_true", help="new repositories only their owner sees")
    parser.add_argument("--revision", metavar="BRANCH", help="of the model; made from main if it is missing")
    parser.add_argument("--commit_message", default="Upload model")
    parser.add_argument("--no_pictures", action="store_true", help="leave out pictures, as of data that is not public")
    parser.add_argument(
        "--overwrite_card",
        action="store_true",
        help="replace the README.md on the Hub even if somebody has edited it there",
    )
    parser.add_argument("--dry_run", action="store_true", help="only list what would go; needs no token, no network")
    checkpoints = parser.add_argument_group("the authors' checkpoints")
    checkpoints.add_argument("--id2label", metavar="FILE", help="JSON file of the class names")
    checkpoints.add_argument(
        "--released",
        metavar="NAME",
        help="which of the authors' published models it is, for the card: a name in van_hf/released_checkpoints.py, "
        "such as fpn_van_b0_ade20k_40k; by default the file's name, if it is one",
    )
    checkpoints.add_argument("--trust_pickle", action="store_true", help="run any code that is in the file")
    args = parser.parse_args(argv)
    if args.source is None:
        if args.space is None:
            parser.error("name a checkpoint or a folder, or a --space for a model that is on the Hub")
        return args
    source = Path(args.source)
    if source.is_dir() and (args.id2label or args.trust_pickle):
        parser.error(f"--id2label and --trust_pickle are for checkpoints, and {source} is a folder")
    name = source.name.split(".")[0]
    if args.released is None and source.is_file() and name in RELEASED_CHECKPOINTS:
        args.released = name
    return args


def prepare_files(args: argparse.Namespace, temporary: Path) -> dict[str, Path]:
    """Returns the files to release by their names on the Hub; of a checkpoint they are made in `temporary`."""
    source = Path(args.source)
    pictures = not args.no_pictures
    if not source.exists():
        raise ValueError(f"{source} is neither a file nor a folder")
    if source.is_file():
        id2label = read_id2label(args.id2label) if args.id2label else None
        save_converted(*convert_checkpoint(source, id2label, args.trust_pickle), temporary / "model")
        return collect_files(temporary / "model")
    if (source / "config.json").is_file() or not (source / "results.json").is_file():
        return collect_files(source, pictures=pictures)
    evaluated = read_json(source / "results.json").get("model", {})
    model_dir = Path(evaluated.get("name", ""))
    if not (model_dir / "config.json").is_file():
        raise ValueError(
            f"{source} holds an evaluation of {evaluated.get('name')!r}, which is not a model's folder here; run this"
            " from the folder that the evaluation was run from"
        )
    if digest_of_weights(VanForSemanticSegmentation.from_pretrained(model_dir)) != evaluated.get("weights"):
        raise ValueError(f"{source} holds an evaluation of other weights than {model_dir} has now; evaluate it again")
    return collect_files(model_dir, source, pictures)


def prepare_space(model_id: str, temporary: Path) -> tuple[dict[str, Path], str]:
    """Returns the files of a Space by their names there, and its README.md; those that are made go to `temporary`."""
    package = Path(van_hf.__file__).parent
    # With the package beside it, the Space needs no release of it, and runs the code that the page was tried with.
    files = {
        str(path.relative_to(package.parent).as_posix()): path
        for path in sorted(package.rglob("*"))
        if path.suffix in (".py", ".json", ".md")
    }
    files |= {name: Path(__file__).with_name(name) for name in ("demo.py", "predict.py")}
    requirements = [line for line in requires("van_hf") if "extra ==" not in line]
    texts = {"app.py": APP.format(model_id=model_id), "requirements.txt": "\n".join([*requirements, ""])}
    for name, text in texts.items():
        files[name] = temporary / name
        files[name].write_text(text, encoding="utf-8")
    metadata = SpaceCardData(
        title=f"Segmentation with {model_id.split('/')[-1]}",
        sdk="gradio",
        sdk_version=GRADIO_VERSION,
        python_version=PYTHON_VERSION,
        app_file="app.py",
        license="apache-2.0",
        models=[model_id],
    )
    return files, SPACE_CARD.format(metadata=metadata, model_id=model_id)


def print_files(target: str, files: dict[str, Path], card: str | None, temporary: Path, made: str) -> None:
    """Prints what would go where, with sizes; `made` says how the files in `temporary` have come there."""
    rows = [
        (name, path.stat().st_size, made if path.is_relative_to(temporary) else str(path.parent))
        for name, path in files.items()
    ]
    rows += [(CARD, len(card.encode()), "generated")] if card else []
    rows.sort()
    width = max(len(name) for name, _, _ in rows)
    print(f"Would go to {target}, in one commit:\n\n{'file':{width}} {'size':>8}  from")
    for name, size, folder in rows:
        print(f"{name:{width}} {in_bytes(size):>8}  {folder}")
    print(f"{'':{width}} {in_bytes(sum(size for _, size, _ in rows)):>8}")
    print(f"\n{CARD} stays as it is where somebody has edited it on the Hub; --overwrite_card replaces it.\n")


def in_bytes(size: int) -> str:
    """As the Hub shows sizes: 1 kB is 1000 bytes."""
    return f"{tqdm.format_sizeof(size)}B" if size >= 1000 else f"{size}B"


def release_model(args: argparse.Namespace, temporary: Path) -> None:
    """Prepares the release of the model, and lists or pushes it."""
    try:
        files = prepare_files(args, temporary)
        card = create_card(files, args.hub_model_id, args.released) if CARD not in files else None
    except OSError as error:
        raise ValueError(str(error)) from error
    if args.dry_run:
        print_files(f"{args.hub_model_id}, branch {args.revision or 'main'}", files, card, temporary, "converted")
        return
    release = push(
        files,
        args.hub_model_id,
        card=card,
        private=args.private,
        revision=args.revision,
        commit_message=args.commit_message,
        overwrite_card=args.overwrite_card,
    )
    print(release.describe())


def release_space(args: argparse.Namespace, temporary: Path) -> None:
    """Prepares the Space, and lists or pushes it."""
    files, card = prepare_space(args.hub_model_id, temporary)
    if args.dry_run:
        print_files(f"the Space {args.space}", files, card, temporary, "generated")
        return
    with plain_errors(args.hub_model_id):
        if not HfApi().repo_exists(args.hub_model_id):
            raise ValueError(f"there is no model {args.hub_model_id} for the Space to show; name its folder too")
    release = push(
        files,
        args.space,
        repo_type="space",
        card=card,
        private=args.private,
        commit_message="Upload page",
        overwrite_card=args.overwrite_card,
    )
    print(release.describe())


def run(args: argparse.Namespace, temporary: Path) -> None:
    """Releases what the arguments ask for: the model first, as the Space loads it."""
    for repo_id in (args.hub_model_id if args.source else None, args.space):
        # Before a large checkpoint is converted for nothing.
        if repo_id and not args.dry_run:
            check_access(repo_id)
    if args.source:
        release_model(args, temporary)
    if args.space:
        release_space(args, temporary)


def main(argv: list[str] | None = None) -> int:
    args = parse_args(argv)
    try:
        check_name(args.hub_model_id)
        if args.space is not None:
            check_name(args.space, "--space")
        with tempfile.TemporaryDirectory() as temporary:
            run(args, Path(temporary))
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2 if isinstance(error, ValueError) else 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
