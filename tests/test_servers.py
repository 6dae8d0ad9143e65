"""Real servers load what a run hands over.

They live in environments of their own, which variables name; without them, these tests are skipped:

    python3 -m venv TRITON && TRITON/bin/pip install -r tests/servers/triton-requirements.txt
    python3 -m venv MLFLOW && MLFLOW/bin/pip install -r tests/servers/mlflow-requirements.txt
    BISE_PRUNE_TRITON_PYTHON=TRITON/bin/python BISE_PRUNE_MLFLOW_PYTHON=MLFLOW/bin/python pytest tests/test_servers.py
"""

import contextlib
import importlib
import json
import os
import shutil
import threading
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from cases import images, network, random_masks
from google.protobuf import text_format
from servers import mlflow_server, triton_server
from tritonclient.grpc import model_config_pb2
from tritonclient.utils import InferenceServerException, np_to_triton_dtype

from bise_prune import export_onnx, fuse_batchnorm, prune
from bise_prune.export.runtime import open_session
from bise_prune.export.triton import write_repository

CLASSES = ["digit", "letter", "any other sign"]
LATEST = ""  # the version of requests that name none
TOLERANCE = 1e-5
needs_triton = pytest.mark.skipif(triton_server.VARIABLE not in os.environ, reason=f"no {triton_server.VARIABLE}")
needs_mlflow = pytest.mark.skipif(mlflow_server.VARIABLE not in os.environ, reason=f"no {mlflow_server.VARIABLE}")
each_protocol = pytest.mark.parametrize("protocol", ["http", "grpc"])


class Repository:
    """A model repository as a run writes it, and what its versions answer in onnxruntime."""

    def __init__(self, folder):
        example = images()
        dense = network("simple_convnet")
        slim = prune(dense, random_masks(dense, example, "paper"), example).model
        files = [folder / "dense.onnx", folder / "slim.onnx"]
        for model, file in zip([dense, slim], files, strict=True):
            export_onnx(fuse_batchnorm(model, example), file, example)
        self.folder = folder / "models"
        self.slim = files[1]
        self.model = write_repository(self.folder, "net", files, CLASSES)
        first, second = (open_session(self.model / version / "model.onnx") for version in "12")
        self.sessions = {"1": first, "2": second, LATEST: second}
        assert np.abs(self.answer("1", example.numpy()) - self.answer("2", example.numpy())).max() > 100 * TOLERANCE

    def answer(self, version, inputs):
        return self.sessions[version].run(None, {"input": inputs})[0]

    def gives(self, version, inputs, answer):
        return answer.shape == (len(inputs), 3) and np.abs(answer - self.answer(version, inputs)).max() <= TOLERANCE


class Client(contextlib.AbstractContextManager):
    """A client of Triton for one thread."""

    def __init__(self, server, protocol):
        self.api = importlib.import_module(f"tritonclient.{protocol}")
        self.client = self.api.InferenceServerClient(getattr(server, protocol))

    def __exit__(self, *_):
        self.client.close()

    def ask(self, inputs, version=LATEST, name="input", class_count=0):
        value = self.api.InferInput(name, inputs.shape, np_to_triton_dtype(inputs.dtype))
        value.set_data_from_numpy(inputs)
        output = self.api.InferRequestedOutput("logits", class_count=class_count)
        return self.client.infer("net", [value], model_version=version, outputs=[output]).as_numpy("logits")


def at_once(work, count):
    """The results of ``work(0)`` ... ``work(count - 1)``, each in a thread of its own."""
    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(work, range(count)))


def post(address, body):
    """Status and JSON that the address answers."""
    request = urllib.request.Request(address, body, {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=20) as response:
            return response.status, json.load(response)
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.load(error)


@pytest.fixture(scope="module")
def repository(tmp_path_factory):
    return Repository(tmp_path_factory.mktemp("repository"))


@pytest.fixture(scope="module")
def triton(repository, tmp_path_factory):
    with triton_server.running(repository.folder, tmp_path_factory.mktemp("triton")) as server:
        yield server


# -- Triton ------------------------------------------------------------------------------------------


@needs_triton
@each_protocol
def test_triton_loads_the_repository(repository, triton, protocol):
    with Client(triton, protocol) as client:
        assert client.client.is_server_ready()
        assert client.client.is_model_ready("net", "1") and client.client.is_model_ready("net", "2")
        assert not client.client.is_model_ready("net", "3")
        assert repository.gives(LATEST, images(64).numpy(), client.ask(images(64).numpy()))


@needs_triton
@each_protocol
@pytest.mark.parametrize("version", ["1", "2", LATEST], ids=["dense", "slim", "latest"])
def test_concurrent_answers_are_those_of_onnxruntime(repository, triton, protocol, version):
    def work(number):
        with Client(triton, protocol) as client:
            asked = [images(1 + (number + turn) % 3, seed=100 * number + turn).numpy() for turn in range(20)]
            return [repository.gives(version, inputs, client.ask(inputs, version)) for inputs in asked]

    assert at_once(work, 6) == [[True] * 20] * 6


@needs_triton
@each_protocol
def test_classes_have_the_names_of_the_data(repository, triton, protocol):
    inputs = images(2).numpy()
    with Client(triton, protocol) as client:
        answers = client.ask(inputs, class_count=2)
    for answer, logits in zip(answers, repository.answer(LATEST, inputs), strict=True):
        found = [text.decode().split(":") for text in answer]  # value:index:name
        best = np.argsort(-logits)[:2]
        assert [(int(index), name) for _, index, name in found] == [(i, CLASSES[i]) for i in best]
        assert [float(value) for value, _, _ in found] == pytest.approx(logits[best], abs=TOLERANCE)


@needs_triton
@each_protocol
def test_requests_are_batched(repository, triton, protocol):
    def counts():
        with Client(triton, "http") as client:
            (found,) = client.client.get_inference_statistics("net", "2")["model_stats"]
        return found["inference_count"], found["execution_count"]

    def work(number):
        with Client(triton, protocol) as client:
            asked = [images(1, seed=1000 * number + turn).numpy() for turn in range(25)]
            return [repository.gives("2", inputs, client.ask(inputs, "2")) for inputs in asked]

    for _ in range(10):  # on a busy machine, requests may come one by one
        inferences, executions = counts()
        assert at_once(work, 8) == [[True] * 25] * 8
        later = counts()
        assert later[0] - inferences == 200
        if later[1] - executions < 200:
            break
    else:
        pytest.fail("no two requests were batched")


@needs_triton
@each_protocol
def test_slim_takes_over_from_dense_under_load(repository, tmp_path, protocol):
    shutil.copytree(repository.folder, tmp_path / "models")
    (tmp_path / "models" / "net" / "2").rename(tmp_path / "slim")
    inputs = images(1).numpy()
    answered, swapped = [threading.Semaphore(0) for _ in range(4)], threading.Event()

    def work(count):
        answers = []
        with Client(server, protocol) as client:
            while not swapped.is_set():
                answers.append(client.ask(inputs))
                count.release()
            return answers, [client.ask(inputs) for _ in range(20)]

    options = ["--model-control-mode=explicit", "--load-model=net"]
    with triton_server.running(tmp_path / "models", tmp_path, *options) as server, ThreadPoolExecutor(4) as pool:
        clients = [pool.submit(work, count) for count in answered]
        try:
            assert all(count.acquire(timeout=20) for count in answered for _ in range(25))
            (tmp_path / "slim").rename(tmp_path / "models" / "net" / "2")
            with Client(server, protocol) as client:
                client.client.load_model("net")
        finally:
            swapped.set()
        for during, after in (client.result() for client in clients):  # raises what a request raised
            slim = [repository.gives("2", inputs, answer) for answer in during]
            dense = [repository.gives("1", inputs, answer) for answer in during]
            assert dense[0] and slim == sorted(slim) and dense == [not answer for answer in slim]
            assert all(repository.gives("2", inputs, answer) for answer in after)


@needs_triton
@each_protocol
@pytest.mark.parametrize(
    ("request_", "complaint"),
    [
        ({"inputs": np.zeros((1, 3, 9, 9), np.float32)}, r"Expected \[-1,3,8,8\], got \[1,3,9,9\]"),
        ({"inputs": np.zeros((3, 8, 8), np.float32)}, r"Expected \[-1,3,8,8\], got \[3,8,8\]"),
        ({"inputs": np.zeros((1, 3, 8, 8))}, "data-type is 'FP64', but model 'net' expects 'FP32'"),
        ({"inputs": np.zeros((1, 3, 8, 8), np.float32), "name": "image"}, "unexpected inference input 'image'"),
        ({"inputs": np.zeros((65, 3, 8, 8), np.float32)}, "batch-size must be <= 64 for 'net'"),
        ({"inputs": np.zeros((1, 3, 8, 8), np.float32), "version": "3"}, "'net' version 3 is not found"),
    ],
    ids=["shape", "no batch", "dtype", "name", "batch size", "version"],
)
def test_a_bad_request_is_refused_and_the_next_one_answered(repository, triton, protocol, request_, complaint):
    with Client(triton, protocol) as client:
        with pytest.raises(InferenceServerException, match=complaint) as caught:
            client.ask(**request_)
        assert caught.value.status() in ("400", "404", "StatusCode.INVALID_ARGUMENT", "StatusCode.NOT_FOUND")
        assert repository.gives(LATEST, images().numpy(), client.ask(images().numpy()))


@needs_triton
@pytest.mark.parametrize(
    ("body", "complaint"),
    [
        (b'{"inputs": [', "failed to parse the request JSON buffer"),
        (b"{}", "Unable to parse 'inputs'"),
        (
            b'{"inputs": [{"name": "input", "shape": [1, 3, 8, 8], "datatype": "FP32", "data": [1, 2]}]}',
            "Unable to parse 'data': Shape does not match true shape of 'data' field",
        ),
    ],
    ids=["no JSON", "no inputs", "too little data"],
)
def test_a_bad_body_is_refused_and_the_next_one_answered(repository, triton, body, complaint):
    address = f"http://{triton.http}/v2/models/net/infer"
    status, answer = post(address, body)
    assert status >= 400 and complaint in answer["error"]  # Triton 2.51 says 500 to all that it cannot parse
    inputs = images(1).numpy()
    tensor = {"name": "input", "shape": inputs.shape, "datatype": "FP32", "data": inputs.ravel().tolist()}
    status, answer = post(address, json.dumps({"inputs": [tensor]}).encode())
    assert status == 200
    assert repository.gives(LATEST, inputs, np.array(answer["outputs"][0]["data"], np.float32).reshape(1, 3))


@needs_triton
@pytest.mark.parametrize("warm_up", [True, False])
def test_the_warm_up_finds_a_promise_that_the_model_does_not_keep(repository, tmp_path, warm_up):
    shutil.copytree(repository.folder, tmp_path / "models")
    file = tmp_path / "models" / "net" / "config.pbtxt"
    config = text_format.Parse(file.read_text(), model_config_pb2.ModelConfig())
    for dims in [config.input[0].dims, *(sample.inputs["input"].dims for sample in config.model_warmup)]:
        dims[:] = [3, 9, 9]
    if not warm_up:
        del config.model_warmup[:]
    file.write_text(text_format.MessageToString(config))
    # The backend's own words: those that Triton 2.51 adds may be missing, as it may crash in taking the instance down.
    complaint = "Got invalid dimensions for input: input .*\n index: 2 Got: 9 Expected: 8"
    with contextlib.ExitStack() as stack:
        if warm_up:
            stack.enter_context(pytest.raises(RuntimeError, match=complaint))
        server = stack.enter_context(triton_server.running(tmp_path / "models", tmp_path))
        client = stack.enter_context(Client(server, "http"))
        assert not warm_up and client.client.is_model_ready("net")


# -- MLflow ------------------------------------------------------------------------------------------


@needs_mlflow
def test_mlflow_serves_the_file(repository, tmp_path):
    with mlflow_server.running(repository.slim, tmp_path) as address:
        for number in (1, 3):
            inputs = images(number, seed=number).numpy()
            for form in (inputs.tolist(), {"input": inputs.tolist()}):
                status, answer = post(address, json.dumps({"inputs": form}).encode())
                assert status == 200
                assert repository.gives("2", inputs, np.array(answer["predictions"]["logits"], np.float32))
        for form in ({"image": inputs.tolist()}, inputs[:, :, 1:].tolist()):
            status, answer = post(address, json.dumps({"inputs": form}).encode())
            assert status == 400 and answer["error_code"] == "INVALID_PARAMETER_VALUE"
        status, answer = post(address, json.dumps({"inputs": inputs.tolist()}).encode())
        assert status == 200
        assert repository.gives("2", inputs, np.array(answer["predictions"]["logits"], np.float32))
