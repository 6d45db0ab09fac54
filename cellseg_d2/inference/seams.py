"""One cell from all that tiles say of it.

StarDist gives each object to one responsible tile and refuses objects larger than the overlap
(Schmidt et al. 2018, arXiv 1806.03535; its ``predict_instances_big``). Here the tiles' answers are
compared as well, for two reasons: a network that sees other surroundings draws another mask, so
that of two neighbours both or neither may call a cell their own; and no cell is refused for its
size.

Terms, all of the answers for one image:

- A detection is *whole* if it keeps ``WHOLE_DEPTH`` pixels from the inner borders of its tile, else
  *cut*. Its tile is *responsible* if its box is centred in the tile's core. What is whole in one
  tile and centred in the core of another lies whole within that other one (``tile_grid``).
- Two detections of different tiles are *linked* if they share most of their pixels
  (``seam_links``).

Rules, for each set of detections that links connect:

1. Whole detections are one cell if they are linked: strongest links first, those of one class
   before others, and never two of the same tile.
2. A cut detection linked to whole ones belongs to the cell of the strongest link.
3. A cell of whole detections is kept if a responsible tile found it, or if two tiles did. It looks
   as the responsible tile saw it, else the one in which it lies deepest.
4. The other cut detections are joined where they are linked, and make one cell: all their pixels,
   score and class of the best of them. Links between classes come last, and do not join what one
   tile tells apart. The cell is kept if a responsible tile found one of its parts, or if the tile
   responsible for all of it, by the box around it, did, or if it reaches out of that tile: then
   that two others found it counts for more.
5. A cut detection left alone is kept, too, if its tile is responsible. It is counted, for there may
   be more of this cell than was found.
6. What is cut and not kept is counted, too.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from detectron2.structures import Instances
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from .detections import Detections
from .seam_links import NO_LINKS, Links, find_links
from .tile_grid import TileGrid


class SeamResolver:
    """Takes in rows of tiles, from the top, and gives out cells that no later row can change.

    What is held are the detections that reach down to the next row of tiles, and those linked to
    them.

    Args:
        grid: the tiles.
        min_shared: share of its pixels from which a detection is linked; in (0, 1].

    Attributes:
        num_joined: cells made of parts so far.
        num_cut: cells so far that end where a tile does.
        num_denied: cut detections so far, joined or alone, that are left out because the
            responsible tile did not find them.
    """

    def __init__(self, grid: TileGrid, min_shared: float) -> None:
        self.num_joined = 0
        self.num_cut = 0
        self.num_denied = 0
        self._grid = grid
        self._min_shared = min_shared
        self._waiting: list[Detections] = []
        self._links = NO_LINKS

    def settle(self, row: int, found: Sequence[Detections]) -> Instances:
        """Add a row of tiles.

        Args:
            row: of the tiles, in turn from 0.
            found: what was found in each of them.

        Returns:
            The cells that are settled with it, in the image, best score first.
        """
        detections = Detections.cat([*self._waiting, *found])
        num_known = sum(map(len, self._waiting))
        links = self._links.cat(find_links(detections, num_known, self._grid, self._min_shared))
        is_last = row + 1 == self._grid.num_rows
        next_top = np.inf if is_last else self._grid.rows.starts[row + 1]
        component = _components(len(detections), links)
        # Equality: a cut cell may go on beyond a border without overlap.
        waits = np.unique(component[detections.boxes[:, 3] >= next_top])
        stays = np.isin(component, waits)

        self._waiting = [detections[stays]]
        new_index = np.cumsum(stays) - 1
        kept_links = links[stays[links.first]]
        self._links = Links(
            new_index[kept_links.first], new_index[kept_links.second], kept_links.strengths
        )
        cells = self._cells(detections, links[~stays[links.first]], ~stays, component)
        return detections.to_instances(cells)

    def _cells(
        self, detections: Detections, links: Links, settled: np.ndarray, component: np.ndarray
    ) -> list[list[int]]:
        """Groups of detections, each a cell; see ``Detections.to_instances``."""
        linked = np.zeros(len(detections), dtype=bool)
        linked[links.first] = linked[links.second] = True
        alone = settled & ~linked & detections.responsible
        denied = settled & ~linked & ~detections.responsible
        self.num_cut += int((alone & ~detections.whole).sum())
        self.num_denied += int((denied & ~detections.whole).sum())
        cells = [[index] for index in np.flatnonzero(alone).tolist()]

        order = np.argsort(component[links.first], kind="stable")
        ends = np.flatnonzero(np.diff(component[links.first[order]])) + 1
        for members in np.split(order, ends) if len(order) else []:
            cells += self._cells_of(detections, links[members])
        return cells

    def _cells_of(self, detections: Detections, links: Links) -> list[list[int]]:
        """Cells of detections that links connect."""
        same_class = detections.classes[links.first] == detections.classes[links.second]
        ranked = np.lexsort((links.second, links.first, -links.strengths, ~same_class))
        pairs = [(int(links.first[i]), int(links.second[i]), bool(same_class[i])) for i in ranked]
        members = {index for first, second, _ in pairs for index in (first, second)}
        whole = {index for index in members if detections.whole[index]}

        groups = _Groups(sorted(whole))
        for first, second, _ in pairs:
            if first in whole and second in whole:
                groups.join_if_apart(first, second, detections.tiles)
        cut = members - whole
        for first, second, _ in pairs:
            if first in whole and second in cut:
                groups.add(second, first)
                cut.discard(second)

        cells = []
        for group in groups.all():
            if len(group) > 1 or detections.responsible[group[0]]:
                seen = [index for index in group if index in whole]
                cells.append([max(seen, key=lambda i: _clarity(detections, i))])
        return cells + self._join_cut(detections, sorted(cut), pairs)

    def _join_cut(
        self,
        detections: Detections,
        cut: list[int],
        pairs: Iterable[tuple[int, int, bool]],
    ) -> list[list[int]]:
        """Cells of cut detections that no whole one accounts for."""
        pairs = [pair for pair in pairs if pair[0] in cut and pair[1] in cut]
        groups = _Groups(cut)
        for first, second, same in pairs:
            if same:
                groups.join(first, second)
            else:
                groups.join_if_apart(first, second, detections.tiles)
        cells = []
        for group in groups.all():
            if detections.responsible[group].any() or self._is_believed(
                detections[np.array(group)]
            ):
                self.num_joined += len(group) > 1
                self.num_cut += len(group) == 1
                cells.append(sorted(group, key=lambda i: (-detections.scores[i], i)))
            else:
                self.num_denied += 1
        return cells

    def _is_believed(self, parts: Detections) -> bool:
        """Whether parts count that no tile responsible for one of them found.

        So they do if the tile responsible for all of them together is among theirs, or if they are
        several, and reach out of that tile.
        """
        box = np.concatenate([parts.boxes[:, :2].min(axis=0), parts.boxes[:, 2:].max(axis=0)])
        tile = self._grid.responsible_tile(box)
        reaches_out = self._grid.depths(tile, box[None])[0] < 0
        return tile.number in parts.tiles or (len(parts) > 1 and bool(reaches_out))


class _Groups:
    """Disjoint sets of a few indices."""

    def __init__(self, indices: Iterable[int]) -> None:
        self._of = {index: [index] for index in indices}

    def add(self, index: int, member: int) -> None:
        """Add a new index to the set of another."""
        self._of[index] = self._of[member]
        self._of[member].append(index)

    def join(self, first: int, second: int) -> None:
        """Unite two sets."""
        if self._of[first] is not self._of[second]:
            group = self._of[first] + self._of[second]
            self._of.update(dict.fromkeys(group, group))

    def join_if_apart(self, first: int, second: int, tiles: np.ndarray) -> None:
        """Unite two sets unless they hold detections of the same tile."""
        seen = {int(tiles[index]) for index in self._of[first]}
        if seen.isdisjoint(int(tiles[index]) for index in self._of[second]):
            self.join(first, second)

    def all(self) -> list[list[int]]:
        """The sets, in the order of their first index."""
        return list({id(group): group for group in self._of.values()}.values())


def _clarity(detections: Detections, index: int) -> tuple[bool, float, float, int]:
    return (
        bool(detections.responsible[index]),
        float(detections.depths[index]),
        float(detections.scores[index]),
        -index,
    )


def _components(num_detections: int, links: Links) -> np.ndarray:
    """The number of each detection's connected set, (N,)."""
    ones = np.ones(len(links), dtype=bool)
    graph = coo_array((ones, (links.first, links.second)), shape=(num_detections,) * 2)
    return connected_components(graph, directed=False)[1]
