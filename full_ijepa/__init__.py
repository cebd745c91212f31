"""The ideas of `toy_ijepa` at scale. The rooms of this package open with the chapters on scaling up."""
