# Copyright 2026 The van_hf authors.
# Licensed under the Apache License, Version 2.0; see LICENSE.
"""Write model_cards/: a card for each checkpoint that the VAN authors have released.

    python examples/model_cards.py

Nothing is downloaded: the cards are made from the architectures and from what the authors published
(van_hf/released_checkpoints.py). push_to_hub.py makes the cards of other models.
"""

import argparse
import sys
from pathlib import Path

from benchmarks.complexity import complexity
from tqdm.auto import tqdm

from van_hf.model_cards import create_model_card
from van_hf.released_checkpoints import HUB_CLASSIFIERS, RELEASED_CHECKPOINTS

CARDS_DIR = Path(__file__).parents[1] / "model_cards"
HEADS = {"upernet": "upernet-", "semantic_fpn": "fpn-", "light_ham": "light-ham-", "ham": "hamnet-", None: ""}


def short_name(name: str) -> str:
    """Return the name of a card: upernet-van-b4-22k-ade20k for upernet_van_b4_512x512_160k_ade20k_22k."""
    release = RELEASED_CHECKPOINTS[name]
    variants = "".join(f"-{variant}" for variant in ("22k", "d256") if f"_{variant}" in name)
    data_set = "-ade20k" if release.decode_head is not None else ""
    return f"{HEADS[release.decode_head]}van-{release.size}{variants}{data_set}"


def create_card(name: str) -> str:
    """Return the card of one of the authors' checkpoints."""
    release = RELEASED_CHECKPOINTS[name]
    is_classifier = release.decode_head is None
    height, width = release.gmacs_size
    config = release.config()
    counted = complexity(config, height, width, classifier=is_classifier, rewritten=False)
    multiply_adds = counted["total"]["multiply_adds"]
    on_hub = is_classifier and release.size in HUB_CLASSIFIERS
    card = create_model_card(
        config,
        model_id=HUB_CLASSIFIERS[release.size] if on_hub else short_name(name),
        released=name,
        gmacs=(multiply_adds / 1e9, height, width),
    )
    return str(card)


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output_dir", type=Path, default=CARDS_DIR, help="model_cards/ beside examples/ by default")
    args = parser.parse_args(argv)
    try:
        args.output_dir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        print(f"error: --output_dir {args.output_dir} cannot be written: {error}", file=sys.stderr)
        return 2
    # All are made before any is written.
    cards = {short_name(name): create_card(name) for name in tqdm(RELEASED_CHECKPOINTS, desc="Cards", unit="card")}
    for name, card in cards.items():
        (args.output_dir / f"{name}.md").write_text(card, encoding="utf-8", newline="\n")
    print(f"{len(cards)} cards are in {args.output_dir}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
