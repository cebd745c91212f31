"""Interactive explorers: a pure model and a thin view each."""
