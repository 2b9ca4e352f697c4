"""What is published where, and the way of a published file: found, fetched, verified, converted.

A file is whole and verified, or not used: against the hub's own SHA-256, or for Google Drive, which states none,
against the one recorded at the first download (verified.json).
"""

import json
import os
import re
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import gdown
import huggingface_hub
from huggingface_hub.errors import HTTPError, RepositoryNotFoundError  # HTTPError: of whichever library the hub uses
from pydantic import TypeAdapter, ValidationError

from src import checkpoints, store
from src.checkpoints import CheckpointError
from src.datasets import registry
from src.datasets.download import TIMEOUT, set_aside
from src.published.convert import convert
from src.published.sources import (
    DRIVE,
    DRIVE_FOLDERS,
    FUSION_BENCH_MODELS,
    FUSION_BENCH_REPO,
    FUSION_BENCH_TASKS,
    MODELS,
    NOTES,
    PATTERNS,
    TALL_REPO,
)
from src.run import Run, as_overrides
from src.runtime.files import file_hash, read_json, replacing
from src.runtime.messages import UsageError, few
from src.runtime.paths import Paths

Answer = TypeVar("Answer")
_VERIFIED = TypeAdapter(dict[str, dict[str, int | str]])  # path -> size and sha256


class DownloadError(CheckpointError):
    """Something cannot be fetched, or is not what it should be; the message says what to do."""


@dataclass(frozen=True)
class Published:
    """One published file. `fetch(part)` leaves the whole file at `part`, going on from an earlier attempt."""

    path: str  # in its source
    what: str  # "encoder", "head" or "masks"
    name: str  # the task; of masks, the number of tasks
    origin: str
    fetch: Callable[[Path], None] | None = None  # None: the file is on this machine already, at `path`
    size: int | None = None  # bytes, and SHA-256, where the source states them
    sha256: str | None = None


# The network: what tests put fakes in the place of.


def reachable(url: str) -> bool:
    """Whether a server answers, whatever it says."""
    try:
        urllib.request.urlopen(urllib.request.Request(url, method="HEAD"), timeout=TIMEOUT).close()
    except urllib.error.HTTPError:
        return True
    except OSError:  # no name, no route, no answer in time
        return False
    return True


def drive_listing(folder: str) -> list[tuple[str, str]]:
    """(path, id) of every file under a shared Google Drive folder."""
    files: Any = gdown.download_folder(id=folder, skip_download=True, quiet=True, timeout=TIMEOUT)
    return [(file.path, file.id) for file in files]


def drive_fetch(part: Path, file: str) -> None:
    gdown.download(id=file, output=str(part), resume=True, retries=3, timeout=TIMEOUT)


def hub_listing(repo: str) -> tuple[str, list[tuple[str, int, str | None]]]:
    """The revision that a hub repository is at, and (path, size, SHA-256) of its files; large ones have the hash."""
    try:
        info = huggingface_hub.HfApi().model_info(repo, files_metadata=True, timeout=TIMEOUT)
    except RepositoryNotFoundError:  # not every model was fine-tuned on every task
        return "", []
    files = info.siblings or []
    return info.sha or "", [(file.rfilename, file.size or 0, file.lfs.sha256 if file.lfs else None) for file in files]


def hub_fetch(part: Path, repo: str, revision: str, path: str) -> None:
    # The hub's client keeps unfinished bytes in this folder and puts a file in its place when it is whole.
    folder = part.parent / "hub"
    os.replace(huggingface_hub.hf_hub_download(repo, path, revision=revision, local_dir=folder), part)


@dataclass(frozen=True)
class Request:
    """Which files are asked for, and of whom."""

    model: str
    kind: str  # "checkpoints" (with heads) or "tall_masks"
    tasks: tuple[str, ...]
    publisher: str = "tall"
    source: str = "drive"  # or "hub"
    folder: Path | None = None  # of files that were fetched by hand, in the place of a source
    run_flags: str = ""  # of the run that it is for, its folders among them

    @property
    def command(self) -> str:
        return f"python download_checkpoints.py {self.run_flags or f'--model={self.model}'} --kind={self.kind}"

    @property
    def drive_folder(self) -> str:
        return DRIVE_FOLDERS[self.kind][self.model]

    @property
    def repositories(self) -> list[str]:
        """Of the hub."""
        if self.publisher == "tall":
            return [TALL_REPO]
        theirs = [name for name, ours in FUSION_BENCH_TASKS.items() if task_of(ours) in self.tasks]
        return [FUSION_BENCH_REPO.format(FUSION_BENCH_MODELS[self.model], name) for name in theirs]

    @property
    def pages(self) -> list[str]:
        """Where a browser finds the files."""
        if self.source == "drive":
            return [f"{DRIVE}/drive/folders/{self.drive_folder}"]
        return [f"{huggingface_hub.constants.ENDPOINT}/{repo}" for repo in self.repositories]

    def recognise(self, published_path: str, origin: str, *facts: Any) -> Published | None:
        """The published file at a path; None for one of another kind, model or task. facts: Published's others."""
        spelled = {name.lower(): name for name in MODELS} | {name: ours for ours, name in FUSION_BENCH_MODELS.items()}
        path = re.sub(r"models--([^/]+?)--([^/]+)/snapshots/[^/]+/", r"\1/\2/", published_path)  # the client's cache
        folders = [re.sub(r"^clip-vit-(\w+-patch\d+)_.*", r"\1", folder) for folder in path.lower().split("/")]
        models = {spelled[folder] for folder in folders if folder in spelled}  # the hub has one called VIT-B-16
        if models and self.model not in models:
            return None
        for what, pattern in PATTERNS[self.publisher][self.kind].items():
            if match := re.search(pattern, path):
                name = match[1] if self.publisher == "tall" else FUSION_BENCH_TASKS.get(match[1])
                if name and (what == "masks" or task_of(name) in self.tasks):
                    return Published(published_path, what, name, origin, *facts)
        return None


def task_of(name: str) -> str:
    """The task of the suite that a data set is, or is a variant of: EMNIST_letters stands in the place of EMNIST."""
    return name.partition("_")[0]


def listed(request: Request) -> list[Published]:
    """The files that are asked for. Raises DownloadError where there is none, or where the source cannot be asked."""
    paths: list[Path] = []
    if request.folder:
        paths = [path for path in sorted(request.folder.rglob("*")) if path.is_file()]
        recognised = [request.recognise(os.path.abspath(path), path.name) for path in paths]
    elif request.source == "drive":
        listing = asked(request, partial(drive_listing, request.drive_folder))
        origin = f"{DRIVE}/file/d/"
        recognised = [request.recognise(path, origin + file, partial(drive_fetch, file=file)) for path, file in listing]
    else:
        recognised = [file for repo in request.repositories for file in hub_files(request, repo)]
    files = [file for file in recognised if file]
    if not files:
        source = request.folder or request.pages[0]
        patterns = ", ".join(PATTERNS[request.publisher][request.kind].values())
        others = f", among {few([path.name for path in paths])}" if request.folder and paths else ""
        raise DownloadError(
            f"expected {request.kind} of {request.model} in {source}, found no path that matches {patterns}{others}; "
            "folders that are called by another model's name are left out"
        )
    return files


def hub_files(request: Request, repo: str) -> list[Published | None]:
    revision, listing = asked(request, partial(hub_listing, repo))
    return [
        request.recognise(
            f"{repo}/{path}",
            f"{repo}@{revision}",
            partial(hub_fetch, repo=repo, revision=revision, path=path),
            size,
            digest,
        )
        for path, size, digest in listing
    ]


def asked(request: Request, question: Callable[[], Answer]) -> Answer:
    """The answer to a question over the network, whose failures become one message that says what else can be done."""
    try:
        return question()
    except gdown.exceptions.DownloadError as error:
        raise DownloadError(
            f"Google Drive did not give the file: {error}\nMost often its quota for the day is used up. The same files "
            f"are on the hub: {request.command} --source=hub\nOr run this command again later: it goes on where it "
            "stopped."
        ) from error
    except (OSError, HTTPError, RuntimeError) as error:
        raise DownloadError(
            f"the download stopped: {type(error).__name__}: {error}\nRun the same command again: it goes on where it "
            f"stopped. Or fetch the files by hand from {request.pages[0]} and run: {request.command} --from-folder=DIR"
        ) from error


def check_network(request: Request) -> None:
    host = DRIVE if request.source == "drive" else huggingface_hub.constants.ENDPOINT
    if not reachable(host):
        pages = ", ".join(request.pages[:2]) + (", ..." if len(request.pages) > 2 else "")
        raise DownloadError(
            f"no network: {host} does not answer. On a machine that has one, fetch the files from {pages}, copy them "
            f"here and run:\n{request.command} --publisher={request.publisher} --from-folder=DIR"
        )


def fetch(request: Request, file: Published, folder: Path) -> Path:
    """The file on this machine, whole and verified; what was fetched before is not fetched again."""
    if file.fetch is None:
        return Path(file.path)
    raw = folder / file.path
    if not raw.resolve().is_relative_to(folder.resolve()):  # the source chose the name
        raise DownloadError(f"expected a path inside {folder}, found {file.path!r}: take it for hostile")
    part = raw.with_name(f"{raw.name}.part")
    if not raw.is_file():
        raw.parent.mkdir(parents=True, exist_ok=True)
        print(f"fetching {file.path}", flush=True)
        asked(request, partial(file.fetch, part))
        verify(file, part, folder / "verified.json")
        os.replace(part, raw)
    else:  # an earlier run stopped between fetching and converting
        verify(file, raw, folder / "verified.json")
    return raw


def verify(file: Published, path: Path, record: Path) -> None:
    """Compare size and SHA-256 with the source's own, or with those recorded at the first download.

    Raises DownloadError after setting a file that differs aside.
    """
    try:
        known = _VERIFIED.validate_python(read_json(record)) if record.is_file() else {}
    except ValueError as error:
        reason = error.errors(include_url=False)[0]["msg"] if isinstance(error, ValidationError) else error
        raise DownloadError(
            f"{record}: expected the sizes and hashes of earlier downloads, found a damaged file ({reason}); remove "
            "it, and they are noted anew"
        ) from None
    facts = {"size": path.stat().st_size, "sha256": file_hash(path)}
    stated = {"size": file.size, "sha256": file.sha256}
    expected = known.get(file.path, {}) | {key: value for key, value in stated.items() if value is not None}
    if any(facts[key] != value for key, value in expected.items()):
        aside = set_aside(path, path.with_name(path.name.removesuffix(".part")))
        raise DownloadError(
            f"{file.path}: expected {expected}, found {facts}; set aside as {aside}. Run the same command again; "
            f"if the publisher replaced the file, remove its entry from {record} first."
        )
    if known.get(file.path) != facts:
        with replacing(record) as temporary:
            temporary.write_text(json.dumps(known | {file.path: facts}, indent=1) + "\n", encoding="utf-8")


def target(file: Published, paths: Paths) -> Path:
    if file.what == "masks":
        return paths.published_masks(int(file.name))
    return paths.head(file.name) if file.what == "head" else paths.checkpoint(file.name, "standard")


def installed(request: Request, file: Published, destination: Path) -> bool:
    """Whether this publisher's file is there already. Raises DownloadError when something else is in its place."""
    if not destination.is_file():
        return False
    try:
        header = checkpoints.header(destination)
    except CheckpointError as error:
        print(f"{error}\nfetching it again")
        return False
    publisher = (header.get("provenance") or {}).get("publisher")
    if publisher == request.publisher:
        return True
    if file.what == "head":
        return True  # one built here from the same prompts and text tower: no work is lost either way
    raise DownloadError(
        f"expected nothing, or {file.name} of {request.publisher}, in {destination}, found a checkpoint "
        f"{f'of {publisher}' if publisher else 'that was fine-tuned here'}; "
        "keep them apart with --save=ANOTHER_FOLDER, or replace it with --overwrite"
    )


def install(
    request: Request, file: Published, raw: Path, destination: Path, seed: int, pretrained: Mapping | None
) -> None:
    """Convert to the one format, with the origin in the header."""
    provenance = {"publisher": request.publisher, "origin": file.origin}
    if note := NOTES.get((request.publisher, file.name)):
        provenance["note"] = note
        print(f"{file.name}: {note}")
    task = None if file.what == "masks" else file.name
    convert(
        raw,
        destination,
        model=request.model,
        task=task,
        seed=seed,
        pretrained=pretrained,
        provenance=provenance,
        began_at=store.fingerprints(pretrained)["image"] if pretrained and file.what == "encoder" else None,
    )


def download(
    request: Request,
    paths: Paths,
    pretrained: Callable[[], Mapping],
    folder: Path | None = None,
    keep: bool = False,
    overwrite: bool = False,
) -> None:
    """Fetch and convert every file of a request that is not there yet.

    pretrained: gives the pre-trained encoder; called for what cannot be converted without it, or where it is at hand.
    folder: where files lie as they were published; by default in the cache. keep: leave them there.
    Raises DownloadError and CheckpointError.
    """
    if not request.folder:
        check_network(request)
    folder = folder or paths.cache / "published" / request.publisher / request.model
    files = [(file, target(file, paths)) for file in listed(request)]
    left = [pair for pair in files if overwrite or not installed(request, *pair)]
    counts = f"{len(files)} files, {len(files) - len(left)} there already"
    print(f"{request.kind} of {request.model} ({request.publisher}): {counts}")
    for file, destination in left:
        raw = fetch(request, file, folder)
        # The others bring all their tensors; they are compared with the pre-trained encoder where that is at hand.
        needed = file.what == "masks" or request.publisher == "fusion_bench" or paths.pretrained().is_file()
        install(request, file, raw, destination, paths.seed, pretrained() if needed else None)
        if file.fetch and not keep:
            raw.unlink()
        print(f"{file.path} -> {destination}", flush=True)
        if file.what == "masks":
            named = as_overrides(Run(paths.suite, paths.model, paths.seed, (), paths.places).named())
            print(f"python main.py {named} num_tasks={file.name} method=tall_mask method.load_mask=True")
    missing = [name for name in request.tasks if name not in {task_of(file.name) for file, _ in files}]
    if missing and request.kind == "checkpoints":
        print(f"not published there: {', '.join(missing)}")


def fetch_published(
    run: Run,
    kind: str,
    source: str = "drive",
    publisher: str = "tall",
    from_folder: Path | None = None,
    downloads: Path | None = None,
    keep: bool = False,
    overwrite: bool = False,
) -> None:
    """Fetch and convert what is published for the model and tasks of a run. Raises UsageError; see `download`."""
    if run.model not in MODELS:
        raise UsageError(f"--model: expected one of {', '.join(MODELS)}, found {run.model}")
    if kind not in PATTERNS[publisher]:
        raise UsageError(f"--kind: {publisher} publishes {', '.join(PATTERNS[publisher])}, not {kind}")
    if publisher == "fusion_bench" and source == "drive" and not from_folder:
        raise UsageError("--publisher: fusion_bench is on the hub: add --source=hub")
    if from_folder and not from_folder.is_dir():
        raise UsageError(f"--from-folder: expected a folder, found none at {from_folder}")
    tasks = "" if run.tasks == registry.SUITES[run.suite].default else f" --tasks={','.join(run.tasks)}"
    request = Request(run.model, kind, run.tasks, publisher, source, from_folder, run.flags() + tasks)
    download(request, run.paths, partial(store.pretrained, run), downloads, keep=keep, overwrite=overwrite)
