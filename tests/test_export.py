"""Exported files give the network's numbers, and say what they are."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch

from flowfuse import export
from flowfuse.cli.export import main
from flowfuse.export import ExportSpec, sample_inputs, write_onnx, write_program
from flowfuse.inputs import Modality, ModelInputs
from flowfuse.model import FlowFuse, ModelConfig
from flowfuse.model.checkpoint import save_checkpoint

CONFIG = ModelConfig(
    name="tiny", slices=1, bins=1, stem_channels=8, channels=8, hidden=8, token_channels=8,
    boundary_channels=8, iterations=1, radius=1, levels=1, dilations=(1,), degree=2,
    gradient_steps=1,
)  # fmt: skip
SPEC = ExportSpec(height=24, width=40, iterations=1)


@pytest.fixture(scope="module")
def model() -> FlowFuse:
    torch.manual_seed(0)
    model = FlowFuse(CONFIG).eval()
    with torch.no_grad():
        for parameter in model.parameters():  # no zero output
            parameter += 0.02 * torch.randn_like(parameter)
    return model


def changed(inputs: ModelInputs) -> ModelInputs:
    """Other values than those that were traced: no frames."""
    mask = inputs.modality_mask.clone()
    mask[:, Modality.FRAMES] = mask[:, Modality.SECOND_FRAME] = 0
    return inputs._replace(modality_mask=mask, slices=inputs.slices.flip(-1))


@pytest.mark.slow
def test_a_program_loads_and_gives_the_same(model, tmp_path):
    path = tmp_path / "model.pt2"
    spec = ExportSpec(height=24, width=40, batch=2, iterations=1, channels=3)
    assert write_program(path, model.train(), spec, {"checkpoint": "tiny"}) == 0
    assert model.training, "the caller's network stays as it is"
    model.eval()
    assert [p.name for p in tmp_path.iterdir()] == ["model.pt2"]
    files = {"flowfuse.json": ""}
    program = torch.export.load(path, extra_files=files).module()
    facts = json.loads(files["flowfuse.json"])
    assert (facts["width"], facts["batch"], facts["weights"]) == (40, 2, {"checkpoint": "tiny"})
    inputs = changed(sample_inputs(model, spec, batch=2))
    assert inputs.frame0.shape == (2, 3, 24, 40)
    with torch.no_grad():
        expected = model(inputs, iterations=1)
        found = program(*inputs)
    assert torch.equal(found[0], expected.control_points)
    assert torch.equal(found[2], torch.sigmoid(expected.boundary))
    with pytest.raises(AssertionError, match=r"slices.size\(\)\[4\] == 40"):
        program(*(value[..., :16] if value.dim() > 3 else value for value in inputs))


@pytest.mark.slow
def test_onnx_gives_the_same_by_standard_operators(model, tmp_path):
    onnx, onnxruntime = (pytest.importorskip(name) for name in ("onnx", "onnxruntime"))
    path = tmp_path / "model.onnx"
    assert write_onnx(path, model, SPEC, {"checkpoint": "tiny"}) < export.TOLERANCE
    assert [p.name for p in tmp_path.iterdir()] == ["model.onnx"]
    content = onnx.load(path)
    assert {node.domain for node in content.graph.node} == {""} and not content.functions
    assert next(o.version for o in content.opset_import if not o.domain) >= 18
    assert str(export.__file__).encode() not in path.read_bytes()  # no path of this machine
    facts = {entry.key: json.loads(entry.value) for entry in content.metadata_props}
    assert facts["flowfuse.height"] == 24 and facts["flowfuse.model"] == "tiny"
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    inputs = changed(sample_inputs(model, SPEC))
    feed = {name: value.numpy() for name, value in inputs._asdict().items()}
    names = [entry.name for entry in session.get_outputs()]
    assert names == list(export.OUTPUTS)
    found = session.run(None, {entry.name: feed[entry.name] for entry in session.get_inputs()})
    with torch.no_grad():
        expected = export.ExportedFlow(model, 1)(*inputs)
    for name, one, other in zip(names, found, expected, strict=True):
        assert np.abs(one - other.numpy()).max() < 1e-3, name


@pytest.mark.slow
def test_onnx_takes_any_batch(tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    path = tmp_path / "model.onnx"
    torch.manual_seed(0)
    # A small graph: converting it is what takes long.
    plain = replace(CONFIG, boundary=False, fusion="concatenation", gradient_steps=0)
    model = FlowFuse(plain).eval()
    spec = replace(SPEC, batch=None)
    assert write_onnx(path, model, spec, {}) < export.TOLERANCE  # of 1 and of 3 items
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    assert session.get_modelmeta().custom_metadata_map["flowfuse.batch"] == '"dynamic"'
    feed = {n: v.numpy() for n, v in sample_inputs(model, spec, batch=2)._asdict().items()}
    wanted = {entry.name: feed[entry.name] for entry in session.get_inputs()}
    (points,) = session.run(["control_points"], wanted)
    assert points.shape == (2, 2, 2, 24, 40)
    assert np.abs(points[0] - points[1]).max() < 1e-3


@pytest.mark.parametrize("batch", [1, None])
def test_what_would_differ_is_not_written(model, tmp_path, batch):
    spec = ExportSpec(height=16, width=16, iterations=1, batch=batch)
    network = export._prepare(model, spec)
    asked = []

    def exported(*inputs, error):
        asked.append(len(inputs[0]))
        return [value + error for value in network(*inputs)]

    for error in (0.002, np.nan):
        with pytest.raises(ValueError, match=r"m\.onnx: not written, its control points differ"):
            export._compare(tmp_path / "m.onnx", partial(exported, error=error), network, spec)
    asked.clear()
    assert export._compare(tmp_path / "m.onnx", partial(exported, error=0), network, spec) == 0
    assert asked == ([1] if batch else [1, 3])


def test_elimination_solves():
    torch.manual_seed(0)
    roots = torch.randn(5, 7, 3, 3, dtype=torch.float64)
    matrix = roots @ roots.mT + 0.1 * torch.eye(3)
    right = torch.randn(5, 7, 3, 2, dtype=torch.float64)
    torch.testing.assert_close(export._solve(matrix, right)[0], torch.linalg.solve(matrix, right))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"height": 8}, "height must be in [16, 8192], got 8"),
        ({"width": 9000}, "width must be in [16, 8192], got 9000"),
        ({"batch": 0}, "batch must be in [1, 256], got 0"),
        ({"iterations": 101}, "iterations must be in [1, 100], got 101"),
        ({"channels": 2}, "channels must be 1 (gray frames) or 3 (RGB), got 2"),
    ],
)
def test_what_cannot_be_is_refused(wrong, message):
    with pytest.raises(ValueError, match=re.escape(f"export: {message}")):
        ExportSpec(**{"height": 40, "width": 40, **wrong})


def test_the_command_tells_what_is_wrong(model, tmp_path, capsys, monkeypatch):
    weights = tmp_path / "tiny.safetensors"
    save_checkpoint(weights, model)
    for output, code, message in (
        ("model.so", 2, "-o must end in .pt2 or .onnx"),
        ("model", 2, "-o must end in .pt2 or .onnx"),
        ("none/model.pt2", 1, "is not an existing directory"),
    ):
        assert main([str(weights), "-o", str(tmp_path / output)]) == code
        assert message in capsys.readouterr().err
    assert main([str(weights), "-o", str(tmp_path / "m.onnx"), "--compile"]) == 2
    assert "--compile makes a package that ends in .pt2" in capsys.readouterr().err
    assert main([str(weights), "-o", str(tmp_path / "m.pt2"), "--batch", "any"]) == 2
    assert "at least 1, got 'any', or 'dynamic'" in capsys.readouterr().err
    small = ["--height", "8", "--width", "40"]
    assert main([str(weights), "-o", str(tmp_path / "m.pt2"), *small]) == 1
    assert "height must be in [16, 8192], got 8" in capsys.readouterr().err
    assert main([str(tmp_path / "absent"), "-o", str(tmp_path / "m.pt2")]) == 1
    assert main(["--help"]) == 0
    monkeypatch.setitem(__import__("sys").modules, "onnxscript", None)
    assert main([str(weights), "-o", str(tmp_path / "m.onnx"), "--height", "16"]) == 1
    assert 'pip install "flowfuse[onnx]"' in capsys.readouterr().err
    monkeypatch.setattr(export, "LIBRARY", None)
    assert main([str(weights), "-o", str(tmp_path / "m.pt2"), "--height", "16"]) == 1
    assert "export needs the compiled operators of flowfuse" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["tiny.safetensors"]
