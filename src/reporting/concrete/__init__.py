"""Concrete subspace learning, and AdaMerging beside it: Tang et al., 2023, arXiv:2312.06173."""
