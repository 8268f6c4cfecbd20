"""One file a method: source, losses, settings, class. Methods never import each other; share a function instead."""
