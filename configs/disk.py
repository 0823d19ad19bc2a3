"""Distillation into tiny students: DiSK and its baselines.

    python -m jaxeff.main --config=configs/disk.py                        # digits, a minute
    python -m jaxeff.main --config=configs/disk.py:digits,units=2,method=kd
    python -m jaxeff.main --config=configs/disk.py:fashion,method=closed_form
    python -m jaxeff.main --config=configs/disk.py:cifar100,student=m,method=cifar50

The argument is a setting; ``method=NAME`` of `METHODS`; ``units`` of digits' hidden layer;
``student`` and ``teacher``, names in `WIDTHS` of ResNet10s, elsewhere; ``scratch`` for a student
that was not trained on the labels first; and ``quick`` for a run of seconds. All methods give the
student the same passes over the data: turns of the gate come on top, and plain training ("ce") has
the passes of the first training too, in one run.

CIFAR-100's numbers are those of the authors' code (Kag et al., ICLR 2023): batches of 200, a
teacher and a first student of 200 epochs, then 200 rounds of 3 student epochs and, in turns, 3 of
the gate, after 5 of the gate alone. Unlike there a tenth of the training images is held out to
select by, and images have crops, flips and cut-outs but no learned policy.
"""

from typing import Any

from jaxeff.config import (
    Config,
    base_config,
    chosen,
    evaluate_at_shares,
    follow,
    split_argument,
    whole_number,
)

SETTINGS: dict[str, dict[str, Any]] = {
    "digits": {
        "batch": 100,
        "optim": {"name": "adam", "learning_rate": 1e-2},
        "rounds": 40,
        "student_epochs": 3,
        "epochs": 60,
        "init": 5,
        "train": 1350,
    },
    "fashion": {
        "data": "fashion_mnist",
        "batch": 100,
        "optim": {"name": "sgd", "momentum": 0.9, "learning_rate": 0.1},
        "pair": ("xxs", "m"),
        "rounds": 3,
        "student_epochs": 1,
        "epochs": 3,
        "init": 1,
        "train": 54_000,
    },
    "cifar100": {
        "batch": 200,
        "optim": {"name": "sgd", "momentum": 0.9, "learning_rate": 0.1},
        "pair": ("s", "l"),
        "rounds": 200,
        "student_epochs": 3,
        "epochs": 200,
        "init": 5,
        "periods": 4,  # of the learning rate of the last training
        "train": 45_000,
        "augment": {"crop": 4, "flip": True, "cutout": 16},
    },
}
#: Of the four stages of one block each; with 100 classes 8, 13, 28, 84, 320 and 1252 thousand
#: parameters.
WIDTHS = {
    "xxxs": (4, 8, 8, 16),
    "xxs": (8, 8, 16, 16),
    "xs": (8, 16, 16, 32),
    "s": (8, 16, 32, 64),
    "m": (16, 32, 64, 128),
    "l": (32, 64, 128, 256),
}
MIXED = {"label_weight": 0.1}  # with weight 0.9 of the teacher's loss
DISK = {**MIXED, "disk": {"variant": "normalised", "weight": 0.9}, "gate": {"name": "auto"}}
#: Fields of the algorithm.
METHODS: dict[str, dict[str, Any]] = {
    "ce": {},
    "kd": {**MIXED, "losses": {"kd": {"weight": 0.9}}},
    "dkd": {"losses": {"dkd": {}}},
    "fitnet": {**MIXED, "losses": {"fitnet": {}, "kd": {"weight": 0.9}}},
    "simkd": {"label_weight": 0.0, "losses": {"simkd": {}}, "keep_classifier": True},
    "disk": DISK,
    "closed_form": {**DISK, "gate": {"name": "closed_form"}},
    "disk_fitnet": {**DISK, "losses": {"fitnet": {}}},
    "disk_simkd": {**DISK, "losses": {"simkd": {}}, "keep_classifier": True},
    "poster": {**DISK, "disk": {"variant": "poster", "weight": 0.9}},
    "cifar50": {**DISK, "disk": {"variant": "cifar50", "weight": 0.9}},
    "cifar42": {**DISK, "disk": {"variant": "cifar42", "weight": 0.9}},
}
IN_TURNS = ("poster", "cifar50", "cifar42")  # as the authors train


def _labels_only(setting: str, model: dict[str, Any], epochs: int) -> Config:
    """Returns the config of a training on labels."""
    values = SETTINGS[setting]
    config = base_config()
    config.data.name = values.get("data", setting)
    config.data.normalize = "unit" if setting == "digits" else "standard"
    config.data.augment = dict(values.get("augment", {}))
    config.model = model
    for name, value in values["optim"].items():
        config.optim[name] = value
    config.optim.weight_decay = 0.0 if setting == "digits" else 5e-4
    config.optim.decayed = "all"
    config.train.batch_size = values["batch"]
    _set_epochs(config, setting, epochs)
    config.train.log_every = 20
    return config


def _set_epochs(config: Config, setting: str, epochs: int) -> None:
    values = SETTINGS[setting]
    config.train.num_steps = epochs * (values["train"] // values["batch"])
    evaluate_at_shares(config, max(1, epochs // 20), epochs)


def _models(
    setting: str, options: dict[str, str], method: str
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Returns the student's and the teacher's model."""
    if setting == "digits":
        units = whole_number(options, "units", 3)
        # SimKD's student ends in features of the teacher's width.
        wide = (64,) if METHODS[method].get("keep_classifier") else ()
        return {"name": "mlp", "hidden": (units, *wide)}, {"name": "mlp", "hidden": (64,)}
    nets = []
    for role, default in zip(("student", "teacher"), SETTINGS[setting]["pair"], strict=True):
        size = chosen(options, role, WIDTHS, default)
        resnet: dict[str, Any] = {"name": "resnet", "blocks": (1, 1, 1, 1), "widths": WIDTHS[size]}
        nets.append({**resnet, "axis_name": "data", "dtype": "float32"})
    student, teacher = nets
    if METHODS[method].get("keep_classifier"):
        width = teacher["widths"][-1]
        student = {"name": "projected", "backbone": student, "width": width, "axis_name": "data"}
    return student, teacher


def _reads_logits_only(setting: str, fields: dict[str, Any]) -> bool:
    """Returns whether a method needs no features of its teacher."""
    reads_map = setting != "digits" and fields.get("gate", {}).get("name") == "auto"
    return not (reads_map or {"fitnet", "simkd"} & set(fields.get("losses", {})))


def get_config(arg: str = "") -> Config:
    """Returns the config of a setting; see the file's docstring for the argument."""
    names = ["quick", "scratch", "method", "units", "student", "teacher"]
    setting, options = split_argument(
        arg, list(SETTINGS), "digits", names, switches=("quick", "scratch")
    )
    method = chosen(options, "method", METHODS, "disk")
    values, fields = SETTINGS[setting], METHODS[method]
    student, teacher = _models(setting, options, method)
    # SimKD's student has the teacher's classifier, which one trained on labels does not fit.
    starts = "scratch" not in options and not fields.get("keep_classifier")
    first = values["epochs"] if starts else 0
    passes = values["rounds"] * values["student_epochs"]
    config = _labels_only(setting, student, passes)
    if method == "ce":
        _set_epochs(config, setting, passes + first)
    else:
        config.algorithm = {"name": "distill", **fields, "student_epochs": values["student_epochs"]}
        if method in IN_TURNS:
            turns = {"gate_epochs": values["student_epochs"], "gate_init_epochs": values["init"]}
            config.algorithm.update(turns)
            _set_epochs(config, setting, 2 * passes + values["init"])
        config.optim.periods = values.get("periods", 1)
        config.algorithm.cache = "augment" not in values and _reads_logits_only(setting, fields)
        if setting != "digits":
            config.optim.weight_decay = 1e-5
            if config.algorithm.get("gate", {}).get("name") == "auto":
                config.algorithm.gate.axis_name = "data"
        with config.prerequisites.unlocked():
            config.prerequisites.teacher = _labels_only(setting, teacher, values["epochs"])
            config.prerequisites.teacher.name = "teacher"
            if starts:
                config.prerequisites.student = _labels_only(setting, student, first)
                config.prerequisites.student.name = "student"
    config.name = f"{method}_{setting}"
    if "quick" in options:
        for one in (config, *config.prerequisites.values()):
            one.train.num_steps = 30
            evaluate_at_shares(one, 1, 1)
    return follow(config)
