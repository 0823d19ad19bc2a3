"""Malformed command lines, configs and files: each is one sentence that names what is wrong."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from absl import flags

import jaxeff.main
from jaxeff import data, train
from jaxeff.data import DATASETS
from jaxeff.errors import UserError
from jaxeff.ode import CELLS
from jaxeff.search import run as searching
from jaxeff.train import check, prerequisites

REPOSITORY = Path(__file__).parents[1]
CONFIGS = REPOSITORY / "configs"
IRNN = f"--config={CONFIGS / 'irnn.py'}"


def config(name):
    return f"--config={CONFIGS / name}"


def field(text, name="irnn.py"):
    """A command with one overridden field."""
    return [config(name), f"--config.{text}"]


#: The command line and its options.
COMMANDS = {
    "no_config": ([], ["--config is missing", "configs/irnn.py"]),
    "empty_config": (["--config="], ["--config is missing"]),
    "config_without_end": (["--config=/dev/zero"], ["/dev/zero is no file"]),
    "config_that_is_a_folder": ([f"--config={CONFIGS}"], ["is a folder", "configs/irnn.py"]),
    "config_without_value": (["--config"], ["config"]),
    "only_an_override": (["--config.seed=1"], ["--config is missing"]),
    "two_configs": ([IRNN, config("fptt.py")], ["--config is given twice"]),
    "unknown_flag": ([IRNN, "--wrokdir=x"], ["wrokdir", "workdir"]),
    "unknown_flag_alone": ([IRNN, "--verbos"], ["verbos"]),
    "newline_in_a_flag": ([IRNN, "--no\nsuch=x"], ["Unknown command line flag"]),
    "unknown_mode": ([IRNN, "--mode=trian"], ["mode", "trian", "train|eval|bench"]),
    "empty_mode": ([IRNN, "--mode="], ["mode", "train|eval|bench"]),
    "mode_in_capitals": ([IRNN, "--mode=TRAIN"], ["mode", "train|eval|bench"]),
    "mode_without_value": ([IRNN, "--mode"], ["Missing value", "mode"]),
    "empty_workdir": ([IRNN, "--workdir="], ["--workdir is empty"]),
    "workdir_without_value": ([IRNN, "--workdir"], ["Missing value", "workdir"]),
    "workdir_with_nul": ([IRNN, "--workdir=a\0b"], ["--workdir", "character"]),
    "debug_that_is_no_truth_value": ([IRNN, "--debug=perhaps"], ["debug", "perhaps"]),
    "stray_word": ([IRNN, "train"], ["unexpected argument 'train'"]),
    "stray_after_dashes": ([IRNN, "--", "--config.seed=1"], ["unexpected argument"]),
    "missing_flag_file": ([IRNN, "--flagfile=/nowhere/flags"], ["/nowhere/flags"]),
    "single_word_with_equals": ([IRNN, "seed=1"], ["unexpected argument 'seed=1'"]),
}

#: Overridden fields that do not exist, or that take no such text.
FIELDS = {
    "misspelt_field": (field("train.num_step=3"), ["config.train", "did you mean 'num_steps'"]),
    "misspelt_section": (field("trian.num_steps=3"), ["config", "did you mean 'train'"]),
    "misspelt_deep_field": (field("model.cell.feature=3"), ["did you mean 'features'"]),
    "field_of_another_model": (
        field("model.blocks=3"),
        ["config.model.blocks: model 'sequence' has no such field"],
    ),
    "field_below_a_number": (field("seed.x=3"), ["config.seed is no section"]),
    "field_below_text": (field("model.name.x=3"), ["config.model.name is no section"]),
    "no_field": (field("=3"), ["names no field"]),
    "two_dots": (field("train..num_steps=3"), ["names no field"]),
    "trailing_dot": (field("train.=3"), ["names no field"]),
    "strange_letters": (field("träin.num_steps=3"), ["träin"]),
    "spaces_in_a_field": (field("train.num steps=3"), ["names no field"]),
    "index_of_no_list": (field("train[0]=3"), ["config.train is no list"]),
    "index_beyond_the_list": (
        field("analyses[7].images=3", "avae.py"),
        ["config.analyses[7] does not exist", "3 members"],
    ),
    "negative_index": (field("analyses[-1].images=3", "avae.py"), ["names no field"]),
    "word_for_a_whole_number": (field("train.num_steps=abc"), ["num_steps", "'abc'", "whole"]),
    "fraction_of_steps": (field("train.num_steps=1.5"), ["num_steps", "'1.5'", "whole number"]),
    "whole_float_for_a_whole_number": (field("train.num_steps=3.0"), ["num_steps", "'3.0'"]),
    "power_for_a_whole_number": (field("train.num_steps=1e3"), ["num_steps", "'1e3'"]),
    "nothing_for_a_whole_number": (field("train.num_steps="), ["num_steps", "whole number", "''"]),
    "no_value": (field("train.num_steps"), ["config.train.num_steps needs a value"]),
    "truth_for_a_whole_number": (field("seed=True"), ["config.seed", "whole number", "'True'"]),
    "none_for_a_whole_number": (field("seed=None"), ["config.seed", "whole number", "'None'"]),
    "number_that_is_too_long": (field(f"seed={'9' * 5000}"), ["config.seed", "whole number"]),
    "number_beyond_64_bits": (field(f"seed={2**70}"), ["config.seed", "64 bits"]),
    "word_for_a_number": (field("optim.learning_rate=fast"), ["learning_rate", "'fast'"]),
    "percent_for_a_number": (field("model.dropout=20%"), ["config.model.dropout", "'20%'"]),
    "comma_in_a_number": (field("optim.learning_rate=0,1"), ["learning_rate", "'0,1'"]),
    "newline_in_a_number": (field("optim.learning_rate=0.1\n0.2"), ["learning_rate"]),
    "number_for_a_truth_value": (field("data.download=2"), ["config.data.download", "true", "'2'"]),
    "word_for_a_truth_value": (field("data.download=maybe"), ["config.data.download", "'maybe'"]),
    "value_after_no": ([IRNN, "--noconfig.data.download=1"], ["config.data.download"]),
    "no_before_a_number": ([IRNN, "--noconfig.seed"], ["config.seed needs a value"]),
    "word_for_a_section": (field("optim=adam"), ["config.optim is a section", "adam"]),
    "broken_literal_for_a_section": (field("optim={'name':"), ["config.optim is a section"]),
    "section_without_its_fields": (
        field("train={'num_steps': 3}"),
        ["config.train.batch_size is missing"],
    ),
    "word_for_a_list": (field("analyses=text", "avae.py"), ["config.analyses[0]", "section"]),
}

#: Values that no run can have.
VALUES = {
    "no_steps": (field("train.num_steps=0"), ["config.train.num_steps", "at least 1", "not 0"]),
    "negative_steps": (field("train.num_steps=-3"), ["config.train.num_steps", "not -3"]),
    "never_logged": (field("train.log_every=0"), ["config.train.log_every", "at least 1"]),
    "never_evaluated": (field("train.eval_every=0"), ["config.train.eval_every", "at least 1"]),
    "never_saved": (field("checkpoint.every=0"), ["config.checkpoint.every", "at least 1"]),
    "saved_at_negative_steps": (field("checkpoint.every=-1"), ["config.checkpoint.every"]),
    "none_kept": (field("checkpoint.keep=0"), ["config.checkpoint.keep", "at least 1"]),
    "empty_batch": (field("train.batch_size=0"), ["config.train.batch_size", "at least 1"]),
    "negative_batch": (field("train.batch_size=-64"), ["config.train.batch_size", "not -64"]),
    "empty_evaluation_batch": (field("eval.batch_size=0"), ["config.eval.batch_size"]),
    "batch_beyond_the_data": (
        field("train.batch_size=2048"),
        ["config.train.batch_size is 2048", "1350 training examples"],
    ),
    "batch_of_a_billion": (field(f"train.batch_size={10**9}"), ["config.train.batch_size"]),
    "evaluation_batch_of_a_billion": (
        field(f"eval.batch_size={10**9}"),
        ["config.eval.batch_size needs more memory", "256 GB"],
    ),
    "negative_seed": (field("seed=-1"), ["config.seed must not be negative"]),
    "seed_that_equals_another": (field(f"seed={2**32}"), ["config.seed must be below 2**32"]),
    "seed_of_half_a_number": (field("seed=0.5"), ["config.seed", "whole number"]),
    "negative_split_seed": (field("data.split_seed=-1"), ["config.data.split_seed"]),
    "negative_devices": (field("devices.cpu=-1"), ["config.devices.cpu must not be negative"]),
    "million_devices": (field("devices.cpu=1000000"), ["config.devices.cpu must be at most"]),
    "processes_without_coordinator": (
        field("devices.num_processes=2"),
        ["config.devices.num_processes is 2", "config.devices.coordinator is not set"],
    ),
    "no_process": (field("devices.num_processes=0"), ["config.devices.num_processes"]),
    "process_beyond_the_last": (
        field("devices.process_id=5"),
        ["config.devices.process_id must be in [0, 1)", "not 5"],
    ),
    "negative_process": (field("devices.process_id=-1"), ["config.devices.process_id", "not -1"]),
    "coordinator_without_port": (
        field("devices.coordinator=localhost"),
        ["config.devices.coordinator must be HOST:PORT", "localhost"],
    ),
    "coordinator_with_a_word_for_a_port": (
        field("devices.coordinator=localhost:http"),
        ["config.devices.coordinator must be HOST:PORT"],
    ),
    "coordinator_with_an_impossible_port": (
        field("devices.coordinator=localhost:99999"),
        ["config.devices.coordinator", "99999"],
    ),
    "name_that_leaves_the_folder": (field("name=../../x"), ["config.name", "folder"]),
    "name_with_a_newline": (field("name=a\nb"), ["config.name", r"a\nb"]),
    "name_with_nul": (field("name=a\0b"), ["config.name", "character"]),
    "name_without_end": (field(f"name={'x' * 300}"), ["config.name", "100 characters"]),
    "half_a_surrogate": (field("name=\udc80"), ["config.name", "character"]),
    "unknown_selection": (
        field("eval.select=bests"),
        ["config.eval.select", "did you mean 'best'"],
    ),
    "unknown_mapping": (field("parallel=vmap"), ["config.parallel", "shard_map, pmap"]),
}

#: Impossible fields of what a config names.
SECTIONS = {
    "unknown_model": (field("model.name=sequense"), ["config.model.name", "'sequence'"]),
    "no_model": (field("model.name="), ["config.model.name", "unknown model ''"]),
    "unknown_cell": (field("model.cell.name=irn"), ["config.model.cell.name", "mean 'irnn'"]),
    "cell_in_capitals": (field("model.cell.name=IRNN"), ["config.model.cell.name", "'IRNN'"]),
    "cell_of_another_alphabet": (field("model.cell.name=ячейка"), ["config.model.cell.name"]),
    "field_that_another_cell_has": (
        field("model.cell.name=lstm"),
        ["config.model.cell.", "cell 'lstm' has no such field"],
    ),
    "unknown_activation": (field("model.cell.activation=tahn"), ["activation", "'tanh'"]),
    "unknown_solver": (field("model.cell.solver=rk4"), ["solver", "rk4"]),
    "unknown_step_size_mode": (field("model.cell.step_size_mode=x"), ["step_size_mode"]),
    "unknown_type": (
        field("model.dtype=float99"),
        ["config.model.dtype: unknown type 'float99'", "did you mean"],
    ),
    "type_of_whole_numbers": (field("model.dtype=int32"), ["config.model.dtype", "'int32'"]),
    "no_features": (field("model.cell.features=0"), ["config.model.cell", "features", "not 0"]),
    "negative_features": (field("model.cell.features=-8"), ["features", "not -8"]),
    "billion_features": (
        field(f"model.cell.features={10**9}"),
        ["config.model", "more memory"],
    ),
    "features_for_a_large_machine": (
        field(f"model.cell.features={10**6}"),
        ["config.model needs more memory", "TB"],
    ),
    "no_layers": (field("model.num_layers=0"), ["num_layers", "not 0"]),
    "ten_million_layers": (field(f"model.num_layers={10**7}"), ["config.model.num_layers", "1000"]),
    "million_inner_steps": (
        field(f"model.cell.num_inner_steps={10**6}"),
        ["config.model.cell.num_inner_steps", "1000000"],
    ),
    "no_inner_steps": (field("model.cell.num_inner_steps=0"), ["num_inner_steps", "not 0"]),
    "negative_step_size": (field("model.cell.step_size=-1"), ["step_size", "-1"]),
    "step_size_of_nan": (field("model.cell.step_size=nan"), ["config.model.cell.step_size", "nan"]),
    "dropout_of_everything": (field("model.dropout=1"), ["dropout", "1"]),
    "dropout_above_one": (field("model.dropout=1.5"), ["dropout", "1.5"]),
    "negative_dropout": (field("model.dropout=-0.1"), ["dropout", "-0.1"]),
    "unknown_backward": (field("model.backward=fast"), ["backward", "fast"]),
    "model_of_images_for_sequences": (
        field("model={'name': 'resnet', 'depth': 20}"),
        ["config.model", "inputs (8, 8)"],
    ),
    "model_without_its_cell": (field("model={'name': 'sequence'}"), ["needs a field 'cell'"]),
    "cell_that_is_a_word": (
        field("model={'name': 'sequence', 'cell': 'irnn'}"),
        ["config.model.cell must be a section"],
    ),
    "outputs_that_are_set": (
        field("model={'name': 'sequence', 'num_outputs': 3}"),
        ["config.model.num_outputs cannot be set"],
    ),
    "depth_of_no_resnet": (field("model.depth=21", "images.py"), ["depth", "21"]),
    "depth_of_ten_million": (
        field(f"model.depth={10**7}", "images.py"),
        ["config.model.depth", "at most 1000"],
    ),
    "ten_thousand_hidden_layers": (
        field(f"model.hidden=({'8,' * 10_000})", "disk.py"),
        ["config.model.hidden has 10000 members", "at most 1000"],
    ),
    "solver_of_no_steps": (
        field("model.design.num_steps=0", "global_cnn.py"),
        ["config.model: GlobalLayer.num_steps must be a whole number of at least 1, not 0"],
    ),
    "unknown_design": (field("model.design.name=plian", "images.py"), ["config.model.design"]),
    "unknown_data": (field("data.name=digit"), ["config.data.name", "did you mean 'digits'"]),
    "no_data": (field("data.name="), ["config.data.name"]),
    "unknown_view": (field("data.view=row"), ["config.data.view", "did you mean 'rows'"]),
    "data_in_no_folder": (
        [*field("data.name=fashion_mnist"), "--config.data.dir=/nowhere/at/all"],
        ["/nowhere/at/all"],
    ),
    "validation_of_everything": (field("data.validation_fraction=1"), ["validation_fraction"]),
    "negative_validation": (field("data.validation_fraction=-0.1"), ["validation_fraction"]),
    "calibration_of_everything": (
        field("data.calibration_fraction=1.5"),
        ["calibration_fraction", "1.5"],
    ),
    "validation_of_nan": (
        field("data.validation_fraction=nan"),
        ["validation_fraction", "number that is finite"],
    ),
    "unknown_algorithm": (field("algorithm.name=bpt"), ["config.algorithm.name", "mean 'bptt'"]),
    "algorithm_of_prerequisites": (field("algorithm.name=distill"), ["config."]),
    "algorithm_of_another_model": (field("algorithm.name=sandwich"), ["config."]),
    "unknown_objective": (field("objective.name=hinge"), ["config.objective.name", "'hinge'"]),
    "objective_of_other_data": (field("objective.name=elbo"), ["config."]),
    "unknown_optimiser": (field("optim.name=adan"), ["config.optim.name", "did you mean 'adam'"]),
    "unknown_schedule": (field("optim.schedule_name=cosin"), ["config.optim.schedule_name"]),
    "learning_rate_of_zero": (field("optim.learning_rate=0"), ["learning_rate", "positive"]),
    "negative_learning_rate": (field("optim.learning_rate=-0.1"), ["learning_rate", "-0.1"]),
    "learning_rate_of_nan": (
        field("optim.learning_rate=nan"),
        ["learning_rate", "number that is finite"],
    ),
    "infinite_learning_rate": (
        field("optim.learning_rate=1e999"),
        ["learning_rate", "number that is finite"],
    ),
    "negative_clipping": (field("optim.clip_norm=-1"), ["config.optim.clip_norm", "-1"]),
    "clipping_of_nan": (
        field("optim.clip_norm=nan"),
        ["config.optim.clip_norm", "number that is finite"],
    ),
    "negative_decay": (field("optim.weight_decay=-1"), ["config.optim.weight_decay", "-1"]),
    "warm_up_beyond_the_run": (
        field("optim.warmup_steps=5000"),
        ["config.optim.warmup_steps", "[0, 2000)", "5000"],
    ),
    "negative_warm_up": (field("optim.warmup_steps=-1"), ["config.optim.warmup_steps", "-1"]),
    "momentum_above_one": (field("optim.momentum=2", "images.py"), ["config.optim.momentum", "2"]),
    "unknown_decayed": (field("optim.decayed=some", "avae.py"), ["config.optim.decayed", "some"]),
    "unknown_analysis": (
        field("analyses[0].name=reconstruction", "avae.py"),
        ["config.analyses[0].name", "did you mean 'reconstructions'"],
    ),
    "analysis_of_other_models": (
        field("analyses=[{'name': 'hybrid'}]", "avae.py"),
        ["analysis 'hybrid' needs config.model.name='hybrid'"],
    ),
    "analysis_without_name": (field("analyses=[{}]", "avae.py"), ["config.analyses[0]", "name"]),
    "analysis_twice": (
        field("analyses=[{'name': 'reconstructions'}, {'name': 'reconstructions'}]", "avae.py"),
        ["config.analyses[1]", "name it once"],
    ),
    "axis_that_nothing_maps_over": (
        field("model.axis_name=batch", "images.py"),
        ["config.model.axis_name must be 'data'", "'batch'"],
    ),
    "temperature_of_zero": (
        field("algorithm.losses.kd.temperature=0", "bottleneck.py"),
        ["config.algorithm.losses.kd.temperature must be in [1e-06, 1e+06], not 0"],
    ),
    "negative_weight": (
        field("algorithm.label_weight=-1", "disk.py"),
        ["config.algorithm.label_weight must be in [0, 1e+06], not -1"],
    ),
    "pictures_of_no_images": (
        field("analyses[1].images=0", "avae.py"),
        ["config.analyses[1].images must be in [1, 1e+06], not 0"],
    ),
    "billion_steps_of_a_pose_search": (
        field(f"algorithm.evaluation.steps={10**9}", "avae.py"),
        ["config.algorithm.evaluation.steps", "1000000000"],
    ),
    "unknown_search": (
        field("search.name=evolutoin"),
        ["config.search.name", "did you mean 'evolution'"],
    ),
    "search_without_supernet": (field("search.name=evolution"), ["config.search", "supernet"]),
    "search_for_nothing": (
        field("search={'name': 'random', 'budget': 0, 'max_latency_ms': 1.0}"),
        ["budget", "0"],
    ),
    "prerequisite_that_is_a_number": (field("prerequisites={'a': 3}"), ["config.prerequisites.a"]),
    "prerequisite_without_fields": (
        field("prerequisites={'a': {}}"),
        ["config.prerequisites.a.", "missing"],
    ),
    "prerequisite_with_a_folder_name": (
        field("prerequisites={'checkpoints': {}}"),
        ["config.prerequisites.checkpoints", "folder"],
    ),
    "mistake_in_a_prerequisite": (
        field("prerequisites.teacher.train.num_steps=0", "disk.py"),
        ["config.prerequisites.teacher.train.num_steps must be at least 1"],
    ),
    "mistake_in_a_prerequisites_model": (
        field("prerequisites.teacher.model.name=mpl", "disk.py"),
        ["config.prerequisites.teacher.model.name", "did you mean 'mlp'"],
    ),
    "unknown_pose": (field("model.pose.name=rotatoin", "avae.py"), ["rotation"]),
    "unknown_constraint": (
        field("algorithm.constraints=[{'name': 'entrpy'}]", "dcl.py"),
        ["config.algorithm.constraints[0].name", "did you mean 'entropy'"],
    ),
    "unknown_dual_step": (field("algorithm.dual.name=nopi", "dcl.py"), ["algorithm.dual", "nupi"]),
    "unknown_router": (field("model.router.name=wide", "hybrid.py"), ["config.model.router"]),
    "unknown_auxiliary": (field("algorithm.auxiliary=x", "fptt.py"), ["auxiliary"]),
    "parts_beyond_the_sequence": (field("algorithm.parts=1000", "fptt.py"), ["parts", "1000"]),
    "coverage_in_percent": (
        field("objective.coverage=80", "selective.py:method=selectivenet"),
        ["config.objective.coverage", "80"],
    ),
}

#: Arguments that no config file knows, and those of one.
ARGUMENTS = {
    f"{name}_{kind}": ([config(f"{name}.py:{argument}")], words)
    for name in sorted(path.stem for path in CONFIGS.glob("*.py"))
    for kind, argument, words in (
        ("unknown_word", "quikc", ["argument 'quikc' is unknown", "'quick'"]),
        ("twice", "quick,quick", ["'quick' stands twice"]),
        ("quick_with_a_value", "quick=3", ["'quick=3'", "'quick' alone"]),
        ("unknown_option", "colour=red", ["argument 'colour=red' is unknown"]),
    )
} | {
    argument: ([config(argument)], words)
    for argument, words in {
        "irnn.py:rows,rows": ["'rows' stands twice"],
        "irnn.py:rows,pixels": ["settings rows and pixels", "give one"],
        "irnn.py:cell=irnn,cell=lstm": ["'cell' stands twice"],
        "irnn.py:cell=": ["a value after 'cell='"],
        "irnn.py:cell": ["'cell' needs a value"],
        "irnn.py:rows=3": ["'rows=3' is unknown"],
        "irnn.py:rows:pixels": ["'rows:pixels' is unknown"],
        "irnn.py:строки": ["'строки' is unknown"],
        "irnn.py:cell=gruu": ["config.model.cell.name", "did you mean 'gru'"],
        "fptt.py:cell=lstn": ["config.model.cell.name", "did you mean 'lstm'"],
        "fptt.py:algorithm=bpt": ["algorithm=bpt is unknown", "did you mean 'bptt'"],
        "tarnn.py:variant=between": ["variant", "between"],
        "images.py:model=resnt20": ["model=resnt20 is unknown", "did you mean 'resnet20'"],
        "images.py:model=resnet20,model=resnet32": ["'model' stands twice"],
        "images.py:digits,fashion": ["settings digits and fashion"],
        "global_cnn.py:model=xception": ["no Global variant of 'xception'"],
        "global_cnn.py:steps=x": ["steps in the config's argument must be a whole number"],
        "global_cnn.py:steps=²": ["steps in the config's argument must be a whole number"],
        "si_cnn.py:stride=-2": ["stride in the config's argument must be a whole number"],
        "si_cnn.py:cheap=free": ["cheap", "free"],
        "shared_conv.py:factor=two": ["factor in the config's argument must be a whole number"],
        "shared_conv.py:mode=in_tiles": ["mode", "in_tiles"],
        "shared_conv.py:modulate=1": ["'modulate' alone"],
        "dcl.py:method=dlc": ["method=dlc is unknown", "did you mean 'dcl'"],
        "dcl.py:constraints=widht": ["no 'widht'", "did you mean 'width'"],
        "dcl.py:method=penalty,weight=inf": ["weight in the config's argument must be a number"],
        "selective.py:method=ops": ["method=ops is unknown", "did you mean 'osp'"],
        "selective.py:mu=nan": ["mu in the config's argument must be a positive number"],
        "selective.py:mu=1e999": ["mu in the config's argument must be a positive number"],
        "selective.py:method=sat,mu=1": ["mu", "method=osp"],
        "selective.py:imagenet": ["no recipe for imagenet"],
        "hybrid.py:model=resnet20": ["expert=NAME"],
        "hybrid.py:expert=resnet21": ["expert=resnet21 is unknown"],
        "hybrid.py:train=nothing": ["train=nothing is unknown", "router"],
        "hybrid.py:imagenet": ["no recipe for imagenet"],
        "disk.py:method=dikd": ["method=dikd is unknown"],
        "disk.py:units=-1": ["units in the config's argument must be a whole number"],
        "disk.py:fashion,student=xxl": ["student=xxl is unknown"],
        "avae.py:model=vea": ["model=vea is unknown", "did you mean"],
        "avae.py:latents=0": ["latents", "at least 1"],
        "avae.py:latents=99999999999999999999": ["latents", "whole number"],
        "avae3d.py:digits,sofa": ["settings digits and sofa"],
        "bottleneck.py:supernet,search=random": ["supernet alone, or a search"],
        "bottleneck.py:length=0": ["length", "at least 1"],
        "bottleneck.py:kind=cubic": ["kind", "cubic"],
    }.items()
}

START = "from jaxeff.config import base_config\n"
GOOD = (
    START
    + """
def get_config(arg=""):
    config = base_config()
    config.data.name, config.data.view = "digits", "rows"
    config.model = {"name": "sequence", "cell": {"name": "irnn", "features": 8}}
    return config
"""
)


def changed(line):
    """A config file whose config is changed by one line, its seventh."""
    return GOOD.replace("    return config", f"    {line}\n    return config")


#: Config files by name and content; the words say what is wrong with them.
FILES = {
    "missing.py": (None, ["there is no config file", "missing.py"]),
    "a\0b.py": (None, ["there is no config file"]),
    f"{'x' * 300}.py": (None, ["there is no config file"]),
    "empty.py": ("", ["empty.py defines no function get_config()"]),
    "comment.py": ("# nothing yet\n", ["comment.py defines no function get_config()"]),
    "syntax.py": ("def get_config(:\n    return {}\n", ["syntax.py, line 1", "not valid Python"]),
    "indent.py": ("def get_config():\nreturn {}\n", ["indent.py, line 2", "not valid Python"]),
    "unfinished.py": ("x = 1\ny = (2,\n", ["unfinished.py, line 2", "not valid Python"]),
    "conflict.py": ("x = 1\n<<<<<<< HEAD\n", ["conflict.py, line 2", "not valid Python"]),
    "tabs.py": ("def f():\n\tx = 1\n        y = 2\n", ["tabs.py, line 3", "not valid Python"]),
    "binary.py": (b"\x7fELF\x02\x01\x00\x00\x00", ["binary.py"]),
    "latin.py": (b"# caf\xe9\nx = 1\n", ["latin.py"]),
    "import.py": ("import os\nimport no_such_module\n", ["import.py, line 2", "no_such_module"]),
    "name.py": ("import jaxeff\n\nx = jaxeff.nothing\n", ["name.py, line 3", "nothing"]),
    "old_path.py": ("from jaxeff.train import no_config\n", ["old_path.py, line 1", "no_config"]),
    "raises.py": (
        "def get_config():\n    return {}['batch']\n",
        ["raises.py, line 2", "KeyError: 'batch'"],
    ),
    "deep.py": (
        "def f(x):\n    return f(x + 1)\ndef get_config():\n    return f(0)\n",
        ["deep.py, line 2", "RecursionError"],
    ),
    "exits.py": ("import sys\n\nsys.exit('bye')\n", ["exits.py, line 3", "SystemExit: bye"]),
    "lines.py": ("raise ValueError('one\\ntwo')\n", ["lines.py, line 1", "ValueError: one"]),
    "value.py": ("get_config = 3\n", ["value.py defines no function get_config()"]),
    "none.py": ("def get_config():\n    pass\n", ["get_config of", "none.py returns nothing"]),
    "number.py": ("def get_config():\n    return 3\n", ["number.py returns a int"]),
    "list.py": ("def get_config():\n    return [1]\n", ["list.py returns a list"]),
    "dict.py": (
        "def get_config():\n    return {'seed': 0}\n",
        ["config.algorithm is missing", "base_config()"],
    ),
    "dotted.py": ("def get_config():\n    return {'a.b': 0}\n", ["dotted.py", "a.b"]),
    "numbered.py": ("def get_config():\n    return {1: 0}\n", ["config", "1"]),
    "two_arguments.py": ("def get_config(a, b):\n    return {}\n", ["two_arguments.py"]),
    "no_argument.py:rows": ("def get_config():\n    return {}\n", ["no argument, so 'rows'"]),
    "data.json": ('{"seed": 0}', ["data.json is data (line 1)", "Python file"]),
    "json.py": ('{\n "seed": null\n}\n', ["json.py is data (line 1)"]),
    "data.yaml": ("seed: 0\n", ["data.yaml is data", "Python file"]),
    "misspelt.py": (
        changed("config.train.num_step = 3"),
        ["config.train.num_step is not a field", "did you mean 'num_steps'"],
    ),
    "text.py": (changed("config.train.num_steps = '3'"), ["text.py, line 7", "num_steps"]),
    "half.py": (changed("config.train.num_steps = 3.5"), ["half.py, line 7", "num_steps"]),
    "section.py": (changed("config.train = 3"), ["section.py, line 7", "train"]),
    "seventh.py": (changed("config.seed = 2**40"), ["config.seed must be below 2**32"]),
    "nan.py": (
        changed("config.optim.learning_rate = float('nan')"),
        ["learning_rate", "number that is finite"],
    ),
    "set.py": (
        changed("config.model.cell = {'name', 'irnn'}"),
        ["set.py, line 7", "'cell'", "set"],
    ),
    "function.py": (changed("config.model.activation = print"), ["config.model.activation"]),
    "array.py": (
        changed("import numpy; config.model.widths = numpy.ones(3)"),
        ["config.model.widths", "ndarray"],
    ),
    "type.py": (changed("config.model.dtype = float"), ["config.model.dtype", "type"]),
    "bytes.py": (changed("config.model.dtype = b'float32'"), ["config.model.dtype", "bytes"]),
    "nested.py": (
        changed("x = []\n    for _ in range(99): x = [x]\n    config.model.x = x"),
        ["config.model.x", "levels deep"],
    ),
    "long.py": (changed("config.model.x = [0] * 10**6"), ["config.model.x", "1000000 members"]),
    "whole_text.py": (
        changed("config.model.cell.features = '8'"),
        ["whole_text.py, line 7", "features"],
    ),
    "text_in_a_section.py": (
        changed("config.model = {'name': 'sequence', 'cell': {'name': 'irnn', 'features': '8'}}"),
        ["config.model.cell.features must be a whole number, not '8'"],
    ),
    "truth_in_a_section.py": (
        changed("config.model = {'name': 'sequence', 'cell': {'name': 'irnn', 'features': True}}"),
        ["config.model.cell.features must be a whole number, not True"],
    ),
    "half_in_a_section.py": (
        changed("config.model = {'name': 'sequence', 'cell': {'name': 'irnn', 'features': 8.0}}"),
        ["config.model.cell.features must be a whole number, not 8.0"],
    ),
    "number_for_a_name.py": (
        changed("config.model = {'name': 3}"),
        ["config.model.name must be of type str, not 3"],
    ),
    "data_of_text.py": (
        changed("config.data = {**config.data, 'padded_length': '9', 'view': 'noise_padded_rows'}"),
        ["config.data.padded_length must be a whole number, not '9'"],
    ),
    "optim_of_text.py": (
        changed("config.optim.momentum = 'high'; config.optim.name = 'sgd'"),
        ["config.optim", "momentum"],
    ),
    "optim_without_name.py": (changed("config.optim = {}"), ["config.optim.clip_norm is missing"]),
    "steps_in_optim.py": (changed("config.optim.num_steps = 3"), ["config.optim.num_steps"]),
    "analyses_of_words.py": (
        changed("config.analyses = ['reconstructions']"),
        ["config.analyses[0] must be a section"],
    ),
    "own_data.py": (
        """
from jaxeff.data import DATASETS

@DATASETS.register("own_data_of_a_malformed_config")
def own(request, size=3):
    return {}[size]
"""
        + changed("config.data.name = 'own_data_of_a_malformed_config'"),
        ["config.data cannot be built: KeyError: 3 (", "own_data.py, line 6)"],
    ),
    "optimiser_of_text.py": (
        changed("config.optim.boundaries = ('half',); config.optim.schedule_name = 'step'"),
        ["config.optim.boundaries must be a list of numbers"],
    ),
    "unregistered.py": (
        changed("config.model.cell.name = 'my_cell'"),
        ["config.model.cell.name", "unknown cell 'my_cell'"],
    ),
    "own_cell.py": (
        """
from jaxeff.ode import CELLS

@CELLS.register("own_cell_of_a_malformed_config")
def own(features):
    return len(features)
"""
        + changed("config.model.cell.name = 'own_cell_of_a_malformed_config'"),
        ["config.model.cell", "own_cell.py, line 6", "TypeError"],
    ),
}


@pytest.fixture(autouse=True)
def registered_for_a_while(monkeypatch):
    """What a config file registers is gone after its test."""
    for registry in (CELLS, DATASETS):
        monkeypatch.setattr(registry, "_factories", dict(registry._factories))


def refusal(arguments):
    """The sentence with which a command is refused, before anything is compiled."""
    values = flags.FlagValues()
    jaxeff.main.define(values)

    def refused():
        config, _, _ = jaxeff.main.parse(["main.py", *arguments], values)
        check.check(config)
        zeros = prerequisites.untrained(config)
        train.build(config, zeros)
        searching.check(config, zeros)

    with pytest.raises(UserError) as caught:
        refused()
    return jaxeff.main.sentence(caught.value)


def assert_is_one_sentence(line, words):
    assert line.isprintable()
    assert 15 < len(line) < 500
    assert not line.endswith(".")
    assert "Traceback" not in line
    for word in words:
        assert word in line


ROWS = COMMANDS | FIELDS | VALUES | SECTIONS | ARGUMENTS


def test_every_kind_is_there_in_numbers():
    assert len(ROWS) + len(FILES) >= 150
    assert len(ROWS) == sum(map(len, (COMMANDS, FIELDS, VALUES, SECTIONS, ARGUMENTS)))


@pytest.fixture(scope="module")
def loaded():
    return {}


@pytest.fixture(autouse=True)
def one_copy_of_the_data(monkeypatch, tmp_path_factory, loaded):
    """Data sets are loaded once; they do not change."""
    folder = tmp_path_factory.getbasetemp() / "malformed_data"
    monkeypatch.setenv("JAXEFF_DATA_DIR", str(folder))
    load = data.load

    def load_once(name, **fields):
        key = repr((name, sorted(fields.items())))
        if key not in loaded:
            loaded[key] = load(name, **fields)
        return loaded[key]

    monkeypatch.setattr(data, "load", load_once)


#: Rows that build networks to find out.
LARGE = ("bottleneck.py:kind=cubic", "unknown_router", "solver_of_no_steps")


@pytest.mark.parametrize(
    "row", [pytest.param(r, marks=pytest.mark.slow) if r in LARGE else r for r in ROWS]
)
def test_malformed_command_is_one_sentence(row):
    arguments, words = ROWS[row]
    assert_is_one_sentence(refusal(arguments), words)


@pytest.mark.parametrize("name", FILES, ids=[ascii(name)[1:40] for name in FILES])
def test_malformed_config_file_is_one_sentence(name, tmp_path):
    content, words = FILES[name]
    if content is not None:
        written = content if isinstance(content, bytes) else content.encode()
        (tmp_path / name.partition(":")[0]).write_bytes(written)
    line = refusal([f"--config={tmp_path}/{name}"])
    assert_is_one_sentence(line.replace(str(tmp_path), ""), words)


#: Rows that are run as a user would run them; one of each stage at which they are refused.
PROCESSES = (
    "no_config",
    "unknown_flag",
    "unknown_mode",
    "missing_flag_file",
    "newline_in_a_flag",
    "misspelt_field",
    "number_that_is_too_long",
    "learning_rate_of_nan",
    "irnn.py:rows,rows",
    "ten_million_layers",
    "evaluation_batch_of_a_billion",
    "batch_beyond_the_data",
    "processes_without_coordinator",
    "syntax.py",
    "own_cell.py",
)


@pytest.mark.slow
@pytest.mark.parametrize("row", PROCESSES)
def test_process_ends_with_status_two_and_one_line(row, tmp_path):
    arguments, words = ROWS.get(row, ((f"--config={row}",), None))
    if words is None:
        content, words = FILES[row]
        (tmp_path / row).write_text(content)
    before = sorted(tmp_path.iterdir())
    result = subprocess.run(
        [sys.executable, "-m", "jaxeff.main", *arguments],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY), "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (result.returncode, result.stdout) == (2, "")
    (line,) = result.stderr.splitlines()
    assert line.startswith("error: ")
    assert_is_one_sentence(line, words)
    assert sorted(tmp_path.iterdir()) == before
