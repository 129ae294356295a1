"""Face embeddings: how surely people are told apart, and whom a face lies next to."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from pipelines.figures import GREY, LINE_COLORS, draw
from pipelines.page import Picture
from pipelines.pictures.base import Details, Images
from pipelines.pictures.photo_grid import Row, Tile, photo_grid
from pipelines.tables import Record

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from tasks.base import Evaluation, TestSet

QUERIES, NEIGHBOURS = 6, 6
CHUNK = 512  # queries whose distances to all images are held at a time
MARKED = (1e-4, 1e-3)  # false accept rates

Floats = npt.NDArray[np.floating]
Places = npt.NDArray[np.int64]


def embedding_details(evaluation: Evaluation, _: TestSet, images: Images) -> Details:
    """The ROC curve, and some images with those nearest to them.

    arrays: "embeddings" (N, D) float32, of unit length or zero; "identities" (N,) int64; "roc_far" and "roc_tar", the
    curve over all pairs, ascending; perhaps "pairs_fpr" and "pairs_tpr", that over the pairs which the data set lists.
    metrics: "impostor_pairs", all pairs of two people. The second picture is left out where nobody has two images, or
    where an embedding is not finite.
    """
    arrays, impostors = evaluation.arrays, int(evaluation.metrics["impostor_pairs"])
    far, tar = arrays["roc_far"], arrays["roc_tar"]
    curves = {"all pairs": visible(far, tar, 1 / impostors)}
    if "pairs_fpr" in arrays:
        listed = arrays["pairs_fpr"]
        curves["listed pairs"] = visible(listed, arrays["pairs_tpr"], listed[listed > 0].min())
    caption = (
        "True accept rate by false accept rate, as the threshold on the distance rises; the vertical lines are at "
        f"{' and '.join(f'{rate:g}' for rate in MARKED)}, as far as the axis reaches. It begins at one "
        f"of the {impostors:,} pairs of two people: no lower rate can be measured."
    )
    pictures = [Picture("roc", "Same person or not", caption, "", roc_figure(curves, 1 / impostors))]
    pictures += neighbour_pictures(arrays["embeddings"], arrays["identities"], images)
    return Details(pictures, {"roc": [Record(far=float(x), tar=float(y)) for x, y in zip(far, tar, strict=True)]})


def visible(far: Floats, tar: Floats, lowest: float) -> tuple[Floats, Floats]:
    """A curve from `lowest` on, where a logarithmic axis begins; it starts there if it is known that far down."""
    above = far > lowest
    if above.all():
        return far, tar
    return np.append(lowest, far[above]), np.append(tar[~above].max(), tar[above])


def roc_figure(curves: dict[str, tuple[Floats, Floats]], lowest: float) -> dict[str, bytes]:
    """Curves of TAR by FAR, from `lowest` up to 1, with lines at MARKED as far as these are not below."""

    def plot(figure: Figure) -> None:
        axes = figure.add_subplot()
        for rate in (rate for rate in MARKED if rate >= lowest):
            axes.axvline(rate, color=GREY, linewidth=1, linestyle=(0, (4, 3)))
        for (label, (far, tar)), style, color in zip(curves.items(), ("-", "--"), LINE_COLORS[::4], strict=False):
            axes.plot(far, tar, style, color=color, linewidth=1.8, drawstyle="steps-post", label=label)
        guess = np.geomspace(lowest, 1, 200)
        axes.plot(guess, guess, color=GREY, linewidth=1, linestyle=":", label="guessing")
        axes.set(xscale="log", xlim=(lowest, 1), ylim=(0, 1.02))
        axes.set(xlabel="false accept rate (FAR)", ylabel="true accept rate (TAR)")
        figure.legend(loc="outside upper center", ncols=3, fontsize=9)

    return draw(plot, 6.8, 4.4)


def neighbour_pictures(embeddings: Floats, identities: Places, images: Images) -> list[Picture]:
    """Images of people who have others, each with those nearest to it; nothing where nobody has two."""
    _, person, counts = np.unique(identities, return_inverse=True, return_counts=True)
    candidates = np.flatnonzero(counts[person] > 1)
    if not len(candidates) or not np.isfinite(embeddings).all():
        return []
    places, distances = nearest(embeddings, candidates, min(NEIGHBOURS, len(embeddings) - 1))
    same = person[places] == person[candidates][:, None]
    rows = []
    for query in chosen(person[candidates], same[:, 0]):
        near = zip(places[query], distances[query], same[query], strict=True)
        tiles = [Tile(int(place), f"{distance:.2f}", bool(right)) for place, distance, right in near]
        rows.append(Row("", ([Tile(int(candidates[query]), "")], tiles)))
    caption = (
        "Squared distances of the embeddings, from 0 to 4. ✓ and green: the same person. ✗ and orange: another. The "
        f"nearest image shows the same person for {100 * same[:, 0].mean():.1f} % of the {len(candidates):,} images "
        "of people who have more than one; half of the rows are of the others, as far as there are any."
    )
    files = photo_grid(("image", "nearest other images"), rows, images)
    return [Picture("neighbours", "Nearest faces", caption, "", files)]


def nearest(embeddings: Floats, queries: Places, count: int) -> tuple[Places, Floats]:
    """The `count` images nearest to each of Q images, itself left out: (Q, count) places and squared distances."""
    places, distances = [], []
    squares = np.square(embeddings).sum(axis=1)
    for start in range(0, len(queries), CHUNK):
        chunk = queries[start : start + CHUNK]
        squared = squares[chunk, None] + squares - 2 * embeddings[chunk] @ embeddings.T
        squared[np.arange(len(chunk)), chunk] = np.inf
        near = np.sort(np.argpartition(squared, count - 1, axis=1)[:, :count], axis=1)
        order = np.argsort(np.take_along_axis(squared, near, axis=1), axis=1, kind="stable")
        places.append(np.take_along_axis(near, order, axis=1))
        distances.append(np.take_along_axis(squared, places[-1], axis=1).clip(min=0))
    return np.concatenate(places), np.concatenate(distances)


def chosen(person: Places, right: npt.NDArray[np.bool_]) -> list[int]:
    """QUERIES of the candidates, or fewer: as many right as wrong ones, as far as there are, the right ones first.

    person, right: (Q,) whose image it is, and whether the nearest shows the same person. A person comes twice at most,
    once right and once wrong.
    """
    groups = []
    for wanted in (True, False):
        places = np.flatnonzero(right == wanted)
        _, first = np.unique(person[places], return_index=True)
        groups.append(places[first])
    rights, wrongs = groups
    count = min(len(wrongs), max(QUERIES // 2, QUERIES - len(rights)))
    return [*_spread(rights, QUERIES - count), *_spread(wrongs, count)]


def _spread(places: Places, count: int) -> list[int]:
    """`count` of the places, or all where there are fewer, evenly spread."""
    picked = np.linspace(0, len(places) - 1, min(count, len(places))).round().astype(np.int64)
    return [int(place) for place in places[picked]]
