"""The empirical tangent kernel of an encoder with its head, and where its eigenfunctions live."""

from src.analysis.ntk.kernel import REDUCTIONS, tangent_kernel
from src.analysis.ntk.localize import Localization, localize, localize_jointly

__all__ = ["REDUCTIONS", "Localization", "localize", "localize_jointly", "tangent_kernel"]
