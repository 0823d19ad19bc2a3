"""The search of a run: its record, what it hands on, and what is refused."""

import json
import math

import flax.linen as nn
import jax
import numpy as np
import pytest
from encoder_cases import SHAPE

from jaxeff import analyses, data, serving, train
from jaxeff.errors import CheckpointError, ConfigError, DataError
from jaxeff.models import MODELS
from jaxeff.models.encoder_plan import EncoderPlan
from jaxeff.models.trained import Trained
from jaxeff.search import record as records
from jaxeff.search import run as searching
from jaxeff.search import searches
from jaxeff.search.latency import LatencyTable, needed
from jaxeff.search.relaxed import expected_latency
from jaxeff.train import check, experiment, launch, prerequisites

#: What a search may find, as its record says it.
FOUND = {
    "depth": 2,
    "cuts": [[1, 2]],
    "keep_first": 0,
    "kind": "linear",
    "pooled_queries": False,
}

SUPERNET = {
    "name": "encoder_supernet",
    "shape": {**SHAPE, "layers": 2},
    "depths": (1, 2),
    "factors": (2,),
    "max_cuts": 1,
}


@pytest.fixture(scope="module")
def dataset():
    """Forty texts of two words; the class is the first word."""
    rng = np.random.default_rng(0)
    labels = np.sort(rng.integers(0, 2, 40)).astype(np.int32)
    values = rng.integers(4, 12, (40, 8)).astype(np.int32)
    values[:, 0] = 2 + labels
    split = data.snippets.TokenSplit(values, labels, np.arange(40), np.full(40, 8, np.int32))
    return data.Dataset(
        "words", "classification", 2, 2, (8,), dict.fromkeys(data.base.STREAMS, split), "words"
    )


@pytest.fixture(scope="module")
def supernet():
    model = MODELS.build(SUPERNET, num_outputs=2)
    variables = jax.jit(model.init)(jax.random.key(0), np.zeros((1, 8), np.int32))
    return Trained(model, jax.device_get(variables))


def config(**search):
    made = train.base_config()
    made.data.name, made.name = "verses", "found"
    made.model = {"name": "encoder", "shape": {**SHAPE, "layers": 2}}
    made.search = {"name": "evolution", "budget": 3, "rounds": 1, **search}
    made.eval.batch_size = 16
    return made


@pytest.mark.slow
@pytest.mark.parametrize("name", [
    "evolution",
    *(pytest.param(n, marks=pytest.mark.slow) for n in (
        "enumeration", "random", "gradient", "retention",
    )),
])  # fmt: skip
def test_a_record(name, supernet, dataset, tmp_path):
    few = {"gradient": {"steps": 2, "aims": (1.0, 0.5)}, "retention": {"steps": 2}}
    fields = few.get(name, {})
    asked = config(name=name, max_latency_share=1.0, **fields)
    search = searches.SEARCHES.build(asked.search)
    record = searching.run(search, supernet, dataset, tmp_path, asked)
    json.dumps(record)
    assert record["networks_in_space"] == 3
    assert 1 <= record["evaluations"] <= 3
    found = record["found"]
    assert found["plan"].keys() == {"depth", "cuts", "keep_first", "kind", "pooled_queries"}
    assert found in [{**c, "measured_ms": found["measured_ms"]} for c in record["evaluated"]]
    assert LatencyTable.load(tmp_path / searching.TABLE).length == 8
    assert set(record["seconds"]) == {"measuring", "all"}


@pytest.mark.slow
def test_what_cannot_be_met_is_answered_with_the_nearest(supernet, dataset, tmp_path, capsys):
    asked = config(max_latency_ms=1e-9)
    record = searching.run(
        searches.SEARCHES.build(asked.search), supernet, dataset, tmp_path, asked
    )
    assert not record["met"]
    predicted = LatencyTable.load(tmp_path / searching.TABLE)
    cheapest = min(supernet.model.space.plans, key=predicted)
    assert record["found"]["plan"]["depth"] == cheapest.depth
    said = capsys.readouterr().out
    assert "nothing meets at most 1e-09 ms; the closest is depth 1" in said
    assert f"accuracy {record['found']['accuracy']:.4f}" in said


@pytest.mark.slow
def test_scores_are_accuracies_of_a_part_of_all(supernet, dataset):
    plan = EncoderPlan(2, ((1, 2),))
    whole = searching.Scorer(supernet, dataset, 16, 0)(plan)
    batch = dataset.splits["validation"].take(np.arange(40))
    network = supernet.model.subnetwork(plan)
    found = network.apply(supernet.variables, batch["inputs"], mask=batch["mask"]).argmax(-1)
    assert whole == np.mean(found == batch["labels"])
    part = searching.Scorer(supernet, dataset, 16, 20)
    labels = np.concatenate([b["labels"][:number] for b, number in part._batches])
    assert len(labels) == 20
    assert 0.2 < labels.mean() < 0.8  # though the split is sorted


@pytest.mark.parametrize("pooled", [False, True])
def test_networks_in_parts_are_the_networks(supernet, dataset, pooled):
    batch = dataset.splits["validation"].take(np.arange(5))
    mask = np.arange(8) < np.arange(3, 8)[:, None]
    rng = np.random.default_rng(0)
    drawn = jax.tree.map(lambda a: rng.normal(size=a.shape).astype(a.dtype), supernet.variables)
    network = supernet.model.subnetwork(EncoderPlan(2, ((1, 2),), pooled_queries=pooled))
    whole = jax.jit(network.apply)(drawn, batch["inputs"], mask=mask)
    with nn.intercept_methods(searching._in_parts):
        in_parts = network.apply(drawn, batch["inputs"], mask=mask)
    np.testing.assert_allclose(in_parts, whole, rtol=1e-4, atol=1e-5)


def test_a_search_is_made_once(supernet, dataset, tmp_path, monkeypatch):
    calls = []

    def run(*_):
        calls.append(1)
        return {"found": {"plan": FOUND}}

    monkeypatch.setattr(searching, "run", run)
    asked = config()
    trained = {"teacher": supernet}
    for _ in range(2):
        found = searching.resolved(asked, trained, tmp_path, lambda: dataset)
        assert found.model.depth == 2
        assert found.model.cuts == ((1, 2),) or list(map(list, found.model.cuts)) == [[1, 2]]
        MODELS.build(found.model, num_outputs=2)
    assert "cuts" not in asked.model
    assert len(calls) == 1
    assert searching.summary(tmp_path)["search"]["found"]
    assert searching.summary(tmp_path / "other") == {}
    plain = train.base_config()
    assert searching.resolved(plain, {}, tmp_path, lambda: dataset) is plain


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"budget": 0}, "budget must be a whole number of at least 1"),
        ({"max_latency_ms": 1.0, "min_accuracy": 0.5}, "set one of them"),
        ({"max_latency_share": 0.0}, "max_latency_share must be in"),
        ({"max_latency_share": 1.5}, r"max_latency_share must be in \(0, 1\], not 1.5"),
        ({"max_latency_share": math.nan}, "max_latency_share must be in"),
        ({"budget": -3}, "budget must be a whole number of at least 1, not -3"),
        ({"budget": math.nan}, "budget must be a whole number, not nan"),
        ({"budget": 2.5}, "budget must be a whole number"),
        ({"examples": math.nan}, "examples must be a whole number"),
        ({"max_latency_ms": math.nan}, "max_latency_ms must be in \\[0, inf"),
        ({"max_latency_ms": math.inf}, "max_latency_ms must be in \\[0, inf"),
        ({"max_latency_ms": -1.0}, "max_latency_ms must be in \\[0, inf"),
        ({"min_accuracy": 90.0}, r"min_accuracy must be in \[0, 1\], not 90"),
        ({"min_accuracy": math.nan}, "min_accuracy must be in"),
        ({"min_accuracy": "high"}, "min_accuracy must be a number"),
        ({"population": 0}, "population must be a whole number of at least 1"),
        ({"mutation": 1.5}, "mutation must be in"),
        ({"name": "gradient", "aims": ()}, "aims must be a list of at least one number"),
        ({"name": "gradient", "aims": (0.5, 2.0)}, "aims: each must be in"),
        ({"name": "gradient", "temperature": 0.0}, "temperature must be in \\(0, inf"),
        ({"name": "gradient", "steps": 0}, "steps must be a whole number of at least 1"),
        ({"name": "retention", "prices": (-1.0,)}, "prices: each must be in"),
        ({"name": "retention", "learning_rate": math.nan}, "learning_rate must be in"),
        ({"name": "evolutoin"}, "did you mean 'evolution'"),
        ({"max_latncy_ms": 1.0}, "did you mean 'max_latency_ms'"),
    ],
)
def test_impossible_searches(change, message, supernet):
    with pytest.raises(ConfigError, match=message):
        searching.check(config(**change), {"teacher": supernet})


def test_what_a_search_needs(supernet):
    with pytest.raises(ConfigError, match=r"needs a supernet as config\.prerequisites\.teacher"):
        searching.check(config(), {})
    other = config()
    other.model.name = "encoder_supernet"
    with pytest.raises(ConfigError, match="finds a model 'encoder'"):
        searching.check(other, {"teacher": supernet})
    searching.check(config(), {"teacher": supernet})
    searching.check(train.base_config(), {})


@pytest.mark.slow
def test_from_supernet_to_network(tmp_path):
    """The whole command on a few reviews: train, search, train what was found, evaluate again."""
    import bz2

    rng = np.random.default_rng(0)
    rows = ["category,text,movie_name,has_plot_and_reviews"]
    for number in range(200):
        kind = ("rotten", "fresh")[number % 2]
        words = ["bad", "good"][number % 2 :][:1] + list(rng.choice(list("abcdefgh"), 5))
        rows.append(f"{kind},{' '.join(rng.permutation(words))} {number},m,False")
    (tmp_path / data.snippets.CORPUS).write_bytes(bz2.compress("\n".join(rows).encode()))
    made = config(budget=2, examples=0)
    made.data.name, made.data.dir = "rotten_tomatoes", str(tmp_path)
    made.data.length, made.data.vocabulary = 8, 12
    made.devices.cpu = 1
    made.optim.learning_rate = 0.02
    made.train.batch_size, made.train.num_steps = 32, 60
    made.train.eval_every = made.checkpoint.every = 30
    teacher = train.base_config()
    for section in ("data", "optim", "train", "checkpoint", "eval", "devices"):
        teacher[section] = made[section].copy_and_resolve_references()
    teacher.model = SUPERNET
    teacher.algorithm = {"name": "sandwich", "pool": 2, "draws": 1}
    with made.prerequisites.unlocked():
        made.prerequisites.teacher = teacher
    losses = {"kd": {"temperature": 1.0}}
    made.algorithm = {"name": "distill", "losses": losses, "inherit": True}
    made.analyses = [{"name": "text_model", "batches": (1,), "rounds": 1}]
    report = launch.run(made, tmp_path / "run")
    found = report["extras"]["search"]["found"]["plan"]
    assert report["config"]["model"]["depth"] == found["depth"]
    assert report["metrics"]["test"]["accuracy"] > 0.9
    model = serving.TextModel.load(tmp_path / "run" / report["artifacts"]["text_model"])
    like_them = model.predict(["a good b c d e 7", "f g bad c d a 8"])
    assert [p.label for p in like_them] == ["fresh", "rotten"]
    exported = report["extras"]["text_model"]
    assert exported["difference_after_reading"] == 0
    assert exported["latency_ms"]["batch_1"].keys() == {"network", "full"}
    again = launch.run(made, tmp_path / "run", "eval")
    assert again["metrics"]["test"] == report["metrics"]["test"]
    measured = launch.run(made, tmp_path / "run", "bench")
    assert measured["config"]["model"] == report["config"]["model"]
    same = ("parameters", "macs_per_example")
    assert [measured["cost"][n] for n in same] == [report["cost"][n] for n in same]


@pytest.mark.slow
def test_a_gradient_keeps_to_its_aim(supernet, dataset):
    """The expected latency comes to it, and stays above it where nothing is asked."""
    space = supernet.model.space
    layers, cuts = needed(space.plans, 8)
    table = LatencyTable(1, 8, 0.0, {s: float(s[0]) for s in layers}, dict.fromkeys(cuts, 0.0))
    known = searches.SearchContext(supernet, table, dataset.splits["train"], table(space.full))
    search = searches.Gradient(steps=60, learning_rate=0.2)
    found = search._learned(space, 8.0, np.random.default_rng(0), known)
    expected = expected_latency(table, space, found)
    assert table(space.full) == 16.0  # twice the aim
    assert float(expected) < 9.5
    loose = search._learned(space, 1e9, np.random.default_rng(0), known)
    assert float(expected_latency(table, space, loose)) > float(expected)


@pytest.mark.slow
def test_dear_tokens_are_kept_less(supernet, dataset):
    space = supernet.model.space
    layers, cuts = needed(space.plans, 8)
    table = LatencyTable(1, 8, 0.0, {s: float(s[0]) for s in layers}, dict.fromkeys(cuts, 0.0))
    known = searches.SearchContext(supernet, table, dataset.splits["train"], table(space.full))
    search = searches.Retention(steps=40, learning_rate=0.1)
    free, dear = (
        search._learned(space, price, np.random.default_rng(0), known) for price in (0.0, 30.0)
    )
    assert free.shape == dear.shape == (1, 8)
    assert 0 <= free.min() < free.max() <= 1
    assert dear.max() == 0


def damaged(text):
    """Ways in which a record may have been left or spoilt, each by its name."""
    whole = json.loads(text)
    plan = whole["found"]["plan"]
    deeper = {"found": {"plan": {**plan, "depth": 7}}}
    return {
        "cut off": text[: len(text) // 2],
        "empty": "",
        "a list": "[]",
        "a number": "1",
        "without what was found": "{}",
        "without a field": json.dumps(
            {"found": {"plan": {k: v for k, v in plan.items() if k != "cuts"}}}
        ),
        "a text for a number": json.dumps({"found": {"plan": {**plan, "depth": "two"}}}),
        "a NaN for a number": json.dumps({"found": {"plan": {**plan, "depth": math.nan}}}),
        "of another space": json.dumps(deeper),
        "nested without end": "[" * 100_000,
    }


DAMAGES = tuple(damaged(json.dumps({"found": {"plan": FOUND}})))


@pytest.fixture
def searched(supernet, dataset, tmp_path, monkeypatch):
    """Resolves the config of a search whose outcome is known, and counts its searches."""
    calls = []
    found = {"found": {"plan": FOUND}, "sentence": "as it was made"}
    monkeypatch.setattr(searching, "run", lambda *_: calls.append(1) or found)

    def resolve():
        return searching.resolved(config(), {"teacher": supernet}, tmp_path, lambda: dataset)

    resolve()
    assert len(calls) == 1
    return resolve, calls, records.path_of(tmp_path)


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_record_is_made_again(searched, capsys, damage):
    resolve, calls, path = searched
    sound = path.read_text()
    path.write_text(damaged(sound)[damage])
    assert resolve().model.depth == 2
    assert len(calls) == 2
    assert path.read_text() == sound
    warned = [line for line in capsys.readouterr().out.splitlines() if "warning" in line]
    assert len(warned) == 1
    assert str(path) in warned[0]
    assert warned[0].endswith("the search is made again")
    assert [p.name for p in path.parent.iterdir()] == [path.name]


@pytest.mark.parametrize("damage", [*DAMAGES, "missing"])
def test_no_other_network_takes_the_place_of_one_in_training(searched, damage):
    """Another search may find another network, which the checkpoints do not fit."""
    resolve, calls, path = searched
    (path.parents[1] / "checkpoints" / "30").mkdir(parents=True)
    assert resolve().model.depth == 2
    path.unlink() if damage == "missing" else path.write_text(damaged(path.read_text())[damage])
    before = path.read_text() if path.exists() else None
    with pytest.raises(CheckpointError, match=r"restore .*search\.json") as caught:
        resolve()
    assert "\n" not in str(caught.value)
    assert len(calls) == 1
    assert (path.read_text() if path.exists() else None) == before


def test_a_damaged_record_has_no_summary(searched, tmp_path):
    *_, path = searched
    path.write_text("[]")
    with pytest.raises(DataError, match="is no record of a search"):
        searching.summary(tmp_path)


def test_a_record_is_written_whole_or_not_at_all(searched, monkeypatch):
    *_, path = searched
    before = path.read_text()

    def fail(*_):
        raise OSError("no space left on device")

    monkeypatch.setattr("os.fsync", fail)
    with pytest.raises(OSError, match="no space"):
        records.write(path.parents[1], {"found": {"plan": {**FOUND, "depth": 1}}})
    assert path.read_text() == before
    with pytest.raises(ValueError, match="JSON"):
        records.write(path.parents[1], {"found": math.nan})
    assert path.read_text() == before


@pytest.mark.parametrize(
    ("field", "value"), [("length", 16), ("split_seed", 3), ("name", "rotten_tomatoes")]
)
def test_a_supernet_of_other_data_is_refused(supernet, field, value):
    asked, teacher = config(), config()
    asked.data.length = teacher.data.length = 8
    with asked.prerequisites.unlocked():
        asked.prerequisites.teacher = teacher
    searching.check(asked, {"teacher": supernet})
    teacher.data[field] = value
    with pytest.raises(ConfigError, match=rf"trained on the data of the search.*data\.{field}"):
        searching.check(asked, {"teacher": supernet})


def test_an_answer_of_nan_is_never_right(supernet, dataset):
    """As class 0 it would be right for half of the examples."""
    nothing = jax.tree.map(lambda a: np.full_like(a, np.nan), supernet.variables)
    broken = Trained(supernet.model, nothing)
    assert searching.Scorer(broken, dataset, 16, 0)(supernet.model.space.smallest) == 0


@pytest.mark.parametrize("depth", [1, 2])
def test_what_is_measured_is_the_network_found(supernet, tmp_path, monkeypatch, depth):
    """As far as the building of what is measured."""

    class Built(Exception):
        pass

    def build(config, trained, *_):
        assert trained == {"teacher": supernet}
        raise Built(config.model.depth, config.model.cuts)

    monkeypatch.setattr(prerequisites, "untrained", lambda *_: {"teacher": supernet})
    monkeypatch.setattr(experiment, "build", build)
    workdir, cuts = tmp_path / "run", [[1, 2]] if depth == 2 else []
    with pytest.raises(CheckpointError, match=r"no network that config\.search has found"):
        launch.run(config(), workdir, "bench")
    assert not workdir.exists()
    records.write(workdir, {"found": {"plan": {**FOUND, "depth": depth, "cuts": cuts}}})
    with pytest.raises(Built) as caught:
        launch.run(config(), workdir, "bench")
    assert caught.value.args == (depth, cuts)
    assert [path.name for path in workdir.iterdir()] == ["search"]
    records.path_of(workdir).write_text("{")
    with pytest.raises(DataError, match="no record of a search"):
        launch.run(config(), workdir, "bench")


def test_the_network_of_another_run_is_not_measured(supernet, tmp_path, monkeypatch):
    monkeypatch.setattr(prerequisites, "untrained", lambda *_: {"teacher": supernet})
    check.claim_workdir(tmp_path, config(budget=5))
    records.write(tmp_path, {"found": {"plan": FOUND}})
    with pytest.raises(CheckpointError, match="written by another config"):
        launch.run(config(), tmp_path, "bench")


@pytest.mark.parametrize(
    "change", [{"rounds": 0}, {"rounds": math.nan}, {"batches": (1, 0)}, {"examples": -1}]
)
def test_impossible_measurements_of_the_answer_are_refused_before_the_training(change):
    with pytest.raises(ConfigError, match=rf"config\.analyses.*{next(iter(change))}.* must"):
        analyses.build(({"name": "text_model", **change},))
    assert "text_model" in analyses.build(({"name": "text_model"},))
