"""The ideas of `toy_ijepa` at scale. The rooms of this package open with the chapters on scaling up."""

import toy_ijepa  # noqa: F401  first of all: it sets what has to be set before torch is imported


def __getattr__(name: str) -> object:
    """The front door; imported when first used, so that a look at a recipe does not wait for all of torch's rooms."""
    if name in ("load_encoder", "embed", "Features"):
        from full_ijepa import embedding

        return getattr(embedding, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
