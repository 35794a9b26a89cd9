"""One LSTM layer over a whole sequence, with a parameter of its own for each gate."""

from __future__ import annotations

from typing import Any, Unpack, cast

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from . import own_cell, recurrence
from .arguments import check_input, check_layer_state, check_masks, check_same_rows
from .cell_options import DEFAULTS, LayerKeywords, LayerOptions
from .edits import Edit, Place, check_layer
from .layer_trace import LayerTrace
from .own_cell import OwnTrace
from .recurrence import Cell

# The order in which parameters are registered and drawn: part of the state_dict's and the seeds' contract.
_DRAWN = ("f", "i", "o", "g")
# The order of the gate axis everywhere else.
GATES = ("i", "f", "g", "o")


class LSTMLayer(nn.Module):
    """One layer: h **and** c of every step, and with `trace` the gates too.

    Parameters, for each gate in `f`, `i`, `o`, `g`: `W_x*` [input, hidden], `W_h*` [hidden, hidden] (Xavier-uniform,
    Glorot & Bengio 2010) and `b_*` [hidden] (zeros). The equations are in `unrolled.recurrence.reference`.

    `proj_dim`: h is projected in every step by `W_hr` [hidden, proj] (Xavier-uniform), h_t = (o * tanh(c_t)) W_hr, and
    `W_h*` are [proj, hidden] (Sak, Senior & Beaufays 2014). The native kernel does not have it, nor `strict`.

    `options`: what is otherwise in this layer, by the names of `LayerOptions`.

    `cell`: a step of your own in the place of all of this, a function or a module that is called as `cell(x_t, (h, c))`
    and returns `(output, (h, c))`: [batch, input] and the state before the step, to the output [batch, hidden] and the
    state behind it. The state is [batch, hidden] twice, or as wide as `cell.state_size` = (of h, of c) says, and begins
    as zeros, or learned. It runs over time in a plain loop, with resets, lengths and traces as everywhere; `forward`
    gives its output and c. Of `options` it takes `learn_initial_state` alone, and neither `proj_dim`, `strict` nor a
    `backend`. A module's parameters are the layer's, under `cell.`; `device` and `dtype` move it.

    `strict`: every row has the same bits in any batch, chunk or thread count. `recompute`: training keeps h and c only,
    and the backward pass makes the gates again, for one forward pass more.
    """

    W_xf: nn.Parameter
    W_hf: nn.Parameter
    b_f: nn.Parameter
    W_xi: nn.Parameter
    W_hi: nn.Parameter
    b_i: nn.Parameter
    W_xo: nn.Parameter
    W_ho: nn.Parameter
    b_o: nn.Parameter
    W_xg: nn.Parameter
    W_hg: nn.Parameter
    b_g: nn.Parameter
    W_hr: nn.Parameter
    p_i: nn.Parameter
    p_f: nn.Parameter
    p_o: nn.Parameter
    h_init: nn.Parameter
    c_init: nn.Parameter
    gain_i: nn.Parameter
    gain_f: nn.Parameter
    gain_o: nn.Parameter
    gain_g: nn.Parameter
    gain_c: nn.Parameter
    b_c: nn.Parameter
    _held: tuple[Tensor, Tensor, Tensor] | None = None  # what `_weights` gives inside `HeldWeights.at_hand`

    def __init__(
        self,
        input_dim: int,
        hidden_dim: int,
        *,
        proj_dim: int | None = None,
        cell: own_cell.Step | None = None,
        backend: str = "auto",
        strict: bool = False,
        recompute: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        **options: Unpack[LayerKeywords],
    ) -> None:
        super().__init__()
        self.options = LayerOptions(**options)
        if input_dim < 1 or hidden_dim < 1:
            raise ValueError(f"input_dim={input_dim} and hidden_dim={hidden_dim} must both be at least 1")
        if proj_dim is not None and proj_dim < 1:
            raise ValueError(f"proj_dim={proj_dim} must be at least 1, or None: h is not projected")
        recurrence.check_name(backend)
        self.input_dim, self.hidden_dim, self.proj_dim = input_dim, hidden_dim, proj_dim
        self.backend, self.strict, self.recompute = backend, strict, recompute
        self.cell = cell
        # The widths of h and c in the state.
        self.state_size = (self.h_dim, hidden_dim)
        if cell is not None:
            self.state_size = own_cell.checked_step(cell, hidden_dim)
            self._check_alone()
            like = next(cell.to(device, dtype).parameters(), None) if isinstance(cell, nn.Module) else None
            at = torch.empty(0, device=device, dtype=dtype) if like is None else like.detach().new_empty(0)
            self.register_buffer("_at", at, persistent=False)
            device, dtype = at.device, at.dtype
        for name, shape in self._shapes().items():
            self.register_parameter(name, nn.Parameter(torch.empty(shape, device=device, dtype=dtype)))
        self._draw()

    @property
    def h_dim(self) -> int:
        """The width of h: `proj_dim`, or without a projection `hidden_dim`."""
        return self.hidden_dim if self.proj_dim is None else self.proj_dim

    def reset_parameters(self) -> None:
        """Draw every matrix anew, and put biases, peepholes and gains where they start; a cell of one's own, too.

        Raises TypeError for one that has parameters and no `reset_parameters`.
        """
        if self.cell is not None:
            own_cell.reset_parameters(self.cell)
        self._draw()

    def _draw(self) -> None:
        for name in self._shapes():
            parameter = getattr(self, name)
            if name.startswith("W_h") and name != "W_hr" and self.options.recurrent_init == "orthogonal":
                nn.init.orthogonal_(parameter)
            elif name.startswith("W_"):
                nn.init.xavier_uniform_(parameter)
            else:
                starts_at = 1.0 if name.startswith("gain_") else 0.0
                nn.init.constant_(parameter, (self.options.forget_bias or 0.0) if name == "b_f" else starts_at)

    def initial_state(self, batch: int) -> tuple[Tensor, Tensor]:
        """h and c, [batch, width] each, before a sequence's first step: learned ones where there are any, or zeros."""
        if self.options.learn_initial_state:
            return self.h_init.expand(batch, -1), self.c_init.expand(batch, -1)
        like = self._like
        h, c = (torch.zeros(batch, n, device=like.device, dtype=like.dtype) for n in self.state_size)
        return h, c

    def forward(
        self,
        x: Tensor,
        h0: Tensor | None = None,
        c0: Tensor | None = None,
        *,
        resets: Tensor | None = None,
        lengths: Tensor | None = None,
        seed: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """h and c of every step, [batch, time, hidden] each; a projected h is [batch, time, proj].

        `x`: floats [batch, time, input] or ids [batch, time]; `h0`, `c0`: one step of h and c, `initial_state` if None;
        `resets` bool [batch, time]: that row starts from `initial_state` before that step; `lengths` [batch]: the row's
        valid steps, after which h and c are 0; `seed` int64 []: what the masks of a layer in training follow from, by
        row, step and unit, one from torch's generator if None. Raises TypeError, ValueError or IndexError for arguments
        that do not fit.
        """
        if self.cell is not None:
            trace = self._run_own(x, h0, c0, resets, lengths)
            return trace.output, trace.c
        seed = self._seed(seed)
        if self.recompute and torch.is_grad_enabled():
            given = (x, h0, c0, resets, lengths, seed)
            h, c = checkpoint(self._states, *given, use_reentrant=False, preserve_rng_state=False)
        else:
            h, c = self._states(x, h0, c0, resets, lengths, seed)
        return h, c

    def trace(
        self,
        x: Tensor,
        h0: Tensor | None = None,
        c0: Tensor | None = None,
        *,
        resets: Tensor | None = None,
        lengths: Tensor | None = None,
        edit: Edit | None = None,
        seed: Tensor | None = None,
    ) -> LayerTrace:
        """`forward`, opened: the same computation with its gates. The arguments are those of `forward`.

        The gates are what they are before anything of g is dropped and anything of h or c is held.

        `edit` gets i, f, g, c, o and h of every step as each is made, and what it returns takes their place from there
        on; the layer is then run step by step in plain torch. BackendUnavailable where `strict` or `backend` ask for
        the native kernel.

        Of a cell of one's own it is an `OwnTrace`, whatever the type says: that is for the library's cells. ValueError
        for an edit of one.
        """
        if self.cell is not None:
            if edit is not None:
                name = own_cell.name_of(self.cell)
                raise ValueError(f"cell={name} makes its values where no edit sees them: change them in the cell")
            return cast(LayerTrace, self._run_own(x, h0, c0, resets, lengths))
        h0, c0 = self._initial(x, h0, c0, resets, lengths)
        (w_x, w_h, bias), options = self._drawn(x, self._seed(seed))
        if edit is not None:
            return self._edited(x, (h0, c0), (w_x, w_h, bias), resets, lengths, edit, options=options)
        scanned = recurrence.scan(x, w_x, w_h, bias, h0, c0, resets=resets, lengths=lengths, **options)
        return LayerTrace.of(scanned, (h0, c0), (w_h, options["w_hr"]), resets, lengths, options["cell"])

    def _edited(
        self,
        x: Tensor,
        initial: tuple[Tensor, Tensor],
        weights: tuple[Tensor, Tensor, Tensor],
        resets: Tensor | None,
        lengths: Tensor | None,
        edit: Edit,
        *,
        options: dict[str, Any],
    ) -> LayerTrace:
        if self.strict or self.backend == "cpu":
            asked = "strict=True" if self.strict else 'backend="cpu"'
            raise recurrence.BackendUnavailable(
                f"an edited trace runs step by step in plain torch, and {asked} asks for the native kernel; set "
                "strict = False and backend = 'auto' for it"
            )
        check_layer(edit, 1)
        del options["backend"], options["strict"]

        def at(values: Tensor, name: str, time: int) -> Tensor | None:
            return edit(values, Place(0, name, time))

        scanned = recurrence.scan_edited(x, *weights, *initial, at, resets=resets, lengths=lengths, **options)
        recurrent = weights[1], options["w_hr"]
        return LayerTrace.of(scanned, initial, recurrent, resets, lengths, options["cell"]).as_edited()

    def extra_repr(self) -> str:
        backend = "" if self.backend == "auto" else f", backend={self.backend!r}"
        options = "".join(f", {name}=True" for name in ("strict", "recompute") if getattr(self, name))
        projection = "" if self.proj_dim is None else f", proj_dim={self.proj_dim}"
        changed = self.options.changed()
        cell = f", {changed}" if changed else ""
        own = "" if self.cell is None or isinstance(self.cell, nn.Module) else f", cell={own_cell.name_of(self.cell)}"
        return f"{self.input_dim}, {self.hidden_dim}{own}{projection}{cell}{backend}{options}"

    @property
    def _like(self) -> Tensor:
        """A tensor of the layer's device and dtype."""
        return self.W_xo if self.cell is None else self.get_buffer("_at")

    def _check_alone(self) -> None:
        """ValueError where the layer has, beside a cell of its own, what that cell knows nothing of."""
        given = [self.options.changed(tuple(name for name in DEFAULTS if name != "learn_initial_state"))]
        given += [f"proj_dim={self.proj_dim}"] if self.proj_dim is not None else []
        given += ["strict=True"] if self.strict else []
        given += [f"backend={self.backend!r}"] if self.backend != "auto" else []
        if any(given):
            raise ValueError(
                f"cell={own_cell.name_of(self.cell)} has its own equations, in a plain loop, and takes no "
                f"{', '.join(filter(None, given))}: leave that out, or compute it in the cell"
            )

    def _run_own(
        self, x: Tensor, h0: Tensor | None, c0: Tensor | None, resets: Tensor | None, lengths: Tensor | None
    ) -> OwnTrace:
        assert self.cell is not None
        self._check_alone()
        state = self._initial(x, h0, c0, resets, lengths)
        x, lengths = recurrence.checked(x, lengths, self.input_dim)
        arguments = (self.cell, x, state, self.initial_state(x.shape[0]), (resets, lengths))
        sizes = (self.input_dim, self.hidden_dim)
        if self.recompute and torch.is_grad_enabled():
            # A cell may draw random numbers, and then has to draw them again.
            steps = checkpoint(own_cell.run, *arguments, sizes, use_reentrant=False, preserve_rng_state=True)
        else:
            steps = own_cell.run(*arguments, sizes)
        return own_cell.trace_of(steps, state, self.hidden_dim, lengths)

    def _states(
        self,
        x: Tensor,
        h0: Tensor | None,
        c0: Tensor | None,
        resets: Tensor | None,
        lengths: Tensor | None,
        seed: Tensor | None,
    ) -> tuple[Tensor, Tensor]:
        h0, c0 = self._initial(x, h0, c0, resets, lengths)
        (w_x, w_h, bias), options = self._drawn(x, seed)
        return recurrence.states(x, w_x, w_h, bias, h0, c0, resets=resets, lengths=lengths, **options)

    def _seed(self, given: Tensor | None) -> Tensor | None:
        """What the masks of a call follow from; None where there are none."""
        if not (self.training and self.options.draws):
            return None
        device = self.W_xo.device
        if given is None:
            return recurrence.drawn_seed(device)
        if not isinstance(given, Tensor) or given.dtype != torch.int64 or given.dim() or given.device != device:
            raise ValueError(
                f"seed={given!r}, expected an int64 tensor without axes on {device}: torch.tensor(7), or None for one "
                "from torch's generator"
            )
        return given

    def _drawn(self, x: Tensor, seed: Tensor | None) -> tuple[tuple[Tensor, Tensor, Tensor], dict[str, Any]]:
        """The weights of a call, and by name what else its recurrence is told; without a seed as in evaluation."""
        w_x, w_h, bias = self._weights()
        options, chosen = self._scan_options(), self.options
        if seed is None:
            return (w_x, w_h, bias), options
        if chosen.weight_drop:
            mask = recurrence.weight_mask(seed, w_h.shape, chosen.weight_drop, w_h.dtype)
            # Of a coupled cell, f has the weights of i.
            w_h = w_h * (mask[:, [0, 0, 2, 3]] if chosen.coupled else mask)
        keys = recurrence.row_keys(seed, x.shape[0])
        masks = {"keys": keys, "recurrent_dropout": float(chosen.recurrent_dropout)}
        if p := chosen.variational_dropout:
            options["x_mask"] = recurrence.sequence_mask(keys, "x", self.input_dim, p, w_h.dtype)
            masks["h_mask"] = recurrence.sequence_mask(keys, "h", self.h_dim, p, w_h.dtype)
        options["cell"] = options["cell"]._replace(**masks)
        return (w_x, w_h, bias), options

    def _scan_options(self) -> dict[str, Any]:
        """What `recurrence.scan` is told beside a call's tensors and weights, in evaluation."""
        start = (self.h_init, self.c_init) if self.options.learn_initial_state else None
        w_hr = None if self.proj_dim is None else self.W_hr
        return {"w_hr": w_hr, "cell": self._cell(), "start": start, "backend": self.backend, "strict": self.strict}

    def _initial(
        self, x: Tensor, h0: Tensor | None, c0: Tensor | None, resets: Tensor | None, lengths: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """The state to start from, after all arguments have been checked."""
        like = self._like
        rows = check_layer_state(h0, c0, self.state_size, like)
        check_input(x, self.input_dim, like)
        check_same_rows(x, rows, of_stack=False)
        check_masks(x, resets, lengths)
        if h0 is None or c0 is None:
            h0, c0 = self.initial_state(x.shape[0])
        return h0.to(like.dtype), c0.to(like.dtype)

    def _weights(self) -> tuple[Tensor, Tensor, Tensor]:
        """W_x [I, 4, H], W_h [H, 4, H] (of a projected h, [P, 4, H]) and b [4, H], those of f too where it is 1 - i.

        With layer normalisation the cell has the biases.
        """
        if self._held is not None:
            return self._held
        w_x, w_h = (torch.stack([self._of_gate(kind, gate) for gate in GATES], -2) for kind in ("W_x", "W_h"))
        if self.options.layer_norm or not self.options.bias:
            return w_x, w_h, w_h.new_zeros(4, self.hidden_dim)
        return w_x, w_h, torch.stack([self._of_gate("b_", gate) for gate in GATES], -2)

    def _of_gate(self, kind: str, gate: str) -> Tensor:
        if gate == "f" and self.options.coupled:
            # Of both gate functions, that of -x is 1 less that of x. The gain is of what has been negated.
            of_i: Tensor = getattr(self, f"{kind}i")
            return of_i if kind == "gain_" else -of_i
        parameter: Tensor = getattr(self, f"{kind}{gate}")
        return parameter

    def _cell(self) -> Cell:
        """The options that the recurrence has to be told of."""
        chosen, peephole = self.options, None
        if chosen.peephole:
            peephole = torch.stack([self._of_gate("p_", gate) for gate in ("i", "f", "o")])
        hard, relu = chosen.gate_activation == "hard_sigmoid", chosen.activation == "relu"
        of_h, of_c = chosen.zoneouts
        norm = self._norm() if chosen.layer_norm else None
        plain = Cell(peephole, chosen.cell_clip or 0.0, hard, relu, norm)
        return plain._replace(zoneout_h=float(of_h), zoneout_c=float(of_c))

    def _norm(self) -> Tensor:
        """The gains and the shifts of i, f, g, o and c, [2, 5, H]."""
        gains = [*(self._of_gate("gain_", gate) for gate in GATES), self.gain_c]
        own = [*(self._of_gate("b_", gate) for gate in GATES), self.b_c] if self.options.bias else None
        shifts = own or [torch.zeros_like(gain) for gain in gains]
        return torch.stack(gains + shifts).view(2, 5, -1)

    def _shapes(self) -> dict[str, tuple[int, ...]]:
        """Every parameter's but a cell's own, in the order of registration."""
        initial = {name: (n,) for name, n in zip(("h_init", "c_init"), self.state_size, strict=True)}
        if self.cell is not None:
            return dict(initial) if self.options.learn_initial_state else {}
        shapes: dict[str, tuple[int, ...]] = {}
        gates = [gate for gate in _DRAWN if not (gate == "f" and self.options.coupled)]
        for gate in gates:
            shapes[f"W_x{gate}"] = (self.input_dim, self.hidden_dim)
            shapes[f"W_h{gate}"] = (self.h_dim, self.hidden_dim)
            if self.options.bias:
                shapes[f"b_{gate}"] = (self.hidden_dim,)
        if self.options.peephole:
            shapes |= {f"p_{gate}": (self.hidden_dim,) for gate in gates if gate != "g"}
        if self.options.layer_norm:
            shapes |= {f"gain_{each}": (self.hidden_dim,) for each in (*gates, "c")}
            if self.options.bias:
                shapes["b_c"] = (self.hidden_dim,)
        if self.proj_dim is not None:
            shapes["W_hr"] = (self.hidden_dim, self.proj_dim)
        if self.options.learn_initial_state:
            shapes |= initial
        return shapes
