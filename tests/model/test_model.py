"""Each part of the network does something, is trained, and starts where it should."""

from dataclasses import replace

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from flowfuse.data.samples import Sample
from flowfuse.inputs import Modality, ModelInputs
from flowfuse.losses.supervised import LossConfig, single_errors, supervised_loss
from flowfuse.model import CONFIGS, FlowFuse, ModelConfig, encoders, selection
from flowfuse.model.flowfuse import DAMPING, STRIDE
from flowfuse.model.fusion import BoundaryPropagation
from flowfuse.model.normalization import count_slice, scale_of
from flowfuse.ops.extension import LIBRARY
from flowfuse.ops.propagation_weights import shift

TINY = ModelConfig(
    name="tiny", slices=2, bins=2, stem_channels=8, channels=16, hidden=16, token_channels=8,
    boundary_channels=8, degree=2, iterations=2, radius=1, levels=2, dilations=(1, 2),
)  # fmt: skip


def make_inputs(config, batch=1, height=40, width=48, channels=1, seed=0):
    generator = torch.Generator().manual_seed(seed)

    def rand(*shape):
        return torch.rand(batch, *shape, generator=generator)

    return ModelInputs(
        slices=(6 * rand(config.slices + 1, config.bins, height, width) - 3).round(),
        frame0=rand(channels, height, width),
        frame1=rand(channels, height, width),
        event_sum=(6 * rand(1, height, width) - 3).round(),
        exposure=0.5 * rand(2),
        modality_mask=torch.ones(batch, 4),
    )


def make_batch(inputs, times=4):
    batch, *_, height, width = inputs.slices.shape
    generator = torch.Generator().manual_seed(1)
    return Sample(
        *inputs,
        tau=torch.tensor([[0.2, 0.5, 0.8, 1.0]]).repeat(batch, 1),
        flow=4 * torch.randn(batch, times, 2, height, width, generator=generator),
        valid=torch.ones(batch, times, height, width, dtype=torch.bool),
        occluded=torch.zeros(batch, times, height, width, dtype=torch.bool),
        boundary=(torch.rand(batch, 2, height, width, generator=generator) > 0.9).float(),
    )


def make_model(config, seed=0, settle=True):
    """A model; ``settle`` moves its near-zero layers away from zero, as training would."""
    torch.manual_seed(seed)
    model = FlowFuse(config).eval()
    if settle:
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.abs().max() < 0.02:
                    parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def flow(model, inputs, **options):
    with torch.no_grad():
        return model(inputs, **options).control_points


def test_shapes():
    inputs = make_inputs(TINY, batch=2)
    output = make_model(TINY)(inputs)
    assert output.control_points.shape == (2, 2, 2, 40, 48)
    assert output.uncertainty.shape == (2, 2, 40, 48)
    assert output.coarse_points.shape == (3, 2, 2, 2, 5, 6)
    assert output.boundary.shape == (2, 2, 40, 48)
    assert output.event_latent.shape == (2, 3, 16, 5, 6)
    assert output.frame_latent.shape == (2, 2, 16, 5, 6)
    assert make_model(TINY)(inputs, iterations=3).coarse_points.shape[0] == 4


def test_updates_beyond_the_usual_number_are_damped(monkeypatch):
    model, inputs = make_model(TINY), make_inputs(TINY)
    ones = torch.ones(1, 2 * TINY.degree, 5, 6)
    monkeypatch.setattr(model.head, "forward", lambda state: ones)
    points = model(inputs, iterations=5).coarse_points[:, 0, 0, 0, 0, 0] / STRIDE
    expected = torch.tensor([1, 1, DAMPING, DAMPING**2, DAMPING**3])
    torch.testing.assert_close(points.diff(), expected)


@pytest.mark.parametrize(("name", "million", "giga"), [("small", 1.5, 13), ("base", 4.0, 45)])
def test_sizes_stay_in_their_budget(name, million, giga):
    config = replace(CONFIGS[name], correlation="on_demand")
    model = FlowFuse(config)
    assert sum(p.numel() for p in model.parameters()) <= million * 1e6
    # All costs are linear in the number of pixels: a quarter of 640 x 480 is counted and scaled.
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(make_inputs(config, height=240, width=320))
    convolutions = sum(
        count for op, count in counter.get_flop_counts()["Global"].items() if "conv" in str(op)
    )
    window = (2 * config.radius + 2) ** 2 * config.levels
    look_ups = config.iterations * (config.slices + 2) * 60 * 80 * window * config.channels
    assert 4 * convolutions / 2e9 + look_ups / 1e9 <= giga


@pytest.mark.parametrize(
    "change",
    [
        {"frames": False},
        {"events": False},
        {"boundary": False},
        {"common_gradient": False},
        {"fusion": "concatenation"},
        {"frames": False, "boundary": False},
        {"gradient_steps": 0},
        {"selection": False},
        {"frames": False, "selection": False},
    ],
)
def test_every_switch_builds_runs_and_trains(change):
    config = replace(TINY, **change)
    model = make_model(config)
    inputs = make_inputs(config)
    output = model(inputs)
    loss, _ = supervised_loss(output, make_batch(inputs), LossConfig())
    loss.backward()
    assert torch.isfinite(loss)
    assert output.control_points.shape[-2:] == (40, 48)


def switched(model, **change):
    """The same weights under another configuration, as far as it has them."""
    other = FlowFuse(replace(model.config, **change)).eval()
    weights, fitting = model.state_dict(), other.state_dict()
    for name, value in fitting.items():
        common = tuple(map(slice, map(min, value.shape, weights[name].shape)))
        value.zero_()[common] = weights[name][common]
    other.load_state_dict(fitting)
    return other


@pytest.mark.parametrize(
    "change",
    [
        {"frames": False},
        {"events": False},
        {"boundary": False},
        {"common_gradient": False},
        {"fusion": "concatenation"},
        {"gradient_steps": 0},
    ],
)
def test_switching_a_part_off_changes_the_output(change):
    model = make_model(TINY)
    inputs = make_inputs(TINY)
    changed = (flow(model, inputs) - flow(switched(model, **change), inputs)).abs().max()
    assert changed > 1e-4  # far above float32 rounding of values of about one pixel


def test_guided_fusion_is_concatenation_at_step_0():
    guided = make_model(replace(TINY, fusion="guided"), settle=False)
    plain = switched(guided, fusion="concatenation")
    inputs = make_inputs(TINY)
    assert torch.equal(flow(guided, inputs), flow(plain, inputs))
    # and what makes them equal is exactly the zero start of the gates and of the propagation
    with torch.no_grad():
        guided.gates.gate.bias += 1
    assert not torch.equal(flow(guided, inputs), flow(plain, inputs))


def test_gradients_reach_every_parameter():
    model = make_model(TINY).train()
    inputs = make_inputs(TINY, batch=2)
    batch = make_batch(inputs)
    single = single_errors(model, batch)
    loss, _ = supervised_loss(model(inputs), batch, LossConfig(), single)
    loss.backward()
    dead = [
        name
        for name, parameter in model.named_parameters()
        if parameter.grad is None or parameter.grad.abs().max() == 0
    ]
    assert dead == []


def test_flow_loss_alone_reaches_the_boundary_localizer():
    model = make_model(TINY).train()
    model(make_inputs(TINY)).control_points.square().mean().backward()
    assert model.localizer.logits.weight.grad.abs().max() > 0


@pytest.mark.parametrize(
    ("index", "fields"), [(0, ("frame0", "frame1")), (1, ("slices", "event_sum"))]
)
def test_an_absent_modality_has_no_influence(index, fields):
    model = make_model(TINY)
    inputs = make_inputs(TINY)
    present = torch.ones(1, 4)
    present[:, index] = 0
    inputs = inputs._replace(modality_mask=present)
    other = inputs._replace(**{name: torch.rand_like(getattr(inputs, name)) for name in fields})
    assert torch.equal(flow(model, inputs), flow(model, other))


def test_missing_history_silences_the_first_slice_only():
    model = make_model(TINY)
    inputs = make_inputs(TINY)._replace(modality_mask=torch.tensor([[1.0, 1.0, 0.0, 1.0]]))
    slices = inputs.slices.clone()
    slices[:, 0] = 1
    assert torch.equal(flow(model, inputs), flow(model, inputs._replace(slices=slices)))
    slices[:, 1] = 1
    assert not torch.equal(flow(model, inputs), flow(model, inputs._replace(slices=slices)))


@pytest.mark.parametrize(("height", "width"), [(16, 16), (17, 23), (41, 50), (180, 16)])
def test_any_size(height, width):
    result = flow(make_model(TINY), make_inputs(TINY, height=height, width=width))
    assert result.shape[-2:] == (height, width)
    assert torch.isfinite(result).all()


def test_gray_and_rgb_of_the_same_luma_agree():
    model = make_model(TINY)
    inputs = make_inputs(TINY)
    rgb = inputs._replace(
        frame0=inputs.frame0.expand(-1, 3, -1, -1), frame1=inputs.frame1.expand(-1, 3, -1, -1)
    )
    # 1e-4: the luma weights sum to one up to a rounding, and correlations amplify it
    torch.testing.assert_close(flow(model, inputs), flow(model, rgb), atol=1e-4, rtol=1e-3)


def test_items_of_a_batch_do_not_mix():
    model = make_model(TINY)
    inputs = make_inputs(TINY, batch=2)
    first = ModelInputs(*(value[:1] for value in inputs))
    # 1e-4: convolutions may sum in another order for another batch size
    torch.testing.assert_close(flow(model, inputs)[:1], flow(model, first), atol=1e-4, rtol=1e-4)


def test_strategies_agree():
    model = make_model(replace(TINY, correlation="volume"))
    inputs = make_inputs(TINY)
    other = switched(model, correlation="on_demand")
    # 1e-4: two orders of summation, through two iterations
    torch.testing.assert_close(flow(model, inputs), flow(other, inputs), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("batch", [1, 2])
def test_parts_in_turn_and_all_at_once_agree(batch, monkeypatch):
    model = make_model(TINY)
    inputs = make_inputs(TINY, batch=batch)
    torch.nn.init.normal_(model.refinement.correction.change.weight)

    def run():
        with torch.no_grad():
            output = model(inputs)
        return output.control_points, output.boundary

    in_turn = run()
    monkeypatch.setattr(encoders, "SCARCE", frozenset())  # as on a GPU
    with torch.no_grad():
        assert not selection.little_memory(in_turn[0])
    # 1e-4: convolutions may sum in another order for another batch size
    torch.testing.assert_close(run(), in_turn, atol=1e-4, rtol=1e-4)


def test_autocast_runs_and_stays_close():
    model = make_model(TINY)
    inputs = make_inputs(TINY)
    exact = flow(model, inputs)
    with torch.autocast("cpu", torch.bfloat16):
        rough = flow(model, inputs)
    assert rough.dtype == torch.float32
    # bfloat16 keeps 8 bits; 5 % of the range covers a few layers of such roundings
    assert (rough - exact).abs().mean() < 0.05 * exact.abs().max()


@pytest.mark.parametrize("trained", [False, True])
def test_autocast_of_a_gpu_runs(trained, monkeypatch):
    """There, norms give float32, which stands beside half-precision features."""
    norm = torch.nn.functional.group_norm

    def in_float32(values, groups, weight=None, bias=None, eps=1e-5):
        return norm(values.float(), groups, weight, bias, eps)

    monkeypatch.setattr(torch.nn.functional, "group_norm", in_float32)
    model, inputs = make_model(TINY), make_inputs(TINY)
    with torch.set_grad_enabled(trained), torch.autocast("cpu", torch.bfloat16):
        output = model(inputs)
    assert output.control_points.dtype == torch.float32
    if trained:
        output.control_points.sum().backward()
        assert model.update.gates.weight.grad.isfinite().all()


def test_inputs_are_not_modified():
    inputs = make_inputs(TINY)
    copies = [value.clone() for value in inputs]
    flow(make_model(TINY), inputs)
    assert all(torch.equal(a, b) for a, b in zip(inputs, copies, strict=True))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"slices": torch.zeros(1, 4, 2, 40, 48)}, r"slices must have shape \[B, 3, 2, H, W\]"),
        ({"frame0": torch.zeros(1, 2, 40, 48)}, r"frame0 must have shape \[1, 1 or 3, 40, 48\]"),
        ({"event_sum": torch.zeros(1, 1, 40, 40)}, "event_sum must have shape"),
        ({"slices": torch.zeros(1, 3, 2, 8, 48)}, "at least 16 x 16 px, got 48 x 8"),
    ],
)
def test_wrong_shapes_are_named(change, message):
    with pytest.raises(ValueError, match=message):
        make_model(TINY)(make_inputs(TINY)._replace(**change))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"slices": 0}, "slices must be at least 1, got 0"),
        ({"frames": False, "events": False}, "both switched off"),
        ({"fusion": "sum"}, "fusion must be one of"),
        ({"dilations": (1, 3)}, "dilations must be 1, 2, 4"),
        ({"gradient_steps": -1}, "gradient_steps must be at least 0, got -1"),
    ],
)
def test_wrong_configurations_are_named(change, message):
    with pytest.raises(ValueError, match=message):
        replace(TINY, **change)


def test_shift_by_hand():
    image = torch.arange(6.0).view(1, 1, 2, 3)
    assert shift(image, 1, 1).flatten().tolist() == [4, 5, 0, 0, 0, 0]
    assert shift(image, 0, -1).flatten().tolist() == [0, 0, 1, 0, 3, 4]


def make_propagation():
    """A propagation by boundaries alone that adds what it carries unchanged."""
    propagation = BoundaryPropagation(4, 2, (1, 2, 4))
    with torch.no_grad():
        propagation.query_key.weight.zero_()
        propagation.query_key.bias.zero_()
        # e^2 = 7 for a key at an edge, e^4 = 55 against crossing: as good as hard
        propagation.log_strength.copy_(torch.tensor([[2.0, 4.0]]).expand(3, 2))
        propagation.value.weight.copy_(torch.tensor([[1.0, 0.0]]).view(1, 2, 1, 1))
        propagation.value.bias.zero_()
        propagation.output.weight.fill_(1.0)
    return propagation


def test_propagation_reaches_interiors_and_stops_at_motion_boundaries():
    propagation = make_propagation()
    boundary = torch.zeros(1, 2, 16, 16)
    boundary[:, 0, :, 2] = 1  # moving edge in column 2
    boundary[:, 1, :, 5] = 1  # motion discontinuity in column 5
    motion = torch.zeros(1, 2, 16, 16)
    motion[..., 2] = 1  # known at the edge only
    weights = propagation.weights(torch.zeros(1, 4, 16, 16), boundary)
    torch.testing.assert_close(weights.sum(2), torch.ones(1, 3, 16, 16))
    with torch.no_grad():
        arrived = (propagation(motion, weights) - motion)[0, 0]
    assert arrived[:, 1].min() > 0.9 and arrived[:, 3].min() > 0.9  # beside the edge
    assert arrived[:, 6:].max() < 0.05  # beyond the discontinuity
    without_stop = boundary.clone()
    without_stop[:, 1] = 0
    weights = propagation.weights(torch.zeros(1, 4, 16, 16), without_stop)
    with torch.no_grad():
        assert (propagation(motion, weights) - motion)[0, 0, :, 6].min() > 0.2


def test_propagation_does_not_jump_over_a_thin_boundary():
    # The step of dilation 4 passes column 5 without touching it with either end.
    propagation = make_propagation()
    boundary = torch.zeros(1, 2, 1, 16)
    boundary[0, 1, 0, 5] = 1
    weights = propagation.weights(torch.zeros(1, 4, 1, 16), boundary)
    left = 3  # index of the direction (0, -1)
    assert weights[0, 2, left, 0, 7] < 1e-3 < weights[0, 2, left, 0, 12]


@pytest.mark.slow
@pytest.mark.skipif(LIBRARY is None, reason="torch.compile needs the compiled operators")
def test_compile_takes_the_model_whole():
    model = make_model(TINY)
    inputs = make_inputs(TINY)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    with torch.no_grad():
        result = compiled(inputs).control_points
    # 1e-4: decompositions round differently
    torch.testing.assert_close(result, flow(model, inputs), atol=1e-4, rtol=1e-4)


def test_slices_that_are_encoded_apart_give_the_same_bits():
    """Slices of one scale, and absent frames, whoever encodes them."""
    for frames in (2, 1, 0):
        inputs = make_inputs(TINY, height=41, width=50, seed=3)
        inputs.modality_mask[:, Modality.FRAMES] = float(frames > 0)
        inputs.modality_mask[:, Modality.SECOND_FRAME] = float(frames > 1)
        model = make_model(TINY)
        with torch.inference_mode():
            expected = model(inputs)
            voxels = [inputs.slices[:, k] for k in range(TINY.slices + 1)]
            scale = scale_of([count_slice(one) for one in voxels])
            slices = [model.encode_slice(one, scale) for one in voxels]
            known = [model.encode_frame(image) for image in (inputs.frame0, inputs.frame1)]
            absent = model.absent_frame(1, 41, 50)
            first, second = [*known[:frames], absent, absent][:2]
            unread = inputs._replace(slices=torch.full((), torch.nan).expand(inputs.slices.shape))
            found = model(unread, encoded_frames=(first, second), encoded_slices=slices)
        for name, value in found._asdict().items():
            assert torch.equal(value, getattr(expected, name)), (frames, name)


def test_encoded_slices_must_fit():
    model = make_model(TINY)
    inputs = make_inputs(TINY)
    scale = scale_of([count_slice(inputs.slices[:, 0])])
    one = model.encode_slice(inputs.slices[:, 0], scale)
    with pytest.raises(ValueError, match=r"encoded_slices must be those of 3 slices.*got 2"):
        model(inputs, encoded_slices=[one, one])
    blind = make_model(replace(TINY, events=False, fusion="guided"))
    with pytest.raises(ValueError, match="uses no events, so no slice can be encoded"):
        blind.encode_slice(inputs.slices[:, 0], scale)


@pytest.mark.parametrize("fusion", ["evidence", "guided"])
def test_a_complete_start_needs_no_first_estimate(fusion):
    config = replace(TINY, fusion=fusion)
    model, inputs = make_model(config), make_inputs(config, height=41, width=50)
    start = torch.randn(1, 2, 41, 50, generator=torch.Generator().manual_seed(5))
    calls = []
    model.init_head.register_forward_hook(lambda *_: calls.append(1))
    with torch.inference_mode():
        expected = model(inputs, flow_init=start)
        assert calls == [1]
        found = model(inputs, flow_init=start, flow_init_complete=True)
        assert calls == [1]
    for name, value in found._asdict().items():
        assert torch.equal(value, getattr(expected, name)), name
