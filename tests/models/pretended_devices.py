"""Two devices on a machine that has none: tensors that know where they are said to be, and refuse to be mixed.

They lie in the CPU's memory. Like those of two GPUs, tensors of two devices meet only where one is copied to the other;
the CPU's may be a number, or the index to a tensor.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten, tree_map, tree_unflatten

TYPE = "maia"  # a type of devices that this torch knows by name alone
aten: Any = torch.ops.aten
_INDEXED = (aten.index.Tensor, aten.index_put.default, aten.index_put_.default, aten._index_put_impl_.default)
_COPIES = (aten._to_copy.default, aten.copy_.default)


class Placed(torch.Tensor):
    """A tensor that is said to be on another device than it is."""

    @staticmethod
    def __new__(cls, inner: torch.Tensor, device: Any) -> Placed:
        made: Placed = torch.Tensor._make_wrapper_subclass(  # type: ignore[attr-defined]
            cls, inner.shape, strides=inner.stride(), storage_offset=inner.storage_offset(), dtype=inner.dtype,
            device="cpu", requires_grad=False,
        )  # fmt: skip
        return made

    def __init__(self, inner: torch.Tensor, device: Any) -> None:
        self.inner, self.where = inner, torch.device(device)

    @property
    def device(self) -> torch.device:  # type: ignore[override]
        return self.where

    @property
    def data(self) -> Placed:  # type: ignore[override]
        return Placed(self.inner, self.where)

    @data.setter
    def data(self, value: Placed) -> None:
        self.inner, self.where = value.inner, value.where

    def to(self, *args: Any, **kwargs: Any) -> Any:
        kwargs = {key: value for key, value in kwargs.items() if key != "copy"}
        if args and isinstance(args[0], torch.Tensor):
            args = (args[0].device, args[0].dtype)
        device, dtype, *_ = torch._C._nn._parse_to(*args, **kwargs)
        inner = self.inner if dtype is None else self.inner.to(dtype)
        if device is None or device == self.where:
            return self if inner is self.inner else Placed(inner, self.where)
        return inner.clone() if device.type == "cpu" else Placed(inner.clone(), device)

    def cpu(self, *args: Any) -> torch.Tensor:
        return self.inner.clone()

    def type_as(self, other: torch.Tensor) -> Any:
        return self.to(other.device, other.dtype)

    def tolist(self) -> Any:
        return self.inner.tolist()

    def __repr__(self, **kwargs: Any) -> str:
        return f"{self.where} {self.inner!r}"

    def __tensor_flatten__(self) -> Any:
        return ["inner"], self.where

    @staticmethod
    def __tensor_unflatten__(inner: Any, where: Any, size: Any, stride: Any) -> Placed:
        return Placed(inner["inner"], where)

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _carried_out(func, args, kwargs or {})


def _carried_out(func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
    flat, spec = tree_flatten((args, kwargs))
    there = {value.where for value in flat if isinstance(value, Placed)}
    here = any(isinstance(value, torch.Tensor) and not isinstance(value, Placed) and value.dim() for value in flat)
    if func not in _COPIES and (len(there) > 1 or (there and here and func not in _INDEXED)):
        raise RuntimeError(f"{func} of tensors on {', '.join(sorted(map(str, there)))}{' and cpu' if here else ''}")
    named = kwargs.get("device")
    where = torch.device(named) if named is not None else next(iter(there), torch.device("cpu"))
    as_they_are = [
        value.inner if isinstance(value, Placed)
        else torch.device("cpu") if isinstance(value, torch.device) and value.type == TYPE
        else value
        for value in flat
    ]  # fmt: skip
    inner_args, inner_kwargs = tree_unflatten(as_they_are, spec)
    if func is aten.histc.default:  # of whole numbers on a GPU alone
        inner_args = (inner_args[0].float(), *inner_args[1:])
    found = func(*inner_args, **inner_kwargs)
    if func._schema.name.endswith("_") and isinstance(args[0], torch.Tensor):
        return args[0]
    if where.type != TYPE:
        return found
    return tree_map(
        lambda value: (
            Placed(value, where) if isinstance(value, torch.Tensor) and not isinstance(value, Placed) else value
        ),
        found,
    )


class _Operations(TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _carried_out(func, args, kwargs or {})


class _NewTensors(TorchFunctionMode):
    """`torch.tensor(…, device=…)`, which would ask for the device itself."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func is not torch.tensor:
            return func(*args, **kwargs)
        args = tree_map(lambda value: value.inner if isinstance(value, Placed) else value, args)
        device = torch.device(kwargs.pop("device", None) or "cpu")
        made = func(*args, **kwargs)
        return Placed(made, device) if device.type == TYPE else made


@contextmanager
def pretended(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Inside, there are the devices maia:0, maia:1, …"""

    def enter(context: Any) -> None:  # views of such tensors cannot be made in inference mode
        context.instead = torch.no_grad()
        context.instead.__enter__()

    monkeypatch.setattr(torch.inference_mode, "__enter__", enter)
    monkeypatch.setattr(torch.inference_mode, "__exit__", lambda context, *error: context.instead.__exit__(*error))
    with _Operations(), _NewTensors():
        yield


def split(model: Any, where: dict[str, str]) -> Any:
    """The model with each part on its device, dispatched by accelerate as `from_pretrained` does it."""
    from accelerate import dispatch_model

    for name, module in model.named_modules():
        for held in (module._parameters, module._buffers):
            for key, value in held.items():
                if value is not None:
                    whole = f"{name}.{key}."
                    part = max((part for part in where if whole.startswith(f"{part}.")), key=len)
                    placed = Placed(value.data, where[part])
                    is_parameter = held is module._parameters
                    held[key] = torch.nn.Parameter(placed, requires_grad=False) if is_parameter else placed
    dispatch_model(model, where, main_device=f"{TYPE}:0", skip_keys=model._skip_keys_device_placement)
    model.hf_device_map = where
    return model
