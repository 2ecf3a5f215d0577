"""What a recipe gets wrong is one line that names the file and the line, before anything is started."""

from __future__ import annotations

from pathlib import Path

import pytest

from longrope.exceptions import InvalidInputError
from longrope.pipeline.recipe import read_recipe

# Each recipe is wrong in the line that ends in "#!", and the message holds what stands before the recipe.
BAD = {
    # --- The file ---
    "unknown key": ("'modle' is no key of a recipe; known are model, seed", "modle: demo  #!\nstages:\n- export:\n"),
    "duplicate key": ("'seed' is given twice; the first is in line 2", "model: demo\nseed: 1\nseed: 2  #!\n"),
    "duplicate key of a stage": (
        "'seed' is given twice; the first is in line 4",
        "model: demo\nstages:\n- search:\n    seed: 1\n    seed: 2  #!\n",
    ),
    "no model": ("the recipe says no model", "seed: 1  #!\nstages:\n- export:\n"),
    "no stages": ("the recipe says no stages", "model: demo  #!\n"),
    "seed below 0": ("seed is -1", "model: demo\nseed: -1  #!\nstages:\n- export:\n"),
    "seed is text": ("seed is 'one'", "model: demo\nseed: one  #!\nstages:\n- export:\n"),
    "seed is true": ("seed is True", "model: demo\nseed: true  #!\nstages:\n- export:\n"),
    "a key that is a number": ("the key 7 is not text", "model: demo\n7: demo  #!\nstages:\n- export:\n"),
    "not YAML": ("is not valid YAML", "model: demo\nstages: [  \n- export: }  #!\n"),
    "a tab": ("is not valid YAML", "model: demo\nstages:\n\t- export:  #!\n"),
    "an alias of nothing": ("is not valid YAML", "model: demo\nstages: *those  #!\n"),
    "python": ("is not valid YAML", "model: !!python/object/apply:os.getcwd []  #!\nstages:\n- export:\n"),
    # --- Model and data ---
    "model without name": ("model needs name", "model: {revision: main}  #!\nstages:\n- export:\n"),
    "model is a number": ("model is '7'", "model: 7  #!\nstages:\n- export:\n"),
    "model that is not there": ("does not exist", "model: ./models/seven  #!\nstages:\n- export:\n"),
    "unknown key of the model": (
        "'dtyp' is no key of model; known are name",
        "model:\n  name: demo\n  dtyp: bf16  #!\nstages:\n- export:\n",
    ),
    "model with an empty name": ("name is empty", "model: ''  #!\nstages:\n- export:\n"),
    "unknown key of the data": (
        "'train' is no key of data; did you mean 'training'?",
        "model: demo\ndata:\n  train: x  #!\nstages:\n- export:\n",
    ),
    "documents are text": (
        "documents is 'books', not a mapping",
        "model: demo\ndata:\n  documents: books  #!\nstages:\n- export:\n",
    ),
    "documents with a misspelt key": (
        "'sauce' is no key of documents; did you mean 'source'?",
        "model: demo\ndata:\n  documents:\n    sauce: documents.jsonl  #!\nstages:\n- search: {target_length: 1k}\n",
    ),
    "unknown key of documents that nobody reads": (
        "'sauce'",
        "model: demo\ndata:\n  documents: {source: documents.jsonl}\n  training: documents.jsonl\n"
        "stages:\n- finetune: {seq_length: 1k, factors: {method: pi}}\n- export: {sauce: 1}  #!\n",
    ),
    "data that are not there": (
        "source 'absent.jsonl' does not exist",
        "model: demo\ndata:\n  documents: {source: absent.jsonl}  #!\nstages:\n- search: {target_length: 1k}\n",
    ),
    "data of a stage that are not there": (
        "source 'absent.jsonl' does not exist",
        "model: demo\nstages:\n- search:\n    target_length: 1k\n    data:\n      source: absent.jsonl  #!\n",
    ),
    "evaluation documents that are not there": (
        "source 'absent.jsonl' does not exist",
        "model: demo\ndata:\n  evaluation: {source: absent.jsonl}  #!\nstages:\n- search: {target_length: 1k}\n",
    ),
    "evaluation documents with a misspelt key": (
        "'smaples' is no key of evaluation; did you mean 'samples'?",
        "model: demo\ndata:\n  evaluation:\n    smaples: 5  #!\nstages:\n- search: {target_length: 1k}\n",
    ),
    "training data that are not there": (
        "data 'absent.yaml' does not exist",
        "model: demo\ndata:\n  training: absent.yaml  #!\nstages:\n"
        "- finetune: {seq_length: 1k, factors: {method: pi}}\n",
    ),
    "no training data": ("a fine-tuning needs data", "model: demo\nstages:\n- finetune: {seq_length: 1k}  #!\n"),
    "no documents": ("needs data", "model: demo\nstages:\n- search: {target_length: 1k}  #!\n"),
    "documents without a source": (
        "needs data.source",
        "model: demo\ndata:\n  documents: {field: text}\nstages:\n- search: {target_length: 1k}  #!\n",
    ),
    # --- Stages ---
    "stages are a mapping": ("stages is no list", "model: demo\nstages:  #!\n  search: {target_length: 1k}\n"),
    "no stage in the list": ("stages is no list", "model: demo\nstages: []  #!\n"),
    "a stage that is a list": ("a stage is one of", "model: demo\nstages:  #!\n- [search]\n"),
    "a stage that is a word": ("a stage is one of", "model: demo\nstages:  #!\n- search\n"),
    "a stage of two keys": ("a stage is one of", "model: demo\nstages:\n- search: {}  #!\n  finetune: {}\n"),
    "an unknown stage": ("'train' is no stage; known are search", "model: demo\nstages:\n- train: {}  #!\n"),
    "settings that are a list": ("the settings of search are no mapping", "model: demo\nstages:\n- search: [1k]  #!\n"),
    "two stages of one name": (
        "two stages are called search-1k",
        "model: demo\ndata: {documents: {source: documents.jsonl}}\nstages:\n- search: {target_length: 1k}\n"
        "- search: {target_length: 1024}  #!\n",
    ),
    "a name that is no folder": ("name 'a/b'", "model: demo\nstages:\n- export:\n    name: a/b  #!\n"),
    "a name that is taken": ("name 'report'", "model: demo\nstages:\n- export:\n    name: report  #!\n"),
    # --- Settings of a search ---
    "no target": (
        "a search needs target_length",
        "model: demo\nstages:\n- search: {data: {source: documents.jsonl}}  #!\n",
    ),
    "a target that is no length": (
        "'128 kB' is not a positive whole number of tokens",
        "model: demo\nstages:\n- search:\n    target_length: 128 kB  #!\n",
    ),
    "a target below 0": ("target_length", "model: demo\nstages:\n- search:\n    target_length: -4k  #!\n"),
    "a target that is a list": ("target_length", "model: demo\nstages:\n- search:\n    target_length: [4k]  #!\n"),
    "a setting that the recipe decides": (
        "'output' is decided by the recipe",
        "model: demo\nstages:\n- search:\n    target_length: 1k\n    output: runs  #!\n",
    ),
    "a misspelt setting": (
        "'target_lenght' is no key of a search; did you mean 'target_length'?",
        "model: demo\nstages:\n- search:\n    target_lenght: 1k  #!\n",
    ),
}

ALGORITHM = {
    "a misspelt size": ("did you mean 'population'?", "popluation: 64"),
    "population below 1": ("population is 0", "population: 0"),
    "population below 0": ("population is -64", "population: -64"),
    "population is half": ("population", "population: 6.5"),
    "population is text": ("population", "population: many"),
    "population is true": ("population", "population: true"),
    "population below parents": ("parents", "algorithm: paper\npopulation: 4\nparents: 8"),
    "parents below 2": ("two parents", "algorithm: paper\nparents: 1"),
    "iterations below 0": ("iterations is -1", "algorithm: paper\niterations: -1"),
    "max_evaluations is 0": ("max evaluations is 0", "max_evaluations: 0"),
    "a probability above 1": ("mutation probability is 1.5", "algorithm: paper\nmutation_probability: 1.5"),
    "a probability that is NaN": ("mutation_probability", "algorithm: paper\nmutation_probability: .nan"),
    "a choice of n_hat below 0": ("n_hat", "n_hat: [0, -4]"),
    "no choice of n_hat": ("n_hat", "n_hat: []"),
    "a choice of n_hat that is half": ("n_hat", "n_hat: [0.5]"),
    "n_hat is a number": ("n_hat", "n_hat: 4"),
    "lambda_max is infinite": ("lambda_max", "lambda_max: .inf"),
    "lambda_max is 0": ("lambda_max", "lambda_max: 0"),
    "an unknown algorithm": ("algorithm 'annealing' is not known", "algorithm: annealing"),
    "a size that the algorithm does not have": (
        "crossovers is a size of algorithm 'paper'",
        "{algorithm: cma, crossovers: 4}",
    ),
    "an attention factor that paper does not search": (
        "not searched by algorithm 'paper'",
        "{algorithm: paper, attention_factor: search}",
    ),
    "patience of no round": ("patience is 0", "patience: 0"),
    "GPU-hours below 0": ("max-gpu-hours is -1", "max_gpu_hours: -1"),
    "a watch before the first round": ("watch is -1", "watch: -1"),
    "an unknown attention factor": ("attention factor 'sue' is unknown", "attention_factor: sue"),
    "an attention factor of nothing": ("attention_factor", "attention_factor: null"),
    "an attention factor below 0": ("attention factor -1", "attention_factor: -1"),
}


READJUST = {
    "no windows": ("a readjustment needs windows", "data: {source: documents.jsonl}"),
    "a window of half a token": ("'0.5' is not a positive whole number", "windows: ['0.5']"),
    "auto": (
        "attention_factor 'auto' is for a search",
        "data: {source: documents.jsonl}\nwindows: [64]\nalgorithm: {attention_factor: auto}",
    ),
    "factors": ("'factors' is decided by the recipe", "windows: [64]\nfactors: f.json"),
}

FINETUNE = {
    "lr 0": ("lr is 0", "learning_rate: 0"),
    "lr below 0": ("lr is -2e-05", "learning_rate: -2e-5"),
    "lr is NaN": ("learning_rate is NaN", "learning_rate: .nan"),
    "lr is text": ('learning_rate is "2e-5x"; it should be a number', "learning_rate: 2e-5x"),
    "a segment of one token": ("seq-length is 1; give at least 2", "seq_length: 1"),
    "steps is 0": ("steps is 0", "steps: 0"),
    "steps is half": ("steps is 0.5; it should be a whole number", "steps: 0.5"),
    "a batch of nothing": ("global-batch is 0", "global_batch: 0"),
    "sp that does not divide": ("seq-length 1k cannot be cut into 3 equal shards", "sp: 3\nseq_length: 1k"),
    "offload without zero": ("offload 'optimizer' is done by DeepSpeed", "zero: 0\noffload: optimizer"),
    "zero 4": ("zero is 4", "zero: 4"),
    "an unknown method": ("method 'dora' is not known", "method: dora"),
    "an unknown schedule": ("schedule 'step' is not known", "schedule: step"),
    "an unknown kernel": ("kernel 'flash' is not known", "kernel: flash"),
    "warm-up longer than the run": ("warmup is 20, longer than the run of 10 steps", "steps: 10"),
    "one beta": ("betas is [0.9], which has too few values", "betas: [0.9]"),
    "three betas": ("which has too many values", "betas: [0.9, 0.95, 0.99]"),
    "a beta of 1": ("betas are (0.9, 1.0)", "betas: [0.9, 1.0]"),
    "weight decay without end": ("weight_decay is Infinity; it should be a finite number", "weight_decay: .inf"),
    "a group without its attention": ("a group is for", "group: 128"),
    "an unknown key of the adapter": ("'r' is no key of adapter; known are rank", "adapter: {r: 8}"),
    "an adapter of rank 0": ("lora rank 0", "adapter: {rank: 0}"),
    "tiles below 0": ("tile_mlp: length -4", "memory: {tile_mlp: -4}"),
    "activations that are not kept": (
        "offload-activations",
        "memory: {checkpoint_activations: false, offload_activations: true}",
    ),
    "held-out text that is not there": ("source 'absent.txt' does not exist", "held_out: {source: absent.txt}"),
    "abf without rope_theta": ("method abf and rope_theta belong together", "factors: {method: abf}"),
    "rope_theta without abf": ("method abf and rope_theta belong together", "factors: {method: pi, rope_theta: 1e6}"),
    "a rope_theta of 0": ("rope_theta is 0", "factors: {method: abf, rope_theta: 0}"),
    "unknown factors": ("method 'pie' is not known; use pi", "factors: {method: pie}"),
    "factors of no method": ("factors needs method", "factors: {target_length: 4k}"),
    "a file of factors that is not there": ("factors 'f.json' does not exist", "factors: f.json"),
    "factors that are a number": ("factors is 4; give a file", "factors: 4"),
    "keep_windows is a word": ("keep_windows is 'no way'", "keep_windows: no way"),
    "empty data": ("data is empty", "data: ''"),
    "no nodes": ("nodes is 0", "launch: {nodes: 0}"),
    "an unknown launcher": ("launcher 'slurm' is not known", "launch: {launcher: slurm}"),
    "a launch of a number": ("launch is '8', not a mapping", "launch: 8"),
    "a model of its own": ("'model' is decided by the recipe", "model: demo"),
}

EVALUATE = {
    "no suite": ("an evaluation needs a suite; use perplexity", "lengths: [1k]"),
    "an unknown suite": ("suite 'ruler' is not known; use perplexity", "lengths: [1k]\nsuite: ruler"),
    "a suite that is a list": ("suite ['perplexity'] is not known", "lengths: [1k]\nsuite: [perplexity]"),
    "an unknown model": (
        "model 'base' is not known; use original, current, exported",
        "suite: passkey\nlengths: [1k]\nmodel: base",
    ),
    "no lengths": ("there are no lengths to measure", "suite: passkey"),
    "empty lengths": ("there are no lengths to measure", "suite: passkey\nlengths: []"),
    "a length of one token": ("length 1 has nothing to predict", "suite: passkey\nlengths: [1]"),
    "a length that is none": ("length '1g' is not", "suite: passkey\nlengths: [1g]"),
    "methods that are text": ("methods", "suite: passkey\nlengths: [1k]\nmethods: yarn"),
    "no trials": ("trials is 0", "suite: passkey\nlengths: [1k]\ntrials: 0"),
    "a setting of another suite": ("'stride' is no key of suite passkey", "suite: passkey\nlengths: [1k]\nstride: 1"),
    "an unknown protocol": ("protocol 'slide' is not known", "suite: perplexity\nlengths: [1k]\nprotocol: slide"),
    "documents shorter than the lengths": (
        "documents of 512 tokens are shorter than the length 1k",
        "suite: perplexity\ndocument_length: 512\nlengths: [1k]",
    ),
    "no documents": ("needs source", "suite: summarisation  #!\nlengths: [1k]"),
    "several lengths of data that decide": (
        "give one length",
        "suite: summarisation\nsource: documents.jsonl\nlengths: [1k, 2k]",
    ),
    "no tasks": ("there are no tasks to run", "suite: harness\ntasks: []"),
    "tasks without a list": ("tasks", "suite: harness\ntasks: hellaswag"),
    "more last tokens than there are": ("the last 600 tokens", "suite: perplexity\nlengths: [512, 1k]\nlast: 600"),
}

EXPORT = {
    "an unknown format": ("config_format 'v6' is not known", "config_format: v6"),
    "code and none": ("code keeps n_hat and without_n_hat drops it", "without_n_hat: true\ncode: true"),
    "a truth that is none": ("single_list", "single_list: perhaps"),
    "an unknown key": ("'formt' is no key of an export", "formt: v5"),
    "one list and two": ("short_window and single_list contradict", "single_list: true\nshort_window: 64"),
}

SHARED = {
    "no workers": ("workers is 0", "execution: {workers: 0}"),
    "workers below 0": ("workers is -1", "execution: {workers: -1}"),
    "an unknown executor": ("executor 'dask' is not known", "execution: {executor: dask}"),
    "Ray's address without Ray": ("a ray address was given for the local executor", "execution: {ray_address: auto}"),
    "an unknown dtype": ("dtype 'int8' is not known", "execution: {dtype: int8}"),
    "an unknown attention": ("attention 'ring' is not known", "execution: {attention: ring}"),
    "sp of 0": ("sp is 0", "execution: {sp: 0}"),
    "sp and GPUs": ("each process has one GPU", "execution: {sp: 2, gpus_per_worker: 4}"),
    "GPUs below 0": ("GPUs per worker is -1", "execution: {gpus_per_worker: -1}"),
    "trust twice": ("trust_remote_code", "execution: {trust_remote_code: true}"),
    "a misspelt key": ("'worker' is no key of execution; did you mean 'workers'?", "execution: {worker: 8}"),
    "execution is a list": ("execution is", "execution: [workers]"),
    "no GPUs": ("gpus is 0", "launch: {gpus: 0}"),
    "an unknown device": ("device 'tpu' is not known", "launch: {device: tpu}"),
    "failures below 0": ("max-failures is -1", "launch: {max_failures: -1}"),
    "samples below 1": ("samples is 0", "data: {documents: {samples: 0}}"),
    "held-out samples below 0": ("held-out is -1", "data: {documents: {held_out: -1}}"),
    "no documents at all": ("max-documents is 0", "data: {documents: {max_documents: 0}}"),
    "no last tokens": ("last is 0; give at least 1", "data: {documents: {last: 0}}"),
    "last tokens of a needle": ("last is for the perplexity", "data: {documents: {last: 9, objective: needle}}"),
    "an unknown objective": ("objective 'loss' is not known", "data: {documents: {objective: loss}}"),
    "a date": ("holds 2024-01-31, a date", "model: {name: demo, revision: 2024-01-31}"),
    "an empty source": ("source is empty", "data: {documents: {source: ''}}"),
}

SEARCH, TUNE = "search: {target_length: 1k}", "finetune: {seq_length: 1k}"
# The last stage is wrong.
ORDER = {
    "a search for no more": (
        "search-512 has target_length 512, and the stages before it reached 1k",
        [SEARCH, TUNE, "search: {target_length: 512}"],
    ),
    "a search for the same": ("lengths must grow", [SEARCH, TUNE, "search: {target_length: 1k, name: again}"]),
    "a search that nothing came of": (
        "makes nothing of the factors of search-1k",
        [SEARCH, "search: {target_length: 2k}"],
    ),
    "fine-tuning without factors": ("has no factors to train under", [TUNE]),
    "fine-tuning twice": ("has no factors to train under", [SEARCH, TUNE, "finetune: {seq_length: 1k, name: again}"]),
    "factors that are lost": (
        "those of search-1k are lost",
        [SEARCH, "finetune: {seq_length: 1k, factors: {method: pi}}"],
    ),
    "factors for less": (
        "has factors for 512, and the stages before it reached 1k",
        [SEARCH, TUNE, "finetune: {seq_length: 512, factors: {method: pi}}"],
    ),
    "segments over the factors": ("seq_length 2k, longer than the 1k", [SEARCH, "finetune: {seq_length: 2k}"]),
    "readjusting first": ("readjust", ["readjust: {windows: [64]}", SEARCH]),
    "a window over the reach": ("window 2k, which is not below the 1k", [SEARCH, "readjust: {windows: [64, 2k]}"]),
    "a search after readjusting": (
        "comes after readjust",
        [SEARCH, "readjust: {windows: [64]}", "search: {target_length: 2k}"],
    ),
    "fine-tuning after readjusting": ("comes after readjust", [SEARCH, "readjust: {windows: [64]}", TUNE]),
    "an export of nothing": ("has nothing to write", ["export:"]),
    "an export of what was only measured": (
        "has nothing to write",
        ["evaluate: {suite: passkey, lengths: [64]}", "export:"],
    ),
    "an evaluation over the reach": (
        "measures 2k, over the 1k",
        [SEARCH, "evaluate: {suite: passkey, lengths: [64, 2k]}"],
    ),
    "segments longer than their own factors": (
        "seq_length 1k, longer than the 512 that its factors are for",
        ["finetune: {seq_length: 1k, factors: {method: pi, target_length: 512}}"],
    ),
    "no windows": ("readjust has no windows", ["readjust: {windows: []}"]),
    "an unknown method": (
        "has the method 'alibi', which is not known",
        ["evaluate: {suite: passkey, lengths: [64], methods: [alibi]}"],
    ),
    "factors of the original model": (
        "measures the original model, which has no factors",
        [SEARCH, "evaluate: {suite: passkey, lengths: [64], model: original, methods: [longrope]}"],
    ),
    "the exported folder before the export": (
        "measures the exported folder, and no export stands before it",
        [SEARCH, "evaluate: {suite: passkey, lengths: [64], model: exported}"],
    ),
    "tasks over the reach": (
        "measures 2k, over the 1k",
        [SEARCH, "evaluate: {suite: harness, tasks: [ruler], lengths: [1k, 2k], max_length: 2k}"],
    ),
    "a short window over the reach": (
        "has short_window 2k, which is not below",
        [SEARCH, "export: {short_window: 2k}"],
    ),
}


FILES = {
    "an empty file": ("line 1: the file is empty", b""),
    "a comment": ("line 1: the file is empty", b"# nothing\n"),
    "a list": ("line 1: the file holds no mapping", b"- export:\n"),
    "a word": ("line 1: the file holds no mapping", b"export\n"),
    "zeros": ("line 2 holds NUL bytes", b"model: demo\n\0\0"),
    "another encoding": ("line 2 is not UTF-8 text", "model: demo\n# caf\u00e9\n".encode("latin-1")),
    "a bell": ("line 2 is not valid YAML", b"model: demo\nseed: \x07\n"),
    "two documents": ("line 2 is not valid YAML", b"model: demo\n---\nmodel: demo\n"),
    "a day that there is not": ("line 2: seed is no value of YAML", b"model: demo\nseed: 2024-02-31\n"),
}

OVERRIDES = {
    "seed": "'seed' is no change of a setting; write for example seed=1",
    "=1": "'=1' is no change of a setting",
    "data..training=x": "'data..training=x' is no change of a setting",
    "seed=-1": "override 'seed=-1': seed is -1",
    "seed=": "override 'seed=': seed is None",
    "seed=[": "override 'seed=[': the value is not valid YAML",
    "sead=1": "the recipe has neither a setting nor a stage 'sead'; its stages are search-1k, evaluate-passkey, tune.a",
    "search-2k.seed=1": "override 'search-2k.seed=1': the recipe has neither a setting nor a stage 'search-2k'",
    "search-1k=1": "override 'search-1k=1' names a stage; name a setting of it, such as search-1k.seed=1",
    "search-1k.sead=1": "override 'search-1k.sead=1': 'sead' is no key of a search; did you mean 'seed'?",
    "search-1k.algorithm.population=0": "override 'search-1k.algorithm.population=0': population is 0",
    "search-1k.target_length.x=1": "override 'search-1k.target_length.x=1': 'target_length' holds no settings",
    "search-1k.data.source=no.txt": "override 'search-1k.data.source=no.txt': source 'no.txt' does not exist",
    "tune.a.learning_rate=0": "override 'tune.a.learning_rate=0': lr is 0",
    "tune.a.seq_length=1": "override 'tune.a.seq_length=1': seq-length is 1",
    "tune.a.factors.method=pie": "override 'tune.a.factors.method=pie': method 'pie' is not known",
    "model=./absent": "override 'model=./absent': name './absent' does not exist",
    "model.dtype=bf16": "override 'model.dtype=bf16': 'dtype' is no key of model",
    "execution.workers=0": "override 'execution.workers=0': workers is 0",
    "launch.nodes=0": "override 'launch.nodes=0': nodes is 0",
    "stages=[]": "override 'stages=[]': a stage is named by its name; they are search-1k, evaluate-passkey, tune.a",
    "stages.0.seed=1": "override 'stages.0.seed=1': a stage is named by its name",
    "data.documents={source: absent.txt}": "source 'absent.txt' does not exist",
}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "documents.jsonl").write_text('{"text": "a text"}\n')
    return tmp_path


def refused(path: Path, *overrides: str) -> str:
    with pytest.raises(InvalidInputError) as caught:
        read_recipe(path, overrides)
    message = str(caught.value)
    assert "\n" not in message
    return message


def check(folder: Path, text: str, part: str) -> None:
    (folder / "bad.yaml").write_text(text)
    line = next(number for number, each in enumerate(text.splitlines(), start=1) if each.endswith("#!"))
    message = refused(folder / "bad.yaml")
    assert message.startswith(f"{str(folder / 'bad.yaml')!r} line {line}")
    assert part in message


@pytest.mark.parametrize(("part", "text"), BAD.values(), ids=BAD)
def test_a_bad_recipe(folder: Path, part: str, text: str) -> None:
    check(folder, text, part)


def marked(text: str) -> str:
    return text if "#!" in text else text[:-1] + "  #!\n"


def settings_of(stage: str, *settings: str) -> str:
    """A recipe whose last stage has settings, a line each; the last one is wrong."""
    lines = "\n".join(settings).split("\n")
    before = "data: {documents: {source: documents.jsonl}, training: documents.jsonl}\nstages:\n"
    if stage in ("evaluate", "export"):
        before += "- search: {target_length: 1k}\n"
    return f"model: demo\n{before}- {stage}:\n" + marked("".join(f"    {line}\n" for line in lines))


@pytest.mark.parametrize(("part", "sizes"), ALGORITHM.values(), ids=ALGORITHM)
def test_bad_sizes_of_a_search(folder: Path, part: str, sizes: str) -> None:
    check(
        folder,
        settings_of("search", "target_length: 1k", "algorithm:", *(f"  {line}" for line in sizes.split("\n"))),
        part,
    )


@pytest.mark.parametrize(("part", "settings"), FINETUNE.values(), ids=FINETUNE)
def test_bad_settings_of_a_fine_tuning(folder: Path, part: str, settings: str) -> None:
    needed = {"seq_length": "1k", "factors": "{method: pi}"}
    others = [f"{key}: {value}" for key, value in needed.items() if f"{key}:" not in settings]
    check(folder, settings_of("finetune", *others, settings), part)


@pytest.mark.parametrize(
    ("stage", "part", "settings"),
    [
        pytest.param(stage, *case, id=f"{stage}: {name}")
        for stage, cases in (("readjust", READJUST), ("evaluate", EVALUATE), ("export", EXPORT))
        for name, case in cases.items()
    ],
)
def test_bad_settings_of_other_stages(folder: Path, stage: str, part: str, settings: str) -> None:
    check(folder, settings_of(stage, settings), part)


@pytest.mark.parametrize(("part", "setting"), SHARED.values(), ids=SHARED)
def test_bad_settings_of_all_stages(folder: Path, part: str, setting: str) -> None:
    model = "" if setting.startswith("model") else "model: demo\n"
    check(folder, f"{model}{setting}  #!\nstages:\n- export:\n", part)


@pytest.mark.parametrize(("part", "stages"), ORDER.values(), ids=ORDER)
def test_an_order_that_makes_no_sense(folder: Path, part: str, stages: list[str]) -> None:
    head = "model: demo\ndata: {documents: {source: documents.jsonl}, training: documents.jsonl}\nstages:\n"
    check(folder, head + "".join(f"- {stage}\n" for stage in stages)[:-1] + "  #!\n", part)


@pytest.mark.parametrize(("part", "content"), FILES.values(), ids=FILES)
def test_a_file_that_is_no_recipe(folder: Path, part: str, content: bytes) -> None:
    (folder / "bad.yaml").write_bytes(content)
    message = refused(folder / "bad.yaml")
    assert message.startswith(f"{str(folder / 'bad.yaml')!r} line ")
    assert part in message


def test_a_file_that_is_too_deep(folder: Path) -> None:
    (folder / "bad.yaml").write_text("model: " + 1000 * "[")
    assert "is not valid YAML" in refused(folder / "bad.yaml")


def test_no_file(folder: Path) -> None:
    assert refused(folder / "absent.yaml").startswith(f"recipe {str(folder / 'absent.yaml')!r} does not exist; give a")
    assert "cannot be read: Is a directory" in refused(folder)


@pytest.mark.parametrize(("override", "message"), OVERRIDES.items(), ids=OVERRIDES)
def test_a_bad_override(folder: Path, override: str, message: str) -> None:
    (folder / "good.yaml").write_text(
        "model: demo\ndata: {documents: {source: documents.jsonl}, training: documents.jsonl}\nstages:\n"
        "- search: {target_length: 1k}\n- evaluate: {suite: passkey, lengths: [64]}\n"
        "- finetune: {name: tune.a, seq_length: 2k, factors: {method: pi}}\n"
    )
    read_recipe(folder / "good.yaml")
    assert message in refused(folder / "good.yaml", override)


def test_an_override_of_what_another_has_renamed(folder: Path) -> None:
    (folder / "good.yaml").write_text(
        "model: demo\ndata: {documents: {source: documents.jsonl}}\nstages:\n- search: {target_length: 1k}\n"
    )
    recipe = read_recipe(folder / "good.yaml", ["search-1k.target_length=2k", "search-1k.seed=7"])
    assert [(stage.name, stage.settings.seed) for stage in recipe.stages] == [("search-2k", 7)]
