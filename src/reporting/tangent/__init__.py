"""Task arithmetic in the tangent space: Ortiz-Jimenez et al., 2023, arXiv:2305.12827."""
