from __future__ import annotations

import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from studies import make_study

from monai_basisprune.errors import ConfigurationError
from monai_basisprune.report import compare_studies, save_study, write_report

HOSTILE = "<script>alert(1)</script><img src=x onerror=alert(2)>\"'&"
NAMESPACES = {"http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"}
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")


class Tags(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.names: list[str] = []
        self.attributes: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        self.names.append(tag)
        self.attributes += [name for name, _ in attrs]


def assert_self_contained(text: str) -> None:
    assert set(re.findall(r'https?://[^"\s<)]+', text)) <= NAMESPACES
    tags = Tags(text)
    assert not {"script", "img", "link", "iframe", "object", "base", "a", "form"} & set(tags.names)
    assert not [name for name in tags.attributes if name.startswith("on") or name == "src"]
    assert "default-src 'none'; style-src 'unsafe-inline'; img-src data:" in text
    assert "@import" not in text
    assert "nan" not in re.findall(r"\b[a-z]+\b", text)


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return write_report(make_study(), tmp_path_factory.mktemp("report") / "out")


def test_files_and_nothing_else(report: dict[str, Path]) -> None:
    assert {key: path.name for key, path in report.items()} == {
        "curve_csv": "curve.csv",
        "curve_svg": "curve.svg",
        "curve_png": "curve.png",
        "report_html": "report.html",
    }
    assert {path.name for path in report["report_html"].parent.iterdir()} == {p.name for p in report.values()}


def test_report_holds_everything(report: dict[str, Path]) -> None:
    text = report["report_html"].read_text(encoding="utf-8")
    assert_self_contained(text)
    study = make_study()
    for words in (
        "Non-inferiority is not shown",
        "The interval of the change on the validation set does not support this choice",
        "Synthetic data.",
        "They say nothing about patients",
        "0.905 (0.860 to 0.939)",
        "\u22120.007 (\u22120.032 to +0.018)",
        "6.96\u00a0M",
        "only convolutions are decomposed",
        study["data"]["split_sha256"],
        "--dataset_dir /data/synthetic --seed 0",
        "torch 2.13.0+cpu",
        "2 patients occur in both classes",
        "arXiv:2108.02893",
        "is a medical device; do not use",
        "patient-clustered bootstrap, 2000 resamples",
        "model.plan.json",
    ):
        assert words in text, words
    assert text.count("<svg") == 6
    assert text.count('class="picked"') == 1


def test_every_string_is_escaped(tmp_path: Path) -> None:
    study = make_study(title=HOSTILE, command=HOSTILE, device=HOSTILE, warnings=[HOSTILE], files={HOSTILE: HOSTILE})
    study["layers"][0] |= {"name": HOSTILE, "type": HOSTILE}
    study["layers"][-1]["skipped"] = HOSTILE
    study["network"]["name"] = HOSTILE
    study["chosen"]["reason"] = HOSTILE
    study["data"]["class_names"] = [HOSTILE, "positive"]
    study["data"]["splits"][HOSTILE] = study["data"]["splits"]["test"]
    study["pruning"] |= {"importance": HOSTILE, HOSTILE: {HOSTILE: [HOSTILE]}}
    study["test"]["pruned"]["method"] = HOSTILE
    study["versions"][HOSTILE] = HOSTILE
    text = write_report(study, tmp_path)["report_html"].read_text(encoding="utf-8")
    assert_self_contained(text)
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in text


def test_report_without_test_roc_and_ranks(tmp_path: Path) -> None:
    text = write_report(make_study(test=None, layers=[]), tmp_path)["report_html"].read_text(encoding="utf-8")
    assert "Not tested" in text
    assert "No test results." in text
    assert "No layer has a basis." in text


def test_wrong_record_writes_nothing(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError):
        write_report(make_study(title=""), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_unknown_patients_are_said(tmp_path: Path) -> None:
    study = make_study()
    study["data"]["splits"]["test"] |= {"patients": None, "patients_by_class": None}
    text = write_report(study, tmp_path)["report_html"].read_text(encoding="utf-8")
    assert "It is not known which cases belong to the same patient" in text


def test_comparison(tmp_path: Path) -> None:
    other = make_study(title=HOSTILE, test=None)
    other["data"]["split_sha256"] = "ab" * 32
    paths = [save_study(make_study(), tmp_path / "a.json"), save_study(other, tmp_path / "b.json")]
    text = compare_studies(paths, tmp_path / "compare.html").read_text(encoding="utf-8")
    assert_self_contained(text)
    assert "must not be compared with each other" in text
    assert "not tested" in text
    assert "Cardiomegaly on synthetic chest radiographs" in text
    with pytest.raises(ConfigurationError, match="at least two"):
        compare_studies(paths[:1], tmp_path / "one.html")


def browse(page: Path, folder: Path, *arguments: str) -> str:
    assert CHROMIUM is not None
    command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"]
    command += ["--disable-background-networking", "--disable-component-update", "--disable-sync", "--hide-scrollbars"]
    command += [f"--user-data-dir={folder / 'profile'}", *arguments, page.as_uri()]
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=120).stdout


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium or google-chrome on this machine")
@pytest.mark.parametrize("dark", [False, True])
def test_report_in_a_browser(dark: bool, report: dict[str, Path], tmp_path: Path) -> None:
    image = pytest.importorskip("PIL.Image")
    picture = tmp_path / "page.png"
    scheme = f"--blink-settings=preferredColorScheme={0 if dark else 1}"
    browse(report["report_html"], tmp_path, scheme, "--window-size=1100,1500", f"--screenshot={picture}")
    with image.open(picture) as shot:
        pixels = shot.convert("RGB")
        assert pixels.size == (1100, 1500)
        assert (sum(pixels.getpixel((5, 5))) < 150) is dark
        colors = {color for _, color in pixels.getcolors(1 << 24)}
    # The line of the curve, drawn from the variable of the page, in the color of the scheme.
    assert ((0x56, 0xB4, 0xE9) if dark else (0x00, 0x72, 0xB2)) in colors


@pytest.mark.skipif(CHROMIUM is None, reason="no chromium or google-chrome on this machine")
def test_page_fits_a_telephone(report: dict[str, Path], tmp_path: Path) -> None:
    # Headless windows have a least width; a frame does not. The script measures the page inside the frame.
    frame = tmp_path / "frame.html"
    text = report["report_html"].read_text(encoding="utf-8")
    inner = re.sub(r"<meta http-equiv[^>]*>", "", text).replace("&", "&amp;").replace('"', "&quot;")
    frame.write_text(
        f'<body><iframe style="width:375px;height:900px;border:0" srcdoc="{inner}" onload="'
        "const d = this.contentDocument, shown = (n) => [...d.querySelectorAll(n)].filter(e => e.offsetHeight > 0);"
        "document.title = ['width', d.documentElement.scrollWidth, 'narrow', shown('div.narrow').length,"
        "'wide', shown('div.wide').length, d.querySelector('h1').textContent].join(' ')\"></iframe>",
        encoding="utf-8",
    )
    found = browse(frame, tmp_path, "--dump-dom")
    assert "<title>width 375 narrow 3 wide 0 Cardiomegaly on synthetic chest radiographs</title>" in found
    dom = browse(report["report_html"], tmp_path, "--dump-dom")
    assert "Non-inferiority is not shown" in dom
    assert "Content-Security-Policy" in dom
