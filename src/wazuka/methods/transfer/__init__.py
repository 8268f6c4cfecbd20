"""Transfer: from a network that was trained on other images."""
