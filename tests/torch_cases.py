"""The cases of torch's own module database for `nn.LSTM`, for both modules on the same weights.

The database holds inputs; what is done with them is in torch's test suite, outside its wheel, and is written anew in
`test_torch_cases.py`. What of that suite does not apply: everything on CUDA and MPS (several devices, transfers, parity
with the CPU), pickling (nothing here reads or writes pickles; copies are tested), channels-last memory formats (a
sequence has no such axes), and the entry's decorators, which are for failures of cuDNN, MIOpen and MPS.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

# Importing torch's test modules freezes the flags of its backends for the whole process; inside, that is undone again.
with torch.backends.__allow_nonbracketed_mutation():
    from torch.testing._internal.common_modules import ErrorModuleInput, ModuleInput, module_db
    from torch.testing._internal.common_modules import ModuleErrorEnum as ModuleErrorEnum

from unrolled import LSTM

ENTRY = next(entry for entry in module_db if entry.module_cls is nn.LSTM)


@dataclass
class Case:
    ours: LSTM
    theirs: nn.LSTM
    source: ModuleInput

    @property
    def args(self) -> tuple[Any, ...]:
        return tuple(self.source.forward_input.args)


def cases(dtype: torch.dtype, *, training: bool = True) -> list[Case]:
    torch.manual_seed(0)
    found = []
    for source in ENTRY.module_inputs_func(ENTRY, "cpu", dtype, requires_grad=True, training=training):
        built = source.constructor_input
        assert not source.forward_input.kwargs
        theirs = nn.LSTM(*built.args, **built.kwargs, device="cpu", dtype=dtype).train(training)
        ours = LSTM(*built.args, **built.kwargs, device="cpu", dtype=dtype).train(training)
        ours.load_state_dict(theirs.state_dict())
        found.append(Case(ours, theirs, source))
    return found


def error_cases(dtype: torch.dtype) -> list[ErrorModuleInput]:
    errors: list[ErrorModuleInput] = ENTRY.module_error_inputs_func(
        ENTRY, "cpu", dtype, requires_grad=False, training=True
    )
    return errors
