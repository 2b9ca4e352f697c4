"""Print the environment that results depend on: versions, device, threads, commit.

    python -m src.environment

An issue should quote its output.
"""

import os
import platform
from collections.abc import Sequence

import torch

from src.args import command_parser
from src.runtime import results
from src.runtime.program import exit_on_user_error


def describe() -> dict[str, str]:
    """What results depend on besides their configuration: name -> value."""
    return results.versions() | {
        "system": platform.platform(),
        "device": results.device_name(),
        "processors": str(os.cpu_count()),
        "threads": str(torch.get_num_threads()),
        "commit": results.commit() or "none",
    }


@exit_on_user_error
def main(argv: Sequence[str] | None = None) -> None:
    command_parser("src.environment", __doc__).parse_args(argv)
    print("\n".join(f"{name}: {value}" for name, value in describe().items()))


if __name__ == "__main__":
    main()
