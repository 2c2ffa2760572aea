# Copyright 2026 The van_hf authors.
# Licensed under the Apache License, Version 2.0; see LICENSE.
"""Release a model, or a Space that shows it, on the Hub: choose the files and send them in one commit."""

import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, constants
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalTokenNotFoundError, OfflineModeIsEnabled
from huggingface_hub.hf_api import RepoFile
from huggingface_hub.utils import validate_repo_id
from safetensors import SafetensorError, safe_open

from .exports import INFO, MANIFEST, PROGRAM_SUFFIXES, digest_of_program, read_info
from .files import read_json
from .inference import digest_of_weights, load_config, load_weights
from .privacy import public_json

CARD = "README.md"
CONFIGS = ("config.json", "preprocessor_config.json")
WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "model-*-of-*.safetensors")
FIGURES = ("results.json", "train_results.json", "per_class.csv")
# What train_seg.py and eval_seg.py draw; all but the training curves and the confusion matrix show validation data.
PICTURES = (
    *("training_curves.png", "predictions.png", "example.png", "example.tif"),
    *("confusion_matrix.png", "best_pictures.png", "worst_pictures.png"),
)
EXPORT = (MANIFEST, INFO, *CONFIGS, "*.py", *(f"*{suffix}" for suffix in PROGRAM_SUFFIXES))
# What web_demo.py writes; a page cannot be without the first two.
PAGE = ("index.html", "model.json", "*.css", "*.js", "model/*", "onnxruntime/*")
# The base of all errors of the HTTP client, which is httpx in huggingface_hub 1 and httpx2 in 2.
HTTPError = HfHubHTTPError.__bases__[0]


@dataclass(frozen=True)
class PushResult:
    """What [`push`] has done.

    Attributes:
        url: address of the commit.
        created: whether the repository is a new one.
        changed: whether there was anything to commit.
        deleted: files of an earlier release that this one does not have, and that the commit has deleted.
        card_kept: whether the card on the Hub was left alone because somebody had edited it there.
    """

    url: str
    created: bool
    changed: bool
    deleted: list[str]
    card_kept: bool

    def describe(self) -> str:
        """Return what has happened, in a few lines."""
        if not self.changed:
            lines = [f"Nothing has changed since {self.url}"]
        else:
            lines = [f"Pushed to {'a new' if self.created else 'the existing'} repository: {self.url}"]
        if self.deleted:
            lines.append(f"Deleted there, as this release has no such files: {', '.join(self.deleted)}")
        if self.card_kept:
            lines.append(f"Kept {CARD} as it was edited on the Hub; --overwrite_card of push_to_hub.py replaces it")
        return "\n".join(lines)


def collect_files(
    model_dir: str | os.PathLike, evaluation_dir: str | os.PathLike | None = None, pictures: bool = True
) -> dict[str, Path | bytes]:
    """Return the files of a release by their names on the Hub; nothing else in the folders is released.

    JSON files that name paths of this machine go as copies without them, which are returned as bytes; the files
    themselves stay as they are.

    Args:
        model_dir: folder of a model and its image processor, with weights as safetensors and the code that
            `trust_remote_code=True` runs, as `save_pretrained` of van_hf's classes leaves them. Exports of the model
            that lie in it, in folders of their own, are released too.
        evaluation_dir: output folder of eval_seg.py. Its results.json is the release's, and that of the training
            becomes train_results.json.
        pictures: whether to include those that train_seg.py and eval_seg.py have drawn.

    Raises:
        ValueError: a file is missing or damaged, the model is no VAN, a README.md names a path of this machine, or an
            export is of other weights than the model's.
    """
    model_dir = Path(model_dir)
    weights = find_weights(model_dir)
    names = [*CONFIGS, *weights, *find_code(model_dir)]
    for name in names:
        if not (model_dir / name).is_file():
            raise ValueError(f"{model_dir} has no {name}: it is no whole model, saved with its image processor")
    for name in weights:
        check_weights(model_dir / name)
    for name in names:
        if name.endswith(".py"):
            check_code(model_dir / name)
    names += [name for name in (*FIGURES, *(PICTURES if pictures else ()), CARD) if (model_dir / name).is_file()]
    files = {name: model_dir / name for name in names}
    if evaluation_dir is not None:
        if "results.json" in files:
            files["train_results.json"] = files.pop("results.json")
        evaluated = (*FIGURES, *(PICTURES if pictures else ()))
        files |= {name: path for name in evaluated if (path := Path(evaluation_dir, name)).is_file()}
    if CARD in files:
        check_card(files[CARD], model_dir)
    labels = labels_of(model_dir)
    return {name: public_copy(path, labels) for name, path in files.items()} | collect_exports(model_dir)


def labels_of(model_dir: Path) -> list[str]:
    """Return the names of the labels that a configuration publishes."""
    labels = read_json(model_dir / "config.json").get("id2label")
    return list(labels.values()) if isinstance(labels, dict) else []


def collect_exports(model_dir: Path) -> dict[str, Path | bytes]:
    """Return the files of the exports in a model's folder by their names on the Hub, FOLDER/FILE.

    Raises:
        ValueError: see [`collect_export`].
    """
    folders = sorted(path.parent for path in model_dir.glob(f"*/{INFO}"))
    if not folders:
        return {}
    model, _ = load_weights(str(model_dir), load_config(str(model_dir)))
    weights = digest_of_weights(model)
    return {
        f"{folder.name}/{name}": content
        for folder in folders
        for name, content in collect_export(folder, weights).items()
    }


def collect_export(folder: Path, weights: str) -> dict[str, Path | bytes]:
    """Return the files of an export by their names; nothing else in its folder is released.

    Args:
        folder: what examples/export.py has written.
        weights: digest of the model's weights, by [`~van_hf.inference.digest_of_weights`].

    Raises:
        ValueError: a file is missing or damaged, the export is of other weights, or its folder has a name that
            OWNER/NAME/FOLDER cannot be loaded by.
    """
    if not re.fullmatch(r"\w[\w.-]*", folder.name):
        raise ValueError(f"{folder} holds an export: rename it to letters, digits, '_', '-' and '.'")
    info, program = read_info(folder, "", str(folder))
    if info.digest != weights:
        raise ValueError(
            f"{folder} is an export of other weights than the model has now: export the model again, or remove the"
            " folder"
        )
    names = [MANIFEST, INFO, *CONFIGS]
    names += sorted(path.name for path in folder.iterdir() if path.suffix in PROGRAM_SUFFIXES)
    specifications = check_manifest(folder, names)
    names += find_code(folder, is_export=True)
    for name in names:
        if not (folder / name).is_file():
            raise ValueError(f"{folder} has no {name}: it is no whole export; export the model again")
        if name.endswith(".py"):
            check_code(folder / name)
    if digest_of_program(folder) != program:
        raise ValueError(f"the program in {folder} is not the one that its {INFO} tells of: export the model again")
    kept = [*labels_of(folder), *specifications]
    return {name: public_copy(folder / name, kept) for name in names}


def check_manifest(folder: Path, names: Collection[str]) -> list[str]:
    """Return the texts of an export's manifest that it could not be loaded without, and that are no paths.

    Args:
        folder: the export's.
        names: of the files that are released.

    Raises:
        ValueError: the manifest names other files, or is damaged.
    """
    texts = []
    try:
        for component in read_json(folder / MANIFEST)["components"].values():
            if component["file"] not in names:
                raise ValueError(f"{folder} has no {component['file']}, which its {MANIFEST} names")
            # Names of files, and nested inputs and outputs as JSON in JSON, full of backslashes.
            texts += [component["file"], component["metadata"]["in_spec"], component["metadata"]["out_spec"]]
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{folder / MANIFEST} is damaged: export the model again") from error
    return texts


def find_weights(model_dir: Path) -> list[str]:
    """Return the names of the files of weights that `from_pretrained` takes: one, or else an index and its parts."""
    if (model_dir / "model.safetensors").is_file():
        return ["model.safetensors"]
    index = model_dir / "model.safetensors.index.json"
    if not index.is_file():
        raise ValueError(f"{model_dir} has no model.safetensors; from_pretrained and save_pretrained make one")
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(name, str) for name in weight_map.values()):
        raise ValueError(f"{index}: weight_map must be an object of file names, got {weight_map!r:.80}")
    # Whatever an index names would be sent.
    if elsewhere := sorted(name for name in weight_map.values() if Path(name).name != name):
        raise ValueError(f"{index}: weight_map must name files in its folder, got {elsewhere[0]!r}")
    return [index.name, *sorted(set(weight_map.values()))]


def check_weights(path: Path) -> None:
    """Raise a `ValueError` if a file of weights is cut off or no safetensors file; tensors are not read."""
    if path.suffix != ".safetensors":
        return
    try:
        with safe_open(path, framework="np"):
            pass
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{path} is damaged ({error}); save the model again") from error


def check_code(path: Path) -> None:
    """Raise a `ValueError` if a module is no Python code; it is not run."""
    try:
        compile(path.read_bytes(), path.name, "exec")
    except (SyntaxError, ValueError) as error:
        raise ValueError(f"{path} is damaged ({error}); save the model again") from error


def find_code(model_dir: Path, is_export: bool = False) -> list[str]:
    """Return the names of the modules that `trust_remote_code=True` runs, and of those that they import.

    Args:
        model_dir: folder of a model, or of an export.
        is_export: whether the model's own class, which its configuration names, is left out.
    """
    # Takes seconds to import, and whoever pushes a model has transformers loaded.
    from transformers.dynamic_module_utils import get_relative_import_files

    contents = {name: read_json(model_dir / name) for name in CONFIGS}
    model_type = contents["config.json"].get("model_type")
    if model_type != "van":
        raise ValueError(f"{model_dir / 'config.json'} is of the type {model_type!r}; it must be 'van'")
    if not contents["config.json"].get("auto_map"):
        raise ValueError(
            f"{model_dir / 'config.json'} has no auto_map, so the model loads only where van_hf is installed;"
            " from_pretrained and save_pretrained of van_hf's classes add it, and the code"
        )
    classes = [
        name
        for file, content in contents.items()
        for name in _mapped_classes(model_dir / file, content, without="AutoModel" if is_export else None)
    ]
    modules = {f"{name.split('.')[0]}.py" for name in classes}
    for module in sorted(modules):
        if not (model_dir / module).is_file():
            raise ValueError(f"{model_dir} has no {module}, which its auto_map names; save the model again")
        modules |= {Path(path).name for path in get_relative_import_files(model_dir / module)}
    return sorted(modules)


def _mapped_classes(file: Path, content: dict, without: str | None) -> list[str]:
    """Return the names of the classes in `auto_map`, but for those whose Auto class begins with `without`."""
    auto_map = content.get("auto_map") or {}
    if isinstance(auto_map, dict) and without is not None:
        auto_map = {key: value for key, value in auto_map.items() if not key.startswith(without)}
    values = list(auto_map.values()) if isinstance(auto_map, dict) else [auto_map]
    # The image processor's may be one name or, as in transformers 4, a list of a slow and a fast one.
    names = [name for value in values for name in (value if isinstance(value, list) else [value]) if name is not None]
    if not isinstance(auto_map, dict) or not all(isinstance(name, str) for name in names):
        raise ValueError(f"{file}: auto_map must be an object of class names, got {auto_map!r:.80}; save it again")
    return names


def public_copy(path: Path, labels: Collection[str]) -> Path | bytes:
    """Return what is released of a file: the file itself, or a JSON file's text without paths of this machine.

    Args:
        path: a file of a release.
        labels: names of the model's labels, and what else is no path; see [`~van_hf.privacy.public_json`].
    """
    if path.suffix != ".json":
        return path
    content = read_json(path)
    public = public_json(content, labels)
    return path if public == content else (json.dumps(public, indent=2, ensure_ascii=False) + "\n").encode()


def collect_page(page: Path) -> dict[str, Path]:
    """Return the files of a static page by their names in a Space; nothing else in its folder is released.

    Args:
        page: folder that examples/web_demo.py has written.

    Raises:
        ValueError: it is no such folder, or its texts name a path of this machine.
    """
    for name in PAGE[:2]:
        if not (page / name).is_file():
            raise ValueError(f"{page} has no {name}: it is no page that examples/web_demo.py has written")
        check_text(page / name, page, "Make the page again")
    read_json(page / "model.json")
    paths = [path for pattern in PAGE for path in sorted(page.glob(pattern)) if path.is_file()]
    return {path.relative_to(page).as_posix(): path for path in paths}


def check_card(path: Path, model_dir: Path) -> None:
    """Raise a `ValueError` if a README.md of the user's own names their home, the working or the model's folder.

    transformers' Trainer writes such cards. What somebody wrote is not rewritten here.
    """
    check_text(path, model_dir, "Edit it, or remove the file, and a card is generated")


def check_text(path: Path, folder: Path, advice: str) -> None:
    """Raise a `ValueError`, with advice, if a text names the user's home, the working folder or the given one."""
    folders = {os.path.expanduser("~"), os.getcwd(), str(folder.resolve())} - {"~", os.sep}
    private = re.compile(rf"(?<!\w)(?:{'|'.join(map(re.escape, sorted(folders)))})(?![\w-])[^\s)\]\"'`]*")
    for number, line in enumerate(path.read_text(encoding="utf-8", errors="replace").splitlines(), 1):
        if found := private.search(line):
            raise ValueError(f"{path}, line {number}, names a path of this machine: {found[0]}. {advice}")


def create_card(files: dict[str, Path | bytes], repo_id: str, released: str | None = None) -> str:
    """Return the text of a release's model card; for the arguments see [`~van_hf.model_cards.CardFacts`].

    Raises:
        ValueError: a file lacks what a card needs; the message names file and field.
    """
    from .model_cards import CardExport, model_card_for_folder

    exports = []
    for name in sorted(files):
        folder = Path(name).parent
        if Path(name) == folder / INFO:
            program = [file for file in files if Path(file).parent == folder and Path(file).suffix in PROGRAM_SUFFIXES]
            num_bytes = sum(files[file].stat().st_size for file in program)
            exports.append(CardExport(str(folder), _content(files[name]), num_bytes))
    with tempfile.TemporaryDirectory() as folder:
        for name, content in files.items():
            if Path(name).parent != Path():
                continue
            if isinstance(content, bytes):
                Path(folder, name).write_bytes(content)
            elif not any(fnmatch(name, pattern) for pattern in WEIGHTS):
                shutil.copyfile(content, Path(folder, name))
        try:
            return str(model_card_for_folder(folder, repo_id, released=released, exports=exports))
        except ValueError as error:
            raise ValueError(str(error).replace(f"{folder}{os.sep}", "")) from error


def _content(file: Path | bytes) -> dict:
    """Return the object in a JSON file of a release."""
    return json.loads(file) if isinstance(file, bytes) else read_json(file)


def seal_card(text: str) -> str:
    """Add a comment to a generated card by which [`is_sealed`] tells whether it was edited since."""
    return f"{text.rstrip()}\n\n<!-- Generated by van_hf; digest of the text above: {_digest(text)} -->\n"


def is_sealed(text: str) -> bool:
    """Return whether a card is as [`seal_card`] made it."""
    match = re.fullmatch(r"(.*)\n\n<!-- Generated by van_hf; digest of the text above: (\w+) -->\n", text, re.DOTALL)
    return match is not None and _digest(match[1]) == match[2]


def _digest(text: str) -> str:
    return hashlib.sha256(text.rstrip().encode()).hexdigest()[:16]


def check_name(repo_id: str, option: str = "--hub_model_id") -> None:
    """Raise a `ValueError` that names the option unless `repo_id` is of the form owner/name."""
    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise ValueError(f"{option} {repo_id}: {error}") from error
    if repo_id.count("/") != 1:
        raise ValueError(f"{option} must be of the form owner/name, got {repo_id!r}")


def check_access(repo_id: str) -> None:
    """Check that a push to `repo_id` can be expected to succeed, without changing anything.

    Raises:
        OSError: there is no network or no token, or the token cannot write there.
    """
    with plain_errors(repo_id):
        user = HfApi().whoami()
    role = user.get("auth", {}).get("accessToken", {}).get("role")
    if role == "read":
        raise OSError("the token can only read; make one that can write at https://huggingface.co/settings/tokens")
    # What a fine-grained token may do is not told here.
    names = [user["name"], *(organization["name"] for organization in user.get("orgs", []))]
    if role == "write" and repo_id.split("/")[0] not in names:
        raise OSError(f"you may not write to {repo_id}: the token is for {', '.join(names)}")


def push(
    files: dict[str, Path | bytes],
    repo_id: str,
    *,
    repo_type: str = "model",
    space_sdk: str = "gradio",
    card: str | None = None,
    private: bool = False,
    revision: str | None = None,
    commit_message: str = "Upload model",
    overwrite_card: bool = False,
) -> PushResult:
    """Release files on the Hub in one commit: all of them or, whatever happens, none.

    Files that are on the Hub already are not sent again, so after a failure the same call goes on where it stopped.

    Args:
        files: by their names there; for a model what [`collect_files`] returns.
        repo_type: "model" or "space".
        space_sdk: of a Space, "gradio" or "static".
        card: text of README.md where `files` has none.
        private: whether a new repository is private; one that exists must be private already.
        revision: branch, which is created from main if it is missing.
        overwrite_card: whether to replace even a README.md on the Hub that is not as van_hf generated it.

    Raises:
        ValueError: `private` was asked for and the repository is public, or the card's metadata are not valid.
        OSError: the Hub cannot be reached, or refuses.
    """
    api = HfApi()
    with plain_errors(repo_id):
        created = not api.repo_exists(repo_id, repo_type=repo_type)
        if created:
            sdk = space_sdk if repo_type == "space" else None
            api.create_repo(repo_id, repo_type=repo_type, space_sdk=sdk, private=private or None)
        if private and not api.repo_info(repo_id, repo_type=repo_type).private:
            raise ValueError(f"{repo_id} is on the Hub already, and public; change that in its settings there first")
        if revision is not None:
            api.create_branch(repo_id, repo_type=repo_type, branch=revision, exist_ok=True)
        head = api.repo_info(repo_id, repo_type=repo_type, revision=revision).sha
        tree = api.list_repo_tree(repo_id, repo_type=repo_type, recursive=True, revision=head)
        present = {entry.path for entry in tree if isinstance(entry, RepoFile)}

        contents = {**({CARD: seal_card(card).encode()} if card else {}), **files}
        card_kept = CARD in present and CARD in contents and not overwrite_card
        card_kept = card_kept and _is_edited(api, repo_id, repo_type, head)
        if card_kept:
            del contents[CARD]
        kind = space_sdk if repo_type == "space" else repo_type
        deleted = sorted(path for path in present - contents.keys() if _is_ours(path, present, kind))
        operations = [CommitOperationAdd(path, content) for path, content in sorted(contents.items())]
        operations += [CommitOperationDelete(path) for path in deleted]
        # Because its parent is given, the commit fails if someone else's has come in between.
        commit = api.create_commit(
            repo_id,
            operations,
            repo_type=repo_type,
            commit_message=commit_message,
            revision=revision,
            parent_commit=head,
        )
    return PushResult(str(commit.commit_url), created, commit.oid != head, deleted, card_kept)


def _is_ours(path: str, present: Collection[str], kind: str) -> bool:
    """Return whether a file on the Hub is one of those that releases bring.

    Old weights in another number of files, left beside the new ones, might be loaded instead; and what lies in the
    folder of an old export is of old weights.

    Args:
        path: of the file.
        present: all files that are there.
        kind: of the release, "model", "gradio" or "static".
    """
    if kind == "gradio":
        return fnmatch(path, "van_hf/*")
    if kind == "static":
        return path.startswith(("model/", "onnxruntime/"))
    folder, _, name = path.rpartition("/")
    if folder and "/" not in folder and f"{folder}/{INFO}" in present:
        return any(fnmatch(name, pattern) for pattern in EXPORT)
    return any(fnmatch(path, pattern) for pattern in (*WEIGHTS, *FIGURES, *PICTURES))


def _is_edited(api: HfApi, repo_id: str, repo_type: str, revision: str) -> bool:
    with tempfile.TemporaryDirectory() as folder:
        path = api.hf_hub_download(repo_id, CARD, repo_type=repo_type, revision=revision, local_dir=folder)
        return not is_sealed(Path(path).read_bytes().decode(errors="replace"))


@contextmanager
def plain_errors(repo_id: str) -> Iterator[None]:
    """Turn the errors of the Hub's client into an `OSError` of one line that says what would help."""
    try:
        yield
    except (HTTPError, OfflineModeIsEnabled, LocalTokenNotFoundError) as error:
        raise OSError(explain(error, repo_id)) from error
    except RuntimeError as error:
        # The client wraps what went wrong with a file of weights.
        if not isinstance(error.__cause__, HTTPError):
            raise
        raise OSError(explain(error.__cause__, repo_id)) from error


def explain(error: Exception, repo_id: str) -> str:
    """Return what an error of the Hub's client means for a push, in one line."""
    if isinstance(error, LocalTokenNotFoundError):
        return "there is no token; run `hf auth login`, or set HF_TOKEN (https://huggingface.co/settings/tokens)"
    if isinstance(error, OfflineModeIsEnabled):
        return "nothing can be pushed while HF_HUB_OFFLINE is set"
    again = "The same command again goes on with what is missing"
    if not isinstance(error, HfHubHTTPError):
        return f"the connection to {constants.ENDPOINT} failed ({str(error) or type(error).__name__}). {again}"
    status = error.response.status_code
    said = error.server_message or error.response.headers.get("X-Error-Message") or error.response.reason_phrase
    said = " ".join(said.split())
    if status == 401:
        return f"the Hub does not accept the token ({said}); run `hf auth login`, or set HF_TOKEN to a valid one"
    if status == 403:
        return f"you may not write to {repo_id} with this token ({said})"
    if status == 412:
        return f"{repo_id} has had another commit in the meantime. Look at it, then give the same command again"
    return f"{constants.ENDPOINT} answered with the error {status} ({said}). {again}"
