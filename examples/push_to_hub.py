# Copyright 2026 The van_hf authors.
# Licensed under the Apache License, Version 2.0; see LICENSE.
"""Release a model on the Hub in one commit: weights, image processor, code, card, figures and pictures.

    python examples/push_to_hub.py outputs/van-scenes --hub_model_id someone/van-scenes --dry_run

lists what would be sent; without --dry_run it is sent. Figures and pictures are those that train_seg.py has left. For
an output folder of eval_seg.py the model is the one that was evaluated. The authors' checkpoints are converted first.

Figures and configurations name no path of this machine on the Hub: of each only the last part is sent.

Exports of the model that export.py has written into folders of it, such as outputs/van-scenes/onnx, go along.

With --space someone/van-scenes-demo the page of demo.py is released too, as a Space that loads the model from the Hub.
Where the model is there already, the Space can go alone:

    python examples/push_to_hub.py --hub_model_id someone/van-scenes --space someone/van-scenes-demo

With --static_space someone/van-scenes-page --page FOLDER a page that web_demo.py has written is released as a static
Space: the model is in the page, and runs in the browser.

The exit status is 0; 2 if the arguments or the files are wrong, in which case nothing was sent; 1 if the Hub could not
be reached or refused. A release is never half there, and after a failure the same command sends what is missing.
"""

import argparse
import sys
import tempfile
from importlib.metadata import requires
from pathlib import Path

from huggingface_hub import HfApi, SpaceCardData
from tqdm.auto import tqdm

import van_hf
from van_hf.checkpoints import convert_checkpoint, save_converted
from van_hf.data.label_names import read_id2label
from van_hf.files import read_json
from van_hf.hub import (
    CARD,
    check_access,
    check_name,
    collect_files,
    collect_page,
    create_card,
    plain_errors,
    push,
    seal_card,
)
from van_hf.inference import digest_of_weights, load_model
from van_hf.released_checkpoints import RELEASED_CHECKPOINTS

# What demo.py was tested with.
GRADIO_VERSION, PYTHON_VERSION = "6.31.0", "3.11"
APP = """\
# Written by push_to_hub.py: the page of demo.py for one model.
import sys

from demo import main

sys.exit(main(["--model_name_or_path", {model_id!r}]))
"""
# With these, browsers let a page that has onnxruntime of its own run the model in several threads.
PAGE_HEADERS = {
    "cross-origin-embedder-policy": "require-corp",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "cross-origin",
}
SPACE_CARD = """\
---
{metadata}
---

Segments pictures with [{model_id}](https://huggingface.co/{model_id}), a Visual Attention Network. `van_hf/` is the
package that has the model's classes.
"""
PAGE_CARD = """\
---
{metadata}
---

Segments pictures with [{model_id}](https://huggingface.co/{model_id}), a Visual Attention Network, in the browser: the
pictures stay on your machine.
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
    parser.add_argument(
        "--static_space",
        metavar="OWNER/NAME",
        help="a static Space for the page in --page; whoever sees the page can download the program in it",
    )
    parser.add_argument("--page", metavar="FOLDER", type=Path, help="folder that web_demo.py has written")
    parser.add_argument("--private", action="store_true", help="make new repositories visible to their owner only")
    parser.add_argument("--revision", metavar="BRANCH", help="branch of the model; made from main if it is missing")
    parser.add_argument("--commit_message", default="Upload model")
    parser.add_argument(
        "--no_pictures", action="store_true", help="leave out pictures, for example of data that is not public"
    )
    parser.add_argument(
        "--overwrite_card",
        action="store_true",
        help="replace the README.md on the Hub even if somebody has edited it there",
    )
    parser.add_argument(
        "--dry_run", action="store_true", help="only list what would be sent; needs no token and no network"
    )
    checkpoints = parser.add_argument_group("the authors' checkpoints")
    checkpoints.add_argument("--id2label", metavar="FILE", help="JSON file of the class names")
    checkpoints.add_argument(
        "--released",
        metavar="NAME",
        help="which of the authors' published models it is, for the card: a name in van_hf/released_checkpoints.py, "
        "such as fpn_van_b0_ade20k_40k; by default the file's name, if it is one of these",
    )
    checkpoints.add_argument("--trust_pickle", action="store_true", help="run any code that the file holds")
    args = parser.parse_args(argv)
    if args.released is not None and args.released not in RELEASED_CHECKPOINTS:
        parser.error(f"--released must be one of {', '.join(RELEASED_CHECKPOINTS)}, got {args.released!r}")
    if (args.static_space is None) != (args.page is None):
        parser.error("--static_space and --page are of use together only")
    if args.space is not None and args.space == args.static_space:
        parser.error(f"--space and --static_space must differ, got {args.space!r} for both")
    if args.source is None:
        if args.space is None and args.static_space is None:
            parser.error(
                "name a checkpoint or a folder, or a --space or --static_space for a model that is on the Hub"
            )
        return args
    source = Path(args.source)
    if source.is_dir() and (args.id2label or args.trust_pickle):
        parser.error(f"--id2label and --trust_pickle are for checkpoints, and {source} is a folder")
    name = source.name.split(".")[0]
    if args.released is None and source.is_file() and name in RELEASED_CHECKPOINTS:
        args.released = name
    return args


def prepare_files(args: argparse.Namespace, temporary: Path) -> dict[str, Path | bytes]:
    """Return the files to release by their names on the Hub; a checkpoint is converted into `temporary`."""
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
    return collect_files(find_evaluated_model(source), source, pictures)


def find_evaluated_model(evaluation: Path) -> Path:
    """Return the folder of the model that an output folder of eval_seg.py is about.

    Raises:
        ValueError: the model is not where it was, is damaged, or has other weights now.
    """
    evaluated = read_json(evaluation / "results.json").get("model")
    name = evaluated.get("name") if isinstance(evaluated, dict) else None
    if not isinstance(name, str):
        raise ValueError(
            f"{evaluation} holds no model, and its results.json names no model that was evaluated; give a model's"
            " folder, or an output folder of eval_seg.py"
        )
    if not Path(name, "config.json").is_file():
        raise ValueError(
            f"{evaluation} holds an evaluation of {name!r}, which is not a model's folder here; run this from the"
            " folder that the evaluation was run from"
        )
    model, _ = load_model(name, device="cpu")
    if digest_of_weights(model) != evaluated.get("weights"):
        raise ValueError(f"{evaluation} holds an evaluation of other weights than {name} has now; evaluate it again")
    return Path(name)


def prepare_space(model_id: str, temporary: Path) -> tuple[dict[str, Path], str]:
    """Return the files of a Space by their names there, and its README.md; generated files go to `temporary`."""
    package = Path(van_hf.__file__).parent
    # With the package beside it, the Space needs no release of it, and runs the code that the page was tested with.
    files = {
        str(path.relative_to(package.parent).as_posix()): path
        for path in sorted(package.rglob("*"))
        if path.suffix in (".py", ".json", ".md")
    }
    files["demo.py"] = Path(__file__).with_name("demo.py")
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


def page_card(model_id: str, page: dict[str, Path]) -> str:
    """Return the README.md of a static Space with the files of a page."""
    has_runtime = any(name.startswith("onnxruntime/") for name in page)
    metadata = SpaceCardData(
        title=f"Segmentation with {model_id.split('/')[-1]}",
        sdk="static",
        app_file="index.html",
        license="apache-2.0",
        models=[model_id],
        **({"custom_headers": PAGE_HEADERS} if has_runtime else {}),
    )
    return PAGE_CARD.format(metadata=metadata, model_id=model_id)


def print_files(target: str, files: dict[str, Path | bytes], card: str | None, temporary: Path, origin: str) -> None:
    """Print what would be sent where, with sizes; `origin` says where the files in `temporary` come from."""
    rows = []
    for name, content in files.items():
        if isinstance(content, bytes):
            rows.append((name, len(content), "a copy, paths cut to their last part"))
        else:
            folder = origin if content.is_relative_to(temporary) else str(content.parent)
            rows.append((name, content.stat().st_size, folder))
    rows += [(CARD, len(seal_card(card).encode()), "generated")] if card else []
    rows.sort()
    width = max(len(name) for name, _, _ in rows)
    print(f"Would go to {target}, in one commit:\n\n{'file':{width}} {'size':>8}  from")
    for name, size, folder in rows:
        print(f"{name:{width}} {in_bytes(size):>8}  {folder}")
    print(f"{'':{width}} {in_bytes(sum(size for _, size, _ in rows)):>8}")
    print(f"\nA {CARD} that somebody has edited on the Hub stays as it is; --overwrite_card replaces it.\n")


def in_bytes(size: int) -> str:
    """Return a size as the Hub shows it: 1 kB is 1000 bytes."""
    return f"{tqdm.format_sizeof(size)}B" if size >= 1000 else f"{size}B"


def release_model(args: argparse.Namespace, temporary: Path) -> None:
    """Prepare the release of the model, and list or push it."""
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


def release_space(
    args: argparse.Namespace, space: str, sdk: str, files: dict[str, Path], card: str, temporary: Path
) -> None:
    """List or push a Space.

    Args:
        args: the command line.
        space: its name.
        sdk: "gradio" or "static".
        files: by their names there.
        card: text of its README.md.
        temporary: where files are that were generated.

    Raises:
        ValueError: the model is not on the Hub.
    """
    if args.dry_run:
        print_files(f"the {'static ' if sdk == 'static' else ''}Space {space}", files, card, temporary, "generated")
        return
    with plain_errors(args.hub_model_id):
        if not HfApi().repo_exists(args.hub_model_id):
            raise ValueError(f"there is no model {args.hub_model_id} for the Space to show; name its folder too")
    release = push(
        files,
        space,
        repo_type="space",
        space_sdk=sdk,
        card=card,
        private=args.private,
        commit_message="Upload page",
        overwrite_card=args.overwrite_card,
    )
    print(release.describe())


def run(args: argparse.Namespace, temporary: Path) -> None:
    """Release what the arguments ask for: the model first, because the Spaces load or name it."""
    page = collect_page(args.page) if args.page else None
    for repo_id in (args.hub_model_id if args.source else None, args.space, args.static_space):
        # Asked first, so that no large checkpoint is converted for nothing.
        if repo_id and not args.dry_run:
            check_access(repo_id)
    if args.source:
        release_model(args, temporary)
    if args.space:
        release_space(args, args.space, "gradio", *prepare_space(args.hub_model_id, temporary), temporary)
    if page:
        card = page_card(args.hub_model_id, page)
        release_space(args, args.static_space, "static", page, card, temporary)


def main(argv: list[str] | None = None) -> int:
    args = parse_args(argv)
    try:
        check_name(args.hub_model_id)
        for option in ("space", "static_space"):
            if (name := getattr(args, option)) is not None:
                check_name(name, f"--{option}")
        with tempfile.TemporaryDirectory() as temporary:
            run(args, Path(temporary))
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2 if isinstance(error, ValueError) else 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
