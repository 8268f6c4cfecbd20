"""Domain adaptation: labels for images of one kind, answers wanted for images of another."""
