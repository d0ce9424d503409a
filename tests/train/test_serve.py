"""`python -m train serve`: the same predictions as `predict`, in batches, and requests that mean harm."""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from PIL import Image

from tests.ports import free_port
from tests.train.serving import FORM, Reply, Served, can_connect, encoded, form, hold, served, until, waiting
from train.__main__ import main
from train.commands.serve import main as serve_command
from train.inference import Network
from train.predict import Given, Prediction, Predictor, predict
from train.serve.app import Limits
from train.trained import Trained


@pytest.fixture(scope="module")
def server(lively: Trained) -> Iterator[Served]:
    """A server for tests that leave it as it was."""
    with served(lively, Limits(max_body_bytes=200_000, max_pixels=1_000_000)) as found:
        yield found


def classes_of(reply: Reply) -> list[tuple[str, np.float32]]:
    assert reply.status == 200, reply
    return [(one["class"], np.float32(one["probability"])) for one in reply.said["predictions"]]


def predicted(lively: Trained, image: bytes, batch_size: int = 1) -> list[tuple[str, np.float32]]:
    """What `python -m train predict` says."""
    network = Network(lively, torch.device("cpu"))
    with Predictor(lively, network, batch_size=batch_size) as predictor:
        (found,) = predict([Given("it", image)], predictor)
    assert isinstance(found, Prediction)
    return list(zip(found.classes, map(np.float32, found.probabilities), strict=True))


def test_predictions_are_those_of_predict(server: Served, lively: Trained, photos: list[bytes]) -> None:
    turned = Image.Exif()
    turned[0x0112] = 6
    others = [
        encoded("PNG"),
        encoded("WEBP"),
        encoded("JPEG", progressive=True),
        encoded("JPEG", exif=turned),
    ]
    said = set()
    for image in (*photos, *others):
        reply = server.send(image)
        assert classes_of(reply) == predicted(lively, image)  # to the last digit: a batch of one each
        assert ("note" in reply.said) == (image == others[-1])
        said.add(reply.said["predictions"][0]["class"])
    assert len(said) > 1


def test_photos_are_turned_where_the_run_asks_for_it(lively: Trained) -> None:
    note = Image.Exif()
    note[0x0112] = 6
    image = encoded("JPEG", exif=note)
    upright = replace(lively, images=replace(lively.images, exif="apply"))
    with served(upright) as server:
        reply = server.send(image)
        assert server.send(path="/", method="GET").said["input"]["exif"] == "apply"
    assert classes_of(reply) == predicted(upright, image) != predicted(lively, image)
    assert "note" not in reply.said


def test_ways_to_send_an_image(server: Served, photos: list[bytes]) -> None:
    plain = server.send(photos[1])
    assert server.send(form(photos[1]), Content_Type=FORM).said == plain.said
    # as curl --data-binary has it
    assert server.send(photos[1], Content_Type="application/x-www-form-urlencoded").said == plain.said
    assert server.send([photos[1][:50], photos[1][50:]], Content_Type="image/jpeg").said == plain.said
    top = [server.send(photos[1], f"/predict?top={k}").said["predictions"] for k in (1, 3, 100)]
    assert [len(one) for one in top] == [1, 3, 6]
    assert top[2][:3] == top[1] == plain.said["predictions"][:3]
    assert sum(one["probability"] for one in top[2]) == pytest.approx(1, abs=1e-5)


def test_about_and_health(server: Served, lively: Trained) -> None:
    said = server.send(path="/", method="GET").said
    assert [one["class"] for one in said["classes"]] == list(lively.classes)
    assert (said["arch"], said["input"]["size"]) == ("test_efficientnet", 24)
    assert server.send(path="/health", method="GET").said == {"status": "ready", "waiting": 0}


def test_readable_names(lively: Trained, photos: list[bytes]) -> None:
    wnids = replace(lively, classes=("n01440764", *lively.classes[1:]))
    with served(wnids) as server:
        found = server.send(photos[0], "/predict?top=6").said["predictions"]
    named = {one["class"]: one.get("name") for one in found}
    assert "Tinca tinca" in str(named["n01440764"])
    assert named["class1"] is None


def test_after_all_that_it_still_answers_and_has_counted(server: Served, photos: list[bytes]) -> None:
    before = server.metric('feedline_requests_total{path="/predict",status="415"}')
    images = server.metric("feedline_images_total")
    assert server.send(b"no image").status == 415
    assert server.send(photos[0]).status == 200
    assert server.metric('feedline_requests_total{path="/predict",status="415"}') == before + 1
    assert server.metric("feedline_images_total") == images + 1
    assert server.metric("feedline_predict_seconds_count") >= 2
    assert server.metric("feedline_waiting_images") == 0
    assert server.metric("process_resident_memory_bytes") > 1e6


def test_requests_that_come_together_are_one_batch(lively: Trained, photos: list[bytes]) -> None:
    with served(lively, Limits(max_batch=4, max_wait_s=0)) as server:
        first = hold(server, photos[0])
        others = [server.begin(image) for image in (photos[1:6])]
        waiting(server, 6)
        server.gate.open.set()
        replies = [one.result() for one in (first, *others)]
        assert server.gate.batches == [1, 4, 1]
        assert server.metric('feedline_batch_images_bucket{le="1.0"}') == 2
        assert server.metric('feedline_batch_images_bucket{le="4.0"}') == 3
        assert server.metric("feedline_images_total") == 6
    for image, reply in zip(photos, replies, strict=True):
        alone = predicted(lively, image)
        assert [name for name, _ in classes_of(reply)] == [name for name, _ in alone]
        # This network's logits are scaled up a thousandfold, and with them what another row of a batch rounds.
        batched, single = ([share for _, share in one] for one in (classes_of(reply), alone))
        np.testing.assert_allclose(batched, single, atol=2e-3)


def test_a_full_queue(lively: Trained, photos: list[bytes]) -> None:
    with served(lively, Limits(queue=2)) as server:
        held = [hold(server, photos[0]), server.begin(photos[1])]
        waiting(server, 2)
        refused = server.send(photos[2])
        assert (refused.status, refused.headers["Retry-After"]) == (503, "1")
        assert "2 images are waiting" in refused.said["detail"]
        server.gate.open.set()
        assert [one.result().status for one in held] == [200, 200]
        assert server.send(photos[2]).status == 200


def test_no_answer_in_time(lively: Trained, photos: list[bytes]) -> None:
    with served(lively, Limits(timeout_s=2)) as server:
        first = hold(server, photos[0])
        second = server.send(photos[1])
        assert (second.status, second.said) == (504, {"detail": "no answer within 2 s"})
        assert first.result().status == 504
        health = server.send(path="/health", method="GET")
        assert health.status == 503
        assert "computing for more than 2 s" in health.said["status"]
        server.gate.open.set()
        waiting(server, 0)
        assert server.gate.batches == [1], "nobody waited for the second one any more"
        assert server.send(photos[1]).status == 200
        assert server.send(path="/health", method="GET").status == 200


def test_stopping_ends_what_is_under_way(lively: Trained, photos: list[bytes]) -> None:
    with served(lively) as server:
        first = hold(server, photos[0])
        server.stop()
        until(lambda: not can_connect(server.port))
        assert not first.done()
        server.gate.open.set()
        assert first.result().status == 200
        server.thread.join(20)
        assert not server.thread.is_alive()


def test_a_network_that_fails(lively: Trained, photos: list[bytes], caplog: Any) -> None:
    with served(lively) as server:
        server.gate.error = RuntimeError("out of memory")
        reply = server.send(photos[0])
        assert (reply.status, reply.said) == (500, {"detail": "internal error; the server's log says more"})
        server.gate.error = None
        assert server.send(photos[0]).status == 200
        assert server.metric('feedline_requests_total{path="/predict",status="500"}') == 1


def test_a_network_that_fails_again_and_again_is_not_healthy(lively: Trained, photos: list[bytes]) -> None:
    with served(lively) as server:
        server.gate.error = RuntimeError("CUDA error: an illegal memory access was encountered")
        for status in (200, 200, 503):
            assert server.send(photos[0]).status == 500
            # The client's mistake, which counts for nothing.
            assert server.send(photos[0][:300]).status == 422
            health = server.send(path="/health", method="GET")
            assert health.status == status
        assert health.said["status"].startswith("the last 3 batches have failed; ")
        server.gate.error = None
        assert server.send(photos[0]).status == 200
        assert server.send(path="/health", method="GET").status == 200


def test_the_command_stops_at_a_signal(lively_dir: Path, photos: list[bytes], capsys: Any) -> None:
    port = free_port()
    said: list[int] = []

    def use() -> None:
        until(lambda: can_connect(port))
        server = Served(port, None, None, None, None)  # type: ignore[arg-type]
        said.append(server.send(photos[0]).status)
        if (
            signal.getsignal(signal.SIGTERM) is not before
        ):  # else another server answered, and the tests would end
            os.kill(os.getpid(), signal.SIGTERM)

    before = signal.getsignal(signal.SIGTERM)
    client = threading.Thread(target=use)
    client.start()
    assert (
        main(["serve", str(lively_dir), "--port", str(port), "--device", "cpu", "--loader-threads", "1"]) == 0
    )
    client.join()
    assert said == [200]
    assert signal.getsignal(signal.SIGTERM) is before
    err = capsys.readouterr().err.splitlines()
    assert err[0].startswith(
        f"http://127.0.0.1:{port} serves {lively_dir} (test_efficientnet, 6 classes, cpu)"
    )
    assert err[1:] == ["stopped"]


def test_mistakes(lively_dir: Path, tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def error_of(*flags: str) -> str:
        assert main(["serve", *flags]) == 1
        (line,) = capsys.readouterr().err.splitlines()
        return str(line)

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert f"cannot listen on 127.0.0.1, port {port}: Address already in use" in error_of(
            str(lively_dir), "--port", str(port)
        )
    assert "--host is 'no such host'" in error_of(str(lively_dir), "--host", "no such host", "--port", "0")
    assert "which is no folder" in error_of(str(tmp_path / "none"), "--port", "0")
    assert "is no run folder" in error_of(str(tmp_path), "--port", "0")
    with monkeypatch.context() as patched:
        patched.setattr("torch.cuda.is_available", lambda: False)
        assert "--device is 'cuda', but torch finds no GPU" in error_of(
            str(lively_dir), "--port", "0", "--device", "cuda"
        )
    with monkeypatch.context() as patched:
        for name in [name for name in sys.modules if name.startswith(("train.serve", "uvicorn"))]:
            patched.delitem(sys.modules, name)
        patched.setitem(sys.modules, "uvicorn", None)
        assert error_of(str(lively_dir)).endswith("serve needs uvicorn: pip install 'feedline[serve]'")
    with monkeypatch.context() as patched:
        patched.setattr(Network, "logits", Mock(side_effect=RuntimeError("can't allocate memory: you tried")))
        assert "a batch of 9 does not fit into the memory of cpu; give a smaller --max-batch" in error_of(
            str(lively_dir), "--port", "0", "--device", "cpu", "--max-batch", "9"
        )
    with monkeypatch.context() as patched:
        patched.setenv("WORLD_SIZE", "2")
        assert "serve is one process" in error_of(str(lively_dir))


@pytest.mark.parametrize(
    "flags",
    [
        ["--port", "70000"],
        ["--max-batch", "0"],
        ["--timeout-s", "0"],
        ["--max-wait-ms", "-1"],
        ["--queue", "x"],
    ],
)
def test_wrong_flags(lively_dir: Path, flags: list[str], capsys: Any) -> None:
    with pytest.raises(SystemExit) as error:
        serve_command([str(lively_dir), *flags])
    assert error.value.code == 2
    assert flags[1] in capsys.readouterr().err


def test_openapi(server: Served) -> None:
    said = server.send(path="/openapi.json", method="GET").said["paths"]["/predict"]["post"]
    assert "multipart/form-data" in said["requestBody"]["content"]
    assert {"413", "415", "422", "503", "504"} <= set(said["responses"])
    assert "ValidationError" not in json.dumps(said)
