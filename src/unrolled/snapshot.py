"""Whether the parameters that were read from a module are still the module's, asked at every step of a stepper."""

from __future__ import annotations

import operator
from collections.abc import Iterable
from itertools import chain
from typing import Any

from torch import Tensor, nn

# torch's own functions, called from `map`: a step asks some dozens of tensors, and has a few microseconds for all.
_version = operator.attrgetter("_version")
_data_ptr = Tensor.data_ptr


class Snapshot:
    """A module's parameters, buffers and submodules, as they are now.

    Noticed: a write in place (an optimiser, `load_state_dict`, `copy_`), other memory (`.to`, `.data = ...`), another
    tensor or module in the old one's place. Not noticed are writes that torch itself does not count: into `.data`
    (`parameter.data.mul_(2)`), through NumPy, or into parameters that were made in inference mode.
    """

    def __init__(self, module: nn.Module) -> None:
        self._module = module
        places = (
            place for part in module.modules() for place in (part._parameters, part._buffers, part._modules) if place
        )
        # Views of the dicts: they show what is in them at the time. The end mark moves if something comes or goes.
        self._places: list[Iterable[Any]] = [*(place.values() for place in places), (object(),)]
        self._things = list(chain.from_iterable(self._places))
        self._tensors = [thing for thing in self._things if isinstance(thing, Tensor)]
        self._counted = [tensor for tensor in self._tensors if not tensor.is_inference()]
        self._versions = list(map(_version, self._counted))
        # Versions only grow: while their sum is the same, each is.
        self._version_sum = sum(self._versions)
        self._pointers = list(map(_data_ptr, self._tensors))

    def stale(self) -> bool:
        return not (
            sum(map(_version, self._counted)) == self._version_sum
            and list(map(_data_ptr, self._tensors)) == self._pointers
            and all(map(operator.is_, chain.from_iterable(self._places), self._things))
        )

    def changed(self) -> list[str]:
        """Names of the parameters, buffers and modules that are new, or not what they were."""
        things = set(map(id, self._things))
        versions = dict(zip(map(id, self._counted), self._versions, strict=True))
        pointers = dict(zip(map(id, self._tensors), self._pointers, strict=True))

        def same(thing: Any) -> bool:
            return id(thing) in things and (
                not isinstance(thing, Tensor)
                or (
                    thing.data_ptr() == pointers[id(thing)]
                    and (thing.is_inference() or thing._version == versions[id(thing)])
                )
            )

        modules = list(self._module.named_modules())[1:]
        named = chain(self._module.named_parameters(), self._module.named_buffers(), modules)
        return [name for name, thing in named if not same(thing)]
