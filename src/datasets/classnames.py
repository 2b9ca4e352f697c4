"""Class names of the vision data sets, in label order, as the published code gives them to the text tower.

`classnames.json` holds the lists. What looks odd in them is as published, because the published heads are made of it:
Food101 and CIFAR100 keep their underscores, and FER2013's prompts hold whole Python lists. ImageNet's names are those
that open_clip ships (a test compares them); a copy, because importing open_clip takes seconds.
"""

import json
from pathlib import Path

CLASSNAMES: dict[str, tuple[str, ...]] = {
    name: tuple(names)
    for name, names in json.loads(Path(__file__).with_suffix(".json").read_text(encoding="utf-8")).items()
}
