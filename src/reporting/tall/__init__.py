"""Localizing task information: TALL masks and consensus merging, Wang et al., 2024, arXiv:2405.07813."""
