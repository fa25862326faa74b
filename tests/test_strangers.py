"""Files from strangers: nothing unpickles, nothing leaves its folder, code runs only where the user said so."""

from __future__ import annotations

import ast
import json
import os
import pickle
import re
import shutil
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
import torch
from packaging.requirements import Requirement
from rich.console import Console

import runkit
import strangerkit
from densekd import files
from densekd.cli import show
from densekd.cli.guard import complain
from densekd.cli.printable import printable
from densekd.config import load_recipe
from densekd.data.folder import listed_stems, scan_split
from densekd.data.specs import SplitSpec
from densekd.errors import CheckpointError, DataError, ExportError, ModelError, RunError
from densekd.export import load_exported
from densekd.export.pt2_graph import flaw_of_graph
from densekd.models import build_model
from densekd.models.checkpoint_file import read_checkpoint
from densekd.models.specs import ModelSpec
from densekd.models.timm_weights import refuse_files
from densekd.predict import open_student
from densekd.records import StudyRecord
from densekd.report.kept import runs_of
from densekd.runs import Run, train
from densekd.runs.origin import code_of, made_here, note_origin

ROOT = Path(__file__).resolve().parents[1]

# Calls that read code out of data, by their dotted names' ends; `*` stands for any module.
_FORBIDDEN = re.compile(
    r"(^|\.)((pickle|cPickle|marshal|dill|cloudpickle|joblib)\.(load|loads|Unpickler)|shelve\.open|torch\.hub\.load"
    r"|pd\.read_pickle|os\.(system|popen)|eval|exec|exec_module|run_path|run_module|torch\.jit\.load|unpack_archive"
    r"|extractall|extract)$"
)
_ALLOWED = {
    ("src/densekd/models/from_file.py", "exec_module"),  # the user's own file.py:build
}
_WORTH_A_LOOK = re.compile(
    r"pickle|marshal|dill|joblib|shelve|\bload\(|\beval\(|\bexec\(|exec_module|run_path|run_module|popen|system\("
    r"|unpack_archive|extract|shell=|trust_remote_code|from_pretrained|from_config"
)


def _dotted(node: ast.AST) -> str:
    if isinstance(node, ast.Attribute):
        return f"{_dotted(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else "?"


def _literal(call: ast.Call, name: str) -> object:
    found = next((keyword.value for keyword in call.keywords if keyword.arg == name), None)
    return found.value if isinstance(found, ast.Constant) else found


def flaws(text: str, where: str) -> list[str]:
    """Calls in a program that could execute what a file holds."""
    found = []
    for call in ast.walk(ast.parse(text)):
        if not isinstance(call, ast.Call):
            continue
        name = _dotted(call.func)
        if _FORBIDDEN.search(name) and not name.endswith(".eval") and (where, name.rpartition(".")[2]) not in _ALLOWED:
            found.append(name)
        if name == "torch.load" and _literal(call, "weights_only") is not True:
            found.append("torch.load without weights_only=True")
        if name == "torch.export.load" and where != "src/densekd/export/pt2_file.py":
            found.append("torch.export.load of what was not judged")
        if _literal(call, "allow_pickle") not in (None, False) or _literal(call, "shell") not in (None, False):
            found.append(f"{name}: allow_pickle or shell")
        if name.startswith("yaml.") and name.endswith(("load", "load_all")) and not name.endswith(".safe_load"):
            loader = _literal(call, "Loader")
            if not isinstance(loader, ast.Name) or loader.id != "_Loader":  # a SafeLoader: asserted below
                found.append(f"{name} with a loader that makes objects")
        remote = _literal(call, "trust_remote_code")
        if remote not in (None, False):
            found.append("trust_remote_code")
    return found


class TestNothingUnpickles:
    def test_in_the_code(self):
        for folder in ("src", "examples", "tools", "benchmarks"):
            for path in sorted((ROOT / folder).rglob("*.py")):
                text = path.read_text(encoding="utf-8")
                if _WORTH_A_LOOK.search(text):
                    where = path.relative_to(ROOT).as_posix()
                    assert flaws(text, where) == [], where

    def test_the_loader_of_recipes_makes_no_objects(self):
        import yaml

        from densekd.config.read import _Loader

        assert issubclass(_Loader, yaml.SafeLoader)
        with pytest.raises(yaml.constructor.ConstructorError):
            yaml.load("!!python/object/apply:os.mkdir [x]", Loader=_Loader)

    @pytest.mark.parametrize(
        "line",
        [
            "pickle.load(stream)",
            "import_me.pickle.loads(data)",
            "pickle.Unpickler(stream)",
            "torch.load(path)",
            "torch.load(path, weights_only=False)",
            "np.load(path, allow_pickle=True)",
            "joblib.load(path)",
            "shelve.open(path)",
            "marshal.loads(data)",
            "dill.loads(data)",
            "yaml.load(text)",
            "yaml.load(text, Loader=yaml.Loader)",
            "eval(text)",
            "exec(text)",
            "os.system(text)",
            "torch.hub.load(a, b)",
            "torch.jit.load(path)",
            "torch.export.load(path)",
            "AutoModel.from_pretrained(a, trust_remote_code=True)",
            "subprocess.run(text, shell=True)",
            "archive.extractall(folder)",
        ],
    )
    def test_that_look_finds_them(self, line):
        assert _WORTH_A_LOOK.search(line)
        assert len(flaws(line, "src/densekd/x.py")) == 1

    @pytest.mark.filterwarnings("ignore:Detected pickle protocol:UserWarning")
    @pytest.mark.parametrize("suffix", ["pt", "pth", "bin", "ckpt", "safetensors", "mat", "npy", "onnx"])
    def test_files_of_weights(self, tmp_path, suffix):
        canary, path = tmp_path / "canary", tmp_path / f"w.{suffix}"
        contents = {
            "zip of torch.save": strangerkit.torch_file(canary),
            "older torch.save": strangerkit.torch_file(canary, zipped=False),
            **strangerkit.archives(canary),
            **{f"pickle {p}": pickle.dumps(strangerkit.Attack(canary), protocol=p) for p in (0, 2, 5)},
        }
        for content in contents.values():
            path.write_bytes(content)
            with pytest.raises(CheckpointError, match=r"densekd never does|neither a safetensors|zip archive|damaged"):
                read_checkpoint(path)
        assert not canary.exists()
        pickle.loads(contents["pickle 2"])  # the attack is one
        assert canary.is_dir()

    def test_a_hub_folder(self, tmp_path):
        folder = tmp_path / "hub"
        folder.mkdir()
        (folder / "densekd.json").write_text(strangerkit.manifest("hub-folder").text())
        (folder / "config.json").write_text(json.dumps({"_model_class": "Unet", "encoder_weights": None}))
        (folder / "pytorch_model.bin").write_bytes(strangerkit.torch_file(tmp_path / "canary"))
        with pytest.raises(ExportError, match=r"holds no model\.safetensors; weights in another form are not read"):
            load_exported(folder)
        assert not (tmp_path / "canary").exists()

    def test_options_of_timm_that_name_files(self):
        with pytest.raises(ModelError, match=r"options\.checkpoint_path is not read.* name the file in checkpoint"):
            refuse_files("timm:x", {"checkpoint_path": "evil.pth"})

    @pytest.mark.slow
    def test_a_folder_of_transformers(self, tmp_path):
        transformers = pytest.importorskip("transformers")
        folder = tmp_path / "evil"
        sizes = {"depths": [1] * 4, "hidden_sizes": [8] * 4, "num_attention_heads": [1] * 4, "decoder_hidden_size": 8}
        transformers.SegformerConfig(**sizes, num_labels=2).save_pretrained(folder)
        (folder / "pytorch_model.bin").write_bytes(strangerkit.torch_file(tmp_path / "canary"))
        with pytest.raises(ModelError, match="cannot be built"):
            build_model(ModelSpec(model=f"transformers:{folder}"), 2, notices=[])
        code = {"auto_map": {"AutoConfig": "evil.Config"}, "model_type": "evil"}
        (folder / "config.json").write_text(json.dumps(code))
        (folder / "evil.py").write_text(f"import os\nos.mkdir({str(tmp_path / 'canary')!r})\nclass Config: pass\n")
        with pytest.raises(ModelError, match=r"cannot be built"):
            build_model(ModelSpec(model=f"transformers:{folder}"), 2, notices=[])
        assert not (tmp_path / "canary").exists()

    @pytest.mark.slow
    def test_the_files_of_a_run(self, tmp_path):
        place = runkit.make_place(tmp_path / "data", train=4, val=2)
        run = train(runkit.recipe(place, report={"page": True, "images": 1, "channels": 0}), out=tmp_path / "run")
        kinds = {path.suffix for path in run.path.rglob("*") if path.is_file()}
        assert {".safetensors", ".json", ".yaml", ".csv", ".html"} <= kinds
        for path in run.path.rglob("*"):
            if path.is_file():
                head = path.read_bytes()[:4]
                assert not head.startswith((b"\x80", b"PK", b"\x1f\x8b")), path


class TestPt2:
    @pytest.mark.parametrize(
        "graph",
        [
            {"nodes": [{"target": "torch.ops.aten.add.Tensor"}, {"target": "_operator.getitem"}]},
            {"sizes": [{"expr_str": "Mul(Integer(3), Symbol('s0', positive=True, integer=True))"}]},
            {"guards_code": ["(1 + (((-1) + L['x'].size()[2]) // 2)) != 1", "torch.sym_max(1, s0) < 2**63"]},
            {"in_spec": '[1, {"type": "builtins.tuple", "context": "null", "children_spec": []}]'},
            {"metadata": {"stack_trace": 'File "x", line 3\n    anything()', "torch_fn": "a;b"}, "name": "p_c.bias"},
        ],
    )
    def test_graphs_of_networks(self, graph):
        assert flaw_of_graph(json.dumps(graph).encode()) == ""

    @pytest.mark.parametrize(
        ("graph", "words"),
        [
            ({"target": "torch.os.system"}, "no operator on tensors"),
            ({"target": "torch.ops.aten.__class__.x"}, "no operator"),
            ({"target": "torch.ops.aten.from_file.default"}, "no operator"),
            ({"target": "_operator.methodcaller"}, "no operator"),
            ({"expr_str": "__import__('os').system('x')"}, "no arithmetic"),
            ({"expr_str": "Symbol.__init__.__globals__"}, "no arithmetic"),
            ({"expr_str": "Integer('x')"}, "no arithmetic"),
            ({"expr_str": "[x for x in (1,)]"}, "no arithmetic"),
            ({"expr_str": "(lambda: 1)()"}, "no arithmetic"),
            ({"guards_code": ["__import__('os').mkdir('x') or True"]}, "no arithmetic"),
            ({"guards_code": ["L['x'].__class__"]}, "no arithmetic"),
            ({"guards_code": ["True\nimport os"]}, "no arithmetic"),
            ({"name": "x = 1; import os"}, "no name"),
            ({"x); import os #": 1}, "no name"),
            (
                {"out_spec": '[1, {"type": "collections.defaultdict", "context": "[]", "children_spec": []}]'},
                "no tuple of tensors",
            ),
            ({"in_spec": "nothing"}, "no tuple of tensors"),
        ],
    )
    def test_graphs_that_run_something(self, graph, words):
        assert words in flaw_of_graph(json.dumps(graph).encode())

    def test_a_file(self, tmp_path):
        evil = {"range": {"expr_str": f"__import__('os').mkdir({str(tmp_path / 'canary')!r})"}}
        with pytest.raises(ExportError, match="no arithmetic of sizes, and torch would execute it; not opened"):
            load_exported(strangerkit.pt2_file(tmp_path / "a.pt2", evil))
        hidden = ("other/models/model.json", b"{}")  # which of the two is read hangs on the reader
        with pytest.raises(ExportError, match="holds a part twice"):
            load_exported(strangerkit.pt2_file(tmp_path / "b.pt2", evil, hidden))
        with zipfile.ZipFile(tmp_path / "c.pt2", "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("archive/archive_format", b"pt2")
        with pytest.raises(ExportError, match="compressed parts"):
            load_exported(tmp_path / "c.pt2")
        deep = ("archive/data/weights/model_weights_config.json", b"[" * 100_000)
        with pytest.raises(ExportError, match="cannot be read as a pt2 file"):
            load_exported(strangerkit.pt2_file(tmp_path / "d.pt2", {}, deep))
        assert not (tmp_path / "canary").exists()

    @pytest.mark.slow
    def test_torch_would_run_it(self, tmp_path):
        """What the check is for: torch's own loader evaluates a size of the file."""
        torch.export.save(torch.export.export(torch.nn.ReLU(), (torch.zeros(1),)), tmp_path / "a.pt2")
        held = {}
        with zipfile.ZipFile(tmp_path / "a.pt2") as archive:
            held = {name: archive.read(name) for name in archive.namelist()}
        graph = json.loads(held["a/models/model.json"])
        values = graph["graph_module"]["graph"]["tensor_values"]
        evil = f"__import__('os').mkdir({str(tmp_path / 'canary')!r}) or 1"
        next(iter(values.values()))["sizes"] = [{"as_expr": {"expr_str": evil, "hint": {"as_int": 1}}}]
        held["a/models/model.json"] = json.dumps(graph).encode()
        with zipfile.ZipFile(tmp_path / "b.pt2", "w") as archive:
            for name, data in held.items():
                archive.writestr(name, data)
        torch.export.load(tmp_path / "b.pt2")
        assert (tmp_path / "canary").is_dir()
        assert "no arithmetic" in flaw_of_graph(held["a/models/model.json"])


@pytest.mark.slow
@pytest.mark.parametrize("location", ["../secret.bin", "/etc/passwd", "beside.bin"])
def test_onnx_with_values_elsewhere(tmp_path, location):
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    (tmp_path / "secret.bin").write_bytes(b"secret!!")
    folder = tmp_path / "m"
    folder.mkdir()
    (folder / "beside.bin").write_bytes(b"12345678")
    tensor = onnx.TensorProto(name="w", data_type=1, dims=[2], data_location=onnx.TensorProto.EXTERNAL)
    for key, value in (("location", location), ("offset", "0"), ("length", "8")):
        tensor.external_data.add(key=key, value=value)
    info = [onnx.helper.make_tensor_value_info(name, 1, [2]) for name in "xy"]
    add = onnx.helper.make_node("Add", ["x", "w"], ["y"])
    graph = onnx.helper.make_graph([add], "g", info[:1], info[1:], [tensor])
    (folder / "a.onnx").write_bytes(onnx.helper.make_model(graph).SerializeToString())
    with pytest.raises(ExportError, match="takes 'w' from another file, which `densekd export` never writes"):
        load_exported(folder / "a.onnx")


class TestOwnCode:
    @staticmethod
    def _run(folder: Path) -> Run:
        """A run's folder whose recipe names code that makes a canary."""
        folder.mkdir(parents=True)
        canary = folder.parent / "canary"
        (folder.parent / "net.py").write_text(f"import os\nos.mkdir({str(canary)!r})\n")
        recipe = load_recipe(runkit.recipe(folder.parent, student={"model": f"{folder.parent}/net.py:build"}))
        files.write_json(folder / "recipe.yaml", recipe.model_dump(mode="json"))
        files.write_json(folder / "record.json", {})
        (folder / "student.safetensors").write_bytes(b"")
        note_origin(folder, recipe)
        return Run.load(folder)

    def test_a_run_is_known_where_it_was_made(self, tmp_path):
        run = self._run(tmp_path / "run")
        assert made_here(run.path)
        assert code_of(run.student_spec) == f"{tmp_path}/net.py"
        assert run.code() == [f"{tmp_path}/net.py is executed: the recipe of {run.path} names it as its student"]
        run.path.rename(tmp_path / "renamed")
        assert made_here(tmp_path / "renamed")

    def test_a_copy_is_not(self, tmp_path):
        shutil.copytree(self._run(tmp_path / "run").path, tmp_path / "copy")
        copy = Run.load(tmp_path / "copy")
        words = r"names code, .*net\.py:build, and this folder was not made in its place.* executes .*net\.py.*--trust"
        with pytest.raises(RunError, match=words):
            _ = copy.student_spec
        assert code_of(Run.load(copy.path, trust=True).student_spec) is not None
        assert not (tmp_path / "canary").exists()

    @pytest.mark.parametrize("note", [None, b"", b"{}", b"[]", b'{"folder": 1, "recipe": 2}', b"\xff"])
    def test_other_notes_say_nothing(self, tmp_path, note):
        run = self._run(tmp_path / "run")
        (run.path / "origin.json").unlink()
        if note is not None:
            (run.path / "origin.json").write_bytes(note)
        assert not made_here(run.path)

    def test_a_changed_recipe_is_another(self, tmp_path):
        run = self._run(tmp_path / "run")
        files.write_bytes(run.path / "recipe.yaml", (run.path / "recipe.yaml").read_bytes())
        assert not made_here(run.path)

    def test_networks_of_libraries_need_no_note(self, tmp_path):
        recipe = load_recipe(runkit.recipe(tmp_path, student={"model": "smp:FPN"}))
        note_origin(tmp_path, recipe)
        assert list(tmp_path.iterdir()) == []

    def test_exported_weights_with_code(self, tmp_path):
        (tmp_path / "net.py").write_text(f"import os\nos.mkdir({str(tmp_path / 'canary')!r})\n")
        note = {"densekd": strangerkit.manifest("safetensors", "net.py:build").text()}
        files.write_tensors(tmp_path / "w.safetensors", {"w": torch.zeros(1)}, note)
        for opened in (load_exported, open_student):
            with pytest.raises(ExportError, match=r"its network is code, net\.py:build; opening it executes .*--trust"):
                opened(tmp_path / "w.safetensors")
        assert not (tmp_path / "canary").exists()
        with pytest.raises(ExportError, match="cannot be built here"):
            load_exported(tmp_path / "w.safetensors", trust=True)
        assert (tmp_path / "canary").is_dir()

    @pytest.mark.slow
    def test_commands(self, tmp_path, monkeypatch, capsys):
        from densekd.cli.main import main

        def densekd(*words: object) -> tuple[int, str]:
            monkeypatch.setattr(sys, "argv", ["densekd", *map(str, words)])
            with pytest.raises(SystemExit) as stop:
                main()
            return stop.value.code or 0, capsys.readouterr().err

        place = runkit.make_place(tmp_path / "data", train=4, val=2)
        asked = runkit.recipe(place, name="own")
        (tmp_path / "own.yaml").write_text(json.dumps(asked))
        monkeypatch.chdir(tmp_path)
        code, err = densekd("train", "own.yaml", "train.steps=2", "--out", "run")
        assert code == 0
        assert err.startswith(f"{place}/nets.py is executed, because the model reference names it")
        assert any("nets.py is executed" in line for line in Run.load("run").record.warnings)
        assert densekd("evaluate", "run")[1].startswith(f"{place}/nets.py is executed: the recipe of run names it")
        shutil.copytree("run", "given")
        given = ("given", place / "val" / "images")
        for words in (
            ("evaluate", "given"),
            ("predict", *given),
            ("export", "given"),
            ("inspect", "given"),
            ("inspect", "--pair", "given"),
            ("bench", "latency", "given"),
        ):
            code, err = densekd(*words)
            assert (code, "names code" in err, "--trust" in err) == (2, True, True), words
        assert densekd("report", "given")[0] == 0  # reads, and executes nothing
        assert densekd("evaluate", "given", "--trust", "-q")[0] == 0
        assert densekd("predict", *given, "--trust", "-q")[0] == 0
        # Who starts a training names its recipe: a resume makes the folder its own.
        assert densekd("train", "given", "--resume", "-q")[0] == 0


class TestPathsStayInside:
    @pytest.mark.parametrize("name", ["../list.txt", "/etc/passwd", "a/../../list.txt"])
    def test_lists(self, tmp_path, name):
        (tmp_path / "root").mkdir()
        (tmp_path / "list.txt").write_text("a")
        with pytest.raises(DataError, match=r"leaves the folder .*root; give a path below it"):
            listed_stems(tmp_path / "root", name)

    @pytest.mark.parametrize("split", ["../other", "/tmp"])
    def test_splits(self, tmp_path, split):
        for kind in ("images", "masks"):
            (tmp_path / "other" / kind).mkdir(parents=True)
        (tmp_path / "root").mkdir()
        with pytest.raises(DataError, match="leaves the folder"):
            scan_split(tmp_path / "root", "train", SplitSpec(split=split))

    def test_names_of_a_study_s_runs(self, tmp_path):
        for folder in ("study/none-s1", "mine-s1"):
            files.write_json(tmp_path / folder / "record.json", {})
        methods = [{"name": name, "seeds": [1]} for name in ("none", "../mine")]
        record = StudyRecord.model_construct(
            methods=[type("Method", (), method)() for method in methods]  # the two fields that are read
        )
        assert list(runs_of(tmp_path / "study", record)) == ["none-s1"]

    @pytest.mark.parametrize("name", ["../x", "/x", "a/b", "..", "a\nb", ""])
    def test_names_of_runs(self, name):
        from densekd.errors import ConfigError

        with pytest.raises(ConfigError, match="name"):
            load_recipe(runkit.recipe(Path("x"), name=name))


class TestTerminal:
    HOSTILE = "road\x1b[2J\x1b]0;title\x07\r\x9b31m\u202egnp"

    def test_printable(self):
        assert printable(self.HOSTILE) == r"road\x1b[2J\x1b]0;title\x07\r\x9b31m\u202egnp"
        assert printable("Straße\t日本\n") == "Straße\t日本\n"

    def test_lines_and_tables(self, capsys):
        complain(self.HOSTILE)
        show.table([{self.HOSTILE: self.HOSTILE}])
        said = "".join(capsys.readouterr())
        assert not set(said) & set("\x1b\x07\r\x9b\u202e")
        assert said.count(r"\x1b[2J") == 3

    def test_tables_of_a_terminal(self, monkeypatch):
        drawn = Console(width=200, record=True, file=open(os.devnull, "w"))  # noqa: SIM115, PTH123
        monkeypatch.setattr(show, "Console", lambda: drawn)
        monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
        show.table([{"[bold]class": f"[red]x[/] [/nothing] {self.HOSTILE}"}], title="[/]")
        text = drawn.export_text()
        assert "[red]x[/] [/nothing] road" in text
        assert "[bold]class" in text
        assert "\x1b" not in text
        drawn.file.close()


class TestAudit:
    @pytest.fixture
    def audit(self, monkeypatch):
        monkeypatch.syspath_prepend(str(ROOT / "tools"))
        import audit

        yield audit
        sys.modules.pop("audit", None)

    def test_answers(self, audit):
        flaw = {"id": "PYSEC-1", "fix_versions": ["2"]}
        found = {
            "dependencies": [{"name": "a", "version": "1", "vulns": [flaw]}, {"name": "b", "skip_reason": "local"}]
        }
        assert audit.outcome(json.dumps(found), "") == (
            1,
            [
                "a 1: PYSEC-1, mended in 2",
                "audited: 1 pinned requirements, 1 with known vulnerabilities",
                "not audited: 1 of 2 (b): local",
            ],
        )
        nothing = {"dependencies": [{"name": "b", "skip_reason": "no data"}]}
        assert audit.outcome(json.dumps(nothing), "") == (0, ["not audited: 1 of 1 (b): no data"])
        clean = {"dependencies": [{"name": "a", "version": "1", "vulns": []}]}
        assert audit.outcome(json.dumps(clean), "")[0] == 0

    def test_no_answer_is_said_and_fails_nothing(self, audit, monkeypatch, capsys):
        assert audit.outcome("", "x\nno connection\n") == (
            0,
            ["not audited: pip-audit gave no answer (no connection)"],
        )
        monkeypatch.setattr(audit.shutil, "which", lambda *_, **__: None)
        assert audit.main() == 0
        assert capsys.readouterr().out.startswith("not audited: uv")


class TestRequirements:
    BAD = ("2.5.0", "2.6.2", "2.6.3", "2.6.5")

    def test_no_version_of_lightning_that_was_bad(self):
        project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
        every = [
            *project["dependencies"],
            *(line for extra in project["optional-dependencies"].values() for line in extra),
        ]
        asked = [Requirement(line) for line in every]
        found = [one for one in asked if "lightning" in one.name]
        assert [one.name for one in found] == ["lightning"]
        assert not [version for version in self.BAD if found[0].specifier.contains(version)]
        assert found[0].specifier.contains("2.6.6")

    def test_what_is_pinned(self):
        lines = (ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines()
        pins = [Requirement(line) for line in lines if line and not line.startswith("#")]
        for one in pins:
            assert [mark.operator for mark in one.specifier] == ["=="], one
            assert one.url is None
        lightning = [one for one in pins if one.name in ("lightning", "pytorch-lightning")]
        assert len(lightning) == 2
        for one in lightning:
            assert not [version for version in self.BAD if one.specifier.contains(version)]
