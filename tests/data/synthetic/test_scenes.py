from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from thread_cases import using_threads

from flowfuse.data.samples import Sample
from flowfuse.data.synthetic.camera import CameraConfig, expose, exposure_weights
from flowfuse.data.synthetic.dataset import SceneDataset, scene_sample
from flowfuse.data.synthetic.layers import Plane, render
from flowfuse.data.synthetic.motion import Camera, Curve, LayerMotion, WorldPlaneMotion, transfer
from flowfuse.data.synthetic.rendering import Clock, capture, plan_instants
from flowfuse.data.synthetic.scenes import PRESETS, Scene, generate_scene
from flowfuse.data.synthetic.simulator import EventSensor, SensorConfig
from flowfuse.data.synthetic.textures import PATTERNS, list_images, make_shape, make_texture
from flowfuse.events import Events
from flowfuse.geometry.grid import warp
from flowfuse.inputs import InputSpec

H, W = 48, 64
FAMILIES = {"layers": 0.0, "world": 1.0}


def straight(*rate: float) -> Curve:
    return Curve(np.array(rate), np.zeros((1, len(rate))), np.ones(1), np.zeros(1))


def two_planes(velocity: float = 6.0) -> list[Plane]:
    """A still background and a square, columns 20 .. 29 and rows 10 .. 19, that moves right."""
    rng = np.random.default_rng(0)
    still = LayerMotion(straight(0, 0, 0, 0), np.zeros(2), np.zeros(2))
    moving = LayerMotion(straight(velocity, 0, 0, 0), np.array((15.0, 5.0)), np.zeros(2))
    ground = make_texture(rng, 64, 64, contrast=2.0, brightness=0.3)
    square = make_texture(rng, 20, 20, contrast=2.0, brightness=0.3)
    mask = np.zeros((20, 20), dtype=np.float32)
    mask[5:15, 5:15] = 1
    return [Plane(ground, still), Plane(square, moving, mask=mask)]


def scene_of(planes: list[Plane], sensor: SensorConfig | None = None) -> Scene:
    frames = np.zeros((2, H, W), dtype=np.uint8)
    times = np.array((1000, 2000))
    sensor = sensor or SensorConfig.noiseless()
    return Scene(H, W, Events.empty(H, W), times, frames, np.array((9, 9)), planes, sensor)


def sharp(preset: str, family: str):
    """The preset with short exposures and a nearly noiseless frame camera."""
    return replace(
        PRESETS[preset],
        world_share=FAMILIES[family],
        exposure=(0.001, 0.001),
        read_noise=(1e-6, 1e-6),
        full_well=(1e9, 1e9),
        flicker_share=0.0,
    )


def test_flow_and_occlusion_of_two_planes_by_hand():
    scene = scene_of(two_planes())
    flow, valid, occluded = scene.ground_truth(1.0)
    expected = np.zeros((2, H, W))
    expected[0, 10:20, 20:30] = 6
    np.testing.assert_allclose(flow.numpy(), expected, atol=1e-5)  # float32
    # The square covers the columns 26 .. 35 at t1: 26 .. 29 are its own now, 30 .. 35 background.
    hidden = np.zeros((H, W), dtype=bool)
    hidden[10:20, 30:36] = True
    np.testing.assert_array_equal(occluded.numpy(), hidden)
    assert valid.all()
    np.testing.assert_allclose(scene.flow_at(0.5).numpy(), expected / 2, atol=1e-5)
    np.testing.assert_allclose(scene.flow(1500, 2000)[0, 12, 24:26].numpy(), 3, atol=1e-5)


def test_what_leaves_the_image_is_occluded():
    planes = two_planes()[:1]
    planes[0].motion = LayerMotion(straight(2.5, 0, 0, 0), np.zeros(2), np.zeros(2))
    occluded = scene_of(planes).occluded(1.0)
    # Column 60 goes to 62.5, column 61 to 63.5: beyond the last pixel centre, 63.
    assert not occluded[:, :61].any() and occluded[:, 61:].all()


def test_motion_boundary_band():
    band = scene_of(two_planes()).boundary()[1].bool().numpy()
    # The border runs half-way between the square's outermost pixels (rows 10 .. 19, columns
    # 20 .. 29) and their neighbours: two pixels to each side are within 1.5 px of it. The outer
    # corners are further away.
    expected = np.zeros((H, W), dtype=bool)
    expected[8:22, 18:32] = True
    expected[12:18, 22:28] = False
    expected[np.ix_((8, 21), (18, 31))] = False
    np.testing.assert_array_equal(band, expected)
    # Motion that differs by less than 1 px is no boundary.
    assert not scene_of(two_planes(0.9)).boundary()[1].any()


def test_moving_edge_is_where_an_event_is_likely():
    # log radiance = 0.1 x, moving right by 4 px an interval: in the window (a quarter of it) |u| is
    # 1 px, so the log changes by 0.1: more than half of a threshold of 0.19, not of 0.21.
    radiance = np.exp(0.1 * np.arange(256)) * np.ones((256, 1))
    motion = LayerMotion(straight(4.0, 0, 0, 0), np.zeros(2), np.array((100.0, 100.0)))
    planes = [Plane(radiance.astype(np.float32), motion)]
    for threshold, edge in ((0.19, True), (0.21, False)):
        sensor = SensorConfig.noiseless(threshold, log_offset=1e-6)
        inner = scene_of(planes, sensor).boundary()[0, 2:-2, 2:-2]
        assert (inner == edge).all()


def test_camera_motion_by_hand():
    centre = np.array((30.0, 20.0))

    def image(rate: tuple[float, ...], point: tuple[float, float, float]) -> np.ndarray:
        camera = Camera(straight(*rate), 100.0, centre)
        plane = WorldPlaneMotion(
            camera, np.array((0, 0, point[2])), np.array((1.0, 0, 0)), np.array((0, 1.0, 0))
        )
        return transfer(plane.homographies(np.array((1.0,)))[0], np.array((point[:2],)))[0][0]

    # f X / Z = 100 * 1 / 5 = 20 px from the centre; the camera moves right by 0.5: 10 px less.
    np.testing.assert_allclose(image((0, 0, 0, 0, 0, 0), (1, 0, 5)), (50, 20))
    np.testing.assert_allclose(image((0, 0, 0, 0.5, 0, 0), (1, 0, 5)), (40, 20))
    # Forward by 1: depth 4.
    np.testing.assert_allclose(image((0, 0, 0, 0, 0, 1), (1, 0, 5)), (55, 20))
    # Turning to the right by 0.1 rad (about +y, which points down): the centre goes left.
    np.testing.assert_allclose(image((0, 0.1, 0, 0, 0, 0), (0, 0, 5)), (30 - 100 * np.tan(0.1), 20))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("preset", ["slow", "fast"])
def test_true_flow_warps_frame_1_onto_frame_0(preset, family):
    for seed in (1, 2):
        scene = generate_scene(seed, replace(sharp(preset, family), contrast=(0.3, 0.8)), 96, 128)
        flow, valid, occluded = scene.ground_truth(1.0)
        first, second = torch.from_numpy(scene.frames).float()[:, None] / 255
        warped = warp(second[None], flow[None])[0, 0]
        # Away from borders of planes, where a pixel is a mixture of two.
        clear = valid & ~occluded & (scene.boundary()[1] == 0)
        gain = first[0][clear].mean() / warped[clear].mean()  # auto exposure between the frames
        error = (warped * gain - first[0]).abs()[clear].mean()
        still = (second[0] * gain - first[0]).abs()[clear].mean()
        # Two bilinear interpolations of textures that turn and zoom: some grey levels of 255.
        assert error < 0.02
        assert error < 0.5 * still


@pytest.mark.parametrize("family", FAMILIES)
def test_flow_there_and_back(family):
    scene = generate_scene(5, sharp("fast", family), 96, 128)
    there, _, occluded = scene.ground_truth(1.0)
    back = scene.ground_truth(0.0, start=1.0)[0]
    returned = there + warp(back[None], there[None])[0]
    # Bilinear interpolation of the backward flow is off at borders only.
    assert returned.norm(dim=0)[~occluded].quantile(0.8) < 0.1


@pytest.mark.parametrize("family", FAMILIES)
def test_noiseless_events_add_up_to_the_change_of_the_picture(family):
    scene = generate_scene(3, sharp("fast", family), H, W)
    clock = Clock(30_000, 60_000, np.array((600, 600)))
    instants = plan_instants(scene.planes, H, W, clock, 1.0, None)
    sensor = EventSensor(H, W, SensorConfig.noiseless(0.15), 0)
    events, signals = capture(scene.planes, instants, clock, None, sensor)
    pictures = render(scene.planes, clock.tau(instants[[0, -1]]), H, W).numpy()
    total = np.zeros((H, W))
    np.add.at(total, (events.y, events.x), np.where(events.p, 0.15, -0.15))
    change = np.diff(np.log(pictures + sensor.config.log_offset), axis=0)[0]
    # One threshold is left over at either end, and float32 sums.
    assert np.abs(total - change).max() < 0.3 + 1e-4
    # A short exposure is the picture at its middle; it moves by up to 0.6 px meanwhile.
    middle = render(scene.planes, np.zeros(1), H, W)[0].numpy()
    assert np.abs(signals[0] - middle).mean() < 0.05 * middle.mean()


def test_exposure_weights_integrate_a_line():
    times = np.array((0, 10, 15, 40, 41))
    weights = exposure_weights(times, 12, 30)
    assert weights.sum() == pytest.approx(1)
    # The mean of a line over [12, 30] is its value at 21.
    assert weights @ (3.0 * times + 2) == pytest.approx(65)
    # A kink at 15, inside: (1.5 * 3 + 7.5 * 15) / 18 for max(t - 15, 0) at the rendered instants.
    assert weights @ np.maximum(times - 15.0, 0) == pytest.approx(7.5 * 15 / 18)


def test_frame_camera():
    signal = np.broadcast_to(np.array((0.0, 0.2140, 1.0, 7.0))[:, None, None], (4, 60, 60))
    clean = expose(signal, CameraConfig(0.0, 1e12), np.random.default_rng(0))
    # 0.2140 is the linear value of code 127.5 (sRGB); above full scale it clips.
    assert clean[0].max() == 0 and set(np.unique(clean[1])) <= {127, 128}
    assert (clean[2:] == 255).all()
    noisy = expose(signal, CameraConfig(0.0, 400.0), np.random.default_rng(0))
    # sqrt(0.214 / 400) = 0.0231 linear; the curve's slope there is 0.99: 5.9 codes; 3600 samples.
    assert noisy[1].std() == pytest.approx(5.9, rel=0.1)


def test_instants_bound_the_motion():
    for family in FAMILIES:
        scene = generate_scene(7, sharp("fast", family), H, W)
        clock = Clock(30_000, 60_000, np.array((20_000, 20_000)))
        for step in (1.0, 0.5):
            instants = plan_instants(scene.planes, H, W, clock, step, None)
            assert set(clock.exposure_bounds.ravel()) <= set(instants.tolist())
            tau = clock.tau(instants)
            points = np.array(((0, 0), (W - 1, 0), (0, H - 1), (W - 1, H - 1), (W / 2, H / 2)))
            matrices = scene.planes[0].motion.homographies(tau)
            texels, _ = transfer(np.linalg.inv(matrices[:-1]), points)
            motion = np.linalg.norm(transfer(matrices[1:], texels)[0] - points, axis=-1)
            # The speed is looked up at 64 times per interval: some percent of error.
            assert motion.max() <= 1.1 * step


IMPERFECT = replace(PRESETS["slow"], misaligned_share=1.0, readout_share=1.0)


@pytest.mark.parametrize("preset", [*PRESETS, IMPERFECT])
def test_same_seed_same_bytes(preset):
    def content(seed: int, threads: int) -> bytes:
        with using_threads(threads):
            scene = generate_scene(seed, preset, H, W)
        events = scene.events
        arrays = (scene.frames, scene.frame_times, scene.exposures, events.x, events.y, events.t)
        ground_truth = (scene.flow_at(0.3).numpy(), scene.boundary().numpy())
        return b"".join(a.tobytes() for a in (*arrays, events.p, *ground_truth))

    assert content(11, 1) == content(11, 2)
    assert content(11, 1) != content(12, 1)


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("family", FAMILIES)
def test_scenes_are_sound(preset, family):
    config = replace(PRESETS[preset], world_share=FAMILIES[family])
    scene = generate_scene(4, config, H, W, frames=3)
    interval = scene.t1 - scene.t0
    assert scene.frames.shape == (3, H, W) and scene.frames.dtype == np.uint8
    assert (np.diff(scene.frame_times) == interval).all()
    assert scene.frames.std() > 1
    assert scene.events.t[0] <= scene.t0 - 0.3 * interval  # history is there
    assert scene.events.t[-1] <= scene.frame_times[-1] + scene.exposures[-1] / 2 + 2
    flow, valid, occluded = scene.ground_truth(1.0)
    assert torch.isfinite(flow).all() and valid.float().mean() > 0.95
    assert occluded.float().mean() < 0.95


def test_displacements_follow_the_preset():
    def medians(preset: str) -> np.ndarray:
        scenes = [generate_scene(seed, preset, H, 2 * W) for seed in range(12)]
        return np.array([scene.flow_at(1.0).norm(dim=0).median() for scene in scenes])

    slow, fast = medians("slow"), medians("fast")
    # Path lengths of 0.5 .. 8 and 8 .. 38 px (0.3 of the width, at times 0.5); turning and zoom add
    # to them, curved paths end nearer.
    assert slow.max() < 12 and np.median(slow) < 5
    assert fast.max() < 90 and np.median(fast) > 8


def test_bad_configurations_are_named():
    with pytest.raises(ValueError, match=r"readout_share must be within \[0, 1\], got 30"):
        replace(PRESETS["fast"], readout_share=30)
    with pytest.raises(ValueError, match="displacement_cap must be positive or None, got 0"):
        replace(PRESETS["fast"], displacement_cap=0.0)


def velocity_change(scene: Scene) -> float:
    """Relative change of the mean velocity of the background from exposure 0 to exposure 1."""
    motion = scene.planes[0].motion
    curve = motion.camera.curve if isinstance(motion, WorldPlaneMotion) else motion.curve
    interval = scene.t1 - scene.t0
    means = []
    for frame in (0, 1):
        half = scene.exposures[frame] / interval / 2
        begin, end = curve(np.array((frame - half, frame + half)))
        means.append(np.linalg.norm(end - begin) / half)
    return 1 - min(means) / max(means)


def test_blur_has_uneven_velocity_or_exposure():
    kinds = set()
    for seed in range(16):
        scene = generate_scene(seed, "blur", H, W)
        longest, shortest = scene.exposures.max(), scene.exposures.min()
        uneven = longest >= 2 * shortest
        assert uneven or velocity_change(scene) >= 0.5
        assert longest >= 0.49 * (scene.t1 - scene.t0)
        kinds.add(uneven)
    assert kinds == {True, False}


@pytest.mark.parametrize("family", FAMILIES)
def test_mixed_has_clipped_and_eventless_parts(family):
    config = replace(PRESETS["mixed"], world_share=FAMILIES[family])
    clipped, quiet = [], []
    for seed in range(6):
        scene = generate_scene(seed, config, 64, 96)
        clipped.append(np.isin(scene.frames[0], (0, 1, 2, 255)).mean())
        window = scene.events.slice_time(scene.t0, scene.t1)
        counts = np.zeros((64, 96))
        np.add.at(counts, (window.y, window.x), 1)
        quiet.append((counts <= 1).mean())
    # A fifth to four tenths of the view by construction; objects and noise take from it.
    assert min(clipped) > 0.05 and np.median(clipped) > 0.15
    assert min(quiet) > 0.05 and np.median(quiet) > 0.15


def test_events_fire_at_moving_edges():
    inside = outside = 0.0
    for seed in range(4):
        scene = generate_scene(seed, "fast", 64, 96)
        tenth = (scene.t1 - scene.t0) // 20
        window = scene.events.slice_time(scene.t0 - tenth, scene.t0 + tenth)
        counts = np.zeros((64, 96))
        np.add.at(counts, (window.y, window.x), 1)
        edge = scene.boundary()[0].bool().numpy()
        inside += counts[edge].mean()
        outside += counts[~edge].mean()
    assert inside > 3 * outside


@pytest.mark.parametrize("name", PATTERNS)
def test_patterns_are_in_range_and_not_flat(name):
    pattern = PATTERNS[name](np.random.default_rng(0), 40, 56)
    assert pattern.shape == (40, 56)
    assert pattern.min() >= 0 and pattern.max() <= 1 and pattern.std() > 0.01


@pytest.mark.parametrize("kind", ["blob", "polygon", "ellipse", "box", "bar", "ring"])
def test_shapes_have_an_empty_border(kind):
    mask = make_shape(np.random.default_rng(0), 40, kind=kind)
    border = np.concatenate((mask[0], mask[-1], mask[:, 0], mask[:, -1]))
    assert border.max() == 0 and mask.max() > 0.6


def test_textures_from_a_folder(tmp_path):
    cv2 = pytest.importorskip("cv2")
    with pytest.raises(FileNotFoundError, match="holds no image"):
        generate_scene(0, "slow", H, W, textures=tmp_path)
    folder = tmp_path / "images"
    folder.mkdir()
    cv2.imwrite(str(folder / "a.png"), np.random.default_rng(0).integers(0, 256, (50, 30, 3)))
    pictured = generate_scene(0, "slow", H, W, textures=folder)
    assert (pictured.frames != generate_scene(0, "slow", H, W).frames).any()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seed": -1}, "seed"),
        ({"preset": "quick"}, "quick.*slow, fast"),
        ({"height": 8}, "height"),
        ({"frames": 1}, "frames"),
        ({"max_step": 0.0}, "max_step"),
        ({"split": "val"}, "split must be one of train, test, got 'val'"),
    ],
)
def test_bad_arguments_are_named(change, message):
    arguments = {"seed": 0, "preset": "slow", "height": H, "width": W} | change
    with pytest.raises(ValueError, match=message):
        generate_scene(**arguments)


def dataset(**changes) -> SceneDataset:
    arguments = {
        "preset": {"fast": 1.0, "dark": 1.0},
        "seed": 3,
        "count": 6,
        "height": 32,
        "width": 40,
        "slices": 4,
        "bins": 2,
    }
    return SceneDataset(**(arguments | changes))


def test_scenes_of_a_gpu_are_kept_apart(tmp_path, monkeypatch):
    """They differ in rounding: a pool must not hold some of each."""
    made = []

    def generate(*arguments, device, **options):
        made.append(device)
        return generate_scene(*arguments, **options)

    monkeypatch.setattr("flowfuse.data.synthetic.dataset.generate_scene", generate)
    for device in ("cpu", "cuda", "cuda:0"):
        dataset(cache=tmp_path, device=device)[0]
    assert made == [torch.device("cpu"), torch.device("cuda")]  # the third was in the cache
    assert len(list(tmp_path.iterdir())) == 2


def same(a: Sample, b: Sample) -> bool:
    a, b = a.tensors(), b.tensors()
    return a.keys() == b.keys() and all(
        torch.equal(a[name], b[name]) and a[name].dtype == b[name].dtype for name in a
    )


def test_sample():
    scene = generate_scene(2, "fast", H, W)
    sample = scene_sample(scene, spec=InputSpec(4, 3), seed=0)
    shapes = {name: tuple(value.shape) for name, value in sample.tensors().items()}
    assert shapes == {
        "slices": (5, 3, H, W),
        "frame0": (1, H, W),
        "frame1": (1, H, W),
        "event_sum": (1, H, W),
        "exposure": (2,),
        "modality_mask": (4,),
        "tau": (4,),
        "flow": (4, 2, H, W),
        "valid": (4, H, W),
        "occluded": (4, H, W),
        "boundary": (2, H, W),
    }
    assert sample.tau[-1] == 1 and (sample.tau.diff() > 0).all()
    # Kept in steps of 1/64.
    assert (sample.flow[1] - scene.flow_at(float(sample.tau[1]))).abs().max() <= 1 / 128
    events = scene.events.slice_time(scene.t0 - (scene.t1 - scene.t0) // 4, scene.t1)
    # All events of E_0 .. E_4, whose weights over the bins add up to 1; each cell is rounded.
    total = float(sample.slices.double().sum())
    cells = sample.slices.ne(0).sum().item()
    assert abs(total - (2.0 * events.p - 1).sum()) <= cells / 128
    with pytest.raises(ValueError, match="slices"):
        scene_sample(scene, spec=InputSpec(1, 3), seed=0)


def test_items_depend_on_seed_and_index_alone():
    items = dataset()
    fourth = items[3]
    assert same(fourth, dataset(count=4)[3])
    assert not same(fourth, items[2])
    assert not same(fourth, dataset(seed=4)[3])
    batch = Sample.collate([items[0], items[1]])
    assert batch.slices.shape == (2, 5, 2, 32, 40)
    with pytest.raises(IndexError):
        items[6]


def test_kept_samples_are_the_same_bits(tmp_path):
    fresh, kept = dataset()[1], dataset(cache=tmp_path)
    assert same(kept[1], fresh)
    files = list(tmp_path.rglob("*.npz"))
    assert len(files) == 1 and not list(tmp_path.rglob("*.tmp*"))
    assert same(kept[1], fresh)
    # Other settings do not see it.
    assert dataset(cache=tmp_path, bins=3)[1].slices.shape[1] == 3
    assert not same(dataset(cache=tmp_path, split="test")[1], fresh)
    assert same(dataset(cache=tmp_path, split="train")[1], fresh)
    files[0].write_bytes(files[0].read_bytes()[:1000])
    with pytest.raises(ValueError, match=r"damaged.*delete"):
        kept[1]


def test_samples_kept_before_the_latest_settings_are_found(tmp_path):
    kept = SceneDataset("fast", 0, 1, 64, 80, 4, 3, cache=tmp_path)
    # Of the settings alone, before presets could have thin objects.
    assert kept._folder == tmp_path / "3404ff96eb1b67e5"
    other = SceneDataset("fast@v2e", 0, 1, 64, 80, 4, 3, cache=tmp_path)
    assert other._folder != kept._folder


def test_samples_with_other_textures_are_kept_apart(tmp_path):
    cv2 = pytest.importorskip("cv2")
    images = tmp_path / "images"
    images.mkdir()
    rng = np.random.default_rng(0)
    cv2.imwrite(str(images / "a.png"), rng.integers(0, 256, (40, 50, 3)))
    folders = {dataset(cache=tmp_path / "pool")._folder}
    folders.add(dataset(cache=tmp_path / "pool", textures=images)._folder)
    cv2.imwrite(str(images / "b.png"), rng.integers(0, 256, (40, 50, 3)))
    list_images.cache_clear()  # another process
    folders.add(dataset(cache=tmp_path / "pool", textures=images)._folder)
    assert len(folders) == 3


def test_different_seeds_have_no_scene_in_common():
    drawn = [dataset(seed=seed, count=500)._draw(i)[0] for seed in (0, 1) for i in range(500)]
    assert len(set(drawn)) == 1000


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"preset": "odd"}, "odd"),
        ({"preset": {"fast": -1.0}}, "weights"),
        ({"count": -1}, "count"),
        ({"seed": -1}, "seed"),
        ({"split": "val"}, "split must be one of train, test, got 'val'"),
    ],
)
def test_bad_datasets_are_named(change, message):
    with pytest.raises(ValueError, match=message):
        dataset(**change)
