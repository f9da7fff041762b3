from __future__ import annotations

import html
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from pages import HOSTILE, assert_self_contained
from studies import make_pictures, make_study

from monai_basisprune.errors import ConfigurationError
from monai_basisprune.report import write_report

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return write_report(make_study(), tmp_path_factory.mktemp("report") / "out")


def test_files_and_nothing_else(report: dict[str, Path]) -> None:
    assert {key: path.name for key, path in report.items()} == {
        "curve_csv": "curve.csv",
        "curve_svg": "curve.svg",
        "curve_png": "curve.png",
        "roc_csv": "roc.csv",
        "reliability_csv": "reliability.csv",
        "subgroups_csv": "subgroups.csv",
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
        "28.4\u00a0MB",
        "9.8\u00a0ms (9.41 to 10.5)",
        "0.767 (0.677 to 0.857)",
        "about <strong>412 positive patients</strong>",
        "sex: female",
        "not computable: all 14 cases are negative",
        "A small group cannot show safety.",
        "0.91 → 0.34",
        "000000000000a3f1",
        "activation maps are made when the study is run",
        "with Holm's correction over all rounds",
    ):
        assert words in html.unescape(text) or words in text, words
    assert text.count("<svg") == 10
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
    study["audit"]["remarks"] = study["search"]["remarks"] = [HOSTILE]
    study["audit"]["subgroups"][0] |= {"attribute": "age band", "value": HOSTILE}
    study["audit"]["subgroups"][1] |= {"attribute": "age band"}
    study["audit"]["subgroups"][2:5] = []
    study["audit"]["subgroups"][2]["reason"] = HOSTILE
    study["audit"]["changed_cases"][0] |= {"case_id": HOSTILE, "activation_layer": HOSTILE}
    study["audit"]["changed_cases"][1] |= {"reason": HOSTILE, "activation_layer": None}
    study["network"]["latency"]["device"] = study["chosen"]["latency"]["device"] = HOSTILE
    text = write_report(study, tmp_path, make_pictures(HOSTILE))["report_html"].read_text(encoding="utf-8")
    assert_self_contained(text, images=3)
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in text


def test_report_without_test_roc_and_ranks(tmp_path: Path) -> None:
    text = write_report(make_study(test=None, layers=[]), tmp_path)["report_html"].read_text(encoding="utf-8")
    assert "Not tested" in text
    assert "No test results." in text
    assert "No layer has a basis." in text


def test_bare_record(tmp_path: Path) -> None:
    study = make_study(search=None, audit=None, layers=[])
    for key in ("roc", "calibration", "operating_point"):
        del study["test"][key]
    for key in ("bytes_on_disk", "peak_activation_bytes", "latency"):
        del study["network"][key], study["chosen"][key]
    for point in study["curve"]:
        del point["adjusted_p_value"]
    written = write_report(study, tmp_path)
    text = written["report_html"].read_text(encoding="utf-8")
    assert_self_contained(text)
    assert {path.name for path in tmp_path.iterdir()} == {"curve.csv", "curve.svg", "curve.png", "report.html"}
    assert "The study record holds no audit." in text
    assert "The study record holds no ROC curves." in text
    for words in ('id="search"', 'id="reliability"', "p, corrected", "Time for one pass", "Sensitivity at"):
        assert words not in text


def test_images_stand_in_the_page_with_a_warning(tmp_path: Path) -> None:
    study = make_study(layers=[])
    study["data"]["synthetic"] = False
    first = study["audit"]["changed_cases"][0]["case_id"]
    study["audit"]["changed_cases"][1] |= {"activation_layer": None, "reason": "no map, because it has one dimension"}
    text = write_report(study, tmp_path, make_pictures(first, "unknown"))["report_html"].read_text(encoding="utf-8")
    assert_self_contained(text, images=3)
    assert "This page holds images of 1 patient case." in text
    assert "Text burned into an image, such as a name, would be visible." in text
    assert f'alt="Image of case {first}"' in text
    assert "no map, because it has one dimension." in text
    assert len(list(tmp_path.glob("*.png"))) == 1  # the curve: no image of a patient lies loose


def test_the_unpruned_network_that_was_kept_is_not_compared_with_itself(tmp_path: Path) -> None:
    study = make_study()
    keys = ("round", "parameters", "macs", "parameter_reduction", "mac_reduction")
    study["chosen"] |= {key: study["curve"][0][key] for key in keys}
    study["test"]["pruned"] = study["test"]["original"]
    study["test"]["difference"] |= {"difference": 0.0, "low": -0.1, "high": 0.1}
    study["audit"]["subgroups"] = []
    text = write_report(study, tmp_path)["report_html"].read_text(encoding="utf-8")
    assert "Nothing was pruned" in text
    assert text.count("<span>same network</span>") == 2
    for words in ("\u22120.100", "does not support this choice", "was chosen on the validation set:"):
        assert words not in text, words


def test_settings_and_targets_are_shown_in_full(tmp_path: Path) -> None:
    study = make_study()
    study["pruning"]["preprocessing"] = {"image_size": 96, "intensity_mean": 0.4734}
    study["search"]["steps"][0] |= {"target": 0.0625, "difference": -0.0102, "low": -0.0204}
    study["search"]["remarks"].append(study["warnings"][0])
    text = write_report(study, tmp_path)["report_html"].read_text(encoding="utf-8")
    for words in ("image_size 96, intensity_mean 0.4734", "6.25\u00a0%", "\u22120.0102"):
        assert words in text, words
    assert text.count(study["warnings"][0]) == 1  # said once


def test_wrong_record_writes_nothing(tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError):
        write_report(make_study(title=""), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_unknown_patients_are_said(tmp_path: Path) -> None:
    study = make_study(layers=[])
    study["data"]["splits"]["test"] |= {"patients": None, "patients_by_class": None}
    text = write_report(study, tmp_path)["report_html"].read_text(encoding="utf-8")
    assert "It is not known which cases belong to the same patient" in text


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
    assert "<title>width 375 narrow 5 wide 0 Cardiomegaly on synthetic chest radiographs</title>" in found
    dom = browse(report["report_html"], tmp_path, "--dump-dom")
    assert "Non-inferiority is not shown" in dom
    assert "Content-Security-Policy" in dom
