"""The Ray deployment."""

import http.client
import io
import json
import socket

import pytest

import vitrail
from conftest import COLOURS, picture
from vitrail.errors import UsageError


def encoded(seed: int) -> bytes:
    buffer = io.BytesIO()
    picture(list(COLOURS.values())[seed % 3], seed, (20, 18)).save(buffer, "PNG")
    return buffer.getvalue()


def test_without_ray_a_sentence_says_what_to_install(monkeypatch: pytest.MonkeyPatch):
    import sys

    from vitrail.serve.ray import deployment

    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UsageError, match="ray is not installed"):
        deployment("anything")


@pytest.mark.filterwarnings("ignore")
def test_the_same_answers_through_ray(run: vitrail.Run, clf: vitrail.Classifier):
    ray = pytest.importorskip("ray")
    from ray import serve

    from vitrail.data.decode import decode
    from vitrail.serve.ray import deployment

    ray.init(num_cpus=1, include_dashboard=False, configure_logging=False, log_to_driver=False)
    try:
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        serve.start(http_options={"port": port})
        serve.run(deployment(str(run.folder), ray_actor_options={"num_cpus": 0.5}), route_prefix="/")
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        for seed in range(3):
            connection.request("POST", "/", encoded(seed))
            answer = json.loads(connection.getresponse().read())
            expected = clf.predict(decode(io.BytesIO(encoded(seed))))
            assert [row["label"] for row in answer["predictions"][0]["top"]] == [p.label for p in expected]
        connection.request("POST", "/", b"no image")
        refused = connection.getresponse()
        assert refused.status == 400
        assert "not an image" in json.loads(refused.read())["error"]
    finally:
        serve.shutdown()
        ray.shutdown()
