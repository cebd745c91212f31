"""The ideas of `toy_ijepa` at scale. The rooms of this package open with the chapters on scaling up."""

import toy_ijepa  # noqa: F401  first of all: it sets what has to be set before torch is imported
