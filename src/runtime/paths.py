"""Where every checkpoint, head, mask, cache and result lives. The only file that joins the project's paths."""

from argparse import Namespace
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PUBLISHED = ROOT / "src" / "reporting" / "published.csv"
CORRUPTED = "corrupted"  # folder of results on corrupted test images, beside those on clean ones

# The file names of single-task results, as published.
SINGLE_TASK = {
    "none": "zeroshot_accuracies",
    "standard": "ft_accuracies",
    "linear": "linear_ft_accuracies",
    "posthoc": "posthoc_ft_accuracies",
}


def from_root(location: str | Path) -> Path:
    """Relative locations are meant from the project's root, wherever a script is started."""
    return ROOT / location


@dataclass(frozen=True)
class Paths:
    """The places of one (suite, model, seed)."""

    suite: str
    model: str
    seed: int
    save: Path
    results: Path
    cache: Path
    data: Path
    corruption: str = ""  # of the test images that results are of: name_severity

    @classmethod
    def of(cls, args: Namespace) -> "Paths":
        """From parsed flags: `--save`, `--results`, `--cache-dir`, `--data-location`, `--corruption`, `--severity`."""
        places = (args.save, args.results, args.cache_dir, args.data_location)
        corruption = f"{args.corruption}_{args.severity}" if getattr(args, "corruption", None) else ""
        return cls(args.suite, args.model, args.seed, *map(from_root, places), corruption)

    @property
    def _run(self) -> Path:
        return Path(self.suite) / self.model / f"seed_{self.seed}"

    @property
    def _seen(self) -> Path:
        """What depends on test images lies apart where they are corrupted."""
        return self._run / CORRUPTED / self.corruption if self.corruption else self._run

    def pretrained(self) -> Path:
        """θ0."""
        return self.save / self._run / "zeroshot.safetensors"

    def checkpoint(self, task: str, mode: str) -> Path:
        """θ of a task; `mode` is "standard" or "linear"."""
        return self.save / self._run / task / f"{mode}.safetensors"

    def training_state(self, task: str, mode: str) -> Path:
        """What an unfinished fine-tuning goes on from."""
        return self.save / self._run / task / f"{mode}.state"

    def head(self, dataset: str) -> Path:
        """A zero-shot head; it depends on the text tower alone, so all seeds share it."""
        return self.save / self.suite / self.model.removesuffix("__init__") / "heads" / f"{dataset}.safetensors"

    def masks(self, name: str) -> Path:
        return self.save / self._seen / "masks" / f"{name}.safetensors"

    def adaptation_state(self, name: str) -> Path:
        """What an unfinished test-time adaptation goes on from."""
        return self.save / self._seen / "adaptation" / f"{name}.state"

    def images(self) -> Path:
        """Decoded images of the real data sets, shared by all models of one input size."""
        return self.cache / "images"

    def result(self, name: str) -> Path:
        return self.results / self._seen / f"{name}.json"

    def corruptions(self) -> list[str]:
        """Those that have results."""
        return sorted(folder.name for folder in (self.results / self._run / CORRUPTED).glob("*"))

    def single_task(self, mode: str) -> Path:
        """`mode` is "none", "standard", "linear" or "posthoc"."""
        return self.result(SINGLE_TASK[mode])

    def tables(self) -> Path:
        return self.results / self.suite / "tables"

    def figures(self) -> Path:
        return self.results / self.suite / "figures"

    def claims(self) -> Path:
        return self.results / self.suite / "claims.md"
