"""The empirical tangent kernel of an encoder with its head, and where its eigenfunctions live."""

from src.analysis.ntk.kernel import REDUCTIONS, Block, tangent_kernel
from src.analysis.ntk.localize import Localization, localize, localize_jointly

__all__ = ["REDUCTIONS", "Block", "Localization", "localize", "localize_jointly", "tangent_kernel"]
