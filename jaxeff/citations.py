"""BibTeX entries of the papers behind a model, a cell, a training algorithm or a run.

The entries are in ``references.bib``. A class names those behind it by the module that defines it
(`OF_MODULES`), or by its own attribute ``references``; the latter is also how a cell or layer of
your own is cited.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import re
from collections.abc import Iterator, Mapping, Sequence
from importlib import resources
from typing import Any

import jax
import numpy as np
from ml_collections import ConfigDict

from jaxeff.errors import UserError

#: Keys of the entries by module; those of a package hold for its modules.
OF_MODULES: Mapping[str, tuple[str, ...]] = {
    "jaxeff.ode.irnn": ("kag2020irnn",),
    "jaxeff.ode.tarnn": ("kag2021tarnn",),
    "jaxeff.ode.dual": ("kag2021tarnn",),
    "jaxeff.ode.fastgrnn": ("kusupati2018fastgrnn",),
    "jaxeff.ode.parallel": ("lim2024deer", "gonzalez2024elk"),
    "jaxeff.layers.bottleneck": ("bidart2023thesis", "dai2020funnel"),
    "jaxeff.layers.global_layer": ("kag2022global",),
    "jaxeff.layers.interpolated": ("kag2023thesis",),
    "jaxeff.layers.shared_conv": ("bidart2023thesis", "haase2020bsconv"),
    "jaxeff.models.autoencoder": ("bidart2019avae",),
    "jaxeff.models.coordinates": ("bepler2019spatialvae",),
    "jaxeff.models.encoder": ("devlin2019bert",),
    "jaxeff.models.text": ("bidart2023thesis", "dai2020funnel"),
    "jaxeff.models.hybrid": ("kag2023hybrid",),
    "jaxeff.hybrid": ("kag2023hybrid",),
    "jaxeff.models.early_exit": ("teerapittayanon2016branchynet",),
    "jaxeff.models.selecting": ("geifman2019selectivenet",),
    "jaxeff.models.projected": ("chen2022simkd",),
    "jaxeff.models.pretrained": ("liu2019roberta", "sanh2019distilbert", "wang2020minilm"),
    "jaxeff.ode.solve": ("bai2019deq",),
    "jaxeff.quantize.rounding": ("frantar2023gptq",),
    "jaxeff.quantize.training": ("jacob2018quantization",),
    "jaxeff.search.retention": ("goyal2020powerbert",),
    "jaxeff.selective.online": ("gangrade2021online",),
    "jaxeff.train.algorithms.hybrid": ("kag2023hybrid",),
    "jaxeff.train.algorithms.distill": ("hinton2015distilling",),
    "jaxeff.train.algorithms.constrained": ("kag2023thesis",),
    "jaxeff.train.algorithms.affine": ("bidart2019avae",),
    "jaxeff.train.algorithms.sandwich": ("yu2019sandwich", "cai2020once"),
    "jaxeff.train.fptt_optimizer": ("acar2021feddyn", "kag2021fptt"),
}
#: Keys of the entries by class or function, where a module has several of different sources.
OF_CLASSES: Mapping[str, tuple[str, ...]] = {
    "jaxeff.constraints.dual.nupi": ("sohrabi2024nupi",),
    "jaxeff.constraints.statistics.ascend": ("foret2021sam",),
    "jaxeff.distill.classic.dkd": ("zhao2022dkd",),
    "jaxeff.distill.classic.hint": ("romero2015fitnets",),
    "jaxeff.distill.classic.kd": ("hinton2015distilling",),
    "jaxeff.layers.bottleneck.merge_tokens": ("bolya2023tome",),
    "jaxeff.models.autoencoder.PoseHead": ("jaderberg2015stn", "shekarforoush2024cryospin"),
    "jaxeff.ode.classic.LSTM": ("hochreiter1997lstm",),
    "jaxeff.ode.classic.GRU": ("cho2014gru",),
    "jaxeff.ode.oscillators.Antisymmetric": ("chang2019antisymmetric",),
    "jaxeff.ode.oscillators.CoRNN": ("rusch2021cornn",),
    "jaxeff.search.strategies.evolution": ("kim2021length",),
    "jaxeff.selective.calibrate.conformal_risk_control": ("angelopoulos2024crc",),
    "jaxeff.selective.calibrate.learn_then_test": ("angelopoulos2021ltt",),
    "jaxeff.train.algorithms.fptt.FPTT": ("kag2021fptt",),
}
#: Keys of the entries by a value of a run's config, whose object the model does not hold.
OF_SETTINGS: Mapping[tuple[str, str], tuple[str, ...]] = {
    ("objective", "one_sided"): ("gangrade2021onesided",),
    ("objective", "selective_net"): ("geifman2019selectivenet",),
    ("objective", "deep_gamblers"): ("liu2019gamblers",),
    ("objective", "self_adaptive"): ("huang2020sat",),
    ("algorithm", "disk"): ("kag2023disk",),
}


@functools.cache
def entries() -> Mapping[str, str]:
    """Returns all BibTeX entries of the package by their keys."""
    text = resources.files("jaxeff").joinpath("references.bib").read_text("utf-8")
    parts = re.split(r"\n(?=@)", text.strip())
    return {part.partition("{")[2].partition(",")[0]: part.strip() for part in parts}


def cite(target: Any) -> str:
    """Returns the BibTeX entries of the papers that a model is built on.

    Args:
      target: a Flax model, a cell, a layer, a training algorithm, a class or function of the
        package, or what `jaxeff.load` returns, whose training algorithm is cited too.

    Returns:
      Entries with an empty line between them, in order of their keys.

    Raises:
      UserError: nothing in ``target`` has a known source, or a class names an unknown one.
    """
    known = entries()
    cited = {known.get(key, key) for key in _keys(target, {})}
    if not cited:
        way = (
            "give the model itself, jaxeff.create_model(NAME, num_classes=N) or jaxeff.load(NAME)"
            if isinstance(target, str)
            else "give its class an attribute `references`, a tuple of BibTeX entries"
        )
        raise UserError(f"nothing in {_shown(target)} has a source to cite; {way}")
    unknown = sorted(entry for entry in cited if not entry.startswith("@"))
    if unknown:
        raise UserError(
            f"{unknown[0]!r} in the attribute `references` of a class is neither a key of the "
            "package's references.bib nor a BibTeX entry; give the whole entry"
        )
    return "\n\n".join(sorted(cited, key=lambda entry: entry.partition("{")[2]))


def _keys(value: Any, seen: dict[int, Any]) -> Iterator[str]:
    """Yields the keys, or whole entries, of a value and of what it is built of."""
    if id(value) in seen:
        return
    seen[id(value)] = value  # kept alive, so that no other value gets its number
    if isinstance(value, Mapping):
        for part in value.values():
            yield from _keys(part, seen)
    elif isinstance(value, Sequence) and not isinstance(value, str | bytes):
        for part in value:
            yield from _keys(part, seen)
    elif isinstance(value, functools.partial):
        yield from _keys([value.func, value.args, value.keywords], seen)
    elif inspect.isclass(value) or inspect.isfunction(value):
        yield from _of_class(value)
    elif isinstance(value, ConfigDict):
        yield from _of_config(value)
    elif hasattr(value, "__dict__") and not isinstance(value, np.ndarray | jax.Array):
        yield from getattr(value, "references", ())
        for ancestor in type(value).__mro__:
            yield from _of_class(ancestor)
        yield from _keys(_parts(value), seen)


def _of_class(kind: Any) -> Sequence[str]:
    """Returns the keys of a class or function by itself."""
    if "references" in vars(kind):
        return tuple(kind.references)
    module = getattr(kind, "__module__", None) or ""
    of_class = OF_CLASSES.get(f"{module}.{kind.__name__}")
    while of_class is None and module:
        of_class = OF_MODULES.get(module)
        module = module.rpartition(".")[0]
    return of_class or ()


def _of_config(config: ConfigDict) -> Iterator[str]:
    """Yields the keys of a run's training algorithm and objective."""
    from jaxeff.train.algorithms import ALGORITHMS  # of a package above this module

    name = config.get("algorithm", {}).get("name")
    if name in ALGORITHMS:
        yield from _of_class(ALGORITHMS[name])
    for (section, setting), keys in OF_SETTINGS.items():
        fields = config.get(section, {})
        if fields.get("name") == setting or fields.get(setting):
            yield from keys


def _parts(value: Any) -> dict[str, Any]:
    """Returns an object's fields; of a loaded run its model and its config."""
    if hasattr(value, "model") and hasattr(value, "config"):
        return {"model": value.model, "config": value.config}
    if dataclasses.is_dataclass(value):
        names = [field.name for field in dataclasses.fields(value)]
        return {
            name: getattr(value, name, None) for name in names if name not in ("parent", "name")
        }
    return {name: part for name, part in vars(value).items() if not name.startswith("__")}


def _shown(target: Any) -> str:
    return repr(target) if isinstance(target, str) else f"this {type(target).__name__}"
