"""The network: event slices and two frames in, Bezier trajectories out.

slices  -> event stem --+--> trunk -> E_0..E_K --+-> correlations -> evidence ----+
frames  -> frame stem --+--> trunk -> F_0, F_1 --+-> first estimate               |
frames, event sum -> common gradient -> boundary localizer -> B_e, B_m            |
                                                      |                           v
gradient steps <- refinement <- recurrent update <- propagation <- gates <--- tokens
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from flowfuse.geometry.bezier import bernstein_rows
from flowfuse.geometry.grid import pad_to_multiple
from flowfuse.inputs import Modality, ModelInputs, PairKind
from flowfuse.io.images import as_gray
from flowfuse.model.boundary import BoundaryLocalizer, gradients_shown, max_pool
from flowfuse.model.config import ModelConfig
from flowfuse.model.correlation import PairCorrelations, WindowMatching
from flowfuse.model.encoders import (
    Encoded,
    EncodedFrame,
    EncodedSlice,
    EventStem,
    FrameStem,
    Images,
    Trunk,
    activate,
    encode_images,
    group_count,
    join_encoded,
    little_memory,
    zero_features,
)
from flowfuse.model.evidence import Evidence, EvidenceHead, faded, resized
from flowfuse.model.fusion import BoundaryPropagation, CorrelationTokens, TokenGates, read_pairs
from flowfuse.model.lucas_kanade import lucas_kanade_refine
from flowfuse.model.normalization import (
    Scene,
    SliceScale,
    magnitude,
    make_scene,
    normalize_inputs,
    switched_mask,
)
from flowfuse.model.refinement import Refinement
from flowfuse.model.update import (
    ConvGRU,
    InitHead,
    MotionEncoder,
    UpdateHead,
    start_at_zero,
)

STRIDE = 8  # of the latent, px
STEM_STRIDE = 4
MINIMUM_SIZE = 16
DAMPING = 0.5  # of each update beyond the configured number, so that they converge
CUES = slice(Modality.SECOND_FRAME)  # flags that the convolutions see; the evidence knows all four
KINDS = (PairKind.EVENTS, PairKind.FRAMES, PairKind.CROSS)  # as they are correlated
NO_STEP = 1e6  # prior of a gradient step that goes nowhere


class ModelOutput(NamedTuple):
    """What :class:`FlowFuse` gives.

    Attributes:
        control_points: [B, n, 2, H, W] float32, px; the last point is the flow to t1.
        uncertainty: [B, 2, H, W] float32: logit of the weight of the narrow Laplace and a raw
            value whose softplus is the log of the wide one's scale, see flowfuse.geometry.laplace.
        coarse_points: [I + 1, B, n, 2, h, w] float32, px, at 1/8: the first estimate, and what each
            of the I iterations made of it.
        boundary: [B, 2, H, W] float32 logits of B_e and B_m; zeros without the localizer.
        event_latent: [B, K + 1, C, h, w] latents of the event slices.
        frame_latent: [B, 2, C, h, w] latents of the frames.
        evidence: [B, 2, h, w] float32, log of the Laplace scale of the error, px of the latent,
            that frames alone and events alone would make, as estimated; zero unless the fusion is
            by evidence.
    """

    control_points: Tensor
    uncertainty: Tensor
    coarse_points: Tensor
    boundary: Tensor
    event_latent: Tensor
    frame_latent: Tensor
    evidence: Tensor


class Coarse(NamedTuple):
    """What is known at 1/8.

    Attributes:
        points: I + 1 times [B, 2 n, h, w] float32, as :class:`ModelOutput` has them, px of 1/8.
        state: [B, hidden, h, w], recurrent state.
        boundary: [B, 2, H, W] float32 logits.
    """

    points: list[Tensor]
    state: Tensor
    boundary: Tensor


class FlowFuse(nn.Module):
    """Dense and continuous optical flow from events and frames.

    Args:
        config: the architecture; see :class:`ModelConfig`.
    """

    tau: Tensor
    basis: Tensor

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        slices, channels, hidden = config.slices, config.channels, config.hidden
        pairs = slices + 2
        if config.events:
            self.event_stem = EventStem(config.bins, config.stem_channels)
        if config.frames:
            self.frame_stem = FrameStem(config.stem_channels)
        self.fine = nn.Conv2d(config.stem_channels, config.token_channels, 1)
        self.trunk = Trunk(config.stem_channels, channels, config.blocks)
        times = [*(k / slices for k in range(1, slices + 1)), 1.0, 1.0]
        self.register_buffer("tau", torch.tensor(times), persistent=False)
        basis = torch.tensor(bernstein_rows(config.degree, times))
        self.register_buffer("basis", basis, persistent=False)
        self.matching = WindowMatching(config.radius, config.levels, config.degree)
        self.init_head = InitHead((slices + 3) * channels, channels, config.degree)
        if config.boundary:
            cues = 7 if config.common_gradient else 3
            self.localizer = BoundaryLocalizer(
                cues + 3, config.stem_channels, config.boundary_channels
            )
        window = config.levels * (2 * config.radius + 1) ** 2
        self.tokens = CorrelationTokens(window, 3, config.token_channels)
        cue_channels = 1 + (slices + 1) + 2 + 3
        self.context = nn.Conv2d(3 * channels + cue_channels, 2 * hidden, 3, padding=1)
        self.context_norm = nn.GroupNorm(group_count(2 * hidden), 2 * hidden)
        if config.guided:
            self.gates = TokenGates(2 + cue_channels, pairs)
            self.boundary_context = start_at_zero(nn.Conv2d(2, 2 * hidden, 3, padding=1))
            self.propagation = BoundaryPropagation(hidden, hidden, config.dilations)
        if config.weighs_evidence:
            self.evidence = EvidenceHead()
        self.motion = MotionEncoder(pairs * config.token_channels, config.degree, hidden)
        self.update = ConvGRU(hidden, hidden, hidden)
        self.head = UpdateHead(hidden, config.degree)
        self.refinement = Refinement(
            config.stem_channels,
            config.token_channels,
            hidden,
            guided=config.guided,
            localized=config.boundary,
            slices=slices,
            degree=config.degree,
            radius=config.radius,
            stride=STEM_STRIDE,
            gradient_steps=config.gradient_steps if config.frames else 0,
            selects=config.selection,
        )

    def forward(
        self,
        inputs: ModelInputs,
        iterations: int | None = None,
        flow_init: Tensor | None = None,
        *,
        flow_init_complete: bool = False,
        grad_through_steps: bool = False,
        encoded_frames: tuple[EncodedFrame, EncodedFrame] | None = None,
        encoded_slices: Sequence[EncodedSlice] | None = None,
        alone: Modality | None = None,
    ) -> ModelOutput:
        """Estimate the trajectories of all pixels of t0.

        Args:
            inputs: see :class:`ModelInputs`; any H, W >= 16 (padded inside to multiples of 8).
            iterations: recurrent updates; the configuration's number by default. The first update
                beyond it is halved, the second quartered, and so on: many converge.
            flow_init: [B, 2, H, W] float32, px, flow to t1 that takes the place of the first
                estimate, as a straight motion; a cell of 8 x 8 px without any finite value keeps
                the estimate.
            flow_init_complete: whether all cells have one: no first estimate is made then.
            grad_through_steps: whether gradients pass through the last steps, see
                :func:`lucas_kanade_refine`; for training without ground truth.
            encoded_frames: both frames of ``inputs`` as :meth:`encode_frame` gives them, in place
                of an absent one :meth:`absent_frame`; all items have the same ones. None: they are
                encoded here.
            encoded_slices: E_0 .. E_K as :meth:`encode_slice` gives them, where all items have
                events; ``inputs.slices`` are then not read. None: they are encoded here.
            alone: ``Modality.FRAMES`` or ``Modality.EVENTS`` where the mask says that no item has
                the other one: it is not encoded then, and the output stays the same.

        Returns:
            :class:`ModelOutput`.

        Raises:
            ValueError: when a shape does not fit the configuration.
        """
        config = self.config
        height, width = self._check(inputs)
        iterations = config.iterations if iterations is None else iterations
        if iterations < 1:
            raise ValueError(f"FlowFuse: iterations must be at least 1, got {iterations}")
        # What is large lives no longer than it is needed: in a method of its own, or until `del`.
        slices = None
        if encoded_slices is None:
            slices, scene = normalize_inputs(
                inputs, frames=config.frames, events=config.events, cell=STRIDE
            )
        else:
            scene = self._known_scene(inputs, encoded_slices)
        events, frames = self._encode(slices, scene, encoded_frames, encoded_slices, alone)
        del slices
        correlations = self._correlate(events.latents, frames.latents)
        complete = flow_init is not None and flow_init_complete
        evidence = fades = fade = None
        points = self._rest(events.latents)
        if config.weighs_evidence or not complete:
            evidence, fades, points = self._match_at_rest(correlations, scene.modality_mask)
        if not complete:
            points = points + self._regress(events.latents, frames.latents, evidence)
        if evidence is not None:
            fade = resized(evidence.fade, frames.stem.shape[-1])
            frames = frames._replace(stem=faded(frames.stem, fade[:, :1]))
            events = events._replace(stem=faded(events.stem, fade[:, 1:]))
        if flow_init is not None:
            points = self._replace_first(points, flow_init)
        coarse = self._estimate(
            scene, events, frames, correlations, evidence, fades, points, iterations
        )
        del correlations
        frame0, frame1 = scene.frame0, scene.frame1
        has_second = scene.modality_mask[:, Modality.SECOND_FRAME].view(-1, 1, 1, 1)
        del scene
        refined = self.refinement(
            coarse.points[-1].detach(),
            coarse.state,
            events,
            frames,
            coarse.boundary,
            None if fades is None else fades[:, :2],
            config.correlation,
        )
        priors = refined.priors.masked_fill(has_second <= 0, NO_STEP)
        if fade is not None:
            # A prior stands beside squared image gradients: so do frames of less contrast move it.
            priors = priors / fade[:, :1].square().clamp(min=1 / NO_STEP)
        control_points = lucas_kanade_refine(
            refined.control_points,
            frame0,
            frame1,
            priors,
            grad_through_steps=grad_through_steps,
        )
        return ModelOutput(
            control_points=control_points[..., :height, :width],
            uncertainty=refined.uncertainty[..., :height, :width],
            coarse_points=STRIDE * torch.stack(coarse.points).unflatten(2, (config.degree, 2)),
            boundary=refined.boundary[..., :height, :width],
            event_latent=events.latents,
            frame_latent=frames.latents,
            evidence=torch.zeros_like(points[:, :2]) if evidence is None else evidence.log_scale,
        )

    def encode_frame(self, frame: Tensor) -> EncodedFrame:
        """Encode a frame that several estimates use, such as one between two time intervals.

        Args:
            frame: [B, 1 | 3, H, W], as of :class:`ModelInputs`.

        Returns:
            What ``forward`` would make of it; the same bits on the CPU where no gradients are
            taken: there it encodes frames one by one, too.

        Raises:
            ValueError: this network uses no frames.
        """
        if not self.config.frames:
            raise ValueError("FlowFuse: this network uses no frames, so none can be encoded")
        features = self.frame_stem(pad_to_multiple(as_gray(frame), STRIDE) - 0.5)
        return EncodedFrame(features, self.fine(features), self.trunk(features))

    def absent_frame(self, batch: int, height: int, width: int) -> EncodedFrame:
        """What stands in place of a frame [B, 1 | 3, H, W] that is not there."""
        height, width = (-(-side // STRIDE) for side in (height, width))
        scale = STRIDE // STEM_STRIDE
        stem = self.tau.new_zeros(batch, self.config.stem_channels, scale * height, scale * width)
        latent = self.tau.new_zeros(batch, self.config.channels, height, width)
        return EncodedFrame(stem, self.fine(stem), latent)

    def encode_slice(self, voxels: Tensor, scale: SliceScale) -> EncodedSlice:
        """Encode an event slice that several estimates use.

        Args:
            voxels: [B, bins, H, W] raw polarity sums, as of :class:`ModelInputs`.
            scale: how the slices of the interval are normalized.

        Returns:
            What ``forward`` would make of it with this scale; the same bits on the CPU where no
            gradients are taken: there it encodes slices one by one, too.

        Raises:
            ValueError: this network uses no events.
        """
        if not self.config.events:
            raise ValueError("FlowFuse: this network uses no events, so no slice can be encoded")
        present = torch.ones_like(scale.divisor)
        normal = scale.apply(voxels.unsqueeze(1), present)
        normal = pad_to_multiple(normal, STRIDE, mode="constant")
        features = self.event_stem(normal[:, 0])
        return EncodedSlice(
            features,
            self.fine(features),
            self.trunk(features),
            normal[:, 0].sum(1, keepdim=True),
            F.avg_pool2d(magnitude(normal), STRIDE),
        )

    def _known_scene(self, inputs: ModelInputs, slices: Sequence[EncodedSlice]) -> Scene:
        """The scene of slices that are encoded already."""
        if not self.config.events or len(slices) != self.config.slices + 1:
            raise ValueError(
                f"FlowFuse: encoded_slices must be those of {self.config.slices + 1} slices, of a "
                f"network that uses events; got {len(slices)}"
            )
        mask = switched_mask(inputs, frames=self.config.frames, events=True)
        density = torch.cat([encoded.density for encoded in slices], dim=1)
        return make_scene(inputs, mask, slices[1].total, density, STRIDE)

    def _check(self, inputs: ModelInputs) -> tuple[int, int]:
        batch, *rest, height, width = inputs.slices.shape
        expected = (self.config.slices + 1, self.config.bins)
        if tuple(rest) != expected:
            raise ValueError(
                f"FlowFuse: slices must have shape [B, {expected[0]}, {expected[1]}, H, W], "
                f"got {list(inputs.slices.shape)}"
            )
        if height < MINIMUM_SIZE or width < MINIMUM_SIZE:
            raise ValueError(
                f"FlowFuse: images must be at least {MINIMUM_SIZE} x {MINIMUM_SIZE} px, "
                f"got {width} x {height}"
            )
        for name, channels in (("frame0", (1, 3)), ("frame1", (1, 3)), ("event_sum", (1,))):
            shape = list(getattr(inputs, name).shape)
            if shape[:1] + shape[2:] != [batch, height, width] or shape[1] not in channels:
                raise ValueError(
                    f"FlowFuse: {name} must have shape [{batch}, "
                    f"{' or '.join(map(str, channels))}, {height}, {width}], got {shape}"
                )
        return height, width

    def _encode(
        self,
        slices: Tensor | None,
        scene: Scene,
        encoded_frames: tuple[EncodedFrame, EncodedFrame] | None,
        encoded_slices: Sequence[EncodedSlice] | None,
        alone: Modality | None,
    ) -> tuple[Encoded, Encoded]:
        """Encode the slices and the frames; what the configuration leaves out is zero."""
        mask = scene.modality_mask
        given: list[Images] = []
        encodes_events = encoded_slices is None and self.config.events and alone != Modality.FRAMES
        encodes_frames = encoded_frames is None and self.config.frames and alone != Modality.EVENTS
        if encodes_events:
            assert slices is not None, "they are encoded or not"
            present = mask[:, Modality.EVENTS, None].expand(-1, slices.shape[1])
            given.append(Images(self.event_stem, slices, present))
        if encodes_frames:
            images = torch.stack((scene.frame0, scene.frame1), dim=1) - 0.5
            present = torch.stack((mask[:, Modality.FRAMES], mask[:, Modality.SECOND_FRAME]), dim=1)
            given.append(Images(self.frame_stem, images, present))
        if little_memory(scene.frame0):
            found = [encode_images([images], self.fine, self.trunk)[0] for images in given]
        else:
            found = encode_images(given, self.fine, self.trunk) if given else []
        events = found[0] if encodes_events else None
        frames = found[-1] if encodes_frames else None
        if encoded_slices is not None:
            events = join_encoded(encoded_slices)
        if self.config.frames and encoded_frames is not None:
            frames = join_encoded(encoded_frames)
        # What is absent has the bias alone at 1/4, whether it was encoded or not.
        bias = self.fine.bias
        without_events, without_frames = (
            bias if used else None for used in (self.config.events, self.config.frames)
        )
        return (
            events or zero_features(cast(Encoded, frames), self.config.slices + 1, without_events),
            frames or zero_features(cast(Encoded, events), 2, without_frames),
        )

    def _estimate(
        self,
        scene: Scene,
        events: Encoded,
        frames: Encoded,
        correlations: PairCorrelations,
        evidence: Evidence | None,
        fades: Tensor | None,
        points: Tensor,
        iterations: int,
    ) -> Coarse:
        """Estimate at 1/8, from first points: boundaries, and recurrent updates guided by them."""
        config = self.config
        boundary, agreement = self._localize(scene, events, frames, points.detach(), evidence)
        coarse_boundary = max_pool(boundary, STRIDE)
        cues = self._cues(scene, agreement, evidence)
        looks = [events.latents[:, 0], frames.latents[:, 0], events.latents[:, -1]]
        if evidence is not None:
            # What the frames show looks alike from camera to camera; what events look like does
            # not, and where frames are there and right, it adds little to what its motion tells.
            there = scene.modality_mask[:, Modality.FRAMES].view(-1, 1, 1, 1)
            events_alone = (1 - there * evidence.frames) * evidence.events
            seen = (events_alone, evidence.frames, events_alone)
            looks = [faded(look, fade) for look, fade in zip(looks, seen, strict=True)]
        state, context = self._context((*looks, cues), coarse_boundary)
        update_context = self.update.context(context)
        gates = None
        if config.guided:
            gates = self.gates(torch.cat((coarse_boundary, cues), dim=1))
            weights = self.propagation.weights(context, coarse_boundary)

        coarse = [points]
        for iteration in range(iterations):
            # An update learns from where it stands; only the first estimate is trained through.
            here = points.detach()
            motion = self._motion_features(correlations, here, gates, fades)
            if config.guided:
                motion = self.propagation(motion, weights)
            state = self.update(state, motion, update_context)
            change = self.head(state)
            if (beyond := iteration + 1 - config.iterations) > 0:
                change = change * DAMPING**beyond
            points = (points if iteration == 0 else here) + change
            coarse.append(points)
        return Coarse(coarse, state, boundary)

    def _correlate(self, events: Tensor, frames: Tensor) -> PairCorrelations:
        """Pair <E_0, E_1> .. <E_0, E_K>, <F_0, F_1>, <F_0, E_K>."""
        return PairCorrelations(
            (
                (events[:, 0], events[:, 1:]),
                (frames[:, 0], frames[:, 1:]),
                (frames[:, 0], events[:, -1:]),
            ),
            self.basis,
            radius=self.config.radius,
            levels=self.config.levels,
            strategy=self.config.correlation,
        )

    def _rest(self, latents: Tensor) -> Tensor:
        """Control points [B, 2 n, h, w] float32 of no motion, for latents [B, N, C, h, w]."""
        shape = (latents.shape[0], 2 * self.config.degree, *latents.shape[-2:])
        return latents.new_zeros(shape, dtype=torch.float32)

    def _regress(self, events: Tensor, frames: Tensor, evidence: Evidence | None) -> Tensor:
        """Regress first control points [B, 2 n, h, w] from all latents."""
        parts = [events, frames]
        if evidence is not None:
            fades = (evidence.events, evidence.frames)
            parts = [
                part * fade.unsqueeze(1).to(part.dtype)
                for part, fade in zip(parts, fades, strict=True)
            ]
        return self.init_head(torch.cat(parts, dim=1).flatten(1, 2))

    def _match_at_rest(
        self, correlations: PairCorrelations, mask: Tensor
    ) -> tuple[Evidence | None, Tensor | None, Tensor]:
        """Match around rest.

        Returns:
            How good each modality is, what multiplies the correlations of each of KINDS
            [B, 3, h, w], and control points [B, 2 n, h, w].
        """
        batch, slices = mask.shape[0], self.config.slices
        places = correlations.places_at_rest(batch)
        matches = correlations.match(places, self.matching)
        evidence = fades = scores = None
        if self.config.weighs_evidence:
            evidence = self.evidence(matches, self.tau, mask)
            fades = torch.cat([evidence.of_pair(kind) for kind in KINDS], dim=1)
            logits = fades.log()
            # A score of each pair: all event pairs have that of their kind.
            scores = torch.cat((logits[:, :1].expand(-1, slices, -1, -1), logits[:, 1:]), dim=1)
            scores = scores.unsqueeze(2)
        return evidence, fades, self.matching.fit(matches, self.basis, scores).flatten(1, 2)

    def _motion_features(
        self,
        correlations: PairCorrelations,
        points: Tensor,
        gates: Tensor | None,
        fades: Tensor | None,
    ) -> Tensor:
        """Return motion features [B, hidden, h, w]: what is found where the points lead."""
        control_points = points.unflatten(1, (self.config.degree, 2))
        tokens, matches = read_pairs(
            correlations,
            control_points,
            self.matching,
            self.tokens,
            None if fades is None else fades.split(1, dim=1),
            gates,
        )
        change = self.matching.fit(matches, self.basis)
        return self.motion(tokens, torch.cat((points, change.flatten(1, 2)), dim=1))

    def _context(self, features: Sequence[Tensor], boundary: Tensor) -> tuple[Tensor, Tensor]:
        """Return the first recurrent state and the features that stay, [B, hidden, h, w] each."""
        dtype = features[0].dtype
        context = self.context(torch.cat([part.to(dtype) for part in features], dim=1))
        if self.config.guided:
            context = context + self.boundary_context(boundary)
        state, context = self.context_norm(context).chunk(2, dim=1)
        return torch.tanh(state), activate(context)

    def _replace_first(self, points: Tensor, flow_init: Tensor) -> Tensor:
        """Put a given flow [B, 2, H, W] px, as a straight motion, in place of first points."""
        height, width = (STRIDE * side for side in points.shape[-2:])
        pad = (0, width - flow_init.shape[-1], 0, height - flow_init.shape[-2])
        given = F.pad(flow_init, pad, value=float("nan"))
        finite = torch.isfinite(given).all(dim=1, keepdim=True)
        share = F.avg_pool2d(finite.to(given.dtype), STRIDE)
        mean = F.avg_pool2d(torch.where(finite, given, 0.0), STRIDE) / share.clamp(min=1e-6)
        degree = self.config.degree
        straight = torch.cat([mean * (i / degree / STRIDE) for i in range(1, degree + 1)], dim=1)
        return torch.where(share > 0, straight.to(points.dtype), points)

    def _localize(
        self,
        scene: Scene,
        events: Encoded,
        frames: Encoded,
        points: Tensor,
        evidence: Evidence | None,
    ) -> tuple[Tensor, Tensor]:
        """Return boundary logits [B, 2, H, W] and the agreement S [B, 1, h, w]."""
        if not self.config.boundary:
            boundary = torch.zeros_like(scene.event_sum).expand(-1, 2, -1, -1)
            return boundary, torch.zeros_like(scene.density[:, :1])
        motion = None
        if self.config.common_gradient:
            weights = self.basis[0].view(-1, 1, 1, 1)  # at the end of slice E_1
            motion = (weights * points.unflatten(1, (self.config.degree, 2))).sum(dim=1)
            motion = F.interpolate(STRIDE * motion, scale_factor=float(STRIDE), mode="bilinear")
        gradients, agreement = gradients_shown(scene, motion, evidence, STRIDE)
        if evidence is not None:
            agreement = agreement * evidence.both
        boundary = self.localizer(gradients, events.stem, frames.stem, points[:, -2:])
        return boundary, agreement

    def _cues(self, scene: Scene, agreement: Tensor, evidence: Evidence | None) -> Tensor:
        """Agreement S, event density of every slice, exposures, presence: [B, cues, h, w]."""
        density = scene.density
        flat = torch.cat((scene.exposure, scene.modality_mask[:, CUES]), dim=1)[:, :, None, None]
        flat = flat.expand(-1, -1, *agreement.shape[-2:])
        if evidence is not None:
            density = density * evidence.events
            f, e = evidence.frames, evidence.events
            flat = flat * torch.cat((f, f, f, e, e), dim=1)
        return torch.cat((agreement, density, flat), dim=1)
