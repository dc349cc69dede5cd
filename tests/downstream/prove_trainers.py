"""Prove the exports in the trainers themselves: each trains on one, and every batch that reaches its model is compared.

    python tests/downstream/prove_trainers.py [--environments FOLDER] [--only NAME]

A trainer is installed into an environment of its own below FOLDER, unless it is there already; TRL is the one that this
Python has. Its own command then trains a random Llama of two layers for an epoch, with packing and without, on a CPU.
What was proven is written to docs/trainers.json, from which the table of docs/how-to/trainers.md is made. Exit code 1
where a trainer fed its model anything but the rows of the cleaned file, each once, with their labels.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import yaml
from cleaned_rows import CARD, expected_rows, write_cleaned_rows
from fed_rows import Row, rows_fed, rows_of_batch

from tokenclean.exporting import export

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
RESULTS = ROOT / "docs" / "trainers.json"
TORCH = "torch==2.13.0"


@dataclass(frozen=True)
class Proof:
    """A line of the results. ``proven``: ``training`` for a whole training of a small model; ``packing``: which ways of
    packing were tried, of "off" and the trainer's own names; ``floats``: whether weights beside 0 and 1 reach it."""

    trainer: str
    version: str
    date: str
    form: str
    proven: str
    packing: tuple[str, ...]
    floats: bool


@dataclass(frozen=True)
class Trainer:
    """``package``: its name on PyPI. ``command``: a function that prepares the folder of the export for a model and a
    way of packing and gives the module to run and its arguments. ``packing``: "off" and others. ``floats``: the batch
    has a weight a token, which is compared too."""

    name: str
    package: str
    form: str
    command: Callable[[Path, Path, str], list[str]]
    packing: tuple[str, ...]
    floats: bool = False


def trl_command(folder: Path, model: Path, packing: str) -> list[str]:
    script = folder / "train.py"
    text = script.read_text(encoding="utf-8")
    settings = 'num_train_epochs=1, report_to="none", output_dir=options.output,'
    script.write_text(text.replace("output_dir=options.output,", settings), encoding="utf-8")
    return ["train", "--model", str(model), "--revision", "main", *(["--packing"] if packing == "bfd" else [])]


def llamafactory_command(folder: Path, model: Path, packing: str) -> list[str]:
    own = {"model_name_or_path": str(model), "finetuning_type": "full", "num_train_epochs": 1}
    own |= {"per_device_train_batch_size": 4, "report_to": "none", "packing": packing == "packing"}
    edit_yaml(folder / "train.yaml", own, without="model_revision")
    return ["llamafactory.cli", "train", "train.yaml"]


def axolotl_command(folder: Path, model: Path, packing: str) -> list[str]:
    own = {"base_model": str(model), "num_epochs": 1, "gradient_accumulation_steps": 1, "learning_rate": 1e-4}
    own |= {"optimizer": "adamw_torch", "bf16": False, "fp16": False, "tf32": False, "attn_implementation": "sdpa"}
    own |= {"special_tokens": {"pad_token": "</s>"}, "sample_packing": packing == "sample_packing"}
    own |= {"micro_batch_size": 1 if packing == "sample_packing" else 4}
    edit_yaml(folder / "train.yaml", own, without="revision_of_model")
    return ["axolotl.cli.train", "train.yaml"]


def ms_swift_command(folder: Path, model: Path, packing: str) -> list[str]:
    script = (folder / "train.sh").read_text(encoding="utf-8").partition("exec swift sft")[2]
    written = shlex.split(script.replace("\\\n", " ").replace('"$@"', ""))
    at = written.index("--model_revision")
    written = [*written[:at], *written[at + 2 :]]
    written[written.index("--model") + 1] = str(model)
    own = {"model_type": "llama", "tuner_type": "full", "torch_dtype": "float32", "num_train_epochs": 1}
    own |= {"per_device_train_batch_size": 4, "report_to": "none", "split_dataset_ratio": 0, "save_strategy": "no"}
    return ["swift.cli.sft", *written, *(word for name, value in own.items() for word in (f"--{name}", str(value)))]


TRAINERS = (
    Trainer("TRL", "trl", "trl", trl_command, ("off", "bfd")),
    Trainer("unsloth", "unsloth", "unsloth", trl_command, ("off", "bfd")),
    Trainer("LLaMA-Factory", "llamafactory", "llamafactory", llamafactory_command, ("off", "packing")),
    Trainer("axolotl", "axolotl", "axolotl", axolotl_command, ("off", "sample_packing")),
    Trainer("ms-swift", "ms-swift", "ms-swift", ms_swift_command, ("off",), floats=True),
)


@dataclass(frozen=True)
class Tested:
    """An integration whose tests run the tool itself. ``place``: what its data are called in the results, or empty for
    a pipeline, which is no trainer and not in them."""

    name: str
    package: str
    tests: str
    place: str = ""
    packing: tuple[str, ...] = ()


TESTED = (
    Tested("TRL, WeightedSFTTrainer", "trl", "test_trl.py", "token_weight", ("off", "bfd", "wrapped")),
    Tested("transformers, WeightedTrainer", "transformers", "test_transformers.py", "token_weight", ("off",)),
    Tested("datatrove", "datatrove", "test_pipelines.py"),
    Tested("data-juicer", "py-data-juicer", "test_pipelines.py"),
)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--environments", type=Path, default=Path(".trainers"), help="where trainers are installed")
    parser.add_argument("--only", action="append", choices=[tool.name for tool in (*TRAINERS, *TESTED)])
    options = parser.parse_args()
    proofs = {line["trainer"]: line for line in json.loads(RESULTS.read_text())} if RESULTS.exists() else {}
    failed = []
    with tempfile.TemporaryDirectory() as folder:
        model = Path(folder) / "model"
        save_tiny_model(model)
        for tool in (*TRAINERS, *TESTED):
            if options.only and tool.name not in options.only:
                continue
            try:
                python = python_of(tool, options.environments)
                if isinstance(tool, Trainer):
                    proof = prove(tool, python, model, Path(folder))
                else:
                    proof = run_tests(tool, python)
            except (subprocess.CalledProcessError, subprocess.TimeoutExpired, AssertionError) as error:
                print(f"{tool.name}: {error}", file=sys.stderr)
                failed.append(tool.name)
                continue
            print(
                f"{tool.name} {proof.version}: proven",
                *([f"with packing {', '.join(proof.packing)}"] if proof.packing else []),
            )
            if proof.form:
                proofs[tool.name] = asdict(proof)
    RESULTS.write_text(json.dumps(list(proofs.values()), indent=2) + "\n", encoding="utf-8")
    return 1 if failed else 0


def prove(trainer: Trainer, python: Path, model: Path, folder: Path) -> Proof:
    """Train with every way of packing; raises AssertionError where the rows that were fed are not those of the file."""
    cleaned = folder / f"{trainer.form}.parquet"
    write_cleaned_rows(cleaned, with_floats=trainer.floats)
    expected = expected_rows(cleaned)
    expected_weights = expected_rows(cleaned, "token_weight")
    for packing in trainer.packing:
        place, record = folder / f"{trainer.form}-{packing}", folder / f"{trainer.form}-{packing}.jsonl"
        export(cleaned, trainer.form, place, CARD)
        command = trainer.command(place, model, packing)
        environment = os.environ | {"HF_HUB_OFFLINE": "1", "HF_DATASETS_CACHE": str(folder / "cache")}
        environment |= {"AXOLOTL_DO_NOT_TRACK": "1", "DISABLE_VERSION_CHECK": "1"}
        run([python, HERE / "watched_training.py", record, *command], place, environment)
        batches = [json.loads(line) for line in record.read_text(encoding="utf-8").splitlines()]
        found = rows_fed(row for batch in batches for row in rows_of_batch(batch))
        compare(found, expected, f"packing {packing}")
        if trainer.floats:
            weights = rows_fed(row for batch in batches for row in rows_of_batch(batch, "loss_scale", 0))
            compare(weights, expected_weights, f"packing {packing}, weights")
    return Proof(
        trainer.name,
        installed_version(python, trainer.package),
        today(),
        trainer.form,
        "training",
        trainer.packing,
        trainer.floats,
    )


def compare(found: Counter[Row], expected: Counter[Row], what: str) -> None:
    """Raise AssertionError where these are not the rows expected, each as often."""
    missing, further = expected - found, found - expected
    shown = [(len(ids), ids[:4], values[:4]) for ids, values in further]
    assert found == expected, f"{what}: {missing.total()} of {expected.total()} rows not fed, others fed: {shown}"


def run_tests(tool: Tested, python: Path) -> Proof:
    """Run the tests of an integration where the tool is; raises AssertionError where one of them was skipped."""
    environment = os.environ | {"PYTHONPATH": str(ROOT / "src")}
    skips = "datatrove" if tool.package == "py-data-juicer" else "data_juicer"
    path = ROOT / "tests" / "integrations" / tool.tests
    said = run([python, "-m", "pytest", "-rs", "-W", "default", "-k", f"not {skips}", path], ROOT, environment)
    assert "SKIPPED" not in said, said
    return Proof(
        tool.name,
        installed_version(python, tool.package),
        today(),
        tool.place,
        "training",
        tool.packing,
        bool(tool.place),
    )


def installed_version(python: Path, package: str) -> str:
    return run([python, "-c", f"import importlib.metadata as m; print(m.version({package!r}))"], ROOT).strip()


def today() -> str:
    return datetime.date.today().isoformat()


def python_of(tool: Trainer | Tested, environments: Path) -> Path:
    """The Python of the tool's environment, which is made where there is none."""
    if tool.package in ("trl", "transformers"):
        return Path(sys.executable)
    folder = (environments / tool.package).absolute()
    python = folder / "bin" / "python"
    if not python.exists():
        run([sys.executable, "-m", "venv", folder], ROOT)
        own = ["--editable", ROOT, "pytest", "hypothesis"] if isinstance(tool, Tested) else []
        run([python, "-m", "pip", "install", "--quiet", tool.package, TORCH, *own], ROOT)
        remove_extensions(folder)
    return python


def remove_extensions(environment: Path) -> None:
    """torchvision and the compiled part of torchaudio from PyPI are built for CUDA and do not load beside a CPU build
    of torch; text needs neither, but LLaMA-Factory imports torchaudio's Python part."""
    python = environment / "bin" / "python"
    run([python, "-m", "pip", "uninstall", "--quiet", "--yes", "torchvision"], ROOT)
    for packages in environment.glob("lib/python*/site-packages"):
        shutil.rmtree(packages / "torchaudio" / "lib", ignore_errors=True)


def run(command: list[Any], folder: Path, environment: dict[str, str] | None = None) -> str:
    """Its standard output; its last lines are printed where it fails."""
    ended = subprocess.run(
        list(map(str, command)), cwd=folder, env=environment, capture_output=True, text=True, timeout=1200, check=False
    )
    if ended.returncode:
        print("\n".join([*ended.stdout.splitlines()[-10:], *ended.stderr.splitlines()[-20:]]), file=sys.stderr)
        raise subprocess.CalledProcessError(ended.returncode, " ".join(map(str, command)))
    return ended.stdout


def edit_yaml(path: Path, own: dict[str, object], without: str) -> None:
    values = yaml.safe_load(path.read_text(encoding="utf-8"))
    del values[without]
    path.write_text(yaml.safe_dump(values | own), encoding="utf-8")


def save_tiny_model(folder: Path) -> None:
    """A random Llama of two layers with 600 ids, whose padding is EOS."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = ["</s>", *letters, *(f"w{number}" for number in range(599 - len(letters)))]
    backend = Tokenizer(models.BPE(vocab={word: number for number, word in enumerate(words)}, merges=[]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="</s>", pad_token="</s>")
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=600, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, eos_token_id=0
    )
    LlamaForCausalLM(config).save_pretrained(folder)


if __name__ == "__main__":
    sys.exit(main())
