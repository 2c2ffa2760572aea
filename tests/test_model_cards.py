# Copyright 2026 The van_hf authors.
# Licensed under the Apache License, Version 2.0; see LICENSE.
import contextlib
import copy
import gzip
import importlib
import json
import re
import shutil
import sys
from pathlib import Path

import pytest
import yaml
from conftest import tiny_config
from huggingface_hub import ModelCard
from huggingface_hub.errors import HfHubHTTPError
from huggingface_hub.utils import validate_repo_id

from van_hf import VanConfig, VanModel
from van_hf.data.ade20k import CLASS_NAMES
from van_hf.model_cards import RELEASED_CHECKPOINTS, CardExport, create_model_card, model_card_for_folder
from van_hf.released_checkpoints import read_per_class

ROOT = Path(__file__).parents[1]
CARDS = ROOT / "model_cards"
# httpx in huggingface_hub 1, httpx2 in 2.
http = importlib.import_module(HfHubHTTPError.__bases__[0].__module__.partition(".")[0])


def run_script(monkeypatch, name: str, *arguments: object) -> None:
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    monkeypatch.setattr(sys, "argv", [f"{name}.py", *map(str, arguments)])
    importlib.import_module(name).main()


@pytest.fixture(scope="module")
def runs(boxes, tmp_path_factory) -> Path:
    """Folder with `trained`, what a training of two steps has left, and `evaluated`, an evaluation of that."""
    folder = tmp_path_factory.mktemp("runs")
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.chdir(folder)
        training = ("--recipe", "scenes", "--model_size", "mini", "--crop_size", 32, "--max_train_steps", 2)
        training += ("--total_train_batch_size", 2, "--dataloader_num_workers", 0, "--output_dir", "trained")
        boxes = (boxes, "--validation_split", "validation[:2]")
        run_script(monkeypatch, "train_seg", "--dataset", *boxes, *training)
        evaluation = ("--model_name_or_path", "trained", "--flip", "--output_dir", "evaluated")
        run_script(monkeypatch, "eval_seg", "--dataset", *boxes, *evaluation)
    return folder


@pytest.fixture
def trained(runs, tmp_path) -> Path:
    """A copy of the trained model's small files, to be changed."""
    for name in ("config.json", "results.json"):
        shutil.copy(runs / "trained" / name, tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def measured(runs) -> dict:
    """The results of the evaluation."""
    return json.loads((runs / "evaluated" / "results.json").read_text())


@pytest.fixture(scope="module")
def measured_upernet_b0(measured) -> dict:
    """The same figures as if they were of the authors' smallest UperNet."""
    results = copy.deepcopy(measured)
    results["dataset"] |= {"num_labels": 150, "name": "ade20k"}
    results["model"]["num_parameters"] = 32_133_004
    return results


def is_repo_id(name: object) -> bool:
    with contextlib.suppress(ValueError):
        validate_repo_id(name)
        return "/" in name
    return False


def problems_of_metadata(content: str) -> list[str]:
    """What is wrong with a card by the published specification of the Hub's metadata, as far as van_hf's cards use it:
    a stand-in for the Hub's own validation, which these tests cannot ask."""
    data = yaml.safe_load(content.split("---\n")[1])
    known = {"license", "library_name", "pipeline_tag", "tags", "datasets", "base_model", "metrics", "model-index"}
    problems = [f"unknown field {name}" for name in data.keys() - known]
    if data["license"] != "apache-2.0" or data["library_name"] != "transformers":
        problems.append("license or library_name")
    if data["pipeline_tag"] not in ("image-segmentation", "image-classification"):
        problems.append("pipeline_tag")
    if not all(isinstance(tag, str) for tag in [*data["tags"], *data["metrics"]]):
        problems.append("tags or metrics")
    if not all(map(is_repo_id, [*data.get("datasets", []), *filter(None, [data.get("base_model")])])):
        problems.append("datasets or base_model is no name on the Hub")
    for model in data.get("model-index", []):
        for result in model["results"]:
            named = [result["task"].get("type"), result["dataset"].get("type"), result["dataset"].get("name")]
            if not model["name"] or not all(named):
                problems.append("model-index lacks a name or type")
            for metric in result["metrics"]:
                if not metric.get("type") or not isinstance(metric.get("value"), float):
                    problems.append("model-index has a metric without type or value")
            if "source" in result and not result["source"]["url"].startswith("https://"):
                problems.append("model-index has a source without an address")
    return problems


@pytest.fixture
def hub_validation(monkeypatch):
    """Answers the request that `ModelCard.validate` sends to the Hub."""

    class Session:
        def post(self, url, json, headers):
            assert url.endswith("/api/validate-yaml")
            assert json["repoType"] == "model"
            problems = problems_of_metadata(json["content"])
            request = http.Request("POST", url)
            return http.Response(400 if problems else 200, text="; ".join(problems), request=request)

    monkeypatch.setattr("huggingface_hub.repocard.get_session", Session)


def check(card: ModelCard) -> None:
    """The card is valid, comes back from a file as it was, and no template's gap shows."""
    card.validate()
    loaded = ModelCard(str(card))
    assert loaded.data.eval_results == card.data.eval_results
    assert loaded.data.to_dict() == card.data.to_dict()
    assert str(loaded) == str(card)
    assert not re.search(r"None|Undefined|\{\{|\{%|\n\n\n| \n|  \|", card.text)
    assert card.text.endswith("```\n")


@pytest.mark.slow
def test_cards_are_up_to_date(tmp_path):
    importlib.import_module("model_cards").main(["--output_dir", str(tmp_path)])
    made, kept = ({path.name: path.read_bytes() for path in folder.iterdir()} for folder in (tmp_path, CARDS))
    assert len(made) == len(RELEASED_CHECKPOINTS) == 30
    assert made.keys() == kept.keys()
    assert [name for name in made if made[name] != kept[name]] == [], "python examples/model_cards.py makes them anew"


def test_a_folder_that_cannot_be_written_is_an_error(tmp_path, capsys):
    (tmp_path / "file").write_text("mine")
    assert importlib.import_module("model_cards").main(["--output_dir", str(tmp_path / "file")]) == 2
    assert capsys.readouterr().err.startswith(f"error: --output_dir {tmp_path / 'file'} cannot be written")


@pytest.fixture(scope="module")
def cards() -> dict[str, ModelCard]:
    """The cards that are kept, by the names of the authors' checkpoints."""
    short_name = importlib.import_module("model_cards").short_name
    return {name: ModelCard.load(CARDS / f"{short_name(name)}.md") for name in RELEASED_CHECKPOINTS}


def test_released_cards_are_valid(cards, hub_validation):
    for card in cards.values():
        check(card)


def test_parameters_are_those_of_the_checkpoints(cards, fixtures_dir):
    manifests = json.loads(gzip.decompress((fixtures_dir / "manifests.json.gz").read_bytes()))
    buffers = ("running_mean", "running_var", "num_batches_tracked")
    for name, card in cards.items():
        kind = "classification" if name.startswith("van_b") else "segmentation"
        expected = 0
        for key, shape in manifests[f"{kind}/{name}"].items():
            if not key.endswith(buffers):
                count = 1
                for length in shape:
                    count *= length
                expected += count
        assert f"\n| parameters | {expected:,}" in card.text
    misprinted = [name for name, card in cards.items() if re.search(r"The authors print \S+ million", card.text)]
    assert misprinted == ["upernet_van_b5_512x512_160k_ade20k_22k"]
    assert "| parameters | 121,890,188" in cards[misprinted[0]].text
    assert "The authors print 117 million" in cards[misprinted[0]].text


def test_published_figures_have_their_source(cards):
    for name, card in cards.items():
        figure = RELEASED_CHECKPOINTS[name].figure
        assert "Measured with van_hf" not in card.text
        if figure is None:
            assert card.data.eval_results is None
            assert "prints no figure" in card.text
            continue
        (result,) = card.data.eval_results
        assert result.metric_value == pytest.approx(figure / 100, abs=1e-12)
        assert result.source_url.startswith("https://github.com/Visual-Attention-Network/VAN-")
        assert "published" in result.metric_name
        assert result.verified is None
        assert f"\n| {figure} % |" in card.text
        assert "not measured with van_hf" in card.text
        protocol = "top-1" if name.startswith("van") else "single scale" if name.startswith("fpn") else "+ flip"
        assert protocol in result.metric_name
    assert {name for name, card in cards.items() if "first release" in card.text} == {
        "upernet_van_b2_512x512_160k_ade20k",
        "upernet_van_b3_512x512_160k_ade20k",
    }
    assert "| 48.3 % |" in cards["upernet_van_b2_512x512_160k_ade20k"].text


def test_released_cards_name_licence_and_base_model(cards):
    for name, card in cards.items():
        assert "For commercial use, please contact the authors." in card.text
        expected = None
        if re.search("van_(b2|base)", name) and not name.startswith("van_b"):
            expected = "Visual-Attention-Network/van-base"
        if expected or "22k" in name or name.startswith("van_b"):
            assert card.data.base_model == expected
    assert "16 pictures" in cards["upernet_van_b3_512x512_160k_ade20k"].text
    assert "32 pictures" in cards["upernet_van_b4_512x512_160k_ade20k"].text
    for name, card in cards.items():
        if name.startswith("hamnet"):
            batch, depth = (16, {"large": 0.25, "huge": 0.4}) if "light" in name else (32, {"large": 0.25})
            size = re.search("tiny|small|base|large|huge", name)[0]
            assert f"| steps | 160,000 of {batch} pictures |" in card.text
            assert f"from 0 at the first block to {depth.get(size, 0.1)} at the last" in card.text


def ham_release(original_name: str) -> str:
    """The authors' name of the checkpoint that recipes_ham.json calls light_ham_d256_b0, or the like."""
    size = {"b0": "tiny", "b1": "small", "b2": "base", "b3": "large", "b4": "huge"}[original_name[-2:]]
    d256 = "d256_" if "d256" in original_name else ""
    return f"hamnet_{'light_' * original_name.startswith('light')}van_{size}_{d256}512x512_160k_ade20k"


def test_ham_cards_have_the_published_figures(cards, fixtures_dir):
    originals = json.loads((fixtures_dir / "recipes_ham.json").read_text())
    names = {ham_release(original_name): original_name for original_name in originals}
    assert names.keys() == {name for name in RELEASED_CHECKPOINTS if name.startswith("hamnet")}
    for name, original_name in names.items():
        original, release = originals[original_name], RELEASED_CHECKPOINTS[name]
        published = original["published"] or {}
        assert release.figure == published.get("mean_iou_multi_scale")
        assert release.parameters == published.get("parameters_millions")
        assert release.gmacs == published.get("gmacs_at_512x512") and release.gmacs_size == (512, 512)
        config = release.config()
        found = (config.decoder_hidden_size or 512, config.ham_hidden_size, config.ham_rank, config.drop_path_rate)
        assert found == tuple(original[key] for key in ("channels", "ham_channels", "rank", "drop_path_rate"))
        text = cards[name].text
        assert f"| rank of the factorization | {original['rank']}, from the authors' code" in text
        assert ("of 256 channels" in text.splitlines()[1]) == (original["channels"] == 256)
        assert ("including the auxiliary head" in text) == (original["auxiliary_head"] is not None)
        assert ("The authors print" in text) == (original["published"] is not None)
        # Counted here, in a form with fewer of them, and by the authors.
        counted = float(re.search(r"\| multiply-adds \| (\S+) x", text)[1])
        assert "a picture 512 pixels wide and 512 high" in text
        assert release.gmacs is None or 0.87 < counted / release.gmacs < 1


def test_cards_tell_what_is_special_about_the_hamburger(cards):
    for name, card in cards.items():
        is_ham, is_classifier = name.startswith("hamnet"), name.startswith("van_b")
        for words in ("always gets the same labels", "draws them at random at every call", "geng2021attention"):
            assert (words in card.text) == is_ham, name
        assert ("predicted at an eighth of the picture's size" in card.text) == is_ham
        assert ("predicted at a quarter of" in card.text) == (not is_ham and not is_classifier)
    card = create_model_card(tiny_config("light_ham"), model_id="someone/tiny")
    assert "| rank of the factorization | 8 |" in card.text and "always gets the same labels" in card.text


@pytest.mark.parametrize(
    ("strides", "words"), [([2, 2, 2, 2], "half the"), ([6, 2, 2, 2], "1/6 of the"), ([1, 2, 2, 2], None)]
)
def test_the_size_of_the_labels_is_the_configurations(strides, words):
    card = create_model_card(tiny_config(strides=strides), model_id="someone/tiny")
    assert ("Labels are predicted at" in card.text) == (words is not None)
    assert words is None or f"predicted at {words} picture's size" in card.text


def test_the_authors_evaluation_by_classes(cards):
    evaluated = []
    for name, card in cards.items():
        published = read_per_class(name)
        assert ("<details>" in card.text) == (published is not None)
        if published is None:
            continue
        evaluated.append(name)
        for figures, mean in ((published.iou, published.mean_iou), (published.accuracy, published.mean_accuracy)):
            assert list(figures) == list(CLASS_NAMES)
            assert sum(figures.values()) / 150 == pytest.approx(mean, abs=0.0101)
        assert published.mean_iou == pytest.approx(RELEASED_CHECKPOINTS[name].figure, abs=0.051)
        folded = re.search(r"<details>\n<summary>(.*)</details>", card.text, re.DOTALL)[1]
        rows = re.findall(r"^\| (.+) \| (\S+) \| (\S+) \|$", folded, re.M)
        expected = [
            (label, f"{published.iou[label]:.2f}", f"{published.accuracy[label]:.2f}") for label in CLASS_NAMES
        ]
        assert rows == expected
        assert "Their own evaluation" in folded and "not repeated with van_hf" in folded
    assert evaluated == [ham_release(f"light_ham_{model}") for model in ("d256_b0", "b0", "b1", "b2", "b3")]
    b2 = read_per_class(ham_release("light_ham_b2"))
    assert (b2.iou["wall"], b2.iou["bed"], b2.accuracy["road"], b2.overall_accuracy) == (77.95, 89.67, 90.69, 83.28)


def test_the_size_that_the_authors_count_for_is_told():
    config = VanConfig.from_size("b2", decode_head="light_ham")
    facts = {"model_id": "someone/b2", "released": ham_release("light_ham_b2")}
    text = create_model_card(config, gmacs=(130.0, 512, 2048), **facts).text
    assert "The authors print 34.4 x 10^9 for one 512 wide and 512 high |" in text


def test_card_of_a_training(runs, hub_validation):
    card = model_card_for_folder(runs / "trained", "someone/boxes", dataset_id="someone/pictures-of-boxes")
    check(card)
    results = json.loads((runs / "trained" / "results.json").read_text())
    (result,) = card.data.eval_results
    assert result.metric_value == round(results["mean_iou"], 4)
    assert result.metric_name == f"Mean IoU, measured with van_hf 0.1.0: {results['protocol']['inference']}"
    assert (result.source_name, result.source_url, result.verified) == (None, None, None)
    assert card.data.datasets == ["someone/pictures-of-boxes"]
    assert card.data.base_model is None
    for expected in (
        f"| {100 * results['mean_iou']:.2f} % | {100 * results['mean_accuracy']:.2f} % |",
        "| pictures | 2, the validation split of",
        "from scratch, on the 7 training pictures",
        "| steps | 2 of 2 pictures |",
        "shortest_edge 160",
    ):
        assert expected in card.text
    for unexpected in ("Published", "commercial", "ADE20K"):
        assert unexpected not in card.text


def test_card_of_a_stream_of_unknown_length(trained):
    results = json.loads((trained / "results.json").read_text())
    results["dataset"]["train"] = None
    (trained / "results.json").write_text(json.dumps(results))
    assert "from scratch, on training pictures of `boxes`" in model_card_for_folder(trained, "someone/boxes").text


def test_card_tells_the_loss(trained):
    results = json.loads((trained / "results.json").read_text())
    chosen = {"loss": "ohem+dice", "class_weights": "balanced", "label_smoothing": 0.1}
    before = {name: value for name, value in results["run"].items() if name not in chosen}
    for run, line in (
        (results["run"] | chosen, "ohem+dice, classes weighted, labels smoothed by 0.1"),
        (results["run"], "cross_entropy"),
        (before, "cross_entropy"),
    ):
        (trained / "results.json").write_text(json.dumps(results | {"run": run}))
        assert f"| loss | {line} |" in model_card_for_folder(trained, "someone/boxes").text


def test_card_tells_the_rates_of_heads_and_layers(trained, hub_validation):
    results = json.loads((trained / "results.json").read_text())
    rate = f"| learning rate | {results['run']['learning_rate']} at its peak, "
    changes = {
        (10.0, 0.9): "10.0 times that for the decode head, times 0.9 from each block of the backbone to the one",
        (1.0, 1.0): "linear warmup",
        None: "linear warmup",  # results from before
    }
    for values, expected in changes.items():
        for idx, name in enumerate(("head_learning_rate_factor", "layer_decay")):
            results["run"].pop(name, None)
            if values is not None:
                results["run"][name] = values[idx]
        (trained / "results.json").write_text(json.dumps(results))
        assert rate + expected in model_card_for_folder(trained, "someone/boxes").text


def test_card_of_a_later_evaluation(runs, trained, hub_validation):
    (trained / "results.json").rename(trained / "train_results.json")
    shutil.copy(runs / "evaluated" / "results.json", trained)
    card = model_card_for_folder(trained, "someone/boxes")
    check(card)
    assert "+ flip" in card.data.eval_results[0].metric_name
    # The data set's path on this machine is left out.
    assert card.data.eval_results[0].dataset_name == "boxes"
    assert str(runs.parent) not in str(card)
    assert "| steps | 2 of 2 pictures |" in card.text
    results = json.loads((trained / "results.json").read_text())
    results["dataset"]["name"] = "data/ADEChallengeData2016"
    (trained / "results.json").write_text(json.dumps(results))
    card = model_card_for_folder(trained, "someone/boxes", dataset_id="someone/pictures-of-boxes")
    assert card.data.datasets == ["someone/pictures-of-boxes"]
    assert card.data.eval_results[0].dataset_type == "zhoubolei/scene_parse_150"
    (trained / "train_results.json").unlink()
    card = model_card_for_folder(trained, "someone/boxes")
    check(card)
    assert card.data.datasets is None
    assert "How it was trained is not recorded." in card.text


def test_lines_of_use_work(runs, monkeypatch, capsys):
    monkeypatch.chdir(runs)
    shutil.copy(runs / "trained" / "example.png", runs / "picture.jpg")
    card = model_card_for_folder("trained", "trained")
    lines = re.search(r"```python\n(.*?)```", card.text, re.DOTALL)[1].splitlines()
    assert len(lines) == 2
    exec("\n".join(lines), {})
    assert "'label':" in capsys.readouterr().out


def test_measured_and_published_figures_stay_apart(measured_upernet_b0, hub_validation):
    released = "upernet_van_b0_512x512_160k_ade20k"
    card = create_model_card(
        VanConfig.from_size("b0"), model_id="someone/b0", results=measured_upernet_b0, released=released
    )
    check(card)
    # One source holds for all figures on a data set.
    (result,) = card.data.eval_results
    assert result.metric_name.startswith("Mean IoU, measured with van_hf")
    assert result.source_url is None
    measured, published = card.text.split("### Published by the VAN authors")
    assert f"| {100 * measured_upernet_b0['mean_iou']:.2f} % |" in measured
    assert "41.1 %" not in measured
    assert "| 41.1 % |" in published.split("## Training")[0]


def test_card_without_facts(hub_validation):
    card = create_model_card(tiny_config("semantic_fpn"), model_id="someone/tiny")
    check(card)
    assert card.data.eval_results is None
    assert "No figures are recorded" in card.text
    assert "auxiliary" not in card.text


def card_export(folder: str, check: dict | None = None, **source: object) -> CardExport:
    """An export of 1.5 MB; `source` are fields of the ExportInfo that are not as by default."""
    source = {"model": "tiny", "digest": "0" * 32, "format": "onnx", "dtype": "float32", "int8": None} | source
    source = {"size": None, "label_maps": False, "packages": {}} | source
    return CardExport(folder, {"source": source, "check": check or {"agreement": 0.9999876}}, 1_500_000)


def test_exports_have_a_section_of_their_own(hub_validation):
    facts = {"model_id": "someone/tiny"}
    without = create_model_card(tiny_config("semantic_fpn"), **facts)
    assert "Other runtimes" not in without.text
    mean_iou = {"num_pictures": 2000, "model": 0.4105, "export": 0.40999}
    exports = [
        card_export("pickle", format="torch_export"),
        card_export("onnx"),
        card_export("half", {"agreement": 0.98, "mean_iou": mean_iou}, dtype="float16", size=[512, 768]),
        card_export("maps", format="openvino", int8={"dataset": "scenes"}, label_maps=True),
    ]
    card = create_model_card(tiny_config("semantic_fpn"), exports=exports, **facts)
    check(card)
    before, section, after = re.fullmatch(
        r"(.*\n)(## Other runtimes\n.*\n)(## Evaluation\n.*)", card.text, re.S
    ).groups()
    assert before + after == without.text and card.data == without.data
    rows = [line for line in section.splitlines() if line.startswith("| `")]
    same = "the same label for 99.9988 % of the pixels"
    assert rows == [
        f"| `pickle` | `torch_export` | float32 | free | scores | {same} | 1.5 MB |",
        f"| `onnx` | `onnx` | float32 | free | scores | {same} | 1.5 MB |",
        "| `half` | `onnx` | float16 | 512x768 | scores | mean IoU on 2000 pictures 41.05 % -> 41.00 % | 1.5 MB |",
        f"| `maps` | `openvino` | int8, the rest float32 | free | label maps | {same} | 1.5 MB |",
    ]
    # That which runs code is not the example.
    assert 'load_model("someone/tiny/onnx")' in section and "Loading `torch_export` runs any code" in section
    assert "33 to 4096 pixels" in section

    card = create_model_card(tiny_config("semantic_fpn"), exports=exports[1:2], **facts)
    assert "runs any code" not in card.text
    card = create_model_card(tiny_config("semantic_fpn"), exports=exports[:1], **facts)
    assert 'load_model("someone/tiny/pickle", trust_pickle=True)' in card.text


def test_lines_that_use_an_export_work(runs, monkeypatch):
    monkeypatch.chdir(runs)
    shutil.copy(runs / "trained" / "example.png", runs / "picture.jpg")
    config = VanConfig.from_pretrained("trained")
    text = create_model_card(config, model_id="outputs/trained", exports=[card_export("onnx")]).text
    code = re.search(r"## Other runtimes.*?```python\n(.*?)```", text, re.DOTALL)[1]
    assert len(code.splitlines()) == 3
    # Exporters are not everywhere; a model is loaded by the same lines.
    names = {}
    exec(code.replace("outputs/trained/onnx", "trained"), names)
    assert names["labels"].ndim == 2 and names["labels"].max() < config.num_labels


@pytest.mark.parametrize(
    ("check", "source", "message"),
    [
        ({"num_pictures": 18}, {}, "check.agreement is missing; export.py writes it"),
        ({"agreement": 98.3}, {}, "check.agreement must be a fraction, 0 to 1, got 98.3"),
        ({"agreement": 1, "mean_iou": {"num_pictures": 3, "model": 0.5}}, {}, "check.mean_iou.export is missing"),
        ({"agreement": 1, "mean_iou": 0.5}, {}, "check.mean_iou.num_pictures is missing"),
        (None, {"size": 512}, "source.size has a value of a wrong type, 512"),
        (None, {"int8": True}, "source.int8 has a value of a wrong type, True"),
    ],
)
def test_bad_facts_of_an_export_are_errors(check, source, message):
    with pytest.raises(ValueError, match=re.escape(f"onnx/export_info.json: {message}")):
        card_export("onnx", check, **source)


def test_training_from_an_authors_classifier(trained, hub_validation):
    results = json.loads((trained / "results.json").read_text())
    results["run"]["model_name_or_path"] = "Visual-Attention-Network/van-small"
    (trained / "results.json").write_text(json.dumps(results))
    card = model_card_for_folder(trained, "someone/boxes")
    check(card)
    assert card.data.base_model == "Visual-Attention-Network/van-small"
    assert "For commercial use, please contact the authors." in card.text
    results["run"]["model_name_or_path"] = "outputs/another"
    (trained / "results.json").write_text(json.dumps(results))
    card = model_card_for_folder(trained, "someone/boxes")
    assert card.data.base_model is None
    assert "Training started from `outputs/another`" in card.text
    card = model_card_for_folder(trained, "someone/boxes", base_model="someone/another")
    assert card.data.base_model == "someone/another"


@pytest.mark.parametrize(
    "folder", ["/srv/acme/", "~/acme/", "..\\acme\\", "C:\\acme\\", "file:///acme/", "data/acme/"]
)
def test_a_card_tells_no_paths(trained, folder):
    results = json.loads((trained / "results.json").read_text())
    results["run"]["model_name_or_path"] = f"{folder}base"
    results["dataset"]["name"] = f"{folder}pictures"
    results["protocol"]["metric"] += f", as in {folder}metric.txt" if folder.startswith("/") else ""
    (trained / "results.json").write_text(json.dumps(results))
    card = model_card_for_folder(trained, "someone/boxes")
    assert "from `base`, on the 7 training pictures of `pictures`" in card.text
    assert card.data.eval_results[0].dataset_name == "pictures"
    assert "acme" not in str(card)


def test_what_the_hub_refuses_is_an_error(hub_validation):
    card = create_model_card(tiny_config(), model_id="someone/tiny", dataset_id="no name")
    with pytest.raises(ValueError, match="datasets or base_model is no name"):
        card.validate()


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("mean_iou",), None, "results.json: mean_iou is missing"),
        (("mean_iou",), float("nan"), "results.json: mean_iou must be a fraction"),
        (("mean_iou",), 41.1, "results.json: mean_iou must be a fraction, 0 to 1, got 41.1"),
        (("protocol", "inference"), None, "results.json: protocol.inference is missing"),
        (("protocol",), "whole", "results.json: protocol.inference is missing"),
        (("dataset", "validation"), "five", "results.json: dataset.validation has a value of a wrong type, 'five'"),
        (("dataset", "num_labels"), 150, "results.json: dataset.num_labels is 150, but the model has 3"),
        (("num_parameters",), 5, "results.json: num_parameters is 5, but the model has"),
        (("run", "learning_rate"), None, "results.json: run.learning_rate is missing"),
        (("run", "seed"), True, "results.json: run.seed has a value of a wrong type, True"),
        # train_seg.py once evaluated only with --max_train_steps 0: its figures are of no training.
        (("run", "max_train_steps"), 0, "results.json: run.max_train_steps must be 1 or more, got 0"),
    ],
)
def test_bad_results_are_errors(trained, path, value, message):
    results = json.loads((trained / "results.json").read_text())
    inner = results
    for name in path[:-1]:
        inner = inner[name]
    if value is None:
        del inner[path[-1]]
    else:
        inner[path[-1]] = value
    (trained / "results.json").write_text(json.dumps(results))
    with pytest.raises(ValueError, match=re.escape(str(trained)) + ".*" + re.escape(message)):
        model_card_for_folder(trained, "someone/boxes")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("config.json", None, "config.json is missing"),
        ("config.json", '{"model_type": "segformer"}', "model_type must be 'van', got 'segformer'"),
        ("config.json", '{"model_type": "van", "depths": [0, 1, 1, 1]}', "config.json: .*depths"),
        ("config.json", "[]", "config.json must hold a JSON object"),
        ("results.json", '{"mean_iou": 0.5', "results.json cannot be read as JSON"),
    ],
)
def test_bad_files_are_errors(trained, name, content, message):
    (trained / name).unlink()
    if content is not None:
        (trained / name).write_text(content)
    with pytest.raises(ValueError, match=message):
        model_card_for_folder(trained, "someone/boxes")


def test_bad_arguments_are_errors():
    config = VanConfig.from_size("b0")
    with pytest.raises(ValueError, match="some one"):
        create_model_card(config, model_id="some one/b0")
    with pytest.raises(ValueError, match="released must be one of van_b0, .*got 'van_b7'"):
        create_model_card(config, model_id="someone/b0", released="van_b7")
    with pytest.raises(ValueError, match=r"released is 'fpn_van_b0_ade20k_40k', but .*decode_head 'upernet'"):
        create_model_card(config, model_id="someone/b0", released="fpn_van_b0_ade20k_40k")
    light_ham = VanConfig.from_size("b0", decode_head="light_ham")
    message = (
        "'hamnet_light_van_tiny_d256_.*', but the model has .*decode_head 'light_ham', .*ham_hidden_size 480, ham_r"
    )
    with pytest.raises(ValueError, match=message):
        create_model_card(light_ham, model_id="someone/b0", released=ham_release("light_ham_d256_b0"))
    light_ham.ham_rank = 32
    with pytest.raises(ValueError, match="ham_rank 32, which are not its"):
        create_model_card(light_ham, model_id="someone/b0", released=ham_release("light_ham_b0"))
    config.architectures = [VanModel.__name__]
    with pytest.raises(ValueError, match="architectures must hold one of .*got 'VanModel'"):
        create_model_card(config, model_id="someone/b0")


def test_weights_trained_here_are_not_the_authors(runs, measured_upernet_b0):
    training = json.loads((runs / "trained" / "results.json").read_text())
    training["dataset"]["num_labels"], training["num_parameters"] = 150, 32_133_004
    released = "upernet_van_b0_512x512_160k_ade20k"
    with pytest.raises(ValueError, match="the results are of weights trained here"):
        create_model_card(VanConfig.from_size("b0"), model_id="someone/b0", results=training, released=released)
