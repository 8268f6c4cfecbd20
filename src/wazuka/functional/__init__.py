"""Pure maths on tensors that two or more methods share: no state, no files, torch only."""
