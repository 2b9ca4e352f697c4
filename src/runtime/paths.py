"""Where every checkpoint, head, mask, cache and result lives. The only file that joins the project's paths."""

from dataclasses import dataclass
from pathlib import Path

from src.model_names import pretrained_name
from src.modes import MODES
from src.runtime.messages import UsageError

ROOT = Path(__file__).resolve().parents[2]
PUBLISHED = ROOT / "src" / "reporting" / "published.csv"
METHOD_CONFIGS = ROOT / "config" / "method"
CORRUPTED = "corrupted"  # folder of results on corrupted test images, beside those on clean ones


def expanded(location: str | Path, key: str = "") -> Path:
    """A location whose `~` is the home folder, wherever it was given.

    key: the flag or key that gave it, for messages.
    Raises UsageError where there is none, for an empty location, and for one that is no UTF-8: safetensors and Hydra
    read no other.
    """
    said = key and f"{key}: "
    if not isinstance(location, (str, Path)):  # of a key of main.py
        raise UsageError(f"{said}expected a path, found {location!r}; in quotes it is one: \"'{location}'\"")
    text = str(location)
    if not text:
        raise UsageError(f"{said}expected a path, found an empty one")
    if text != text.encode(errors="replace").decode():
        raise UsageError(f"{said}{text!a}: expected a path in UTF-8; rename it, or make a link to it of such a name")
    try:
        return Path(location).expanduser()
    except RuntimeError:
        raise UsageError(
            f"{said}{location}: expected a home folder, found none; ./{location} is the name itself"
        ) from None


def from_root(location: str | Path) -> Path:
    """Relative locations are meant from the project's root, wherever a script is started."""
    return expanded(ROOT / expanded(location))


def portable(location: Path) -> Path:
    """A location inside the project relative to its root, as `from_root` takes it."""
    return location.relative_to(ROOT) if location.is_relative_to(ROOT) else location


@dataclass(frozen=True)
class Places:
    """The folders that `--save`, `--results`, `--cache-dir` and `--data-location` name."""

    save: Path = Path("checkpoints")
    results: Path = Path("results")
    cache: Path = Path("cache")
    data: Path = Path("data")


@dataclass(frozen=True)
class Paths:
    """The files of one (suite, model, seed). corruption: of the test images that results are of, `name_severity`."""

    suite: str
    model: str
    seed: int
    places: Places = Places()
    corruption: str = ""

    @property
    def save(self) -> Path:
        return from_root(self.places.save)

    @property
    def results(self) -> Path:
        return from_root(self.places.results)

    @property
    def cache(self) -> Path:
        return from_root(self.places.cache)

    @property
    def data(self) -> Path:
        return from_root(self.places.data)

    @property
    def _seed(self) -> Path:
        return Path(self.suite) / self.model / f"seed_{self.seed}"

    @property
    def _images(self) -> Path:
        """What depends on test images lies apart where they are corrupted."""
        return self._seed / CORRUPTED / self.corruption if self.corruption else self._seed

    def pretrained(self) -> Path:
        """θ0."""
        return self.save / self._seed / "zeroshot.safetensors"

    def checkpoint(self, task: str, mode: str) -> Path:
        """θ of a task; `mode` is one that finetune.py trains."""
        return self.save / self._seed / task / f"{mode}.safetensors"

    def encoder_at(self, task: str, mode: str, step: int) -> Path:
        """θ of a task after a step of its fine-tuning, where finetune.py was asked to keep it."""
        return self.save / self._seed / task / f"{mode}_steps" / f"{step}.safetensors"

    def training_state(self, task: str, mode: str) -> Path:
        """What an unfinished fine-tuning goes on from."""
        return self.save / self._seed / task / f"{mode}.state"

    def head(self, dataset: str) -> Path:
        """A zero-shot head; it depends on the text tower alone, so all seeds share it."""
        return self.save / self.suite / pretrained_name(self.model) / "heads" / f"{dataset}.safetensors"

    def masks(self, name: str) -> Path:
        return self.save / self._images / "masks" / f"{name}.safetensors"

    def published_masks(self, tasks: int) -> Path:
        """TALL masks of a suite's first tasks, as download_checkpoints.py keeps them."""
        return self.save / self._seed / "masks" / f"published_tall_mask_{tasks}task.safetensors"

    def adaptation_state(self, name: str) -> Path:
        """What an unfinished test-time adaptation goes on from."""
        return self.save / self._images / "adaptation" / f"{name}.state"

    def images(self) -> Path:
        """Decoded images of the real data sets, shared by all models of one input size."""
        return self.cache / "images"

    def seed_results(self) -> Path:
        """The folder of a seed's results, those on corrupted images included."""
        return self.results / self._seed

    def result(self, name: str) -> Path:
        return self.results / self._images / f"{name}.json"

    def single_task(self, mode: str) -> Path:
        return self.result(MODES[mode].single_task)

    def tables(self) -> Path:
        return self.results / self.suite / "tables"

    def figures(self) -> Path:
        return self.results / self.suite / "figures"

    def claims(self) -> Path:
        return self.results / self.suite / "claims.md"

    def report(self) -> Path:
        """The page that shows everything."""
        return self.results / self.suite / "report.html"

    def index(self) -> Path:
        """Figures and tables with links, as GitHub shows a folder."""
        return self.results / self.suite / "README.md"

    def accuracies(self) -> Path:
        """Every number of every result, one a row."""
        return self.results / self.suite / "accuracies.csv"
