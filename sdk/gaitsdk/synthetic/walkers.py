"""The public calls: one sequence, its raw masks, a whole data set, a folder in CASIA-B's layout, a contact sheet."""

from __future__ import annotations

import os
import pickle
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gaitsdk.errors import OptionError
from gaitsdk.synthetic import render
from gaitsdk.synthetic.body import Body, draw_body
from gaitsdk.synthetic.covariates import TYPES, Outfit, draw_outfit, type_numbers
from gaitsdk.synthetic.gait import Style, draw_motion, draw_style
from gaitsdk.synthetic.pose import Solids, flesh, pose
from gaitsdk.synthetic.render import VIEWS

Silhouettes = NDArray[np.uint8]
FRAME_RATE = 25.0  # frames per second, as CASIA-B
_PERSON, _WALK, _FILM = 0, 1, 2  # the streams of random numbers


@dataclass(frozen=True)
class Identity:
    """One synthetic person: number, the seed of the crowd, body and gait."""

    number: int
    seed: int
    body: Body
    style: Style

    @property
    def name(self) -> str:
        """The number with at least three digits, as folders are named."""
        return f"{self.number:03d}"


@dataclass(frozen=True)
class SyntheticSequence:
    """One film of one walk; `silhouettes` uint8 [T,64,64]."""

    identity: str
    type: str
    view: str
    silhouettes: Silhouettes


@dataclass(frozen=True)
class _Walk:
    """A walk in space, to be filmed by any number of cameras."""

    key: tuple[int, ...]
    solids: Solids
    rig: tuple[float, float, float]


def views() -> tuple[str, ...]:
    """The eleven view names, '000' (towards the camera), '018', ... '090' (side), ... '180' (from behind)."""
    return VIEWS


def identity(number: int, seed: int = 0) -> Identity:
    """The person `number` of the crowd `seed`: the same body and gait on every call.

    Raises:
        OptionError: a number or seed that is not a whole number >= 0.
    """
    _whole("identity", number, 0)
    _whole("seed", seed, 0)
    rng = _stream(seed, number, _PERSON)
    body = draw_body(rng)
    return Identity(int(number), int(seed), body, draw_style(rng, body.female))


def sequence(
    identity: int, type: str = "nm-01", view: str = "090", frames: int = 30, seed: int = 0, noise: float = 0.0
) -> Silhouettes:
    """One walk filmed by one camera, as normalised silhouettes.

    Args:
        identity: number of the person, >= 0.
        type: nm-NN, bg-NN (bag) or cl-NN (coat).
        view: one of VIEWS.
        frames: length T, at 25 frames per second.
        seed: the crowd; another seed gives other people.
        noise: segmentation errors, 0 (clean) to 1 (poor).

    Returns:
        uint8 [T,64,64], person 255 with grey edges, 64 rows high, centred by the median column.

    Raises:
        OptionError: an argument out of its range.
    """
    _check(type, view, frames, noise)
    return _film(_walk(identity, type, frames, seed), view, noise)


def masks(
    identity: int,
    type: str = "nm-01",
    view: str = "090",
    frames: int = 30,
    seed: int = 0,
    noise: float = 0.0,
    height: int = 240,
    width: int = 320,
) -> Silhouettes:
    """The same film before normalisation: the person crosses a picture of `height` x `width` pixels.

    Returns:
        uint8 {0,255} [T,height,width]; the person is about 46 % of the height (110 of 240 pixels) amid its path.

    Raises:
        OptionError: an argument out of its range.
    """
    _check(type, view, frames, noise)
    _whole("height", height, 32)
    _whole("width", width, 32)
    shapes, hidden, holes, camera = _shapes(_walk(identity, type, frames, seed), view, noise)
    return render.draw_masks(shapes, hidden, holes, camera, (height, width))


def dataset(
    identities: Iterable[int],
    types: Sequence[str] = TYPES,
    views: Sequence[str] = VIEWS,
    frames: int = 30,
    seed: int = 0,
    noise: float = 0.0,
    workers: int = 1,
) -> Iterator[SyntheticSequence]:
    """All sequences of some people, by identity, then type, then view.

    Each equals `sequence(...)` of the same arguments; a walk is computed once for all its views. `workers` > 1 spreads
    the people over processes (started by spawn: a script needs its `if __name__ == "__main__"`): the same bytes in the
    same order.

    Raises:
        OptionError: an argument out of its range (at the call, before the first sequence).
    """
    people = [_whole("identities", number, 0) for number in identities]
    for name in types:
        for view in views:
            _check(name, view, frames, noise)
    _whole("seed", seed, 0)
    _whole("workers", workers, 1)
    jobs = [(number, tuple(types), tuple(views), frames, seed, noise) for number in people]
    return _produce(jobs, workers)


def _produce(jobs: list[tuple[Any, ...]], workers: int) -> Iterator[SyntheticSequence]:
    if workers == 1 or len(jobs) < 2:
        for job in jobs:
            yield from _person(job)
        return
    import multiprocessing

    # spawn: the caller may hold threads (torch, onnxruntime), which a fork would copy in an unknown state
    with multiprocessing.get_context("spawn").Pool(min(workers, len(jobs))) as pool:
        waiting: deque[Any] = deque()  # bounded: a slow reader must not fill the memory with finished people
        for job in jobs:
            waiting.append(pool.apply_async(_person_list, (job,)))
            if len(waiting) > workers + 1:
                yield from waiting.popleft().get()
        while waiting:
            yield from waiting.popleft().get()


def _person(job: tuple[Any, ...]) -> Iterator[SyntheticSequence]:
    number, types, views, frames, seed, noise = job
    for name in types:
        walk = _walk(number, name, frames, seed)
        for view in views:
            yield SyntheticSequence(f"{number:03d}", name, view, _film(walk, view, noise))


def _person_list(job: tuple[Any, ...]) -> list[SyntheticSequence]:
    return list(_person(job))


def write_casiab(
    root: str | os.PathLike[str],
    identities: Iterable[int],
    types: Sequence[str] = TYPES,
    views: Sequence[str] = VIEWS,
    frames: int = 30,
    seed: int = 0,
    noise: float = 0.0,
    workers: int = 1,
    progress: Callable[[int, int], None] | None = None,
) -> int:
    """Write the CASIA-B tree `<root>/<id>/<type>/<view>/<view>.pkl`, each a pickled uint8 [T,64,64] array (protocol 4).

    Args:
        progress: called as progress(done, total) after each sequence.

    Returns:
        The number of sequences written.

    Raises:
        OptionError: an argument out of its range.
        OSError: the folder cannot be written.
    """
    people = list(identities)
    total = len(people) * len(types) * len(views)
    done = 0
    for item in dataset(people, types, views, frames, seed, noise, workers):
        folder = Path(root) / item.identity / item.type / item.view
        folder.mkdir(parents=True, exist_ok=True)
        with open(folder / f"{item.view}.pkl", "wb") as file:
            pickle.dump(item.silhouettes, file, protocol=4)
        done += 1
        if progress is not None:
            progress(done, total)
    return done


def contact_sheet(path: str | os.PathLike[str], rows: Sequence[NDArray[Any]], columns: int = 16, zoom: int = 2) -> None:
    """Save sequences as a picture: one row of `columns` evenly spaced frames per sequence.

    Args:
        path: the picture file; its ending gives the format.
        rows: uint8 [T,H,W] each, all of one H and W.
        columns: frames per row, at most; zoom: enlargement of a pixel.

    Raises:
        OptionError: no rows, or rows of different sizes.
    """
    from PIL import Image

    if not rows or any(np.ndim(r) != 3 or len(r) == 0 or r.shape[1:] != rows[0].shape[1:] for r in rows):
        raise OptionError(
            "A contact sheet needs sequences of one picture size",
            where="rows",
            got=[np.shape(r) for r in rows],
            expected="a non-empty list of arrays [T,H,W]",
            fix="pass e.g. [sequence(1, view=v) for v in VIEWS]",
        )
    _whole("columns", columns, 1)
    _whole("zoom", zoom, 1)
    height, width = rows[0].shape[1:]
    sheet = np.full((len(rows) * (height + 2), columns * (width + 2)), 60, np.uint8)
    for i, row in enumerate(rows):
        for j, t in enumerate(np.unique(np.linspace(0, len(row) - 1, columns).round().astype(int))):
            sheet[i * (height + 2) :, j * (width + 2) :][:height, :width] = row[t]
    image = Image.fromarray(sheet)
    image.resize((image.width * zoom, image.height * zoom), Image.Resampling.NEAREST).save(path)


def _walk(number: int, name: str, frames: int, seed: int) -> _Walk:
    """The walk in space: clothes, joint angles and solids."""
    person = identity(number, seed)
    condition, index = type_numbers(name)
    rng = _stream(seed, number, _WALK, condition, index)
    outfit: Outfit = draw_outfit(rng, condition, person.body)
    rig = render.draw_rig(rng)
    motion = draw_motion(rng, person.style, frames, FRAME_RATE, outfit.carry())
    joints = pose(person.body, person.style, motion)
    return _Walk((seed, number, condition, index), flesh(person.body, joints, outfit), rig)


def _shapes(walk: _Walk, view: str, noise: float) -> tuple[Any, Any, render.Holes, render.Camera]:
    """Outlines of one film, with the segmentation's errors."""
    seed, number, condition, index = walk.key
    number_of_view = VIEWS.index(view)
    rng = _stream(seed, number, _FILM, condition, index, number_of_view)
    camera = render.draw_camera(rng, walk.rig, number_of_view)
    shapes = render.outlines(walk.solids, camera)
    return (*render.blemishes(rng, shapes, walk.solids.parts, float(noise)), camera)


def _film(walk: _Walk, view: str, noise: float) -> Silhouettes:
    shapes, hidden, holes, _ = _shapes(walk, view, noise)
    return render.rasterise(shapes, hidden, holes)


def _stream(seed: int, number: int, *rest: int) -> np.random.Generator:
    return np.random.default_rng(np.random.SeedSequence((int(seed), int(number), *rest)))


def _check(name: str, view: str, frames: int, noise: float) -> None:
    """Raise OptionError unless type, view, frames and noise are usable."""
    type_numbers(name)
    if view not in VIEWS:
        raise OptionError(
            "Unknown view",
            where="view",
            got=repr(view),
            expected=f"one of {', '.join(VIEWS)}",
            fix="take the nearest of them",
        )
    _whole("frames", frames, 1)
    if isinstance(noise, bool) or not isinstance(noise, (int, float, np.floating)) or not 0.0 <= float(noise) <= 1.0:
        raise OptionError(
            "Unusable noise level",
            where="noise",
            got=repr(noise),
            expected="a number from 0 to 1",
            fix="pass 0 for clean silhouettes",
        )


def _whole(where: str, value: object, least: int) -> int:
    """`value` as an int, or OptionError unless it is a whole number >= `least`."""
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < least:
        raise OptionError(
            "Not a usable number",
            where=where,
            got=repr(value),
            expected=f"a whole number >= {least}",
            fix=f"pass e.g. {least}",
        )
    return int(value)
