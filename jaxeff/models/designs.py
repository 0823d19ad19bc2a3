"""Designs: modifications of a convolutional host's stages, by name.

config.model = {"name": "resnet", "depth": 32, "design": {"name": "interpolated", "stride": 2}}
"""

from __future__ import annotations

import dataclasses
import itertools
import numbers
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxeff.errors import ConfigError
from jaxeff.layers.global_layer import GlobalLayer
from jaxeff.layers.interpolated import Interpolated
from jaxeff.layers.residual import GlobalBlock, Loop
from jaxeff.layers.shared_conv import MODES, TILED, SharedOps
from jaxeff.models.convnet import REMAT, BlockSpec, ConvNet, Host
from jaxeff.registry import Registry

DESIGNS = Registry("design")


class Design:
    """The host's own blocks; base of the others."""

    def check(self, host: Host[Any]) -> None:
        """Raises `ConfigError` if the design is impossible in a host or would change nothing."""

    def blocks(self, host: Host[Any], specs: Sequence[BlockSpec]) -> Sequence[nn.Module]:
        """Returns the blocks of a stage."""
        return [host.block(spec) for spec in specs]

    def behind(self, host: Host[Any], stage: int) -> Sequence[nn.Module]:
        """Returns the layers after a stage and its transition."""
        return ()


DESIGNS.register("plain")(Design)


@DESIGNS.register("global")
class Global(Design):
    """A Global layer instead of a stage's repeated blocks (`jaxeff.layers.GlobalLayer`).

    Args:
      stages: stages with a Global layer, from 0; None: the first three, as far as they exist.
      kept: blocks kept in those stages; -1 keeps all. One number, or one for each of ``stages``.
      initial: the layer's initial field: "identity", its input; "block", one of the host's blocks
        applied to it; "next", the first block that is not kept applied to it.
      per_stage: additional fields of the layer by stage.
      **layer: fields of the layer.
    """

    def __init__(
        self,
        stages: Sequence[int] | None = None,
        kept: int | Sequence[int] = -1,
        initial: str = "identity",
        per_stage: Mapping[Any, Mapping[str, Any]] | None = None,
        **layer: Any,
    ):
        if initial not in ("identity", "block", "next"):
            raise ConfigError(f"initial must be identity, block or next, not {initial!r}")
        self.usual_stages, numbers = stages is None, (0, 1, 2) if stages is None else stages
        counts: list[int] = list(kept) if isinstance(kept, Sequence) else [kept] * len(numbers)
        if len(counts) != len(numbers):
            raise ConfigError(f"kept has {len(counts)} numbers for {len(numbers)} stages")
        if any(not isinstance(count, int) or count < -1 for count in counts):
            raise ConfigError(f"kept must be whole numbers of blocks, or -1 for all, not {kept!r}")
        if initial == "next" and min(counts, default=0) < 0:
            raise ConfigError("initial='next' needs kept, the blocks before the layer")
        known = {f.name for f in dataclasses.fields(GlobalLayer)}
        self.per_stage = {int(n): dict(fields) for n, fields in (per_stage or {}).items()}
        for fields in (layer, *self.per_stage.values()):
            for name in fields:
                if name not in known:
                    raise ConfigError(f"the Global layer has no field {name!r}")
        self.kept = dict(zip(numbers, counts, strict=True))
        unused = sorted(set(self.per_stage) - set(self.kept))
        if unused:
            raise ConfigError(
                f"per_stage has fields of stage {unused[0]}, which has no Global layer"
            )
        self.initial, self.options = initial, layer

    def check(self, host: Host[Any]) -> None:
        """See `Design.check`."""
        _check_stages(host, None if self.usual_stages else self.kept)
        for stage, count in self.kept.items():
            blocks = len(host.specs[stage]) if stage < len(host.specs) else count + 1
            if self.initial == "next" and count >= blocks:
                raise ConfigError(
                    f"stage {stage} has {blocks} blocks; kept={count} leaves none for the Global "
                    "layer's initial field"
                )

    def _layer(self, host: Host[Any], stage: int, spec: BlockSpec | None) -> nn.Module:
        fields: dict[str, Any] = {
            "axis_name": host.ops.axis_name,
            "momentum": host.ops.momentum,
            "dtype": host.ops.dtype,
        }
        if spec is not None:
            fields |= {"kernel_size": spec.kernel_size, "activation": spec.activation}
        fields |= {**self.options, **self.per_stage.get(stage, {})}
        for name in ("spacing", "diffusivity"):
            if fields.get(name) is not None:
                fields[name] = tuple(fields[name])
        return GlobalLayer(**fields)

    def _kept(self, specs: Sequence[BlockSpec]) -> int:
        count = self.kept.get(specs[0].stage, -1)
        return len(specs) if count < 0 else count

    def blocks(self, host: Host[Any], specs: Sequence[BlockSpec]) -> Sequence[nn.Module]:
        """See `Design.blocks`."""
        count = self._kept(specs)
        blocks = [host.block(spec) for spec in specs[:count]]
        if self.initial == "next" and specs[0].stage in self.kept:
            spec = specs[count]
            blocks.append(GlobalBlock(self._layer(host, spec.stage, spec), host.block(spec)))
        return blocks

    def behind(self, host: Host[Any], stage: int) -> Sequence[nn.Module]:
        """See `Design.behind`."""
        if self.initial == "next" or stage not in self.kept:
            return ()
        initial = host.shape_keeping_block(stage) if self.initial == "block" else None
        return (GlobalBlock(self._layer(host, stage, None), initial),)


@DESIGNS.register("interpolated")
class InterpolatedDesign(Design):
    """Bodies on anchor pixels, in all blocks that keep their shape (`jaxeff.layers.Interpolated`).

    Args:
      stages: stages to modify, from 0; None for all.
      **layer: fields of the layer.
    """

    def __init__(self, stages: Sequence[int] | None = None, **layer: Any):
        known = {f.name for f in dataclasses.fields(Interpolated)} - {"body"}
        for name in layer:
            if name not in known:
                raise ConfigError(f"the interpolated body has no field {name!r}")
        self.stages = None if stages is None else set(stages)
        self.options = layer

    def _applies(self, spec: BlockSpec) -> bool:
        return spec.keeps_shape and (self.stages is None or spec.stage in self.stages)

    def check(self, host: Host[Any]) -> None:
        """See `Design.check`."""
        _check_stages(host, self.stages)
        if not any(self._applies(spec) for specs in host.specs for spec in specs):
            raise ConfigError(_NO_PLACE.format("interpolated", _family(host)))

    def blocks(self, host: Host[Any], specs: Sequence[BlockSpec]) -> Sequence[nn.Module]:
        """See `Design.blocks`."""

        def wrap(body: nn.Module) -> nn.Module:
            ops = host.ops
            return Interpolated(
                body,
                **{
                    "axis_name": ops.axis_name,
                    "epsilon": ops.epsilon,
                    "momentum": ops.momentum,
                    "dtype": ops.dtype,
                    **self.options,
                },
            )

        return [host.block(spec, wrap=wrap if self._applies(spec) else None) for spec in specs]


@DESIGNS.register("shared")
class Shared(Design):
    """Convolutions whose kernels are tied over channels (`jaxeff.layers.SharedConv`).

    Args:
      mode: see `jaxeff.layers.shared_conv`.
      factor: s, of the tiled modes.
      stages: stages with tied kernels, from 0; None: stages 1 to 3, as far as they exist, or stage
        0 of a host with one stage.
      share_shortcut: whether the shortcuts' convolutions are tied too.
      **fields: more fields of `jaxeff.layers.shared_conv.SharedOps`.
    """

    def __init__(
        self,
        mode: str = "out_tile",
        factor: int = 2,
        stages: Sequence[int] | None = None,
        share_shortcut: bool = False,
        **fields: Any,
    ):
        if mode not in MODES:
            raise ConfigError(f"mode must be one of {', '.join(MODES)}, not {mode!r}")
        if mode in TILED and factor < 1:
            raise ConfigError(f"factor must be at least 1, not {factor}")
        known = {f.name for f in dataclasses.fields(SharedOps)}
        for name in fields:
            if name not in known:
                raise ConfigError(f"shared convolutions have no field {name!r}")
        self.stages = None if stages is None else set(stages)
        self.share_shortcut = share_shortcut
        self.fields = {"mode": mode, "factor": factor, **fields}

    def _stages(self, host: Host[Any]) -> set[int]:
        if self.stages is not None:
            return self.stages
        return {1, 2, 3} if len(host.specs) > 1 else {0}

    def _block(self, host: Host[Any], spec: BlockSpec) -> nn.Module:
        plain = {f.name: getattr(host.ops, f.name) for f in dataclasses.fields(host.ops)}
        ops = SharedOps(**{**plain, **self.fields})
        shortcut = ops if self.share_shortcut else host.ops
        return host.block(spec, ops=ops, shortcut_ops=shortcut)

    def check(self, host: Host[Any]) -> None:
        """See `Design.check`."""
        _check_stages(host, self.stages)
        mode, factor = self.fields["mode"], self.fields["factor"]
        if mode in TILED and factor == 1:  # the plain convolutions, requested explicitly
            return
        stages = self._stages(host)
        sharing = (spec for specs in host.specs for spec in specs if spec.stage in stages)
        if not any(_differ(self._block(host, s), host.block(s), s.in_features) for s in sharing):
            raise ConfigError(
                f"mode '{mode}' changes none of the convolutions in these stages of "
                f"{_family(host)}; choose another mode or host, or the design 'plain'"
            )

    def blocks(self, host: Host[Any], specs: Sequence[BlockSpec]) -> Sequence[nn.Module]:
        """See `Design.blocks`."""
        if specs[0].stage not in self._stages(host):
            return super().blocks(host, specs)
        return [self._block(host, spec) for spec in specs]


@DESIGNS.register("looped")
class Looped(Design):
    """Consecutive blocks of a stage that keep their shape become one block applied repeatedly."""

    @staticmethod
    def _rows(specs: Sequence[BlockSpec]) -> list[list[BlockSpec]]:
        rows: list[list[BlockSpec]] = []
        for keeps_shape, group in itertools.groupby(specs, lambda spec: spec.keeps_shape):
            row = list(group)
            rows += [row] if keeps_shape else [[spec] for spec in row]
        return rows

    def check(self, host: Host[Any]) -> None:
        """See `Design.check`."""
        if not any(len(row) > 1 for specs in host.specs for row in self._rows(specs)):
            raise ConfigError(_NO_PLACE.format("looped", _family(host)))

    def blocks(self, host: Host[Any], specs: Sequence[BlockSpec]) -> Sequence[nn.Module]:
        """See `Design.blocks`."""
        return [
            Loop(host.block(row[0]), len(row)) if row[0].keeps_shape else host.block(row[0])
            for row in self._rows(specs)
        ]


_NO_PLACE = (
    "the design '{0}' changes nothing in {1}, which has no blocks that keep their shape; "
    "choose another design or host, or more blocks"
)


def _family(host: Host[Any]) -> str:
    return type(host).__name__.removesuffix("Host")


def _check_stages(host: Host[Any], stages: Collection[int] | None) -> None:
    """Raises `ConfigError` for stages that the host does not have; None is valid."""
    if stages is None:
        return
    count = len(host.specs)
    wrong = [
        n
        for n in stages
        if isinstance(n, bool) or not isinstance(n, numbers.Integral) or not 0 <= n < count
    ]
    if wrong or not stages:
        what = f"names stage {wrong[0]!r}" if wrong else "is empty"
        raise ConfigError(f"stages {what}, but {_family(host)} has stages 0 to {count - 1}")


def _differ(block: nn.Module, plain: nn.Module, in_features: int) -> bool:
    """Whether two blocks have different parameters; only shapes are evaluated.

    Errors within a block are left to the call of the network.
    """
    x = jax.ShapeDtypeStruct((1, 8, 8, in_features), jnp.float32)
    key = jax.eval_shape(lambda: jax.random.key(0))
    try:
        one, other = (jax.eval_shape(module.init, key, x) for module in (block, plain))
    except ConfigError:
        return True
    return bool(one != other)


def assemble(
    host: Host[Any], spec: Mapping[str, Any] | None, num_outputs: int, remat: str = "none"
) -> ConvNet:
    """Returns a host's network with the design of the config section ``model.design``.

    Args:
      host: the host.
      spec: name and fields of the design; None is the plain host.
      num_outputs: width of the output.
      remat: see `ConvNet`.

    Raises:
      ConfigError: the design is unknown or impossible, or ``remat`` is.
    """
    if remat not in REMAT:
        raise ConfigError(f"remat must be one of {', '.join(REMAT)}, not {remat!r}")
    design = DESIGNS.build(spec or {"name": "plain"}, "model.design")
    try:
        design.check(host)
    except ConfigError as error:
        raise ConfigError(f"config.model.design: {error}") from error
    stages = []
    for number, specs in enumerate(host.specs):
        transition = host.transition(number)
        transitions = () if transition is None else (transition,)
        stages.append((*design.blocks(host, specs), *transitions, *design.behind(host, number)))
    dtype = host.ops.dtype or jnp.float32
    head, references = host.head(num_outputs), tuple(host.references)
    return ConvNet(host.stem(), tuple(stages), head, dtype, remat, references)
