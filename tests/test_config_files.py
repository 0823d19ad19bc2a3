"""Reading config files, setting their fields from the command line, and what a config holds."""

import copy
import json
import re
import subprocess
import sys
from pathlib import Path

import ml_collections
import numpy as np
import pytest

from jaxeff import config_files, overrides
from jaxeff.config import Config, argument_items, base_config, plain, share_of_steps, split_argument
from jaxeff.errors import ConfigError
from jaxeff.train import check, defaults

REPOSITORY = Path(__file__).parents[1]
CONFIGS = REPOSITORY / "configs"
FILE = """from jaxeff.config import base_config

def get_config(arg=""):
    config = base_config()
    config.name = arg or "plain"
    return config
"""


@pytest.mark.parametrize(
    ("text", "path", "argument"),
    [
        ("configs/irnn.py", "configs/irnn.py", None),
        ("configs/irnn.py:", "configs/irnn.py", ""),
        ("configs/irnn.py:rows,quick", "configs/irnn.py", "rows,quick"),
        ("a.py:b:c", "a.py", "b:c"),
        ("C:\\configs\\irnn.py", "C:\\configs\\irnn.py", None),
        ("C:\\configs\\irnn.py:rows", "C:\\configs\\irnn.py", "rows"),
        ("d:/irnn.py:rows", "d:/irnn.py", "rows"),
        ("", "", None),
    ],
)
def test_path_and_argument_part_at_the_first_colon_that_is_no_drives(text, path, argument):
    assert config_files.split_path(text) == (path, argument)


def test_argument_reaches_the_file(tmp_path):
    path = tmp_path / "own.py"
    path.write_text(FILE, encoding="utf-8")
    assert config_files.load(f"{path}:fast").name == "fast"
    assert config_files.load(str(path)).name == "plain"
    assert config_files.load(str(path)).is_locked


@pytest.mark.parametrize("start", [b"", b"\xef\xbb\xbf"], ids=["plain", "with_byte_order_mark"])
@pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\r"], ids=["unix", "windows", "old_mac"])
def test_line_ends_and_marks_of_other_systems_are_read(tmp_path, start, end):
    path = tmp_path / "own.py"
    path.write_bytes(start + FILE.encode().replace(b"\n", end))
    assert config_files.load(str(path)).name == "plain"
    path.write_bytes(start + FILE.replace("config.name =", "config.nane.x =").encode())
    with pytest.raises(ConfigError, match=r"own\.py, line 5 fails: .*nane"):
        config_files.load(str(path))


def test_configs_of_an_installed_package_are_found_elsewhere(tmp_path, monkeypatch):
    shipped = tmp_path / "site" / "configs"
    shipped.mkdir(parents=True)
    (shipped / "own.py").write_text(FILE, encoding="utf-8")
    monkeypatch.setattr(config_files, "SHIPPED", (tmp_path / "none", shipped))
    monkeypatch.chdir(tmp_path)
    assert config_files.load("configs/own.py:x").name == "x"
    with pytest.raises(ConfigError, match=r"no config file 'configs/other\.py'"):
        config_files.load("configs/other.py")
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs" / "own.py").write_text(FILE.replace("plain", "mine"), encoding="utf-8")
    assert config_files.load("configs/own.py").name == "mine"


def test_wheels_and_checkouts_have_their_configs_where_they_are_looked_for():
    in_wheel, in_checkout = config_files.SHIPPED
    assert in_checkout == CONFIGS
    project = (REPOSITORY / "pyproject.toml").read_text(encoding="utf-8")
    assert '"configs" = "jaxeff/configs"' in project
    assert in_wheel == REPOSITORY / "jaxeff" / "configs"


@pytest.mark.parametrize("kind", ["dict", "ConfigDict", "FrozenConfigDict"])
def test_whole_dicts_are_configs(tmp_path, kind):
    path = tmp_path / "own.py"
    text = repr(json.loads(json.dumps(base_config().to_dict())))
    made = text if kind == "dict" else f"ml_collections.{kind}({text})"
    path.write_text(f"import ml_collections\ndef get_config():\n    return {made}\n")
    config = config_files.load(str(path))
    check.check(config)
    assert plain(config) == plain(base_config())


def test_a_decorated_or_class_made_get_config_is_called(tmp_path):
    path = tmp_path / "own.py"
    path.write_text(
        "import dataclasses, functools\nfrom jaxeff.config import base_config\n"
        "@dataclasses.dataclass\nclass Made:\n    name: str\n"
        "    def __call__(self, arg=''):\n"
        "        config = base_config()\n        config.name = self.name + arg\n"
        "        return config\n"
        "get_config = functools.partial(Made('x'))\n"
    )
    assert config_files.load(f"{path}:y").name == "xy"


LIGHT = """
import pathlib, sys, time
import jaxeff.main
from jaxeff import config_files
for path in pathlib.Path(sys.argv[1]).glob("*.py"):
    config_files.load(str(path))
print(sorted({"jax", "flax", "orbax", "tensorflow", "sklearn", "matplotlib"} & sys.modules.keys()))
"""


def test_no_config_imports_jax():
    found = subprocess.run(
        [sys.executable, "-c", LIGHT, str(CONFIGS)],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert (found.stdout.strip(), found.stderr) == ("[]", "")


def test_names_of_older_configs_are_still_there():
    assert defaults.base_config is base_config
    assert defaults.split_argument is split_argument


NUMBERS = [
    ("train.num_steps", np.int64(7), 7, int),
    ("train.num_steps", np.uint8(7), 7, int),
    ("optim.learning_rate", np.float32(0.5), 0.5, float),
    ("optim.learning_rate", np.float64(0.5), 0.5, float),
    ("optim.learning_rate", np.float16(0.5), 0.5, float),
    ("data.download", np.bool_(True), True, bool),
    ("seed", np.array(3), 3, int),
]


@pytest.mark.parametrize(("field", "value", "wanted", "kind"), NUMBERS)
def test_scalars_of_numpy_are_numbers(field, value, wanted, kind):
    config = base_config()
    section, _, name = field.rpartition(".")
    part = config[section] if section else config
    part[name] = value
    assert part[name] == wanted
    assert type(part[name]) is kind
    check.check(config)


def test_scalars_of_numpy_deep_in_a_section_are_written_as_numbers():
    config = base_config()
    config.model = {
        "name": "x",
        "cell": {"features": np.int32(8), "rates": [np.float64(0.5)], "pair": (np.int8(1), 2)},
    }
    config.analyses = [{"name": "y", "images": np.int64(3)}]
    written = plain(config)
    assert written["model"]["cell"] == {"features": 8, "rates": [0.5], "pair": [1, 2]}
    assert written["analyses"] == [{"name": "y", "images": 3}]
    assert json.loads(json.dumps(written)) == written


def test_a_config_of_plain_sections_is_written_as_numbers_too():
    config = ml_collections.ConfigDict(base_config().to_dict())
    config.model = ml_collections.ConfigDict({"name": "x", "features": np.int64(3)})
    check.check(config)
    assert plain(config)["model"] == {"name": "x", "features": 3}


def test_what_cannot_be_written_down_is_refused():
    config = base_config()
    config.model = {"name": "x", "make": len}
    with pytest.raises(ConfigError, match=r"config\.model\.make must be text, a number"):
        check.check(config)


def test_shares_follow_the_number_of_steps_until_they_are_set():
    config = base_config()
    config.train.num_steps = 600
    config.optim.warmup_steps = share_of_steps(config, 1, 3)
    config.lock()
    assert config.optim.warmup_steps == 200
    overrides.apply(config, overrides.Override("train.num_steps", ("100",)))
    assert config.optim.warmup_steps == 33
    other = copy.deepcopy(config)
    overrides.apply(other, overrides.Override("train.num_steps", ("9",)))
    assert (other.optim.warmup_steps, config.optim.warmup_steps) == (3, 33)
    assert plain(other)["optim"]["warmup_steps"] == 3
    overrides.apply(config, overrides.Override("optim.warmup_steps", ("5",)))
    overrides.apply(config, overrides.Override("train.num_steps", ("50",)))
    assert config.optim.warmup_steps == 5


@pytest.mark.parametrize(
    ("file", "before", "steps", "after"),
    [
        ("selective.py:method=gamblers", "algorithm.pretrain_steps=200", 90, 30),
        ("bottleneck.py", "optim.warmup_steps=20", 50, 5),
        ("bottleneck.py:supernet", "algorithm.full_steps=150", 40, 15),
        ("hybrid.py:cifar10", "optim.warmup_steps=780", 1000, 50),
        ("images.py:imagenet", "optim.warmup_steps=6130", 180, 10),
        ("images.py:imagenet,model=mobilenet_v2", "optim.warmup_steps=3678", 200, 3),
        ("dcl.py", "algorithm.period=14.222222222222221", 54, 1.28),
    ],
)
def test_what_depends_on_the_number_of_steps_follows_it(file, before, steps, after):
    config = config_files.load(str(CONFIGS / file))
    section, name, value = re.fullmatch(r"(\w+)\.(\w+)=(.+)", before).groups()
    assert config[section][name] == pytest.approx(float(value))
    overrides.apply(config, overrides.Override("train.num_steps", (str(steps),)))
    assert config[section][name] == pytest.approx(after)
    check.check(config)


def set_field(config, text):
    fields, rest = overrides.take([f"--config.{text}"])
    assert rest == []
    for field in fields:
        overrides.apply(config, field)


@pytest.fixture
def config():
    config = base_config()
    config.model = {"name": "x", "widths": (1, 2), "dropout": 0.0, "cell": {"name": "y"}}
    config.analyses = [{"name": "z", "images": 8}]
    config.data.name = "w"
    return config.lock()


@pytest.mark.parametrize(
    ("text", "field", "value"),
    [
        ("seed=7", "seed", 7),
        ("seed=0x10", "seed", 16),
        ("seed=1_000", "seed", 1000),
        ("seed=010", "seed", 10),
        ("name=7", "name", "7"),
        ("name=a=b", "name", "a=b"),
        ("name=", "name", ""),
        ("optim.learning_rate=3", "optim.learning_rate", 3.0),
        ("optim.learning_rate=1e-4", "optim.learning_rate", 1e-4),
        ("data.download", "data.download", True),
        ("data.download=false", "data.download", False),
        ("data.download=True", "data.download", True),
        ("devices.coordinator=host:1", "devices.coordinator", "host:1"),
        ("model.widths=(3, 4, 5)", "model.widths", (3, 4, 5)),
        ("model.widths=3,4", "model.widths", (3, 4)),
        ("model.widths=[3]", "model.widths", (3,)),
        ("model.widths=3", "model.widths", (3,)),
        ("model.widths=()", "model.widths", ()),
        ("data.normalize=standard", "data.normalize", "standard"),
        ("model.depth=3", "model.depth", 3),
        ("model.cell.scales=1,2", "model.cell.scales", (1, 2)),
        ("model.residual", "model.residual", True),
        ("model.residual=false", "model.residual", False),
        ("model.cell={'name': 'w', 'n': 3}", "model.cell.n", 3),
        ("analyses=[]", "analyses", []),
    ],
)
def test_fields_are_set_in_their_type(config, text, field, value):
    set_field(config, text)
    found = config
    for name in field.split("."):
        found = found[name]
    assert (found, type(found)) == (value, type(value))


def test_sections_of_factories_take_fields_that_the_file_does_not_set(config):
    config.data.normalize = "standard"
    config.model.cell.update(depth=np.int64(2))
    assert (config.data.normalize, config.model.cell.depth, config.is_locked) == (
        "standard",
        2,
        True,
    )
    with pytest.raises(AttributeError):
        config.train.steps = 2
    with pytest.raises(AttributeError):
        config.models = {}


def test_new_fields_of_the_data_are_those_of_prerequisites_on_the_same_data():
    config = base_config()
    config.data.name = "w"
    same, other = base_config(), base_config()
    same.data.name, same.data.normalize = "w", "unit"
    other.data.name = "v"
    same.prerequisites = {"first": copy.deepcopy(same)}
    config.prerequisites = {"same": same, "other": other}
    fields = ["--config.data.columns=('a', 'b')", "--config.data.normalize=none"]
    overrides.apply_all(config.lock(), overrides.take(fields)[0])
    changed = config.prerequisites.same
    assert changed.data.columns == changed.prerequisites.first.data.columns == ("a", "b")
    assert (config.data.normalize, changed.data.normalize) == ("none", "unit")
    assert "columns" not in config.prerequisites.other.data


@pytest.mark.parametrize(
    "text", ["model.width=3", "train.steps=2", "optim.learning_rte=1", "search.x=1", "x=1"]
)
def test_fields_that_no_section_takes_are_refused(config, text):
    with pytest.raises(ConfigError, match="has no field"):
        set_field(config, text)


def test_members_of_lists_are_set(config):
    set_field(config, "analyses[0].images=3")
    assert config.analyses == [{"name": "z", "images": 3}]


def test_options_of_a_command_are_taken_apart():
    command = (
        "--config=x.py --config.seed 3 -config.name=a --noconfig.data.download "
        "--config.data.download --mode=eval --config.model.widths=1 --config.model.widths=2 "
        "-- --config.seed=4"
    )
    fields, rest = overrides.take(command.split())
    assert rest == ["--config=x.py", "--mode=eval", "--", "--config.seed=4"]
    assert [(f.path, f.texts) for f in fields] == [
        ("seed", ("3",)),
        ("name", ("a",)),
        ("data.download", ()),
        ("model.widths", ("1", "2")),
    ]


def test_repeated_values_make_a_list_and_the_last_number_counts(config):
    for text in ("model.widths", "seed"):
        fields, _ = overrides.take([f"--config.{text}=1", f"--config.{text}=2"])
        overrides.apply(config, fields[0])
    assert (config.model.widths, config.seed) == ((1, 2), 2)


def test_items_of_an_argument_are_read_with_their_values():
    assert argument_items("rows, cell=lstm,,quick") == [
        ("rows", ""),
        ("cell", "lstm"),
        ("quick", ""),
    ]
    setting, options = split_argument("cell=lstm,quick", ["rows"], "rows", ["cell", "quick"])
    assert (setting, options) == ("rows", {"cell": "lstm", "quick": ""})


def test_configs_copy_compare_and_hold_references():
    config = base_config()
    twin = copy.deepcopy(config)
    assert type(twin.model) is Config
    assert twin == config
    twin.model.name = "x"
    assert twin != config
    with config.prerequisites.unlocked():
        config.prerequisites.teacher = twin
    twin.seed = 5
    assert config.prerequisites.teacher.seed == 5
