"""Strips of scenes on the machines of a Ray cluster.

Each actor has a GPU, or some cores of a machine, and loads the networks once. A strip's values do not depend on where
it is computed, so one whose machine dies is given to another. Results come back through Ray, so only the scenes have
to be reachable from all machines, under the same paths.
"""

from __future__ import annotations

import logging
import socket
from collections import deque
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from l4s_geo.errors import InputError, L4SError
from l4s_geo.inference import Rows
from l4s_geo.plan import Here, Plan, Source
from l4s_geo.results import limited_cache
from l4s_geo.scene import Scene

#: Scene rows of a strip: the rows of patches above and below it are computed twice.
STRIP = 1024

#: Most cores of an actor on a machine without GPUs: a larger machine gets several.
CORES = 8

#: Strips that an actor has at a time: the next one waits while one is computed.
HELD = 2


class Mapper:
    """What an actor does."""

    def __init__(self, device: str, cores: int) -> None:
        self._device, self._cores, self._here = device, cores, Here()
        self._scene: tuple[str, Scene] | None = None

    def rows(self, plan: Plan, first: int, end: int) -> list[Rows]:
        """Rows of a strip; the scene stays open for the next one."""
        own = replace(plan, options=replace(plan.options, device=self._device, workers=self._cores))
        with limited_cache():
            if self._scene is None or self._scene[0] != plan.options.scene:
                if self._scene is not None:
                    self._scene[1].close()
                self._scene = plan.options.scene, own.open()
            return list(self._here(own, self._scene[1], first, end))


@dataclass(frozen=True)
class Cluster:
    """Actors that compute the rows of any plan."""

    ray: Any
    actors: list[Any]

    def __call__(self, plan: Plan, scene: Scene, first: int) -> Generator[Rows]:
        """Rows of a plan from ``first`` on, strip by strip as they are done.

        Raises:
            InputError: A scene cannot be read on one of the machines, or all of them have died.
        """
        height = scene.grid.height
        waiting = deque((row, min(row + STRIP, height)) for row in range(first, height, STRIP))
        shared = self.ray.put(_from_anywhere(plan))
        running: dict[Any, tuple[Any, tuple[int, int]]] = {}
        try:
            while waiting or running:
                self._hand_out(waiting, running, shared)
                (ready, *_), _ = self.ray.wait(list(running), num_returns=1)
                actor, strip = running.pop(ready)
                found = self._result(ready, actor)
                if found is None:
                    waiting.appendleft(strip)
                else:
                    yield from found
        finally:
            for task in running:
                self.ray.cancel(task)

    def _hand_out(
        self, waiting: deque[tuple[int, int]], running: dict[Any, tuple[Any, tuple[int, int]]], plan: Any
    ) -> None:
        """Keep every actor busy."""
        if not self.actors:
            raise InputError("All workers of the Ray cluster have died. Look at its logs, and go on with --resume.")
        while waiting:
            held = [sum(owner is actor for owner, _ in running.values()) for actor in self.actors]
            if min(held) >= HELD:
                return
            actor, strip = self.actors[held.index(min(held))], waiting.popleft()
            running[actor.rows.remote(plan, *strip)] = actor, strip

    def _result(self, task: Any, actor: Any) -> list[Rows] | None:
        """What an actor has computed; None if it has died, and then it gets nothing more."""
        try:
            found: list[Rows] = self.ray.get(task)
        except self.ray.exceptions.RayTaskError as e:
            if isinstance(e.cause, L4SError):
                raise type(e.cause)(f"On a worker of the Ray cluster: {e.cause}") from e
            raise
        except self.ray.exceptions.RayError:
            if actor in self.actors:
                self.actors.remove(actor)
            return None
        return found


def _from_anywhere(plan: Plan) -> Plan:
    """The same with absolute paths: actors work in other folders."""
    options = plan.options
    inputs = (options.scene, options.dem, options.slope, options.aoi)
    scene, dem, slope, aoi = (path and _absolute(path) for path in inputs)
    masks = tuple(map(_absolute, options.masks))
    models = tuple(replace(m, folder=m.folder.absolute()) for m in plan.models)
    own = replace(options, scene=scene or "", dem=dem, slope=slope, aoi=aoi, masks=masks)
    return replace(plan, options=own, models=models)


def _absolute(path: str) -> str:
    """Of one or more paths joined by commas; addresses stay as they are."""
    return ",".join(p if "://" in p or p.startswith("/vsi") else str(Path(p).absolute()) for p in path.split(","))


@contextmanager
def on_ray(address: str) -> Iterator[Source]:
    """Actors on all machines of a Ray cluster, for any number of scenes.

    Args:
        address: Of the cluster, ``auto`` for the one that this machine belongs to.

    Raises:
        InputError: Ray is not installed, or there is no cluster at the address.
    """
    try:
        import ray
    except ImportError as e:
        raise InputError("--ray needs the package ray on every machine: pip install ray.") from e
    _check_address(address)
    begun = not ray.is_initialized()
    if begun:
        try:
            ray.init(address, log_to_driver=False, logging_level=logging.ERROR)
        except (ConnectionError, ValueError, RuntimeError) as e:
            raise InputError(f"No Ray cluster answers at {address}: {e}. Start one with `ray start --head`.") from e
    nodes = ray.nodes()  # type: ignore[no-untyped-call]
    actors = [_actor(ray, node, cores) for node in nodes if node["Alive"] for cores in _shares(node)]
    try:
        yield Cluster(ray, actors)
    finally:
        for actor in actors:
            ray.kill(actor)
        if begun:
            ray.shutdown()


def _check_address(address: str) -> None:
    """Raises InputError where nothing answers at HOST:PORT; Ray itself would try for minutes."""
    host, _, port = address.partition(":")
    if not port.isdigit():
        return
    try:
        socket.create_connection((host, int(port)), timeout=10).close()
    except (OSError, OverflowError) as e:
        raise InputError(f"No Ray cluster answers at {address}: {e}. Start one with `ray start --head`.") from e


def _shares(node: dict[str, Any]) -> list[int]:
    """Cores of each actor on a machine, 0 for one with a GPU."""
    gpus, cores = int(node["Resources"].get("GPU", 0)), int(node["Resources"].get("CPU", 0))
    if gpus:
        return [0] * gpus
    return [CORES] * (cores // CORES) or [cores] * (cores > 0)


def _actor(ray: Any, node: dict[str, Any], cores: int) -> Any:
    """An actor on a certain machine."""
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    placed = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
    needs = {"num_cpus": cores} if cores else {"num_gpus": 1, "num_cpus": 0}
    return (
        ray.remote(Mapper)
        .options(scheduling_strategy=placed, **needs)
        .remote("cpu" if cores else "cuda", cores or None)
    )
