"""Train networks on labelled scenes: a recipe and data in, a model directory out."""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace

import numpy as np
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel

from l4s_geo.data.crops import Area, Crop, CropSampler, crops_of_step, seed_of
from l4s_geo.ensemble import choose_device, choose_dtype
from l4s_geo.errors import InputError, ModelError
from l4s_geo.models import domain_norm, pretrained, registry, zoo
from l4s_geo.models.card import CARD, Card
from l4s_geo.progress import Progress
from l4s_geo.train import parallel
from l4s_geo.train.augment import augment
from l4s_geo.train.colour import spectral_channels
from l4s_geo.train.join import join
from l4s_geo.train.losses import compose
from l4s_geo.train.mixing import Mixed, mix
from l4s_geo.train.optimize import optimizer_of, rate_factor
from l4s_geo.train.pseudo import probabilities
from l4s_geo.train.record import Log, Record, load_state, plot, save_state
from l4s_geo.train.run import Run, TrainOptions, averaging
from l4s_geo.train.split import Split, load_split
from l4s_geo.train.validate import score, tune

#: Side of a raw crop as a multiple of the patch's; leaves room to turn and scale it.
ROOM = 1.75


def train(
    options: TrainOptions, progress: Progress, targets: Sequence[Area] = (), withheld: Sequence[Area] = ()
) -> Card:
    """Train the networks of the recipe, one after another, and write the model directory.

    The directory holds ``card.json``, the averaged weights, ``log.csv``, ``curve.png`` and, until the run is
    complete, ``checkpoint.pt``. Several networks get such a directory each, inside of that of their ensemble.

    Started by torchrun as N processes, each takes an N-th of every batch, and the mean of their gradients counts. This
    is what one process does with ``accumulate=N``, but for batch norms (see ``parallel.prepare``): a loss is the mean
    over the parts, which for losses over a whole batch, such as the Jaccard loss, differs from that of the whole. The
    first process alone validates and writes files, and its clock decides about ``minutes``; all return the card.

    Args:
        options: Of the run.
        progress: One stage per network.
        targets: Further labelled areas to learn from, which no holdout touches.
        withheld: Areas to watch where there is no other validation; patience goes by them, thresholds do not.

    Raises:
        InputError: Data or options that cannot be used, or not enough memory.
        ModelError: The model to start from does not fit, or the loss is no number any more.
    """
    with parallel.processes(options.device):
        return _train_all(options, progress, targets, withheld)


def _train_all(options: TrainOptions, progress: Progress, targets: Sequence[Area], withheld: Sequence[Area]) -> Card:
    networks = options.recipe.networks
    if options.threads:
        torch.set_num_threads(options.threads)
    if len(networks) == 1:
        return _train_one(options, progress, targets, withheld)
    for i, arch in enumerate(networks):
        member = replace(
            options,
            out=options.out / arch,
            name=arch,
            recipe=replace(options.recipe, networks=(arch,)),
            minutes=options.minutes / len(networks) if options.minutes else None,
            seed=options.seed + i,
        )
        if not (options.resume and (member.out / CARD).is_file()):
            _train_one(member, progress, targets, withheld)
    names = [str(options.out / arch) for arch in networks]
    return parallel.by_first(lambda: join(names, options.data, options.out, options.name))


def _train_one(options: TrainOptions, progress: Progress, targets: Sequence[Area], withheld: Sequence[Area]) -> Card:
    split = load_split(options.data, options.seed, targets)
    if withheld:
        split = replace(split, watched={"validation": [*withheld], **split.watched})
    run = _start(options, split)
    if parallel.is_first():
        _keep_record(options, run, split, progress)
    else:
        deque(_steps(options, run, split), maxlen=0)
    return parallel.by_first(lambda: _finish(options, run, split))


def _keep_record(options: TrainOptions, run: Run, split: Split, progress: Progress) -> None:
    """Run the steps with progress, log and checkpoints."""
    options.out.mkdir(parents=True, exist_ok=True)
    log = Log(options.out / "log.csv", keep=run.step > 0)
    progress.start(f"training {options.recipe.networks[0]}", 1000)
    shown, validation = 0, ""
    first, started = run.step, run.seconds
    for record in _steps(options, run, split):
        if record is not None:
            log.write(record)
            save_state(run.state(), options.out / "checkpoint.pt")
            validation = f", F1 {record.scores['validation']['f1']:.3f}" if "validation" in record.scores else ""
        share = int(1000 * options.share(run.step, run.seconds))
        if share > shown:
            loss = float(torch.stack([*run.recent]).mean())
            rate = (run.step - first) * options.recipe.batch_size / (run.seconds - started)
            progress.say(f"loss {loss:.3f}{validation}, {rate:.0f} patches/s")
        progress.advance(share - shown)
        shown = share
    progress.finish()


def _start(options: TrainOptions, split: Split) -> Run:
    parts = options.accumulate * parallel.world()
    if options.recipe.batch_size < parts:
        raise InputError(
            f"A batch of {options.recipe.batch_size} patches cannot be cut into {parts} parts (processes times "
            f"--accumulate). Add --batch-size {parts}, or ask for fewer of them."
        )
    torch.manual_seed(options.seed)
    device = choose_device(options.device)
    _, scale = zoo.split_scale(options.recipe.networks[0])
    net = zoo.at_scale(_network(options), scale)
    if _by_domain(options, split):
        net = domain_norm.convert(net, 1 + max(a.domain for a in split.train))
    net = parallel.prepare(net.to(device).to(memory_format=torch.channels_last))
    average = AveragedModel(net, multi_avg_fn=averaging(options.recipe.ema), use_buffers=True)
    first = options.recipe.stages[0]
    run = Run(net, average, optimizer_of(first, net), compose(first.loss), device, choose_dtype(options.dtype, device))
    checkpoint = options.out / "checkpoint.pt"
    if options.resume and checkpoint.is_file():
        run.restore(options.recipe, load_state(checkpoint, device))
    return run


def _by_domain(options: TrainOptions, split: Split) -> bool:
    return options.recipe.domain_norm and any(a.domain for a in split.train)


def _network(options: TrainOptions) -> nn.Module:
    (arch,) = options.recipe.networks
    if options.init is None:
        architecture, args = zoo.preset(arch, options.data.bands)
        if not options.recipe.pretrained:
            return zoo.build(architecture, args, len(options.data.bands))
        net, note = pretrained.build(architecture, args, len(options.data.bands))
        if note and parallel.is_first():
            logging.getLogger(__name__).warning(note)
        return net
    model = registry.find(str(options.init))
    same = [n for n in model.card.networks if zoo.split_scale(n.name)[0] == zoo.split_scale(arch)[0]]
    if not same or model.card.bands != options.data.bands:
        raise ModelError(
            f"Cannot start from {options.init}: it holds {', '.join(n.name for n in model.card.networks)} for bands "
            f"{' '.join(model.card.bands)}, not {arch} for {' '.join(options.data.bands)}. Choose another with --arch."
        )
    return registry.load_network(model, replace(same[0], scale=1.0))


def _steps(options: TrainOptions, run: Run, split: Split) -> Iterator[Record | None]:
    """Run the steps; yields None after each, and a record after each validation."""
    recipe = options.recipe
    size = round(ROOM * options.patch)
    by_domain = _by_domain(options, split)
    sampler = CropSampler(split.train, split.negatives, options.data.negative_share, size, by_domain)
    losses: list[torch.Tensor] = []
    validated, first = run.seconds, run.step
    while (share := parallel.by_first(lambda: _used(options, run))) < 1.0:
        started = time.monotonic()
        stage, inner = recipe.stage_at(share)
        if stage != run.stage:
            run.enter(recipe, stage)
        rate = recipe.stages[stage].learning_rate * rate_factor(recipe.stages[stage], inner)
        for group in run.optimizer.param_groups:
            group["lr"] = rate
        losses.append(_step(options, run, sampler))
        run.recent.append(losses[-1])
        run.step += 1
        run.seconds += time.monotonic() - started
        due = run.seconds - validated >= 60 * options.validate_minutes
        if parallel.is_first() and (due or options.share(run.step, run.seconds) >= 1.0):
            speed = (run.step - first) * recipe.batch_size / (run.seconds - validated)
            loss = float(torch.stack(losses).mean())
            yield Record(run.step, run.seconds / 60, rate, loss, speed, _scores(options, run, split))
            losses, validated, first = [], run.seconds, run.step
        else:
            yield None


def _used(options: TrainOptions, run: Run) -> float:
    """How much of the budget is used, 0..1: all of it where patience is at its end."""
    patience = options.recipe.patience
    return 1.0 if patience and run.stale >= patience else options.share(run.step, run.seconds)


def _scores(options: TrainOptions, run: Run, split: Split) -> dict[str, dict[str, float]]:
    """Figures on the watched areas; remembers the best weights where the recipe has patience for them."""
    net = run.average.module
    found = {name: score(net, areas, run, options.patch) for name, areas in split.watched.items()}
    if options.recipe.patience and "validation" in found:
        run.stale += 1
        if found["validation"]["f1"] > run.best_f1:
            run.stale, run.best_f1 = 0, found["validation"]["f1"]
            run.best = {k: v.detach().clone() for k, v in net.state_dict().items()}
    return found


def _step(options: TrainOptions, run: Run, sampler: CropSampler) -> torch.Tensor:
    """One optimizer step on one batch, of which each process takes its parts; the mean loss of all parts."""
    parts = options.accumulate * parallel.world()
    run.net.train()
    run.optimizer.zero_grad()
    total = torch.zeros((), device=run.device)
    for part in range(parallel.rank(), parts, parallel.world()):
        crops = crops_of_step(sampler, run.step, options.recipe.batch_size, options.seed, part, parts)
        batch = make_batch(crops, options, seed_of(options.seed, run.step, "augment", part))
        torch.manual_seed(seed_of(options.seed, run.step, "network", part))  # of dropout
        domain = domain_norm.use(run.net, crops[0].domain) if sampler.by_domain else nullcontext()
        with domain, _advice_on_memory(options, len(batch.image)):
            loss = _loss(options, run, batch) / options.accumulate
            torch.autograd.backward(loss)
        total += loss.detach()
    if not torch.isfinite(total):
        path = options.out / f"bad-batch{parallel.rank() or ''}.pt"
        save_state({"image": batch.image, "truths": list(batch.truths), "step": run.step}, path)
        raise ModelError(
            f"The loss was {float(total)} at step {run.step}; the batch is in {path}. Look at it for broken pixels, or "
            "train with a lower --learning-rate."
        )
    parallel.synchronize(run.net, total)
    nn.utils.clip_grad_norm_(run.net.parameters(), 3.0)
    run.optimizer.step()
    run.average.update_parameters(run.net)
    return total


@contextmanager
def _advice_on_memory(options: TrainOptions, patches: int) -> Iterator[None]:
    try:
        yield
    except torch.OutOfMemoryError as e:
        raise InputError(
            f"Not enough memory for {patches} patches of {options.patch} pixels at once. Add --accumulate "
            f"{2 * options.accumulate}, which gives nearly the same result, or lower --batch-size."
        ) from e


def _loss(options: TrainOptions, run: Run, batch: Mixed) -> torch.Tensor:
    x = batch.image.to(run.device, memory_format=torch.channels_last, non_blocking=True)
    with torch.autocast(run.device.type, run.dtype, enabled=run.dtype != torch.float32):
        answer = run.net(x)
    logits, *more = answer if isinstance(answer, tuple) else (answer,)
    on_device = Mixed(x, tuple((share, truth.to(run.device, non_blocking=True)) for share, truth in batch.truths))
    return on_device.loss(run.loss, logits.float(), *more)


def make_batch(crops: list[Crop], options: TrainOptions, seed: int) -> Mixed:
    """Augmented, compressed and mixed patches (N, C, patch, patch) float32 with their truth."""
    x, y, seen = augment(
        torch.from_numpy(np.stack([c.image for c in crops])),
        torch.from_numpy(np.stack([c.truth for c in crops])),
        torch.from_numpy(np.stack([c.valid for c in crops])),
        options.patch,
        options.recipe.augmentation,
        spectral_channels(options.data.bands),
        seed,
    )
    if options.data.compression == "asinh":
        x = x.asinh()
    generator = torch.Generator().manual_seed(seed_of(seed, "mix"))
    return mix(x * seen[:, None], probabilities(y), options.recipe.mixing, generator)


def _finish(options: TrainOptions, run: Run, split: Split) -> Card:
    (arch,) = options.recipe.networks
    if run.best:
        run.average.module.load_state_dict(run.best)
    net = run.average.module.eval()
    if _by_domain(options, split):
        net = domain_norm.collapse(net, max(a.domain for a in split.train))
    architecture, args = zoo.preset(arch, options.data.bands)
    network = registry.save_network(net, options.out, arch, architecture, args, zoo.split_scale(arch)[1])
    tuned = tune([net], split.validation, run.device, run.dtype, options.patch)
    card = Card(
        name=options.name,
        version="1",
        licence="Apache-2.0",
        networks=(network,),
        bands=options.data.bands,
        input_units="dn",
        compression=options.data.compression,
        statistics=split.statistics.to_dict(),
        resolution_m=options.data.resolution,
        thresholds=tuned.thresholds,
        threshold_split=", ".join(options.data.validate) or "not tuned",
        normalization=options.data.normalization,
        training={
            "settings": options.describe(),
            "processes": parallel.world(),
            "steps": run.step,
            "minutes": round(run.seconds / 60, 1),
        },
        metrics=tuned.figures,
    ).calibrated(tuned.calibration(options.data.validate))
    card.save(options.out)
    plot(options.out / "log.csv", options.out / "curve.png")
    (options.out / "checkpoint.pt").unlink(missing_ok=True)
    return card
