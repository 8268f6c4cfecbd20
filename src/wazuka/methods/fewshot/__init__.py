"""Few-shot learning: classes never seen in training, named from a handful of images each."""
