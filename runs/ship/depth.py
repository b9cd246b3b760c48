"""Train the network that predicts depth maps of clear photos for synthetic haze, and write the maps.

    python runs/ship/depth.py train --data DATA --out RUN [--steps 2700] [--small 2150] [--batch 16] [--seed 1]
    python runs/ship/depth.py evaluate --data DATA --out RUN
    python runs/ship/depth.py cache --data DATA --weights RUN/depth.safetensors --out DEPTHS [--again]
    python runs/ship/depth.py sheet --data DATA --maps DEPTHS --out SHEETS [--photos 40]

command    python runs/ship/depth.py train --data DATA --out RUN, then cache
hardware   one core of an AMD EPYC (AVX-512 with bf16)
time       20 minutes of processor time for 2,600 steps, four more for the maps of 2,238 photos
data       DATA: nyu (indoor photos with depth), sots_outdoor (pairs, whose transmission gives depth), depth (photos
           with disparity), clear (photos without depth, for their sky)
expected   evaluate prints the rank correlation of depth on held-out scenes of DATA

An interrupted training resumes from RUN/state.pt when called again; another --steps changes its length.
cache skips existing maps, so an interrupted run can be resumed; --again replaces them.
A map is DEPTHS/<photo's path below DATA>.png: 16 bits, 0 near to 65535 far.
"""

from __future__ import annotations

from fairweather.training.allocator import restart_tuned

if __name__ == "__main__":
    restart_tuned()  # before torch is imported

import argparse
import copy
import time
from collections.abc import Iterable
from pathlib import Path

import cv2
import numpy as np
import torch
from depth_samples import CROPS, GROUND, SKY, SMALL_CROPS, UNKNOWN, Batch, Example, Samples, kinds_of, stored
from numpy.typing import NDArray
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional

from fairweather import files, images
from fairweather.data.depth import DepthNet, load_network, predict, to_map
from fairweather.training import checkpoint
from fairweather.training.optimization import EMA, choose_precision

WEIGHTS = "depth.safetensors"
EXAMPLES = "examples.npz"
WARM_UP = 200
COOL_DOWN = 0.4
"""Share of the steps at the end over which the rate falls to nothing; until there it is constant, so that a run can be
made longer or shorter while it goes on (Hägele et al., "Scaling Laws and Compute-Optimal Training", NeurIPS 2024)."""
SPREAD = 0.5
"""Mean absolute deviation of log depth that bent examples are compared at: a photo's own is 0.2 to 0.8."""
SCALES = 4
EDGES = 0.5
"""Weight of the differences of neighbours (alpha in Ranftl et al., section 5)."""
SKY_WEIGHT = 0.4


def depth_loss(log_depth: Tensor, target: Tensor, weight: Tensor, bent: Tensor) -> Tensor:
    """Scale-invariant difference of depths: invariant to a constant added to log depth, and to a factor where `bent`.

    The mean absolute difference after the weighted means are aligned (after Eigen et al., NeurIPS 2014, who square it),
    plus the multi-scale differences of neighbours of Ranftl et al., TPAMI 2022, equation 11. Bent examples are first
    brought to the same mean absolute deviation, as in their equations 5 and 6.

    Args:
        log_depth: N x 1 x H x W.
        target: N x 1 x H x W, the true log depth.
        weight: N x 1 x H x W, 0 where depth is unknown.
        bent: N booleans: whether the target is known up to a factor as well.
    """
    known = weight.sum((1, 2, 3)) > 0.01 * weight[0].numel()
    if not known.any():
        return log_depth.sum() * 0
    log_depth, target, weight, bent = (one[known] for one in (log_depth, target, weight, bent))
    total = weight.sum((1, 2, 3), keepdim=True)

    def mean(x: Tensor) -> Tensor:
        return (x * weight).sum((1, 2, 3), keepdim=True) / total

    log_depth, target = log_depth - mean(log_depth), target - mean(target)
    factors = [torch.where(bent.view(-1, 1, 1, 1), SPREAD / (mean(x.abs()) + 1e-3), 1.0) for x in (log_depth, target)]
    difference = log_depth * factors[0] - target * factors[1]
    loss = mean(difference.abs()).mean()
    for scale in range(SCALES):
        step = 2**scale
        coarse, certain = difference[..., ::step, ::step], weight[..., ::step, ::step]
        for axis in (2, 3):
            count = coarse.shape[axis] - 1
            first, second = (coarse.narrow(axis, start, count) for start in (0, 1))
            both = certain.narrow(axis, 0, count) * certain.narrow(axis, 1, count)
            change = ((first - second).abs() * both).sum((1, 2, 3)) / both.sum((1, 2, 3)).clamp_min(1)
            loss = loss + EDGES / SCALES * change.mean()
    return loss


def sky_loss(logit: Tensor, sky: Tensor) -> Tensor:
    """Binary cross-entropy where it is known what is sky."""
    known = sky != UNKNOWN
    if not known.any():
        return logit.sum() * 0
    return functional.binary_cross_entropy_with_logits(logit[known], (sky[known] == SKY).float())


def rate(step: int, steps: int) -> float:
    """The learning rate as a share of its highest: up, constant, and down to nothing."""
    return min((step + 1) / WARM_UP, 1.0, max(0.0, (steps - step) / max(1.0, COOL_DOWN * steps)))


def train(options: argparse.Namespace) -> None:
    """Train until `options.steps`, from the checkpoint in `options.out` if there is one."""
    options.out.mkdir(parents=True, exist_ok=True)
    examples, held = stored(options.data, options.out / EXAMPLES)
    samples = Samples(examples, options.seed)
    print({kind: (len(examples[kind]), len(held.get(kind, ()))) for kind in examples}, "trained on, held back")
    torch.manual_seed(options.seed)
    network = DepthNet().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    decayed = [value for value in network.parameters() if value.ndim > 1]
    rest = [value for value in network.parameters() if value.ndim <= 1]
    groups = [{"params": decayed, "weight_decay": 0.05}, {"params": rest, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, options.rate)
    average = EMA(network, 0.99)
    start, seconds = 0, 0.0
    if (options.out / checkpoint.CHECKPOINT_NAME).exists() or (options.out / checkpoint.PREVIOUS_NAME).exists():
        saved = checkpoint.load_checkpoint(options.out)
        start, seconds, state = saved["step"], saved["seconds"], saved["engine"]
        network.load_state_dict(state["network"])
        optimizer.load_state_dict(state["optimizer"])
        average.module.load_state_dict(state["average"])
        average.updates = state["updates"]
        print(f"resumed after step {start}", flush=True)

    def save(step: int) -> None:
        state = {
            "updates": average.updates,
            "network": network.state_dict(),
            "optimizer": optimizer.state_dict(),
            "average": average.module.state_dict(),
        }
        random = checkpoint.random_states()
        checkpoint.save_checkpoint(options.out, {"step": step, "seconds": spent(), "engine": state, "random": random})
        with files.atomic(options.out / WEIGHTS) as temporary:
            save_file({name: value.contiguous() for name, value in average.module.state_dict().items()}, temporary)

    bf16 = choose_precision("auto", "cpu") == "bf16"
    began, wall = time.process_time(), time.monotonic()
    sums = np.zeros(2)

    def spent() -> float:
        return seconds + time.process_time() - began

    network.train()
    for step in range(start, options.steps):
        for group in optimizer.param_groups:
            group["lr"] = options.rate * rate(step, options.steps)
        size = (2 * options.batch, SMALL_CROPS) if step < options.small else (options.batch, CROPS)
        terms = loss_of(network, samples.batch(step, *size), bf16)
        optimizer.zero_grad()
        (terms[0] + SKY_WEIGHT * terms[1]).backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        average.update(network)
        sums += [term.item() for term in terms]
        if (step + 1) % 50 == 0:
            depth, sky = sums / 50
            sums[:] = 0
            pace = (step + 1 - start) / (time.monotonic() - wall)
            print(f"step {step + 1}: depth {depth:.4f} sky {sky:.4f}, {spent():.0f} s, {pace:.2f} steps/s", flush=True)
        if (step + 1) % options.every == 0 or step + 1 == options.steps:
            save(step + 1)
        if (step + 1) % (5 * options.every) == 0 or step + 1 == options.steps:
            print(table(evaluated(average.module, held)), flush=True)


def loss_of(network: DepthNet, batch: Batch, bf16: bool) -> tuple[Tensor, Tensor]:
    """The losses of depth and of sky."""
    photo = batch.photo.contiguous(memory_format=torch.channels_last)
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        output = network(photo)
    log_depth, sky = output.float().chunk(2, 1)
    return depth_loss(log_depth, batch.log_depth, batch.weight, batch.bent), sky_loss(sky, batch.sky)


def spearman(first: NDArray[np.generic], second: NDArray[np.generic]) -> float:
    """Rank correlation of two lists of numbers; equal ones share their mean rank."""
    ranks = []
    for values in (first, second):
        _, places, counts = np.unique(values, return_inverse=True, return_counts=True)
        ranks.append((np.cumsum(counts) - (counts - 1) / 2)[places])
    return float(np.corrcoef(*ranks)[0, 1])


def evaluated(network: torch.nn.Module, held: dict[str, list[Example]]) -> dict[str, list[float]]:
    """Kind -> one number a photo: the rank correlation with the known depth, or the agreement on what is sky."""
    network = copy.deepcopy(network).eval()
    found: dict[str, list[float]] = {}
    for kind, examples in held.items():
        for one in examples:
            depth = predict(network, one.photo)
            if kind == "sky":
                known = one.sky != UNKNOWN
                shown = np.where(depth > 0.9, SKY, GROUND)
                union = ((shown == SKY) | (one.sky == SKY))[known].sum()
                found.setdefault("sky (IoU)", []).append(float(((shown == SKY) & (one.sky == SKY)).sum() / union))
                continue
            known = one.weight > 64
            if known.mean() > 0.1:
                name = f"{kind}, {'indoor' if one.bent else 'street'}" if kind == "stereo" else kind
                found.setdefault(name, []).append(spearman(depth[known], one.log_depth[known]))
    return found


def table(found: dict[str, list[float]]) -> str:
    """Mean, median and worst tenth of each kind."""
    lines = [f"{'held back':20} {'n':>4} {'mean':>6} {'median':>7} {'10 %':>6}"]
    for kind, values in found.items():
        tenth = np.quantile(values, 0.1)
        lines.append(f"{kind:20} {len(values):4} {np.mean(values):6.3f} {np.median(values):7.3f} {tenth:6.3f}")
    return "\n".join(lines)


def cache(network: torch.nn.Module, data: Path, out: Path, photos: Iterable[Path], *, again: bool = False) -> int:
    """Write the depth map of each photo as `out`/<path below data>.png; returns how many were written.

    Existing maps are skipped unless `again`, so that an interrupted call can be repeated.
    """
    written = 0
    for path in photos:
        target = map_path(data, out, path)
        if target.exists() and not again:
            continue
        target.parent.mkdir(parents=True, exist_ok=True)
        images.write(target, to_map(predict(network, images.read(path).pixels)))
        written += 1
    return written


def map_path(data: Path, maps: Path, photo: Path) -> Path:
    """Where a photo's depth map lies: clear/one.avif -> clear/one.avif.png."""
    relative = photo.relative_to(data)
    return maps / relative.with_name(f"{relative.name}.png")


def sheet(data: Path, maps: Path, photos: list[Path], out: Path) -> None:
    """A contact sheet: each photo above its depth map, near dark and far bright."""
    cells = []
    for path in photos:
        photo = images.read(path).pixels
        depth = images.read(map_path(data, maps, path)).pixels[..., 0]
        colours = cv2.applyColorMap((depth >> 8).astype(np.uint8), cv2.COLORMAP_INFERNO)[..., ::-1]
        cell = np.full((2 * 150, 200, 3), 255, np.uint8)
        for place, picture in enumerate((photo, colours)):
            scale = min(200 / picture.shape[1], 150 / picture.shape[0])
            size = (int(picture.shape[1] * scale), int(picture.shape[0] * scale))
            cell[place * 150 : place * 150 + size[1], : size[0]] = cv2.resize(
                picture, size, interpolation=cv2.INTER_AREA
            )
        cells.append(cell)
    cells += [np.full_like(cells[0], 255)] * (-len(cells) % 8)
    images.write(out, np.vstack([np.hstack(cells[row : row + 8]) for row in range(0, len(cells), 8)]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    options = {name: commands.add_parser(name) for name in ("train", "evaluate", "cache", "sheet")}
    for one in options.values():
        one.add_argument("--data", type=Path, required=True)
        one.add_argument("--out", type=Path, required=True)
    options["train"].add_argument("--steps", type=int, default=2700)
    options["train"].add_argument("--small", type=int, default=2150, help="first steps, on small crops")
    options["train"].add_argument("--batch", type=int, default=16)
    options["train"].add_argument("--seed", type=int, default=1)
    options["train"].add_argument("--rate", type=float, default=2e-3)
    options["train"].add_argument("--every", type=int, default=100, help="steps between checkpoints")
    options["cache"].add_argument("--weights", type=Path, required=True)
    options["cache"].add_argument("--again", action="store_true")
    options["sheet"].add_argument("--maps", type=Path, required=True)
    options["sheet"].add_argument("--photos", type=int, default=40)
    given = parser.parse_args()
    if given.command == "train":
        train(given)
    elif given.command == "evaluate":
        _, held = stored(given.data, given.out / EXAMPLES)
        print(table(evaluated(load_network(given.out / WEIGHTS), held)))
    elif given.command == "cache":
        network = load_network(given.weights)
        for name, photos in kinds_of(given.data):
            written = cache(network, given.data, given.out, photos, again=given.again)
            print(f"{name}: {written} of {len(photos)} maps written", flush=True)
    else:
        given.out.mkdir(parents=True, exist_ok=True)
        for name, photos in by_origin(given.data):
            chosen = np.random.default_rng(0).permutation(len(photos))[: given.photos]
            sheet(given.data, given.maps, [photos[one] for one in sorted(chosen)], given.out / f"{name}.jpg")


def by_origin(data: Path) -> Iterable[tuple[str, list[Path]]]:
    """The clear photos by where they come from: clear/ is parted by the names' first word."""
    for name, photos in kinds_of(data):
        groups: dict[str, list[Path]] = {}
        for path in photos:
            groups.setdefault(path.stem.split("_")[0] if name == "clear" else name.split("/")[0], []).append(path)
        yield from groups.items()


if __name__ == "__main__":
    main()
