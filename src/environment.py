"""Print the environment that results depend on: versions, device, threads, commit.

    python -m src.environment

An issue should quote its output.
"""

import os
import platform

import torch

from src.runtime import results


def describe() -> dict[str, str]:
    """What results depend on besides their configuration: name -> value."""
    return results.versions() | {
        "system": platform.platform(),
        "device": results.device_name(),
        "processors": str(os.cpu_count()),
        "threads": str(torch.get_num_threads()),
        "commit": results.commit() or "none",
    }


if __name__ == "__main__":
    print("\n".join(f"{name}: {value}" for name, value in describe().items()))
