"""One protocol for all encoders: the same data, splits, probes and choices for I-JEPA, MAE, random and pixels.

TRAP: no choice is ever made on the test set, and nobody is fine-tuned where somebody else is only probed.
"""

from full_ijepa.evaluate.protocols import PROTOCOLS
from full_ijepa.evaluate.run import evaluate
from full_ijepa.evaluate.tables import suffix_of, table

__all__ = ["PROTOCOLS", "evaluate", "suffix_of", "table"]
