"""Published weights: found locally, fetched after a quick check, or an error within seconds that says how to go on."""

from __future__ import annotations

import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import timm
import torch
from safetensors.torch import save_file

from densekd.errors import CheckpointError, ModelError
from densekd.models import ModelSpec, build_model, online
from densekd.models.online import hub_file, require_reachable


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def refuse(*args: Any, **kwargs: Any) -> None:
        raise urllib.error.URLError("Name or service not known")

    monkeypatch.setattr(urllib.request, "urlopen", refuse)
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda *args, **kwargs: None)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))


@pytest.mark.parametrize(
    ("model", "options", "words"),
    [
        (
            "smp:PSPNet",
            {"encoder_name": "resnet18", "encoder_weights": "imagenet"},
            r"imagenet weights of encoder 'resnet18'.*smp-hub/resnet18.*no connection.*encoder_checkpoint, or drop",
        ),
        (
            "smp:PSPNet",
            {"encoder_name": "tu-resnet18", "encoder_weights": True},
            r"weights of timm's 'resnet18'.*timm/resnet18.*no connection.*give the encoder's weights as a file",
        ),
        (
            "torchvision:fcn_resnet50",
            {"weights_backbone": "DEFAULT"},
            r"options.weights_backbone 'DEFAULT'.*download\.pytorch\.org.*no connection.*or drop the option",
        ),
        (
            "timm:resnet18",
            {"features": True, "pretrained": True},
            r"weights of timm's 'resnet18' cannot be fetched.*give a file in checkpoint",
        ),
        pytest.param(
            "transformers:somebody/some-net",
            {},
            r"transformers:somebody/some-net cannot be fetched.*config\.json: no connection.*transformers:FOLDER",
            marks=pytest.mark.slow,
        ),
    ],
)
@pytest.mark.usefixtures("offline")
def test_out_of_reach_is_said_at_once(model: str, options: dict[str, Any], words: str) -> None:
    start = time.monotonic()
    with pytest.raises(CheckpointError, match=words):
        build_model(ModelSpec(model=model, options=options), 5, notices=[])
    assert time.monotonic() - start < 20


@pytest.mark.usefixtures("offline")
def test_published_weights_are_not_needed_under_a_checkpoint(tmp_path: Path) -> None:
    options = {"encoder_name": "tu-test_resnet", "encoder_weights": True}
    trained = build_model(ModelSpec(model="smp:FPN", options={**options, "encoder_weights": None}), 3)
    save_file(trained.state_dict(), tmp_path / "student.safetensors")
    spec = ModelSpec.model_validate(
        {"model": "smp:FPN", "options": options, "checkpoint": ".", "encoder_checkpoint": "gone.pt"}
    )
    notices: list[str] = []
    loaded = build_model(spec, 3, base_folder=tmp_path, notices=notices)
    assert all(torch.equal(value, loaded.state_dict()[name]) for name, value in trained.state_dict().items())
    assert notices == [
        "smp:FPN: encoder_weights, encoder_checkpoint not read, because checkpoint holds the whole network"
    ]


def test_weights_of_timm_come_from_the_file_that_was_fetched(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    source = timm.create_model("test_resnet")
    save_file(source.state_dict(), tmp_path / "model.safetensors")
    monkeypatch.setattr("densekd.models.timm_weights.hub_file", lambda *args: tmp_path / "model.safetensors")
    options = {"encoder_name": "tu-test_resnet", "encoder_weights": True}
    network = build_model(ModelSpec(model="smp:FPN", options=options), 3)
    own = network.encoder.model.state_dict()
    assert all(torch.equal(own[name], source.state_dict()[name]) for name in own)


def test_a_network_without_published_weights_is_named() -> None:
    options = {"encoder_name": "tu-resnet18.nothing", "encoder_weights": True}
    with pytest.raises(ModelError, match=r"timm publishes no weights for 'resnet18\.nothing'"):
        build_model(ModelSpec(model="smp:FPN", options=options), 3)


class Answers(BaseHTTPRequestHandler):
    def do_HEAD(self) -> None:
        self.send_response(int(self.path.strip("/")))
        self.end_headers()

    def log_message(self, *args: Any) -> None:
        pass


@pytest.fixture
def host() -> Iterator[str]:
    server = HTTPServer(("127.0.0.1", 0), Answers)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.mark.parametrize("status", [200, 405])
def test_a_host_that_answers(host: str, status: int) -> None:
    require_reachable(f"{host}/{status}", "the weights", "or not")


@pytest.mark.parametrize("status", [401, 404, 503])
def test_a_host_that_has_no_such_file(host: str, status: int) -> None:
    with pytest.raises(CheckpointError, match=f"the weights cannot be fetched: .*HTTP status {status}.*; go on so"):
        require_reachable(f"{host}/{status}", "the weights", "go on so")


def test_a_host_that_never_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(online, "_SECONDS", 0.2)
    monkeypatch.setattr(online, "_ask", lambda url: time.sleep(2) or "")
    with pytest.raises(CheckpointError, match="no answer within 0 s"):
        require_reachable("http://example.invalid/file", "the weights", "go on so")


def test_the_local_cache_needs_no_connection(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda *args, **kwargs: str(tmp_path / "found"))
    monkeypatch.setattr(online, "_ask", lambda url: pytest.fail("asked the host"))
    assert hub_file("owner/net", "model.safetensors", None, "it", "so") == tmp_path / "found"


@pytest.mark.usefixtures("offline")
def test_the_offline_switch_of_the_hub_is_respected(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(CheckpointError, match="HF_HUB_OFFLINE is set"):
        hub_file("owner/net", "model.safetensors", None, "it", "so")
