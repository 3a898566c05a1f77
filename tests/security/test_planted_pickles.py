"""A pickle that runs a command, put wherever something is read: it never runs, and the refusal is one clear error."""

from __future__ import annotations

import gzip
import io
import json
import pickle
import sqlite3
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.ipc
import pyarrow.parquet
import pytest
import torch
from command_line import Command, changed, ends_refused, is_refused, write
from security.conftest import Runs, Trap, one_line

from core.config import EngineConfig, ModelConfig, SourceConfig
from core.data.sources import read_rows
from core.errors import DataError, FileError, ModelError, UserError
from core.model.loading import load_model, load_outline, local_tokenizer
from core.store import artifacts
from core.training.adapter import load_adapter
from tuning.records import attempt_folder, read_ledger
from tuning.run import Run

ENGINE = EngineConfig(dtype="fp32", device="cpu")

PICKLES = (
    *("pytorch_model.bin", "model.pt", "model.pth", "consolidated.00.pth", "adapter_model.bin"),
    *("training_args.bin", "optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.pkl"),
    *("tokenizer.pkl", "vocab.pkl", "spiece.bin", "preprocessor.pkl", "mp_rank_00_model_states.pt"),
)
"""Names under which training programs leave pickles in a model folder."""


def rewritten(path: Path, **values: Any) -> None:
    """A JSON file with some keys replaced."""
    read = json.loads(path.read_text(encoding="utf-8")) | values
    path.write_text(json.dumps(read), encoding="utf-8")


@pytest.mark.filterwarnings("ignore")
def test_pickles_beside_the_weights_of_a_model_are_not_read(model_copy: Path, trap: Trap) -> None:
    trap.plant(
        *(model_copy / name for name in (*PICKLES, "modeling_own.py", "tokenization_own.py"))
    )
    code = {"AutoModelForCausalLM": "modeling_own.Own", "AutoConfig": "modeling_own.OwnConfig"}
    rewritten(model_copy / "config.json", auto_map=code)
    tokens = {"AutoTokenizer": ["tokenization_own.Own", "tokenization_own.Own"]}
    rewritten(model_copy / "tokenizer_config.json", auto_map=tokens)
    load_model(ModelConfig(source=str(model_copy)), ENGINE)
    trap.assert_nothing_ran()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "adapter_model.bin"])
def test_a_model_whose_weights_are_a_pickle_is_refused(
    model_copy: Path, trap: Trap, name: str
) -> None:
    (model_copy / "model.safetensors").unlink()
    trap.plant(model_copy / "spare.bin", model_copy / name)
    with pytest.raises(ModelError, match=r"^model\.source: cannot load .* \(safetensors\)") as err:
        load_model(ModelConfig(source=str(model_copy)), ENGINE)
    one_line(err)
    trap.assert_nothing_ran()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("file", ["model.safetensors", "tokenizer.json", "config.json"])
def test_a_pickle_under_the_name_of_a_good_file_is_refused(
    model_copy: Path, trap: Trap, file: str
) -> None:
    trap.plant(model_copy / file)
    with pytest.raises(ModelError, match=r"^model\.source: ") as err:
        load_model(ModelConfig(source=str(model_copy)), ENGINE)
    one_line(err)
    trap.assert_nothing_ran()


@pytest.mark.filterwarnings("ignore")
def test_code_that_a_model_brings_is_not_imported(model_copy: Path, trap: Trap) -> None:
    trap.plant(model_copy / "own.py")
    code = {name: f"own.{name}" for name in ("AutoConfig", "AutoModel", "AutoModelForCausalLM")}
    rewritten(model_copy / "config.json", model_type="own", auto_map=code)
    for load in (load_model, load_outline):
        with pytest.raises(ModelError, match=r"^model\.source: cannot load") as err:
            load(ModelConfig(source=str(model_copy)), ENGINE)
        one_line(err)
    trap.assert_nothing_ran()


@pytest.mark.filterwarnings("ignore")
def test_a_chat_template_of_a_model_runs_in_a_sandbox(model_copy: Path, trap: Trap) -> None:
    reach = "''.__class__.__mro__[1].__subclasses__()"
    system = f"cycler.__init__.__globals__.os.system('touch {trap.marker}')"
    for expression in (reach, system, "self.__init__.__globals__"):
        (model_copy / "chat_template.jinja").write_text(f"{{{{ {expression} }}}}", encoding="utf-8")
        tokenizer = local_tokenizer(ModelConfig(source=str(model_copy)))
        said = ""
        try:
            said = tokenizer.apply_chat_template([{"role": "user", "content": "x"}], tokenize=False)
        except Exception as err:
            assert type(err).__name__ in ("SecurityError", "UndefinedError"), repr(err)
        assert "class" not in said and "function" not in said
    trap.assert_nothing_ran()


def extension_parquet(path: Path, trap: Trap) -> None:
    """Parquet whose column says that its type is a pickled Python class, as pyarrow before 14 would load it."""
    said = {
        "ARROW:extension:name": "arrow.py_extension_type",
        "ARROW:extension:metadata": trap.payload,
    }
    field = pyarrow.field("text", pyarrow.string(), metadata=said)
    table = pyarrow.table([["one", "two"]], schema=pyarrow.schema([field]))
    pyarrow.parquet.write_table(table, path)


def object_array(path: Path, trap: Trap) -> None:
    array = np.array([[Runs(trap.marker)]], dtype=object)
    with path.open("wb") as file:
        np.save(file, array, allow_pickle=True)


def bare(path: Path, trap: Trap) -> None:
    path.write_bytes(trap.payload)


def packed(path: Path, trap: Trap) -> None:
    path.write_bytes(gzip.compress(trap.payload))


def arrow_file(path: Path, trap: Trap) -> None:
    extension_parquet(path.with_suffix(".parquet"), trap)
    table = pyarrow.parquet.read_table(path.with_suffix(".parquet"))
    with pyarrow.ipc.new_file(str(path), table.schema) as writer:
        writer.write_table(table)


DATA = [
    *(pytest.param(f"rows.{ending}", bare, id=ending) for ending in ("pkl", "pickle", "pt", "npz", "joblib")),
    *(pytest.param(f"rows.{ending}", bare, id=f"as-{ending}")
      for ending in ("jsonl", "json", "csv", "tsv", "txt", "parquet", "npy")),
    pytest.param("rows.jsonl.gz", packed, id="as-gzip"),
    pytest.param("rows.npy", object_array, id="array-of-objects"),
    pytest.param("rows.arrow", arrow_file, id="arrow"),
    pytest.param("rows.tar", bare, id="tar"),
    pytest.param("rows.zip", bare, id="zip"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "make"), DATA)
def test_a_data_file_that_is_a_pickle_is_refused(
    tmp_path: Path, trap: Trap, name: str, make: Callable[[Path, Trap], None]
) -> None:
    make(tmp_path / name, trap)
    with pytest.raises(DataError, match=r"^data\.forget") as err:
        read_rows(SourceConfig(source=str(tmp_path / name)), role="forget")
    one_line(err)
    trap.assert_nothing_ran()


def test_a_pickled_type_of_a_parquet_column_is_not_loaded(tmp_path: Path, trap: Trap) -> None:
    extension_parquet(tmp_path / "rows.parquet", trap)
    rows = read_rows(SourceConfig(source=str(tmp_path / "rows.parquet")), role="forget")
    assert len(rows) == 2
    trap.assert_nothing_ran()


def tarred(path: Path, trap: Trap) -> None:
    """A WebDataset with a member for each of its decoders that once unpickled."""
    saved = io.BytesIO()
    torch.save(Runs(trap.marker), saved)
    members = {
        "1.pyd": trap.payload,
        "1.pickle": trap.payload,
        "1.pkl": trap.payload,
        "1.pth": saved.getvalue(),
        "1.npy": trap.payload,
        "1.txt": b"text",
    }
    with tarfile.open(path, "w") as tar:
        for name, content in members.items():
            about = tarfile.TarInfo(name)
            about.size = len(content)
            tar.addfile(about, io.BytesIO(content))


MIRRORS: list[Any] = [
    pytest.param(lambda f, t: t.plant(f / f"{f.name}.py"), id="loading-script"),
    pytest.param(lambda f, t: t.plant(f / "data.pkl"), id="pickle"),
    pytest.param(lambda f, t: tarred(f / "data.tar", t), id="webdataset"),
    pytest.param(lambda f, t: bare(f / "data.arrow", t), id="arrow"),
    pytest.param(lambda f, t: bare(f / "data.parquet", t), id="parquet"),
    pytest.param(lambda f, t: bare(f / "data.h5", t), id="hdf5"),
]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("make", MIRRORS)
def test_a_hub_data_set_runs_nothing(
    tmp_path: Path,
    trap: Trap,
    make: Callable[[Path, Trap], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    folder = tmp_path / "mirrored"
    folder.mkdir()
    make(folder, trap)
    source = SourceConfig(source="hub:org/mirrored", mirror=str(folder))
    with pytest.raises(DataError, match=r"^data\.forget\.mirror: cannot load") as err:
        read_rows(source, role="forget")
    one_line(err)
    trap.assert_nothing_ran()


RUN_PICKLES = (
    *("tuner.pkl", "searcher-state-1.pkl", "trainable.pkl", "params.pkl", "error.pkl"),
    *("trials/0000/attempt-1/params.pkl", "trials/0000/attempt-1/adapter/adapter_model.bin"),
    *(
        "trials/0000/attempt-1/adapter/training_args.bin",
        "trials/0000/checkpoint/global_step1/x.pt",
    ),
    *("report/state.pkl", "tune/experiment_state.pkl", "conftest.py", "trials/0000/x.py"),
)


def test_pickles_in_a_run_folder_are_not_read(tune: Command, trap: Trap, sample_run: Run) -> None:
    trap.plant(*(sample_run.path / name for name in RUN_PICKLES))
    for verb in (["status"], ["best"], ["show"], ["advise"]):
        number = [0] if verb == ["show"] else []
        done = tune(*verb, sample_run.path, *number)
        assert done.status == 0, done
    is_refused(tune("export", sample_run.path, "--trial", 0, "--out", "out"), "the adapter is not")
    assert not Path("out").exists()
    trap.assert_nothing_ran()


@pytest.mark.parametrize("name", ["ledger.db", "spec.yaml"])
def test_a_pickle_under_the_name_of_a_file_of_the_run_is_refused(
    tune: Command, trap: Trap, sample_run: Run, name: str
) -> None:
    trap.plant(sample_run.path / name)
    ends_refused(tune("report", sample_run.path), name)
    trap.assert_nothing_ran()


def test_a_pickle_in_place_of_samples_events_or_a_history_is_left_out(
    tune: Command, trap: Trap, sample_run: Run
) -> None:
    names = ("samples.json", "events.jsonl", f"{attempt_folder(0, 1)}/history.jsonl")
    for name in names:
        trap.plant(sample_run.path / name)
    done = tune("report", sample_run.path)
    assert done.status == 0, done
    assert all(name in done.err for name in names)
    trap.assert_nothing_ran()


def test_a_run_to_start_from_is_not_unpickled(
    tune: Command, trap: Trap, sample_run: Run, tiny_sweep: dict[str, Any]
) -> None:
    trap.plant(sample_run.path / "ledger.db")
    file = write(changed(tiny_sweep, "start_from", [{"run": str(sample_run.path), "top": 1}]))
    is_refused(tune("validate", file), "start_from", "the ledger cannot be read")
    trap.assert_nothing_ran()


def test_a_pickle_in_the_cache_is_refused(
    trap: Trap, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("UNLEARN_TUNE_CACHE", str(tmp_path / "cache"))
    reads: list[Callable[[], object]] = [
        lambda: artifacts.record("baselines", {"a": 1}, lambda: {"x": 1.0}),
        lambda: artifacts.tensors("reference", {"a": 1}, lambda: {"x": torch.zeros(1)}),
        lambda: artifacts.tensors_by_row(
            "lora_fisher", {"a": 1}, ["r"], lambda rows: dict.fromkeys(rows, torch.zeros(1))
        ),
    ]
    for read in reads:
        read()
    kept = [p for p in (tmp_path / "cache").rglob("*") if p.suffix in (".json", ".safetensors")]
    assert len(kept) == 3
    trap.plant(*kept)
    for read in reads:
        with pytest.raises(FileError, match="a file of the cache is damaged") as err:
            read()
        one_line(err)
    trap.assert_nothing_ran()


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    """Configuration of a stock adapter without weights."""
    folder = tmp_path / "adapter"
    folder.mkdir()
    about = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": 2, "target_modules": ["q_proj"]}
    (folder / "adapter_config.json").write_text(json.dumps(about), encoding="utf-8")
    return folder


def test_an_adapter_whose_weights_are_a_pickle_is_refused(
    tune: Command, trap: Trap, adapter: Path, tiny_model: Path
) -> None:
    trap.plant(adapter / "training_args.bin", adapter / "adapter_model.bin")
    done = tune("evaluate", tiny_model, "--adapter", adapter, "--suite", "probes")
    is_refused(done, "--adapter: ", "holds no adapter_model.safetensors")
    with pytest.raises(FileError, match=r"holds no adapter_model\.safetensors"):
        load_adapter(torch.nn.Linear(1, 1), adapter)
    trap.assert_nothing_ran()


@pytest.mark.parametrize(
    ("values", "rule"),
    [
        pytest.param(
            {"megatron_config": {"a": 1}, "megatron_core": "evil_core"},
            "megatron_config: names Python code",
            id="module",
        ),
        pytest.param(
            {"peft_type": "XLORA", "adapters": {"0": "org/other"}},
            "peft_type: one adapter is expected",
            id="others",
        ),
        pytest.param({"peft_type": ["LORA"]}, "peft_type: one adapter is expected", id="no-kind"),
    ],
)  # fmt: skip
def test_an_adapter_that_names_code_or_other_adapters_is_refused(
    trap: Trap,
    adapter: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    values: dict[str, Any],
    rule: str,
) -> None:
    trap.plant(tmp_path / "evil_core.py")
    monkeypatch.syspath_prepend(tmp_path)
    rewritten(adapter / "adapter_config.json", **values)
    (adapter / "adapter_model.safetensors").touch()
    with pytest.raises(FileError, match=rule) as err:
        load_adapter(torch.nn.Linear(1, 1), adapter)
    one_line(err)
    trap.assert_nothing_ran()


def test_the_trap_works(trap: Trap, tmp_path: Path) -> None:
    """What it plants would leave the mark if it were read."""
    bare, saved = tmp_path / "bare.bin", tmp_path / "saved.pt"
    trap.plant(bare, saved)
    reads: list[Callable[[], object]] = [
        lambda: pickle.loads(bare.read_bytes()),
        lambda: torch.load(saved, weights_only=False),
    ]
    for read in reads:
        read()
        assert trap.marker.exists()
        trap.marker.unlink()


def test_a_ledger_with_a_view_of_its_own_runs_no_function(sample_run: Run) -> None:
    """SQLite runs functions named in a view or a trigger of the file, unless it is told that they are foreign."""
    path = sample_run.path / "ledger.db"
    with sqlite3.connect(path) as database:
        database.execute("ALTER TABLE trials RENAME TO hidden")
        database.execute(
            "CREATE VIEW trials AS SELECT hidden.*, load_extension('x') AS y FROM hidden"
        )
    with pytest.raises(
        UserError, match="the ledger cannot be read: .*unsafe use of load_extension"
    ):
        read_ledger(path)
