"""Learning from the labels alone: the floor that every other method must beat."""
