"""The Open Inference Protocol: Triton's client with a real server, and invalid requests."""

import base64
import io
import json
import struct
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import tritonclient.http as triton
from hypothesis import given, settings
from hypothesis import strategies as st
from tritonclient.utils import InferenceServerException

import vitrail
from conftest import COLORS
from serving import RunningServer
from test_serve import compute_logits, make_photo
from vitrail.data.decode import decode
from vitrail.serving.errors import RequestError
from vitrail.serving.protocol import OutputTensor, flatten, format_top_classes, parse_request, split_bytes
from vitrail.serving.settings import Settings

pytestmark = pytest.mark.newest

PHOTOS = [make_photo(seed, (16 + seed, 20)) for seed in range(3)]


@pytest.fixture(scope="module")
def client(server: RunningServer) -> Iterator[triton.InferenceServerClient]:
    with triton.InferenceServerClient(f"127.0.0.1:{server.port}") as client:
        yield client


def make_image_input(files: list[bytes], binary: bool = True) -> triton.InferInput:
    tensor = triton.InferInput("image", [len(files)], "BYTES")
    values = files if binary else [base64.b64encode(file).decode() for file in files]
    tensor.set_data_from_numpy(np.array(values, dtype=object), binary_data=binary)
    return tensor


def test_live_ready_and_metadata(client: triton.InferenceServerClient):
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("colors")
    assert client.is_model_ready("colors", "1")
    assert not client.is_model_ready("other")
    server = client.get_server_metadata()
    assert server["name"] == "vitrail"
    assert server["version"] == vitrail.__version__
    assert {"binary_tensor_data", "classification", "statistics"} <= set(server["extensions"])
    model = client.get_model_metadata("colors")
    assert model["inputs"] == [{"name": "image", "datatype": "BYTES", "shape": [-1]}]
    assert [output["name"] for output in model["outputs"]] == ["logits", "probabilities"]
    assert all(output["shape"] == [-1, 3] and output["datatype"] == "FP32" for output in model["outputs"])


@pytest.mark.parametrize("binary_in", [True, False])
@pytest.mark.parametrize("binary_out", [True, False])
def test_infer_in_json_and_binary(
    client: triton.InferenceServerClient, clf: vitrail.Classifier, binary_in: bool, binary_out: bool
):
    outputs = [triton.InferRequestedOutput(name, binary_data=binary_out) for name in ("probabilities", "logits")]
    answer = client.infer("colors", [make_image_input(PHOTOS, binary_in)], outputs=outputs, request_id="my-7")
    expected = np.array([compute_logits(clf, file) for file in PHOTOS])
    np.testing.assert_allclose(answer.as_numpy("logits"), expected, atol=1e-4)
    np.testing.assert_allclose(answer.as_numpy("probabilities").sum(axis=1), 1, atol=1e-6)
    response = answer.get_response()
    assert response["id"] == "my-7"
    assert response["model_name"] == "colors"
    assert [output["name"] for output in response["outputs"]] == ["probabilities", "logits"]


@pytest.mark.parametrize("compression", ["gzip", "deflate"])
def test_infer_with_default_outputs_and_compression(
    client: triton.InferenceServerClient, clf: vitrail.Classifier, compression: str
):
    answer = client.infer(
        "colors",
        [make_image_input(PHOTOS[:1])],
        request_compression_algorithm=compression,
        response_compression_algorithm=compression,
    )
    np.testing.assert_allclose(answer.as_numpy("logits"), [compute_logits(clf, PHOTOS[0])], atol=1e-4)
    assert answer.as_numpy("probabilities").shape == (1, 3)


def test_decoded_pixels(client: triton.InferenceServerClient, clf: vitrail.Classifier):
    pixels = np.stack([decode(io.BytesIO(make_photo(seed, (20, 18)))).permute(1, 2, 0).numpy() for seed in range(2)])
    for binary in (True, False):
        tensor = triton.InferInput("pixels", list(pixels.shape), "UINT8")
        tensor.set_data_from_numpy(pixels, binary_data=binary)
        answer = client.infer("colors", [tensor], model_version="1")
        expected = [compute_logits(clf, make_photo(seed, (20, 18))) for seed in range(2)]
        np.testing.assert_allclose(answer.as_numpy("logits"), expected, atol=1e-4)


@pytest.mark.parametrize("binary", [True, False])
def test_classification_outputs(client: triton.InferenceServerClient, clf: vitrail.Classifier, binary: bool):
    output = triton.InferRequestedOutput("probabilities", binary_data=binary, class_count=2)
    answer = client.infer("colors", [make_image_input(PHOTOS)], outputs=[output]).as_numpy("probabilities")
    assert answer.shape == (3, 2)
    for row, file in zip(answer, PHOTOS, strict=True):
        expected = clf.predict(decode(io.BytesIO(file)), top=2)
        parts = [(each if isinstance(each, str) else each.decode()).split(":") for each in row]
        assert [label for _, _, label in parts] == [p.label for p in expected]
        assert [clf.classes[int(index)] for _, index, _ in parts] == [p.label for p in expected]
        assert [float(value) for value, _, _ in parts] == pytest.approx([p.probability for p in expected], abs=1e-5)


def test_concurrent_requests(client: triton.InferenceServerClient, server: RunningServer, clf: vitrail.Classifier):
    with triton.InferenceServerClient(f"127.0.0.1:{server.port}", concurrency=8) as concurrent_client:
        pending = [
            concurrent_client.async_infer("colors", [make_image_input([make_photo(seed)])]) for seed in range(24)
        ]
        for seed, each in enumerate(pending):
            np.testing.assert_allclose(
                each.get_result().as_numpy("logits"), [compute_logits(clf, make_photo(seed))], atol=1e-4
            )


def test_statistics(client: triton.InferenceServerClient):
    def fetch_statistics() -> dict[str, Any]:
        return client.get_inference_statistics("colors")["model_stats"][0]

    before = fetch_statistics()
    client.infer("colors", [make_image_input(PHOTOS)])
    with pytest.raises(InferenceServerException):
        client.infer("colors", [make_image_input([b"no image"])])
    after = fetch_statistics()
    assert (after["name"], after["version"]) == ("colors", "1")
    assert after["inference_count"] == before["inference_count"] + 3
    assert before["execution_count"] < after["execution_count"] <= before["execution_count"] + 3
    assert after["last_inference"] > 0
    for name, increase in (("success", 1), ("fail", 1), ("queue", 3)):
        assert after["inference_stats"][name]["count"] == before["inference_stats"][name]["count"] + increase
    assert after["inference_stats"]["compute_infer"]["ns"] > before["inference_stats"]["compute_infer"]["ns"]
    sizes = {row["batch_size"]: row["compute_infer"]["count"] for row in after["batch_stats"]}
    assert sum(size * count for size, count in sizes.items()) == after["inference_count"]
    assert client.get_inference_statistics()["model_stats"][0]["name"] == "colors"


def test_the_client_raises_its_own_errors(client: triton.InferenceServerClient):
    for model, status, message in (("other", "404", "no model"), ("colors", "400", "not an image")):
        with pytest.raises(InferenceServerException, match=message) as caught:
            client.infer(model, [make_image_input([b"no image"])])
        assert caught.value.status() == status
    with pytest.raises(InferenceServerException, match="no version"):
        client.infer("colors", [make_image_input(PHOTOS)], model_version="9")
    with pytest.raises(InferenceServerException, match="no output"):
        client.infer("colors", [make_image_input(PHOTOS)], outputs=[triton.InferRequestedOutput("nothing")])


def test_explanations_as_tensors(server: RunningServer, clf: vitrail.Classifier):
    file = PHOTOS[0]
    document = {
        "inputs": [{"name": "image", "shape": [1], "datatype": "BYTES", "data": [base64.b64encode(file).decode()]}],
        "parameters": {"class": "red", "against": "blue"},
    }
    answer = {o["name"]: o for o in server.post("/v2/models/colors/explain", json.dumps(document)).json["outputs"]}
    expected = vitrail.explain(clf, decode(io.BytesIO(file)), target=("red", "blue"))
    assert answer["map"]["shape"] == [1, *expected.map.shape]
    np.testing.assert_allclose(answer["map"]["data"], expected.map.ravel(), atol=2e-6)
    assert answer["label"]["data"] == ["red"]
    document["parameters"] = {"layer": "last"}
    reply = server.post("/v2/models/colors/explain", json.dumps(document))
    assert reply.status == 400
    assert "layer" in reply.json["error"]


@pytest.mark.parametrize(
    "timeout", [10**400, -(10**400), float("nan"), float("inf"), "1", True],
    ids=["too large", "too small", "NaN", "infinite", "string", "boolean"],
)  # fmt: skip
def test_an_invalid_timeout_is_refused(server: RunningServer, timeout: Any):
    reply = server.post("/v2/models/colors/infer", make_request(IMAGE, parameters={"timeout": timeout}))
    assert reply.status == 400
    assert "timeout" in reply.json["error"]


def test_classification_requires_an_output_with_a_row_of_classes(server: RunningServer):
    file = base64.b64encode(PHOTOS[0]).decode()
    outputs = [{"name": "probability", "parameters": {"classification": 1}}]
    reply = server.post("/v2/models/colors/explain", make_request(IMAGE | {"data": [file]}, outputs=outputs))
    assert reply.status == 400
    assert "no row of classes" in reply.json["error"]


# Invalid requests, parsed without a server


IMAGE: dict[str, Any] = {"name": "image", "shape": [1], "datatype": "BYTES", "data": ["aGk="]}
PIXELS: dict[str, Any] = {"name": "pixels", "shape": [1, 2, 2, 3], "datatype": "UINT8", "data": list(range(12))}


def make_request(*inputs: Any, **more: Any) -> bytes:
    return json.dumps({"inputs": list(inputs), **more}).encode()


def make_binary_request(size: int, rest: bytes) -> tuple[bytes, str]:
    text = make_request({k: v for k, v in IMAGE.items() if k != "data"} | {"parameters": {"binary_data_size": size}})
    return text + rest, str(len(text))


@pytest.mark.parametrize(
    ("body", "json_length", "message"),
    [
        (b"", None, "not JSON"),
        (b"\xff\xfe", None, "not JSON"),
        (b"[]", None, "not a JSON object"),
        (b"null", None, "not a JSON object"),
        (b"[" * 100_000, None, "nested too deeply"),
        (b'{"inputs":' + b"[" * 50_000 + b"]" * 50_000 + b"}", None, "nested too deeply"),
        (b'{"a":' * 20_000 + b"1" + b"}" * 20_000, None, "nested too deeply"),
        (b"{}", None, "inputs"),
        (make_request(), None, "0 inputs"),
        (make_request(IMAGE, IMAGE), None, "2 inputs"),
        (make_request({}), None, "inputs"),
        (make_request(7), None, "inputs"),
        (make_request(IMAGE | {"name": "x" * 999}), None, "no input"),
        (make_request(IMAGE | {"datatype": "FP32"}), None, "datatype"),
        (make_request(IMAGE | {"datatype": ["BYTES"]}), None, "datatype"),
        (make_request(IMAGE | {"shape": None}), None, "shape"),
        (make_request(IMAGE | {"shape": [-1]}), None, "non-negative integer"),
        (make_request(IMAGE | {"shape": [True]}), None, "non-negative integer"),
        (make_request(IMAGE | {"shape": [1.0]}), None, "non-negative integer"),
        (make_request(IMAGE | {"shape": [10**30]}), None, "non-negative integer"),
        (make_request(IMAGE | {"shape": []}), None, "shape"),
        (make_request(IMAGE | {"shape": [1, 2]}), None, "shape"),
        (make_request(IMAGE | {"shape": [0]}), None, "0 images"),
        (make_request(IMAGE | {"shape": [65]}), None, "65 images"),
        (make_request(IMAGE | {"shape": [2]}), None, "2 strings"),
        (make_request(IMAGE | {"data": "aGk="}, id=7), None, "id"),
        (make_request(IMAGE | {"data": ["not base64!"]}), None, "base64"),
        (make_request(IMAGE | {"data": ["é"]}), None, "base64"),
        (make_request(IMAGE | {"data": [1]}), None, "strings"),
        (make_request(IMAGE | {"parameters": {"content_type": "raw"}}), None, "content_type"),
        (make_request(IMAGE | {"parameters": [1]}), None, "parameters"),
        (make_request(IMAGE, parameters={"a": None}), None, "parameters"),
        (make_request(IMAGE, outputs={}), None, "outputs"),
        (make_request(IMAGE, outputs=[{"name": "logits"}] * 2), None, "twice"),
        (
            make_request(IMAGE, outputs=[{"name": "logits", "parameters": {"classification": -1}}]),
            None,
            "classification",
        ),
        (make_request(IMAGE, outputs=[{"name": "logits", "parameters": {"binary_data": 1}}]), None, "binary_data"),
        (make_request({k: v for k, v in IMAGE.items() if k != "data"}), None, "no data"),
        (make_request(IMAGE | {"parameters": {"binary_data_size": 0}}), None, "both"),
        (make_request(PIXELS | {"shape": [1, 2, 2, 4]}), None, "data has 12 numbers; the shape requires 16"),
        (make_request(PIXELS | {"datatype": "FP64"}), None, "the datatype of pixels is not UINT8 or FP32"),
        (make_request(PIXELS | {"shape": [1, 0, 2, 3]}), None, "channels"),
        (make_request(PIXELS | {"shape": [1, 9, 2, 3]}), None, "requires 54"),
        (make_request(PIXELS | {"shape": [1, 99_999, 99_999, 3]}), None, "above the limit"),
        (make_request(PIXELS | {"data": [256] * 12}), None, "0 to 255"),
        (make_request(PIXELS | {"data": [float("nan")] * 12}), None, "0 to 255"),
        (make_request(PIXELS | {"data": [True] * 12}), None, "0 to 255"),
        (make_request(IMAGE), "99999", "has"),
        (make_request(IMAGE), "-1", "Length"),
        (make_request(IMAGE), "1e3", "Length"),
        (make_request(IMAGE), "9" * 5000, "Length"),
        (make_request(IMAGE), "١", "Length"),
        (make_request(IMAGE), "10", "not JSON"),
        (b"", "0", "empty"),
        (*make_binary_request(6, struct.pack("<I", 2) + b"hi!"), "after the last tensor"),
        (*make_binary_request(7, struct.pack("<I", 2) + b"hi!"), "extra bytes"),
        (*make_binary_request(6, struct.pack("<I", 3) + b"hi"), "exceeds"),
        (*make_binary_request(3, b"abc"), "ends before"),
        (*make_binary_request(9, b"abc"), "3 bytes are left"),
        (*make_binary_request(6, struct.pack("<I", 2**32 - 1) + b"hi"), "exceeds"),
        (
            make_request(PIXELS, outputs=[{"name": "logits", "parameters": {"binary_data_size": 3}}]) + b"xyz",
            None,
            "not JSON",
        ),
    ],
)
def test_an_invalid_request_is_refused(body: bytes, json_length: str | None, message: str):
    with pytest.raises(RequestError) as caught:
        parse_request(body, json_length, Settings())
    assert caught.value.status in (400, 413)
    assert message in caught.value.sentence


KEYS = ["name", "shape", "datatype", "data", "parameters", "inputs", "outputs", "id", "binary_data_size"]
SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8)
JSON = st.recursive(
    SCALARS | st.sampled_from(["image", "pixels", "aGk="]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(KEYS), inner, max_size=5),
)


@settings(max_examples=150, deadline=None)
@given(document=JSON, rest=st.binary(max_size=20), json_length=st.none() | st.integers(-3, 300).map(str))
def test_every_request_is_parsed_or_refused(document: Any, rest: bytes, json_length: str | None):
    body = json.dumps({"inputs": [document]} if not isinstance(document, dict) else document).encode() + rest
    try:
        request = parse_request(body, json_length, Settings())
    except RequestError as error:
        assert error.status in (400, 413)
    else:
        assert request.image_count >= 1


@given(files=st.lists(st.binary(max_size=30), min_size=1, max_size=5))
def test_a_bytes_tensor_survives_a_round_trip(files: list[bytes]):
    tensor = OutputTensor("x", np.array([*files, None], dtype=object)[:-1])
    assert split_bytes(tensor.to_bytes(), len(files)) == files


def test_nested_data_is_flattened_in_order():
    assert list(flatten([[1, [2, []]], 3, [[[4]]]])) == [1, 2, 3, 4]


def test_equal_values_keep_their_order():
    best = format_top_classes(np.array([[1.0, 3.0, 3.0, 2.0]]), tuple("abcd"), 9)
    assert [each.decode().split(":")[1:] for each in best[0]] == [["1", "b"], ["2", "c"], ["3", "d"], ["0", "a"]]
    assert format_top_classes(np.array([[1.0, 2.0]]), (), 1)[0, 0] == b"2.000000:1"


def test_the_classes_of_the_run(clf: vitrail.Classifier):
    assert set(clf.classes) == set(COLORS)
