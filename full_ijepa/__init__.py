"""The ideas of `toy_ijepa` at scale. The rooms of this package open with the chapters on scaling up."""

import importlib

import toy_ijepa  # noqa: F401  before torch: it sets what has to be set before torch is imported

# What can be had from the package itself, and where it lives: imported when asked for, so that nobody waits for it.
FRONT = dict.fromkeys(("create_model", "create_config", "JEPAConfig", "JEPAAgent"), "full_ijepa.facade")
FRONT |= dict.fromkeys(("load_encoder", "embed", "Features"), "full_ijepa.embedding")
FRONT |= {"pretrain": "full_ijepa.train"}


def __getattr__(name: str) -> object:
    if name in FRONT:
        return getattr(importlib.import_module(FRONT[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *FRONT})
