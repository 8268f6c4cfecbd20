"""Knowing what it does not know: detectors of images that a trained network should not be trusted on."""
