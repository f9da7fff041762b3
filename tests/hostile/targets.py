"""Everything that reads a file from outside: good files to start from, a reader, and what must hold of its result."""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import io
import json
import pickle
import sys
import warnings
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch
import yaml
from PIL import Image
from pydicom import dcmwrite
from pydicom.encaps import encapsulate
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    RLELossless,
)
from torch import nn

import monai_basisprune as mbp
from monai_basisprune.checkpoints import RunCheckpoints
from monai_basisprune.cli_parser import split_overrides
from monai_basisprune.data import load_split
from monai_basisprune.data.datalist import FORMAT_VERSION, split_hash
from monai_basisprune.data.identifiers import known
from monai_basisprune.data.images import decode_picture
from monai_basisprune.data.labels import read_labels
from monai_basisprune.data.matching import check_rows, match_rows
from monai_basisprune.data.npz import read_npz
from monai_basisprune.data.preflight import FileRecord, cross_check, inspect_file
from monai_basisprune.data.pseudonyms import load_or_create_salt
from monai_basisprune.data.radiograph import read_radiograph
from monai_basisprune.data.volume_nifti import read_nifti
from monai_basisprune.errors import CohortError, ConfigurationError
from monai_basisprune.export import export_network
from monai_basisprune.inference import read_deployment
from monai_basisprune.plan import PruningPlan
from monai_basisprune.report import load_study, write_report
from monai_basisprune.report.study import validate_study
from monai_basisprune.workflow.bundle_configs import config_files, next_metadata, pruned_config, write_config
from monai_basisprune.workflow.bundle_files import read_metadata
from monai_basisprune.workflow.child_runs import check_earlier
from monai_basisprune.workflow.pretrained import load_pretrained
from monai_basisprune.workflow.repeat_results import _not_comparable, _pooled
from tests.data.radiograph_files import lut, radiograph, ramp, uid
from tests.networks import tiny_classifier
from tests.workflow.source_bundles import train_config

from .mutations import Mutator, archive_aware, blind, dicom_aware, json_aware, table_aware

sys.path.append(str(Path(__file__).parents[1] / "report"))  # its helpers are imported by their bare names
from studies import make_study

__all__ = ["Target", "make_targets"]


@dataclass(frozen=True)
class Target:
    """One reader.

    Attributes:
        name: what it reads.
        seeds: good files, or nearly good ones.
        read: reads the file of a path, and asserts what must hold of the result.
        mutators: how hostile files are made.
        weight: its share of all inputs.
        suffix: ending of the file's name.
    """

    name: str
    seeds: tuple[bytes, ...]
    read: Callable[[Path], object]
    mutators: tuple[Mutator, ...]
    weight: int
    suffix: str = ""
    folder: Path = field(default=Path())


def make_targets(folder: Path) -> list[Target]:
    """Return all readers; what they need beside the hostile file is written into a folder."""
    original = tiny_classifier(0)
    network = mbp.decompose(original)
    mbp.prune_(network, mbp.SingularValueImportance(network).scores(), mbp.Budget(bases=0.3))
    folder.mkdir(parents=True, exist_ok=True)
    mbp.save_pruned(network, folder / "good.pt")
    plan = json.loads((folder / "good.plan.json").read_text())
    return [
        *_image_targets(),
        *_picture_targets(),
        *_table_targets(folder),
        *_network_targets(folder, original, network, plan),
        *_study_targets(folder, original),
        *_bundle_targets(folder, network),
    ]


def _image_targets() -> list[Target]:
    seeds = [_dicom(radiograph()), _dicom(radiograph(signed=True, RescaleSlope="2.5", RescaleIntercept="-1024"))]
    table = np.arange(4096) * 16
    seeds.append(_dicom(radiograph(ModalityLUTSequence=lut(table), PhotometricInterpretation="MONOCHROME1")))
    seeds.append(_dicom(radiograph(VOILUTSequence=lut(table), PixelPaddingValue=100, WindowCenter=[1, 2])))
    window = {"WindowCenter": "2000", "WindowWidth": "1500", "VOILUTFunction": "SIGMOID"}
    seeds.append(_dicom(radiograph(**window, NumberOfFrames="1", PatientAge="045Y", PixelSpacing=["0.1", "0.1"])))
    packed = radiograph()
    packed.compress(RLELossless, encoding_plugin="pydicom")
    for syntax in (DeflatedExplicitVRLittleEndian, ExplicitVRBigEndian):
        other = radiograph()
        other.file_meta.TransferSyntaxUID = syntax
        if syntax == ExplicitVRBigEndian:
            other.PixelData = ramp().astype(">u2").tobytes()
        seeds.append(_dicom(other, little=syntax != ExplicitVRBigEndian))
    seeds.append(_dicom(packed))
    for syntax, kind in ((JPEGBaseline8Bit, "JPEG"), (JPEG2000Lossless, "JPEG2000")):
        values = ramp(32, 40, 0, 255)
        image, stream = radiograph(values, BitsAllocated=8, BitsStored=8, HighBit=7), io.BytesIO()
        Image.fromarray(values.astype(np.uint8)).save(stream, kind, **({"no_jp2": True} if kind == "JPEG2000" else {}))
        image.file_meta.TransferSyntaxUID, image.PixelData = syntax, encapsulate([stream.getvalue()])
        seeds.append(_dicom(image))

    def read(path: Path) -> None:
        known.forget()
        record = inspect_file(path.parent, path, 1)
        cross_check([record])
        try:
            image, info = read_radiograph(path)
        except CohortError:
            assert record.problems, "the preflight found nothing wrong with a file that cannot be read"
            raise
        assert image.dtype == np.float32
        assert image.shape == (info.rows, info.columns)
        assert np.isfinite(image).all()
        assert 0 <= image.min() <= image.max() <= 1

    return [Target("DICOM radiograph", tuple(seeds), read, (dicom_aware, dicom_aware, blind), 24, ".dcm")]


def _picture_targets() -> list[Target]:
    voxels = np.arange(16 * 16 * 16, dtype=np.int16).reshape(16, 16, 16)
    volumes = [nib.Nifti1Image(voxels, np.diag([1.0, 1.0, 2.0, 1.0])), nib.Nifti2Image(voxels, np.eye(4))]
    niftis = [volume.to_bytes() for volume in volumes] + [gzip.compress(volumes[0].to_bytes(), mtime=0)]
    niftis.append(gzip.compress(volumes[0].to_bytes() + bytes(1 << 26), mtime=0))
    pictures = []
    for mode, kind in (("L", "PNG"), ("RGBA", "PNG"), ("I;16", "PNG"), ("P", "PNG"), ("RGB", "JPEG"), ("CMYK", "JPEG")):
        stream = io.BytesIO()
        Image.new(mode, (24, 16), 7).save(stream, kind)
        pictures.append(stream.getvalue())
    sections = {f"{name}_images": np.zeros((4, 8, 8), np.uint8) for name in ("train", "val", "test")}
    sections |= {f"{name}_labels": np.array([[0], [1], [0], [1]]) for name in ("train", "val", "test")}
    plain, packed, objects = io.BytesIO(), io.BytesIO(), io.BytesIO()
    np.savez(plain, **sections)
    np.savez_compressed(packed, **sections)
    np.savez(objects, **{**sections, "val_labels": np.array([_RunsCode(exec, "import sys; sys.hostile = 1")] * 4)})

    def read_volume_file(path: Path) -> None:
        values, affine = read_nifti(path)
        assert values.ndim == 3
        assert affine.shape == (4, 4)

    def read_picture(path: Path) -> None:
        image = decode_picture(path.read_bytes())
        assert image.ndim == 3
        assert len(image) in (1, 3)
        assert 0 <= image.min() <= image.max() <= 1

    def read_arrays(path: Path) -> None:
        assert {section.name for section in read_npz(path)} == {"training", "validation", "test"}

    arrays = tuple(stream.getvalue() for stream in (plain, packed, objects))
    return [
        Target("NIfTI volume", tuple(niftis), read_volume_file, (blind,), 6, ".nii"),
        Target("picture", tuple(pictures), read_picture, (blind,), 6, ".png"),
        Target("arrays (.npz)", arrays, read_arrays, (archive_aware, archive_aware, blind), 5, ".npz"),
    ]


def _dicom(dataset: Any, little: bool = True) -> bytes:
    stream = io.BytesIO()
    how = {"enforce_file_format": True} if little else {"force_encoding": True}
    dcmwrite(stream, dataset, implicit_vr=False, little_endian=little, **how)
    return stream.getvalue()


def _table_targets(folder: Path) -> list[Target]:
    rows = [
        f"{uid(i)},{('positive', 'negative')[i % 2]},P{i // 2},{('training', 'test')[i % 3 == 0]}" for i in range(8)
    ]
    names = "\n".join(["image;label"] + [f"scan {i}.dcm;{i % 2}" for i in range(8)])
    seeds = (
        "\n".join(["image,label,patient_id,split", *rows]).encode(),
        names.encode("utf-16"),
        b"SOPInstanceUID,label\n1.2,1\n",
    )
    records = [FileRecord(i + 1, f"scan {i}.dcm", 100, "a", uid(i), attributes={}) for i in range(8)]

    def read_table(path: Path) -> None:
        table = read_labels(path, ("negative", "positive"))
        assert bool(table.rows) != bool(table.problems)
        assert all(row.label in (None, 0, 1) and (row.label is not None or row.problems) for row in table.rows)
        matched, problems = match_rows(table, records)
        for record in records:
            problems += check_rows(record, matched.get(record.position, []))[0]
        texts = [*table.problems, *(str(problem) for problem in problems)]
        if texts:
            raise CohortError("The labels table cannot be used.", texts)

    images = folder / "images"
    images.mkdir()
    (images / "a.dcm").write_bytes(b"")
    item = {
        "image": "a.dcm",
        "label": 1,
        "patient_id": "",
        "case_id": "",
        "sex": "F",
        "age": 50,
        "image_sha256": "0" * 64,
    }
    sections: dict[str, Any] = {
        name: [{**item, "label": i % 2, "case_id": f"c{name}{i}", "patient_id": f"p{name}{i}"} for i in range(2)]
        for name in ("training", "validation", "test")
    }
    datalist = {
        "format_version": FORMAT_VERSION,
        "class_names": ["no", "yes"],
        "split_sha256": split_hash(sections),
        **sections,
    }

    def read_datalist(path: Path) -> None:
        content: Any = path
        with contextlib.suppress(Exception):  # as if its writer had made the hash, too
            found = json.loads(path.read_text(encoding="utf-8"))
            found["split_sha256"] = split_hash(found)
            path.write_text(json.dumps(found))
        for section in ("training", "test"):
            for case in load_split(content, section, images):
                assert Path(case["image"]).resolve().is_relative_to(images.resolve())
                assert type(case["label"]) is int

    def read_salt(path: Path) -> None:
        path.replace(path.with_name("salt"))
        assert len(load_or_create_salt(path.parent)) >= 16

    return [
        Target("labels table", seeds, read_table, (table_aware, table_aware, blind), 14, ".csv"),
        Target(
            "datalist", (json.dumps(datalist).encode(),), read_datalist, (json_aware, json_aware, blind), 9, ".json"
        ),
        Target("salt", (b"0" * 64 + b"\n",), read_salt, (blind,), 1),
    ]


class _RunsCode:
    """What a pickle of somebody else may hold."""

    def __init__(self, function: Callable[..., Any], *arguments: Any) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> Any:
        return self.call


def _saved(value: Any, **options: Any) -> bytes:
    stream = io.BytesIO()
    torch.save(value, stream, **options)
    return stream.getvalue()


def _network_targets(folder: Path, original: nn.Module, network: nn.Module, plan: dict[str, Any]) -> list[Target]:
    state, plain = network.state_dict(), original.state_dict()
    free = json.dumps({**plan, "weights_sha256": None})

    def read_plan(path: Path) -> None:
        loaded = PruningPlan.load(path)
        again = mbp.build_pruned(original, loaded)
        assert PruningPlan.from_network(again).layers == loaded.layers

    def read_pruned(path: Path) -> None:
        path.with_suffix(".plan.json").write_text(free)
        loaded = mbp.load_pruned(original, path)
        assert all(not tensor.isnan().any() for tensor in loaded.state_dict().values())

    def read_checkpoint(path: Path) -> None:
        loaded = load_pretrained(original, path, progress=False)
        assert {n: t.shape for n, t in loaded.state_dict().items()} == {n: t.shape for n, t in plain.items()}

    name = next(iter(plain))
    size = torch.zeros(1)
    odd = (
        _saved({**plain, name: size.expand(2**20, 2**20)}),
        _saved({**plain, name: plain[name].to_sparse()}),
        _saved({**plain, name: plain[name].to("meta")}),
        _saved({**plain, name: _RunsCode(exec, "import sys; sys.hostile = 1")}),
        pickle.dumps(_RunsCode(exec, "import sys; sys.hostile = 1")),
        _zip_bomb(_saved(plain)),
    )
    legacy = _saved(plain, _use_new_zipfile_serialization=False)
    good = (
        _saved(plain),
        _saved({"state_dict": plain, "epoch": 3}),
        _saved({"model": {f"module.{n}": t for n, t in plain.items()}}),
    )
    checkpoints = RunCheckpoints(folder / "run", {"seed": 0})
    checkpoint = checkpoints.save(3, {"network": plain, "round": 1, "points": [{"auc": 0.5}]}).read_bytes()

    def read_run(path: Path) -> None:
        path.replace(path.with_name("checkpoint_000003.pt"))
        found = RunCheckpoints(path.parent, {"seed": 0}).load()
        if found is None or found.warnings:
            raise CohortError("passed over", [] if found is None else found.warnings)
        assert isinstance(found.state, dict)

    return [
        Target(
            "pruning plan",
            (json.dumps(plan).encode(), free.encode()),
            read_plan,
            (json_aware, json_aware, blind),
            12,
            ".json",
        ),
        Target("pruned weights", (_saved(state), *odd), read_pruned, (archive_aware, archive_aware, blind), 10, ".pt"),
        Target(
            "pretrained checkpoint",
            (*good, legacy, *odd),
            read_checkpoint,
            (archive_aware, archive_aware, blind),
            9,
            ".pt",
        ),
        Target("checkpoint of a run", (checkpoint, *odd), read_run, (archive_aware, archive_aware, blind), 3, ".pt"),
    ]


def _zip_bomb(data: bytes) -> bytes:
    """Return an archive of the same parts with one more that unpacks to 256 MiB."""
    stream = io.BytesIO(data)
    with zipfile.ZipFile(stream, "a", zipfile.ZIP_DEFLATED) as archive, archive.open("archive/data/bomb", "w") as part:
        for _ in range(256):
            part.write(bytes(1 << 20))
    return stream.getvalue()


def _study_targets(folder: Path, original: nn.Module) -> list[Target]:
    study = make_study()
    rendered = [0]

    def read_study(path: Path) -> None:
        loaded = load_study(path)
        validate_study(loaded)
        digest = hashlib.sha256(path.read_bytes()).digest()
        if digest[0] < 3:  # pages and pictures take far longer than all else
            rendered[0] += 1
            page = write_report(loaded, path.parent / "page")["report_html"].read_text(encoding="utf-8")
            assert "<script>alert(1)</script>" not in page

    scores = [i / 20 for i in range(20)]
    pooled = {
        "labels": [i % 2 for i in range(20)],
        "original": scores,
        "pruned": scores,
        "patients": [f"p{i}" for i in range(20)],
    }

    def read_predictions(path: Path) -> None:
        (path.parent / "work").mkdir()
        path.replace(path.parent / "work" / "test_predictions.json")
        result, remarks = _pooled([(0, 0, 1, path.parent)], 0.01)
        assert result is not None or remarks

    layer = next(name for name, module in original.named_modules() if isinstance(module, nn.Conv2d))
    state = mbp.decompose(original).state_dict()

    def read_repeat(path: Path) -> None:
        (path.parent / "work" / "networks").mkdir(parents=True)
        path.replace(path.parent / "work" / "networks" / "a7.pt")
        found = _not_comparable([path.parent] * 2, [{"curve": [{"structure": "a7"}]}] * 2, {layer: 4})
        assert set(found) <= {layer}

    (folder / "repeat" / "work").mkdir(parents=True)
    (folder / "repeat" / "study.json").write_text(json.dumps(study))
    (folder / "repeat" / "work" / "test_predictions.json").write_text(json.dumps(pooled))

    def read_record(path: Path) -> None:
        place = folder / "repeat" / "repeat.json"
        path.replace(place)
        check_earlier([folder / "repeat"], [{"seed": "a"}])

    record = json.dumps({"seed": 0, "fold": None, "settings": {"seed": "a"}}).encode()
    jsons = (json_aware, json_aware, blind)
    return [
        Target(
            "study",
            (json.dumps(study).encode(), json.dumps(make_study(layers=[])).encode()),
            read_study,
            jsons,
            8,
            ".json",
        ),
        Target("predictions of a repeat", (json.dumps(pooled).encode(),), read_predictions, jsons, 3, ".json"),
        Target("networks of a repeat", (_saved(state),), read_repeat, (archive_aware, blind), 2, ".pt"),
        Target("record of a repeat", (record,), read_record, jsons, 1, ".json"),
    ]


def _bundle_targets(folder: Path, network: nn.Module) -> list[Target]:
    plan = PruningPlan.from_network(network)
    metadata = {
        "version": "0.1.2",
        "changelog": {"0.1.2": "first"},
        "required_packages_version": {"nibabel": "5.2"},
        "eval_metrics": {"AUC": 0.9},
        "network_data_format": {"inputs": {"image": {"type": "image", "num_channels": 1}}},
    }

    def read_bundle_metadata(path: Path) -> None:
        (path.parent / "configs").mkdir()
        path.replace(path.parent / "configs" / "metadata.json")
        new = next_metadata(read_metadata(path.parent), "pruned", {"AUC": 0.5})
        assert new["version"] != new.get("before")
        json.dumps(new, allow_nan=False)

    def read_config(path: Path) -> None:
        (path.parent / "configs").mkdir()
        path.replace(path.parent / "configs" / f"train{path.suffix}")
        for name, config in config_files(path.parent).items():
            new = pruned_config(config, plan)
            if new is not None:
                write_config(new, path.parent / "configs" / name)

    def read_model(path: Path) -> None:
        path.replace(path.with_name("model.ts"))
        found = read_deployment(path.parent)
        texts = json.dumps(found, allow_nan=False)
        assert not any(f'"{mark}' in texts for mark in "$@%"), "a text that a bundle would run"

    def read_override(path: Path) -> None:
        word = path.read_bytes().decode("utf-8", errors="surrogateescape")
        split_overrides(_Parser(), ["--key", word] if not word.startswith("--") else [f"--key={word}"])

    export_network(network, folder / "model.ts", (1, 16, 16), metadata={**_DEPLOYED, "class_names": ["no", "yes"]})
    evil = {**_DEPLOYED, "image_size": "$__import__('os').system('x')", "class_names": ["no", "yes"]}
    export_network(network, folder / "evil.ts", (1, 16, 16), metadata=evil)
    config = json.dumps(train_config()).encode()
    bomb = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
        f"{chr(98 + i)}: &{chr(98 + i)} [{', '.join([f'*{chr(97 + i)}'] * 9)}]\n" for i in range(9)
    )
    yamls = (
        yaml.safe_dump(train_config()).encode(),
        bomb.encode(),
        b"a: &a [*a]\nnetwork_def: {_target_: x}\n",
        b"!!python/object/apply:os.system ['x']",
    )
    models = tuple((folder / name).read_bytes() for name in ("model.ts", "evil.ts"))
    jsons = (json_aware, json_aware, blind)
    return [
        Target("metadata of a bundle", (json.dumps(metadata).encode(),), read_bundle_metadata, jsons, 4, ".json"),
        Target("JSON configuration", (config,), read_config, jsons, 3, ".json"),
        Target("YAML configuration", yamls, read_config, (blind,), 2, ".yaml"),
        Target("deployed network", models, read_model, (archive_aware, archive_aware, blind), 3, ".ts"),
        Target("override of a command", (b'{"a": [1, 2, {"b": "c"}]}',), read_override, jsons, 1),
    ]


_DEPLOYED = {"image_size": 16, "image_channels": 1, "intensity_mean": 0.4, "intensity_std": 0.2}


class _Parser:
    _option_string_actions = ()

    def error(self, message: str) -> None:
        raise ConfigurationError(message)


warnings.filterwarnings("ignore")
