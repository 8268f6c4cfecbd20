"""Semi-supervised learning: a few labels and many images without."""
