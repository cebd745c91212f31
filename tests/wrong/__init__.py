"""Wrong versions that look right, each found in public code. A test that guards against one must fail on it."""
