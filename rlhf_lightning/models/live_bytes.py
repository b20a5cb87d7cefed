"""How many bytes a computation holds at once, measured on tensors without data."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class LiveBytes(TorchDispatchMode):
    """Counts the storages that operations inside a `with` block allocate and that are still in use.

    A storage counts from the operation that makes it until nothing holds it: neither a variable nor the graph of a
    backward pass. So what a frozen layer, an adapter or activation checkpointing saves for the backward pass counts as
    it is. Only what a kernel allocates for itself is out of sight; the one that matters here is added (`SCRATCH`).

    Args:
        resident: tensors that were there before, such as weights; they do not count.

    Attributes:
        peak: the most bytes that were in use at once, since the last `begin`.
    """

    def __init__(self, resident: Iterable[Tensor] = ()) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        self.peak = 0
        self._noted = 0
        """Bytes of the storages that were in use when they were last looked at."""
        # Weak references of C++: those of Python call back from wherever a storage ends, also from a backward pass.
        self._storages: dict[StorageWeakRef, int] = {}
        for tensor in resident:
            self._storages[StorageWeakRef(tensor.untyped_storage())] = 0

    def __torch_dispatch__(
        self, func: Any, types: Sequence[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        del types
        result = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, Tensor):
                self._note(leaf.untyped_storage())
        scratch = SCRATCH[func](*args) if func in SCRATCH else 0
        if self._noted + scratch > self.peak:  # perhaps a new peak: look which of them are still in use
            self.peak = max(self.peak, self.live + scratch)
        return result

    @property
    def live(self) -> int:
        """Bytes in use now."""
        self._storages = {storage: size for storage, size in self._storages.items() if not storage.expired()}
        self._noted = sum(self._storages.values())
        return self._noted

    def begin(self) -> None:
        """Forget the peak so far: what is in use now is where the next one starts from."""
        self.peak = self.live

    def _note(self, storage: torch.UntypedStorage) -> None:
        reference = StorageWeakRef(storage)
        if reference not in self._storages:
            self._storages[reference] = storage.nbytes()
            self._noted += storage.nbytes()


def _whole_input(tensor: Tensor, *_: Any) -> int:
    return tensor.numel() * tensor.element_size()


SCRATCH: dict[Any, Callable[..., int]] = {
    # exp(x - max) of the whole input.
    torch.ops.aten.logsumexp.default: _whole_input,
}
"""What kernels allocate for themselves, by operation, where it is as large as a tensor of the model."""


@contextmanager
def shapes_only() -> Iterator[None]:
    """Models made inside have shapes but no weights, so that one of any size costs nothing; chance is left alone."""
    with torch.random.fork_rng(devices=[]), torch.device("meta"):
        yield


@contextmanager
def without_data(models: Iterable[nn.Module], device: torch.device) -> Iterator[None]:
    """Inside, models that were made in `shapes_only` compute as if they were on a device, with tensors without data.

    Nothing is copied here: a deep copy of such a tensor ends in a crash, of one with a shape only it does not.
    """
    with torch.random.fork_rng(devices=[]), FakeTensorMode(allow_non_fake_inputs=True):
        lent: dict[int, tuple[Tensor, Tensor]] = {}  # the original too: while it lives no other gets its id
        for module in {id(part): part for model in models for part in model.modules()}.values():
            owners: tuple[dict[str, Any], ...] = (module._parameters, module._buffers)
            for owned in owners:
                for name, tensor in owned.items():
                    if tensor is None:
                        continue
                    if id(tensor) not in lent:
                        lent[id(tensor)] = tensor, _pretended(tensor, device)
                    owned[name] = lent[id(tensor)][1]
        yield


def _pretended(tensor: Tensor, device: torch.device) -> Tensor:
    made = torch.empty_like(tensor, device=device)
    return nn.Parameter(made, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else made


def storage_bytes(tensors: Iterable[Tensor]) -> int:
    """The bytes behind tensors, those that share a storage counted once."""
    storages = {tensor.untyped_storage()._cdata: tensor.untyped_storage().nbytes() for tensor in tensors}
    return sum(storages.values())
