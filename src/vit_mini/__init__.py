"""ViT-Mini: the embedded suite's tiny CLIP, how it was pre-trained, and its weights."""
