"""The states of all random number generators, as tensors and numbers that a checkpoint holds without pickled code."""

from __future__ import annotations

import random
from typing import Any, cast

import numpy as np
import torch


def random_states() -> dict[str, Any]:
    """The states of the generators of Python, NumPy, torch and every CUDA device of this process."""
    version, words, gauss = random.getstate()
    kind, keys, position, has_gauss, cached_gauss = cast("tuple[str, Any, int, int, float]", np.random.get_state())
    assert kind == "MT19937"
    return {
        "python": {"version": version, "words": torch.tensor(words, dtype=torch.int64), "gauss": gauss},
        "numpy": {
            "keys": torch.from_numpy(keys.astype(np.int64)),
            "position": int(position),
            "has_gauss": int(has_gauss),
            "cached_gauss": float(cached_gauss),
        },
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def restore_random_states(states: dict[str, Any]) -> None:
    """Set the generators to states that `random_states` returned."""
    python, numpy = states["python"], states["numpy"]
    random.setstate((python["version"], tuple(python["words"].tolist()), python["gauss"]))
    keys = numpy["keys"].numpy().astype(np.uint32)
    np.random.set_state(("MT19937", keys, numpy["position"], numpy["has_gauss"], numpy["cached_gauss"]))
    torch.set_rng_state(states["torch"].cpu())
    if states["cuda"]:
        torch.cuda.set_rng_state_all([state.cpu() for state in states["cuda"]])
