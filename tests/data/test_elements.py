from __future__ import annotations

import math

import pytest
from radiograph_files import radiograph

from monai_basisprune.data.elements import element_number, element_text, is_uid, read_attributes


@pytest.mark.parametrize(
    ("elements", "expected"),
    [
        ({"PatientAge": "045Y"}, {"age": 45}),
        ({"PatientAge": "018M"}, {"age": 1}),
        ({"PatientAge": "095Y"}, {"age": 90}),
        ({"PatientBirthDate": "19700615", "StudyDate": "20200614"}, {"age": 49}),
        ({"PatientBirthDate": "19700615", "StudyDate": "20200615"}, {"age": 50}),
        ({"PatientSex": "O"}, {"sex": "O"}),
        ({"Manufacturer": "FUJIFILM Corporation"}, {"manufacturer": "Fujifilm"}),
        ({"Manufacturer": "GE Healthcare"}, {"manufacturer": "GE"}),
        ({"Manufacturer": "Gerald Smith"}, {"manufacturer": "other"}),
        ({"ViewPosition": "PA"}, {"view_position": "PA"}),
        ({"ViewPosition": "SMITH"}, {"view_position": "other"}),
        ({"ImagerPixelSpacing": [0.2, 0.1]}, {"pixel_spacing": (0.2, 0.1)}),
        ({"PixelSpacing": [0.3, 0.3], "ImagerPixelSpacing": [0.2, 0.1]}, {"pixel_spacing": (0.3, 0.3)}),
        ({"PixelSpacing": [0, 0.3]}, {}),
    ],
)
def test_attributes(elements, expected):
    assert read_attributes(radiograph(**elements)) == expected


def test_text_and_numbers():
    dataset = radiograph(WindowCenter=["40.5", "2"])
    assert element_text(dataset, "WindowCenter") == "40.5\\2"
    assert element_number(dataset, "WindowCenter") == 40.5
    assert element_number(dataset, "WindowWidth") is None
    assert math.isnan(element_number(dataset, "PatientName"))


@pytest.mark.parametrize(("text", "right"), [("1.2.3", True), ("1", False), ("Doe", False), ("1." + "2" * 63, False)])
def test_is_uid(text, right):
    assert is_uid(text) is right
