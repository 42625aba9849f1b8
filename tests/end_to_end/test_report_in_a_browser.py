"""The report as a browser shows it: nothing on the console, every plot there, nothing fetched from elsewhere."""

import html
import json
import re
import shutil
import subprocess

import pytest
from tests.limits import LIMIT_S

from bigbatch import Recipe, fit, scale
from bigbatch.report import write_report

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
NEEDS_CHROMIUM = pytest.mark.skipif(CHROMIUM is None, reason="Debian's package chromium is not installed; .ci/run installs it")
FLAGS = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking"]
FLAGS += ["--disable-component-update", "--disable-sync", "--enable-logging=stderr", "--window-size=1200,1800"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    out = tmp_path_factory.mktemp("scale")
    recipe = Recipe.named("digits/mlp").replace({"budget.epochs": 3})
    for batch, rule in ((64, "linear"), (256, "sqrt")):
        scale("digits/mlp", to=batch, rule=rule, seeds=2, max_seeds=2, recipe=recipe, out=out, quiet=True)
    write_report(out)
    return out


@NEEDS_CHROMIUM
def test_in_headless_chromium(folder, tmp_path):
    common = [CHROMIUM, *FLAGS, f"--user-data-dir={tmp_path / 'profile'}"]
    page = f"file://{folder / 'report.html'}"
    shown = subprocess.run([*common, "--dump-dom", page], capture_output=True, text=True, timeout=LIMIT_S, check=True)
    assert ":CONSOLE" not in shown.stderr
    plots = re.findall(r'<svg role="img" aria-label="([^"]+)"', shown.stdout)
    assert len(plots) == 10
    assert set(plots) == {
        "Training loss by samples",
        "Training loss by updates",
        "Validation accuracy by samples",
        "Validation accuracy by updates",
        "Learning rate by samples",
    }
    assert shown.stdout.count('class="verdict') == 4
    subprocess.run([*common, f"--screenshot={tmp_path / 'report.png'}", page], capture_output=True, timeout=LIMIT_S, check=True)
    assert (tmp_path / "report.png").stat().st_size > 50_000


MEASURE = """<script>
const narrow = document.querySelector("table.stacked td"), plot = document.querySelector("svg text");
document.title = JSON.stringify({
  wide: document.documentElement.scrollWidth, seen: window.innerWidth, page: getComputedStyle(document.body).backgroundColor,
  ink: getComputedStyle(plot).fill, cell: getComputedStyle(narrow).display,
  blank: Math.max(...[...document.querySelectorAll("table.stacked tr")].map(
    row => row.offsetHeight - [...row.children].reduce((sum, cell) => sum + cell.offsetHeight, 0)))
});
</script>"""


def measured(folder, tmp_path, *flags):
    """What the browser makes of the report."""
    copy = tmp_path / "measured.html"
    copy.write_text((folder / "report.html").read_text().replace("</body>", f"{MEASURE}</body>"))
    command = [CHROMIUM, *FLAGS, f"--user-data-dir={tmp_path / 'profile'}", *flags, "--dump-dom", f"file://{copy}"]
    shown = subprocess.run(command, capture_output=True, text=True, timeout=LIMIT_S, check=True).stdout
    return json.loads(html.unescape(re.search("<title>(.*?)</title>", shown, re.DOTALL)[1]))


@NEEDS_CHROMIUM
def test_on_a_narrow_screen_rows_are_lists_and_nothing_is_wider_than_the_page(folder, tmp_path):
    """Before, the plan's rows were tall and blank there."""
    narrow = measured(folder, tmp_path, "--window-size=400,1800")
    assert narrow["seen"] <= 500  # as narrow as the browser's windows get
    assert narrow["wide"] <= narrow["seen"]
    assert narrow["cell"] == "block"
    assert narrow["blank"] <= 20  # pixels of padding in a row beside its cells
    assert measured(folder, tmp_path)["cell"] == "table-cell"


@NEEDS_CHROMIUM
def test_the_page_and_its_plots_follow_the_readers_preference(folder, tmp_path):
    light, dark = (measured(folder, tmp_path, f"--blink-settings=preferredColorScheme={scheme}") for scheme in (1, 0))
    assert (light["page"], light["ink"]) == ("rgb(255, 255, 255)", "rgb(0, 0, 0)")
    assert (dark["page"], dark["ink"]) == ("rgb(20, 24, 31)", "rgb(217, 222, 230)")


@NEEDS_CHROMIUM
def test_a_console_error_would_be_seen(tmp_path):
    """The guard of the test above."""
    (tmp_path / "broken.html").write_text("<script>undefinedFunction()</script>")
    command = [CHROMIUM, *FLAGS, f"--user-data-dir={tmp_path / 'profile'}", "--dump-dom", f"file://{tmp_path / 'broken.html'}"]
    assert ":CONSOLE" in subprocess.run(command, capture_output=True, text=True, timeout=LIMIT_S, check=True).stderr


def test_is_self_contained(folder):
    text = (folder / "report.html").read_text()
    links = set(re.findall(r"(?:href|src)\s*=\s*\"([^\"#]*)\"", text)) - {"data:,"}
    assert links == set()
    assert "@import" not in text
    assert "<script" not in text


def test_of_a_single_run(tmp_path):
    fit("digits/mlp", Recipe.named("digits/mlp").replace({"budget.epochs": 1}), out=tmp_path / "run", quiet=True, tensorboard=False)
    text = write_report(tmp_path / "run").read_text()
    assert text.count('<svg role="img"') == 5
    assert "num_train_samples = 1297" in text
