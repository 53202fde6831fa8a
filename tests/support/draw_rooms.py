"""Draws which room imports which as an SVG: `python tests/support/draw_rooms.py > docs/images/rooms.svg`.

Rooms are the top folders and, for `serving`, its own folders. A room lies below every room that imports it. An arrow
that two others already imply is left out.
"""

import sys
from collections.abc import Mapping
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from support.import_graph import Edges, import_graph

ROOT = Path(__file__).resolve().parents[2]
WIDTH, BOX_WIDTH, BOX_HEIGHT, FLOOR_HEIGHT, MARGIN = 900, 150, 30, 62, 20
Rooms = Mapping[str, set[str]]
Place = tuple[int, int]


def picture(root: Path = ROOT) -> str:
    """Return the SVG of the code below `root`."""
    rooms = _rooms(import_graph(root))
    floors = _floors(rooms)
    places = {
        room: (round(WIDTH * (column + 1) / (len(floor) + 1)), MARGIN + BOX_HEIGHT // 2 + number * FLOOR_HEIGHT)
        for number, floor in enumerate(floors)
        for column, room in enumerate(floor)
    }
    height = 2 * MARGIN + BOX_HEIGHT + (len(floors) - 1) * FLOOR_HEIGHT
    arrows = [_arrow(places[room], places[other]) for room in places for other in sorted(_direct(room, rooms))]
    boxes = [_box(room, places[room]) for room in places]
    return "\n".join((_head(height), *arrows, *boxes, "</svg>")) + "\n"


def _rooms(edges: Edges) -> dict[str, set[str]]:
    rooms: dict[str, set[str]] = {}
    for file, imported in edges.items():
        if (room := _room(file)) is not None:
            rooms.setdefault(room, set()).update({other for name in imported if (other := _room(name))} - {room})
    return rooms


def _room(file: Path) -> str | None:
    if file.parts[0] != "serving":
        return file.parts[0]
    return f"serving/{file.parts[1]}" if len(file.parts) > 2 else None


def _floors(rooms: Rooms) -> list[list[str]]:
    """Each room as far down as the lowest room that imports it, plus one."""
    level = dict.fromkeys(rooms, 0)
    for _ in rooms:
        for room, others in rooms.items():
            for other in others:
                level[other] = max(level[other], level[room] + 1)
    return [sorted(room for room in rooms if level[room] == number) for number in range(max(level.values()) + 1)]


def _direct(room: str, rooms: Rooms) -> set[str]:
    """What `room` imports and none of its other imports reaches."""
    return {other for other in rooms[room] if not any(other in _reached(via, rooms) for via in rooms[room] - {other})}


def _reached(room: str, rooms: Rooms) -> set[str]:
    found, todo = set[str](), [room]
    while todo:
        new = rooms[todo.pop()] - found
        found |= new
        todo += new
    return found


def _head(height: int) -> str:
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height}" font-family="sans-serif" '
        'font-size="13" text-anchor="middle">\n'
        '<marker id="tip" viewBox="0 0 8 8" refX="8" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
        '<path d="M0 0L8 4L0 8z" fill="#889"/></marker>\n<rect width="100%" height="100%" fill="#fff"/>'
    )


def _arrow(start: Place, end: Place) -> str:
    (x1, y1), (x2, y2), half = start, end, BOX_HEIGHT // 2
    return f'<line x1="{x1}" y1="{y1 + half}" x2="{x2}" y2="{y2 - half}" stroke="#889" marker-end="url(#tip)"/>'


def _box(room: str, place: Place) -> str:
    x, y = place
    left, top = x - BOX_WIDTH // 2, y - BOX_HEIGHT // 2
    shape = f'<rect x="{left}" y="{top}" width="{BOX_WIDTH}" height="{BOX_HEIGHT}" rx="4" fill="#eef" stroke="#334"/>'
    return f'{shape}<text x="{x}" y="{y + 5}">{room}</text>'


if __name__ == "__main__":
    sys.stdout.write(picture())
