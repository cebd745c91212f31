"""A GPU that is not there: tensors that say they are on cuda:0, hold CPU data, and refuse what a GPU would refuse.

Inside `gpu()` everything that is asked for on "cuda" is such a tensor. An operation on one of them and a plain CPU
tensor raises; what would make the host wait for the device, and what would start a kernel, is noted. Numbers are real,
or, from `hollow`, shapes only. CPU kernels and CPU random numbers stand in for the device's.
"""

from __future__ import annotations

import traceback
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from unittest.mock import patch

import torch
import torch.nn.attention.varlen  # registers the kernel's operations
from torch import Tensor, nn
from torch.nn.utils import clip_grad
from torch.optim import optimizer as optim
from torch.utils._foreach_utils import _group_tensors_by_device_and_dtype
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map
from torch.utils.data.dataloader import _SingleProcessDataLoaderIter

CUDA = torch.device("cuda", 0)
# What only says how a tensor is looked at, and starts nothing.
VIEWS = {"view", "_unsafe_view", "reshape", "alias", "detach", "t", "transpose", "permute", "expand", "unsqueeze"}
VIEWS |= {"squeeze", "slice", "select", "split", "split_with_sizes", "unbind", "as_strided", "lift_fresh", "diagonal"}
VIEWS |= {"empty", "empty_like", "new_empty"}
SIZES_FROM_DATA = {"nonzero", "masked_select", "unique_dim", "_unique2", "repeat_interleave", "bincount"}


@dataclass
class Seen:
    """What happened: reasons to wait, each with its line of our code, and kernels by name."""

    waits: Counter[str] = field(default_factory=Counter)
    kernels: Counter[str] = field(default_factory=Counter)

    def wait(self, why: str) -> None:
        lines = [f for f in traceback.extract_stack() if "full_ijepa" in f.filename or "toy_ijepa" in f.filename]
        where = f"{lines[-1].filename.rsplit('/', 1)[-1]}:{lines[-1].lineno} {lines[-1].line}" if lines else "?"
        self.waits[f"{why} at {where}"] += 1

    def forget(self) -> None:
        self.waits.clear()
        self.kernels.clear()


SEEN = Seen()


class OnGPU(Tensor):
    """A tensor on the pretended GPU around its data on the CPU (or on "meta": shapes only)."""

    @staticmethod
    def __new__(cls, data: Tensor) -> OnGPU:
        found = torch.Tensor._make_wrapper_subclass(
            cls, data.size(), strides=data.stride(), storage_offset=data.storage_offset(), dtype=data.dtype
        )
        found.data_on_cpu = data
        return found

    device = property(lambda self: CUDA)
    is_cuda = property(lambda self: True)
    is_cpu = property(lambda self: False)

    def __repr__(self, **_options) -> str:
        return f"OnGPU({self.data_on_cpu!r})"

    def tolist(self) -> list:
        SEEN.wait("tolist")
        return self.data_on_cpu.tolist()

    def to(self, *args, **options) -> Tensor:
        device, dtype, *_ = torch._C._nn._parse_to(*args, **{k: v for k, v in options.items() if k != "copy"})
        if device is None or device.type != "cpu":
            return super().to(*args, **options)
        SEEN.wait("copy to the host")
        return self.data_on_cpu.to(dtype or self.dtype)

    def cpu(self) -> Tensor:
        return self.to("cpu")

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        return run(func, args, kwargs or {})


def run(func, args: tuple, kwargs: dict):
    """One operation: noted, checked, done on the data."""
    name = func.overloadpacket.__name__
    tensors = [x for x in tree_flatten((args, kwargs))[0] if isinstance(x, Tensor)]
    ours, others = [x for x in tensors if isinstance(x, OnGPU)], [x for x in tensors if not isinstance(x, OnGPU)]
    asked = torch.device(kwargs["device"]).type if kwargs.get("device") is not None else None
    if torch._C._current_graph_task_id() != -1:
        asked = "cuda"  # to C++ these tensors are the CPU's: what autograd itself makes on its way back is the GPU's
    to_gpu = asked == "cuda" or (asked is None and bool(ours))
    if name in ("_to_copy", "copy_"):
        if to_gpu and others and not getattr(others[0], "pinned", False):
            SEEN.wait("copy from memory that is not pinned")
    elif ours and any(x.ndim for x in others):
        shapes = [(type(x).__name__, tuple(x.shape)) for x in tensors]
        raise RuntimeError(f"expected all tensors to be on the same device: {func} of {shapes}")
    if ours and name == "_local_scalar_dense":
        SEEN.wait("number asked for")
    if ours and name in SIZES_FROM_DATA:
        SEEN.wait(f"size of {name} asked for")
    if ours and name in ("index", "index_put_", "index_put") and any(x.dtype == torch.bool for x in tensors[1:]):
        SEEN.wait("size of a boolean index asked for")
    if to_gpu and name not in VIEWS:
        SEEN.kernels[name] += 1
    if kwargs.pop("pin_memory", None):
        return pin_memory(func(*args, **kwargs))
    if name == "copy_" and ours and not isinstance(args[0], OnGPU):  # from the device into memory
        if getattr(others[0], "pinned", False) and not (args[2:] or [kwargs.get("non_blocking")])[0]:
            SEEN.wait("copy that was not asked to go on beside")
        args[0].copy_(args[1].data_on_cpu)
        return args[0]
    return done(func, args, kwargs, to_gpu, {id(x.data_on_cpu): x for x in ours})


def done(func, args: tuple, kwargs: dict, to_gpu: bool, known: dict[int, OnGPU]):
    """The operation on the data, its results wrapped; what was changed in place is what it was."""
    args, kwargs = tree_map(lambda x: x.data_on_cpu if isinstance(x, OnGPU) else x, (args, kwargs))
    if kwargs.get("device") is not None:
        hollow = any(isinstance(x, Tensor) and x.is_meta for x in tree_flatten(args)[0])
        kwargs["device"] = torch.device("meta" if hollow and to_gpu else "cpu")
    if func is torch.ops.torch_attn._varlen_attn.default and not args[0].is_meta:
        found = varlen_forward(*args[:4])
    elif func is torch.ops.torch_attn._varlen_attn_backward.default and not args[0].is_meta:
        found = varlen_backward(*args[:4], args[6])
    else:
        found = func(*args, **kwargs)

    def wrapped(x):
        if not isinstance(x, Tensor) or isinstance(x, OnGPU) or not to_gpu:
            return x
        return known.get(id(x)) if id(x) in known else OnGPU(x)

    return tree_map(wrapped, found)


def cut(ends: Tensor, *packed: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Packed (S, A, d), each as (A, K, d) a sequence."""
    return zip(*(x.transpose(0, 1).split(ends.diff().tolist(), dim=1) for x in packed), strict=True)


def packed(parts: Iterator[Tensor]) -> Tensor:
    return torch.cat(list(parts), dim=1).transpose(0, 1).contiguous()  # (S, A, d)


def varlen_forward(q: Tensor, k: Tensor, v: Tensor, ends: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """What the kernel for sequences of different lengths computes, a sequence at a time."""
    scale = q.shape[-1] ** -0.5
    found = packed(torch.softmax(q @ k.mT * scale, -1) @ v for q, k, v in cut(ends, q, k, v))
    return found, torch.zeros(q.shape[1], len(q)), torch.zeros(2, dtype=torch.uint64)


def varlen_backward(grad: Tensor, q: Tensor, k: Tensor, v: Tensor, ends: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Its gradients, by hand: there is no autograd below an operation."""
    found, scale = [], q.shape[-1] ** -0.5
    for g, a, b, c in cut(ends, grad, q, k, v):
        p = torch.softmax(a @ b.mT * scale, -1)  #                         (A, K, K)
        dp = g @ c.mT
        ds = p * (dp - (dp * p).sum(-1, keepdim=True)) * scale
        found.append((ds @ b, ds.mT @ a, p.mT @ g))
    return tuple(packed(parts) for parts in zip(*found, strict=True))


class Everywhere(TorchDispatchMode):
    """Also for what is made without a tensor: `torch.zeros(..., device="cuda")`."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return run(func, args, kwargs or {})


class Generator(torch.Generator):
    """A generator that says it is on the device it was asked for."""

    def __new__(cls, device: str | torch.device = "cpu"):
        return super().__new__(cls)

    def __init__(self, device: str | torch.device = "cpu") -> None:
        self.asked = CUDA if torch.device(device).type == "cuda" else torch.device("cpu")

    device = property(lambda self: self.asked)

    def manual_seed(self, seed: int) -> Generator:
        super().manual_seed(seed)
        return self


def pin_memory(x: Tensor) -> Tensor:
    found = x.clone()
    found.pinned = True
    return found


def pinning(self, loader, start=_SingleProcessDataLoaderIter.__init__) -> None:
    """A loader pins memory as it was asked to, though torch finds no accelerator."""
    start(self, loader)
    self._pin_memory = loader.pin_memory


def grouped(lists: list[list[Tensor]], *rest) -> dict:
    """Tensors by the device that they say they are on."""
    found = _group_tensors_by_device_and_dtype(lists, *rest)
    return {(tensors[0][0].device, dtype): (tensors, where) for (_, dtype), (tensors, where) in found.items()}


@contextmanager
def gpu() -> Iterator[Seen]:
    """Inside, there is a GPU; gives what is seen of it."""
    autocast = torch.autocast
    with ExitStack() as stack:
        for owner, name, what in (
            (torch.cuda, "_lazy_init", lambda: None),
            (torch.cuda, "synchronize", lambda *_: SEEN.wait("synchronize")),
            (torch.cuda, "get_device_capability", lambda *_: (9, 0)),
            (torch.cuda, "is_bf16_supported", lambda *_, **__: True),
            (_SingleProcessDataLoaderIter, "__init__", pinning),
            (torch.cuda.amp.common, "amp_definitely_not_available", lambda: False),
            (torch, "Generator", Generator),
            (torch, "autocast", lambda _device, *rest, **options: autocast("cpu", *rest, **options)),
            (Tensor, "pin_memory", pin_memory),
            (clip_grad, "_group_tensors_by_device_and_dtype", grouped),
            (optim, "_group_tensors_by_device_and_dtype", grouped),
        ):
            stack.enter_context(patch.object(owner, name, what))
        # A module moved there gets new parameters: what these tensors hold cannot be put into old ones.
        before = torch.__future__.get_overwrite_module_params_on_conversion()
        stack.callback(torch.__future__.set_overwrite_module_params_on_conversion, before)
        torch.__future__.set_overwrite_module_params_on_conversion(True)
        SEEN.forget()
        stack.enter_context(Everywhere())
        yield SEEN


def hollow(module: nn.Module) -> nn.Module:
    """A module built on "meta", on the pretended GPU: shapes of any size, no numbers."""
    for part in module.modules():
        for name, p in part._parameters.items():
            if p is not None:
                part._parameters[name] = nn.Parameter(OnGPU(p.detach()), requires_grad=p.requires_grad)
        part._buffers.update({name: OnGPU(b) for name, b in part._buffers.items() if b is not None})
    return module


def hollowed(x: Tensor) -> OnGPU:
    """A tensor's shape on the pretended GPU."""
    return OnGPU(x.to("meta"))
