"""`export --to hub`: a folder that timm, or its own card's program, loads; a card of the run's real numbers; an upload
only when asked for."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import http.server
import json
import os
import re
import shutil
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import ModelCard

import launcher
import tiny
from commands import ROOT, TINY, RunCli
from evaluation_runs import ENVIRON
from exports import RunOf, exported, outputs_of, pictures, pixels, ready
from launcher.report.build import write_report
from launcher.report.facts import read_facts
from weight_server import answering

pytestmark = pytest.mark.slow


def folder_of(run_dir: Path, out: Path, *words: str) -> Path:
    return exported(run_dir, "hub", out, *words)


def test_timm_loads_the_folder_with_its_preprocessing(trained: RunOf, tmp_path: Path) -> None:
    import timm

    folder = folder_of(trained("timm"), tmp_path / "hub")
    assert {path.name for path in folder.iterdir()} == {
        *("README.md", "config.json", "model.safetensors", "preprocess.json", "recipe.py"),
    }
    network = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    batch = pictures(3)
    with torch.no_grad():
        found = network(ready(trained("timm"), batch))
    assert found == pytest.approx(outputs_of(trained("timm"), batch), abs=1e-6)
    assert network.pretrained_cfg["label_names"] == ["across", "down", "diagonal"]
    transform = timm.data.create_transform(**timm.data.resolve_data_config({}, model=network))
    about = launcher.load(trained("timm"), tiny.__file__).preprocessing
    large = tiny.picture(tiny.Stripes(31, 1), 0).resize((90, 70))
    # timm resizes with Pillow, which rounds otherwise: a level is 1 / 255 / 0.5.
    assert transform(large) == pytest.approx(about(large), abs=0.02)


@pytest.mark.parametrize("name", ["resnet", "mlp", "timm", "own", "labels", "values"])
def test_the_program_on_the_card_says_what_the_model_says(
    name: str, trained: RunOf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run_dir = trained(name)
    folder = folder_of(run_dir, tmp_path / "hub")
    (program,) = re.findall(r"^```python\n(.*?)^```$", (folder / "README.md").read_text(), re.M | re.S)
    monkeypatch.chdir(tmp_path)
    picture = tiny.picture(tiny.Stripes(31, 1), 4)
    picture.save("picture.jpg", format="PNG")
    program = program.replace('snapshot_download("OWNER/NAME")', '"hub"')
    program = program.replace("from huggingface_hub import snapshot_download\n", "")
    capsys.readouterr()
    exec(program, {})  # noqa: S102 - what we write ourselves
    reported = capsys.readouterr().out
    model = launcher.load(run_dir, tiny.__file__)
    (expected,) = outputs_of(run_dir, pixels(picture)[None], interpreted=True)
    if model.kind == "classification":
        word, probability = reported.split()
        assert word == model.classes[int(expected.argmax())]
        assert float(probability) == pytest.approx(float(expected.max()), abs=0.02)
    elif model.kind == "multi-label":
        given = [n for n, p, t in zip(model.classes, expected.tolist(), model.thresholds, strict=True) if p >= t]
        assert reported == f"{given}\n"
    else:
        values = dict(re.findall(r"'(\w+)': ([-\d.]+)", reported))
        assert [float(values[n]) for n in model.classes] == pytest.approx(expected.tolist(), abs=1e-3)


def test_the_card_has_the_numbers_of_the_evaluation(trained: RunOf, tmp_path: Path) -> None:
    run_dir = trained("resnet")
    folder = folder_of(run_dir, tmp_path / "hub", "--license", "mit")
    evaluation = json.loads((run_dir / "evaluation.json").read_text())
    card = ModelCard.load(folder / "README.md")
    about = card.data
    assert (about.license, about.library_name, about.pipeline_tag) == ("mit", "torchvision", "image-classification")
    assert {result.metric_type: result.metric_value for result in about.eval_results} == pytest.approx(
        {name: value for name, value in evaluation["metrics"].items() if "/" not in name}, rel=2e-6, abs=1e-6
    )
    low, high = evaluation["intervals"]["of"]["accuracy"]
    accuracy = evaluation["metrics"]["accuracy"]
    assert f"| accuracy | {accuracy:.4f} | {low:.4f} to {high:.4f} |" in card.text
    for name, found in evaluation["classes"].items():
        assert re.search(rf"^\| {name} \| .* \| {found['recall']:.3f} \| .* \| {found['support']} \|$", card.text, re.M)
    stored = json.loads((run_dir / "final/calibration.json").read_text())
    if stored["reason"] is None:
        assert f"calibrated with a temperature of {stored['temperature']:.4g}" in card.text
    else:  # the network, which trains for seconds, may be no better than chance
        assert f"Its probabilities are not calibrated: {stored['reason']}." in card.text
    assert "Trained on 90 images and validated on 31." in card.text
    assert str(run_dir.parent) not in (folder / "config.json").read_text() + card.text  # no path of this machine


def test_a_run_that_was_not_evaluated(trained: RunOf, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    shutil.copytree(trained("resnet"), run_dir)
    (run_dir / "evaluation.json").unlink()
    (run_dir / "final/calibration.json").unlink()
    (run_dir / "report.html").write_text("<!doctype html>")
    folder = folder_of(run_dir, tmp_path / "hub", "--with-images")
    text = (folder / "README.md").read_text()
    assert text.startswith("---\n# license: say here under which licence")
    assert ModelCard(text).data.license is None  # type: ignore[attr-defined]
    metrics = json.loads((run_dir / "final/metrics.json").read_text())
    assert f"| accuracy | {metrics['accuracy']:.4f} |\n" in text
    assert "without intervals" in text
    assert "Its probabilities are not calibrated." in text
    assert "`report.html`" in text
    assert (folder / "report.html").read_text() == "<!doctype html>"


@pytest.mark.parametrize("name", ["timm", "own"])
def test_no_image_and_no_path_of_the_machine_leaves_it(name: str, trained: RunOf, tmp_path: Path) -> None:
    run_dir = tmp_path / "a user's & run"
    shutil.copytree(trained(name), run_dir)
    recipe = run_dir / "recipe.py"
    recipe.write_text(recipe.read_text() + f"\nROOT = '/srv/secret/disk/photos'  # {run_dir}/x\n")
    environment = json.loads((run_dir / "environment.json").read_text())
    environment["command"] = ["train", "/home/someone/recipe.py", f"data.root={run_dir}", "--run-dir", str(run_dir)]
    environment["folder"] = "/home/someone/project"
    (run_dir / "environment.json").write_text(json.dumps(environment))
    (run_dir / "skipped.txt").write_text(f"{run_dir}/images/a b.jpg: cut short\n")
    facts = read_facts(run_dir, tiny.recipe.data.build("class", 0))
    write_report([facts], run_dir / "report.html")
    assert "data:image" in (run_dir / "report.html").read_text()
    folder = folder_of(run_dir, tmp_path / "hub")
    assert ("model.pt2" in {file.name for file in folder.iterdir()}) == (name == "own")
    secrets = (b"data:image", b"/home/someone", b"/srv/secret", *map(os.fsencode, (tmp_path, ROOT, Path.home())))
    packages = os.fsencode(Path(torch.__file__).parents[1])
    for file in folder.iterdir():
        content = file.read_bytes()
        if file.suffix == ".pt2":
            with zipfile.ZipFile(file) as archive:
                content = b"".join(map(archive.read, archive.namelist()))
        assert [secret for secret in (*secrets, packages) if secret in content] == [], file
    compile((folder / "recipe.py").read_text(), "recipe.py", "exec")
    assert "ROOT = 'photos'" in (folder / "recipe.py").read_text()
    page = (folder / "report.html").read_text()
    assert "Images are left out of what is published." in page
    script = re.findall(r"<script>(.*?)</script>", page, re.DOTALL)[0]
    assert base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() in page
    whole = folder_of(run_dir, tmp_path / "whole", "--with-images")
    for file in ("report.html", "recipe.py"):  # type: ignore[assignment]
        assert (whole / file).read_bytes() == (run_dir / file).read_bytes()


def test_names_are_text_whatever_is_in_them(trained: RunOf, tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    shutil.copytree(trained("resnet"), run_dir)
    (run_dir / "evaluation.json").unlink()
    names = ["<script>alert(1)</script>", "a|b`c`\n# d", "latin \udce9"]
    (run_dir / "final/classes.json").write_text(json.dumps(names))
    (run_dir / "final/calibration.json").write_text(json.dumps({"temperature": 1.0, "reason": "<img>"}))
    folder = folder_of(run_dir, tmp_path / "hub")
    text = (folder / "README.md").read_text()
    assert "<script>" not in text
    assert "Its probabilities are not calibrated: &lt;img&gt;." in text
    assert r"&lt;script&gt;alert(1)&lt;/script&gt;, a\|b\`c\`\\n\# d, latin \\udce9." in text
    assert json.loads((folder / "config.json").read_text())["class_names"] == names


def test_only_what_an_export_wrote_is_replaced(trained: RunOf, tmp_path: Path) -> None:
    folder = folder_of(trained("own"), tmp_path / "hub")
    (folder / "README.md").write_text("older")
    folder_of(trained("own"), folder, "--overwrite")
    assert (folder / "README.md").read_text().startswith("---")
    assert [path.name for path in tmp_path.iterdir()] == ["hub"]


class Hub(http.server.BaseHTTPRequestHandler):
    """The calls of a commit without large files."""

    def log_message(self, *_: Any) -> None:
        pass

    def do_GET(self) -> None:
        if self.path.startswith("/api/models/me/"):
            return self._answer({"id": self.path.removeprefix("/api/models/"), "private": "open" not in self.path})
        known = self.headers.get("Authorization") == "Bearer hf_good"
        return self._answer(
            {"name": "me", "type": "user"} if known else {"error": "unauthorized"}, 200 if known else 401
        )

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        here = f"http://{self.headers['Host']}"
        self.server.asked.append((self.path, body))  # type: ignore[attr-defined]
        if self.path.endswith("/preupload/main"):
            files = [{"path": file["path"], "uploadMode": "regular"} for file in json.loads(body)["files"]]
            self._answer({"files": [{**file, "shouldIgnore": False, "oid": None} for file in files]})
        elif self.path.endswith("/commit/main"):
            self._answer({"commitUrl": f"{here}/me/stripes/commit/1", "commitOid": "1", "success": True})
        else:
            self._answer({"url": f"{here}/me/stripes", "name": "me/stripes", "errors": [], "warnings": []})

    def _answer(self, content: Any, status: int = 200) -> None:
        body = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


@contextlib.contextmanager
def hub() -> Iterator[Any]:
    server: Any = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    server.asked = []
    with answering(server):
        yield server


@pytest.mark.long
def test_an_upload_needs_a_login_and_makes_one_commit(trained: RunOf, tmp_path: Path, run_cli: RunCli) -> None:
    words = ("export", *TINY, str(trained("own")), "--to", "hub", "--out", "hub", "--upload")
    environ = ENVIRON | {"HF_HOME": str(tmp_path / "home"), "HF_TOKEN": "", "HF_HUB_DISABLE_XET": "1"}
    with hub() as server:
        environ["HF_ENDPOINT"] = f"http://127.0.0.1:{server.server_port}"
        done = run_cli(*words, "me/stripes", env=environ)
        assert (done.code, done.out) == (2, "")
        assert "\nerror: --upload me/stripes: nobody is logged in at the hub; log in with: hf auth " in done.err
        done = run_cli(*words, "me/stripes", env=environ | {"HF_TOKEN": "hf_bad"})
        assert done.code == 2
        assert "error: --upload me/stripes: the hub refuses this login (HTTP 401); log in with" in done.err
        assert server.asked == []
        assert not (tmp_path / "hub").exists()
        done = run_cli(*words, "me/stripes", "--private", env=environ | {"HF_TOKEN": "hf_good"})
        assert done.code == 0, done.err
        assert done.out.endswith(f"uploaded: {environ['HF_ENDPOINT']}/me/stripes/commit/1\n")
        asked = dict(server.asked)
        made = json.loads(asked["/api/repos/create"])
        assert made["name"] == "stripes"
        assert made.get("private") or made["visibility"] == "private"  # as the hub's client has it, older or newer
        lines = [json.loads(line) for line in asked["/api/models/me/stripes/commit/main"].splitlines()]
        sent = {line["value"]["path"] for line in lines if line["key"] == "file"}
        assert sent == {path.name for path in (tmp_path / "hub").iterdir()}
        # What is to be private is not added to a repository that all can see.
        server.asked.clear()
        done = run_cli(*words, "me/open", "--private", "--overwrite", env=environ | {"HF_TOKEN": "hf_good"})
        assert done.code == 2
        assert "error: --upload me/open: is there already and public, so --private cannot be kept" in done.err
        assert [path for path, _ in server.asked] == ["/api/repos/create"]
    done = run_cli(*words, "me/stripes", "--overwrite", env=environ | {"HF_TOKEN": "hf_good"})
    assert done.code == 2
    assert "error: --upload me/stripes: the hub cannot be reached (" in done.err
