"""Fetches published checkpoints or masks, verifies them and converts them to this project's format.

    python download_checkpoints.py --model='ViT-B-16' --kind=checkpoints                    # Google Drive
    python download_checkpoints.py --model=ViT-B-16 --kind=checkpoints --source=hub         # the same from the hub
    python download_checkpoints.py --model=ViT-B-32 --kind=tall_masks --source=hub
    python download_checkpoints.py --model=ViT-B-32 --kind=checkpoints --from-folder=DIR    # fetched by hand
    python download_checkpoints.py --model=ViT-B-32 --kind=checkpoints --source=hub --publisher=fusion_bench \\
        --save=checkpoints_fusion_bench                                                     # other fine-tunes: apart

Killed and started again it goes on. Files are whole and verified, or not used: against the hub's own SHA-256, or for
Google Drive, which states none, against the one recorded at the first download (verified.json). No pickle is executed.
"""

import json
import os
import re
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import gdown
import huggingface_hub
from huggingface_hub.errors import HTTPError, RepositoryNotFoundError  # HTTPError: of whichever library the hub uses

from src import checkpoints, store
from src.args import base_parser, parse
from src.checkpoints import CheckpointError
from src.datasets.download import TIMEOUT, set_aside
from src.runtime.files import file_hash, replacing
from src.runtime.paths import Paths
from src.runtime.program import exit_on_user_error

DRIVE = "https://drive.google.com"
DRIVE_FOLDERS = {
    "checkpoints": {
        "ViT-B-32": "16xmoeMqNf1JlICqjMUEgHiH6mHn0G1f0",
        "ViT-B-16": "1dmLqIwCYPqO0qsNEuflPhC5-_QodQHDv",
        "ViT-L-14": "1QFBcz79RqXUAkEVlYOItt6VJIcf1Ppq6",
    },
    "tall_masks": {
        "ViT-B-32": "1jpqsurrAdD5bn9i7pRBsTq4E3ayPb0YK",
        "ViT-B-16": "1jYNsdeFz6vlwIl5s4T48zeTm7FdwTSL9",
        "ViT-L-14": "16GVDMhpScmM3zeyfubjmNRFLiFKkBE7p",
    },
}
MODELS = tuple(DRIVE_FOLDERS["checkpoints"])
TALL_REPO = "nik-dim/tall_masks"
FUSION_BENCH_REPO = "tanganke/clip-vit-{}_{}"
FUSION_BENCH_MODELS = {"ViT-B-32": "base-patch32", "ViT-B-16": "base-patch16", "ViT-L-14": "large-patch14"}
FUSION_BENCH_TASKS = {
    "sun397": "SUN397",
    "stanford-cars": "Cars",
    "resisc45": "RESISC45",
    "eurosat": "EuroSAT",
    "svhn": "SVHN",
    "gtsrb": "GTSRB",
    "mnist": "MNIST",
    "dtd": "DTD",
    "oxford_flowers102": "Flowers102",
    "pcam": "PCAM",
    "fer2013": "FER2013",
    "oxford-iiit-pet": "OxfordIIITPet",
    "stl10": "STL10",
    "cifar100": "CIFAR100",
    "cifar10": "CIFAR10",
    "food101": "Food101",
    "fashion_mnist": "FashionMNIST",
    "emnist_letters": "EMNIST_letters",  # 26 classes: not the EMNIST (digits) of TALL's tasks
    "kmnist": "KMNIST",
    "rendered-sst2": "RenderedSST2",
}
# What a file is, by how its path ends; the group is the task, or the number of tasks.
PATTERNS = {
    "tall": {
        "checkpoints": {
            "encoder": r"(?:^|/)(\w+?)Val/nonlinear_finetuned\.pt$",
            "head": r"(?:^|/)head_(\w+?)Val\.pt$",
        },
        "tall_masks": {"masks": r"(?:^|/)TALL_mask_(\d+)task\.npy$"},
    },
    "fusion_bench": {"checkpoints": {"encoder": r"(?:^|/)clip-vit-[a-z]+-patch\d+_([\w-]+)/model\.safetensors$"}},
}
NOTES = {
    ("tall", "DTD"): "fine-tuned on images of DTD's test set: its single-task accuracy of 0.98 is not a clean one",
    ("fusion_bench", "EMNIST_letters"): "26 letters; the EMNIST of the papers' 20 tasks is the digits",
}


class DownloadError(RuntimeError):
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
    files = gdown.download_folder(id=folder, skip_download=True, quiet=True, timeout=TIMEOUT)
    return [(file.path, file.id) for file in files]


def drive_fetch(part: Path, file: str) -> None:
    gdown.download(id=file, output=str(part), resume=True, retries=3, timeout=TIMEOUT)


def hub_listing(repo: str) -> tuple[str, list[tuple[str, int, str | None]]]:
    """The revision that a hub repository is at, and (path, size, SHA-256) of its files; large ones have the hash."""
    try:
        info = huggingface_hub.HfApi().model_info(repo, files_metadata=True, timeout=TIMEOUT)
    except RepositoryNotFoundError:  # not every model was fine-tuned on every task
        return "", []
    return info.sha, [(file.rfilename, file.size, file.lfs and file.lfs.sha256) for file in info.siblings]


def hub_fetch(part: Path, repo: str, revision: str, path: str) -> None:
    # The hub's client keeps unfinished bytes in this folder and puts a file in its place when it is whole.
    folder = part.parent / "hub"
    os.replace(huggingface_hub.hf_hub_download(repo, path, revision=revision, local_dir=folder), part)


# What is published where.


def published(args) -> list[Published]:
    """The files of this model and kind, from the source that `args` chooses."""
    if args.from_folder:
        files = [path for path in sorted(args.from_folder.rglob("*")) if path.is_file()]
        found = [recognise(args, path.resolve().as_posix(), origin=path.name) for path in files]
    elif args.source == "drive":
        listing = asked(args, partial(drive_listing, drive_folder(args)))
        origin = f"{DRIVE}/file/d/"
        found = [recognise(args, path, origin + file, partial(drive_fetch, file=file)) for path, file in listing]
    else:
        found = [file for repo in repositories(args) for file in hub_files(args, repo)]
    found = [file for file in found if file and (file.what == "masks" or task(file.name) in args.tasks)]
    if not found:
        where = args.from_folder or pages(args)[0]
        patterns = ", ".join(PATTERNS[args.publisher][args.kind].values())
        raise DownloadError(f"expected {args.kind} of {args.model} in {where}, found no path that matches {patterns}")
    return found


def hub_files(args, repo: str) -> list[Published | None]:
    revision, listing = asked(args, partial(hub_listing, repo))
    return [
        recognise(
            args,
            f"{repo}/{path}",
            f"{repo}@{revision}",
            partial(hub_fetch, repo=repo, revision=revision, path=path),
            size,
            digest,
        )
        for path, size, digest in listing
    ]


def repositories(args) -> list[str]:
    if args.publisher == "tall":
        return [TALL_REPO]
    theirs = [name for name, ours in FUSION_BENCH_TASKS.items() if task(ours) in args.tasks]
    return [FUSION_BENCH_REPO.format(FUSION_BENCH_MODELS[args.model], name) for name in theirs]


def recognise(args, path: str, origin: str, *facts) -> Published | None:
    """The published file at `path`, or None for one of another kind or model."""
    spelled = {name.lower(): name for name in MODELS} | {theirs: name for name, theirs in FUSION_BENCH_MODELS.items()}
    parts = re.split(r"/|clip-vit-|_", path.lower())  # the hub has a folder VIT-B-16
    models = {spelled[part] for part in parts if part in spelled}
    if models and args.model not in models:
        return None
    for what, pattern in PATTERNS[args.publisher][args.kind].items():
        if match := re.search(pattern, path):
            name = match[1] if args.publisher == "tall" else FUSION_BENCH_TASKS.get(match[1])
            return name and Published(path, what, name, origin, *facts)
    return None


def task(name: str) -> str:
    """The task of the suite that a data set is, or is a variant of: EMNIST_letters stands in the place of EMNIST."""
    return name.partition("_")[0]


def drive_folder(args) -> str:
    return DRIVE_FOLDERS[args.kind][args.model]


def pages(args) -> list[str]:
    """Where a browser finds the files."""
    if args.source == "drive":
        return [f"{DRIVE}/drive/folders/{drive_folder(args)}"]
    return [f"{huggingface_hub.constants.ENDPOINT}/{repo}" for repo in repositories(args)]


# Fetching and installing.


def asked(args, request: Callable):
    """The answer to a request over the network, whose failures become one message that says what else can be done."""
    command = f"python download_checkpoints.py --model={args.model} --kind={args.kind}"
    try:
        return request()
    except gdown.exceptions.DownloadError as error:
        raise DownloadError(
            f"Google Drive did not give the file: {error}\nMost often its quota for the day is used up. The same files "
            f"are on the hub: {command} --source=hub\nOr run this command again later: it goes on where it stopped."
        ) from error
    except (OSError, HTTPError, RuntimeError) as error:
        raise DownloadError(
            f"the download stopped: {type(error).__name__}: {error}\nRun the same command again: it goes on where it "
            f"stopped. Or fetch the files by hand from {pages(args)[0]} and run: {command} --from-folder=DIR"
        ) from error


def check_network(args) -> None:
    host = DRIVE if args.source == "drive" else huggingface_hub.constants.ENDPOINT
    if not reachable(host):
        raise DownloadError(
            f"no network: {host} does not answer. On a machine that has one, fetch the files from "
            f"{', '.join(pages(args)[:2])}{', ...' if len(pages(args)) > 2 else ''}, copy them here and run:\n"
            f"python download_checkpoints.py --model={args.model} --kind={args.kind} "
            f"--publisher={args.publisher} --from-folder=DIR"
        )


def download(args, file: Published, folder: Path) -> Path:
    """The file on this machine, whole and verified; what was fetched before is not fetched again."""
    if file.fetch is None:
        return Path(file.path)
    raw = folder / file.path
    part = raw.with_name(f"{raw.name}.part")
    if not raw.is_file():
        raw.parent.mkdir(parents=True, exist_ok=True)
        print(f"fetching {file.path}", flush=True)
        asked(args, partial(file.fetch, part))
        verify(file, part, folder / "verified.json")
        os.replace(part, raw)
    else:  # an earlier run stopped between fetching and converting
        verify(file, raw, folder / "verified.json")
    return raw


def verify(file: Published, path: Path, record: Path) -> None:
    """Compare size and SHA-256 with the source's own, or with those recorded at the first download.

    Raises DownloadError after setting a file that differs aside.
    """
    known = json.loads(record.read_text()) if record.is_file() else {}
    found = {"size": path.stat().st_size, "sha256": file_hash(path)}
    stated = {"size": file.size, "sha256": file.sha256}
    expected = known.get(file.path, {}) | {key: value for key, value in stated.items() if value is not None}
    if any(found[key] != value for key, value in expected.items()):
        aside = set_aside(path, path.with_name(path.name.removesuffix(".part")))
        raise DownloadError(
            f"{file.path}: expected {expected}, found {found}; set aside as {aside}. Run the same command again; "
            f"if the publisher replaced the file, remove its entry from {record} first."
        )
    if known.get(file.path) != found:
        with replacing(record) as temporary:
            temporary.write_text(json.dumps(known | {file.path: found}, indent=1) + "\n", encoding="utf-8")


def target(file: Published, paths: Paths) -> Path:
    if file.what == "masks":
        return paths.masks(f"published_tall_mask_{file.name}task")
    return paths.head(file.name) if file.what == "head" else paths.checkpoint(file.name, "standard")


def installed(args, file: Published, destination: Path) -> bool:
    """Whether this publisher's file is there already. Raises DownloadError when something else is in its place."""
    if args.overwrite or not destination.is_file():
        return False
    try:
        header = checkpoints.header(destination)
    except CheckpointError as error:
        print(f"{error}\nfetching it again")
        return False
    publisher = (header.get("provenance") or {}).get("publisher")
    if publisher == args.publisher:
        return True
    if file.what == "head":
        return True  # one built here from the same prompts and text tower: no work is lost either way
    raise DownloadError(
        f"expected nothing, or {file.name} of {args.publisher}, in {destination}, found a checkpoint "
        f"{f'of {publisher}' if publisher else 'that was fine-tuned here'}; "
        "keep them apart with --save=ANOTHER_FOLDER, or replace it with --overwrite"
    )


def install(args, file: Published, raw: Path, destination: Path) -> None:
    """Convert to the one format, with the origin in the header."""
    paths = Paths.of(args)
    # The others bring all their tensors; they are compared with the pre-trained encoder where that is at hand.
    needs_pretrained = file.what == "masks" or args.publisher == "fusion_bench"
    pretrained = store.pretrained(args) if needs_pretrained or paths.pretrained().is_file() else None
    provenance = {"publisher": args.publisher, "origin": file.origin}
    if note := NOTES.get((args.publisher, file.name)):
        provenance["note"] = note
        print(f"{file.name}: {note}")
    facts = {"model": args.model, "task": None if file.what == "masks" else file.name, "seed": args.seed}
    checkpoints.convert(raw, destination, **facts, pretrained=pretrained, provenance=provenance)


def run(args) -> None:
    paths = Paths.of(args)
    if not args.from_folder:
        check_network(args)
    files = [(file, target(file, paths)) for file in published(args)]
    left = [(file, destination) for file, destination in files if not installed(args, file, destination)]
    print(f"{args.kind} of {args.model} ({args.publisher}): {len(files)} files, {len(files) - len(left)} there already")
    for file, destination in left:
        raw = download(args, file, args.downloads or paths.cache / "published" / args.publisher / args.model)
        install(args, file, raw, destination)
        if file.fetch and not args.keep:
            raw.unlink()
        print(f"{file.path} -> {destination}", flush=True)
        if file.what == "masks":
            print(f"python main.py model={args.model} method=tall_mask scope=published method.mask_file={destination}")
    missing = [name for name in args.tasks if name not in {task(file.name) for file, _ in files}]
    if missing and args.kind == "checkpoints":
        print(f"not published there: {', '.join(missing)}")


@exit_on_user_error
def main(argv=None) -> None:
    parser = base_parser(__doc__, modes=None)
    parser.add_argument("--kind", required=True, choices=tuple(DRIVE_FOLDERS))
    parser.add_argument("--source", choices=("drive", "hub"), default="drive")
    parser.add_argument("--publisher", choices=tuple(PATTERNS), default="tall", help="fusion_bench is on the hub only")
    parser.add_argument("--from-folder", type=Path, metavar="DIR", help="take files that were fetched by hand")
    parser.add_argument("--downloads", type=Path, help="folder of the files as published; default: in --cache-dir")
    parser.add_argument("--keep", action="store_true", help="keep the files as published after converting them")
    args = parse(parser, argv)
    if args.model not in MODELS:
        parser.error(f"--model: expected one of {', '.join(MODELS)}, found {args.model}")
    if args.kind not in PATTERNS[args.publisher]:
        parser.error(f"--kind: {args.publisher} publishes {', '.join(PATTERNS[args.publisher])}, not {args.kind}")
    if args.publisher == "fusion_bench" and args.source == "drive" and not args.from_folder:
        parser.error("--publisher: fusion_bench is on the hub: add --source=hub")
    if args.from_folder and not args.from_folder.is_dir():
        parser.error(f"--from-folder: expected a folder, found none at {args.from_folder}")
    try:
        run(args)
    except (DownloadError, CheckpointError) as error:
        raise SystemExit(str(error)) from None


if __name__ == "__main__":
    main()
