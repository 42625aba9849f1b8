"""docs/screenshots.py: each kind of report that it makes, in each look, is there and small."""

import importlib.util
from pathlib import Path

SCRIPT = Path(__file__).parents[2] / "docs" / "screenshots.py"


def test_every_kind_and_look_is_there():
    spec = importlib.util.spec_from_file_location("screenshots", SCRIPT)
    made = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(made)
    expected = {f"{name}-{look}.png" for name in made.MADE for look in made.LOOKS}
    assert {path.name for path in made.PLACE.glob("*.png")} == expected
    assert all((made.PLACE / name).stat().st_size <= made.MOST_BYTES for name in expected)
