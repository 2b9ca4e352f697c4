"""Measurements on trained models: disentanglement error, tangent kernels, masks."""
